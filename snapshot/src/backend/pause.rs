//! What pauses a volume and resumes it: as data, because the [watchdog](super::watchdog) that does it is another process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::sys;

/// A way to pause a volume.
///
/// What it promises: when [`Held::pause`] has returned, every write that was acknowledged before is in the volume, and no
/// write is acknowledged before [`Held::resume`]. Resuming allocates no memory on, and waits for nothing of, the paused
/// volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pause {
    /// FIFREEZE and FITHAW of the file system that is mounted there.
    Filesystem {
        /// The mount point.
        mount: PathBuf,
    },
}

/// A pause with the file that it needs: opened before anything is paused, so that resuming opens nothing.
#[derive(Debug)]
pub struct Held {
    /// What it is.
    pub pause: Pause,
    /// The mount point's directory.
    pub file: OwnedFd,
}

/// How a resume ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// It was paused, and this call resumed it.
    Ours,
    /// It was not paused: somebody else has resumed it before.
    Others,
}

/// Why a volume was not paused. It is not, then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PauseError {
    /// Two owners of one pause would each end the other's.
    #[error("it is paused by somebody else; end that first")]
    Busy,
    /// It cannot be paused.
    #[error("{0}")]
    Failed(String),
}

impl Held {
    /// Opens what the pause needs.
    ///
    /// # Errors
    /// When it is not there.
    pub fn open(pause: Pause) -> io::Result<Held> {
        let file = match &pause {
            Pause::Filesystem { mount } => File::open(mount)?.into(),
        };
        Ok(Held { pause, file })
    }

    /// The same for another process.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn try_clone(&self) -> io::Result<Held> {
        Ok(Held { pause: self.pause.clone(), file: self.file.try_clone()? })
    }

    /// Pauses; takes as long as the storage needs to come to rest.
    ///
    /// # Errors
    /// [`PauseError`]: it is not paused by us then.
    pub fn pause(&mut self) -> Result<(), PauseError> {
        match &self.pause {
            Pause::Filesystem { mount } => sys::freeze(self.file.as_fd()).map_err(|error| match error {
                Errno::EBUSY => PauseError::Busy,
                error => PauseError::Failed(format!("cannot freeze {}: {error}", mount.display())),
            }),
        }
    }

    /// Resumes. May be called again after a failure.
    ///
    /// # Errors
    /// When it may still be paused.
    pub fn resume(&mut self) -> io::Result<Resumption> {
        match &self.pause {
            Pause::Filesystem { .. } => match sys::thaw(self.file.as_fd()) {
                Ok(()) => Ok(Resumption::Ours),
                Err(Errno::EINVAL) => Ok(Resumption::Others),
                Err(error) => Err(error.into()),
            },
        }
    }
}
