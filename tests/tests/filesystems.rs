//! ext4 and XFS on a volume, written to while snapshots are taken: each snapshot, copied out, is a sound file system
//! after its journal was replayed, with every file in it that was durable before.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use harness::eventually;
use harness::filesystem::{Attached, Kind, with_own_mounts};
use harness::tools::{ask, one_host, run, stop_all};

const SNAPSHOTS: u32 = 5;

#[test]
fn every_snapshot_of_ext4_is_sound_and_has_what_was_durable() {
    with_own_mounts(|| every_snapshot_is_sound(Kind::Ext4));
}

#[test]
fn every_snapshot_of_xfs_is_sound_and_has_what_was_durable() {
    with_own_mounts(|| every_snapshot_is_sound(Kind::Xfs));
}

fn every_snapshot_is_sound(kind: Kind) {
    let cluster = one_host(&[]);
    // XFS takes no less than 300 MiB.
    ask(&cluster, &["volume", "create", "a/data", "320MiB"]);
    let socket = &cluster.hosts[0].nbd_socket;
    let files = tempfile::tempdir().unwrap();
    let [disk, image, live, restored] =
        ["disk", "image", "live", "restored"].map(|name| files.path().join(name));
    let disk = Attached::new(socket, "data", &disk);
    kind.make(&disk.file);
    let live = kind.mount(&disk.file, &live);
    let writer = Writer::start(&live.at);
    for number in 0..SNAPSHOTS {
        writer.assert_goes_on();
        let name = format!("s{number}");
        let durable = writer.durable();
        assert_eq!(ask(&cluster, &["snapshot", "create", &name])["verdict"], "consistent");
        let begun = writer.begun();
        run(Command::new("nbdcopy")
            .arg(format!("nbd+unix:///data@{name}?socket={}", socket.display()))
            .arg(&image));
        let restored = kind.mount(&image, &restored);
        assert_sound(&restored.at, durable, begun);
        restored.unmount();
        kind.check(&image);
        std::fs::remove_file(&image).unwrap();
    }
    writer.stop();
    live.unmount();
    kind.check(&disk.file);
    drop(disk);
    stop_all(cluster);
}

/// So many files stay; older ones are deleted.
const KEPT: u64 = 100;

/// Makes files 1, 2, 3 and so on durable, each before the next, and then notes each in a log.
struct Writer {
    shared: Arc<Shared>,
    thread: JoinHandle<std::io::Result<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    begun: AtomicU64,
    durable: AtomicU64,
}

impl Writer {
    fn start(directory: &Path) -> Writer {
        let shared = Arc::new(Shared::default());
        let (ours, directory) = (Arc::clone(&shared), directory.to_owned());
        let thread = std::thread::spawn(move || ours.write_files(&directory));
        Writer { shared, thread }
    }

    /// The last file that has been begun.
    fn begun(&self) -> u64 {
        self.shared.begun.load(Ordering::SeqCst)
    }

    /// The last file that is durable, as those before it are.
    fn durable(&self) -> u64 {
        self.shared.durable.load(Ordering::SeqCst)
    }

    /// Waits until more files are durable than now.
    fn assert_goes_on(&self) {
        let before = self.durable();
        eventually(|| {
            assert!(!self.thread.is_finished(), "the writer met an error");
            let now = self.durable();
            if now >= before + 20 { Ok(()) } else { Err(format!("from {before} files to {now}")) }
        });
    }

    fn stop(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap().unwrap();
    }
}

impl Shared {
    fn write_files(&self, directory: &Path) -> std::io::Result<()> {
        let entries = File::open(directory)?;
        let mut log = File::create(directory.join("log"))?;
        for number in 1.. {
            if self.stop.load(Ordering::SeqCst) {
                break;
            }
            self.begun.store(number, Ordering::SeqCst);
            let draft = directory.join("draft");
            let mut file = File::create(&draft)?;
            file.write_all(&content(number))?;
            file.sync_all()?;
            std::fs::rename(draft, path(directory, number))?;
            log.write_all(&number.to_le_bytes())?;
            log.sync_all()?;
            entries.sync_all()?;
            self.durable.store(number, Ordering::SeqCst);
            if number > KEPT {
                std::fs::remove_file(path(directory, number - KEPT))?;
            }
        }
        Ok(())
    }
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("file{number}"))
}

/// Up to some 40 kB, in each file another.
fn content(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + number as usize * 997 % 5000)
}

/// Checks what the writer wrote, of which some file between `durable` and `begun` was the last.
fn assert_sound(directory: &Path, durable: u64, begun: u64) {
    let log = std::fs::read(directory.join("log")).unwrap();
    let noted: Vec<u64> = log.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number)).collect();
    assert!(noted.iter().copied().eq(1..=noted.len() as u64), "the log is out of order: {noted:?}");
    let last = noted.len() as u64;
    assert!(
        (durable..=begun).contains(&last),
        "{last} files in the log, {durable} durable and {begun} begun"
    );
    for number in 1..=begun + 1 {
        match std::fs::read(path(directory, number)) {
            Ok(found) => {
                assert!(number <= begun, "file {number} is from the future");
                assert!(found == content(number), "file {number} holds something else");
            }
            Err(_) => {
                assert!(number > durable || number + KEPT <= begun, "file {number} of {durable} is lost")
            }
        }
    }
}
