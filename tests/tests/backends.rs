//! Volumes outside Coeval: file systems that are frozen while a command snapshots them. By root, on loop devices.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Place};
use harness::external::{FileWorkload, ImageVolume, Means, violations};
use harness::filesystem::{Kind, with_own_mounts};
use harness::{coeval, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapshot::backend::command::{CommandBackend, CommandOptions};
use snapshot::backend::conformance;
use snapshot::backend::watchdog::WatchdogProgram;
use snapshot::client::ServerClient;
use snapshot::http::{Connector, ControlError};
use snapshot::messages::{
    Control, CreateRequest, CreateVolumeOn, Manifest, Member, RequestedMode, RestoreRequest, Verdict,
};
use snapshot::orders::PauseTimes;
use timesync::report::Report;
use timesync::time::Nanos;

const TOKENS: usize = 8;
const REST: Duration = Duration::from_micros(300);
/// Busy machines arm late.
const ATTEMPTS: u32 = 10;
/// A volume is paused for no longer.
const DEADLINE: Duration = Duration::from_secs(2);
/// A machine that is busy may be late by so much.
const SLACK: Duration = Duration::from_secs(8);

fn member(host: &str, volume: &str) -> Member {
    Member { host: host.to_owned(), volume: volume.to_owned() }
}

fn api<T>(cluster: &Cluster, work: impl AsyncFnOnce(&ServerClient) -> T) -> T {
    let client = ServerClient::new(&Connector::new(None, false).unwrap(), &cluster.api).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work(&client))
}

/// Hosts on loopback whose clocks differ, each with these lines in its configuration.
fn start(hosts: &[(&str, String)]) -> Cluster {
    let skews = ["offset=-38ms,drift=35ppm", "offset=13ms,drift=-47ppm", "offset=57ms,drift=21ppm"];
    let places: Vec<_> = hosts
        .iter()
        .zip(skews)
        .map(|((name, config), skew)| {
            let place = Place::loopback(&["--simulate-clock", skew]);
            (*name, Place { config: config.clone(), ..place })
        })
        .collect();
    let server = Place::loopback(&["--simulation"]);
    let cluster = Cluster::start(coeval(), &places, &server, |_, address| Ok(address)).unwrap();
    wait_for_bounds(&cluster);
    cluster
}

fn wait_for_bounds(cluster: &Cluster) {
    eventually(|| {
        let report: Report =
            serde_json::from_value(api(cluster, async |api| api.skew().await).unwrap()).unwrap();
        let all = report.hosts.iter().all(|host| host.hard_ns.is_some());
        if all { Ok(()) } else { Err("not every clock is bounded") }
    });
}

fn create(cluster: &Cluster, request: &CreateRequest) -> Result<Manifest, ControlError> {
    api(cluster, async |api| api.create(request, |_| {}).await)
}

fn request(name: &str, mode: RequestedMode) -> CreateRequest {
    CreateRequest { name: Some(name.to_owned()), mode, attempts: Some(ATTEMPTS), ..CreateRequest::default() }
}

/// As soon as nothing reads it any more: the server computes the digests of Coeval's own volumes.
fn delete(cluster: &Cluster, snapshot: &str) {
    eventually(|| match api(cluster, async |api| api.delete(snapshot).await) {
        Err(error) if error.status() == Some(409) => Err(error),
        result => {
            result.unwrap();
            Ok(())
        }
    });
}

fn options(volume: &ImageVolume) -> CommandOptions {
    #[derive(serde::Deserialize)]
    struct Commands {
        snapshot: Vec<String>,
        list: Vec<String>,
        delete: Vec<String>,
        sync: Vec<String>,
    }
    let commands: Commands = toml::from_str(&volume.commands("")).unwrap();
    CommandOptions {
        freeze: Some(volume.mount_point()),
        snapshot: commands.snapshot,
        list: commands.list,
        entry: "{snapshot}".to_owned(),
        delete: commands.delete,
        restore: None,
        sync: Some(commands.sync),
    }
}

fn watchdog() -> WatchdogProgram {
    WatchdogProgram(vec![coeval().into(), "watchdog".into()])
}

#[test]
#[ignore = "fails in mounts of a thread's own: the table of mounts lacks this program's file system"]
fn every_kind_of_file_system_conforms() {
    let combinations = [
        (Means::XfsReflink, Kind::Ext4),
        (Means::BtrfsReflink, Kind::Xfs),
        (Means::BtrfsSubvolume, Kind::Ext4),
        (Means::XfsReflink, Kind::Btrfs),
    ];
    with_own_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        for (number, (means, inner)) in combinations.into_iter().enumerate() {
            let volume = ImageVolume::new(&directory.path().join(number.to_string()), means, inner);
            let backend = CommandBackend::new(options(&volume), Vec::new()).unwrap();
            conformance::check(&backend, Some(&watchdog())).unwrap();
            // The image lies on the outer file system: freezing that one would freeze what thaws it, were it ours.
            let ours = volume.mount_point();
            let options =
                CommandOptions { freeze: Some(ours.parent().unwrap().join("outer")), ..options(&volume) };
            let why = CommandBackend::new(options, vec![ours]).unwrap();
            let why = snapshot::backend::Backend::prepare(&why, "first").unwrap_err().to_string();
            assert!(why.contains("is not frozen"), "{why}");
        }
    });
}

/// Two hosts with a frozen file system each, and one of them with a volume of Coeval's own too: one certificate.
#[test]
#[ignore = "once in four runs a repeated attempt found a volume busy; what was mended since has not been seen to help"]
fn frozen_file_systems_and_built_in_volumes_are_cut_at_one_instant() {
    with_own_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        let a = ImageVolume::new(&directory.path().join("a"), Means::XfsReflink, Kind::Ext4);
        let b = ImageVolume::new(&directory.path().join("b"), Means::BtrfsSubvolume, Kind::Ext4);
        let cluster = start(&[("a", a.config("files", "", "")), ("b", b.config("files", "", ""))]);
        let order = CreateVolumeOn { host: "b".to_owned(), name: "own".to_owned(), size: 1 << 20 };
        api(&cluster, async |api| api.create_volume(&order).await).unwrap();
        let workload = FileWorkload::start(&[a.mount_point(), b.mount_point()], TOKENS, REST);
        for (name, mode) in [
            ("timed1", RequestedMode::Timed),
            ("timed2", RequestedMode::Timed),
            ("timed3", RequestedMode::Timed),
            ("barrier1", RequestedMode::Barrier),
            ("barrier2", RequestedMode::Barrier),
        ] {
            let before = workload.writes();
            let manifest = create(&cluster, &request(name, mode)).unwrap();
            assert_eq!(manifest.verdict, Verdict::Consistent);
            for host in &manifest.hosts {
                let files = host.volumes.iter().find(|volume| volume.name == "files").unwrap();
                let part = files.external.as_ref().unwrap();
                let PauseTimes { pausing_ns, paused_ns } = part.pause.unwrap();
                assert!(part.backend == "command" && Nanos::ZERO < pausing_ns && pausing_ns < paused_ns);
            }
            assert_eq!(violations(&[&a, &b], name, TOKENS), []);
            eventually(|| if workload.writes() > before { Ok(()) } else { Err("no write goes on") });
        }
        let report = api(&cluster, async |api| api.verify("timed1").await).unwrap();
        assert!(report.verdict == Verdict::Consistent && report.intact, "{report:?}");
        // What nobody coordinates is torn, by this same check.
        let torn = (0..20).any(|number| {
            let name = format!("torn{number}");
            let control = Some(Control::Uncoordinated);
            let order = CreateRequest { control, ..request(&name, RequestedMode::Timed) };
            let manifest = create(&cluster, &order).unwrap();
            assert_eq!(manifest.verdict, Verdict::Inconsistent);
            let torn = !violations(&[&a, &b], &name, TOKENS).is_empty();
            delete(&cluster, &name);
            torn
        });
        assert!(torn, "uncoordinated cuts were never torn, so the check finds nothing");
        drop(workload);
        delete(&cluster, "timed1");
        assert_eq!(a.names(), ["barrier1", "barrier2", "timed2", "timed3"]);
        // Not by this backend's configuration, and never with the present state kept.
        let restore = |discard_current| RestoreRequest { discard_current, disconnect: false };
        let why = api(&cluster, async |api| api.restore("timed2", &restore(false)).await).unwrap_err();
        assert!(why.to_string().contains("--discard-current"), "{why}");
    });
}

#[test]
fn what_is_not_paused_is_taken_alone() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().display();
    std::fs::write(directory.path().join("live"), "before").unwrap();
    std::fs::create_dir(directory.path().join("snapshots")).unwrap();
    let config = format!(
        "[[backend]]\nkind = \"command\"\nvolume = \"files\"\n\
         snapshot = [\"cp\", \"{at}/live\", \"{at}/snapshots/{{snapshot}}\"]\nlist = [\"ls\", \"{at}/snapshots\"]\n\
         delete = [\"rm\", \"{at}/snapshots/{{snapshot}}\"]\nrestore = [\"cp\", \"{at}/snapshots/{{snapshot}}\", \"{at}/live\"]\n"
    );
    let cluster = start(&[("a", config), ("b", String::new())]);
    let order = CreateVolumeOn { host: "b".to_owned(), name: "own".to_owned(), size: 1 << 20 };
    api(&cluster, async |api| api.create_volume(&order).await).unwrap();
    let why = create(&cluster, &request("all", RequestedMode::Auto)).unwrap_err().to_string();
    assert!(why.contains("take its snapshot alone"), "{why}");
    let alone = CreateRequest { group: vec![member("a", "files")], ..request("one", RequestedMode::Timed) };
    let manifest = create(&cluster, &alone).unwrap();
    assert_eq!(manifest.verdict, Verdict::Consistent);
    std::fs::write(directory.path().join("live"), "after").unwrap();
    let restore = RestoreRequest { discard_current: true, disconnect: false };
    api(&cluster, async |api| api.restore("one", &restore).await).unwrap();
    assert_eq!(std::fs::read_to_string(directory.path().join("live")).unwrap(), "before");
    // What is not done with it says so.
    let files = member("a", "files");
    let why = api(&cluster, async |api| api.set_quota(&files, None).await).unwrap_err().to_string();
    assert!(why.contains("is kept outside Coeval"), "{why}");
    api(&cluster, async |api| api.delete("one").await).unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("snapshots")).unwrap().count(), 0);
}

/// Where the daemon is when something happens to it, with the file system frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The snapshot command runs.
    Cutting,
    /// The command has succeeded, and T + V is still ahead.
    Taken,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    KillDaemon,
    StopDaemon,
    KillWatchdog,
    KillBoth,
}

#[test]
fn whatever_is_killed_or_stopped_the_file_system_thaws() {
    with_own_mounts(|| {
        for step in [Step::Cutting, Step::Taken] {
            for blow in [Blow::KillDaemon, Blow::StopDaemon, Blow::KillWatchdog, Blow::KillBoth] {
                eprintln!("{blow:?} while {step:?}");
                strike(step, blow);
            }
        }
    });
}

fn strike(step: Step, blow: Blow) {
    let directory = tempfile::tempdir().unwrap();
    let volume = ImageVolume::new(&directory.path().join("a"), Means::XfsReflink, Kind::Ext4);
    let reached = directory.path().join("reached");
    let announce = format!("echo > {}", reached.display());
    let before = match step {
        Step::Cutting => format!("{announce}\nsleep 30"),
        Step::Taken => announce,
    };
    let mut cluster = start(&[("a", volume.config("files", "deadline = \"2s\"", &before))]);
    std::fs::write(volume.mount_point().join("probe"), "").unwrap();
    let order = CreateRequest {
        attempts: Some(1),
        // For the step between the command and T + V there must be time.
        lead_ns: Some(Nanos::from_millis(if step == Step::Taken { 1_500 } else { 300 })),
        ..request("first", RequestedMode::Timed)
    };
    let creating = {
        let api = cluster.api.clone();
        std::thread::spawn(move || {
            let client = ServerClient::new(&Connector::new(None, false).unwrap(), &api).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(client.create(&order, |_| {}))
        })
    };
    eventually(|| if reached.exists() { Ok(()) } else { Err("no command runs") });
    if step == Step::Taken {
        eventually(|| if volume.names().is_empty() { Err("nothing was taken") } else { Ok(()) });
    }
    let host = cluster.hosts[0].daemon.id();
    let began = now();
    match blow {
        Blow::KillDaemon => send(host, Signal::SIGKILL),
        Blow::StopDaemon => send(host, Signal::SIGSTOP),
        Blow::KillWatchdog => send(watchdog_of(host), Signal::SIGKILL),
        Blow::KillBoth => {
            let watchdog = watchdog_of(host);
            send(host, Signal::SIGSTOP);
            send(watchdog, Signal::SIGKILL);
            send(host, Signal::SIGKILL);
            // Nobody is left who could; the next run does it.
            cluster.restart_host(0).unwrap();
        }
    }
    await_write(volume.write_aside());
    assert!(now() - began < DEADLINE + SLACK, "{blow:?} while {step:?}: frozen for {:?}", now() - began);
    if blow == Blow::StopDaemon {
        send(host, Signal::SIGCONT);
    }
    if matches!(blow, Blow::KillDaemon | Blow::KillBoth) {
        let _ = cluster.hosts[0].daemon.try_wait();
    }
    let created = creating.join().unwrap();
    match (step, blow) {
        // The watchdog resumed at T + V, with the snapshot taken: whether the daemon was stopped meanwhile is all the same.
        (Step::Taken, Blow::StopDaemon) => {}
        _ => assert!(created.is_err(), "{blow:?} while {step:?} was certified: {created:?}"),
    }
    if blow == Blow::KillDaemon {
        cluster.restart_host(0).unwrap();
    }
    if created.is_err() {
        eventually(|| if volume.names().is_empty() { Ok(()) } else { Err("a snapshot is left of it") });
    }
}

fn now() -> Duration {
    timesync::clock::pace_now().to_std()
}

fn send(process: u32, signal: Signal) {
    kill(Pid::from_raw(process.cast_signed()), signal).unwrap();
}

/// The daemon's one child that is a watchdog.
fn watchdog_of(host: u32) -> u32 {
    let found = Command::new("pgrep").args(["-P", &host.to_string(), "-f", "watchdog"]).output().unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    text.lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("no watchdog: {text:?}"))
}

fn await_write(write: JoinHandle<()>) {
    eventually(|| if write.is_finished() { Ok(()) } else { Err("the file system is frozen") });
    write.join().unwrap();
}

/// Whoever froze it thaws it: a file system that somebody else has frozen is refused, and stays frozen.
#[test]
fn a_freeze_of_somebody_else_is_left_alone() {
    with_own_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        let volume = ImageVolume::new(&directory.path().join("a"), Means::XfsReflink, Kind::Ext4);
        let cluster = start(&[("a", volume.config("files", "", ""))]);
        let fsfreeze = |flag: &str| {
            let done = Command::new("fsfreeze").arg(flag).arg(volume.mount_point()).status().unwrap();
            done.success()
        };
        assert!(fsfreeze("-f"));
        let why = create(&cluster, &request("first", RequestedMode::Timed)).unwrap_err().to_string();
        assert!(why.contains("paused by somebody else"), "{why}");
        assert!(fsfreeze("-u"), "it was thawed by us");
        assert!(volume.names().is_empty());
        // Thawed by somebody else in the middle: void.
        let thaw = format!("fsfreeze -u {}", volume.mount_point().display());
        drop(cluster);
        let cluster = start(&[("a", volume.config("files", "", &thaw))]);
        let why = create(&cluster, &request("second", RequestedMode::Timed)).unwrap_err().to_string();
        assert!(why.contains("somebody else resumed"), "{why}");
        assert!(volume.names().is_empty());
    });
}
