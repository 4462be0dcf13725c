//! Restore: an empty layer on top of a snapshot takes the head's place. O(1), whatever the volume holds.
//!
//! In two steps, so that several volumes can be restored together: all that can fail for want of room, or because
//! somebody uses the volume, fails in the first one.
//!
//! # Order of writes
//!
//! 1. the new layer's files and their names, synced; the manifest does not list them yet;
//! 2. if the replaced state is to be kept, its layers, data and maps, synced;
//! 3. the manifest with the new layer as the head, the name of what it replaced, and which restore it was, at once.
//!
//! A crash before 3 leaves the volume as it was, and the new files are left-overs. Without a name, the layers that only
//! the replaced state had are dropped later, as any that nothing stands on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{error, warn};
use uuid::Uuid;

use super::layer::{Layer, data_name};
use super::request::Pin;
use super::{Core, Volume, VolumeError, at_path, check_name, lock};

/// A restore of one volume, prepared: nobody has the volume open, and nobody is let in while this lives.
///
/// Dropped before [`VolumeRestore::switch`], it leaves the volume as it was.
#[derive(Debug)]
#[must_use = "dropping it gives the restore up"]
pub struct VolumeRestore {
    volume: Arc<Volume>,
    snapshot: String,
    next: Arc<Layer>,
    switched: bool,
    /// Keeps the snapshot from being deleted.
    _pin: Pin,
}

/// Ends a structural change, and lets clients in again that it kept out.
pub(super) struct Barred<'a>(pub &'a Volume);

impl Drop for Barred<'_> {
    fn drop(&mut self) {
        self.0.core.clients.admit();
        lock(&self.0.core.structure).end_change();
        self.0.wake_merger();
    }
}

impl Volume {
    /// The last restore that was done to the volume, in this run of the program or an earlier one.
    pub fn restored(&self) -> Option<Uuid> {
        lock(&self.core.structure).manifest.restored
    }

    /// Begins to restore a snapshot: lets no client in any more and makes the layer that the restored volume goes on
    /// with. With `disconnect`, clients that are there are disconnected. `what` tells people who are refused meanwhile
    /// what the volume is busy with.
    ///
    /// # Errors
    /// If there is no such snapshot, clients are connected, a structural change is under way, or the file system
    /// fails; then nothing has changed.
    pub fn prepare_restore(
        self: &Arc<Self>,
        snapshot: &str,
        what: &str,
        disconnect: bool,
    ) -> Result<VolumeRestore, VolumeError> {
        let core = &self.core;
        let (pin, size) = {
            let mut structure = lock(&core.structure);
            let boundary = structure.boundary(&core.name, snapshot)?;
            structure.begin_change(&core.name, what, core.head().id)?;
            (structure.pin(core, snapshot), structure.manifest.size_of(boundary))
        };
        let barred = Barred(self);
        core.clients
            .bar(disconnect)
            .map_err(|clients| VolumeError::HasClients { volume: core.name.clone(), clients })?;
        let next = core.create_layer(&mut lock(&core.structure), size)?;
        std::mem::forget(barred);
        let (volume, snapshot) = (Arc::clone(self), snapshot.to_owned());
        Ok(VolumeRestore { volume, snapshot, next, switched: false, _pin: pin })
    }
}

impl VolumeRestore {
    /// The last restore that was done to the volume. There is no other one while this lives.
    pub fn restored(&self) -> Option<Uuid> {
        self.volume.restored()
    }

    /// Puts the snapshot in the live volume's place, durably, and lets clients in again. The state that it replaces
    /// becomes the snapshot `keep`, or is dropped. `restore` is what [`Volume::restored`] says from then on.
    ///
    /// # Errors
    /// If the name is taken or not allowed, or the file system fails; the volume is as it was then.
    pub fn switch(mut self, keep: Option<&str>, restore: Uuid) -> Result<(), VolumeError> {
        let core = Arc::clone(&self.volume.core);
        let head = core.head();
        if let Some(name) = keep {
            check_name(name)?;
            core.seal_chain(&head)?;
        }
        let mut structure = lock(&core.structure);
        if let Some(name) = keep.filter(|name| structure.manifest.snapshots.contains_key(*name)) {
            return Err(VolumeError::SnapshotExists { volume: core.name.clone(), snapshot: name.to_owned() });
        }
        // Now, not when it was prepared: a merge may have given its name to another layer since.
        let boundary = structure.boundary(&core.name, &self.snapshot)?;
        let next = &self.next;
        structure.update(&core.directory, |manifest| {
            manifest.resize(next.size);
            manifest.layers.insert(next.id, Some(boundary));
            manifest.head = next.id;
            manifest.restored = Some(restore);
            if let Some(name) = keep {
                manifest.name(name, head.id, restore);
            }
        })?;
        structure.layers.insert(next.id, Arc::clone(next));
        // No client is there, so no request: none is dispatched by the former state.
        core.close_gate().chain = structure.chain(next.id).into();
        core.size.store(next.size, Ordering::SeqCst);
        self.switched = true;
        Ok(())
    }
}

impl Drop for VolumeRestore {
    fn drop(&mut self) {
        let core = &self.volume.core;
        if !self.switched {
            // The manifest on disk may be the restored volume's already. Whoever wrote to this one then would lose it.
            let certain = lock(&core.structure).make_certain(&core.directory);
            if let Err(error) = certain {
                let volume = &core.name;
                error!(%volume, %error, "nobody knows whether the volume is restored: it is closed until the next start");
                return;
            }
            if let Err(error) = core.remove_layer(self.next.id) {
                warn!(volume = %core.name, %error, "an unused layer stays until the volume is opened again");
            }
        }
        drop(Barred(&self.volume));
    }
}

impl Core {
    /// Makes a layer that takes no requests any more durable, and those below it, which discarded attempts may have
    /// left unsynced.
    pub(super) fn seal_chain(&self, top: &Layer) -> Result<(), VolumeError> {
        let at_layer = |layer: &Layer| at_path(&self.directory.path().join(data_name(layer.id)));
        for below in self.chain().iter().take_while(|layer| layer.id < top.id) {
            below.sync().map_err(at_layer(below))?;
        }
        top.seal().map_err(at_layer(top))
    }
}
