//! Volumes outside Coeval: file systems in image files on a file system that can copy them at once, and the causal workload
//! on files in them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use coeval_cli::causal::{Record, Slot, Violation, check};

use crate::filesystem::{Kind, Mounted};
use crate::tools::run;

/// The file in the volume that the workload writes.
const FILE: &str = "records";

/// How the image of a volume is snapshotted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// `cp --reflink=always` on XFS.
    XfsReflink,
    /// `cp --reflink=always` on btrfs.
    BtrfsReflink,
    /// `btrfs subvolume snapshot` of the subvolume with the image.
    BtrfsSubvolume,
}

impl Means {
    fn heading(self) -> &'static str {
        match self {
            Means::XfsReflink | Means::BtrfsReflink => "Disk images on XFS or btrfs",
            Means::BtrfsSubvolume => "Disk images in a btrfs subvolume",
        }
    }

    fn outer(self) -> Kind {
        match self {
            Means::XfsReflink => Kind::Xfs,
            Means::BtrfsReflink | Means::BtrfsSubvolume => Kind::Btrfs,
        }
    }
}

/// A configuration of `docs/backends.md`, the one below a heading, with each line as the test has its names and paths.
///
/// # Panics
/// When there is none.
pub fn documented(heading: &str, rename: impl Fn(&str) -> String) -> toml::Table {
    let page = include_str!("../../docs/backends.md");
    let section = page.split("\n### ").find(|section| section.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("docs/backends.md has no section `{heading}`"));
    let block = section.split("```").find_map(|block| block.strip_prefix("toml\n[[backend]]\n")).unwrap();
    let block: String = block.lines().map(|line| rename(line) + "\n").collect();
    toml::from_str(&block).unwrap()
}

/// A file system of kind `inner` in an image file, mounted, with another one below it that holds the image and its snapshots.
#[derive(Debug)]
pub struct ImageVolume {
    means: Means,
    inner: Kind,
    directory: PathBuf,
    // Dropped in this order: the upper one first.
    mounted: Option<Mounted>,
    _outer: Mounted,
}

impl ImageVolume {
    /// Makes one in a new directory.
    ///
    /// # Panics
    /// When that fails; it needs root.
    pub fn new(directory: &Path, means: Means, inner: Kind) -> ImageVolume {
        fs::create_dir(directory).unwrap();
        let below = directory.join("outer.img");
        File::create(&below).unwrap().set_len(600 << 20).unwrap();
        means.outer().make(&below);
        let outer = means.outer().mount(&below, &directory.join("outer"));
        let live = directory.join("outer/live");
        if means.outer() == Kind::Btrfs {
            run(Command::new("btrfs").args(["subvolume", "create"]).arg(&live));
        } else {
            fs::create_dir(&live).unwrap();
        }
        fs::create_dir(directory.join("outer/snapshots")).unwrap();
        let size = if inner == Kind::Xfs { 320 << 20 } else { 128 << 20 };
        let image = live.join("www.img");
        File::create(&image).unwrap().set_len(size).unwrap();
        inner.make(&image);
        let mounted = inner.mount(&image, &directory.join("mounted"));
        ImageVolume { means, inner, directory: directory.to_owned(), mounted: Some(mounted), _outer: outer }
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.directory.join("mounted")
    }

    fn snapshots(&self) -> PathBuf {
        self.directory.join("outer/snapshots")
    }

    /// The `[[backend]]` for it, by this name, as the documentation has it. `before` is a shell command that runs before the
    /// snapshot is taken, frozen.
    pub fn backend(&self, volume: &str, before: &str) -> toml::Table {
        let mut backend = documented(self.means.heading(), |line| {
            let (images, mount) = (self.directory.join("outer"), self.mount_point());
            line.replace("/images", images.to_str().unwrap()).replace("/srv/www", mount.to_str().unwrap())
        });
        backend["volume"] = volume.into();
        if !before.is_empty() {
            let take = backend["snapshot"].as_array().unwrap().iter().map(|word| word.as_str().unwrap());
            let take = format!("{before}\n{}", take.collect::<Vec<_>>().join(" "));
            backend["snapshot"] = toml::Value::from(vec!["sh", "-ec", &take]);
        }
        backend
    }

    /// The same as text, for a host's configuration.
    pub fn config(&self, volume: &str, before: &str) -> String {
        format!("[[backend]]\n{}", self.backend(volume, before))
    }

    /// Makes the file in it that [`ImageVolume::image`] reads.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make_records(&self, tokens: usize) -> PathBuf {
        open(&self.mount_point(), tokens);
        self.mount_point().join(FILE)
    }

    /// What is in a snapshot's file of the workload. It is checked that the file system in it is sound.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn image(&self, snapshot: &str, tokens: usize) -> Vec<u8> {
        let path = self.snapshots().join(snapshot);
        let path = if self.means == Means::BtrfsSubvolume { path.join("www.img") } else { path };
        // A snapshot is not to be changed, and mounting replays a journal.
        let copy = self.directory.join("copy.img");
        run(Command::new("cp").arg("--sparse=always").arg(path).arg(&copy));
        let mounted = self.inner.mount(&copy, &self.directory.join("copy"));
        let image = read(&File::open(mounted.at.join(FILE)).unwrap(), tokens);
        mounted.unmount();
        self.inner.check(&copy);
        fs::remove_file(&copy).unwrap();
        image
    }

    /// The snapshots that its storage has.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.snapshots())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Writes to a small file, which lasts.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn note(&self, text: &str) {
        fs::write(self.mount_point().join("note"), text).unwrap();
    }

    /// What was written there.
    ///
    /// # Panics
    /// When there is nothing.
    pub fn noted(&self) -> String {
        fs::read_to_string(self.mount_point().join("note")).unwrap()
    }

    /// Writes something to it, on a thread: that ends as soon as it is not frozen.
    pub fn write_aside(&self) -> JoinHandle<()> {
        let path = self.mount_point().join("probe");
        std::thread::spawn(move || fs::write(path, "written").unwrap())
    }
}

/// A volume whose storage executes no writes. It does again when this is dropped.
#[derive(Debug)]
pub struct HeldUp(PathBuf);

impl ImageVolume {
    /// Holds up whatever is written to the volume's storage from now on, so that freezing the volume does not end.
    ///
    /// # Panics
    /// When that fails.
    pub fn hold_up(&self) -> HeldUp {
        let outer = self.directory.join("outer");
        run(Command::new("fsfreeze").arg("-f").arg(&outer));
        HeldUp(outer)
    }
}

/// Whether a process waits in the kernel for a file system to be frozen.
pub fn is_freezing(process: u32) -> bool {
    const FIFREEZE: &str = "0xc0045877";
    fs::read_to_string(format!("/proc/{process}/syscall")).is_ok_and(|call| call.contains(FIFREEZE))
}

impl Drop for HeldUp {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
    }
}

impl Drop for ImageVolume {
    fn drop(&mut self) {
        // Whatever a test that failed left frozen could not be unmounted.
        let _ = Command::new("fsfreeze").arg("-u").arg(self.mount_point()).output();
        self.mounted.take();
    }
}

/// Opens the workload's file in a volume, and makes it as long as it has to be.
fn open(volume: &Path, tokens: usize) -> File {
    let path = volume.join(FILE);
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path).unwrap();
    file.set_len(Slot::region(tokens) as u64).unwrap();
    file
}

fn read(file: &File, tokens: usize) -> Vec<u8> {
    let mut image = vec![0; Slot::region(tokens)];
    file.read_exact_at(&mut image, 0).unwrap();
    image
}

/// The causal workload (`coeval_cli::causal`) on files; stops when dropped.
#[derive(Debug)]
pub struct FileWorkload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    writes: AtomicU64,
}

impl FileWorkload {
    /// Starts so many tokens over one mounted volume per host.
    ///
    /// # Panics
    /// When a file cannot be opened.
    pub fn start(volumes: &[PathBuf], tokens: usize, rest: Duration) -> FileWorkload {
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), writes: AtomicU64::new(0) });
        let files: Arc<Vec<File>> = Arc::new(volumes.iter().map(|volume| open(volume, tokens)).collect());
        let threads = (0..tokens).map(|token| {
            let (shared, files) = (Arc::clone(&shared), Arc::clone(&files));
            std::thread::spawn(move || {
                let mut record = Record { token, host: token % files.len(), written: vec![0; files.len()] };
                while !shared.stop.load(Ordering::Relaxed) {
                    record.host = (record.host + 1) % files.len();
                    record.written[record.host] += 1;
                    // Acknowledged when it returns. A freeze holds it up.
                    files[record.host].write_all_at(&record.encode(), Slot::of(token).offset as u64).unwrap();
                    shared.writes.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(rest);
                }
            })
        });
        let threads = threads.collect();
        FileWorkload { shared, threads }
    }

    /// Writes acknowledged so far.
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }
}

impl Drop for FileWorkload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Checks that the volumes' snapshots of this name, one per host, are a consistent cut.
pub fn violations(volumes: &[&ImageVolume], snapshot: &str, tokens: usize) -> Vec<Violation> {
    let images: Vec<Vec<u8>> = volumes.iter().map(|volume| volume.image(snapshot, tokens)).collect();
    check(&images, tokens)
}
