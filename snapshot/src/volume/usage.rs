//! What snapshots take: which of a volume's blocks each of them reads, and who else does. Pure over the layers' maps.
//!
//! A block of a layer is *read* by a view (a snapshot, or the live volume) if that layer is the uppermost one of the
//! view's that says anything about it. What only one snapshot reads is what deleting it gives back, as layers are
//! merged. (Less comes back where restored states part at it: its layer then stays for what stands on it.)

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::warn;

use super::extents::Cursor;
use super::layer::Layer;
use super::map::State;
use super::{BLOCK, Core, Volume, VolumeError, lock};
use crate::orders::{Quota, QuotaLevel, SnapshotUsage, VolumeUsage};

/// A volume's layers, each after the one that it stands on (its place in the list; none for the base).
type Tree = Vec<(Arc<Layer>, Option<usize>)>;

/// Blocks that views read.
#[derive(Debug, PartialEq, Eq)]
struct Counts {
    /// By each view.
    referenced: Vec<u64>,
    /// By this one only.
    exclusive: Vec<u64>,
    /// By others than the last view, and not by the last one.
    beside_last: u64,
}

/// Counts the blocks of a volume of `blocks` blocks. Each view is the place of its top layer in the tree.
fn count(tree: &Tree, views: &[usize], blocks: u64) -> Counts {
    let mut cursors: Vec<_> = tree.iter().map(|(layer, _)| Cursor::new(layer)).collect();
    let mut counts =
        Counts { referenced: vec![0; views.len()], exclusive: vec![0; views.len()], beside_last: 0 };
    // Of the current block: the layer that each layer's view reads it from, and how many views read each layer's.
    let (mut sources, mut readers) = (vec![None; tree.len()], vec![0; tree.len()]);
    let mut rest = 0..blocks;
    while !rest.is_empty() {
        let mut end = rest.end;
        for (i, (cursor, (_, below))) in cursors.iter_mut().zip(tree).enumerate() {
            let (state, until) = cursor.at(&rest);
            end = end.min(until);
            sources[i] = match state {
                State::Data | State::Unknown => Some(i),
                State::Zero => None,
                State::Absent => below.and_then(|below| sources[below]),
            };
        }
        readers.fill(0);
        let read = || views.iter().map(|&view| sources[view]).enumerate();
        for (_, source) in read() {
            if let Some(layer) = source {
                readers[layer] += 1;
            }
        }
        let length = end - rest.start;
        for (view, source) in read() {
            let Some(layer) = source else { continue };
            counts.referenced[view] += length;
            if readers[layer] == 1 {
                counts.exclusive[view] += length;
            }
        }
        let last = views.last().and_then(|&view| sources[view]);
        let beside = readers.iter().enumerate().filter(|&(layer, &count)| count > 0 && last != Some(layer));
        counts.beside_last += beside.count() as u64 * length;
        rest.start = end;
    }
    counts
}

impl Volume {
    /// What its snapshots take, and what they may. Looks at all maps.
    pub fn usage(&self) -> VolumeUsage {
        self.core.usage()
    }

    /// Limits what its snapshots may hold, durably; none: no limit.
    ///
    /// # Errors
    /// If the file system fails.
    pub fn set_quota(&self, quota: Option<Quota>) -> Result<(), VolumeError> {
        let mut structure = lock(&self.core.structure);
        structure.update(&self.core.directory, |manifest| manifest.quota = quota)
    }
}

impl Core {
    fn usage(&self) -> VolumeUsage {
        let (tree, names, views, quota) = {
            let structure = lock(&self.structure);
            let places: BTreeMap<u32, usize> = structure.layers.keys().copied().zip(0..).collect();
            let below = |layer: u32| structure.manifest.layers.get(&layer).copied().flatten();
            let place = |layer: u32| places.get(&layer).copied();
            // A layer's id is greater than that of the one below it.
            let tree: Tree = structure
                .layers
                .values()
                .map(|layer| (Arc::clone(layer), below(layer.id).and_then(place)))
                .collect();
            let snapshots = structure.manifest.snapshots.iter();
            let (names, mut views): (Vec<String>, Vec<usize>) =
                snapshots.filter_map(|(name, boundary)| Some((name.clone(), place(boundary.layer)?))).unzip();
            // Not the manifest's head, which may be one that a cut has only prepared.
            views.extend(place(self.head().id));
            (tree, names, views, structure.manifest.quota)
        };
        // A snapshot may be of another size than the volume is now.
        let blocks = tree.iter().map(|(layer, _)| layer.size / BLOCK).max().unwrap_or(0);
        let counts = count(&tree, &views, blocks);
        let bytes = |blocks: &u64| blocks * BLOCK;
        let usages = counts.referenced.iter().zip(&counts.exclusive);
        let snapshots = names.into_iter().zip(usages).map(|(name, (referenced, exclusive))| {
            (name, SnapshotUsage { referenced: bytes(referenced), exclusive: bytes(exclusive) })
        });
        let held = counts.beside_last * BLOCK;
        VolumeUsage {
            snapshots: snapshots.collect(),
            live: counts.referenced.last().map_or(0, bytes),
            held,
            quota,
            level: quota.map_or(QuotaLevel::Good, |quota| quota.level(held)),
            merging: self.pace.progress(),
        }
    }

    /// Says no to another snapshot where the others hold as much as they may. The volume itself is never limited.
    pub(super) fn check_quota(&self) -> Result<(), VolumeError> {
        if lock(&self.structure).manifest.quota.is_none() {
            return Ok(());
        }
        let VolumeUsage { held, quota: Some(quota), level, .. } = self.usage() else { return Ok(()) };
        match level {
            QuotaLevel::Good => {}
            QuotaLevel::Warning => {
                warn!(volume = %self.name, held, quota = quota.bytes, "the snapshots' quota is nearly used up");
            }
            QuotaLevel::Full => {
                return Err(VolumeError::QuotaFull { volume: self.name.clone(), held, quota: quota.bytes });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
