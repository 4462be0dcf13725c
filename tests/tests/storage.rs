//! A file system on a zvol, and one on a Ceph RBD image: in a virtual machine, whose guest script has made both. By
//! `tests/vm/storage`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::workload::Export;
use harness::coeval;
use harness::external::documented;
use harness::instants::{self, Instants, head, head_of, write_some};
use harness::thin::{Mounted, Served};
use harness::tools::{ask, run, run_eventually, stop_all};
use snapshot::nbd::Endpoint;

/// Emulated, a snapshot takes seconds.
const DEADLINE: &str = "20s";
const MOUNT_POINT: &str = "/srv/www";

#[test]
#[ignore = "needs a kernel with ZFS; run by tests/vm/storage in a virtual machine"]
fn a_file_system_on_a_zvol_is_cut_as_of_one_instant() {
    check(&Storage {
        heading: "ZFS",
        device: "/dev/zvol/tank/www",
        show: |snapshot| {
            run(Command::new("zfs").args(["clone", &format!("tank/www@{snapshot}"), "tank/shown"]));
            "/dev/zvol/tank/shown".to_owned()
        },
        hide: |_| {
            // udev may look at it at that moment.
            run_eventually(Command::new("zfs").args(["destroy", "tank/shown"]));
        },
        snapshots: || {
            let printed = run(Command::new("zfs").args(["list", "-H", "-t", "snapshot", "-o", "name"]));
            printed.lines().map(|line| line.strip_prefix("tank/www@").unwrap().to_owned()).collect()
        },
    });
}

#[test]
#[ignore = "needs a Ceph cluster and the kernel's rbd; run by tests/vm/storage in a virtual machine"]
fn a_file_system_on_an_rbd_image_is_cut_as_of_one_instant() {
    check(&Storage {
        heading: "Ceph RBD",
        device: "/dev/rbd/pool/www",
        show: |snapshot| {
            let mapped =
                run(Command::new("rbd").args(["map", "--read-only", &format!("pool/www@{snapshot}")]));
            mapped.trim().to_owned()
        },
        hide: |device| {
            run_eventually(Command::new("rbd").args(["unmap", device]));
        },
        snapshots: || {
            let printed = run(Command::new("rbd").args(["snap", "ls", "--format", "json", "pool/www"]));
            let list: Vec<serde_json::Value> = serde_json::from_str(&printed).unwrap();
            list.iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
        },
    });
}

/// A storage with one volume, as the documentation's configuration has it.
struct Storage {
    /// The configuration's.
    heading: &'static str,
    device: &'static str,
    /// Makes a block device of a snapshot, to look at.
    show: fn(&str) -> String,
    /// Takes that device away again.
    hide: fn(&str),
    /// What snapshots there are, by the storage's own account.
    snapshots: fn() -> Vec<String>,
}

impl Storage {
    /// What the workload's file held. The file system around it must be sound.
    fn head(&self, files: &Path, snapshot: &str) -> Vec<u8> {
        let device = (self.show)(snapshot);
        await_device(&device);
        run(Command::new("e2fsck").args(["-f", "-n", &device]));
        let at = files.join(snapshot);
        std::fs::create_dir(&at).unwrap();
        let mounted = Mounted::new(&device, &at, "ro");
        let image = head(&at.join("disk"));
        drop(mounted);
        (self.hide)(&device);
        image
    }
}

/// Its link is made by udev, in its own time.
fn await_device(device: &str) {
    run_eventually(Command::new("blockdev").args(["--getsize64", device]));
}

/// Snapshots of the volume together with one of Coeval's on another host; then deleted.
fn check(storage: &Storage) {
    let files = tempfile::tempdir().unwrap();
    let at = Path::new(MOUNT_POINT);
    std::fs::create_dir_all(at).unwrap();
    await_device(storage.device);
    run(Command::new("mkfs.ext4").args(["-q", storage.device]));
    let mounted = Mounted::new(storage.device, at, "rw");
    let disk = at.join("disk");
    std::fs::write(&disk, vec![0; 16 << 20]).unwrap();
    run(&mut Command::new("sync"));

    let mut backend = documented(storage.heading, str::to_owned);
    assert_eq!(backend["freeze"].as_str(), Some(MOUNT_POINT));
    backend.insert("deadline".to_owned(), DEADLINE.into());
    let place = |config: String| Place { config, ..Place::loopback(&[]) };
    let hosts = [("web", place(format!("[[backend]]\n{backend}"))), ("own", place(String::new()))];
    let cluster = Cluster::start(coeval(), &hosts, &Place::loopback(&[]), |_, address| Ok(address)).unwrap();
    ask(&cluster, &["volume", "create", "own/data", "16MiB"]);
    let served = Served::new(files.path(), "disk", &disk);
    let own = |name: &str| Export {
        endpoint: Endpoint::Unix(cluster.hosts[1].nbd_socket.clone()),
        name: name.to_owned(),
    };
    let workload = instants::start(&[served.export.clone(), own("data")]);
    let mut instants = Instants::default();
    let patient = ["--mode", "timed", "--attempts", "10", "--lead", "3s"];
    for name in ["one", "two", "three"] {
        write_some(&workload);
        let manifest = ask(&cluster, &[&["snapshot", "create", name], &patient[..]].concat());
        assert_eq!(manifest["verdict"], "consistent", "{manifest}");
        println!("{name}: {} attempts, {}", manifest["attempts"], manifest["hosts"]);
        instants.add(name, vec![storage.head(files.path(), name), head_of(&own(&format!("data@{name}")))]);
    }
    workload.stop().unwrap();
    drop(served);
    instants.assert_mixtures_are_torn();

    let mut left = (storage.snapshots)();
    left.sort();
    assert_eq!(left, ["one", "three", "two"]);
    for name in ["one", "two", "three"] {
        ask(&cluster, &["snapshot", "delete", name]);
    }
    assert_eq!((storage.snapshots)(), [""; 0]);
    stop_all(cluster);
    drop(mounted);
}
