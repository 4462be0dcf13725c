//! Volumes outside Coeval: file systems that are frozen while a command snapshots them. By root, on loop devices.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::config::BackendConfig;
use harness::external::{FileWorkload, HeldUp, ImageVolume, Means, documented, is_freezing, violations};
use harness::filesystem::{Kind, with_own_mounts};
use harness::tools::{free_port, run};
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
    let BackendConfig::Command(config) = volume.backend("files", "").try_into().unwrap() else {
        panic!("it is another kind of backend");
    };
    config.into()
}

fn watchdog() -> WatchdogProgram {
    WatchdogProgram(vec![coeval().into(), "watchdog".into()])
}

#[test]
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
fn frozen_file_systems_and_built_in_volumes_are_cut_at_one_instant() {
    with_own_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        let a = ImageVolume::new(&directory.path().join("a"), Means::XfsReflink, Kind::Ext4);
        let b = ImageVolume::new(&directory.path().join("b"), Means::BtrfsSubvolume, Kind::Ext4);
        let cluster = start(&[("a", a.config("files", "")), ("b", b.config("files", ""))]);
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
                let PauseTimes { pausing_ns, cutting_ns, paused_ns, .. } = part.pause.unwrap();
                assert!(pausing_ns > Nanos::ZERO && cutting_ns > Nanos::ZERO, "{part:?}");
                assert!(part.backend == "command" && pausing_ns + cutting_ns < paused_ns, "{part:?}");
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
        // Never with the present state kept.
        let restore = |discard_current| RestoreRequest { discard_current, disconnect: false };
        let why = api(&cluster, async |api| api.restore("timed2", &restore(false)).await).unwrap_err();
        assert!(why.to_string().contains("--discard-current"), "{why}");
    });
}

#[test]
fn restored_file_systems_are_as_they_were() {
    with_own_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        let volumes = [Means::XfsReflink, Means::BtrfsReflink, Means::BtrfsSubvolume]
            .map(|means| ImageVolume::new(&directory.path().join(format!("{means:?}")), means, Kind::Ext4));
        let configs = volumes.each_ref().map(|volume| volume.config("files", ""));
        let [a, b, c] = configs;
        let cluster = start(&[("a", a), ("b", b), ("c", c)]);
        volumes.iter().for_each(|volume| volume.note("before"));
        create(&cluster, &request("one", RequestedMode::Timed)).unwrap();
        volumes.iter().for_each(|volume| volume.note("after"));
        create(&cluster, &request("two", RequestedMode::Timed)).unwrap();
        let restore = RestoreRequest { discard_current: true, disconnect: false };
        for (snapshot, noted) in [("one", "before"), ("two", "after"), ("one", "before")] {
            api(&cluster, async |api| api.restore(snapshot, &restore).await).unwrap();
            assert!(volumes.iter().all(|volume| volume.noted() == noted), "{snapshot} was not put back");
        }
        for snapshot in ["one", "two"] {
            delete(&cluster, snapshot);
        }
        assert!(volumes.iter().all(|volume| volume.names().is_empty()));
    });
}

#[test]
fn what_is_not_paused_is_taken_alone() {
    with_own_mounts(|| {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        std::fs::File::create(&image).unwrap().set_len(300 << 20).unwrap();
        Kind::Btrfs.make(&image);
        let mounted = Kind::Btrfs.mount(&image, &directory.path().join("mounted"));
        let live = mounted.at.join("www");
        run(Command::new("btrfs").args(["subvolume", "create"]).arg(&live));
        std::fs::create_dir(mounted.at.join("snapshots")).unwrap();
        let backend = documented("A btrfs subvolume itself", |line| {
            line.replace("/srv", mounted.at.to_str().unwrap()).replace("\"www\"", "\"files\"")
        });
        let cluster = start(&[("a", format!("[[backend]]\n{backend}")), ("b", String::new())]);
        let note = live.join("note");
        std::fs::write(&note, "before").unwrap();
        let order = CreateVolumeOn { host: "b".to_owned(), name: "own".to_owned(), size: 1 << 20 };
        api(&cluster, async |api| api.create_volume(&order).await).unwrap();
        let why = create(&cluster, &request("all", RequestedMode::Auto)).unwrap_err().to_string();
        assert!(why.contains("take its snapshot alone"), "{why}");
        let alone =
            CreateRequest { group: vec![member("a", "files")], ..request("one", RequestedMode::Timed) };
        let manifest = create(&cluster, &alone).unwrap();
        assert_eq!(manifest.verdict, Verdict::Consistent);
        std::fs::write(&note, "after").unwrap();
        let restore = RestoreRequest { discard_current: true, disconnect: false };
        api(&cluster, async |api| api.restore("one", &restore).await).unwrap();
        assert_eq!(std::fs::read_to_string(&note).unwrap(), "before");
        // What is not done with it says so.
        let files = member("a", "files");
        let why = api(&cluster, async |api| api.set_quota(&files, None).await).unwrap_err().to_string();
        assert!(why.contains("is kept outside Coeval"), "{why}");
        api(&cluster, async |api| api.delete("one").await).unwrap();
        assert_eq!(std::fs::read_dir(mounted.at.join("snapshots")).unwrap().count(), 0);
    });
}

/// The way out that docs/backends.md shows.
#[test]
fn a_restore_that_never_succeeds_is_ended_by_a_command_that_does() {
    let directory = tempfile::tempdir().unwrap();
    let snapshots = directory.path().join("snapshots");
    std::fs::create_dir(&snapshots).unwrap();
    let config = format!(
        "[[backend]]\nkind = \"command\"\nvolume = \"files\"\nlist = [\"ls\", {snapshots:?}]\n\
         snapshot = [\"touch\", {0:?}]\ndelete = [\"rm\", {0:?}]\nrestore = [\"false\", \"{{snapshot}}\"]\n",
        snapshots.join("{snapshot}"),
    );
    let [control, time] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let place = Place { config, ..Place::loopback(&["--listen", &control, "--time", &time]) };
    let server = Place::loopback(&[]);
    let mut cluster = Cluster::start(coeval(), &[("a", place)], &server, |_, address| Ok(address)).unwrap();
    wait_for_bounds(&cluster);
    create(&cluster, &request("one", RequestedMode::Timed)).unwrap();
    let restore = RestoreRequest { discard_current: true, disconnect: false };
    let why = api(&cluster, async |api| api.restore("one", &restore).await).unwrap_err().to_string();
    assert!(why.contains("false"), "{why}");
    let why = api(&cluster, async |api| api.delete("one").await).unwrap_err();
    assert_eq!(why.status(), Some(409), "{why}");

    let file = cluster.state().with_file_name("a.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replace("\"false\"", "\"true\"")).unwrap();
    cluster.restart_host(0).unwrap();
    eventually(|| api(&cluster, async |api| api.delete("one").await));
    assert_eq!(std::fs::read_dir(&snapshots).unwrap().count(), 0);
}

/// Where the daemon is when something happens to it, with the file system frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The file system is being frozen, and still has something to write out.
    Pausing,
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
    StopWatchdog,
    KillBoth,
}

#[test]
fn whatever_is_killed_or_stopped_the_file_system_thaws() {
    with_own_mounts(|| {
        let blows =
            [Blow::KillDaemon, Blow::StopDaemon, Blow::KillWatchdog, Blow::StopWatchdog, Blow::KillBoth];
        for step in [Step::Pausing, Step::Cutting, Step::Taken] {
            for blow in blows {
                eprintln!("{blow:?} while {step:?}");
                assert!((0..5).any(|_| strike(step, blow)), "it is always over before anybody sees it");
            }
        }
    });
}

/// False where a busy machine was past the step before it was seen.
fn strike(step: Step, blow: Blow) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let volume = ImageVolume::new(&directory.path().join("a"), Means::XfsReflink, Kind::Ext4);
    let reached = directory.path().join("reached");
    let announce = format!("echo > {}", reached.display());
    let before = match step {
        Step::Cutting => format!("{announce}\nsleep 30"),
        Step::Pausing | Step::Taken => announce,
    };
    // A volume is paused for no longer than the deadline, and from half of it before T on. For what is done before the
    // pause, and between the command and T + V, there must be time.
    let (lead_ms, deadline_s) = match step {
        Step::Cutting => (1_000, 2),
        Step::Pausing => (2_500, 2),
        Step::Taken => (6_000, 8),
    };
    let mut backend = volume.backend("files", &before);
    backend.insert("deadline".to_owned(), format!("{deadline_s}s").into());
    let mut cluster = start(&[("a", format!("[[backend]]\n{backend}"))]);
    std::fs::write(volume.mount_point().join("probe"), "").unwrap();
    let order = CreateRequest {
        attempts: Some(1),
        lead_ns: Some(Nanos::from_millis(lead_ms)),
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
    let host = cluster.hosts[0].daemon.id();
    // Whether it comes to that before all is over.
    let comes = |awaited: &str, is_so: &dyn Fn() -> bool| {
        eventually(|| match (creating.is_finished(), is_so()) {
            (true, _) => Ok(false),
            (false, true) => Ok(true),
            (false, false) => Err(format!("not so yet: {awaited}")),
        })
    };
    let mut slow = None;
    let came = match step {
        Step::Pausing => {
            // It was prepared, and everything written out: the freeze still has to write that it is one.
            let prepared = comes("there is a watchdog", &|| watchdog_of(host).is_ok());
            slow = prepared.then(|| volume.hold_up());
            let freezing = || watchdog_of(host).is_ok_and(is_freezing);
            // The command runs when it is frozen.
            prepared && comes("it is being frozen", &|| freezing() || reached.exists()) && !reached.exists()
        }
        Step::Cutting => comes("the command runs", &|| reached.exists()),
        Step::Taken => comes("it was taken", &|| !volume.names().is_empty()),
    };
    let (true, Ok(watchdog)) = (came, watchdog_of(host)) else {
        drop(slow);
        let _ = creating.join().unwrap();
        return false;
    };
    let began = now();
    match blow {
        Blow::KillDaemon => send(host, Signal::SIGKILL),
        Blow::StopDaemon => send(host, Signal::SIGSTOP),
        Blow::KillWatchdog => send(watchdog, Signal::SIGKILL),
        Blow::StopWatchdog => send(watchdog, Signal::SIGSTOP),
        Blow::KillBoth => {
            send(host, Signal::SIGSTOP);
            send(watchdog, Signal::SIGKILL);
            send(host, Signal::SIGKILL);
        }
    }
    let let_go = move || drop::<Option<HeldUp>>(slow);
    if blow == Blow::KillBoth {
        // Nobody is left who could; the next run does it, also if the freeze is still under way when it starts.
        std::thread::scope(|scope| {
            let restarted = scope.spawn(|| cluster.restart_host(0).map_err(|why| why.to_string()));
            let_go();
            restarted.join().unwrap().unwrap();
        });
    } else {
        let_go();
    }
    await_write(volume.write_aside());
    let limit = Duration::from_secs(deadline_s) + SLACK;
    assert!(now() - began < limit, "{blow:?} while {step:?}: frozen for {:?}", now() - began);
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
    true
}

fn now() -> Duration {
    timesync::clock::pace_now().to_std()
}

fn send(process: u32, signal: Signal) {
    kill(Pid::from_raw(process.cast_signed()), signal).unwrap();
}

/// The daemon's one child that is a watchdog.
fn watchdog_of(host: u32) -> Result<u32, String> {
    let found = Command::new("pgrep").args(["-P", &host.to_string(), "-f", "watchdog"]).output().unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    text.lines().next().and_then(|line| line.parse().ok()).ok_or_else(|| format!("no watchdog: {text:?}"))
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
        let cluster = start(&[("a", volume.config("files", ""))]);
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
        let cluster = start(&[("a", volume.config("files", &thaw))]);
        let why = create(&cluster, &request("second", RequestedMode::Timed)).unwrap_err().to_string();
        assert!(why.contains("somebody else resumed"), "{why}");
        assert!(volume.names().is_empty());
    });
}
