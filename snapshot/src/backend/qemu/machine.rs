//! Stopping a virtual machine and setting it running again, as the watchdog does it.
//!
//! Both commands go over one connection to QEMU's monitor: it executes them in the order in which they were sent. So once
//! a `stop` is on its way, a `cont` behind it undoes it, even if QEMU hangs and gets to neither for a while. The connection
//! stays open until the `cont` was answered, since QEMU drops what it has not executed when a client leaves.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use timesync::time::Nanos;

use crate::backend::pause::{PauseError, Resumption};
use crate::backend::qmp::{Qmp, QmpError};
use crate::sync::thread::sleep;

/// How long one try to resume waits for QEMU; the next one goes on waiting.
const TRY: Nanos = Nanos::from_millis(1_000);

/// Between two tries.
const RETRY: Duration = Duration::from_millis(10);

/// A virtual machine that is to be stopped and set running again.
#[derive(Debug)]
pub struct Machine {
    monitor: Qmp,
    /// Where that is, for when the connection breaks.
    socket: PathBuf,
    /// As of the last answer before it was stopped.
    resumes_before: u64,
    /// The commands that resume it, once they are on their way.
    resuming: Option<Resuming>,
}

#[derive(Clone, Copy, Debug)]
struct Resuming {
    status: u64,
    was_paused: Option<bool>,
    cont: u64,
}

#[derive(Debug, Deserialize)]
struct Status {
    running: bool,
    status: String,
}

impl Machine {
    /// By a connection to its monitor that is ready for commands, and the monitor's socket.
    pub fn new(connection: OwnedFd, socket: PathBuf) -> Self {
        Machine { monitor: Qmp::adopt(connection), socket, resumes_before: 0, resuming: None }
    }

    /// Stops the machine: when this returns, its processors stand still, and every request that its disks had taken is
    /// executed and flushed.
    ///
    /// # Errors
    /// When it is not running, or was not stopped `within` that time. It is not stopped by us then: if need be this waits
    /// for as long as QEMU hangs.
    pub fn pause(&mut self, within: Nanos) -> Result<(), PauseError> {
        let status = self.status(within).map_err(|error| PauseError::Failed(error.to_string()))?;
        if !status.running {
            return Err(PauseError::Failed(not_running(&status.status)));
        }
        self.resumes_before = self.monitor.resumes();
        let stopped = self.monitor.execute("stop", json!({}), within).and_then(|_| self.status(within));
        let why = match stopped {
            Ok(status) if !status.running => return Ok(()),
            Ok(_) => "somebody else set the virtual machine running again at once".to_owned(),
            Err(error) => error.to_string(),
        };
        // Whatever became of the `stop`, it may still come.
        while self.resume().is_err() {
            sleep(RETRY);
        }
        Err(PauseError::Failed(why))
    }

    /// Sets the machine running again. It was stopped by us until some time within this call, if it says
    /// [`Resumption::Ours`]. After a failure the next call goes on where this one gave up.
    ///
    /// # Errors
    /// When QEMU has not answered yet.
    pub fn resume(&mut self) -> io::Result<Resumption> {
        let outcome = match self.try_resume() {
            Err(QmpError::Broken { .. }) => self.resume_anew().map(|()| Resumption::Others),
            outcome => outcome,
        };
        match outcome {
            // It has shut itself down, or crashed: it does not run again, and whoever ended the pause, it was not us.
            Err(QmpError::Refused { .. }) => Ok(Resumption::Others),
            outcome => outcome.map_err(|error| io::Error::new(ErrorKind::TimedOut, error)),
        }
    }

    /// After the connection broke. Mostly that is because QEMU has ended, and its machine with it.
    fn resume_anew(&mut self) -> Result<(), QmpError> {
        self.resuming = None;
        match Qmp::connect(&self.socket, TRY) {
            Err(error) if error.is_not_there() => Ok(()),
            Err(error) => Err(error),
            Ok(mut monitor) => monitor.execute("cont", json!({}), TRY).map(|_| ()),
        }
    }

    fn try_resume(&mut self) -> Result<Resumption, QmpError> {
        let mut resuming = match self.resuming {
            Some(resuming) => resuming,
            None => {
                // Both at once: the answer to the first tells whether the second was what ended the pause.
                let status = self.monitor.send("query-status", json!({}), TRY)?;
                let cont = self.monitor.send("cont", json!({}), TRY)?;
                Resuming { status, was_paused: None, cont }
            }
        };
        self.resuming = Some(resuming);
        if resuming.was_paused.is_none() {
            let answer = self.monitor.answer(resuming.status, "query-status", TRY)?;
            let undisturbed = self.monitor.resumes() == self.resumes_before;
            resuming.was_paused = Some(undisturbed && !parse_status(answer)?.running);
            self.resuming = Some(resuming);
        }
        self.monitor.answer(resuming.cont, "cont", TRY)?;
        self.resuming = None;
        Ok(if resuming.was_paused == Some(true) { Resumption::Ours } else { Resumption::Others })
    }

    fn status(&mut self, limit: Nanos) -> Result<Status, QmpError> {
        parse_status(self.monitor.execute("query-status", json!({}), limit)?)
    }
}

/// Checks that a machine runs: another one is not touched.
///
/// # Errors
/// A sentence that says that it does not.
pub(super) fn check_running(monitor: &mut Qmp, limit: Nanos) -> Result<(), String> {
    let answer = monitor.execute("query-status", json!({}), limit);
    match answer.and_then(parse_status) {
        Ok(status) if status.running => Ok(()),
        Ok(status) => Err(not_running(&status.status)),
        Err(error) => Err(error.to_string()),
    }
}

fn not_running(status: &str) -> String {
    format!(
        "the virtual machine does not run (QEMU says: {status}); whoever stopped it has to set it running, with the monitor's command cont"
    )
}

fn parse_status(answer: serde_json::Value) -> Result<Status, QmpError> {
    serde_json::from_value(answer).map_err(|_| QmpError::Protocol("its status is in unknown terms"))
}

#[cfg(test)]
mod tests;
