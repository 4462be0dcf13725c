//! Daemons as child processes: started, awaited until ready, and gone when the handle is.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

/// What a daemon prints before the JSON that says where it listens.
pub const READY: &str = "ready ";

/// Generous: a machine may be busy, and a daemon that fails says so at once.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    command: Command,
    child: Child,
    ready: String,
    log: PathBuf,
}

/// Why a daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The process or its log cannot be created.
    #[error("cannot start a daemon: {0}")]
    Start(#[from] std::io::Error),
    /// It got ready, but does not say where it listens in terms that this version knows.
    #[error("a daemon said where it listens in unknown terms: {0}")]
    Ready(#[from] serde_json::Error),
    /// It ended, or said nothing in time.
    #[error("a daemon did not get ready; its last words: {0}")]
    NotReady(String),
}

impl Daemon {
    /// Starts `command` with its log going to the file `log`, and waits for its line `ready {json}` on stdout.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn start(mut command: Command, log: &Path) -> Result<Daemon, DaemonError> {
        let child = command
            // Not in the terminal's foreground group: Ctrl-C ends the parent, which ends its daemons in good order.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::options().create(true).append(true).open(log)?)
            .spawn()?;
        let mut daemon = Daemon { command, child, ready: String::new(), log: log.to_owned() };
        daemon.await_ready()?;
        Ok(daemon)
    }

    /// Kills it if it still runs, and starts it again as it was started before.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn restart(&mut self) -> Result<(), DaemonError> {
        self.end();
        self.child = self.command.spawn()?;
        self.await_ready()
    }

    fn await_ready(&mut self) -> Result<(), DaemonError> {
        let stdout = self.child.stdout.take();
        let (sender, receiver) = mpsc::channel();
        // Reads to the end, so that the daemon never meets a closed pipe.
        std::thread::Builder::new().name("daemon's stdout".to_owned()).spawn(move || {
            for line in stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines()) {
                let Ok(line) = line else { break };
                if let Some(json) = line.strip_prefix(READY) {
                    // Nobody listens any more after the timeout.
                    let _ = sender.send(json.to_owned());
                }
            }
        })?;
        self.ready = receiver
            .recv_timeout(START_TIMEOUT)
            .map_err(|_| DaemonError::NotReady(last_line(&self.log).unwrap_or_else(|| "none".to_owned())))?;
        Ok(())
    }

    fn end(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Where it listens, as it said when it got ready.
    ///
    /// # Errors
    /// When it said something else than `T`.
    pub fn ready<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.ready)
    }

    /// What it logged so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log(&self) -> std::io::Result<String> {
        std::fs::read_to_string(&self.log)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> nix::Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
    }

    /// The process, as the system numbers it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// As [`Child::try_wait`].
    pub fn try_wait(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until it ends.
    ///
    /// # Errors
    /// As [`Child::wait`].
    pub fn wait(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

fn last_line(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    text.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned)
}
