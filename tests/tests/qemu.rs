//! Backend `qemu` with a real QEMU and a Linux guest, emulated. `tests/vm/test` runs these: they need what
//! `tests/vm/prepare` makes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use coeval_cli::causal::Slot;
use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::workload::{Export, check_exports};
use harness::external::{ImageVolume, Means, documented};
use harness::filesystem::{Kind, with_own_mounts};
use harness::instants::{self, Instants, TOKENS, head_of, write_some};
use harness::machine::{self, Disk, Machine};
use harness::thin::Served;
use harness::tools::{ask, command, finish, free_port, refusal_of, run, run_eventually, take_patiently};
use harness::{coeval, eventually};
use nix::sys::signal::Signal;
use serde_json::Value;
use snapshot::backend::qemu::{Qemu, QemuOptions};
use snapshot::backend::qmp::Qmp;
use snapshot::backend::watchdog::WatchdogProgram;
use snapshot::backend::{Backend, Resumption, conformance};
use snapshot::nbd::Endpoint;
use timesync::time::Nanos;

/// Longer than an emulated machine takes for anything.
const PATIENCE: Nanos = Nanos::from_millis(20_000);

/// A disk of the machine in `directory`, as it was in a snapshot: a raw image.
fn converted(directory: &Path, snapshot: &str, disk: &str) -> PathBuf {
    let records = std::fs::read(directory.join("overlays/snapshots.json")).unwrap();
    let records: Value = serde_json::from_slice(&records).unwrap();
    let find = |list: &Value, key: &str, value: &str| {
        list.as_array().unwrap().iter().find(|entry| entry[key] == value).unwrap().clone()
    };
    let image = find(&find(&records["snapshots"], "name", snapshot)["images"], "disk", disk);
    let (file, format) = (image["chain"][0].as_str().unwrap(), image["format"].as_str().unwrap());
    let raw = directory.join("converted.raw");
    // The machine has the image open, and only reads it.
    run(Command::new("qemu-img").args(["convert", "-U", "-O", "raw", "-f", format, file]).arg(&raw));
    raw
}

/// For the configuration of the host of the machine in `directory`, with these disks.
fn config(directory: &Path, disks: &[&str]) -> String {
    format!(
        "[[backend]]\nkind = \"qemu\"\nvolume = \"vm\"\nqmp = {:?}\ndisks = {disks:?}\ndirectory = {:?}\n\
         deadline = \"20s\"\n",
        directory.join("vm.qmp"),
        directory.join("overlays"),
    )
}

/// A machine with two disks, and the backend over it.
struct Guest {
    directory: tempfile::TempDir,
    machine: Option<Machine>,
    backend: Qemu,
}

impl Guest {
    fn start() -> Guest {
        let directory = tempfile::tempdir().unwrap();
        let options = QemuOptions {
            monitor: directory.path().join("vm.qmp"),
            disks: vec!["vda".to_owned(), "vdb".to_owned()],
            directory: directory.path().join("overlays"),
        };
        let backend = Qemu::new(options).unwrap();
        let mut guest = Guest { directory, machine: None, backend };
        let disks = [("vda", "qcow2"), ("vdb", "raw")].map(|(id, format)| {
            let image = guest.file(&format!("{id}.{format}"));
            run(Command::new("qemu-img").args(["create", "-q", "-f", format]).arg(&image).arg("16M"));
            Disk { id, format, image }
        });
        guest.machine = Some(Machine::start(guest.directory.path(), "vm", &disks));
        guest
    }

    /// Starts it once more, by the links.
    fn restart(&mut self) {
        let disks = ["vda", "vdb"].map(|id| Disk {
            id,
            format: "qcow2",
            image: self.file(&format!("overlays/{id}")),
        });
        self.machine = Some(Machine::start(self.directory.path(), "vm", &disks));
    }

    fn machine(&self) -> &Machine {
        self.machine.as_ref().unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// As a host does it, but for the clock.
    fn snapshot(&self, name: &str) {
        let mut held = self.backend.prepare(name).unwrap().unwrap();
        held.pause(PATIENCE).unwrap();
        let cut = self.backend.cut(name, PATIENCE.to_std());
        assert_eq!(held.resume().unwrap(), Resumption::Ours);
        cut.unwrap();
        drop(held);
        self.backend.seal(name).unwrap();
    }

    /// What the disks held.
    fn content(&self, snapshot: &str) -> Vec<Vec<u8>> {
        let directory = self.directory.path();
        ["vda", "vdb"].map(|disk| std::fs::read(converted(directory, snapshot, disk)).unwrap()).into()
    }

    /// For the host's configuration.
    fn config(&self) -> String {
        config(self.directory.path(), &["vda", "vdb"])
    }

    fn overlays(&self) -> Vec<String> {
        let files = std::fs::read_dir(self.file("overlays")).unwrap();
        let mut names: Vec<String> =
            files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name.ends_with(".qcow2"));
        names.sort();
        names
    }
}

/// A host `lvm` with an ext4 on a thin volume of LVM's: in a machine, since the kernel here may have no LVM. It has a kernel
/// and a clock of its own.
struct LvmHost {
    machine: Machine,
    _directory: tempfile::TempDir,
}

impl LvmHost {
    fn start() -> LvmHost {
        // Where the guest sees it: it has a /tmp of its own.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        // As the documentation has it, but for the time that an emulated `lvcreate` takes.
        let mut backend = documented("LVM, thin volumes", ToOwned::to_owned);
        backend.insert("deadline".to_owned(), "20s".into());
        let config = directory.path().join("host.toml");
        // Not PTP's own port for time: that has a second one, which is not forwarded.
        let addresses = "listen = \"10.0.2.15:7421\"\ntime = \"10.0.2.15:7319\"";
        let text = format!("name = \"lvm\"\ninsecure = true\nnbd = []\n{addresses}\n[[backend]]\n{backend}");
        std::fs::write(&config, text).unwrap();
        let program = coeval().canonicalize().unwrap();
        let guest = machine::Guest {
            disks: &[],
            script: "lvm-host",
            environment: &format!("coeval_program={} coeval_config={}", program.display(), config.display()),
            exports: 1,
            ports: &[("tcp", 7421), ("udp", 7319), ("tcp", 10_810)],
        };
        let machine = Machine::with_guest(directory.path(), "lvm", guest);
        LvmHost { machine, _directory: directory }
    }

    /// For the server's configuration.
    fn entry(&self) -> String {
        let [control, time, _] = self.machine.ports[..] else { unreachable!() };
        format!(
            "[[host]]\nname = \"lvm\"\ntime = \"127.0.0.1:{time}\"\ncontrol = \"http://127.0.0.1:{control}\"\n"
        )
    }

    /// What the workload's file held.
    fn head(&self, snapshot: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.machine.ports[2])).unwrap();
        stream.write_all(format!("{snapshot}\n").as_bytes()).unwrap();
        let mut image = Vec::new();
        stream.read_to_end(&mut image).unwrap();
        assert!(image.len() >= Slot::region(TOKENS), "{}", self.machine.console());
        image.truncate(Slot::region(TOKENS));
        image
    }
}

#[test]
#[ignore = "needs tests/vm/prepare; run by tests/vm/backends"]
fn snapshots_of_a_running_machine_are_consistent_and_outlive_merges_and_a_restore() {
    let mut guest = Guest::start();
    let workload = instants::start(&guest.machine().disks());
    let mut instants = Instants::default();
    for name in ["s1", "s2", "s3"] {
        write_some(&workload);
        guest.snapshot(name);
        instants.add(name, guest.content(name));
    }
    instants.assert_mixtures_are_torn();
    assert_eq!(guest.backend.list().unwrap(), ["s1", "s2", "s3"]);
    let watchdog = WatchdogProgram(vec![coeval().into(), "watchdog".into()]);
    conformance::check(&guest.backend, Some(&watchdog)).unwrap();

    // What is called off leaves nothing; what was cut and then called off holds what was written since.
    let held = guest.backend.prepare("off").unwrap();
    drop(held);
    let before = guest.overlays().len();
    guest.backend.discard("off").unwrap();
    assert_eq!(guest.overlays().len(), before - 2);
    let mut held = guest.backend.prepare("off").unwrap().unwrap();
    held.pause(PATIENCE).unwrap();
    guest.backend.cut("off", PATIENCE.to_std()).unwrap();
    held.resume().unwrap();
    drop(held);
    guest.backend.discard("off").unwrap();
    write_some(&workload);

    guest.backend.delete("s2").unwrap();
    write_some(&workload);
    guest.backend.delete("s1").unwrap();
    guest.backend.delete("s1").unwrap();
    write_some(&workload);
    assert_eq!(guest.backend.list().unwrap(), ["s3"]);
    assert!(guest.content("s3") == instants.of(2), "merging the others has changed it");
    // For each disk: the snapshot's, which has taken in the one after it; the one of what was called off; and the top.
    assert_eq!(guest.overlays().len(), 6, "{:?}", guest.overlays());

    let refused = guest.backend.restore("s3").unwrap_err().to_string();
    assert!(refused.contains("the virtual machine runs; shut it down"), "{refused}");
    workload.stop().unwrap();
    assert_eq!(check_exports(&guest.machine().disks(), TOKENS).unwrap(), []);
    guest.machine.take().unwrap().kill();
    guest.backend.restore("s3").unwrap();
    guest.restart();
    for (export, expected) in guest.machine().disks().iter().zip(instants.of(2)) {
        let found = head_of(export);
        assert!(found == expected[..found.len()], "the disk was not put back");
    }
    // It goes on from there, and the files of what was replaced go with the next deletion.
    let workload = instants::start(&guest.machine().disks());
    write_some(&workload);
    guest.snapshot("s4");
    instants.add("s4", guest.content("s4"));
    guest.backend.delete("s4").unwrap();
    assert!(guest.content("s3") == instants.of(2));
    write_some(&workload);
    workload.stop().unwrap();
}

#[test]
#[ignore = "needs tests/vm/prepare; run by tests/vm/backends"]
fn a_qemu_that_hangs_at_the_stop_runs_on_once_it_goes_on() {
    let guest = Guest::start();
    let workload = instants::start(&guest.machine().disks());
    write_some(&workload);
    let mut held = guest.backend.prepare("s").unwrap().unwrap();
    guest.machine().signal(Signal::SIGSTOP);
    let paused = std::thread::scope(|scope| {
        let pause = scope.spawn(|| held.pause(Nanos::from_millis(100)));
        // Past its limit: it has given up by then, and waits for an answer to its `cont`.
        std::thread::sleep(Duration::from_millis(300));
        guest.machine().signal(Signal::SIGCONT);
        pause.join().unwrap()
    });
    let why = paused.unwrap_err().to_string();
    assert!(why.contains("did not answer"), "{why}");
    drop(held);
    write_some(&workload);
    guest.backend.discard("s").unwrap();

    // And one that dies in the pause was not resumed by us.
    let mut held = guest.backend.prepare("s").unwrap().unwrap();
    held.pause(PATIENCE).unwrap();
    guest.machine.unwrap().kill();
    assert_eq!(held.resume().unwrap(), Resumption::Others);
    drop(held);
    guest.backend.discard("s").unwrap();
}

#[test]
#[ignore = "needs tests/vm/prepare; run by tests/vm/backends"]
fn a_machine_a_volume_of_lvms_a_frozen_file_system_and_a_built_in_volume_are_cut_as_of_one_instant() {
    with_own_mounts(mixed);
}

fn mixed() {
    let guest = Guest::start();
    let lvm = LvmHost::start();
    let files = ImageVolume::new(&guest.file("files"), Means::XfsReflink, Kind::Ext4);
    let records = files.make_records(TOKENS);
    let place = |config: String| Place { config, ..Place::loopback(&[]) };
    let hosts =
        [("a", place(guest.config())), ("b", Place::loopback(&[])), ("c", place(files.config("files", "")))];
    let cluster = Cluster::start(coeval(), &hosts, &place(lvm.entry()), |_, address| Ok(address)).unwrap();
    ask(&cluster, &["volume", "create", "b/data", "16MiB"]);
    // It ends well once every host has a bound: the guest's exchanges take longer.
    println!("{}", run_eventually(command(&cluster).arg("skew")));
    let own = |name: &str| Export {
        endpoint: Endpoint::Unix(cluster.hosts[1].nbd_socket.clone()),
        name: name.to_owned(),
    };
    let served = Served::new(guest.directory.path(), "records", &records);
    let mut exports = guest.machine().disks();
    exports.extend([own("data"), served.export.clone()]);
    exports.extend(lvm.machine.disks());
    let workload = instants::start(&exports);
    let mut instants = Instants::default();
    for name in ["one", "two", "three"] {
        write_some(&workload);
        let manifest = take_patiently(&cluster, name, &[]);
        assert_eq!(manifest["verdict"], "consistent", "{manifest}");
        let certified =
            manifest["hosts"].as_array().unwrap().iter().map(|host| host["host"].as_str().unwrap());
        assert_eq!(certified.collect::<Vec<_>>(), ["a", "b", "c", "lvm"]);
        let mut images = guest.content(name);
        images.push(head_of(&own(&format!("data@{name}"))));
        images.push(files.image(name, TOKENS));
        images.push(lvm.head(name));
        instants.add(name, images);
    }
    instants.assert_mixtures_are_torn();

    // A machine that does not run is refused, and left so.
    let monitor = guest.file("vm.qmp");
    let mut ours = Qmp::connect(&monitor, PATIENCE).unwrap();
    ours.execute("stop", serde_json::json!({}), PATIENCE).unwrap();
    drop(ours);
    let refused = refusal_of(command(&cluster).args(["snapshot", "create", "four"]));
    assert!(refused.contains("does not run (QEMU says: paused)"), "{refused}");
    let mut ours = Qmp::connect(&monitor, PATIENCE).unwrap();
    let status = ours.execute("query-status", serde_json::json!({}), PATIENCE).unwrap();
    assert_eq!(status["running"], false);
    ours.execute("cont", serde_json::json!({}), PATIENCE).unwrap();
    drop(ours);
    write_some(&workload);
    ask(&cluster, &["snapshot", "delete", "one"]);
    assert!(guest.content("three") == instants.of(2)[..2], "deleting another has changed it");
    workload.stop().unwrap();
}

#[test]
#[ignore = "needs tests/vm/prepare; run by tests/vm/backends"]
fn a_daemon_that_dies_leaves_no_machine_stopped() {
    let guest = Guest::start();
    // Ports of its own, so that it is found where it was.
    let [control, time] = [free_port(), free_port()].map(|port| format!("127.0.0.1:{port}"));
    let mut place = Place::loopback(&["--listen", &control, "--time", &time]);
    place.config = guest.config();
    let mut cluster =
        Cluster::start(coeval(), &[("a", place)], &Place::loopback(&[]), |_, address| Ok(address)).unwrap();
    let workload = instants::start(&guest.machine().disks());
    write_some(&workload);
    // T far ahead: the machine stands still when the daemon is killed.
    let mut create = command(&cluster);
    let mut create = create.args(["snapshot", "create", "s", "--lead", "8s"]).spawn().unwrap();
    eventually(|| {
        let before: u64 = workload.writes().iter().sum();
        std::thread::sleep(Duration::from_millis(200));
        let now: u64 = workload.writes().iter().sum();
        if now == before { Ok(()) } else { Err("it does not stand still") }
    });
    cluster.hosts[0].daemon.signal(Signal::SIGKILL).unwrap();
    write_some(&workload);
    create.wait().unwrap();
    // What is left of the attempt does not keep the next one from it.
    cluster.restart_host(0).unwrap();
    run_eventually(command(&cluster).args(["snapshot", "create", "t", "--lead", "1s"]));
    Instants::default().add("t", guest.content("t"));
    workload.stop().unwrap();
}

/// The better way: nothing is stopped.
#[test]
#[ignore = "needs tests/vm/prepare; run by tests/vm/backends"]
fn a_machine_whose_disks_are_coevals_volumes_is_never_stopped() {
    let hosts = [("a", Place::loopback(&[])), ("b", Place::loopback(&[]))];
    let cluster = Cluster::start(coeval(), &hosts, &Place::loopback(&[]), |_, address| Ok(address)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let disks = [("vda", 0), ("vdb", 1)].map(|(id, host)| {
        let name = &cluster.hosts[host].name;
        ask(&cluster, &["volume", "create", &format!("{name}/data"), "16MiB"]);
        let socket = cluster.hosts[host].nbd_socket.display();
        Disk { id, format: "nbd", image: format!("{socket}:data").into() }
    });
    let machine = Machine::start(directory.path(), "vm", &disks);
    let workload = instants::start(&machine.disks());
    for name in ["one", "two", "three"] {
        write_some(&workload);
        let manifest = ask(&cluster, &["snapshot", "create", name, "--attempts", "10"]);
        assert_eq!(manifest["verdict"], "consistent", "{manifest}");
        let exports = cluster.hosts.iter().map(|host| Export {
            endpoint: Endpoint::Unix(host.nbd_socket.clone()),
            name: format!("data@{name}"),
        });
        assert_eq!(check_exports(&exports.collect::<Vec<_>>(), TOKENS).unwrap(), [], "{name} is torn");
    }
    workload.stop().unwrap();
    machine.kill();
}

/// By the hooks and the program of docs/backends-qemu.md.
#[test]
#[ignore = "needs tests/vm/prepare; run by tests/vm/backends"]
fn a_guests_agent_makes_its_file_system_clean_in_the_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    std::fs::create_dir(file("content")).unwrap();
    std::fs::File::create(file("content/disk")).unwrap().set_len(16 << 20).unwrap();
    let image = file("vda.raw");
    run(Command::new("mkfs.ext4").args(["-q", "-d"]).arg(file("content")).arg(&image).arg("64M"));
    let disk = Disk { id: "vda", format: "raw", image };
    let machine = Machine::start(directory.path(), "vm", &[disk]);

    let page = include_str!("../../docs/backends-qemu.md");
    let block = |kind: &str| page.split("```").find_map(|block| block.strip_prefix(kind)).unwrap();
    let agent = file("guest-agent");
    let place_of_marks = format!("{}/", directory.path().display());
    std::fs::write(&agent, block("bash\n").replace("/run/coeval/", &place_of_marks)).unwrap();
    // Not for every snapshot, so that it is seen what it does.
    let hook = file("hook");
    let script = format!("#!/bin/sh\n[ $COEVAL_SNAPSHOT = plain ] || exec {} \"$@\"\n", agent.display());
    std::fs::write(&hook, script).unwrap();
    for program in [&agent, &hook] {
        std::fs::set_permissions(program, Permissions::from_mode(0o755)).unwrap();
    }
    let hooks = block("toml\n[hooks]\n")
        .replace("/usr/local/bin/guest-agent", hook.to_str().unwrap())
        .replace("/run/web.qga", machine.agent.to_str().unwrap());
    let mut place = Place::loopback(&[]);
    place.config = format!("{}[hooks]\n{hooks}", config(directory.path(), &["vda"]));
    let cluster =
        Cluster::start(coeval(), &[("a", place)], &Place::loopback(&[]), |_, address| Ok(address)).unwrap();
    let workload = instants::start(&machine.disks());
    for (snapshot, clean) in [("plain", false), ("clean", true)] {
        write_some(&workload);
        let manifest = ask(&cluster, &["snapshot", "create", snapshot, "--attempts", "10", "--lead", "1s"]);
        assert_eq!(manifest["verdict"], "consistent", "{manifest}");
        let raw = converted(directory.path(), snapshot, "vda");
        let header = run(Command::new("dumpe2fs").arg("-h").arg(raw));
        assert_eq!(!header.contains("needs_recovery"), clean, "{snapshot}: {header}");
    }
    // It has thawed. Frozen once more it cannot be frozen again, and thaws by itself.
    write_some(&workload);
    let freeze = || finish(Command::new(&agent).arg(&machine.agent).args(["freeze", "5"]));
    assert!(freeze().status.success());
    let again = freeze();
    let why = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && why.contains("somebody else has frozen"), "{why}");
    write_some(&workload);
    // There is nothing left to thaw, and that is said.
    let late = finish(Command::new(&agent).arg(&machine.agent).arg("thaw"));
    let why = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(!late.status.success() && why.contains("nothing was frozen any more"), "{why}");
    workload.stop().unwrap();
}
