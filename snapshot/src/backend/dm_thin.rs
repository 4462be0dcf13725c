//! Backend `dm-thin`: thin volumes of the device mapper, in pools that nobody else keeps the books of.
//!
//! The volume is suspended, without telling a file system on it; the pool is told to make a snapshot; the volume goes on.
//! All three are requests to the kernel's device mapper, with nothing started and nothing waited for.
//!
//! A pool knows its devices by numbers of 24 bits, and does not say which are in use. Which of them are Coeval's is kept in
//! `thin.json`, replaced as a whole. In this order, so that a crash loses no number for long and no device of anybody else
//! is ever deleted:
//!
//! 1. `thin.json` says that a number is tried.
//! 2. The pool makes an empty device of that number. It refuses if there is one: that one is somebody else's, and the next
//!    number is tried.
//! 3. `thin.json` says that the number is ours. From here on whatever the pool has by this number may be deleted.
//! 4. The empty device is deleted; in the cut, a snapshot takes its number.

pub mod mapper;

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::{Backend, BackendError, Description, Held, Pause};
use crate::sync::{Mutex, MutexGuard};
use mapper::{Device, Mapper, Status};

const SECTOR: u64 = 512;

/// Numbers are tried from here on, upwards: people begin at 0.
const FIRST: u32 = 1 << 23;
/// A number has 24 bits.
const LAST: u32 = (1 << 24) - 1;

/// What the backend is told about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmThinOptions {
    /// The name of the thin device under /dev/mapper.
    pub device: String,
    /// Where `thin.json` is: not on the volume.
    pub directory: PathBuf,
}

/// A thin volume.
#[derive(Debug)]
pub struct DmThin {
    options: DmThinOptions,
    mapper: Mapper,
    /// Locked while the numbers are looked at or changed.
    numbers: Mutex<()>,
}

/// What `thin.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbers {
    /// The next one that is tried. It may be somebody else's.
    next: u32,
    /// Those that are ours, with the snapshots that have them.
    snapshots: Vec<Numbered>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Numbered {
    name: String,
    number: u32,
    /// Once the snapshot is there.
    taken: bool,
}

/// The volume as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Thin {
    device: Device,
    pool: Device,
    pool_name: String,
    /// Its number in the pool.
    number: u32,
    sectors: u64,
}

impl DmThin {
    /// Over a device that need not be there yet.
    ///
    /// # Errors
    /// When there is no device mapper, or the directory cannot be used.
    pub fn new(options: DmThinOptions) -> Result<Self, BackendError> {
        let directory = &options.directory;
        fs::create_dir_all(directory)
            .map_err(BackendError::at(format!("cannot use {}", directory.display())))?;
        let mapper =
            Mapper::open().map_err(BackendError::at("cannot open /dev/mapper/control (modprobe dm-mod?)"))?;
        let volume = DmThin { options, mapper, numbers: Mutex::default() };
        volume.load()?;
        Ok(volume)
    }

    fn name(&self) -> &str {
        &self.options.device
    }

    fn find(&self) -> Result<(Thin, Status), BackendError> {
        let name = self.name();
        let failed = |error| match error {
            Errno::ENXIO => BackendError(format!("there is no device /dev/mapper/{name}; create it first")),
            error => BackendError(format!("cannot look at device {name}: {error}")),
        };
        let device = Device::Named(name.to_owned());
        let status = self.mapper.status(&device).map_err(failed)?;
        let table = self.mapper.table(&device).map_err(failed)?;
        let (number, sectors, pool) = match table.as_slice() {
            [only] if only.kind == "thin" => {
                let (pool, number) = parse_thin(&only.parameters).ok_or_else(|| {
                    BackendError(format!("device {name} is described in unknown terms: {}", only.parameters))
                })?;
                (number, only.length, Device::Numbered(pool))
            }
            _ => {
                return Err(BackendError(format!("device {name} is no thin volume of a device-mapper pool")));
            }
        };
        let pool_status = self.mapper.status(&pool).map_err(failed)?;
        for (what, uuid) in [(name, &status.uuid), (&pool_status.name, &pool_status.uuid)] {
            if uuid.starts_with("LVM-") {
                return Err(BackendError(format!(
                    "device {what} is LVM's, which keeps books of its own; use backend = \"command\" with the configuration for LVM"
                )));
            }
        }
        let device = Device::Numbered(status.number);
        Ok((Thin { device, pool, pool_name: pool_status.name, number, sectors }, status))
    }

    fn tell(&self, thin: &Thin, message: &str) -> nix::Result<()> {
        self.mapper.message(&thin.pool, message)
    }

    /// A number that is ours, and unused.
    fn reserve(&self, thin: &Thin, snapshot: &str) -> Result<u32, BackendError> {
        let mut numbers = self.load()?;
        loop {
            let number = numbers.next;
            if number > LAST {
                return Err(BackendError(format!("pool {} has no numbers left", thin.pool_name)));
            }
            numbers.next += 1;
            self.save(&numbers)?;
            match self.tell(thin, &format!("create_thin {number}")) {
                Ok(()) => {
                    numbers.snapshots.push(Numbered { name: snapshot.to_owned(), number, taken: false });
                    self.save(&numbers)?;
                    self.delete_number(thin, number)?;
                    return Ok(number);
                }
                Err(Errno::EEXIST) => {}
                Err(error) => {
                    return Err(BackendError(format!("pool {} makes no device: {error}", thin.pool_name)));
                }
            }
        }
    }

    /// Deletes a device that is ours; one that is not there counts as deleted.
    fn delete_number(&self, thin: &Thin, number: u32) -> Result<(), BackendError> {
        match self.tell(thin, &format!("delete {number}")) {
            Ok(()) | Err(Errno::ENODATA | Errno::ENOENT) => Ok(()),
            Err(Errno::EBUSY) => Err(BackendError(format!(
                "device {number} of pool {} is in use; remove the mapped device that shows it (dmsetup remove)",
                thin.pool_name
            ))),
            Err(error) => Err(BackendError(format!("pool {} does not delete: {error}", thin.pool_name))),
        }
    }

    fn remove(&self, snapshot: &str, thin: &Thin) -> Result<(), BackendError> {
        let mut numbers = self.load()?;
        for numbered in numbers.snapshots.iter().filter(|numbered| numbered.name == snapshot) {
            self.delete_number(thin, numbered.number)?;
        }
        numbers.snapshots.retain(|numbered| numbered.name != snapshot);
        self.save(&numbers)
    }

    fn path(&self) -> PathBuf {
        self.options.directory.join("thin.json")
    }

    fn load(&self) -> Result<Numbers, BackendError> {
        let failed = BackendError::at(format!("cannot read {}", self.path().display()));
        match fs::read(self.path()) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from).map_err(failed),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Ok(Numbers { next: FIRST, snapshots: Vec::new() })
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn save(&self, numbers: &Numbers) -> Result<(), BackendError> {
        let path = self.path();
        replace(&path, numbers).map_err(BackendError::at(format!("cannot write {}", path.display())))
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // What it guards is on disk, and whole.
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for DmThin {
    fn describe(&self) -> Result<Description, BackendError> {
        let (thin, _) = self.find()?;
        let state = self.mapper.state(&thin.device).unwrap_or_default();
        let used = state.first().and_then(|target| target.parameters.split(' ').next()?.parse::<u64>().ok());
        Ok(Description {
            kind: "dm-thin",
            size: thin.sectors * SECTOR,
            used: used.unwrap_or(0) * SECTOR,
            pauses: true,
        })
    }

    fn list(&self) -> Result<Vec<String>, BackendError> {
        let taken = self.load()?.snapshots.into_iter().filter(|numbered| numbered.taken);
        Ok(taken.map(|numbered| numbered.name).collect())
    }

    fn prepare(&self, snapshot: &str) -> Result<Option<Held>, BackendError> {
        let _lock = self.lock();
        let (thin, status) = self.find()?;
        if status.suspended {
            return Err(BackendError(format!(
                "device {0} is suspended; whoever did that has to end it, with dmsetup resume {0}",
                self.name()
            )));
        }
        let state = fs::metadata(&self.options.directory);
        if state.is_ok_and(|state| state.dev() == status.number) {
            return Err(BackendError(format!(
                "{} is on the volume itself; choose a directory that is not suspended with it",
                self.options.directory.display()
            )));
        }
        if self.load()?.snapshots.iter().any(|numbered| numbered.name == snapshot) {
            return Err(BackendError(format!("there is a snapshot {snapshot} already; choose another name")));
        }
        self.reserve(&thin, snapshot)?;
        let control = self.mapper.share().map_err(BackendError::at("no file descriptors left"))?;
        let pause = Pause::Device { name: self.name().to_owned(), number: status.number };
        Ok(Some(Held::new(pause, control)))
    }

    fn cut(&self, snapshot: &str, _within: Duration) -> Result<(), BackendError> {
        let _lock = self.lock();
        let numbers = self.load()?;
        let Some(numbered) = numbers.snapshots.iter().find(|numbered| numbered.name == snapshot) else {
            return Err(BackendError(format!("snapshot {snapshot} was not prepared")));
        };
        let (thin, status) = self.find()?;
        if !status.suspended {
            // The pool would take a snapshot all the same, of no one instant.
            return Err(BackendError(format!("device {} is not suspended any more", self.name())));
        }
        let told = self.tell(&thin, &format!("create_snap {} {}", numbered.number, thin.number));
        told.map_err(BackendError::at(format!("pool {} takes no snapshot", thin.pool_name)))
    }

    /// The pool has written its own books when it answers a message.
    fn seal(&self, snapshot: &str) -> Result<(), BackendError> {
        let _lock = self.lock();
        let mut numbers = self.load()?;
        let found = numbers.snapshots.iter_mut().find(|numbered| numbered.name == snapshot);
        found.ok_or_else(|| BackendError(format!("snapshot {snapshot} was not taken")))?.taken = true;
        self.save(&numbers)
    }

    fn discard(&self, snapshot: &str) -> Result<(), BackendError> {
        self.delete(snapshot)
    }

    fn delete(&self, snapshot: &str) -> Result<(), BackendError> {
        let _lock = self.lock();
        if !self.load()?.snapshots.iter().any(|numbered| numbered.name == snapshot) {
            return Ok(());
        }
        self.remove(snapshot, &self.find()?.0)
    }

    fn restore(&self, snapshot: &str) -> Result<(), BackendError> {
        let numbers = self.load()?;
        let Some(numbered) = numbers.snapshots.iter().find(|numbered| numbered.name == snapshot) else {
            return Err(BackendError(format!("there is no snapshot {snapshot}")));
        };
        let (thin, _) = self.find()?;
        Err(BackendError(format!(
            "a device of dm-thin is not put back in place; copy the snapshot over it while nobody uses it: dmsetup create {snapshot} --readonly --table \"0 {} thin /dev/mapper/{} {}\", then dd",
            thin.sectors, thin.pool_name, numbered.number
        )))
    }
}

/// `MAJOR:MINOR NUMBER` of a thin target's table: the pool's device number as the kernel encodes it, and the device's
/// number in it.
fn parse_thin(parameters: &str) -> Option<(u64, u32)> {
    let mut words = parameters.split(' ');
    let (major, minor) = words.next()?.split_once(':')?;
    let number = words.next()?.parse().ok()?;
    // An external origin would be a third word: its blocks are in no snapshot of the pool's own.
    if words.next().is_some_and(|word| !word.is_empty()) {
        return None;
    }
    Some((nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?), number))
}

/// Replaces a file as a whole, durably.
fn replace(path: &Path, numbers: &Numbers) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file = File::create(&draft)?;
    file.write_all(&serde_json::to_vec_pretty(numbers)?)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thin_devices_table_names_its_pool_and_its_number() {
        assert_eq!(parse_thin("253:2 17"), Some((nix::sys::stat::makedev(253, 2), 17)));
        for other in ["", "253:2", "253 17", "253:2 x", "253:2 17 253:9"] {
            assert_eq!(parse_thin(other), None, "{other}");
        }
    }

    #[test]
    fn numbers_are_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("thin.json");
        let taken = Numbered { name: "s".to_owned(), number: FIRST, taken: true };
        let numbers = Numbers { next: FIRST + 1, snapshots: vec![taken] };
        replace(&path, &numbers).unwrap();
        assert_eq!(serde_json::from_slice::<Numbers>(&fs::read(path).unwrap()).unwrap(), numbers);
    }
}
