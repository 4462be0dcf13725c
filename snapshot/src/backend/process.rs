//! A process that is known by more than its number: also to a later run of whoever started it.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use timesync::clock::pace_now;
use timesync::time::Nanos;

/// How often it is looked whether a process has ended.
const LOOK: Duration = Duration::from_millis(5);

/// A process of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    id: u32,
    /// When it was started, in ticks since the boot: numbers come again.
    started: u64,
}

impl Process {
    /// The one that has this number now.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of(id: u32) -> io::Result<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let (state, started) = parse(&stat).ok_or(io::ErrorKind::InvalidData)?;
        // One that has ended has no name any more but its parent's to take it away.
        if matches!(state, "Z" | "X") {
            Err(io::ErrorKind::NotFound.into())
        } else {
            Ok(Process { id, started })
        }
    }

    /// Kills it, and returns once it has ended: only then has everything ended that the kernel was doing for it.
    ///
    /// # Errors
    /// When it has not ended within `patience`, or may not be killed.
    pub(crate) fn end(self, patience: Nanos) -> io::Result<()> {
        let until = pace_now() + patience;
        while Process::of(self.id).is_ok_and(|now| now == self) {
            match kill(Pid::from_raw(self.id.cast_signed()), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
            if pace_now() >= until {
                return Err(io::Error::other(format!("process {} was killed, and does not end", self.id)));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }
}

/// State and start time of a line of `/proc/PID/stat` (proc_pid_stat(5)); the name before them may hold anything.
fn parse(stat: &str) -> Option<(&str, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some((fields.next()?, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_line_of_the_kernels() {
        let line =
            "17 (a) b) S 1 17 17 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 90 91 18446744073709551615\n";
        assert_eq!(parse(line), Some(("S", 4711)));
        assert_eq!(parse("17"), None);
    }

    #[test]
    fn it_has_ended_when_it_was_ended_and_another_one_is_let_be() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let another = Process { started: process.started + 1, ..process };
        another.end(Nanos::from_millis(1_000)).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "a process of the same number was killed");
        process.end(Nanos::from_millis(60_000)).unwrap();
        assert!(!child.wait().unwrap().success());
        assert!(Process::of(child.id()).is_err());
    }
}
