//! What both daemons do alike: log, say that they are ready, serve, stop.

use std::io::IsTerminal;
use std::time::Duration;

use axum::Router;
use nix::sys::prctl::set_pdeathsig;
use sd_notify::NotifyState;
use serde::Serialize;
use snapshot::http::{Admits, Listener, StopHandle, TlsFiles};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::{Failure, print};
use crate::args::DaemonArgs;
use crate::config::LogFormat;
use crate::daemon::READY;

/// What is under way when a signal comes gets so long to end.
const GRACE: Duration = Duration::from_secs(5);

/// Logs to stderr from here on, in this format, at level `info` or what `RUST_LOG` says, and ends with the parent if told so.
///
/// # Errors
/// When the system refuses.
pub fn begin(args: &DaemonArgs, format: LogFormat) -> Result<(), Failure> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let stderr = std::io::stderr;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Text => subscriber.with_ansi(stderr().is_terminal()).init(),
        // With the fields of the spans around: `span` is the innermost, `spans` all of them.
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
    if args.with_parent {
        set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
    }
    Ok(())
}

/// Warns in the log, for as long as the daemon runs, of certificates that expire.
pub fn warn_of_expiry(tls: Option<&TlsFiles>) {
    if let Some(files) = tls {
        tokio::spawn(snapshot::http::warn_of_expiry(files.clone()));
    }
}

/// The signals that end a daemon in good order.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Says on stdout that the daemon serves, and where, and tells systemd where that has started it (sd_notify(3)). From
/// before that on, signals end it in good order: whoever hears it may send one at once.
///
/// # Errors
/// When stdout is closed.
pub fn ready<T: Serialize>(addresses: &T) -> Result<Signals, Failure> {
    let signals =
        Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    print(&format!("{READY}{}", serde_json::to_string(addresses)?))?;
    // A variable that was inherited from some other service is no reason to fail.
    if let Err(why) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!("NOTIFY_SOCKET is set, and what it names cannot be told that this is ready: {why}");
    }
    Ok(signals)
}

/// Serves those whom it `admits` until SIGTERM or SIGINT.
///
/// # Errors
/// When the listening socket fails.
pub async fn serve(
    listener: Listener,
    router: Router,
    admits: Admits,
    mut signals: Signals,
) -> Result<(), Failure> {
    let stop = StopHandle::new();
    let handle = stop.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = signals.terminate.recv() => "SIGTERM",
            _ = signals.interrupt.recv() => "SIGINT",
        };
        tracing::info!("{name}: stopping");
        handle.graceful_shutdown(Some(GRACE));
    });
    Ok(listener.serve(router, admits, stop).await?)
}
