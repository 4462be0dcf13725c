//! Changes of a volume's structure: cuts, and deleting snapshots. One at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tracing::warn;

use super::layer::{BASE, Layer};
use super::manifest::Manifest;
use super::request::{Armed, Dispatch, Pin};
use super::storage::Directory;
use super::{Core, Volume, VolumeError, check_name, lock};
use crate::cut::{Cause, Cut};
use crate::orders::AttemptId;
use crate::sync::{RwLockWriteGuard, thread};

/// What belongs to the volume, and who changes it.
#[derive(Debug)]
pub(super) struct Structure {
    /// As on disk.
    pub manifest: Manifest,
    /// The layers that it lists, open.
    pub layers: BTreeMap<u32, Arc<Layer>>,
    /// No layer of this run of the program has this id or a greater one, not even one that came to nothing: what the
    /// disk lists after a failed change of the manifest nobody knows.
    next_id: u32,
    /// Whether the manifest on disk may be another: a write of it failed.
    uncertain: bool,
    under_way: Option<UnderWay>,
    /// How many readers each snapshot has.
    pub pins: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct UnderWay {
    /// For people.
    what: String,
    /// The layer being sealed.
    sealing: u32,
}

impl Structure {
    pub(super) fn new(manifest: Manifest, layers: BTreeMap<u32, Arc<Layer>>) -> Self {
        let next_id = layers.keys().last().map_or(BASE, |last| last + 1);
        Structure { manifest, layers, next_id, uncertain: false, under_way: None, pins: BTreeMap::new() }
    }

    /// A layer and those below it, the base first.
    pub(super) fn chain(&self, layer: u32) -> Vec<Arc<Layer>> {
        self.manifest.chain(&self.layers, layer)
    }

    /// Changes the manifest, on disk first.
    pub(super) fn update(
        &mut self,
        directory: &Directory,
        change: impl FnOnce(&mut Manifest),
    ) -> Result<(), VolumeError> {
        let mut manifest = self.manifest.clone();
        change(&mut manifest);
        manifest.sizes.retain(|layer, _| manifest.layers.contains_key(layer));
        // If it fails, either may be on disk.
        self.uncertain = true;
        manifest.write(directory)?;
        self.uncertain = false;
        self.manifest = manifest;
        Ok(())
    }

    /// Makes the manifest on disk the right one again, if it may be another. A layer that an unwanted manifest names must
    /// not be changed before, and the live volume of an unwanted one must not be left to its clients.
    pub(super) fn make_certain(&mut self, directory: &Directory) -> Result<(), VolumeError> {
        if self.uncertain { self.update(directory, |_| {}) } else { Ok(()) }
    }

    /// Whether the manifest could not be written, and has to be.
    pub(super) fn is_uncertain(&self) -> bool {
        self.uncertain
    }

    /// Begins a structural change, if none is under way. `sealing`: the layer that it may name.
    pub(super) fn begin_change(&mut self, volume: &str, what: &str, sealing: u32) -> Result<(), VolumeError> {
        self.refuse_if_busy(volume)?;
        self.under_way = Some(UnderWay { what: what.to_owned(), sealing });
        Ok(())
    }

    pub(super) fn end_change(&mut self) {
        self.under_way = None;
    }

    /// Keeps a snapshot from being deleted while the pin lives.
    pub(super) fn pin(&mut self, core: &Arc<Core>, snapshot: &str) -> Pin {
        *self.pins.entry(snapshot.to_owned()).or_default() += 1;
        Pin::new(core, snapshot)
    }

    /// Fails if somebody reads a snapshot.
    pub(super) fn check_unread(&self, volume: &str) -> Result<(), VolumeError> {
        match self.pins.iter().find(|(_, readers)| **readers > 0) {
            None => Ok(()),
            Some((snapshot, _)) => {
                Err(VolumeError::SnapshotInUse { volume: volume.to_owned(), snapshot: snapshot.clone() })
            }
        }
    }

    /// The layer that a snapshot's content ends with.
    pub(super) fn boundary(&self, volume: &str, snapshot: &str) -> Result<u32, VolumeError> {
        self.manifest.snapshots.get(snapshot).map(|boundary| boundary.layer).ok_or_else(|| {
            VolumeError::NoSnapshot { volume: volume.to_owned(), snapshot: snapshot.to_owned() }
        })
    }

    /// Whether the change under way may yet name this layer's boundary.
    pub(super) fn may_name(&self, layer: u32) -> bool {
        self.under_way.as_ref().is_some_and(|change| change.sealing == layer)
    }

    fn refuse_if_busy(&self, volume: &str) -> Result<(), VolumeError> {
        match &self.under_way {
            None => Ok(()),
            Some(change) => Err(VolumeError::Busy { volume: volume.to_owned(), what: change.what.clone() }),
        }
    }
}

impl Core {
    pub(super) fn head(&self) -> Arc<Layer> {
        let chain = self.chain();
        Arc::clone(&chain[chain.len() - 1])
    }

    /// Makes an empty layer, files only. The manifest may list it then.
    pub(super) fn create_layer(
        &self,
        structure: &mut Structure,
        size: u64,
    ) -> Result<Arc<Layer>, VolumeError> {
        let id = structure.next_id;
        structure.next_id += 1;
        let layer = Layer::create(&self.directory, id, size)?;
        self.directory.sync()?;
        Ok(layer)
    }

    /// Makes the layer that comes next, in files and in the manifest, and gives the volume its size. Empty and of the
    /// same size, it changes nothing there.
    pub(super) fn add_layer(&self, structure: &mut Structure, size: u64) -> Result<Arc<Layer>, VolumeError> {
        let below = self.head().id;
        let layer = self.create_layer(structure, size)?;
        structure.update(&self.directory, |manifest| {
            manifest.resize(size);
            manifest.layers.insert(layer.id, Some(below));
            manifest.head = layer.id;
        })?;
        structure.layers.insert(layer.id, Arc::clone(&layer));
        Ok(layer)
    }

    /// Makes `next` the head. When this returns, no thread can dispatch by the former state. False if the caller gave
    /// up; then nothing has changed.
    pub(super) fn push(
        &self,
        next: Arc<Layer>,
        armed: Option<Armed>,
        give_up: &mut dyn FnMut() -> bool,
    ) -> bool {
        let Some(mut dispatch) = self.close_gate_unless(give_up) else { return false };
        dispatch.chain = dispatch.chain.iter().cloned().chain([next]).collect();
        dispatch.armed = armed;
        true
    }
}

impl Volume {
    /// Begins a cut: makes the next layer, which no request sees yet. `what` tells people who are refused meanwhile
    /// what the volume is busy with.
    ///
    /// # Errors
    /// If a structural change is under way, or the file system fails; then nothing has changed.
    pub fn prepare(self: &Arc<Self>, what: &str) -> Result<VolumeCut, VolumeError> {
        let core = &self.core;
        core.check_quota()?;
        let mut structure = lock(&core.structure);
        structure.refuse_if_busy(&core.name)?;
        let sealing = core.head();
        let next = core.add_layer(&mut structure, core.size())?;
        structure.begin_change(&core.name, what, sealing.id)?;
        let stage = AtomicU8::new(Stage::Prepared as u8);
        Ok(VolumeCut { volume: Arc::clone(self), sealing, next, stage })
    }

    /// The snapshot that an attempt named here, if it did, in this run of the program or an earlier one.
    pub fn named_by(&self, attempt: AttemptId) -> Option<String> {
        let structure = lock(&self.core.structure);
        let mut named =
            structure.manifest.snapshots.iter().filter(|(_, boundary)| boundary.attempt == attempt);
        named.next().map(|(name, _)| name.clone())
    }

    /// The mistake that another run of the program can finish a cut.
    #[cfg(feature = "simulation")]
    pub(crate) fn name_below_head(&self, name: &str, attempt: AttemptId) -> Result<(), VolumeError> {
        let core = &self.core;
        let mut structure = lock(&core.structure);
        let path = structure.manifest.path(structure.manifest.head);
        let Some(&below) = path.iter().rev().nth(1) else { return Ok(()) };
        structure.update(&core.directory, |manifest| manifest.name(name, below, attempt))
    }

    /// Deletes a snapshot: durable when this returns. Its space comes back as the merging thread gets to it.
    ///
    /// # Errors
    /// If there is no such snapshot, somebody reads it, a structural change is under way, or the file system fails.
    pub fn delete_snapshot(self: &Arc<Self>, name: &str) -> Result<(), VolumeError> {
        let core = &self.core;
        // Locked to the end: that is what makes this one structural change.
        let mut structure = lock(&core.structure);
        structure.refuse_if_busy(&core.name)?;
        let boundary = structure.boundary(&core.name, name)?;
        if structure.pins.get(name).is_some_and(|&pins| pins > 0) {
            return Err(VolumeError::SnapshotInUse { volume: core.name.clone(), snapshot: name.to_owned() });
        }
        let chain = core.chain();
        let newest = chain.len() >= 2 && chain[chain.len() - 2].id == boundary;
        if newest && structure.manifest.standing_on(boundary).len() == 1 {
            // The layer above takes requests, and only one that takes none can be merged: a fresh one takes over.
            // Before the name is dropped, so that a failure here leaves the snapshot as it was.
            let next = core.add_layer(&mut structure, core.size())?;
            core.push(next, None, &mut || false);
        }
        structure.update(&core.directory, |manifest| {
            manifest.snapshots.remove(name);
        })?;
        structure.pins.remove(name);
        drop(structure);
        self.wake_merger();
        Ok(())
    }
}

/// How far a cut has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Stage {
    Prepared,
    Armed,
    Drained,
    Sealed,
}

/// One cut of one volume, under way. The steps come in the order of the methods.
///
/// Dropped before [`VolumeCut::arm`], it removes the unused layer. Dropped later, it leaves the sealed layer in the
/// chain without a name: it holds acknowledged data. It is merged later. A cut that still stretches then is released
/// as aborted, which voids the attempt: nothing that blocks I/O survives this value.
#[derive(Debug)]
#[must_use = "dropping it ends the cut"]
pub struct VolumeCut {
    volume: Arc<Volume>,
    sealing: Arc<Layer>,
    next: Arc<Layer>,
    stage: AtomicU8,
}

/// While it lives, no request of the volume is between its clock reading and its classification.
#[derive(Debug)]
pub struct Gate<'a> {
    _closed: RwLockWriteGuard<'a, Dispatch>,
}

impl VolumeCut {
    /// Makes requests ask `cut` where they belong. When this returns, no thread can dispatch by the unarmed state:
    /// the reading for [`Cut::armed`] is to be taken after it.
    ///
    /// # Errors
    /// [`VolumeError::GaveUp`] if `give_up`, which is asked between tries, said so first; then nothing has changed.
    pub fn arm(&self, cut: &Arc<Cut>, give_up: &mut dyn FnMut() -> bool) -> Result<(), VolumeError> {
        if self.reached(Stage::Armed) {
            return Err(self.out_of_order("armed"));
        }
        let core = &self.volume.core;
        if !core.push(Arc::clone(&self.next), Some(Armed::new(Arc::clone(cut))), give_up) {
            return Err(VolumeError::GaveUp { volume: core.name.clone(), what: "armed" });
        }
        self.reach(Stage::Armed);
        Ok(())
    }

    /// Closes the gate: for [`Cut::strike`]'s reading. Requests wait meanwhile.
    pub fn close_gate(&self) -> Gate<'_> {
        Gate { _closed: self.volume.core.close_gate() }
    }

    /// Waits until every request before the cut has finished; false if `give_up` said so first. To be called after a
    /// clock reading ≥ T: see the argument at `Core::dispatch`.
    pub fn wait_drained(&self, give_up: &mut dyn FnMut() -> bool) -> bool {
        if !self.reached(Stage::Armed) {
            return false;
        }
        // Those below too: before a discarded attempt or a resize, requests went there.
        let chain = self.volume.core.chain();
        let sealed = || chain.iter().take_while(|layer| layer.id <= self.sealing.id);
        while sealed().any(|layer| layer.is_in_use()) {
            if give_up() {
                return false;
            }
            thread::sleep(Duration::from_micros(50));
        }
        self.reach(Stage::Drained);
        true
    }

    /// Makes the layer below the cut durable, data and map.
    ///
    /// # Errors
    /// If its requests have not been waited for, or the file system fails.
    pub fn seal(&self) -> Result<(), VolumeError> {
        if !self.reached(Stage::Drained) {
            return Err(self.out_of_order("sealed"));
        }
        self.volume.core.seal_chain(&self.sealing)?;
        self.reach(Stage::Sealed);
        Ok(())
    }

    /// Requests stop asking the cut. To be called after its release; one that was not released is released as aborted.
    pub fn disarm(&self) {
        let core = &self.volume.core;
        let armed = core.dispatcher().armed.as_ref().map(|armed| Arc::clone(&armed.cut));
        let Some(cut) = armed else { return };
        if !cut.is_released() {
            cut.release(Cause::Abort, core.clock.now());
        }
        core.close_gate().armed = None;
    }

    /// Names what the cut sealed: a snapshot, durable when this returns, and with it which attempt named it.
    ///
    /// # Errors
    /// If it is not sealed, the name is taken or not allowed, or the file system fails; the attempt is discarded then.
    pub fn commit(self, name: &str, attempt: AttemptId) -> Result<(), VolumeError> {
        if !self.reached(Stage::Sealed) {
            return Err(self.out_of_order("named"));
        }
        check_name(name)?;
        let core = &self.volume.core;
        let mut structure = lock(&core.structure);
        if structure.manifest.snapshots.contains_key(name) {
            return Err(VolumeError::SnapshotExists { volume: core.name.clone(), snapshot: name.to_owned() });
        }
        structure.update(&core.directory, |manifest| manifest.name(name, self.sealing.id, attempt))
    }

    /// Drops the attempt, not what it holds: see [`VolumeCut`].
    pub fn discard(self) {}

    /// The mistake that a discarded attempt's layer holds nothing that counts.
    #[cfg(feature = "simulation")]
    fn delete_discarded(&self, structure: &mut Structure) {
        let core = &self.volume.core;
        let (next, sealing) = (self.next.id, self.sealing.id);
        if !self.reached(Stage::Armed)
            || structure.manifest.is_named(sealing)
            || structure.manifest.head != next
        {
            return;
        }
        let mut dispatch = core.close_gate();
        let Ok(fresh) = core.create_layer(structure, core.size()) else { return };
        let id = fresh.id;
        let replaced = structure.update(&core.directory, |manifest| {
            manifest.layers.remove(&next);
            manifest.layers.insert(id, Some(sealing));
            manifest.head = id;
        });
        if replaced.is_ok() {
            structure.layers.remove(&next);
            structure.layers.insert(id, Arc::clone(&fresh));
            dispatch.chain =
                dispatch.chain.iter().filter(|layer| layer.id != next).cloned().chain([fresh]).collect();
        }
    }

    fn reached(&self, stage: Stage) -> bool {
        self.stage.load(Ordering::SeqCst) >= stage as u8
    }

    fn reach(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::SeqCst);
    }

    fn out_of_order(&self, what: &'static str) -> VolumeError {
        VolumeError::OutOfOrder { volume: self.volume.core.name.clone(), what }
    }
}

impl Drop for VolumeCut {
    fn drop(&mut self) {
        let core = &self.volume.core;
        if self.reached(Stage::Armed) {
            self.disarm();
        }
        let mut structure = lock(&core.structure);
        if !self.reached(Stage::Armed) {
            let (unused, head) = (self.next.id, self.sealing.id);
            let removed = structure
                .update(&core.directory, |manifest| {
                    manifest.layers.remove(&unused);
                    manifest.head = head;
                })
                .and_then(|()| {
                    structure.layers.remove(&unused);
                    core.remove_layer(unused)
                });
            if let Err(error) = removed {
                // It is empty: listed or not, it changes nothing. Once it is not the head any more, it is dropped.
                warn!(volume = %core.name, %error, "an unused layer could not be removed");
            }
        }
        #[cfg(feature = "simulation")]
        if crate::mutation::is(crate::mutation::Mutation::DiscardDeletes) {
            self.delete_discarded(&mut structure);
        }
        structure.end_change();
        drop(structure);
        self.volume.wake_merger();
    }
}
