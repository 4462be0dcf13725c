//! Commands of the server's configuration that are run after each finished snapshot: copy it away, tell somebody.
//!
//! A command runs in a process group of its own, without input, and is ended with its whole group at its deadline. It
//! learns of the snapshot by environment variables:
//!
//! | variable | what |
//! | --- | --- |
//! | `COEVAL_SNAPSHOT` | the snapshot's name |
//! | `COEVAL_SNAPSHOT_ID` | its id |
//! | `COEVAL_VOLUMES` | its volumes, `HOST/VOLUME` with spaces between |
//! | `COEVAL_GROUP` | the saved group that it is of; empty if none |
//! | `COEVAL_SCHEDULE` | the schedule that took it; empty if none |

use std::collections::VecDeque;
use std::fmt;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A command that is asked to end has so long until it is killed.
const GRACE: Duration = Duration::from_secs(5);
/// What it leaves running may hold its output open; that is not waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// So much of its output is kept.
const KEPT: usize = 1024;

/// A command to run after finished snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowUp {
    /// Only after snapshots of this saved group.
    pub group: Option<String>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// It is ended after this time.
    pub deadline: Duration,
}

/// What a command is told of.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The snapshot's name.
    pub snapshot: String,
    /// Its id.
    pub id: String,
    /// Its volumes.
    pub volumes: Vec<String>,
    /// The saved group that it is of.
    pub group: Option<String>,
    /// The schedule that took it.
    pub schedule: Option<String>,
}

/// How a command went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    how: How,
    /// The end of what it wrote.
    pub output: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    NotStarted(String),
    Ended(ExitStatus),
    Late(Duration),
}

impl Outcome {
    /// Whether it did what it was to do.
    pub fn is_good(&self) -> bool {
        matches!(&self.how, How::Ended(status) if status.success())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.how {
            How::NotStarted(why) => write!(f, "it could not be started: {why}")?,
            How::Late(deadline) => write!(f, "it was ended at its deadline of {deadline:?}")?,
            How::Ended(status) => match (status.code(), status.signal()) {
                (Some(0), _) => f.write_str("it did its work")?,
                (Some(code), _) => write!(f, "it failed with status {code}")?,
                (None, signal) => write!(f, "it was ended by signal {}", signal.unwrap_or_default())?,
            },
        }
        if self.output.is_empty() { Ok(()) } else { write!(f, "; it said: {}", self.output) }
    }
}

impl FollowUp {
    /// Whether it is to be run after this snapshot.
    pub fn concerns(&self, finished: &Finished) -> bool {
        self.group.is_none() || self.group == finished.group
    }

    /// The program, as people call it.
    pub fn program(&self) -> &str {
        self.command.first().map_or("", String::as_str)
    }

    /// Runs it to its end. Blocks until then, or until its deadline and a few seconds.
    pub fn run(&self, finished: &Finished) -> Outcome {
        let not_started = |why: String| Outcome { how: How::NotStarted(why), output: String::new() };
        let Some((program, arguments)) = self.command.split_first() else {
            return not_started("it has no program".to_owned());
        };
        let started = Command::new(program)
            .args(arguments)
            .env("COEVAL_SNAPSHOT", &finished.snapshot)
            .env("COEVAL_SNAPSHOT_ID", &finished.id)
            .env("COEVAL_VOLUMES", finished.volumes.join(" "))
            .env("COEVAL_GROUP", finished.group.as_deref().unwrap_or_default())
            .env("COEVAL_SCHEDULE", finished.schedule.as_deref().unwrap_or_default())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(why) => return not_started(why.to_string()),
        };
        let group = Pid::from_raw(child.id().cast_signed());
        let words = Arc::new(Mutex::new(VecDeque::new()));
        let (silent, silence) = channel();
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as _),
            child.stderr.take().map(|pipe| Box::new(pipe) as _),
        ];
        for pipe in pipes.into_iter().flatten() {
            let (words, silent) = (Arc::clone(&words), silent.clone());
            std::thread::spawn(move || {
                keep_the_end(pipe, &words);
                drop(silent);
            });
        }
        drop(silent);
        let (ended, end) = channel();
        std::thread::spawn(move || drop(ended.send(child.wait())));
        let mut wait = end.recv_timeout(self.deadline);
        let late = matches!(wait, Err(RecvTimeoutError::Timeout));
        if late {
            // A group that is gone needs no signal.
            let _ = killpg(group, Signal::SIGTERM);
            wait = end.recv_timeout(GRACE);
            let _ = killpg(group, Signal::SIGKILL);
            if wait.is_err() {
                wait = end.recv_timeout(GRACE);
            }
        }
        // Nothing is ever sent: the end of both is the channel's.
        let _: Result<(), _> = silence.recv_timeout(LAST_WORDS);
        let kept = words.lock().unwrap_or_else(PoisonError::into_inner);
        let output: Vec<u8> = kept.iter().copied().collect();
        let output = String::from_utf8_lossy(&output).trim().replace('\n', " / ");
        let how = match wait {
            _ if late => How::Late(self.deadline),
            Ok(Ok(status)) => How::Ended(status),
            Ok(Err(why)) => How::NotStarted(why.to_string()),
            Err(why) => How::NotStarted(why.to_string()),
        };
        Outcome { how, output }
    }
}

/// Reads a pipe to its end, and keeps the last of it.
fn keep_the_end(mut pipe: impl Read, kept: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&buffer[..length]);
        let too_many = kept.len().saturating_sub(KEPT);
        kept.drain(..too_many);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, deadline: Duration) -> Outcome {
        let command = ["sh", "-c", script].map(str::to_owned).into();
        let finished = Finished {
            snapshot: "s1".to_owned(),
            id: "an id".to_owned(),
            volumes: vec!["a/data".to_owned(), "b/data".to_owned()],
            group: Some("shop".to_owned()),
            schedule: None,
        };
        FollowUp { group: None, command, deadline }.run(&finished)
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_command_knows_what_it_is_for() {
        let outcome = run("echo $COEVAL_SNAPSHOT, $COEVAL_VOLUMES, $COEVAL_GROUP-$COEVAL_SCHEDULE", LONG);
        assert!(outcome.is_good());
        assert_eq!(outcome.to_string(), "it did its work; it said: s1, a/data b/data, shop-");
    }

    #[test]
    fn how_it_failed_is_told() {
        assert_eq!(run("echo no >&2; exit 3", LONG).to_string(), "it failed with status 3; it said: no");
        assert_eq!(run("kill -9 $$", LONG).to_string(), "it was ended by signal 9");
        let none = FollowUp { group: None, command: vec!["/none".to_owned()], deadline: LONG };
        let finished = Finished {
            snapshot: String::new(),
            id: String::new(),
            volumes: Vec::new(),
            group: None,
            schedule: None,
        };
        let outcome = none.run(&finished);
        assert!(
            !outcome.is_good() && outcome.to_string().starts_with("it could not be started: "),
            "{outcome}"
        );
    }

    #[test]
    fn at_the_deadline_it_is_ended_with_what_it_started() {
        // The pipe ends only when the child's child does, too.
        let outcome = run("sleep 1000 & sleep 1000", Duration::from_millis(20));
        assert!(!outcome.is_good());
        assert_eq!(outcome.to_string(), "it was ended at its deadline of 20ms");
    }

    #[test]
    fn of_much_output_the_end_is_kept() {
        let outcome = run("yes | head -c 100000; echo the end", LONG);
        assert!(outcome.output.len() <= 3 * KEPT && outcome.output.ends_with("the end"));
    }
}
