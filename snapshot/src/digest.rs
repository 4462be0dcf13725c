//! The digest of a volume's content, as a tree over ranges. Pure.
//!
//! A leaf is the BLAKE3 hash of a range of 4 MiB; the last range may be shorter. The root is the BLAKE3 hash of the
//! leaves, one after the other. A range whose leaf is known need not be read.

use blake3::{Hash, Hasher};

/// Bytes in a range.
pub const RANGE: u64 = 4 << 20;

/// The digest of some content, fed range by range.
#[derive(Debug)]
pub struct Tree {
    leaves: Hasher,
    /// The leaf of a whole range of zeros.
    zeros: Hash,
}

impl Default for Tree {
    fn default() -> Self {
        Tree::new()
    }
}

impl Tree {
    /// Of nothing, so far.
    pub fn new() -> Self {
        Tree { leaves: Hasher::new(), zeros: blake3::hash(&vec![0; RANGE as usize]) }
    }

    /// The leaf of a range of `length` zeros, at most [`RANGE`].
    pub fn leaf_of_zeros(&self, length: u64) -> Hash {
        if length == RANGE { self.zeros } else { blake3::hash(&vec![0; length.min(RANGE) as usize]) }
    }

    /// Adds the next range by its leaf.
    pub fn push(&mut self, leaf: Hash) {
        self.leaves.update(leaf.as_bytes());
    }

    /// The digest of all ranges added.
    pub fn root(&self) -> Hash {
        self.leaves.finalize()
    }
}
