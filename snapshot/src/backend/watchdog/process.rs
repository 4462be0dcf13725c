//! The watchdog's process: a thin shell around its decisions.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::time::TimeSpec;
use timesync::clock::{HostClock, exact_sleeps};

use super::{Next, PauseOrder, Paused, Report, Resumed, Watch, Word};
use crate::backend::{Held, Resumption};
use crate::cut::Cause;

/// Between tries to resume what cannot be resumed.
const RETRY: Duration = Duration::from_millis(10);

/// Lives a watchdog's life: `daemon` is the connection to its daemon, `file` what the pause needs. Returns when the pause is
/// over, or the daemon is gone before it began.
///
/// # Errors
/// When the daemon cannot be talked to, before anything was paused.
pub fn run(daemon: OwnedFd, file: OwnedFd, clock: &HostClock) -> io::Result<()> {
    // Whoever stops the daemon may signal all its processes; this one ends when the daemon has.
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGPIPE]);
    signals.thread_block()?;
    stay_in_memory();
    exact_sleeps();
    let mut line = Line { stream: UnixStream::from(daemon), heard: Vec::with_capacity(4096) };
    let Some(Word::Hold(pause)) = line.hear(None)? else { return Ok(()) };
    let mut held = Held::new(pause, file);
    line.say(&Report::Ready)?;
    match line.hear(None)? {
        Some(Word::Pause(order)) => watch_over(&mut held, order, line, clock),
        _ => Ok(()),
    }
}

/// What is paged out might have to be read back from the very file system that is frozen; and whoever looks for memory
/// should look elsewhere.
fn stay_in_memory() {
    // Where it is not allowed the watchdog is as right as before, and less sure to be quick.
    let _ = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
}

fn watch_over(held: &mut Held, order: PauseOrder, mut line: Line, clock: &HostClock) -> io::Result<()> {
    let began = clock.now();
    if let Err(why) = held.pause(order.deadline) {
        return line.say(&Report::NotPaused(why.to_string()));
    }
    let paused = Paused { began, p: clock.now() };
    let mut watch = Watch::new(order, paused);
    // From here on no error ends this before the resume.
    if line.say(&Report::Paused(paused)).is_err() {
        watch.hung_up();
    }
    let mut first_try = None;
    loop {
        let now = clock.now();
        match watch.next(now) {
            Next::Listen(until) => match line.hear(Some((until - now).to_std())) {
                Ok(Some(word)) => watch.hear(&word),
                Ok(None) => watch.hung_up(),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
                Err(_) => watch.hung_up(),
            },
            Next::Resume(cause) => {
                // A try that failed may yet have an effect before the next one begins: the first one's reading counts.
                let (cause, q): (Cause, _) = *first_try.get_or_insert((cause, now));
                match held.resume() {
                    Ok(how) => {
                        let by_others = how == Resumption::Others;
                        return line.say(&Report::Resumed(Resumed { q, cause, by_others }));
                    }
                    Err(_) => std::thread::sleep(RETRY),
                }
            }
        }
    }
}

/// The connection to the daemon: a JSON value a line.
struct Line {
    stream: UnixStream,
    heard: Vec<u8>,
}

impl Line {
    fn say(&mut self, report: &Report) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(report)?;
        bytes.push(b'\n');
        self.stream.write_all(&bytes)
    }

    /// The next word; none if the daemon is gone.
    ///
    /// # Errors
    /// `TimedOut` after `patience`; and what reading says.
    fn hear(&mut self, patience: Option<Duration>) -> io::Result<Option<Word>> {
        loop {
            if let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') {
                let rest = self.heard.split_off(end + 1);
                let word = serde_json::from_slice(&self.heard)?;
                self.heard = rest;
                return Ok(Some(word));
            }
            let mut files = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
            match ppoll(&mut files, patience.map(TimeSpec::from_duration), None) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) if patience.is_none() => continue,
                // The caller's clock says how much is left.
                Err(nix::errno::Errno::EINTR) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
            let mut bytes = [0; 1024];
            match io::Read::read(&mut self.stream, &mut bytes)? {
                0 => return Ok(None),
                length => self.heard.extend_from_slice(&bytes[..length]),
            }
        }
    }
}
