//! Small texts that a host keeps by attempt, beside its volumes: `.records/ATTEMPT.json`.
//!
//! # Order of writes
//!
//! A text is written to `new` and synced, renamed to its name, and the directory is synced: it is there as a whole or
//! not at all. A record is durable before a volume takes the attempt's name, and is removed after no volume has it.

use uuid::Uuid;

use super::storage::Directory;
use super::{VolumeError, at_path};

/// No volume can have that name.
const DIRECTORY: &str = ".records";
const NEW: &str = "new";

/// The records of one host. The directory is made with the first of them.
#[derive(Debug)]
pub(crate) struct Records {
    root: Directory,
    directory: Directory,
    /// Whether the directory's own name is known to be durable.
    durable: bool,
}

impl Records {
    /// Those beside the volumes in `root`.
    pub(crate) fn beside(root: &Directory) -> Self {
        Records { root: root.clone(), directory: root.child(DIRECTORY), durable: false }
    }

    /// Writes or replaces one: durable when this returns.
    pub(crate) fn put(&mut self, attempt: Uuid, text: &[u8]) -> Result<(), VolumeError> {
        if !self.durable {
            self.directory.make()?;
            self.root.sync()?;
            self.durable = true;
        }
        let file = self.directory.create(NEW, 0)?;
        let written = file.write(0, text).and_then(|()| file.sync_data());
        written.map_err(at_path(&self.directory.path().join(NEW)))?;
        self.directory.rename(NEW, &name(attempt))?;
        self.directory.sync()
    }

    /// One's text; none if there is none.
    pub(crate) fn get(&self, attempt: Uuid) -> Result<Option<Vec<u8>>, VolumeError> {
        let name = name(attempt);
        if self.directory.has(&name) { self.directory.read(&name).map(Some) } else { Ok(None) }
    }

    /// All there are, oldest first.
    pub(crate) fn list(&self) -> Result<Vec<Uuid>, VolumeError> {
        if !self.root.has(DIRECTORY) {
            return Ok(Vec::new());
        }
        let names = self.directory.names()?;
        let mut attempts: Vec<Uuid> =
            names.iter().filter_map(|name| name.strip_suffix(".json")?.parse().ok()).collect();
        attempts.sort();
        Ok(attempts)
    }

    /// Removes one. A crash may bring it back.
    pub(crate) fn remove(&self, attempt: Uuid) -> Result<(), VolumeError> {
        self.directory.remove(&name(attempt))
    }
}

fn name(attempt: Uuid) -> String {
    format!("{attempt}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_kept_replaced_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let mut records = Records::beside(&Directory::on_disk(directory.path()));
        assert!(records.list().unwrap().is_empty());
        let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
        records.put(second, b"two").unwrap();
        records.put(first, b"one, at first").unwrap();
        records.put(first, b"one").unwrap();
        let records = Records::beside(&Directory::on_disk(directory.path()));
        assert_eq!(records.list().unwrap(), [first, second]);
        assert_eq!(records.get(first).unwrap().as_deref(), Some(&b"one"[..]));
        records.remove(first).unwrap();
        assert_eq!(records.list().unwrap(), [second]);
        assert_eq!(records.get(first).unwrap(), None);
    }
}
