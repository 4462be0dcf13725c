//! Hooks: commands of the operator's own, before and after a snapshot.
//!
//! They come from configuration files only, as lists of arguments that no shell looks at; whoever takes a snapshot may
//! name one and cannot bring one. None is on the way of a held reply: what runs before runs before the next layers are
//! made, what runs after runs when no attempt is under way any more.
//!
//! The hook after a snapshot runs if the one before was started, whatever became of either and of whoever started it:
//! that it is owed is on disk before. A crash at the wrong moment can make it run twice, so it should not mind.

pub mod host;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use timesync::clock::pace_now;
use timesync::time::Nanos;
use uuid::Uuid;

use crate::sys::die_with_us;

/// How often a hook that runs is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hook {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// It is killed, with what it started, if it takes longer.
    pub timeout: Nanos,
}

/// What runs before and after a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooks {
    /// Before it. If this fails, there is no snapshot.
    pub before: Option<Hook>,
    /// After it, and after a snapshot that failed.
    pub after: Option<Hook>,
}

impl Hooks {
    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.before.is_none() && self.after.is_none()
    }
}

/// How long a host's hooks may take: its server waits no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookLimits {
    /// The one before.
    pub before: Nanos,
    /// The one after.
    pub after: Nanos,
}

/// What a hook is told of its snapshot, in its environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// `COEVAL_SNAPSHOT_ID`.
    pub snapshot: Uuid,
    /// `COEVAL_SNAPSHOT`.
    pub name: String,
    /// `COEVAL_VOLUMES`: separated by blanks, which no name has.
    pub volumes: Vec<String>,
}

/// Which hook. `COEVAL_HOOK` is `before` or `after`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The one before.
    Before,
    /// The one after.
    After,
}

impl Moment {
    fn word(self) -> &'static str {
        match self {
            Moment::Before => "before",
            Moment::After => "after",
        }
    }
}

/// Why a hook did not do its work. Each is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// There is no such program, or it may not be run.
    #[error("the hook {moment} the snapshot cannot be started ({command}: {why})")]
    Start {
        /// Which hook.
        moment: &'static str,
        /// Its program.
        command: String,
        /// What the system says.
        why: io::Error,
    },
    /// It said no.
    #[error("the hook {moment} the snapshot failed ({command}: {status}); what it said is in the log there")]
    Failed {
        /// Which hook.
        moment: &'static str,
        /// Its program.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// It was killed.
    #[error("the hook {moment} the snapshot took longer than {timeout} and was killed ({command})")]
    Overrun {
        /// Which hook.
        moment: &'static str,
        /// Its program.
        command: String,
        /// What it was allowed.
        timeout: Nanos,
    },
}

/// Runs a hook to its end, and returns how long it took. Blocks. What it prints goes to this process's stderr; it is
/// killed when this process dies.
///
/// # Errors
/// [`HookError`].
pub fn run(hook: &Hook, moment: Moment, about: &About) -> Result<Nanos, HookError> {
    let name = hook.command.first().cloned().unwrap_or_default();
    let start = |why| HookError::Start { moment: moment.word(), command: name.clone(), why };
    let mut child = spawn(hook, moment, about).map_err(start)?;
    let began = pace_now();
    loop {
        if let Some(status) = child.try_wait().map_err(start)? {
            let took = pace_now() - began;
            return match status.success() {
                true => Ok(took),
                false => Err(HookError::Failed { moment: moment.word(), command: name.clone(), status }),
            };
        }
        if pace_now() - began >= hook.timeout {
            kill(&mut child);
            return Err(HookError::Overrun { moment: moment.word(), command: name, timeout: hook.timeout });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

fn spawn(hook: &Hook, moment: Moment, about: &About) -> io::Result<Child> {
    let (program, arguments) =
        hook.command.split_first().ok_or_else(|| io::Error::other("it is an empty list"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("COEVAL_HOOK", moment.word())
        .env("COEVAL_SNAPSHOT", &about.name)
        .env("COEVAL_SNAPSHOT_ID", about.snapshot.to_string())
        .env("COEVAL_VOLUMES", about.volumes.join(" "))
        .stdin(Stdio::null())
        // The daemon's stdout is for whoever started it.
        .stdout(io::stderr().as_fd().try_clone_to_owned()?)
        // A group of its own, to be killed as one.
        .process_group(0);
    die_with_us(&mut command);
    command.spawn()
}

/// Kills it and what it started.
fn kill(child: &mut Child) {
    // It was not waited for, so its number is still its own, and its group's.
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// How a hook went, in words.
pub fn tell(outcome: &Result<Nanos, HookError>) -> String {
    match outcome {
        Ok(took) => format!("the hook ran, in {took}"),
        Err(why) => why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        let volumes = vec!["data".to_owned(), "log".to_owned()];
        About { snapshot: Uuid::nil(), name: "s1".to_owned(), volumes }
    }

    fn shell(script: &str, timeout_ms: i64) -> Hook {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        Hook { command, timeout: Nanos::from_millis(timeout_ms) }
    }

    #[test]
    fn a_hook_knows_its_snapshot_and_how_it_ends_counts() {
        let told = "[ \"$COEVAL_HOOK $COEVAL_SNAPSHOT $COEVAL_VOLUMES\" = 'before s1 data log' ]";
        assert!(run(&shell(told, 60_000), Moment::Before, &about()).is_ok());
        let failed = run(&shell("exit 3", 60_000), Moment::After, &about()).unwrap_err().to_string();
        assert!(
            failed.starts_with("the hook after the snapshot failed (/bin/sh: exit status: 3)"),
            "{failed}"
        );
        let missing = Hook { command: vec!["/no/such/program".to_owned()], ..shell("", 60_000) };
        let missing = run(&missing, Moment::Before, &about()).unwrap_err().to_string();
        assert!(missing.contains("cannot be started (/no/such/program: "), "{missing}");
    }

    #[test]
    fn no_shell_looks_at_the_arguments() {
        let command = ["/usr/bin/test", "$HOME;", "=", "$HOME;"].map(str::to_owned).to_vec();
        assert!(run(&Hook { command, ..shell("", 60_000) }, Moment::Before, &about()).is_ok());
    }

    #[test]
    fn one_that_takes_too_long_is_killed_with_what_it_started() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("child");
        // The shell waits for a child that would outlive it.
        let script = format!("sleep 600 & echo $! > {}; wait", file.display());
        let error = run(&shell(&script, 2_000), Moment::Before, &about()).unwrap_err().to_string();
        assert!(error.contains("took longer than 2.00 s and was killed"), "{error}");
        let child = std::fs::read_to_string(&file).unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        // Gone, or a zombie that nobody has waited for yet.
        while !(stat().is_empty() || stat().contains(") Z ")) {
            std::thread::yield_now();
        }
    }
}
