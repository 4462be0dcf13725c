//! Any storage whose snapshots are taken by a command: LVM, btrfs, ZFS, Ceph RBD, copies by reflink, an array's CLI.
//!
//! The volume is a file system. It is frozen (FIFREEZE), the command runs, it is thawed. So the command must not write to
//! the frozen file system itself: it would wait for the thaw. Without `freeze` the command runs by itself.

mod mounts;

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use timesync::clock::pace_now;
use timesync::time::Nanos;

use crate::sys;

use super::{Backend, BackendError, Description, Held, Pause};

/// What a command that pauses nothing may take.
const PATIENCE: Duration = Duration::from_secs(25);

/// A daemon that a command has left running may keep its output open; it is not waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// While a command runs, how often it is looked after.
const LOOK: Duration = Duration::from_micros(500);

/// A volume whose snapshots are taken by commands. Each is a program with its arguments, without a shell; `{snapshot}` in
/// an argument stands for the snapshot's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandOptions {
    /// The mount point of the file system that is frozen; none: it is not.
    pub freeze: Option<PathBuf>,
    /// Takes a snapshot: of one instant, and of the whole volume.
    pub snapshot: Vec<String>,
    /// Prints the names of the snapshots, one a line.
    pub list: Vec<String>,
    /// How a line of `list` reads for a snapshot, such as `tank/data@{snapshot}`; other lines are passed over.
    pub entry: String,
    /// Deletes a snapshot.
    pub delete: Vec<String>,
    /// Puts the volume back to a snapshot; none: it is not done here.
    pub restore: Option<Vec<String>>,
    /// After the thaw: makes a snapshot survive a loss of power, where `snapshot` does not do so.
    pub sync: Option<Vec<String>>,
}

/// See the module.
#[derive(Debug)]
pub struct CommandBackend {
    options: CommandOptions,
    /// What must not be frozen: the files that this daemon cannot do without.
    ours: Vec<PathBuf>,
}

impl CommandBackend {
    /// A backend for one volume. `ours` are files and directories that this daemon and its watchdog use.
    ///
    /// # Errors
    /// When a command is empty, or `snapshot`, `delete` or `restore` do not name the snapshot.
    pub fn new(options: CommandOptions, ours: Vec<PathBuf>) -> Result<Self, BackendError> {
        let commands =
            [("snapshot", &options.snapshot), ("list", &options.list), ("delete", &options.delete)];
        for (key, command) in commands {
            if command.first().is_none_or(String::is_empty) {
                return Err(BackendError(format!(
                    "{key} names no program: give it and its arguments as a list"
                )));
            }
        }
        let naming = [
            ("snapshot", Some(&options.snapshot)),
            ("delete", Some(&options.delete)),
            ("restore", options.restore.as_ref()),
        ];
        for (key, command) in naming {
            if command.is_some_and(|command| !command.iter().any(|part| part.contains(PLACE))) {
                return Err(BackendError(format!(
                    "{key} does not say {PLACE}, so each snapshot would be the same one"
                )));
            }
        }
        if options.entry.matches(PLACE).count() != 1 {
            return Err(BackendError(format!("entry must say {PLACE} once")));
        }
        Ok(CommandBackend { options, ours })
    }

    /// That freezing `mount` freezes nothing that thawing it needs.
    fn check_mount(&self, mount: &Path) -> Result<(), BackendError> {
        let table = mounts::Table::read().map_err(BackendError::at("cannot read the table of mounts"))?;
        let found = table.of(mount).map_err(BackendError::at(mount.display()))?;
        if !found.is_mounted_at(mount) {
            return Err(BackendError(format!(
                "{} is not a mount point: its file system, mounted at {}, holds more than that",
                mount.display(),
                found.at.display()
            )));
        }
        for ours in [Path::new("/"), Path::new("/proc/self/exe")]
            .into_iter()
            .chain(self.ours.iter().map(PathBuf::as_path))
        {
            let under = table.all_below(ours).map_err(BackendError::at(ours.display()))?;
            if under.contains(&found.device) {
                return Err(BackendError(format!(
                    "{} is not frozen: {} lies on it, and Coeval needs that to end the freeze; keep the volume on a file system \
                     of its own",
                    mount.display(),
                    ours.display()
                )));
            }
        }
        Ok(())
    }

    fn run(&self, command: &[String], snapshot: &str, within: Duration) -> Result<String, BackendError> {
        let words: Vec<String> = command.iter().map(|part| part.replace(PLACE, snapshot)).collect();
        run(&words, within)
    }
}

/// What stands for the snapshot's name.
const PLACE: &str = "{snapshot}";

impl Backend for CommandBackend {
    fn describe(&self) -> Result<Description, BackendError> {
        let mut description =
            Description { kind: "command", size: 0, used: 0, pauses: self.options.freeze.is_some() };
        if let Some(mount) = &self.options.freeze {
            let status = nix::sys::statvfs::statvfs(mount).map_err(BackendError::at(mount.display()))?;
            let unit = status.fragment_size();
            description.size = status.blocks().saturating_mul(unit);
            description.used = status.blocks().saturating_sub(status.blocks_free()).saturating_mul(unit);
        }
        Ok(description)
    }

    fn list(&self) -> Result<Vec<String>, BackendError> {
        let (before, after) = self.options.entry.split_once(PLACE).unwrap_or_default();
        let printed = run(&self.options.list, PATIENCE)?;
        let name = |line: &str| Some(line.trim().strip_prefix(before)?.strip_suffix(after)?.to_owned());
        Ok(printed.lines().filter_map(name).filter(|name| !name.is_empty()).collect())
    }

    fn prepare(&self, _snapshot: &str) -> Result<Option<Held>, BackendError> {
        let Some(mount) = &self.options.freeze else { return Ok(None) };
        self.check_mount(mount)?;
        let mount = mount.canonicalize().map_err(BackendError::at(mount.display()))?;
        let cannot = format!("cannot get {} ready", mount.display());
        let held = Held::open(Pause::Filesystem { mount }).map_err(BackendError::at(&cannot))?;
        // A freeze writes out all that is cached; so does this, while writes go on.
        nix::unistd::syncfs(&held.file).map_err(BackendError::at(&cannot))?;
        Ok(Some(held))
    }

    fn cut(&self, snapshot: &str, within: Duration) -> Result<(), BackendError> {
        self.run(&self.options.snapshot, snapshot, within).map(|_| ())
    }

    fn seal(&self, snapshot: &str) -> Result<(), BackendError> {
        match &self.options.sync {
            None => Ok(()),
            Some(sync) => self.run(sync, snapshot, PATIENCE).map(|_| ()),
        }
    }

    fn discard(&self, snapshot: &str) -> Result<(), BackendError> {
        self.delete(snapshot)
    }

    fn delete(&self, snapshot: &str) -> Result<(), BackendError> {
        if !self.list()?.iter().any(|name| name == snapshot) {
            return Ok(());
        }
        self.run(&self.options.delete, snapshot, PATIENCE).map(|_| ())
    }

    fn restore(&self, snapshot: &str) -> Result<(), BackendError> {
        match &self.options.restore {
            Some(restore) => self.run(restore, snapshot, PATIENCE).map(|_| ()),
            None => Err(BackendError(
                "no command for it is configured: give `restore`, or restore with the tools of its storage"
                    .to_owned(),
            )),
        }
    }
}

/// Runs a command to its end, a good one, and returns what it printed. One that takes longer is killed, with all that it
/// started.
fn run(words: &[String], within: Duration) -> Result<String, BackendError> {
    let Some((program, arguments)) = words.split_first() else {
        return Err(BackendError("there is no command".to_owned()));
    };
    let failed = |error| BackendError(format!("cannot run {program}: {error}"));
    let until = pace_now() + Nanos::new(i64::try_from(within.as_nanos()).unwrap_or(i64::MAX / 2));
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.current_dir("/").process_group(0);
    // It must not take a snapshot in an hour for a daemon that is gone.
    sys::die_with_us(&mut command);
    let mut child = command.spawn().map_err(failed)?;
    let out = child.stdout.take().map(read_aside).transpose().map_err(failed)?;
    let complaints = child.stderr.take().map(read_aside).transpose().map_err(failed)?;
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if pace_now() >= until => {
                kill_group(&mut child);
                return Err(BackendError(format!("{program} did not end within {} ms", within.as_millis())));
            }
            None => std::thread::sleep(LOOK),
        }
    };
    // What it left running may hold the pipes; it is no part of the command.
    kill_group(&mut child);
    let text = |printed: Option<Receiver<String>>| {
        printed.and_then(|printed| printed.recv_timeout(LAST_WORDS).ok()).unwrap_or_default()
    };
    let (out, complaints) = (text(out), text(complaints));
    if status.success() {
        return Ok(out);
    }
    let last = complaints.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    Err(BackendError(format!("{program} failed ({status}): {}", last.trim())))
}

fn kill_group(child: &mut Child) {
    // An error means that nobody is left in it.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    let _ = child.wait();
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> std::io::Result<Receiver<String>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new().name("command's output".to_owned()).spawn(move || {
        let mut bytes = Vec::new();
        // As far as it can be read.
        let _ = pipe.read_to_end(&mut bytes);
        // Nobody may wait for it any more.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    /// Snapshots are files of a directory.
    fn options(directory: &Path) -> CommandOptions {
        let at = directory.display();
        CommandOptions {
            freeze: None,
            snapshot: words(&format!("touch {at}/of-{{snapshot}}")),
            list: words(&format!("ls {at}")),
            entry: "of-{snapshot}".to_owned(),
            delete: words(&format!("rm {at}/of-{{snapshot}}")),
            restore: None,
            sync: None,
        }
    }

    #[test]
    fn snapshots_come_and_go_by_their_commands() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("something"), "").unwrap();
        let backend = CommandBackend::new(options(directory.path()), Vec::new()).unwrap();
        super::super::conformance::check(&backend, None).unwrap();
        let why = backend.restore("first").unwrap_err().to_string();
        assert!(why.contains("give `restore`"), "{why}");
    }

    #[test]
    fn a_command_that_fails_says_why_and_one_that_hangs_is_ended() {
        let why = run(&words("ls /no/such/directory"), PATIENCE).unwrap_err().to_string();
        assert!(why.contains("/no/such/directory"), "{why}");
        let why = run(&words("sleep 1000"), Duration::from_millis(20)).unwrap_err().to_string();
        assert!(why.contains("did not end"), "{why}");
        let why = run(&words("/no/such/program"), PATIENCE).unwrap_err().to_string();
        assert!(why.contains("cannot run /no/such/program"), "{why}");
    }

    #[test]
    fn commands_that_cannot_be_right_are_refused() {
        let good = options(Path::new("/x"));
        let refused = |spoil: &dyn Fn(&mut CommandOptions)| {
            let mut options = good.clone();
            spoil(&mut options);
            CommandBackend::new(options, Vec::new()).unwrap_err().to_string()
        };
        assert!(refused(&|options| options.snapshot.clear()).contains("snapshot names no program"));
        assert!(
            refused(&|options| options.delete = words("rm all")).contains("delete does not say {snapshot}")
        );
        assert!(refused(&|options| options.restore = Some(words("back"))).contains("restore does not say"));
        assert!(refused(&|options| options.entry = "data".to_owned()).contains("entry must say"));
    }

    #[test]
    fn what_holds_our_own_state_is_not_frozen() {
        let directory = tempfile::tempdir().unwrap();
        let prepare = |mount: &Path| {
            let options = CommandOptions { freeze: Some(mount.to_owned()), ..options(directory.path()) };
            CommandBackend::new(options, Vec::new()).unwrap().prepare("first").unwrap_err().to_string()
        };
        assert!(prepare(Path::new("/")).contains("is not frozen"), "{}", prepare(Path::new("/")));
        assert!(prepare(directory.path()).contains("is not a mount point"));
    }
}
