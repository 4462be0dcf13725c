//! Merging a layer into the one below it, once the boundary between them has no name and nothing else stands on it.
//! And dropping one that has no name and that nothing stands on: what a restore replaced.
//!
//! Both layers take no requests any more, and the upper one shadows the lower wherever it is merged, so readers never
//! notice: those with an old chain still see the upper layer, whose files stay readable for them.
//!
//! # Order of writes
//!
//! 1. the upper layer's blocks go into the lower one: data, sync, map, sync;
//! 2. the manifest without the upper layer, whose name (if it has one) is now the lower one's;
//! 3. the upper layer leaves the chain, and its files are removed.
//!
//! A crash before 2 leaves the upper layer in place, and merging begins anew; after 2 its files are left-overs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::warn;

use super::layer::{Layer, data_name, map_name};
use super::map::State;
use super::unflushed::log_name;
use super::{BLOCK, Core, VolumeError, at_path, lock};
use crate::sync::mpsc::{Receiver, RecvTimeoutError};
use crate::sync::thread;

/// Bytes copied at a time; closing the volume waits no longer than for one of them.
const CHUNK: u64 = 1 << 20;

/// A removed layer's readers are looked for so often.
const READERS_GONE: Duration = Duration::from_millis(100);
/// A merge that failed, for want of room maybe, is tried again after this.
const AGAIN: Duration = if cfg!(test) { Duration::from_millis(5) } else { Duration::from_secs(30) };

/// Something that makes a volume's layers fewer.
pub(super) enum Tidying {
    Merge { lower: Arc<Layer>, upper: Arc<Layer> },
    Drop(Arc<Layer>),
}

impl Core {
    /// The merging thread: works when it is woken, until the volume is closed.
    pub(super) fn merge_when_woken(&self, wake: &Receiver<()>) {
        let (mut removed, mut failed) = (Vec::new(), false);
        loop {
            let wait = match (removed.is_empty(), failed) {
                (false, _) => Some(READERS_GONE),
                (true, true) => Some(AGAIN),
                (true, false) => None,
            };
            let woken = match wait {
                None => wake.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => wake.recv_timeout(wait),
            };
            match woken {
                Err(RecvTimeoutError::Timeout) if !removed.is_empty() => {}
                Ok(()) | Err(RecvTimeoutError::Timeout) => failed = !self.collapse(&mut removed),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Whoever lets go of a removed layer last closes its files, and the file system then frees their space,
            // which takes seconds. That must not befall a request that still has the old chain, so this thread waits
            // to be the last.
            removed.retain(|layer| Arc::strong_count(layer) > 1);
        }
    }

    /// Merges until there is nothing to merge, or the volume is closed. False if it failed.
    fn collapse(&self, removed: &mut Vec<Arc<Layer>>) -> bool {
        while let Some(_turn) = self.turns.merge()
            && let Some(tidying) = self.next_tidying()
        {
            let (done, gone) = match tidying {
                Tidying::Merge { lower, upper } => (self.merge(&lower, &upper), upper),
                Tidying::Drop(layer) => (self.drop_layer(&layer).map(|()| true), layer),
            };
            match done {
                Ok(true) => removed.push(gone),
                Ok(false) => break,
                Err(error) => {
                    warn!(volume = %self.name, %error, "layers could not be merged; they stay as they are for now");
                    return false;
                }
            }
        }
        !lock(&self.structure).is_uncertain()
    }

    /// What is to be done to the lowest layer without a name that something can be done to. Never to the head, which
    /// takes requests, and never to the layer that the structural change under way may yet name or still has requests
    /// for.
    pub(super) fn next_tidying(&self) -> Option<Tidying> {
        // Its directory is gone, or is already that of another volume of the same name.
        if self.deleted.load(Ordering::SeqCst) {
            return None;
        }
        let mut structure = lock(&self.structure);
        if let Err(error) = structure.make_certain(&self.directory) {
            warn!(volume = %self.name, %error, "layers stay as they are while the manifest cannot be written");
            return None;
        }
        let structure = &*structure;
        let manifest = &structure.manifest;
        let chain = self.chain();
        // The manifest's head may be one that no request sees yet, or not any more.
        let heads = [Some(manifest.head), chain.last().map(|head| head.id)];
        let busy = |layer: u32| heads.contains(&Some(layer)) || structure.may_name(layer);
        structure.layers.values().find_map(|lower| {
            if manifest.is_named(lower.id) || busy(lower.id) {
                return None;
            }
            match manifest.standing_on(lower.id)[..] {
                [] => Some(Tidying::Drop(Arc::clone(lower))),
                [upper] if !busy(upper) && !lower.is_shared() => {
                    let upper = Arc::clone(structure.layers.get(&upper)?);
                    let fits = structure.can_take_size(lower, &upper);
                    fits.then(|| Tidying::Merge { lower: Arc::clone(lower), upper })
                }
                _ => None,
            }
        })
    }

    /// Removes a layer that nothing stands on any more.
    fn drop_layer(&self, layer: &Layer) -> Result<(), VolumeError> {
        let mut structure = lock(&self.structure);
        structure.update(&self.directory, |manifest| {
            manifest.layers.remove(&layer.id);
        })?;
        structure.layers.remove(&layer.id);
        drop(structure);
        self.remove_files(layer);
        Ok(())
    }

    fn remove_files(&self, layer: &Layer) {
        if let Err(error) = self.remove_layer(layer.id) {
            warn!(volume = %self.name, %error, "the files of a removed layer stay until the volume is opened again");
        }
    }

    /// False if it was cut short.
    fn merge(&self, lower: &Arc<Layer>, upper: &Layer) -> Result<bool, VolumeError> {
        // Requests of a cut that was given up before they had finished; new ones cannot come.
        while lower.is_in_use() || upper.is_in_use() {
            if self.is_cut_short() {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(1));
        }
        let lower = self.lower_of_merge(lower, upper)?;
        let copied = upper.sync().and_then(|()| self.copy(&lower, upper)).and_then(|complete| {
            if complete {
                lower.seal()?;
            }
            Ok(complete)
        });
        if !copied.map_err(at_path(&self.directory.path().join(data_name(lower.id))))? {
            return Ok(false);
        }
        let mut structure = lock(&self.structure);
        structure.update(&self.directory, |manifest| {
            manifest.layers.remove(&upper.id);
            manifest.set_layer_size(lower.id, upper.size);
            for below in manifest.layers.values_mut().filter(|below| **below == Some(upper.id)) {
                *below = Some(lower.id);
            }
            for boundary in manifest.snapshots.values_mut().filter(|boundary| boundary.layer == upper.id) {
                boundary.layer = lower.id;
            }
        })?;
        structure.layers.remove(&upper.id);
        structure.layers.insert(lower.id, Arc::clone(&lower));
        let mut dispatch = self.close_gate();
        let merged = |layer: &Arc<Layer>| if layer.id == lower.id { &lower } else { layer }.clone();
        dispatch.chain = dispatch.chain.iter().filter(|layer| layer.id != upper.id).map(merged).collect();
        drop((dispatch, structure));
        self.trim(&lower);
        self.remove_files(upper);
        Ok(true)
    }

    /// Whether the volume is being closed, or somebody waits for the merge to end.
    fn is_cut_short(&self) -> bool {
        self.closing.load(Ordering::SeqCst) || self.turns.is_claimed()
    }

    /// False if it was cut short.
    fn copy(&self, lower: &Layer, upper: &Layer) -> io::Result<bool> {
        self.pace.begin(upper.data_blocks() * BLOCK);
        let copied = self.copy_blocks(lower, upper);
        self.pace.end();
        copied
    }

    fn copy_blocks(&self, lower: &Layer, upper: &Layer) -> io::Result<bool> {
        let mut buffer = vec![0; CHUNK as usize];
        let mut from = 0;
        while let Some((run, state)) = upper.next_run(from) {
            let blocks = run.start..run.end.min(run.start + CHUNK / BLOCK);
            if self.is_cut_short() {
                return Ok(false);
            }
            if state == State::Data {
                let data = &mut buffer[..((blocks.end - blocks.start) * BLOCK) as usize];
                if !lower.copy_from(upper, &blocks)? {
                    upper.read(blocks.start * BLOCK, data)?;
                    lower.write(blocks.start * BLOCK, data)?;
                }
                self.pace.advance(data.len() as u64);
                if !self.pace.pay(data.len() as u64, &self.clock, || self.is_cut_short()) {
                    return Ok(false);
                }
            } else {
                lower.zero(blocks.clone(), true)?;
            }
            from = blocks.end;
        }
        Ok(true)
    }

    /// Removes the files of a layer that the manifest does not list any more.
    pub(super) fn remove_layer(&self, id: u32) -> Result<(), VolumeError> {
        self.directory.remove(&data_name(id))?;
        if self.directory.has(&log_name(id)) {
            self.directory.remove(&log_name(id))?;
        }
        self.directory.remove(&map_name(id))
    }
}
