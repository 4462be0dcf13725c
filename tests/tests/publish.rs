//! What a host publishes of its bound, read by the programs it is for: ClockBound's client library and Debian's chronyd.
//! Host and server share this machine's clock, so the true offset is 0.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clock_bound_client::{ClockBoundClient, ClockStatus};
use coeval_cli::cluster::HostReady;
use coeval_cli::daemon::Daemon;
use harness::tools::{refusal, start, stop};
use harness::{coeval, eventually};
use nix::sys::signal::Signal;

/// Far more than a loaded machine adds to a bound that is 50 µs wide at most, and far less than one computed wrongly.
const SENSIBLE_NS: i64 = 10_000_000;

/// A host that publishes as the lines `publish` say, and a server that knows it.
fn start_both(directory: &Path, publish: &str) -> (Daemon, Daemon) {
    let host = format!(
        "name = \"a\"\nlisten = \"127.0.0.1:0\"\ntime = \"127.0.0.1:0\"\nvolumes = {:?}\nnbd = [\"unix://{}\"]\n\
         [publish]\n{publish}",
        directory.join("volumes"),
        directory.join("nbd").display(),
    );
    let host = start(Command::new(coeval()), "host", directory, &host);
    let ready: HostReady = host.ready().unwrap();
    let server = format!(
        "listen = \"127.0.0.1:0\"\nstate = {:?}\n[time]\nport = 0\n\
         [[host]]\nname = \"a\"\ntime = \"{}\"\ncontrol = {:?}\n",
        directory.join("server"),
        ready.time,
        ready.control,
    );
    (host, start(Command::new(coeval()), "server", directory, &server))
}

/// A segment, read as its specification says and without the encoder: status, bound and growth.
fn read_segment(path: &Path) -> (i64, i64, i64) {
    let octets = std::fs::read(path).unwrap();
    let field = |at: usize, size: usize| {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(&octets[at..at + size]);
        i64::from_ne_bytes(wide)
    };
    assert_eq!((field(0, 4), field(4, 4)), (0x414D_5A4E, 0x4342_0200));
    assert_eq!((octets.len(), field(8, 4), field(12, 2)), (80, 80, 2));
    (field(68, 4), field(48, 8), field(64, 4))
}

fn await_status(client: &mut ClockBoundClient, wanted: ClockStatus) {
    eventually(|| {
        let now = client.now().map_err(|error| format!("{error:?}"))?;
        (now.clock_status == wanted).then_some(()).ok_or(format!("the client sees {:?}", now.clock_status))
    });
}

#[test]
fn clockbounds_client_sees_the_bound_as_long_as_it_is_true() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/clockbound/shm0");
    let (mut host, mut server) = start_both(directory.path(), &format!("clockbound = {path:?}"));
    let client = || ClockBoundClient::new_with_path(path.to_str().unwrap());
    let mut client = client().unwrap_or_else(|error| panic!("{error:?}"));
    await_status(&mut client, ClockStatus::Synchronized);
    for _ in 0..20 {
        // Rarely, for a moment after the segment was renewed, the client refuses to read it.
        let now = eventually(|| client.now().map_err(|error| format!("{error:?}")));
        let [earliest, latest] =
            [&now.earliest, &now.latest].map(|time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
        assert!((2..2 * SENSIBLE_NS).contains(&(latest - earliest)), "{now:?}");
        let (status, bound, growth) = read_segment(&path);
        assert_eq!(status, 1);
        assert!(
            (1..SENSIBLE_NS).contains(&bound) && (1..1_000_000).contains(&growth),
            "± {bound}, {growth} ppb"
        );
        std::thread::sleep(std::time::Duration::from_millis(50));
    }

    server.signal(Signal::SIGKILL).unwrap();
    await_status(&mut client, ClockStatus::Unknown);
    assert_eq!(read_segment(&path).0, 0, "the host itself has withdrawn it");
    server.restart().unwrap();
    await_status(&mut client, ClockStatus::Synchronized);

    // Nobody is left who could withdraw it: it ends by itself.
    host.signal(Signal::SIGKILL).unwrap();
    host.wait().unwrap();
    assert_eq!(read_segment(&path).0, 1);
    await_status(&mut client, ClockStatus::Unknown);

    // The server looks for it where it was; another one finds it, in the segment that the client still has mapped.
    drop(server);
    drop(host);
    let (mut host, server) = start_both(directory.path(), &format!("clockbound = {path:?}"));
    await_status(&mut client, ClockStatus::Synchronized);
    stop(&mut host);
    assert_eq!(read_segment(&path).0, 0, "what ends in good order withdraws it at once");
    drop(server);
}

/// Killed when dropped.
struct Chronyd(Child);

impl Chronyd {
    /// One that measures only this reference clock, and steers nothing.
    fn start(directory: &Path, socket: &Path) -> Self {
        let config = format!(
            "refclock SOCK {} refid COEV poll 0\nport 0\ncmdport 0\nbindcmdaddress /\npidfile {}\nlogdir {}\n\
             log refclocks\n",
            socket.display(),
            directory.join("chronyd.pid").display(),
            directory.display(),
        );
        let file = directory.join("chrony.conf");
        std::fs::write(&file, config).unwrap();
        let log = File::create(directory.join("chronyd.log")).unwrap();
        let mut command = Command::new("chronyd");
        command.args(["-x", "-n", "-u", "root", "-f"]).arg(file).stdin(Stdio::null());
        Chronyd(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Chronyd {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn chronyd_takes_the_offset_from_its_reference_clock() {
    let directory = tempfile::tempdir().unwrap();
    let socket: PathBuf = directory.path().join("chrony.sock");
    let (_host, _server) = start_both(directory.path(), &format!("chrony_sock = {socket:?}"));
    // It may start after the host.
    let _chronyd = Chronyd::start(directory.path(), &socket);
    // Date, time, reference, number, leap, pulse, raw offset, …
    let offsets = eventually(|| {
        let log = std::fs::read_to_string(directory.path().join("refclocks.log")).unwrap_or_default();
        let fields = log.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let samples = fields.filter(|fields| fields.get(2) == Some(&"COEV") && fields[3] != "-");
        let offsets: Vec<f64> = samples.map(|fields| fields[6].parse().unwrap()).collect();
        if offsets.len() >= 3 { Ok(offsets) } else { Err(format!("chronyd has logged:\n{log}")) }
    });
    assert!(offsets.iter().all(|offset| offset.abs() < SENSIBLE_NS as f64 / 1e9), "{offsets:?}");
}

#[test]
fn what_cannot_be_published_is_refused_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("host.toml");
    std::fs::write(&file, "[publish]\nchrony_sock = \"/run/x\"").unwrap();
    let arguments = ["host", "--check", "--simulate-clock", "offset=1ms", "--config"].map(PathBuf::from);
    let sentence = refusal(arguments.iter().chain([&file]));
    assert!(sentence.contains("simulated clock"), "{sentence}");
}
