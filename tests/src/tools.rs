//! Running the programs that tests are about: what they print, how they refuse, and how daemons end.

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Output};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::daemon::Daemon;
use nix::sys::signal::Signal;

use crate::{coeval, eventually};

/// Far longer than anything takes that works: what is awaited longer never comes.
pub const DEADLINE: Duration = Duration::from_secs(60);

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

/// Runs a command again and again until it ends well, and returns what it printed then.
///
/// # Panics
/// As [`eventually`], with what it said last.
pub fn run_eventually(command: &mut Command) -> String {
    eventually(|| {
        let output = finish(command);
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        if output.status.success() { Ok(stdout) } else { Err(stderr) }
    })
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

/// Takes a snapshot by time where machines are emulated, and now and then so late that a host does not answer: what is left
/// of it is deleted then, and it is taken again.
///
/// # Panics
/// When it fails for another reason, or five times in a row; or prints something else than JSON.
pub fn take_patiently(cluster: &Cluster, name: &str, flags: &[&str]) -> serde_json::Value {
    let flags = ["--mode", "timed", "--attempts", "10", "--lead", "3s", "--json"].iter().chain(flags);
    for _ in 0..5 {
        let taken = finish(command(cluster).args(["snapshot", "create", name]).args(flags.clone()));
        if taken.status.success() {
            let manifest: serde_json::Value = serde_json::from_slice(&taken.stdout).unwrap();
            println!("{name}: {} attempts, {}", manifest["attempts"], manifest["hosts"]);
            return manifest;
        }
        let why = String::from_utf8_lossy(&taken.stderr).into_owned();
        assert!(why.contains("did not answer"), "{name}: {why}");
        println!("{name}: {why}");
        eventually(|| {
            let deleted = finish(command(cluster).args(["snapshot", "delete", name]));
            let said = String::from_utf8_lossy(&deleted.stderr).into_owned();
            if deleted.status.success() || said.contains("there is no snapshot") { Ok(()) } else { Err(said) }
        });
    }
    panic!("{name} was not taken");
}

/// What `coeval skew --json` prints. It ends with status 1 where a host has no bound, which is no failure here.
///
/// # Panics
/// When it fails otherwise, prints something else than JSON, or its status does not tell whether all are bounded.
pub fn skew(command: &mut Command) -> serde_json::Value {
    let output = finish(command.args(["skew", "--json"]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.stderr.is_empty(), "{command:?}: {stderr}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let bounded = report["hosts"].as_array().unwrap().iter().all(|row| row["hard_ns"].is_i64());
    assert_eq!(output.status.code(), Some(i32::from(!bounded)), "{report}");
    report
}

/// Runs `coeval host` or `coeval server` with this configuration; file, log and name are the role's.
///
/// # Panics
/// When it cannot be run.
pub fn start(mut program: Command, role: &str, directory: &Path, config: &str) -> Daemon {
    let file = directory.join(format!("{role}.toml"));
    std::fs::write(&file, config).unwrap();
    program.args([role, "--with-parent", "--config"]).arg(file);
    Daemon::start(program, &directory.join(format!("{role}.log"))).unwrap()
}

/// A server and one host `a` on loopback. The host has ports of its own, so that one that starts again is found where
/// it was.
///
/// # Panics
/// When they do not start.
pub fn one_host(flags: &[&str]) -> Cluster {
    hosts(&["a"], flags)
}

/// As [`one_host`], with hosts of these names.
///
/// # Panics
/// When they do not start.
pub fn hosts(names: &[&str], flags: &[&str]) -> Cluster {
    let place = |name| {
        let [control, time] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
        (name, Place::loopback(&[&["--listen", &control, "--time", &time], flags].concat()))
    };
    let hosts: Vec<_> = names.iter().copied().map(place).collect();
    Cluster::start(coeval(), &hosts, &Place::loopback(&[]), |_, address| Ok(address)).unwrap()
}

/// A server and the hosts a and b, whose clocks differ by 37 ms, once both are bounded. `flags` go to all three.
///
/// # Panics
/// When they do not start.
pub fn two_hosts(flags: &[&str]) -> Cluster {
    let place = |own: &[&str]| Place::loopback(&[flags, own].concat());
    let host = |clock| place(&["--simulate-clock", clock]);
    let hosts = [("a", host("offset=35ms")), ("b", host("offset=-2ms"))];
    let server = place(&["--simulation"]);
    let cluster = Cluster::start(coeval(), &hosts, &server, |_, address| Ok(address)).unwrap();
    eventually(|| {
        let report = skew(&mut command(&cluster));
        let hosts = report["hosts"].as_array().unwrap();
        hosts.iter().all(|row| row["hard_ns"].is_i64()).then_some(()).ok_or("not so yet: both are bounded")
    });
    cluster
}

/// As [`two_hosts`], each with a volume `data`.
///
/// # Panics
/// When they do not start.
pub fn two_hosts_with_volumes(flags: &[&str]) -> Cluster {
    let cluster = two_hosts(flags);
    for volume in ["a/data", "b/data"] {
        run(command(&cluster).args(["volume", "create", volume, "1MiB"]));
    }
    cluster
}

/// What a variable of the environment says, if it is set.
///
/// # Panics
/// When it says something else than `T`.
pub fn from_environment<T: FromStr<Err: Debug>>(name: &str) -> Option<T> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// What chance follows in this run: `COEVAL_SEED`, or another number in each process. It is printed.
pub fn seed() -> u64 {
    let seed = from_environment("COEVAL_SEED").unwrap_or_else(|| std::process::id().into());
    println!("COEVAL_SEED={seed}");
    seed
}

/// A port that is free for TCP and UDP, below those that the system itself gives away.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes that run at the same time begin in different places.
    let ports = std::iter::repeat_with(|| {
        let number = std::process::id().wrapping_mul(16) + NEXT.fetch_add(1, Ordering::Relaxed);
        20_000 + (number % 12_000) as u16
    });
    let free = |port: &u16| {
        TcpListener::bind(("127.0.0.1", *port)).is_ok() && UdpSocket::bind(("127.0.0.1", *port)).is_ok()
    };
    ports.take(100).find(free).unwrap()
}

/// Ends a daemon with SIGTERM, and checks that it ends in good order and never panicked.
///
/// # Panics
/// When it does not.
pub fn stop(daemon: &mut Daemon) {
    daemon.signal(Signal::SIGTERM).unwrap();
    let status = eventually(|| daemon.try_wait().unwrap().ok_or("SIGTERM does not end it"));
    let log = daemon.log().unwrap();
    assert!(status.success() && !log.contains("panicked"), "{status}: {log}");
}

/// [`stop`]s all of a cluster's daemons.
///
/// # Panics
/// When one does not end in good order.
pub fn stop_all(mut cluster: Cluster) {
    stop(&mut cluster.server);
    cluster.hosts.iter_mut().for_each(|host| stop(&mut host.daemon));
}
