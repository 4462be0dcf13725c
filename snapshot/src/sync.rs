//! Threads, locks and timers, as the standard library and tokio have them.
//!
//! The simulator of `tests/` runs this crate in virtual time, in an order that a seed decides. So what runs in a cut
//! takes its threads, locks and timers from here: with the feature `simulation` they ask a driver, where the thread has
//! one; without it, which is every build that is shipped, these are plain re-exports.

#[cfg(feature = "simulation")]
mod simulated;

#[cfg(feature = "simulation")]
pub(crate) use simulated::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, disk, mpsc, pause, task, thread,
};
#[cfg(feature = "simulation")]
pub use simulated::{Driver, block_on, drive};
#[cfg(not(feature = "simulation"))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};

/// Threads.
#[cfg(not(feature = "simulation"))]
pub(crate) mod thread {
    pub(crate) use std::thread::{JoinHandle, Thread, park_timeout, sleep, yield_now};

    /// Starts a thread that is called so.
    ///
    /// # Errors
    /// When the system has none to give.
    pub(crate) fn spawn(
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name(name).spawn(work)
    }
}

/// What waits without a thread.
#[cfg(not(feature = "simulation"))]
pub(crate) mod task {
    pub(crate) use tokio::spawn;
    pub(crate) use tokio::task::spawn_blocking;
    pub(crate) use tokio::time::sleep;
}
