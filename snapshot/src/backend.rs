//! Volumes outside Coeval, snapshotted by their own means while their I/O is paused.
//!
//! The built-in volume holds single completions back. Other storage cannot do that, but much of it can be *paused*: a file
//! system frozen, a device suspended, a virtual machine stopped. The same theorem covers it (see [`crate::certificate`]):
//! I/O is blocked from before a reading P < T, taken after the pause was confirmed, to a reading Q ≥ T + V, taken before
//! the resume, and the snapshot is taken in between. Nothing that was acknowledged after P is in it, nothing is
//! acknowledged before Q that is not.
//!
//! # How to add a backend
//!
//! 1. Implement [`Backend`]. Its calls come in this order, from one thread at a time for each volume:
//!    `prepare`, pause, `cut`, resume, `seal`; then the snapshot is kept, or `discard`ed. `discard` may come at any point,
//!    also after a crash, in the next run of the daemon.
//! 2. Pausing and resuming are not methods of the backend: they are done by the [`watchdog`], another process, that goes on
//!    when this one is killed or stopped. So a pause is data, a [`Pause`]. If none of its kinds fits, add one, with what
//!    pauses and what resumes.
//! 3. Have it pass [`conformance::check`], and give it its keys in the host's configuration.
//!
//! A backend without a pause ([`Backend::prepare`] gives none) is allowed as the only volume of a snapshot, and never
//! certified across hosts.

use std::fmt::Debug;
use std::time::Duration;

pub mod command;
pub mod conformance;
pub mod dm_thin;
pub mod pause;
pub(crate) mod process;
pub mod qemu;
pub mod qmp;
pub(crate) mod record;
pub mod watchdog;

pub use pause::{Held, Pause, PauseError, Resumption};

/// A kind of storage, with all that it is told about one volume. See the module on how to add one.
///
/// Snapshots are called by names of letters, digits, `-`, `_` and `.`, at most 64 of them, the first a letter or digit. A
/// name is of one snapshot at a time; after `discard` or `delete` it may come again.
pub trait Backend: Send + Sync + Debug {
    /// What it is and how large. Called often, so it should take no longer than a few milliseconds.
    ///
    /// # Errors
    /// When the volume is not there; people are shown the sentence.
    fn describe(&self) -> Result<Description, BackendError>;

    /// The names of the volume's snapshots that exist now, in any order, those that Coeval did not take too.
    ///
    /// # Errors
    /// When that cannot be told.
    fn list(&self) -> Result<Vec<String>, BackendError>;

    /// Does all that may take time and pauses nothing: writes out what is cached, so that the pause is short, and makes
    /// what the cut needs. Gives what pauses and resumes the volume, opened; none where the backend has no pause.
    ///
    /// # Errors
    /// When no snapshot can be taken. Nothing is left of it then.
    fn prepare(&self, snapshot: &str) -> Result<Option<Held>, BackendError>;

    /// Takes the snapshot: of the state at any one instant within the call. Called while the volume is paused, and right
    /// after that was confirmed, so it must not wait for the volume itself. After `within` the volume is resumed, whatever
    /// this does, and the attempt is void.
    ///
    /// # Errors
    /// When it was not taken, or not within that time. `discard` is called then.
    fn cut(&self, snapshot: &str, within: Duration) -> Result<(), BackendError>;

    /// After the resume: returns once the snapshot survives a loss of power.
    ///
    /// # Errors
    /// When it may not. `discard` is called then.
    fn seal(&self, _snapshot: &str) -> Result<(), BackendError> {
        Ok(())
    }

    /// Removes what `prepare` and `cut` made for a snapshot that came to nothing. The volume is not paused. It may be called
    /// when `cut` was not, failed, or was cut short by a crash; and again.
    ///
    /// # Errors
    /// When something is left of it. It will be called again.
    fn discard(&self, snapshot: &str) -> Result<(), BackendError>;

    /// Deletes a snapshot; one that is not there counts as deleted.
    ///
    /// # Errors
    /// When it is still there.
    fn delete(&self, snapshot: &str) -> Result<(), BackendError>;

    /// Puts the volume back to a snapshot, which stays. What was in the volume is lost. It may be called again after a
    /// failure.
    ///
    /// # Errors
    /// When that cannot be done, or the backend does not do it: the sentence says what to do instead.
    fn restore(&self, snapshot: &str) -> Result<(), BackendError>;
}

/// What a backend says of its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// The kind of backend, as in the configuration: `command`.
    pub kind: &'static str,
    /// The volume's size in bytes; 0 where that means nothing.
    pub size: u64,
    /// Bytes of it that are used; 0 where that is not known.
    pub used: u64,
    /// Whether it has a pause: without, it is never certified across hosts.
    pub pauses: bool,
}

/// Why a backend did not do something: one sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);

impl BackendError {
    /// For `map_err`: what was being done, with the error behind it.
    pub fn at<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> BackendError {
        move |error| BackendError(format!("{what}: {error}"))
    }
}
