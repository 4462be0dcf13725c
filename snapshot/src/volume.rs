//! The built-in volume: a raw base image plus redirect-on-write layers in a directory of its own.
//!
//! A snapshot is the boundary above a layer: the content of the layers up to it, which no request changes any more. A
//! cut puts an empty layer on top; requests before it go below the boundary, requests after it above. Deleting a
//! snapshot drops its name; a background thread then merges the layer above the boundary into the one below.
//!
//! | file | holds |
//! | --- | --- |
//! | `volume.json` | what belongs to the volume (`manifest.rs`) |
//! | `000000.raw` | the base, a plain raw image |
//! | `NNNNNN.dat`, `NNNNNN.map` | a layer's blocks, and which of them count (`layer.rs`, `page.rs`) |
//! | `NNNNNN.log` | which of them count since the last sync (`unflushed.rs`) |
//! | `lock` | locked by the process that has the volume open |
//! | `unfinished` | it is being made or deleted (`unfinished.rs`) |
//!
//! After a crash at any point, everything is there that a FLUSH or a FUA write was answered for, and every snapshot
//! reads as before. If only the process died, every write is there that was answered. The order of writes that this rests
//! on stands in `manifest.rs`, `layer.rs`, `unflushed.rs`, `merge.rs`, `restore.rs`, `resize.rs`, `clone.rs` and
//! `unfinished.rs`; `tests/crash.rs` tries it at every point. A restore makes layers part: they are a tree, and the live
//! volume is the path from the base to the head.

mod chain;
mod check;
mod clients;
mod clone;
mod damaged;
mod digest;
mod extents;
mod flush;
mod import;
mod layer;
mod manifest;
mod map;
#[cfg(any(test, feature = "simulation"))]
#[cfg_attr(not(test), expect(dead_code, reason = "the simulator asks for less than the tests do"))]
mod memory;
mod merge;
mod pace;
mod page;
mod ranges;
mod records;
mod request;
mod resize;
mod restore;
#[cfg(feature = "simulation")]
pub mod simulated;
mod status;
mod storage;
mod structure;
mod unfinished;
mod unflushed;
mod usage;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use timesync::clock::HostClock;
use tracing::warn;

pub use self::check::{CheckReport, Finding};
pub use self::extents::SnapshotExtents;
pub use self::import::Image;
pub use self::restore::VolumeRestore;
pub use self::structure::{Gate, VolumeCut};

use self::clients::Clients;
use self::clone::Turns;
pub(crate) use self::damaged::Damaged;
use self::digest::Leaves;
use self::flush::Flushes;
use self::layer::{BASE, Layer};
use self::manifest::Manifest;
use self::pace::Pace;
use self::ranges::RangeLock;
pub(crate) use self::records::Records;
use self::request::{Client, Dispatch, SnapshotDevice};
pub(crate) use self::storage::Directory;
use self::storage::StoredFile;
use self::structure::Structure;
use self::unfinished::Unfinished;
use crate::device::Device;
use crate::orders::VolumeDescription;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, MutexGuard, RwLock, mpsc};

/// The file that the process locks that has a volume open.
const LOCK: &str = "lock";

/// Bytes in a block, the unit of the layers.
const BLOCK: u64 = 4096;

/// A volume that this process has open.
#[derive(Debug)]
pub struct Volume {
    core: Arc<Core>,
    /// Tells the merging thread that there may be work; dropped to end it.
    merges: Option<mpsc::Sender<()>>,
    merger: Option<JoinHandle<()>>,
}

/// What the volume's devices, cuts and merging thread share.
#[derive(Debug)]
struct Core {
    name: String,
    directory: Directory,
    /// The live volume's, in bytes. It grows after the chain does; while it shrinks, there is no client.
    size: AtomicU64,
    clock: HostClock,
    /// How requests are dispatched. Read only for the dispatch itself, never during I/O, so that it is free again at
    /// once. Never waited for as a writer: that would stall new readers behind one that was descheduled.
    gate: RwLock<Dispatch>,
    ranges: RangeLock,
    flushes: Flushes,
    /// Locked before `gate`, never the other way round.
    structure: Mutex<Structure>,
    clients: Clients,
    turns: Turns,
    pace: Pace,
    leaves: Mutex<Option<Leaves>>,
    closing: AtomicBool,
    /// There is no manifest any more: what is left is not worth a sync.
    deleted: AtomicBool,
    /// The lock on the volume's directory.
    _lock: Box<dyn StoredFile>,
}

impl Volume {
    /// Makes a volume of `size` bytes of zeros in `root`, and opens it.
    ///
    /// # Errors
    /// If there is a volume of that name, name or size are not allowed, or the file system fails.
    pub fn create(root: &Path, name: &str, size: u64, clock: HostClock) -> Result<Arc<Self>, VolumeError> {
        Volume::create_in(&Directory::on_disk(root), name, size, clock)
    }

    pub(crate) fn create_in(
        root: &Directory,
        name: &str,
        size: u64,
        clock: HostClock,
    ) -> Result<Arc<Self>, VolumeError> {
        resize::check_size(size)?;
        let unfinished = Unfinished::begin(root, name)?;
        let directory = unfinished.directory.clone();
        let base = Layer::create(&directory, BASE, size)?;
        let manifest = Manifest::new(size);
        let locked = unfinished.finish(&manifest)?;
        Volume::start(name, directory, manifest, BTreeMap::from([(BASE, base)]), clock, locked)
    }

    /// Opens the volume `name` in `root`, and removes what a crash left behind.
    ///
    /// # Errors
    /// If there is no such volume, another process has it open, its files are corrupt, or the file system fails.
    pub fn open(root: &Path, name: &str, clock: HostClock) -> Result<Arc<Self>, VolumeError> {
        Volume::open_in(&Directory::on_disk(root), name, clock)
    }

    pub(crate) fn open_in(root: &Directory, name: &str, clock: HostClock) -> Result<Arc<Self>, VolumeError> {
        check_name(name)?;
        let directory = root.child(name);
        if !Manifest::exists(&directory) {
            return Err(VolumeError::Missing { name: name.to_owned() });
        }
        let locked = lock_directory(&directory, name)?;
        let manifest = Manifest::read(&directory)?;
        let open = |&id: &u32| Ok((id, Layer::open(&directory, id, manifest.size_of(id))?));
        let layers = manifest.layers.keys().map(open).collect::<Result<BTreeMap<_, _>, VolumeError>>()?;
        if let Some(head) = layers.get(&manifest.head) {
            head.begin_recording(&directory)?;
        }
        // Whoever wrote the manifest may have been killed before its name was durable, and the volume's own: until they
        // are, nothing that an older manifest may list is removed, and nothing is promised to anybody.
        directory.sync()?;
        root.sync()?;
        manifest.remove_strays(&directory)?;
        let volume = Volume::start(name, directory, manifest, layers, clock, locked)?;
        lock(&volume.core.structure).layers.values().for_each(|layer| volume.core.trim(layer));
        volume.wake_merger();
        Ok(volume)
    }

    fn start(
        name: &str,
        directory: Directory,
        manifest: Manifest,
        layers: BTreeMap<u32, Arc<Layer>>,
        clock: HostClock,
        lock: Box<dyn StoredFile>,
    ) -> Result<Arc<Self>, VolumeError> {
        let structure = Structure::new(manifest, layers);
        let core = Arc::new(Core {
            name: name.to_owned(),
            directory,
            size: AtomicU64::new(structure.manifest.size),
            clock,
            gate: RwLock::new(Dispatch::new(structure.chain(structure.manifest.head))),
            ranges: RangeLock::default(),
            flushes: Flushes::default(),
            structure: Mutex::new(structure),
            clients: Clients::default(),
            turns: Turns::default(),
            pace: Pace::default(),
            leaves: Mutex::default(),
            closing: AtomicBool::new(false),
            deleted: AtomicBool::new(false),
            _lock: lock,
        });
        let (merges, wake) = mpsc::channel();
        let merging = Arc::clone(&core);
        let merger = thread::spawn(format!("merge {name}"), move || merging.merge_when_woken(&wake))
            .map_err(at_path(core.directory.path()))?;
        Ok(Arc::new(Volume { core, merges: Some(merges), merger: Some(merger) }))
    }

    /// The volumes in `root`, sorted.
    ///
    /// # Errors
    /// If `root` cannot be listed.
    pub fn names(root: &Path) -> Result<Vec<String>, VolumeError> {
        Volume::names_in(&Directory::on_disk(root))
    }

    pub(crate) fn names_in(root: &Directory) -> Result<Vec<String>, VolumeError> {
        let mut names = root.names()?;
        names.retain(|name| is_name(name) && Manifest::exists(&root.child(name)));
        names.sort();
        Ok(names)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Size, snapshots, layers, space and clients at present.
    pub fn describe(&self) -> VolumeDescription {
        let structure = lock(&self.core.structure);
        let snapshots = structure.manifest.snapshots_by_age();
        let read = structure.pins.iter().filter(|(_, readers)| **readers > 0);
        let in_use = read.map(|(snapshot, _)| snapshot.clone()).collect();
        let layers: Vec<_> = structure.layers.values().cloned().collect();
        // The one that a cut has prepared is not in use yet.
        let prepared = usize::from(structure.manifest.head != self.core.head().id);
        drop(structure);
        VolumeDescription {
            name: self.core.name.clone(),
            size: self.core.size(),
            snapshots,
            in_use,
            layers: layers.len() - prepared,
            allocated: layers.iter().map(|layer| layer.allocated()).sum(),
            clients: self.core.clients.count(),
            external: None,
        }
    }

    /// The live volume, for one client: it counts as one while the device lives. None while it is being restored.
    pub fn attach(self: &Arc<Self>) -> Option<Arc<dyn Device>> {
        Some(Arc::new(Client::new(Arc::clone(self))?))
    }

    /// A snapshot, read-only. It cannot be deleted while the device lives.
    ///
    /// # Errors
    /// If there is no such snapshot.
    pub fn snapshot_device(self: &Arc<Self>, name: &str) -> Result<Arc<dyn Device>, VolumeError> {
        Ok(Arc::new(self.pin(name)?))
    }

    fn pin(&self, name: &str) -> Result<SnapshotDevice, VolumeError> {
        let mut structure = lock(&self.core.structure);
        let boundary = structure.boundary(&self.core.name, name)?;
        let (layers, size) = (structure.chain(boundary), structure.manifest.size_of(boundary));
        Ok(SnapshotDevice { layers, size, pin: Some(structure.pin(&self.core, name)) })
    }

    /// Looks anew for layers to merge: another volume may have let go of what it shared.
    pub fn tidy(&self) {
        self.wake_merger();
    }

    /// Limits what its background work (merging layers, digests) reads: bytes per second, above 0. Default 256 MiB.
    pub fn set_merge_rate(&self, bytes_per_second: u64) {
        self.core.pace.set_rate(bytes_per_second);
    }

    fn wake_merger(&self) {
        if let Some(merges) = &self.merges {
            // Fails only if the thread is gone, and then there is nobody to wake.
            let _ = merges.send(());
        }
    }
}

impl Core {
    /// The live volume's size in bytes.
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.core.closing.store(true, Ordering::SeqCst);
        self.merges = None;
        if let Some(merger) = self.merger.take()
            && merger.join().is_err()
        {
            warn!(volume = %self.core.name, "the merging thread had panicked");
        }
        if self.core.deleted.load(Ordering::SeqCst) {
            return;
        }
        // A volume that is closed in good order keeps all its writes, flushed or not.
        let synced = self.core.sync().and_then(|()| {
            // And from here on one copy of each page of its maps may decay.
            self.core.head().seal().map_err(crate::device::DeviceError::from)
        });
        if let Err(error) = synced {
            warn!(volume = %self.core.name, %error, "closing without having made the last writes durable");
        }
    }
}

/// Locks a mutex whose content stays sound if somebody panics while holding it: each change under it is one step, or
/// is undone by a guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock_directory(directory: &Directory, name: &str) -> Result<Box<dyn StoredFile>, VolumeError> {
    directory.lock(LOCK)?.ok_or_else(|| VolumeError::Open { name: name.to_owned() })
}

/// Whether a volume or a snapshot may be called so: names are part of paths and of export names (`volume@snapshot`).
pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(allowed)
}

fn check_name(name: &str) -> Result<(), VolumeError> {
    if is_name(name) { Ok(()) } else { Err(VolumeError::Name { name: name.to_owned() }) }
}

/// Says at which path an I/O error happened.
fn at_path(path: &Path) -> impl FnOnce(io::Error) -> VolumeError + use<> {
    let path = path.to_owned();
    move |source| VolumeError::Io { path, source }
}

/// Why something could not be done to a volume as a whole.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A name that is not allowed.
    #[error(
        "{name:?} is no name for a volume or snapshot: use letters, digits, '-', '_' and '.', at most 64, the first a letter or digit"
    )]
    Name {
        /// As given.
        name: String,
    },
    /// A size that is not allowed.
    #[error("a volume cannot have {size} bytes: choose a positive multiple of 4096")]
    Size {
        /// As given.
        size: u64,
    },
    /// The name is taken.
    #[error("there is a volume {name} already")]
    Exists {
        /// The volume.
        name: String,
    },
    /// Nothing to open.
    #[error("there is no volume {name}")]
    Missing {
        /// The volume.
        name: String,
    },
    /// Only one process may have it open.
    #[error("volume {name} is open in another process")]
    Open {
        /// The volume.
        name: String,
    },
    /// Files of a volume, and nothing that says which of them count.
    #[error("{} holds files of a volume and no volume.json: move the directory away, or put the file back", path.display())]
    NoManifest {
        /// The directory.
        path: PathBuf,
    },
    /// An image that does not become a volume.
    #[error("{} cannot be imported: {why}", path.display())]
    Import {
        /// The image.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Data would be lost.
    #[error(
        "volume {volume} has {now} bytes; what lies beyond {size} would be gone: use --shrink if that is what you want"
    )]
    WouldShrink {
        /// The volume.
        volume: String,
        /// As given.
        size: u64,
        /// Its size at present.
        now: u64,
    },
    /// Somebody uses it.
    #[error("volume {volume} has {clients} clients connected: disconnect them first")]
    Connected {
        /// The volume.
        volume: String,
        /// How many.
        clients: usize,
    },
    /// They would go with it.
    #[error(
        "volume {volume} has snapshots ({snapshots}): delete them first, or use --with-snapshots to delete them too"
    )]
    HasSnapshots {
        /// The volume.
        volume: String,
        /// Their names.
        snapshots: String,
    },
    /// One structural change at a time.
    #[error("volume {volume} is busy: {what}")]
    Busy {
        /// The volume.
        volume: String,
        /// The change under way.
        what: String,
    },
    /// Nothing to read or delete.
    #[error("volume {volume} has no snapshot {snapshot}")]
    NoSnapshot {
        /// The volume.
        volume: String,
        /// As given.
        snapshot: String,
    },
    /// The name is taken.
    #[error("volume {volume} has a snapshot {snapshot} already")]
    SnapshotExists {
        /// The volume.
        volume: String,
        /// As given.
        snapshot: String,
    },
    /// Somebody reads it.
    #[error("snapshot {snapshot} of volume {volume} is in use: disconnect its clients first")]
    SnapshotInUse {
        /// The volume.
        volume: String,
        /// The snapshot.
        snapshot: String,
    },
    /// Restoring would change what they have open.
    #[error(
        "volume {volume} has {clients} clients connected: disconnect them first, or let the restore do it with --disconnect"
    )]
    HasClients {
        /// The volume.
        volume: String,
        /// How many.
        clients: usize,
    },
    /// Its snapshots hold as much as they may.
    #[error(
        "the snapshots of volume {volume} hold {held} bytes, and its quota is {quota}: delete some, or raise it with \
         `coeval volume quota`"
    )]
    QuotaFull {
        /// The volume.
        volume: String,
        /// What they hold, in bytes.
        held: u64,
        /// What they may hold, in bytes.
        quota: u64,
    },
    /// The caller's deadline passed first.
    #[error("volume {volume} could not be {what} in time")]
    GaveUp {
        /// The volume.
        volume: String,
        /// What was not done.
        what: &'static str,
    },
    /// A cut is sealed once its requests have finished, and named once it is sealed.
    #[error("the cut of volume {volume} cannot be {what}: the step before it is missing")]
    OutOfOrder {
        /// The volume.
        volume: String,
        /// The step that was asked for.
        what: &'static str,
    },
    /// A later version of this program wrote it.
    #[error(
        "{} has format {version}, and this coeval reads up to {read}: a later one wrote it, so upgrade this host",
        file.display()
    )]
    Later {
        /// The file.
        file: PathBuf,
        /// Its format's version.
        version: u64,
        /// The last one that is known here.
        read: u64,
    },
    /// What is on disk is not what was written.
    #[error("{} is corrupt at byte {offset}: {why}", file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
