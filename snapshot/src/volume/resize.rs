//! Resizing: a layer of the new size on top. Each layer keeps the size that it was made with, and so does each snapshot.
//!
//! Beyond its end a layer says of every block that it is zero (`Layer::state`). A volume that has grown thus reads zeros
//! where the layers below end, and one that was shrunk and has grown again does not show what lay there before.
//!
//! # Order of writes
//!
//! 1. the new layer's files and their names, synced;
//! 2. the manifest with the new layer as the head and the new size, at once.
//!
//! A crash before 2 leaves the volume as it was. When 2 fails, nobody knows which of the two is on disk. That does no
//! harm to a volume that grows: an empty layer changes nothing. One that shrinks lets no client in meanwhile, and stays
//! closed if it does not become certain: what clients would write beyond its end might be lost.
//!
//! # Merging layers of different sizes
//!
//! The lower one takes the upper one's size, and with it its place (`merge.rs`). Where it grows, blocks beyond its former
//! end become absent where they were zero, which is the same as long as no layer below it reaches farther; where one
//! does, the two are not merged. What a merge that did not end has left beyond the former end is cut off before the next
//! one. Where it shrinks, its files are cut off once the manifest that has them smaller is durable. Nobody reads beyond
//! that end any more: whoever sees the lower layer sees it below the upper one.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{error, warn};

use super::layer::Layer;
use super::restore::Barred;
use super::structure::Structure;
use super::{BLOCK, Core, Volume, VolumeError, lock};

impl Volume {
    /// Gives the volume another size, in bytes: durable when this returns. Clients that are connected see it when they
    /// connect again. What lies beyond a smaller size is gone, but for what snapshots hold of it.
    ///
    /// # Errors
    /// If the size is not allowed, or smaller and not `shrink`, or smaller and clients are connected; if a structural
    /// change is under way, or the file system fails. The volume keeps its size then.
    pub fn resize(&self, size: u64, shrink: bool) -> Result<(), VolumeError> {
        check_size(size)?;
        let core = &self.core;
        let shrinks = {
            let mut structure = lock(&core.structure);
            let now = core.size();
            if size < now && !shrink {
                return Err(VolumeError::WouldShrink { volume: core.name.clone(), size, now });
            }
            structure.begin_change(&core.name, "it is being resized", core.head().id)?;
            size < now
        };
        let barred = Barred(self);
        if shrinks {
            let connected = |clients| VolumeError::Connected { volume: core.name.clone(), clients };
            core.clients.bar(false).map_err(connected)?;
        }
        let mut structure = lock(&core.structure);
        if size == core.size() {
            return Ok(());
        }
        match core.add_layer(&mut structure, size) {
            Ok(next) => {
                core.push(next, None, &mut || false);
                core.size.store(size, Ordering::SeqCst);
                Ok(())
            }
            Err(why) => {
                let certain = structure.make_certain(&core.directory);
                drop(structure);
                if let (true, Err(error)) = (shrinks, certain) {
                    let volume = &core.name;
                    error!(%volume, %error, "nobody knows which size the volume has: it is closed until the next start");
                    std::mem::forget(barred);
                }
                Err(why)
            }
        }
    }
}

/// Whether a volume may have this size, in bytes.
pub(super) fn check_size(size: u64) -> Result<(), VolumeError> {
    if size == 0 || !size.is_multiple_of(BLOCK) { Err(VolumeError::Size { size }) } else { Ok(()) }
}

impl Structure {
    /// Whether `lower` can take `upper`'s size: it must not hide the end of a layer below it.
    pub(super) fn can_take_size(&self, lower: &Layer, upper: &Layer) -> bool {
        let reaches_farther = |below: &Arc<Layer>| below.size > lower.size;
        upper.size <= lower.size || !self.chain(lower.id).iter().any(reaches_farther)
    }
}

impl Core {
    /// The layer that `upper` is merged into: `lower`, with the size that it has afterwards.
    pub(super) fn lower_of_merge(
        &self,
        lower: &Arc<Layer>,
        upper: &Layer,
    ) -> Result<Arc<Layer>, VolumeError> {
        if lower.size == upper.size {
            return Ok(Arc::clone(lower));
        }
        lower.resized(&self.directory, upper.size)
    }

    /// Cuts off what a layer has beyond its end. What cannot be cut off takes space and does no harm.
    pub(super) fn trim(&self, layer: &Layer) {
        if let Err(error) = layer.trim() {
            warn!(volume = %self.name, %error, layer = layer.id, "a layer keeps space beyond its end");
        }
    }
}
