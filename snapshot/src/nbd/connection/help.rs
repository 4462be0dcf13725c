//! Whether a second processor helps a connection with long writes.
//!
//! A long write is copied twice: out of the socket and into the file. Where processors are idle, one of them receives the
//! next write while this one goes into its file. Where the connections keep all of them busy anyway, that would only take
//! cache from each other.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A write of as many bytes takes so long that a hand-over costs little beside it.
pub(super) const LONG: usize = 256 << 10;

/// So many connections find a second processor each.
static MOST: LazyLock<usize> =
    LazyLock::new(|| thread::available_parallelism().map_or(0, |all| all.get() / 2));

/// Connections of this process.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// A connection that is counted until this is dropped.
pub(super) struct Open(());

impl Open {
    pub fn new() -> Self {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Open(())
    }

    /// Whether each connection would find a second processor.
    pub fn are_few() -> bool {
        // A guess for speed only: nothing that another thread has written is read because of it.
        OPEN.load(Ordering::Relaxed) <= *MOST
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}
