//! Volumes that come into being or go: a marker tells what is half made from what lost its manifest.
//!
//! # Order of writes
//!
//! Making a volume:
//! 1. its directory with the marker, synced;
//! 2. its files, each synced, and then their names;
//! 3. the manifest, and the directory's own name, synced;
//! 4. the marker is removed.
//!
//! Deleting one:
//! 1. the manifest is renamed to the marker, synced: from here on there is no such volume;
//! 2. its files are removed, synced;
//! 3. the marker and the directory are removed.
//!
//! A directory with the marker and without a manifest is thus a left-over, and [`Volume::remove_left_overs`] removes it.
//! One without both is never touched: its manifest may have been lost, and somebody may yet rescue its files.
//!
//! Files are removed, never emptied: they may have other names in other volumes (`clone.rs`).

use std::sync::atomic::Ordering;

use tracing::{error, info, warn};

use super::manifest::{self, Manifest, is_ours};
use super::restore::Barred;
use super::storage::{Directory, StoredFile};
use super::{LOCK, Volume, VolumeError, check_name, is_name, lock, lock_directory};

/// It lies in the directory of a volume that is being made or deleted.
pub(super) const MARKER: &str = "unfinished";

/// A volume that is being made. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub directory: Directory,
    /// The lock on the directory; none once the volume is finished.
    lock: Option<Box<dyn StoredFile>>,
}

impl Unfinished {
    /// Takes an empty directory for the volume `name`; one that was left over is emptied.
    pub(super) fn begin(root: &Directory, name: &str) -> Result<Self, VolumeError> {
        check_name(name)?;
        let directory = root.child(name);
        let refuse_if_there = || match Manifest::exists(&directory) {
            true => Err(VolumeError::Exists { name: name.to_owned() }),
            false => Ok(()),
        };
        // Before the lock, which a volume that is open has; and again, as it may have come since.
        refuse_if_there()?;
        directory.make()?;
        let lock = Some(lock_directory(&directory, name)?);
        refuse_if_there()?;
        if !directory.has(MARKER) && directory.names()?.iter().any(|file| is_ours(file)) {
            return Err(VolumeError::NoManifest { path: directory.path().to_owned() });
        }
        directory.create(MARKER, 0)?;
        directory.sync()?;
        let unfinished = Unfinished { directory, lock };
        remove_files(&unfinished.directory)?;
        Ok(unfinished)
    }

    /// The volume consists of what `manifest` lists, which is durable but for the names. Returns the directory's lock.
    pub(super) fn finish(mut self, manifest: &Manifest) -> Result<Box<dyn StoredFile>, VolumeError> {
        self.directory.sync()?;
        manifest.write(&self.directory)?;
        self.directory.parent().sync()?;
        // Opening the volume removes it, too.
        if let Err(error) = self.directory.remove(MARKER) {
            warn!(%error, "the mark of an unfinished volume stays until it is opened again");
        }
        #[expect(clippy::expect_used, reason = "it is taken here only, and this consumes it")]
        Ok(self.lock.take().expect("a lock until it is finished"))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Err(error) = unmake(&self.directory)
        {
            let path = self.directory.path().display();
            warn!(%error, "{path} is left over from a volume that was not made; the next start removes it");
        }
    }
}

impl Volume {
    /// Removes what volumes left behind that were being made or deleted when the process or the machine died. To be
    /// called before any volume in `root` is opened.
    ///
    /// # Errors
    /// If `root` cannot be listed. What cannot be removed is left to the next call.
    pub(crate) fn remove_left_overs(root: &Directory) -> Result<(), VolumeError> {
        for name in root.names()?.into_iter().filter(|name| is_name(name)) {
            let directory = root.child(&name);
            if directory.has(MARKER) && !Manifest::exists(&directory) {
                info!(volume = name, "removing what is left of a volume that was being made or deleted");
                let removed = lock_directory(&directory, &name).and_then(|_locked| unmake(&directory));
                if let Err(error) = removed {
                    warn!(volume = name, %error, "it stays until the next start");
                }
            }
        }
        Ok(())
    }

    /// Deletes the volume: durable when this returns. Its space comes back as the last `Arc` of it goes, but for what
    /// clones share.
    ///
    /// # Errors
    /// If clients are connected, somebody reads a snapshot, there are snapshots and not `with_snapshots`, a structural
    /// change is under way, or the file system fails.
    pub fn delete(&self, with_snapshots: bool) -> Result<(), VolumeError> {
        let core = &self.core;
        let volume = || core.name.clone();
        {
            let mut structure = lock(&core.structure);
            structure.check_unread(&core.name)?;
            let snapshots = structure.manifest.snapshots_by_age();
            if !snapshots.is_empty() && !with_snapshots {
                let snapshots = snapshots.join(", ");
                return Err(VolumeError::HasSnapshots { volume: volume(), snapshots });
            }
            structure.begin_change(&core.name, "it is being deleted", core.head().id)?;
        }
        let barred = Barred(self);
        let connected = |clients| VolumeError::Connected { volume: volume(), clients };
        core.clients.bar(false).map_err(connected)?;
        let _no_merge = core.turns.claim();
        {
            let mut structure = lock(&core.structure);
            // Somebody may have opened one meanwhile. From here on nobody can: what this volume shares with others may
            // be merged there once it has let go, under whoever still read it.
            structure.check_unread(&core.name)?;
            core.directory.rename(manifest::FILE, MARKER)?;
            structure.manifest.snapshots.clear();
        }
        // From here on it is not there any more, or nobody knows: it stays closed.
        std::mem::forget(barred);
        core.deleted.store(true, Ordering::SeqCst);
        core.closing.store(true, Ordering::SeqCst);
        if let Err(error) = core.directory.sync() {
            error!(volume = %core.name, %error, "nobody knows whether the volume is deleted: it is closed until the next start");
            return Err(error);
        }
        if let Err(error) = unmake(&core.directory) {
            warn!(volume = %core.name, %error, "the volume is deleted; the next start removes its files");
        }
        Ok(())
    }
}

/// Removes a directory that has the marker and is locked, and a manifest that has just been written there.
fn unmake(directory: &Directory) -> Result<(), VolumeError> {
    if Manifest::exists(directory) {
        directory.rename(manifest::FILE, MARKER)?;
        directory.sync()?;
    }
    remove_files(directory)?;
    if directory.has(LOCK) {
        directory.remove(LOCK)?;
    }
    // Files without the marker would be taken for those of a volume that lost its manifest.
    directory.sync()?;
    directory.remove(MARKER)?;
    directory.remove_if_empty()?;
    directory.parent().sync()
}

/// Removes the files that a volume may consist of.
fn remove_files(directory: &Directory) -> Result<(), VolumeError> {
    let names = directory.names()?;
    names.iter().filter(|name| is_ours(name) && *name != MARKER).try_for_each(|name| directory.remove(name))
}
