//! Thin volumes of the device mapper and of LVM, and the kernel's NBD client: in a virtual machine with a kernel that has
//! them. `tests/vm/test` runs these there.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::workload::Export;
use harness::coeval;
use harness::external::documented;
use harness::filesystem::Mounted;
use harness::instants::{self, Instants, head, head_of, write_some};
use harness::thin::{Lvm, Pool, Served, dmsetup};
use harness::tools::{ask, finish, run, take_patiently};
use snapshot::backend::dm_thin::{DmThin, DmThinOptions};
use snapshot::backend::watchdog::WatchdogProgram;
use snapshot::backend::{Backend, BackendError, Resumption, conformance};
use snapshot::nbd::Endpoint;
use timesync::time::Nanos;

const PATIENCE: Nanos = Nanos::from_millis(20_000);
/// Emulated, everything takes its time: lvcreate some seconds.
const DEADLINE: &str = "20s";

#[test]
#[ignore = "needs a kernel with dm-thin; run by tests/vm/backends in a virtual machine"]
fn thin_volumes_that_are_paused_together_are_cut_as_of_one_instant() {
    let mut pool = Pool::new();
    dmsetup(&["message", "pool", "0", "create_thin 1"]);
    pool.map("thin1", 1);
    // Somebody else's device has the number that is tried first; it must be there afterwards.
    dmsetup(&["message", "pool", "0", "create_thin 8388608"]);
    let files = tempfile::tempdir().unwrap();
    let backends = ["thin0", "thin1"].map(|device| pool.backend(device));
    let served =
        ["thin0", "thin1"].map(|name| Served::new(files.path(), name, &Path::new("/dev/mapper").join(name)));
    let exports = served.each_ref().map(|served| served.export.clone());
    let workload = instants::start(&exports);
    let watchdog = WatchdogProgram(vec![coeval().into(), "watchdog".into()]);
    conformance::check(&backends[0], Some(&watchdog)).unwrap();
    let mut instants = Instants::default();
    for name in ["one", "two", "three"] {
        write_some(&workload);
        // As hosts do it, but for the clocks: the last has paused before the first one is resumed.
        let mut held = backends.each_ref().map(|backend| backend.prepare(name).unwrap().unwrap());
        held.iter_mut().for_each(|held| held.pause(PATIENCE).unwrap());
        let cut = backends.each_ref().map(|backend| backend.cut(name, PATIENCE.to_std()));
        let resumed = held.each_mut().map(|held| held.resume().unwrap());
        assert_eq!(resumed, [Resumption::Ours; 2]);
        for (backend, cut) in backends.iter().zip(cut) {
            cut.unwrap();
            backend.seal(name).unwrap();
        }
        assert_eq!(held[0].resume().unwrap(), Resumption::Others, "it is not paused any more");
        let images = ["thin0", "thin1"].map(|device| head(&pool.map_snapshot(device, name)));
        instants.add(name, images.into());
    }
    instants.assert_mixtures_are_torn();
    write_some(&workload);
    assert!(head(Path::new("/dev/mapper/thin0-one")) == instants.of(0)[0], "a snapshot has changed");

    // One that is shown somewhere is not deleted, and the sentence says what to do.
    let refused = backends[0].delete("one").unwrap_err().to_string();
    assert!(refused.contains("dmsetup remove"), "{refused}");
    for name in ["one", "two", "three"] {
        for device in ["thin0", "thin1"] {
            dmsetup(&["remove", "--retry", &format!("{device}-{name}")]);
        }
        backends.iter().for_each(|backend| backend.delete(name).unwrap());
    }
    // What a crash has left is removed: before the cut, and after it.
    for cut in [false, true] {
        let mut held = backends[0].prepare("crashed").unwrap().unwrap();
        if cut {
            held.pause(PATIENCE).unwrap();
            backends[0].cut("crashed", PATIENCE.to_std()).unwrap();
            held.resume().unwrap();
        }
        let after_the_crash = pool.backend("thin0");
        after_the_crash.discard("crashed").unwrap();
        after_the_crash.discard("crashed").unwrap();
    }
    // Only what was there before is there: the pool's own list has no more.
    workload.stop().unwrap();
    drop(served);
    assert_eq!(pool.numbers(), ["0", "1", "8388608"]);

    dmsetup(&["suspend", "--nolockfs", "thin0"]);
    let refused = backends[0].prepare("s").unwrap_err().to_string();
    dmsetup(&["resume", "thin0"]);
    assert!(refused.contains("is suspended"), "{refused}");
}

#[test]
#[ignore = "needs a kernel with dm-thin; run by tests/vm/backends in a virtual machine"]
fn lvms_pools_are_refused() {
    let _lvm = Lvm::new();
    let directory = tempfile::tempdir().unwrap();
    let options = DmThinOptions { device: "vg-thin".to_owned(), directory: directory.path().to_owned() };
    let BackendError(refused) = DmThin::new(options).unwrap().prepare("s").unwrap_err();
    assert!(refused.contains("is LVM's"), "{refused}");
}

#[test]
#[ignore = "needs a kernel with dm-thin; run by tests/vm/backends in a virtual machine"]
fn volumes_of_the_mapper_of_lvm_and_of_coeval_are_cut_as_of_one_instant() {
    let mut pool = Pool::new();
    let _lvm = Lvm::new();
    let files = tempfile::tempdir().unwrap();
    let mapper = format!(
        "[[backend]]\nkind = \"dm-thin\"\nvolume = \"mapper\"\ndevice = \"thin0\"\ndirectory = {:?}\ndeadline = {DEADLINE:?}\n",
        pool.books("thin0"),
    );
    let lvm = [OnLvm::new("thin", "LVM, thin volumes"), OnLvm::new("thick", "LVM, thick volumes")];
    let [thin, thick] = lvm.each_ref().map(OnLvm::config);
    let place = |config: String| Place { config, ..Place::loopback(&[]) };
    let hosts = [("mapper", place(mapper)), ("lvm", place(thin + &thick)), ("own", place(String::new()))];
    let cluster = Cluster::start(coeval(), &hosts, &Place::loopback(&[]), |_, address| Ok(address)).unwrap();
    ask(&cluster, &["volume", "create", "own/data", "16MiB"]);

    let [disk_of_thin, disk_of_thick] = lvm.each_ref().map(|volume| volume.at.join("disk"));
    let served = [
        Served::new(files.path(), "mapper", Path::new("/dev/mapper/thin0")),
        Served::new(files.path(), "thin", &disk_of_thin),
        Served::new(files.path(), "thick", &disk_of_thick),
    ];
    let own = |name: &str| Export {
        endpoint: Endpoint::Unix(cluster.hosts[2].nbd_socket.clone()),
        name: name.to_owned(),
    };
    let mut exports: Vec<_> = served.iter().map(|served| served.export.clone()).collect();
    exports.push(own("data"));
    let workload = instants::start(&exports);
    let mut instants = Instants::default();
    for name in ["one", "two", "three"] {
        write_some(&workload);
        let manifest = take_patiently(&cluster, name, &[]);
        assert_eq!(manifest["verdict"], "consistent", "{manifest}");
        let mut images = vec![head(&pool.map_snapshot("thin0", name))];
        images.extend(lvm.iter().map(|volume| volume.head(files.path(), name)));
        images.push(head_of(&own(&format!("data@{name}"))));
        instants.add(name, images);
    }
    workload.stop().unwrap();
    drop(served);
    instants.assert_mixtures_are_torn();

    // Of LVM's, those that its configuration puts back.
    let note = lvm[0].at.join("note");
    std::fs::write(&note, "before").unwrap();
    take_patiently(&cluster, "back", &["--volume", "lvm/thin"]);
    std::fs::write(&note, "after").unwrap();
    ask(&cluster, &["snapshot", "restore", "back", "--discard-current"]);
    assert_eq!(std::fs::read_to_string(&note).unwrap(), "before");
    ask(&cluster, &["snapshot", "delete", "back"]);

    for device in ["thin0-one", "thin0-two", "thin0-three"] {
        dmsetup(&["remove", "--retry", device]);
    }
    for name in ["one", "two", "three"] {
        ask(&cluster, &["snapshot", "delete", name]);
    }
    let numbers = std::fs::read_to_string(pool.books("thin0").join("thin.json")).unwrap();
    assert!(!numbers.contains("\"one\""), "{numbers}");
    let left = run(Command::new("lvs").args(["--noheadings", "-o", "lv_name", "vg"]));
    assert_eq!(left.split_whitespace().collect::<Vec<_>>(), ["pool", "thick", "thin"]);
}

/// An ext4 on a volume of LVM's, with a file for the workload.
struct OnLvm {
    name: &'static str,
    heading: &'static str,
    at: PathBuf,
    _mounted: Mounted,
}

impl OnLvm {
    fn new(name: &'static str, heading: &'static str) -> OnLvm {
        let (device, at) = (format!("/dev/vg/{name}"), Path::new("/srv").join(name));
        std::fs::create_dir_all(&at).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", &device]));
        let mounted = Mounted::new(Path::new(&device), &at, "rw");
        std::fs::write(at.join("disk"), vec![0; 16 << 20]).unwrap();
        run(&mut Command::new("sync"));
        OnLvm { name, heading, at, _mounted: mounted }
    }

    /// As the documentation has it, but for the names, and the time that an emulated `lvcreate` takes.
    fn config(&self) -> String {
        let mut backend = documented(self.heading, |line| line.replace("www", self.name));
        backend.insert("deadline".to_owned(), DEADLINE.into());
        format!("[[backend]]\n{backend}")
    }

    /// What the file held.
    fn head(&self, files: &Path, snapshot: &str) -> Vec<u8> {
        let name = format!("vg/{}-{snapshot}", self.name);
        run(Command::new("lvchange").args(["-q", "-y", "-K", "-a", "y", &name]));
        let at = files.join(format!("{}-{snapshot}", self.name));
        std::fs::create_dir(&at).unwrap();
        let mounted = Mounted::new(&Path::new("/dev").join(&name), &at, "ro");
        let image = head(&at.join("disk"));
        drop(mounted);
        if self.name == "thin" {
            run(Command::new("lvchange").args(["-q", "-a", "n", &name]));
        }
        image
    }
}

#[test]
#[ignore = "needs a kernel with nbd; run by tests/vm/backends in a virtual machine"]
fn a_file_system_on_the_kernels_own_client_survives_in_every_snapshot() {
    let cluster = harness::tools::one_host(&[]);
    ask(&cluster, &["volume", "create", "a/data", "64MiB"]);
    let socket = cluster.hosts[0].nbd_socket.to_str().unwrap().to_owned();
    let attach = |device: &str, export: &str| {
        let mut client = Command::new("nbd-client");
        run(client.args(["-unix", &socket, device, "-N", export]));
    };
    attach("/dev/nbd0", "data");
    run(Command::new("mkfs.ext4").args(["-q", "/dev/nbd0"]));
    let files = tempfile::tempdir().unwrap();
    let [live, frozen] = ["live", "frozen"].map(|name| files.path().join(name));
    std::fs::create_dir(&live).unwrap();
    std::fs::create_dir(&frozen).unwrap();
    let mounted = Mounted::new(Path::new("/dev/nbd0"), &live, "rw");
    for (number, name) in ["one", "two"].iter().enumerate() {
        // Durable before the snapshot, so it is in it; what is written later is not.
        let content = vec![number as u8 + 1; 300_000];
        std::fs::write(live.join(name), &content).unwrap();
        run(&mut Command::new("sync"));
        let manifest = take_patiently(&cluster, name, &[]);
        assert_eq!(manifest["verdict"], "consistent", "{manifest}");
        std::fs::write(live.join("later"), b"later").unwrap();
        run(&mut Command::new("sync"));
        std::fs::remove_file(live.join("later")).unwrap();

        // The journal is replayed into a throw-away copy: a snapshot is read-only.
        attach("/dev/nbd1", &format!("data@{name}"));
        let copy = files.path().join("copy");
        run(Command::new("cp").arg("/dev/nbd1").arg(&copy));
        run(Command::new("nbd-client").args(["-d", "/dev/nbd1"]));
        let checked = finish(Command::new("e2fsck").args(["-p", "-f"]).arg(&copy));
        assert!(matches!(checked.status.code(), Some(0 | 1)), "{checked:?}");
        let snapshot = Mounted::new(&copy, &frozen, "loop");
        assert!(std::fs::read(frozen.join(name)).unwrap() == content);
        assert!(!frozen.join("later").exists());
        drop(snapshot);
    }
    drop(mounted);
    run(Command::new("nbd-client").args(["-d", "/dev/nbd0"]));
    harness::tools::stop_all(cluster);
}
