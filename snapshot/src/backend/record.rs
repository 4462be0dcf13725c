//! What a host remembers of a volume outside Coeval, over crashes: which snapshots are Coeval's, which attempt they came
//! from, and whether the volume may be paused now.
//!
//! One small file for each volume, `VOLUME.json` in the directory `.external` of the volume directory. It is replaced as a
//! whole and durable before anything is paused or cut, and never written while the volume is paused.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use timesync::identity::BootId;
use timesync::time::Nanos;
use uuid::Uuid;

use super::process::Process;
use super::{BackendError, Held, Pause, Resumption};
use crate::orders::AttemptId;

/// No volume can have that name.
const DIRECTORY: &str = ".external";

/// How long a pause that is under way may take.
const PATIENCE: Nanos = Nanos::from_millis(60_000);

/// A volume's record.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    content: Mutex<Content>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    /// Oldest first.
    snapshots: Vec<Entry>,
    /// What may be paused.
    paused: Option<Paused>,
    /// The restore that was done last.
    restored: Option<Uuid>,
    /// How long the last pause took until it was confirmed.
    last_pausing: Option<Nanos>,
}

/// What may be paused, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Paused {
    /// Since this boot of the machine.
    boot: BootId,
    pause: Pause,
    /// Who pauses and resumes it.
    watchdog: Process,
}

/// A snapshot that Coeval took, or is taking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Its name.
    pub(crate) name: String,
    /// Where it came from.
    pub(crate) attempt: AttemptId,
    /// It stands. If not, it is to be discarded when nobody works on it.
    pub(crate) committed: bool,
}

impl Record {
    /// Reads the record of a volume; none yet is an empty one.
    ///
    /// # Errors
    /// When it cannot be read, or is not one.
    pub(crate) fn open(root: &Path, volume: &str) -> Result<Record, BackendError> {
        let directory = root.join(DIRECTORY);
        fs::create_dir_all(&directory)
            .map_err(BackendError::at(format_args!("cannot create {}", directory.display())))?;
        let path = directory.join(format!("{volume}.json"));
        let content = read(&path)?.unwrap_or_default();
        Ok(Record { path, content: Mutex::new(content) })
    }

    /// The snapshots.
    pub(crate) fn snapshots(&self) -> Vec<Entry> {
        self.lock().snapshots.clone()
    }

    /// How long the last pause took until it was confirmed.
    pub(crate) fn last_pausing(&self) -> Option<Nanos> {
        self.lock().last_pausing
    }

    /// The restore that was done last.
    pub(crate) fn restored(&self) -> Option<Uuid> {
        self.lock().restored
    }

    /// An attempt begins: something of its snapshot may exist from here on.
    pub(crate) fn begin(&self, name: &str, attempt: AttemptId) -> Result<(), BackendError> {
        let entry = Entry { name: name.to_owned(), attempt, committed: false };
        self.change(|content| content.snapshots.push(entry))
    }

    /// The volume may be paused from here on, by that watchdog.
    pub(crate) fn may_pause(
        &self,
        boot: BootId,
        pause: &Pause,
        watchdog: Process,
    ) -> Result<(), BackendError> {
        self.change(|content| content.paused = Some(Paused { boot, pause: pause.clone(), watchdog }))
    }

    /// The volume is not paused any more.
    pub(crate) fn resumed(&self, pausing: Option<Nanos>) -> Result<(), BackendError> {
        self.change(|content| {
            content.paused = None;
            content.last_pausing = pausing.or(content.last_pausing);
        })
    }

    /// The snapshot stands.
    pub(crate) fn commit(&self, attempt: AttemptId) -> Result<(), BackendError> {
        self.change(|content| {
            for entry in content.snapshots.iter_mut().filter(|entry| entry.attempt == attempt) {
                entry.committed = true;
            }
        })
    }

    /// The snapshot is gone.
    pub(crate) fn forget(&self, name: &str) -> Result<(), BackendError> {
        self.change(|content| content.snapshots.retain(|entry| entry.name != name))
    }

    /// The volume was restored.
    pub(crate) fn set_restored(&self, restore: Uuid) -> Result<(), BackendError> {
        self.change(|content| content.restored = Some(restore))
    }

    fn change(&self, change: impl FnOnce(&mut Content)) -> Result<(), BackendError> {
        let mut content = self.lock();
        let mut changed = content.clone();
        change(&mut changed);
        write(&self.path, &changed)?;
        *content = changed;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        // Changed by one assignment, once it is stored.
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Resumes whatever an earlier run of the daemon may have left paused, and its watchdog with it: for every record there is,
/// also of volumes that are no longer configured. To be called when no other daemon uses `root`.
///
/// # Errors
/// When a record cannot be read, or something may still be paused.
pub(crate) fn lift_all(root: &Path, boot: BootId) -> Result<(), BackendError> {
    let files = match fs::read_dir(root.join(DIRECTORY)) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BackendError(format!("cannot look for paused volumes: {error}"))),
    };
    let mut outcome = Ok(());
    for file in files
        .flatten()
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
    {
        // One that fails does not keep the others paused.
        if let Err(error) = lift(&file, boot) {
            tracing::error!("{error}");
            outcome = Err(error);
        }
    }
    outcome
}

fn lift(path: &Path, boot: BootId) -> Result<(), BackendError> {
    let Some(mut content) = read(path)? else { return Ok(()) };
    let Some(Paused { boot: since, pause, watchdog }) = content.paused.take() else { return Ok(()) };
    // No pause survives the machine's boot.
    if since == boot {
        // A pause that has begun is carried through by the kernel even if whoever asked for it was killed, and until then there
        // is nothing to resume.
        watchdog.end(PATIENCE).map_err(BackendError::at(format_args!(
            "the watchdog of {pause:?}, which may be paused, is left"
        )))?;
        match Held::open(pause.clone()).and_then(|mut held| held.resume()) {
            Ok(Resumption::Ours) => tracing::warn!(?pause, "it was left paused; resumed"),
            Ok(Resumption::Others) => {}
            // What is not there any more is not paused.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(BackendError(format!("cannot resume {pause:?}, which may be paused: {error}")));
            }
        }
    }
    write(path, &content)
}

fn read(path: &Path) -> Result<Option<Content>, BackendError> {
    let failed =
        |error: &dyn std::fmt::Display| BackendError(format!("cannot read {}: {error}", path.display()));
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|error| failed(&error))?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

/// Durable when this returns; the old one or the new one after a crash.
fn write(path: &Path, content: &Content) -> Result<(), BackendError> {
    let store = || -> io::Result<()> {
        let draft = path.with_extension("draft");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec(content)?)?;
        file.sync_data()?;
        fs::rename(&draft, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    store().map_err(BackendError::at(format_args!("cannot write {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(mount: &Path) -> Pause {
        Pause::Filesystem { mount: mount.to_owned() }
    }

    #[test]
    fn what_was_begun_is_remembered_until_it_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let (boot, attempt) = (BootId(Uuid::new_v4()), Uuid::now_v7());
        let record = Record::open(root.path(), "data").unwrap();
        record.begin("one", attempt).unwrap();
        let watchdog = Process::of(std::process::id()).unwrap();
        record.may_pause(boot, &pause(root.path()), watchdog).unwrap();
        let again = Record::open(root.path(), "data").unwrap();
        assert_eq!(again.snapshots(), [Entry { name: "one".to_owned(), attempt, committed: false }]);
        assert_eq!(again.lock().paused, Some(Paused { boot, pause: pause(root.path()), watchdog }));
        again.resumed(Some(Nanos::new(7))).unwrap();
        again.commit(attempt).unwrap();
        let again = Record::open(root.path(), "data").unwrap();
        assert!(again.snapshots()[0].committed && again.lock().paused.is_none());
        assert_eq!(again.last_pausing(), Some(Nanos::new(7)));
        again.forget("one").unwrap();
        assert_eq!(Record::open(root.path(), "data").unwrap().snapshots(), []);
    }

    #[test]
    fn a_pause_of_an_earlier_boot_is_over() {
        let root = tempfile::tempdir().unwrap();
        let record = Record::open(root.path(), "data").unwrap();
        // Were it of this boot, we would be killed ourselves.
        let watchdog = Process::of(std::process::id()).unwrap();
        record.may_pause(BootId(Uuid::new_v4()), &pause(root.path()), watchdog).unwrap();
        lift_all(root.path(), BootId(Uuid::new_v4())).unwrap();
        assert!(Record::open(root.path(), "data").unwrap().lock().paused.is_none());
    }

    #[test]
    fn a_damaged_record_is_no_empty_one() {
        let root = tempfile::tempdir().unwrap();
        Record::open(root.path(), "data").unwrap();
        fs::write(root.path().join(DIRECTORY).join("data.json"), "{").unwrap();
        assert!(Record::open(root.path(), "data").is_err());
        assert!(lift_all(root.path(), BootId(Uuid::new_v4())).is_err());
    }
}
