//! `coeval skew --watch`: the terminal, its keys, and the server, once a second.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use snapshot::client::ServerClient;
use timesync::clock::{pace_now, wall_now};
use timesync::time::Nanos;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::screen::Screen;
use crate::commands::Failure;

const EVERY: Duration = Duration::from_secs(1);
/// The thread that waits for keys looks so often whether it is still wanted.
const PATIENCE: Duration = Duration::from_millis(100);
/// What the chart begins with.
const PAST: Nanos = Nanos::from_millis(600_000);

/// The terminal as it was, when this is dropped. A panic restores it too, before its message: `ratatui::init` sees to that.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Ends the thread that reads keys.
struct Unwanted(Arc<AtomicBool>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Shows the report live until somebody quits or a signal comes.
///
/// # Errors
/// When there is no terminal.
pub async fn run(client: &ServerClient, hosts: &[String]) -> Result<(), Failure> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err("--watch needs a terminal; without one, use `coeval skew`, or --json".into());
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminal = ratatui::try_init()?;
    let _restored = Restored;
    let (mut events, _unwanted) = events()?;
    let mut screen = Screen::new();
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => refresh(client, hosts, &mut screen).await,
            event = events.recv() => match event {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press && !screen.key(key) => return Ok(()),
                Some(_) => {}
                None => return Err("the terminal is gone".into()),
            },
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
        terminal.draw(|frame| screen.draw(frame))?;
    }
}

/// Asks the server. If it does not answer, the screen says so and keeps what it has.
async fn refresh(client: &ServerClient, hosts: &[String], screen: &mut Screen) {
    let now = || pace_now().get() as f64 / 1e9;
    match super::fetch(client, hosts).await {
        Ok(report) => screen.take(report, now()),
        Err(error) => return screen.fail(error.to_string()),
    }
    if let Some(host) = screen.wanted() {
        // Without its past, the chart begins now.
        if let Ok(tracks) = client.skew_history(PAST, Some(&host)).await {
            let ahead = wall_now().as_nanos() as f64 / 1e9 - now();
            tracks.iter().for_each(|track| screen.take_past(track, ahead));
        }
    }
}

/// Keys and resizes, from a thread that ends soon after the receiver is no longer wanted.
fn events() -> std::io::Result<(mpsc::UnboundedReceiver<Event>, Unwanted)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let unwanted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&unwanted);
    std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            match event::poll(PATIENCE) {
                Ok(false) => {}
                Ok(true) => {
                    if !event::read().is_ok_and(|event| sender.send(event).is_ok()) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    })?;
    Ok((receiver, Unwanted(unwanted)))
}
