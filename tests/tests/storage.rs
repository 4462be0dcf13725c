//! A file system on an image of Ceph's, and one on a zvol. The latter in a virtual machine, whose guest script has made it:
//! by `tests/vm/storage`.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::workload::Export;
use harness::ceph::Ceph;
use harness::coeval;
use harness::external::documented;
use harness::filesystem::{Mounted, with_own_mounts};
use harness::instants::{self, Instants, head, head_of, write_some};
use harness::thin::Served;
use harness::tools::{ask, run, run_eventually, stop_all, take_patiently};
use snapshot::nbd::Endpoint;

/// Emulated, or on a busy machine, a snapshot takes seconds.
const DEADLINE: &str = "20s";

#[test]
#[ignore = "needs a kernel with ZFS; run by tests/vm/storage in a virtual machine"]
fn a_file_system_on_a_zvol_is_cut_as_of_one_instant() {
    // Its link is made by udev, in its own time.
    let await_device = |device: &str| {
        run_eventually(Command::new("blockdev").args(["--getsize64", device]));
        PathBuf::from(device)
    };
    std::fs::create_dir_all("/srv/www").unwrap();
    check(&Storage {
        backend: documented("ZFS", str::to_owned),
        device: await_device("/dev/zvol/tank/www"),
        show: &|snapshot| {
            run(Command::new("zfs").args(["clone", &format!("tank/www@{snapshot}"), "tank/shown"]));
            await_device("/dev/zvol/tank/shown")
        },
        hide: &|_| {
            // udev may look at it at that moment.
            run_eventually(Command::new("zfs").args(["destroy", "tank/shown"]));
        },
        snapshots: &|| {
            let printed = run(Command::new("zfs").args(["list", "-H", "-t", "snapshot", "-o", "name"]));
            printed.lines().map(|line| line.strip_prefix("tank/www@").unwrap().to_owned()).collect()
        },
    });
}

#[test]
fn a_file_system_on_an_image_of_cephs_is_cut_as_of_one_instant() {
    with_own_mounts(|| {
        let ceph = Ceph::new();
        let directory = tempfile::tempdir().unwrap();
        let (rbd, at) = (ceph.rbd(), directory.path().join("www"));
        std::fs::create_dir(&at).unwrap();
        let backend = documented("Ceph RBD", |line| {
            let line = line
                .replace("\"rbd\"", &format!("{rbd:?}"))
                .replace("$(rbd", &format!("$({}", rbd.display()));
            line.replace("/srv/www", at.to_str().unwrap())
        });
        check(&Storage {
            backend,
            device: ceph.image(),
            show: &|snapshot| {
                let image = directory.path().join(snapshot);
                ceph.export(snapshot, &image);
                image
            },
            hide: &|image| std::fs::remove_file(image).unwrap(),
            snapshots: &|| {
                let printed = run(ceph.command("rbd").args(["snap", "ls", "--format", "json", "pool/www"]));
                let list: Vec<serde_json::Value> = serde_json::from_str(&printed).unwrap();
                list.iter().map(|snapshot| snapshot["name"].as_str().unwrap().to_owned()).collect()
            },
        });
    });
}

/// A storage with one volume.
struct Storage<'a> {
    /// As the documentation has it.
    backend: toml::Table,
    /// The volume: a block device, or a file that is as good as one.
    device: PathBuf,
    /// Makes one of a snapshot, to look at.
    show: &'a dyn Fn(&str) -> PathBuf,
    /// Takes that away again.
    hide: &'a dyn Fn(&Path),
    /// What snapshots there are, by the storage's own account.
    snapshots: &'a dyn Fn() -> Vec<String>,
}

impl Storage<'_> {
    /// What the workload's file held. The file system around it must be sound.
    fn head(&self, files: &Path, snapshot: &str) -> Vec<u8> {
        let device = (self.show)(snapshot);
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&device));
        let at = files.join(snapshot);
        std::fs::create_dir(&at).unwrap();
        let mounted = Mounted::new(&device, &at, "ro");
        let image = head(&at.join("disk"));
        drop(mounted);
        (self.hide)(&device);
        image
    }
}

/// Snapshots of the volume together with one of Coeval's on another host; then deleted.
fn check(storage: &Storage) {
    let files = tempfile::tempdir().unwrap();
    let mut backend = storage.backend.clone();
    let at = PathBuf::from(backend["freeze"].as_str().unwrap());
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&storage.device));
    let mounted = Mounted::new(&storage.device, &at, "rw");
    let disk = at.join("disk");
    std::fs::write(&disk, vec![0; 16 << 20]).unwrap();
    run(&mut Command::new("sync"));

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
    for name in ["one", "two", "three"] {
        write_some(&workload);
        let manifest = take_patiently(&cluster, name, &[]);
        assert_eq!(manifest["verdict"], "consistent", "{manifest}");
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
