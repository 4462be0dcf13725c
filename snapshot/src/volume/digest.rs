//! The digest of a snapshot's content, whatever layers it lies in.
//!
//! The leaves of the last digest are remembered. A range in which no layer between two snapshots has a block reads the
//! same in both (`extents.rs`), so the next snapshot's digest takes its leaf over. It is the digest of what the snapshot
//! held when it was taken; whether it still does, only reading all of it again tells, and that is what verifying does.
//!
//! Nobody waits for a digest to delete a snapshot. A snapshot that is still there in the end, from the same attempt, was
//! there all the time, and the layers that it reads are not changed while it has its name. Of one that is gone, nothing
//! that was read counts.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blake3::Hash;
use uuid::Uuid;

use super::chain::{is_known_zero, read};
use super::extents::changed_since;
use super::layer::Layer;
use super::{BLOCK, Volume, VolumeError, at_path, lock};
use crate::digest::{RANGE, Tree};
use crate::orders::ExtentState;

/// The leaves of a snapshot.
#[derive(Debug)]
pub(super) struct Leaves {
    snapshot: String,
    /// Another snapshot may have the name by now, but not from the same attempt.
    identity: (u64, Uuid),
    leaves: Vec<Hash>,
}

/// A snapshot as it was when it was looked up.
struct View {
    layers: Vec<Arc<Layer>>,
    size: u64,
    identity: (u64, Uuid),
}

impl Volume {
    /// The digest of a snapshot's content (see [`crate::digest`]), by reading all of it. Ranges that are known to be zero
    /// are not read.
    ///
    /// # Errors
    /// If there is no such snapshot, it is deleted meanwhile, or it cannot be read.
    pub fn digest(&self, snapshot: &str) -> Result<Hash, VolumeError> {
        let view = self.look_up(snapshot)?;
        self.compute(snapshot, &view, &[], false)
    }

    /// The same, at the pace of background work, without reading what has not changed since the last digest.
    ///
    /// # Errors
    /// If there is no such snapshot, it is deleted meanwhile, it cannot be read, or the volume is being closed.
    pub fn digest_of_changes(&self, snapshot: &str) -> Result<Hash, VolumeError> {
        let view = self.look_up(snapshot)?;
        let known = self.known_leaves(&view);
        self.compute(snapshot, &view, &known, true)
    }

    fn look_up(&self, snapshot: &str) -> Result<View, VolumeError> {
        let structure = lock(&self.core.structure);
        let top = structure.boundary(&self.core.name, snapshot)?;
        let boundary = &structure.manifest.snapshots[snapshot];
        let identity = (boundary.number, boundary.attempt);
        Ok(View { layers: structure.chain(top), size: structure.manifest.size_of(top), identity })
    }

    /// By range: the leaf, where it is known.
    fn known_leaves(&self, view: &View) -> Vec<Option<Hash>> {
        let remembered = lock(&self.core.leaves);
        let Some(Leaves { snapshot, identity, leaves }) = &*remembered else { return Vec::new() };
        // Where it is gone, nobody knows what changed since.
        let Ok(older) = self.look_up(snapshot) else { return Vec::new() };
        if older.identity != *identity || older.size != view.size {
            return Vec::new();
        }
        let mut known: Vec<_> = leaves.iter().copied().map(Some).collect();
        for (run, state) in changed_since(&view.layers, &older.layers, 0..view.size / BLOCK) {
            if state != ExtentState::Unchanged {
                let (first, last) = (run.start * BLOCK / RANGE, (run.end * BLOCK - 1) / RANGE);
                known[first as usize..=last as usize].fill(None);
            }
        }
        if self.is_still(snapshot, *identity) { known } else { Vec::new() }
    }

    fn compute(
        &self,
        snapshot: &str,
        view: &View,
        known: &[Option<Hash>],
        paced: bool,
    ) -> Result<Hash, VolumeError> {
        let core = &self.core;
        let (mut tree, mut leaves) = (Tree::new(), Vec::new());
        let mut buffer = vec![0; RANGE.min(view.size) as usize];
        for (number, start) in (0..view.size).step_by(RANGE as usize).enumerate() {
            let length = RANGE.min(view.size - start);
            let blocks = start / BLOCK..(start + length) / BLOCK;
            let leaf = if let Some(Some(leaf)) = known.get(number) {
                *leaf
            } else if is_known_zero(&view.layers, blocks) {
                tree.leaf_of_zeros(length)
            } else {
                let range = &mut buffer[..length as usize];
                read(&view.layers, start, range).map_err(at_path(core.directory.path()))?;
                if paced && !core.pace.pay(length, &core.clock, || core.closing.load(Ordering::SeqCst)) {
                    return Err(VolumeError::GaveUp { volume: core.name.clone(), what: "read" });
                }
                blake3::hash(range)
            };
            tree.push(leaf);
            leaves.push(leaf);
        }
        if !self.is_still(snapshot, view.identity) {
            let (volume, snapshot) = (core.name.clone(), snapshot.to_owned());
            return Err(VolumeError::NoSnapshot { volume, snapshot });
        }
        let (snapshot, identity) = (snapshot.to_owned(), view.identity);
        *lock(&core.leaves) = Some(Leaves { snapshot, identity, leaves });
        Ok(tree.root())
    }

    fn is_still(&self, snapshot: &str, identity: (u64, Uuid)) -> bool {
        let structure = lock(&self.core.structure);
        let boundary = structure.manifest.snapshots.get(snapshot);
        boundary.is_some_and(|boundary| (boundary.number, boundary.attempt) == identity)
    }
}

#[cfg(test)]
mod tests {
    use crate::volume::tests::{create, done, take};

    /// Ranges that did not change are not read again; that one is read again shows by damage to it.
    #[test]
    fn an_unchanged_range_is_read_by_a_verification_only() {
        use std::os::unix::fs::FileExt;

        let (root, volume) = create(3 * 1024);
        let device = volume.attach().unwrap();
        done(device.write(0, &[1; 4096], false));
        take(&volume, "a");
        let first = volume.digest_of_changes("a").unwrap();
        assert_eq!(first, volume.digest("a").unwrap());
        done(device.write(5 << 20, &[2; 4096], false));
        take(&volume, "b");
        let whole = volume.digest("b").unwrap();
        assert_eq!(volume.digest("a").unwrap(), first);
        assert_ne!(whole, first);
        assert_eq!(volume.digest_of_changes("b").unwrap(), whole);

        let base = std::fs::OpenOptions::new().write(true).open(root.path().join("v/000000.raw")).unwrap();
        base.write_all_at(&[9; 4096], 0).unwrap();
        take(&volume, "c");
        assert_eq!(volume.digest_of_changes("c").unwrap(), whole, "nothing changed it but damage");
        assert_ne!(volume.digest("c").unwrap(), whole, "which a verification finds");

        // Deleting does not wait for it, and what was read of one that is gone does not count.
        let view = volume.look_up("c").unwrap();
        volume.delete_snapshot("c").unwrap();
        assert!(volume.compute("c", &view, &[], false).is_err());

        // Where the older snapshot is gone, all is read.
        take(&volume, "d");
        assert_eq!(volume.digest_of_changes("d").unwrap(), volume.digest("d").unwrap());
    }
}
