//! Merging a layer into the one below it, once the boundary between them has no name.
//!
//! Both take no requests any more, and the upper one shadows the lower wherever it is merged, so readers never notice:
//! those with an old chain still see the upper layer, whose files stay readable for them.
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
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use tracing::warn;

use super::layer::{Layer, data_name, map_name};
use super::map::State;
use super::{BLOCK, Core, VolumeError, at_path, lock};

/// Bytes copied at a time; closing the volume waits no longer than for one of them.
const CHUNK: u64 = 1 << 20;

impl Core {
    /// The merging thread: works when it is woken, until the volume is closed.
    pub(super) fn merge_when_woken(&self, wake: &Receiver<()>) {
        let mut removed = Vec::new();
        loop {
            let woken = if removed.is_empty() {
                wake.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                wake.recv_timeout(Duration::from_millis(100))
            };
            match woken {
                Ok(()) => self.collapse(&mut removed),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            // Whoever lets go of a removed layer last closes its files, and the file system then frees their space,
            // which takes seconds. That must not befall a request that still has the old chain, so this thread waits
            // to be the last.
            removed.retain(|layer| Arc::strong_count(layer) > 1);
        }
    }

    /// Merges until there is nothing to merge, or the volume is closed.
    fn collapse(&self, removed: &mut Vec<Arc<Layer>>) {
        while let Some((lower, upper)) = self.next_merge() {
            match self.merge(&lower, &upper) {
                Ok(true) => removed.push(upper),
                Ok(false) => return,
                Err(error) => {
                    warn!(volume = %self.name, %error, "layers could not be merged; they stay as they are for now");
                    return;
                }
            }
        }
    }

    /// The lowest layer without a name, and the one above it. Never the head, which takes requests, and never the layer
    /// that the structural change under way may yet name or still has requests for.
    pub(super) fn next_merge(&self) -> Option<(Arc<Layer>, Arc<Layer>)> {
        let structure = lock(&self.structure);
        let chain = self.chain();
        let (_head, sealed) = chain.split_last()?;
        sealed.windows(2).find_map(|pair| {
            let [lower, upper] = pair else { return None };
            let free = !structure.manifest.is_named(lower.id) && !structure.may_name(upper.id);
            free.then(|| (Arc::clone(lower), Arc::clone(upper)))
        })
    }

    /// False if the volume is being closed.
    fn merge(&self, lower: &Layer, upper: &Layer) -> Result<bool, VolumeError> {
        // Requests of a cut that was given up before they had finished; new ones cannot come.
        while lower.is_in_use() || upper.is_in_use() {
            if self.closing.load(Ordering::SeqCst) {
                return Ok(false);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let copied = upper.sync().and_then(|()| self.copy(lower, upper)).and_then(|complete| {
            if complete {
                lower.seal()?;
            }
            Ok(complete)
        });
        if !copied.map_err(at_path(&self.directory.path().join(data_name(lower.id))))? {
            return Ok(false);
        }
        lock(&self.structure).update(&self.directory, |manifest| {
            manifest.layers.retain(|&layer| layer != upper.id);
            for boundary in manifest.snapshots.values_mut().filter(|boundary| boundary.layer == upper.id) {
                boundary.layer = lower.id;
            }
        })?;
        let mut dispatch = self.close_gate();
        dispatch.chain = dispatch.chain.iter().filter(|layer| layer.id != upper.id).cloned().collect();
        drop(dispatch);
        if let Err(error) = self.remove_layer(upper.id) {
            warn!(volume = %self.name, %error, "the files of a merged layer stay until the volume is opened again");
        }
        Ok(true)
    }

    /// False if the volume is being closed.
    fn copy(&self, lower: &Layer, upper: &Layer) -> io::Result<bool> {
        let mut buffer = vec![0; CHUNK as usize];
        let mut from = 0;
        while let Some((run, state)) = upper.next_run(from) {
            let blocks = run.start..run.end.min(run.start + CHUNK / BLOCK);
            if self.closing.load(Ordering::SeqCst) {
                return Ok(false);
            }
            if state == State::Data {
                let data = &mut buffer[..((blocks.end - blocks.start) * BLOCK) as usize];
                upper.read(blocks.start * BLOCK, data)?;
                lower.write(blocks.start * BLOCK, data)?;
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
        self.directory.remove(&map_name(id))
    }
}
