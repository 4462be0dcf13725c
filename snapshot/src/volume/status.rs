//! What clients ask about ranges without reading them: holes, and what has changed since a snapshot (`extents.rs`).
//!
//! # R3
//!
//! An answer tells of a held write as its data would, and waits with it. A write joins the set of held ones before it
//! touches a map, and the set is looked at after the maps were, so whatever an answer shows of a held write is found
//! there. What an answer shows is the runs that it tells *and the block behind them*: that a run ends says that the next
//! block is different.

use std::ops::Range;
use std::sync::Arc;

use super::chain::{Chain, blocks_of};
use super::extents::{Runs, allocated, changed_since};
use super::layer::Layer;
use super::request::Pin;
use super::{BLOCK, Core, lock};
use crate::device::{Changes, DeviceError, Outcome, Visit};
use crate::mutation::mutated;
use crate::orders::ExtentState;

/// No more than this is fetched at once: it is for what will be read next.
const MAX_PREFETCH: u64 = 32 << 20;

/// Tells the runs, and returns the bytes that this says something about.
fn tell(
    runs: Runs<'_>,
    bytes: &Range<u64>,
    asked: impl Fn(ExtentState) -> bool,
    visit: &mut Visit<'_>,
) -> Range<u64> {
    for (blocks, state) in runs {
        let run = (blocks.start * BLOCK).max(bytes.start)..(blocks.end * BLOCK).min(bytes.end);
        let end = run.end;
        if visit(run, asked(state)).is_break() {
            return bytes.start..bytes.end.min(end + BLOCK);
        }
    }
    bytes.clone()
}

fn tell_holes(layers: &[Arc<Layer>], bytes: &Range<u64>, visit: &mut Visit<'_>) -> Range<u64> {
    tell(allocated(layers, blocks_of(bytes)), bytes, |state| state == ExtentState::Zero, visit)
}

/// Which runs of a snapshot of `size` bytes are holes.
pub(super) fn snapshot_holes(
    layers: &[Arc<Layer>],
    size: u64,
    bytes: &Range<u64>,
    visit: &mut Visit<'_>,
) -> Outcome {
    if bytes.end > size {
        return Outcome::now(Err(DeviceError::Invalid));
    }
    tell_holes(layers, bytes, visit);
    Outcome::now(Ok(()))
}

impl Core {
    /// Which runs of the live volume are holes.
    pub(super) fn holes(&self, bytes: &Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        if bytes.end > self.size() {
            return Outcome::now(Err(DeviceError::Invalid));
        }
        let told = tell_holes(&self.chain(), bytes, visit);
        let hold = if mutated!(NoStatusHold) { None } else { self.held_over(&told) };
        Outcome { result: Ok(()), hold }
    }

    /// The snapshots that are older than one; all of them, where none is given.
    pub(super) fn snapshots_before(&self, snapshot: Option<&str>) -> Vec<String> {
        let mut snapshots = lock(&self.structure).manifest.snapshots_by_age();
        let older = snapshots.iter().position(|name| snapshot == Some(name));
        snapshots.truncate(older.unwrap_or(snapshots.len()));
        snapshots
    }
}

/// Has the file system fetch a range.
pub(super) fn prefetch(layers: &[Arc<Layer>], offset: u64, length: u64) -> Result<(), DeviceError> {
    let size = layers.last().map_or(0, |top| top.size);
    let end = offset.checked_add(length).filter(|end| *end <= size).ok_or(DeviceError::Invalid)?;
    let bytes = offset..end.min(offset + MAX_PREFETCH);
    layers.iter().for_each(|layer| layer.prefetch(&bytes));
    Ok(())
}

/// What has changed in a view of a volume since a snapshot.
///
/// What the two have in common is found once, by the layers' ids, while the structure does not change. It stays right:
/// the snapshot is pinned, so no layer above the common ones is merged into one of them; those that are merged among
/// themselves only become fewer; a layer that is pushed has an id of its own. A restore, which would exchange the live
/// volume's layers, waits until its clients have gone.
pub(super) struct ChangedSince {
    /// The view's layers; None: the live volume's at the time of each question.
    layers: Option<Chain>,
    /// The ids of the layers that both have.
    common: Vec<u32>,
    /// The snapshot's other layers: there are such after a restore.
    aside: Vec<Arc<Layer>>,
    pin: Pin,
}

impl ChangedSince {
    /// What has changed in `view` (None: the live volume) since the older snapshot `since`. The caller keeps `view` from
    /// being deleted or restored. None if there is no such snapshot.
    pub(super) fn new(core: &Arc<Core>, view: Option<&str>, since: &str) -> Option<Self> {
        if !core.snapshots_before(view).iter().any(|name| name == since) {
            return None;
        }
        let mut structure = lock(&core.structure);
        let boundary = |snapshot: &str| structure.boundary(&core.name, snapshot).ok();
        let older = structure.chain(boundary(since)?);
        let layers: Option<Chain> = match view {
            None => None,
            Some(view) => Some(structure.chain(boundary(view)?).into()),
        };
        let chain = layers.clone().unwrap_or_else(|| core.chain());
        let pin = structure.pin(core, since);
        drop(structure);
        let count = chain.iter().zip(&older).take_while(|(layer, other)| layer.id == other.id).count();
        let common = older[..count].iter().map(|layer| layer.id).collect();
        Some(ChangedSince { layers, common, aside: older[count..].to_vec(), pin })
    }
}

impl Changes for ChangedSince {
    fn within(&self, bytes: Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        let core = &self.pin.core;
        let chain = self.layers.clone().unwrap_or_else(|| core.chain());
        if bytes.end > chain.last().map_or(0, |top| top.size) {
            return Outcome::now(Err(DeviceError::Invalid));
        }
        let common = chain.iter().take_while(|layer| self.common.contains(&layer.id));
        let older: Vec<_> = common.chain(&self.aside).cloned().collect();
        let changed = |state| state != ExtentState::Unchanged;
        let told = tell(changed_since(&chain, &older, blocks_of(&bytes)), &bytes, changed, visit);
        let waits = self.layers.is_none() && !mutated!(NoStatusHold);
        let hold = if waits { core.held_over(&told) } else { None };
        Outcome { result: Ok(()), hold }
    }
}
