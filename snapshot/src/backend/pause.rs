//! What pauses a volume and resumes it: as data, because the [watchdog](super::watchdog) that does it is another process.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use timesync::time::Nanos;

use super::dm_thin::mapper::{Device, Mapper};
use super::qemu::Machine;
use super::qmp::Qmp;
use crate::sys;

/// How long a monitor may take to greet.
const GREETING: Nanos = Nanos::from_millis(2_000);

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
    /// `stop` and `cont` of a virtual machine, over QMP.
    Machine {
        /// The socket of QEMU's monitor.
        monitor: PathBuf,
    },
    /// Suspend and resume of a device-mapper device. A file system on it is not told.
    Device {
        /// Its name, for people.
        name: String,
        /// Its number, as the kernel encodes it.
        number: u64,
    },
}

/// A pause with the file that it needs: opened before anything is paused, so that resuming opens nothing.
#[derive(Debug)]
pub struct Held {
    /// What it is.
    pub pause: Pause,
    /// The mount point's directory, the connection to the monitor, or the device mapper's control file.
    pub file: OwnedFd,
    machine: Option<Machine>,
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
            Pause::Device { .. } => Mapper::open()?.share()?,
            Pause::Machine { monitor } => {
                let connected = Qmp::connect(monitor, GREETING).map_err(|error| {
                    // A machine that is not there is not paused.
                    let gone = error.is_not_there();
                    io::Error::new(if gone { ErrorKind::NotFound } else { ErrorKind::Other }, error)
                });
                connected?.share()?
            }
        };
        Ok(Held::new(pause, file))
    }

    /// By what is open already.
    pub fn new(pause: Pause, file: OwnedFd) -> Held {
        Held { pause, file, machine: None }
    }

    /// The same for another process.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn try_clone(&self) -> io::Result<Held> {
        Ok(Held::new(self.pause.clone(), self.file.try_clone()?))
    }

    /// Pauses; takes as long as the storage needs to come to rest. One that can give up does so after `within`.
    ///
    /// # Errors
    /// [`PauseError`]: it is not paused by us then.
    pub fn pause(&mut self, within: Nanos) -> Result<(), PauseError> {
        match &self.pause {
            Pause::Machine { .. } => {
                let machine = self.machine().map_err(|error| PauseError::Failed(error.to_string()))?;
                machine.pause(within)
            }
            Pause::Device { name, number } => {
                suspend(&self.mapper().map_err(|error| PauseError::Failed(error.to_string()))?, name, *number)
            }
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
            Pause::Machine { .. } => self.machine()?.resume(),
            Pause::Device { number, .. } => resume(&self.mapper()?, *number),
            Pause::Filesystem { .. } => match sys::thaw(self.file.as_fd()) {
                Ok(()) => Ok(Resumption::Ours),
                Err(Errno::EINVAL) => Ok(Resumption::Others),
                Err(error) => Err(error.into()),
            },
        }
    }

    fn mapper(&self) -> io::Result<Mapper> {
        Ok(Mapper::new(self.file.try_clone()?))
    }

    fn machine(&mut self) -> io::Result<&mut Machine> {
        let socket = match &self.pause {
            Pause::Machine { monitor } => monitor.clone(),
            _ => return Err(ErrorKind::Unsupported.into()),
        };
        match &mut self.machine {
            Some(machine) => Ok(machine),
            none => Ok(none.insert(Machine::new(self.file.try_clone()?, socket))),
        }
    }
}

fn suspend(mapper: &Mapper, name: &str, number: u64) -> Result<(), PauseError> {
    let device = Device::Numbered(number);
    let failed = |error| PauseError::Failed(format!("cannot suspend device {name}: {error}"));
    // The kernel would say yes to a second suspend, too.
    if mapper.status(&device).map_err(failed)?.suspended {
        return Err(PauseError::Busy);
    }
    mapper.suspend(&device).map_err(failed)
}

fn resume(mapper: &Mapper, number: u64) -> io::Result<Resumption> {
    let device = Device::Numbered(number);
    match mapper.status(&device) {
        Ok(status) if status.suspended => {
            mapper.resume(&device)?;
            Ok(Resumption::Ours)
        }
        // Running, or removed.
        Ok(_) | Err(Errno::ENXIO) => Ok(Resumption::Others),
        Err(error) => Err(error.into()),
    }
}
