//! The digest of a snapshot's content, whatever layers it lies in.

use super::chain::{is_known_zero, read};
use super::{BLOCK, Volume, VolumeError, at_path};

/// The leaves of the tree.
const RANGE: u64 = 4 << 20;

impl Volume {
    /// BLAKE3 over the concatenated BLAKE3 digests of the snapshot's ranges of 4 MiB (the last one may be shorter).
    /// Ranges that are known to be zero are not read.
    ///
    /// # Errors
    /// If there is no such snapshot, or it cannot be read.
    pub fn digest(&self, snapshot: &str) -> Result<blake3::Hash, VolumeError> {
        let pinned = self.pin(snapshot)?;
        let mut buffer = vec![0; RANGE.min(pinned.size) as usize];
        let zeros = blake3::hash(&buffer);
        let mut tree = blake3::Hasher::new();
        for start in (0..pinned.size).step_by(RANGE as usize) {
            let length = RANGE.min(pinned.size - start);
            let blocks = start / BLOCK..(start + length) / BLOCK;
            let leaf = if length == buffer.len() as u64 && is_known_zero(&pinned.layers, blocks) {
                zeros
            } else {
                let range = &mut buffer[..length as usize];
                read(&pinned.layers, start, range).map_err(at_path(self.core.directory.path()))?;
                blake3::hash(range)
            };
            tree.update(leaf.as_bytes());
        }
        Ok(tree.finalize())
    }
}
