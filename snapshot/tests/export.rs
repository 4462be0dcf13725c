//! Exports of real volumes over NBD, judged by qemu-img.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use snapshot::device::Exports;
use snapshot::export::qcow2::{CLUSTER, Layout};
use snapshot::export::{ExportError, Exported, Format, Order, export};
use snapshot::host::{HostOptions, HostService};
use snapshot::nbd::{Client, Endpoint, Server};
use snapshot::orders::CreateVolume;
use tempfile::TempDir;
use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::time::Nanos;
use uuid::Uuid;

/// Not a multiple of a cluster, nor of a range of the digest.
const SIZE: u64 = (9 << 20) + 3 * 4096;

/// A host with one volume, and a directory for exports.
struct Host {
    directory: TempDir,
    service: Arc<HostService>,
    server: Server,
}

impl Host {
    fn new() -> Host {
        let directory = tempfile::tempdir().unwrap();
        let max_stretch = Nanos::from_millis(1_000);
        let options = HostOptions {
            name: "a".to_owned(),
            volumes: directory.path().join("volumes"),
            max_stretch,
            import_from: Vec::new(),
            merge_rate: 1 << 30,
        };
        let incarnation = Incarnation::of_this_process().unwrap();
        let service = HostService::open(options, incarnation, HostClock::real()).unwrap();
        service.create_volume(&CreateVolume { name: "v".to_owned(), size: SIZE }).unwrap();
        let endpoint = Endpoint::Unix(directory.path().join("nbd"));
        let exports: Arc<dyn Exports> = Arc::clone(&service) as _;
        let server = Server::bind(&[endpoint], exports, HostClock::real()).unwrap();
        Host { directory, service, server }
    }

    fn take(&self, name: &str) {
        self.service.uncoordinated(Uuid::new_v4(), &["v".to_owned()], name).unwrap();
    }

    fn open(&self, snapshot: &str) -> Client {
        Client::connect(&self.server.endpoints()[0], &format!("v@{snapshot}")).unwrap()
    }

    fn content(&self, snapshot: &str) -> Vec<u8> {
        let mut content = vec![0; SIZE as usize];
        self.open(snapshot).read(0, &mut content).unwrap();
        content
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn export(
        &self,
        snapshot: &str,
        since: Option<&str>,
        format: Format,
        file: &str,
        backing: Option<&str>,
        digest: Option<&str>,
    ) -> Result<Exported, ExportError> {
        let extents = self.service.extents("v", snapshot, since).unwrap();
        let extents: Vec<_> = extents.within(0..u64::MAX).collect();
        let (file, backing) = (self.path(file), backing.map(|name| self.path(name)));
        let order = Order { extents: &extents, digest, file: &file, format, backing: backing.as_deref() };
        export(&mut self.open(snapshot), &order, |_| {})
    }

    fn digest(&self, snapshot: &str) -> String {
        self.service.digest("v", snapshot, false).unwrap().blake3
    }
}

fn qemu_img(arguments: &[&str], files: &[&Path]) {
    let output = Command::new("qemu-img").args(arguments).args(files).output();
    let output =
        output.unwrap_or_else(|why| panic!("qemu-img ({why}): `tests/run` installs the Debian package"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?} {files:?}: {}", String::from_utf8_lossy(&said));
}

/// What a guest sees in an image, whatever lies below it.
fn restored(host: &Host, image: &Path) -> Vec<u8> {
    let raw = host.path("restored.raw");
    qemu_img(&["check", "-q"], &[image]);
    qemu_img(&["convert", "-O", "raw"], &[image, &raw]);
    fs::read(raw).unwrap()
}

#[derive(Clone, Debug)]
enum Write {
    Data { offset: u64, length: u64, fill: u8 },
    Trim { offset: u64, length: u64 },
}

fn write() -> impl Strategy<Value = Write> {
    // Whole clusters, blocks and parts of blocks.
    let range =
        (0..SIZE, prop_oneof![1_u64..9000, Just(4096), 60_000_u64..300_000]).prop_map(|(offset, length)| {
            let offset = if length > 9000 { offset / 65536 * 65536 } else { offset };
            (offset, length.min(SIZE - offset))
        });
    (range, any::<u8>(), proptest::bool::weighted(0.3)).prop_map(|((offset, length), fill, trim)| {
        if trim { Write::Trim { offset, length } } else { Write::Data { offset, length, fill } }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn a_chain_of_exports_is_restored_bit_for_bit(
        generations in proptest::collection::vec(proptest::collection::vec(write(), 0..12), 1..4),
        raw_first: bool,
    ) {
        let host = Host::new();
        let mut before: Option<(String, String)> = None;
        for (number, writes) in generations.iter().enumerate() {
            let mut client = Client::connect(&host.server.endpoints()[0], "v").unwrap();
            for write in writes {
                match *write {
                    Write::Data { offset, length, fill } => {
                        client.write(offset, &vec![fill; length as usize], false).unwrap();
                    }
                    Write::Trim { offset, length } => client.trim(offset, length as u32, false).unwrap(),
                }
            }
            let (snapshot, file) = (format!("s{number}"), format!("{number}.img"));
            host.take(&snapshot);
            let (since, backing) = before.as_ref().map(|(name, file)| (name.as_str(), file.as_str())).unzip();
            let format = if since.is_none() && raw_first { Format::Raw } else { Format::Qcow2 };
            let digest = host.digest(&snapshot);
            let done = host.export(&snapshot, since, format, &file, backing, Some(&digest)).unwrap();
            prop_assert_eq!(done.checked, since.is_none());
            let content = host.content(&snapshot);
            let path = host.path(&file);
            let seen = if format == Format::Raw { fs::read(path).unwrap() } else { restored(&host, &path) };
            prop_assert!(seen == content, "generation {} differs", number);
            before = Some((snapshot, file));
        }
    }
}

#[test]
fn only_what_differs_is_read_and_holes_stay_holes() {
    let host = Host::new();
    let mut client = Client::connect(&host.server.endpoints()[0], "v").unwrap();
    client.write(1 << 20, &[1; 100_000], false).unwrap();
    host.take("one");
    client.write(5 << 20, &[2; 4096], false).unwrap();
    host.take("two");
    let full = host.export("one", None, Format::Raw, "one.raw", None, None).unwrap();
    assert_eq!((full.read, full.checked), (25 * 4096, false));
    assert!(fs::metadata(host.path("one.raw")).unwrap().blocks() * 512 <= 128 << 10);
    let more = host.export("two", Some("one"), Format::Qcow2, "two.qcow2", Some("one.raw"), None).unwrap();
    assert_eq!(more.read, CLUSTER, "the cluster around the one block");
    assert!(restored(&host, &host.path("two.qcow2")) == host.content("two"));
}

#[test]
fn what_cannot_be_exported_leaves_nothing_behind() {
    let host = Host::new();
    host.take("one");
    host.take("two");
    let left = || {
        let names = fs::read_dir(host.directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| *name != "volumes" && *name != "nbd").count()
    };
    let digest = host.digest("one");
    let other = digest.chars().rev().collect::<String>();
    let refused = host.export("one", None, Format::Qcow2, "x", None, Some(&other));
    assert!(matches!(refused, Err(ExportError::Digest { found, .. }) if found == digest));
    let refused = host.export("two", Some("one"), Format::Raw, "x", Some("volumes"), None);
    assert!(matches!(refused, Err(ExportError::RawIncrement)));
    let refused = host.export("two", Some("one"), Format::Qcow2, "x", None, None);
    assert!(matches!(refused, Err(ExportError::Extents(_))), "an increment on top of nothing");
    let refused = host.export("two", Some("one"), Format::Qcow2, "x", Some("missing"), None);
    assert!(matches!(refused, Err(ExportError::Backing { .. })));
    assert_eq!(left(), 0);

    let short = host.path("short");
    File::create(&short).unwrap().set_len(SIZE - 4096).unwrap();
    let refused = host.export("two", Some("one"), Format::Qcow2, "x", Some("short"), None);
    assert!(refused.unwrap_err().to_string().contains("after a change of size"));
    fs::write(host.path("x"), b"mine").unwrap();
    let refused = host.export("one", None, Format::Qcow2, "x", None, None);
    assert!(matches!(refused, Err(ExportError::Exists(_))));
    assert_eq!((fs::read(host.path("x")).unwrap(), left()), (b"mine".to_vec(), 2), "nothing is overwritten");

    // What an interrupted export left is no obstacle.
    fs::write(host.path("y.part"), [1; 100_000]).unwrap();
    host.export("one", None, Format::Raw, "y", None, Some(&digest)).unwrap();
    assert!(fs::read(host.path("y")).unwrap() == host.content("one"));
    assert!(!host.path("y.part").exists());
}

/// More clusters than one refcount block and one L2 table can count. Their data is holes here.
#[test]
fn large_images_are_sound() {
    let directory = tempfile::tempdir().unwrap();
    for clusters in [0, 1, 8191, 8192, 32_700, 32_768, 70_000] {
        let path = directory.path().join(format!("{clusters}.qcow2"));
        let file = File::create(&path).unwrap();
        let mut layout = Layout::new((clusters + 5) * CLUSTER, None);
        let mut pieces = Vec::new();
        for cluster in 0..clusters {
            pieces.extend(layout.data(cluster).1);
        }
        pieces.extend(layout.finish());
        for (offset, bytes) in pieces {
            file.write_all_at(&bytes, offset).unwrap();
        }
        qemu_img(&["check", "-q"], &[&path]);
    }
}
