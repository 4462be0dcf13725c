//! Thin volumes of the device mapper and of LVM, and the kernel's NBD client: in a virtual machine with a kernel that has
//! them. `tests/vm/test` runs these there.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use coeval_cli::causal;
use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::workload::{Export, Workload};
use harness::filesystem::dies_with_us;
use harness::tools::{ask, finish, run};
use harness::{coeval, eventually};
use snapshot::backend::dm_thin::{DmThin, DmThinOptions};
use snapshot::backend::watchdog::WatchdogProgram;
use snapshot::backend::{Backend, BackendError, Resumption, conformance};
use snapshot::nbd::{Client, Endpoint};
use timesync::time::Nanos;

const TOKENS: usize = 6;
const REST: Duration = Duration::from_millis(1);
const VOLUME_SECTORS: u64 = (16 << 20) / 512;
const PATIENCE: Nanos = Nanos::from_millis(20_000);
/// Emulated, everything takes its time: lvcreate some seconds.
const DEADLINE: &str = "20s";

/// A block device over a file in memory.
struct Loop {
    device: String,
}

impl Loop {
    fn new(directory: &Path, name: &str, size: &str) -> Loop {
        let file = directory.join(name);
        run(Command::new("truncate").args(["-s", size]).arg(&file));
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Loop { device: device.trim().to_owned() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // What is in use goes when it no longer is.
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

fn dmsetup(arguments: &[&str]) -> String {
    run(Command::new("dmsetup").args(arguments))
}

/// A pool of the device mapper with one thin volume, number 0. Fields are dropped in this order.
struct Pool {
    devices: Vec<String>,
    data: Loop,
    metadata: Loop,
    directory: tempfile::TempDir,
}

impl Pool {
    fn new() -> Pool {
        let directory = tempfile::tempdir().unwrap();
        let (metadata, data) =
            (Loop::new(directory.path(), "metadata", "8M"), Loop::new(directory.path(), "data", "256M"));
        let table = format!("0 {} thin-pool {} {} 128 0", 256 << 11, metadata.device, data.device);
        dmsetup(&["create", "pool", "--table", &table]);
        let mut pool = Pool { devices: vec!["pool".to_owned()], data, metadata, directory };
        dmsetup(&["message", "pool", "0", "create_thin 0"]);
        pool.map("thin0", 0);
        pool
    }

    /// Shows a device of the pool under /dev/mapper.
    fn map(&mut self, name: &str, number: u64) -> PathBuf {
        let table = format!("0 {VOLUME_SECTORS} thin /dev/mapper/pool {number}");
        dmsetup(&["create", name, "--table", &table]);
        self.devices.insert(0, name.to_owned());
        Path::new("/dev/mapper").join(name)
    }

    fn backend(&self, device: &str) -> DmThin {
        DmThin::new(DmThinOptions { device: device.to_owned(), directory: self.books(device) }).unwrap()
    }

    fn books(&self, device: &str) -> PathBuf {
        self.directory.path().join(format!("{device}-numbers"))
    }

    /// Shows a snapshot under /dev/mapper.
    fn map_snapshot(&mut self, device: &str, snapshot: &str) -> PathBuf {
        let books = std::fs::read(self.books(device).join("thin.json")).unwrap();
        let books: serde_json::Value = serde_json::from_slice(&books).unwrap();
        let taken = books["snapshots"].as_array().unwrap();
        let number = taken.iter().find(|taken| taken["name"] == snapshot).unwrap()["number"].as_u64();
        self.map(&format!("{device}-{snapshot}"), number.unwrap())
    }

    /// The numbers of the pool's devices, by its own metadata. Everything else of it is taken down for that.
    fn numbers(&mut self) -> Vec<String> {
        for device in self.devices.drain(..) {
            // Some were removed before.
            let _ = finish(Command::new("dmsetup").args(["remove", "--retry", &device]));
        }
        let listed =
            run(Command::new("thin_ls").args(["--no-headers", "-o", "DEV"]).arg(&self.metadata.device));
        let numbers = listed.split_whitespace().map(ToOwned::to_owned).collect();
        let table = format!("0 {} thin-pool {} {} 128 0", 256 << 11, self.metadata.device, self.data.device);
        dmsetup(&["create", "pool", "--table", &table]);
        self.devices.push("pool".to_owned());
        self.map("thin0", 0);
        numbers
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for device in &self.devices {
            let _ = Command::new("dmsetup").args(["remove", "--retry", device]).status();
        }
    }
}

/// An LVM volume group with a thin volume.
struct Lvm {
    _disk: Loop,
    _directory: tempfile::TempDir,
}

impl Lvm {
    fn new() -> Lvm {
        let directory = tempfile::tempdir().unwrap();
        let disk = Loop::new(directory.path(), "disk", "256M");
        run(Command::new("vgcreate").args(["-q", "vg", &disk.device]));
        run(Command::new("lvcreate").args(["-q", "-y", "-L", "128M", "-T", "vg/pool"]));
        run(Command::new("lvcreate").args(["-q", "-y", "-V", "64M", "-T", "vg/pool", "-n", "lv"]));
        Lvm { _disk: disk, _directory: directory }
    }
}

impl Drop for Lvm {
    fn drop(&mut self) {
        let _ = Command::new("vgremove").args(["-q", "-f", "-y", "vg"]).status();
    }
}

/// A device or file, as the workload reaches it: written through the kernel, bypassing its cache.
struct Served {
    server: Child,
    export: Export,
}

impl Served {
    fn new(directory: &Path, file: &Path) -> Served {
        let name = file.file_name().unwrap().to_str().unwrap();
        let socket = directory.join(format!("{name}.nbd"));
        let mut command = dies_with_us("qemu-nbd");
        command.args(["--format=raw", "--cache=none", "--aio=threads", "--persistent", "--shared=64"]);
        command.args(["--export-name=data", "--socket"]).arg(&socket).arg(file);
        let server = command.spawn().unwrap();
        let export = Export { endpoint: Endpoint::Unix(socket), name: "data".to_owned() };
        eventually(|| Client::connect(&export.endpoint, &export.name).map(|_| ()));
        Served { server, export }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn write_some(workload: &Workload) {
    let before: u64 = workload.writes().iter().sum();
    eventually(|| {
        assert!(!workload.has_failed(), "the workload met an error");
        let now: u64 = workload.writes().iter().sum();
        if now >= before + 100 { Ok(()) } else { Err(format!("from {before} writes to {now}")) }
    });
}

/// The beginning of a file, as much as the workload uses.
fn head(file: &Path) -> Vec<u8> {
    let mut bytes = vec![0; causal::Slot::region(TOKENS)];
    std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::open(file).unwrap(), &mut bytes, 0).unwrap();
    bytes
}

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
        ["thin0", "thin1"].map(|name| Served::new(files.path(), &Path::new("/dev/mapper").join(name)));
    let exports = served.each_ref().map(|served| served.export.clone());
    let workload = Workload::start(&exports, TOKENS, REST).unwrap();
    let watchdog = WatchdogProgram(vec![coeval().into(), "watchdog".into()]);
    conformance::check(&backends[0], Some(&watchdog)).unwrap();
    let mut images = Vec::new();
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
        let image = ["thin0", "thin1"].map(|device| head(&pool.map_snapshot(device, name)));
        assert_eq!(causal::check(&image, TOKENS), [], "{name} is torn");
        images.push(image);
    }
    // The control: of different instants.
    assert_ne!(causal::check(&[images[0][0].clone(), images[2][1].clone()], TOKENS), []);
    write_some(&workload);
    assert!(head(Path::new("/dev/mapper/thin0-one")) == images[0][0], "a snapshot has changed");

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
    let options = DmThinOptions { device: "vg-lv".to_owned(), directory: directory.path().to_owned() };
    let BackendError(refused) = DmThin::new(options).unwrap().prepare("s").unwrap_err();
    assert!(refused.contains("is LVM's"), "{refused}");
}

#[test]
#[ignore = "needs a kernel with dm-thin; run by tests/vm/backends in a virtual machine"]
fn thin_volumes_of_both_kinds_and_a_built_in_one_are_cut_as_of_one_instant() {
    let mut pool = Pool::new();
    let _lvm = Lvm::new();
    let files = tempfile::tempdir().unwrap();
    let at = files.path().join("lv");
    std::fs::create_dir(&at).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "/dev/vg/lv"]));
    let _mounted = Mounted::new("/dev/vg/lv", &at, "rw");
    let disk = at.join("disk");
    std::fs::write(&disk, vec![0; 16 << 20]).unwrap();
    run(&mut Command::new("sync"));

    let thin = format!(
        "[[backend]]\nkind = \"dm-thin\"\nvolume = \"thin\"\ndevice = \"thin0\"\ndirectory = {:?}\ndeadline = \"{DEADLINE}\"\n",
        pool.books("thin0"),
    );
    let lvm = format!(
        "[[backend]]\nkind = \"command\"\nvolume = \"lv\"\nfreeze = {at:?}\ndeadline = \"{DEADLINE}\"\n\
         snapshot = [\"lvcreate\", \"-q\", \"-s\", \"-n\", \"lv-{{snapshot}}\", \"--setactivationskip\", \"y\", \"--activate\", \"n\", \"vg/lv\"]\n\
         list = [\"lvs\", \"--noheadings\", \"-o\", \"lv_name\", \"vg\"]\nentry = \"lv-{{snapshot}}\"\n\
         delete = [\"lvremove\", \"-q\", \"-y\", \"vg/lv-{{snapshot}}\"]\n"
    );
    let place = |config: &str| {
        let mut place = Place::loopback(&[]);
        config.clone_into(&mut place.config);
        place
    };
    let hosts = [("dm", place(&thin)), ("lvm", place(&lvm)), ("own", place(""))];
    let cluster = Cluster::start(coeval(), &hosts, &Place::loopback(&[]), |_, address| Ok(address)).unwrap();
    ask(&cluster, &["volume", "create", "own/data", "16MiB"]);

    let served = [Path::new("/dev/mapper/thin0"), disk.as_path()].map(|file| Served::new(files.path(), file));
    let own = |name: &str| Export {
        endpoint: Endpoint::Unix(cluster.hosts[2].nbd_socket.clone()),
        name: name.to_owned(),
    };
    let exports = [served[0].export.clone(), served[1].export.clone(), own("data")];
    let workload = Workload::start(&exports, TOKENS, REST).unwrap();
    let mut images = Vec::new();
    for name in ["one", "two", "three"] {
        write_some(&workload);
        let manifest = ask(&cluster, &["snapshot", "create", name, "--mode", "timed", "--lead", "3s"]);
        assert_eq!(manifest["verdict"], "consistent", "{manifest}");
        println!(
            "{name}: {} attempts, margin {} ns, V {} ns",
            manifest["attempts"], manifest["margin_ns"], manifest["v_ns"]
        );
        images.push(read_all(&mut pool, files.path(), &own(&format!("data@{name}")), name));
        assert_eq!(causal::check(&images[images.len() - 1], TOKENS), [], "{name} is torn");
    }
    workload.stop().unwrap();
    // The control: of different instants.
    let mixed = [images[0][0].clone(), images[2][1].clone(), images[0][2].clone()];
    assert_ne!(causal::check(&mixed, TOKENS), []);

    for device in ["thin0-one", "thin0-two", "thin0-three"] {
        dmsetup(&["remove", "--retry", device]);
    }
    ask(&cluster, &["snapshot", "delete", "one"]);
    let numbers = std::fs::read_to_string(pool.books("thin0").join("thin.json")).unwrap();
    assert!(!numbers.contains("\"one\"") && numbers.contains("\"two\""), "{numbers}");
    assert!(!run(Command::new("lvs").args(["--noheadings", "-o", "lv_name", "vg"])).contains("lv-one"));
}

/// What the three volumes held, in the workload's order.
fn read_all(pool: &mut Pool, files: &Path, own: &Export, snapshot: &str) -> Vec<Vec<u8>> {
    let thin = head(&pool.map_snapshot("thin0", snapshot));

    let name = format!("vg/lv-{snapshot}");
    run(Command::new("lvchange").args(["-q", "-K", "-a", "y", &name]));
    let at = files.join(snapshot);
    std::fs::create_dir(&at).unwrap();
    let mounted = Mounted::new(&format!("/dev/{name}"), &at, "ro");
    let lv = head(&at.join("disk"));
    drop(mounted);
    run(Command::new("lvchange").args(["-q", "-a", "n", &name]));

    let mut client = Client::connect(&own.endpoint, &own.name).unwrap();
    let mut data = vec![0; causal::Slot::region(TOKENS)];
    client.read(0, &mut data).unwrap();
    vec![thin, lv, data]
}

struct Mounted(PathBuf);

impl Mounted {
    fn new(device: &str, at: &Path, options: &str) -> Mounted {
        run(Command::new("mount").args(["-o", options, device]).arg(at));
        Mounted(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
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
    let mounted = Mounted::new("/dev/nbd0", &live, "rw");
    for (number, name) in ["one", "two"].iter().enumerate() {
        // Durable before the snapshot, so it is in it; what is written later is not.
        let content = vec![number as u8 + 1; 300_000];
        std::fs::write(live.join(name), &content).unwrap();
        run(&mut Command::new("sync"));
        let manifest = ask(&cluster, &["snapshot", "create", name, "--lead", "500ms"]);
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
        let snapshot = Mounted::new(copy.to_str().unwrap(), &frozen, "loop");
        assert!(std::fs::read(frozen.join(name)).unwrap() == content);
        assert!(!frozen.join("later").exists());
        drop(snapshot);
    }
    drop(mounted);
    run(Command::new("nbd-client").args(["-d", "/dev/nbd0"]));
    harness::tools::stop_all(cluster);
}
