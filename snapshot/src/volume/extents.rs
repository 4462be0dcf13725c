//! What a snapshot's blocks hold, and which of them changed since another snapshot: from the layers' maps, without
//! reading data. Pure over the maps; only the base, which has none, asks the file system for its holes.
//!
//! # Changed blocks
//!
//! The layers that two snapshots have in common are the lower ends of their chains. A block that no layer above these
//! says anything about reads the same in both: it comes from the common part. So the OR of the maps above it, on both
//! sides, has every block that differs. (On the older side there is something only after a restore, when the two lie on
//! different branches.) It may have more: a block may be overwritten by what it held.
//!
//! Merging does not disturb this. Both snapshots are pinned, so neither boundary is merged away. Layers between them
//! that are merged meanwhile keep their sum: what goes into the lower one is in the upper one too, and one that was
//! merged away before one chain was looked up, and after the other, only adds to what counts as changed.

use std::ops::Range;
use std::sync::Arc;

use super::layer::Layer;
use super::map::State;
use super::request::SnapshotDevice;
use super::{BLOCK, Volume, VolumeError};
use crate::orders::{Extent, ExtentState};

/// One layer's runs, the current one at hand.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    layer: &'a Layer,
    run: Option<(Range<u64>, State)>,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(layer: &'a Layer) -> Self {
        // Looked up when it is first asked: a layer below the changed ones may never be.
        Cursor { layer, run: Some((0..0, State::Absent)) }
    }

    /// What the layer says about the first one of `blocks`, and where it first says something else. The first block
    /// never goes back.
    pub(super) fn at(&mut self, blocks: &Range<u64>) -> (State, u64) {
        if self.run.as_ref().is_some_and(|(run, _)| run.end <= blocks.start) {
            self.run = self.layer.next_known(blocks);
        }
        match &self.run {
            Some((run, state)) if run.start <= blocks.start => (*state, run.end),
            Some((run, _)) => (State::Absent, run.start),
            None => (State::Absent, blocks.end),
        }
    }
}

/// The runs of a range of blocks, in order and without gaps; neighbours differ.
#[derive(Debug)]
pub(super) struct Runs<'a> {
    /// The view's layers, the base first.
    view: Vec<Cursor<'a>>,
    /// So many of them belong to the older view too.
    common: usize,
    /// The older view's other layers.
    older: Vec<Cursor<'a>>,
    /// The older view has only so many blocks; what is beyond them is new.
    known: u64,
    rest: Range<u64>,
    /// A run that may go on.
    pending: Option<(Range<u64>, ExtentState)>,
}

/// What the blocks of a view hold: data or zeros.
pub(super) fn allocated(view: &[Arc<Layer>], blocks: Range<u64>) -> Runs<'_> {
    Runs::new(view, 0, &[], u64::MAX, blocks)
}

/// What the blocks of a view hold where it differs from another view of the same volume.
pub(super) fn changed_since<'a>(
    view: &'a [Arc<Layer>],
    older: &'a [Arc<Layer>],
    blocks: Range<u64>,
) -> Runs<'a> {
    let common = view.iter().zip(older).take_while(|(layer, other)| layer.id == other.id).count();
    let known = older.last().map_or(0, |top| top.size / BLOCK);
    Runs::new(view, common, &older[common..], known, blocks)
}

impl<'a> Runs<'a> {
    fn new(
        view: &'a [Arc<Layer>],
        common: usize,
        older: &'a [Arc<Layer>],
        known: u64,
        blocks: Range<u64>,
    ) -> Self {
        let cursors = |layers: &'a [Arc<Layer>]| layers.iter().map(|layer| Cursor::new(layer)).collect();
        Runs { view: cursors(view), common, older: cursors(older), known, rest: blocks, pending: None }
    }

    /// What the next block holds, and up to where that may be so.
    fn step(&mut self) -> (ExtentState, u64) {
        let mut end = self.rest.end;
        let mut changed = self.common == 0 || self.rest.start >= self.known;
        if self.rest.start < self.known {
            end = end.min(self.known);
        }
        for cursor in &mut self.older {
            let (state, until) = cursor.at(&self.rest);
            changed |= state != State::Absent;
            end = end.min(until);
        }
        for (i, cursor) in self.view.iter_mut().enumerate().rev() {
            if i < self.common && !changed {
                return (ExtentState::Unchanged, end);
            }
            let (state, until) = cursor.at(&self.rest);
            end = end.min(until);
            match state {
                State::Data | State::Unknown => return (ExtentState::Data, end),
                State::Zero => return (ExtentState::Zero, end),
                State::Absent => {}
            }
        }
        // Holes of the base; or there is no layer above the common ones, and none of these was looked at.
        (if changed { ExtentState::Zero } else { ExtentState::Unchanged }, end)
    }
}

impl Iterator for Runs<'_> {
    type Item = (Range<u64>, ExtentState);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            let (state, end) = self.step();
            let run = self.rest.start..end.min(self.rest.end);
            self.rest.start = run.end;
            match &mut self.pending {
                Some((pending, before)) if *before == state => pending.end = run.end,
                pending => {
                    if let Some(done) = pending.replace((run, state)) {
                        return Some(done);
                    }
                }
            }
        }
        self.pending.take()
    }
}

/// The extents of a snapshot. Neither it nor the snapshot that it is compared with can be deleted while this lives.
#[derive(Debug)]
pub struct SnapshotExtents {
    of: SnapshotDevice,
    since: Option<SnapshotDevice>,
}

impl Volume {
    /// The extents of a snapshot; with `since`, those that may differ from that snapshot, and which do not.
    ///
    /// # Errors
    /// If one of the snapshots does not exist.
    pub fn extents(&self, snapshot: &str, since: Option<&str>) -> Result<SnapshotExtents, VolumeError> {
        let since = since.map(|older| self.pin(older)).transpose()?;
        Ok(SnapshotExtents { of: self.pin(snapshot)?, since })
    }
}

impl SnapshotExtents {
    /// The snapshot's size in bytes.
    pub fn size(&self) -> u64 {
        self.of.size
    }

    /// The extents of the blocks (of 4096 bytes) that a range of bytes touches, in order and without gaps; neighbours
    /// differ. What lies beyond the snapshot's end is left out.
    pub fn within(&self, bytes: Range<u64>) -> impl Iterator<Item = Extent> + use<'_> {
        let blocks = bytes.start / BLOCK..bytes.end.min(self.of.size).div_ceil(BLOCK);
        let runs = match &self.since {
            None => allocated(&self.of.layers, blocks),
            Some(older) => changed_since(&self.of.layers, &older.layers, blocks),
        };
        runs.map(|(run, state)| Extent {
            offset: run.start * BLOCK,
            length: (run.end - run.start) * BLOCK,
            state,
        })
    }
}

#[cfg(test)]
mod tests;
