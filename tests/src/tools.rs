//! Running the programs that tests are about: what they print, how they refuse, and how daemons end.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::process::{Command, ExitStatus, Output};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{sleep, spawn};
use std::time::Duration;

use coeval_cli::cluster::Cluster;
use coeval_cli::daemon::{Daemon, DaemonError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use timesync::clock::pace_now;
use timesync::time::Nanos;

use crate::coeval;

/// Far longer than anything takes that works: what is awaited longer never comes.
pub const DEADLINE: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(20);

/// Runs a command to its end, which must be a good one, and returns what it printed.
///
/// # Panics
/// When the program is missing or fails.
pub fn run(command: &mut Command) -> String {
    let output = finish(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    stdout
}

/// Runs a command to its end.
///
/// # Panics
/// When the program is missing.
pub fn finish(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            panic!("{} is missing: `tests/run` installs the Debian packages", command.get_program().display())
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// Runs `coeval` with arguments that it must refuse, and returns the one sentence with which it does.
///
/// # Panics
/// When it goes on, panics, ends well, or says more or less than one sentence.
pub fn refusal<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> String {
    // A daemon that starts after all would never end.
    let mut command = Command::new("timeout");
    command.arg(DEADLINE.as_secs().to_string()).arg(coeval()).args(arguments).env("RUST_LOG", "off");
    refusal_of(&mut command)
}

/// As [`refusal`], for a command that is already put together.
///
/// # Panics
/// As [`refusal`].
pub fn refusal_of(command: &mut Command) -> String {
    let output = finish(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    // 1 is its own; 2 is what the parser of the command line ends with.
    assert!(matches!(output.status.code(), Some(1 | 2)), "{command:?}: {}: {stderr}", output.status);
    assert!(output.stdout.is_empty(), "{command:?}: results go to stdout, errors do not");
    let mut lines = stderr.trim().lines();
    let sentence = lines.next().unwrap_or_default().to_owned();
    let rest: Vec<&str> = lines.collect();
    let hint = ["", "For more information, try '--help'."];
    assert!(rest.is_empty() || rest == hint, "{command:?}: more than a sentence: {stderr}");
    assert!(sentence.starts_with("coeval: ") || sentence.starts_with("error: "), "{command:?}: {sentence:?}");
    sentence
}

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none within [`DEADLINE`].
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = pace_now() + Nanos::from_millis(DEADLINE.as_millis() as i64);
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(pace_now() < end, "it never came to this: {what}");
        sleep(POLL);
    }
}

/// A `coeval` command that talks to the cluster's server, to be given its arguments.
pub fn command(cluster: &Cluster) -> Command {
    let mut command = Command::new(coeval());
    command.env("COEVAL_SERVER", &cluster.api);
    command
}

/// Runs `coeval` against the cluster's server with these arguments and `--json`, and returns the result.
///
/// # Panics
/// When it fails or prints something else than JSON.
pub fn ask(cluster: &Cluster, arguments: &[&str]) -> serde_json::Value {
    let printed = run(command(cluster).args(arguments).arg("--json"));
    match serde_json::from_str(&printed) {
        Ok(value) => value,
        Err(error) => panic!("{arguments:?} printed no JSON ({error}): {printed}"),
    }
}

/// Starts a host's daemon again, where it was before, once its process has been ended.
///
/// # Errors
/// [`DaemonError`].
pub fn start_again(cluster: &mut Cluster, index: usize) -> Result<(), DaemonError> {
    let directory = cluster.directory().to_owned();
    let host = &mut cluster.hosts[index];
    let listen = host.ready.control.trim_start_matches("http://");
    let mut command = Command::new(coeval());
    command.args(["host", "--with-parent", "--listen", listen, "--time", &host.ready.time.to_string()]);
    command.arg("--config").arg(directory.join(format!("{}.toml", host.name)));
    host.daemon = Daemon::start(&mut command, &directory.join(format!("{}.log", host.name)))?;
    host.ready = host.daemon.ready()?;
    Ok(())
}

/// Ends a daemon with SIGTERM, and checks that it ends in good order and never panicked.
///
/// # Panics
/// When it does not.
pub fn stop(daemon: &mut Daemon) {
    let id = Pid::from_raw(daemon.id().cast_signed());
    let terminated = daemon.signal(Signal::SIGTERM);
    let (_ended, end) = mpsc::channel::<()>();
    spawn(move || {
        if end.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
            // Then the status below tells of it. That it is gone by now is what was hoped for.
            let _ = kill(id, Signal::SIGKILL);
        }
    });
    let status = daemon.wait();
    let log = daemon.log().unwrap_or_default();
    assert!(terminated.is_ok() && status.as_ref().is_ok_and(ExitStatus::success), "{status:?}: {log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// [`stop`]s all of a cluster's daemons.
///
/// # Panics
/// When one does not end in good order.
pub fn stop_all(mut cluster: Cluster) {
    stop(&mut cluster.server);
    cluster.hosts.iter_mut().for_each(|host| stop(&mut host.daemon));
}

/// Kills a daemon as a crash would, and waits until it is gone.
///
/// # Panics
/// When it was gone already.
pub fn crash(daemon: &mut Daemon) {
    let ended = daemon.signal(Signal::SIGKILL).map_err(std::io::Error::from).and_then(|()| daemon.wait());
    assert!(ended.is_ok(), "{ended:?}");
}
