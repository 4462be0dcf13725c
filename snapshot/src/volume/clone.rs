//! Clones: a new volume that begins as a snapshot of another one, in a time that does not depend on what that holds.
//!
//! The clone's directory gets hard links to the files of the snapshot's layers, a manifest of its own, and an empty head
//! on top. The layers keep their ids, which their maps carry.
//!
//! # Why neither volume changes what the other one reads
//!
//! Only two things write to a layer: requests, and the merging thread. Requests write to a volume's head, and to the
//! layer below while a cut seals it. A snapshot's layers are neither, and no request is under way in any of them when
//! they are linked. The merging thread writes into a layer that has no name, and a clone has no snapshots at first. So
//! it never writes to a file that has another name: whoever wants to merge looks at the number of names, and whoever
//! makes a new one, while they hold the same volume's [`Turns`]. A file that has one name only is listed by one volume,
//! which is the only one that could make another. Whatever a merge that was cut short has left in memory is synced
//! before the files are linked.
//!
//! Layers that are shared are not merged into, so a chain may be longer than its snapshots ask for, until the other
//! volume is deleted or has merged the layer away: removing a layer removes a name, and the space comes back with the
//! last one.
//!
//! # Order of writes
//!
//! As for any volume that is being made (`unfinished.rs`); the links are its files. They are durable before a manifest
//! lists them, and the snapshot cannot be deleted until then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::layer::{BASE, Layer, data_name, map_name};
use super::manifest::Manifest;
use super::unfinished::Unfinished;
use super::{Volume, VolumeError, at_path, lock};
use crate::sync::{Mutex, MutexGuard};

/// Keeps the merging thread and whoever links or removes a volume's files apart.
#[derive(Debug, Default)]
pub(super) struct Turns {
    writing: Mutex<()>,
    claims: AtomicUsize,
}

/// While it lives, nothing is merged.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    turns: &'a Turns,
    _writing: MutexGuard<'a, ()>,
}

impl Turns {
    /// The merging thread's turn; None while somebody else wants it.
    pub(super) fn merge(&self) -> Option<MutexGuard<'_, ()>> {
        (!self.is_claimed()).then(|| lock(&self.writing))
    }

    /// Whether a merge is to be cut short.
    pub(super) fn is_claimed(&self) -> bool {
        self.claims.load(Ordering::SeqCst) > 0
    }

    /// Waits for the end of a merge, which is cut short. Whoever claims wakes the merging thread afterwards.
    pub(super) fn claim(&self) -> Claim<'_> {
        self.claims.fetch_add(1, Ordering::SeqCst);
        Claim { turns: self, _writing: lock(&self.writing) }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.turns.claims.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Volume {
    /// Makes the volume `name` beside this one, with the content of a snapshot, and opens it.
    ///
    /// # Errors
    /// If there is no such snapshot, the name is taken or not allowed, or the file system fails; nothing has changed
    /// then.
    pub fn clone_snapshot(&self, snapshot: &str, name: &str) -> Result<Arc<Volume>, VolumeError> {
        let claim = self.core.turns.claim();
        let cloned = self.link_snapshot(snapshot, name);
        drop(claim);
        self.wake_merger();
        cloned
    }

    fn link_snapshot(&self, snapshot: &str, name: &str) -> Result<Arc<Volume>, VolumeError> {
        let core = &self.core;
        let (path, _pin) = {
            let mut structure = lock(&core.structure);
            let boundary = structure.boundary(&core.name, snapshot)?;
            (structure.chain(boundary), structure.pin(core, snapshot))
        };
        if path.iter().any(|layer| layer.is_in_use()) {
            let what = "a request from before the snapshot has not ended".to_owned();
            return Err(VolumeError::Busy { volume: core.name.clone(), what });
        }
        for layer in &path {
            layer.sync().map_err(at_path(&core.directory.path().join(data_name(layer.id))))?;
        }
        let unfinished = Unfinished::begin(&core.directory.parent(), name)?;
        let directory = unfinished.directory.clone();
        for layer in &path {
            let map = (layer.id != BASE).then(|| map_name(layer.id));
            for file in [data_name(layer.id)].into_iter().chain(map) {
                directory.link_from(&core.directory.path().join(&file), &file)?;
            }
        }
        let manifest = clone_of(&path);
        let mut layers = BTreeMap::new();
        for layer in &path {
            layers.insert(layer.id, Layer::open(&directory, layer.id, layer.size)?);
        }
        layers.insert(manifest.head, Layer::create(&directory, manifest.head, manifest.size)?);
        let locked = unfinished.finish(&manifest)?;
        Volume::start(name, directory, manifest, layers, core.clock.clone(), locked)
    }
}

/// A volume of these layers, the base first, with a new one on top.
fn clone_of(path: &[Arc<Layer>]) -> Manifest {
    let top = path.last().map_or((BASE, 0), |top| (top.id, top.size));
    let mut manifest = Manifest::new(top.1);
    let mut below = None;
    for layer in path {
        manifest.layers.insert(layer.id, below);
        manifest.set_layer_size(layer.id, layer.size);
        below = Some(layer.id);
    }
    manifest.head = top.0 + 1;
    manifest.layers.insert(manifest.head, below);
    manifest
}
