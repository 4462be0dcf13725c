//! What an NBD export stands on: a volume, or a snapshot of one.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use crate::cut::Cut;

/// What became of a request.
///
/// The device has done the work; whether the *answer* may leave now is the cut's to say: a reply with `hold` set, an
/// error reply too, is sent only after a reading that [`Cut::may_release`] allows (R2, R3).
#[must_use = "a reply that ignores `hold` leaks a write from beyond the cut"]
#[derive(Debug)]
pub struct Outcome {
    /// How the request went.
    pub result: Result<(), DeviceError>,
    /// The cut that the reply waits for.
    pub hold: Option<Arc<Cut>>,
}

impl Outcome {
    /// An answer that may leave at once.
    pub fn now(result: Result<(), DeviceError>) -> Self {
        Outcome { result, hold: None }
    }
}

/// Why a request failed, in the terms that a block protocol has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The range is not inside the device, or not aligned as it must be.
    #[error("the request does not fit the device")]
    Invalid,
    /// There is no room for the data. Nothing else is affected.
    #[error("no space left for the volume's data")]
    NoSpace,
    /// The device is read-only.
    #[error("the export is read-only")]
    ReadOnly,
    /// The storage below failed.
    #[error("input/output error")]
    Io,
    /// Not supported, and not done.
    #[error("not supported")]
    Unsupported,
}

impl From<std::io::Error> for DeviceError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded
            | std::io::ErrorKind::FileTooLarge => DeviceError::NoSpace,
            std::io::ErrorKind::Unsupported => DeviceError::Unsupported,
            _ => DeviceError::Io,
        }
    }
}

/// Disconnects a client.
pub type Disconnect = Box<dyn Fn() + Send + Sync>;

/// Is told the runs of a range of bytes, in order and without gaps, each with what was asked about it; breaks when it
/// needs no more.
pub type Visit<'a> = dyn FnMut(Range<u64>, bool) -> ControlFlow<()> + 'a;

/// What has changed in a device since a snapshot. The snapshot cannot be deleted while this lives.
pub trait Changes: Send + Sync {
    /// Tells which runs of `range` may have changed. The rest reads as in the snapshot.
    fn within(&self, range: Range<u64>, visit: &mut Visit<'_>) -> Outcome;
}

/// A block device. All methods may be called from many threads at once; each call does one whole request and blocks for
/// as long as the storage takes. Offsets and lengths are in bytes and need no alignment.
pub trait Device: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Whether everything that changes it fails with [`DeviceError::ReadOnly`].
    fn read_only(&self) -> bool;

    /// Fills `buffer` from `offset`.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome;

    /// Writes `data`; with `fua` it is durable before this returns. The whole request was received before the call.
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Outcome;

    /// Makes a range read as zeros; with `may_punch` its space may be given back.
    fn write_zeroes(&self, offset: u64, length: u64, may_punch: bool, fua: bool) -> Outcome;

    /// Forgets a range: it reads as zeros afterwards, and its space is given back where the file system can.
    fn trim(&self, offset: u64, length: u64, fua: bool) -> Outcome;

    /// Makes every write answered before this call durable.
    fn flush(&self) -> Outcome;

    /// As [`Device::write_zeroes`], but only where that takes no longer for being long; else it fails with
    /// [`DeviceError::Unsupported`] and has changed nothing.
    fn write_zeroes_fast(&self, _offset: u64, _length: u64, _may_punch: bool, _fua: bool) -> Outcome {
        Outcome::now(Err(DeviceError::Unsupported))
    }

    /// Is told that a range will be read soon.
    fn cache(&self, _offset: u64, _length: u64) -> Outcome {
        Outcome::now(Ok(()))
    }

    /// Tells which runs of `range` read as zeros and take no space. It is a read: what it tells of a held write waits
    /// with that write (R3).
    fn holes(&self, range: Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        // The one run that there is: whether it suffices makes no difference.
        let _ = visit(range, false);
        Outcome::now(Ok(()))
    }

    /// The snapshots that [`Device::changes_since`] knows.
    fn snapshots(&self) -> Vec<String> {
        Vec::new()
    }

    /// What has changed since a snapshot; None if there is no such snapshot.
    fn changes_since(&self, _snapshot: &str) -> Option<Box<dyn Changes>> {
        None
    }

    /// Says how to disconnect the client that this was opened for: done when the volume is to be restored under it.
    /// The device is expected to be dropped soon after. One that is never taken from its client needs no answer.
    fn on_disconnect(&self, _disconnect: Disconnect) {}
}

/// The exports an NBD server offers: `volume` and `volume@snapshot`.
pub trait Exports: Send + Sync {
    /// Their names, sorted.
    fn list(&self) -> Vec<String>;

    /// What people should know of one.
    fn describe(&self, _name: &str) -> Option<String> {
        None
    }

    /// Why this client is offered nothing at all: a sentence.
    fn refusal(&self) -> Option<String> {
        None
    }

    /// Opens one; it stays in use (and cannot be deleted) while the device lives. None if there is no such export, or
    /// nobody is let in at present.
    fn open(&self, name: &str) -> Option<Arc<dyn Device>>;
}
