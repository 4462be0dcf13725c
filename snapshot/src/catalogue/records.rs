//! Snapshots as hosts keep them, and back.

use rusqlite::params;
use uuid::Uuid;

use super::{Catalogue, CatalogueError, word};
use crate::messages::{Snapshot, SnapshotState};
use crate::orders::AttemptId;
use crate::record::{Record, VERSION};

impl Catalogue {
    /// What hosts keep of a snapshot.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn record(&self, id: Uuid) -> Result<Record, CatalogueError> {
        let snapshot = self.find(&id.to_string())?;
        let complete = matches!(snapshot.state, SnapshotState::Complete | SnapshotState::Inconsistent);
        Ok(Record { version: VERSION, complete, evidence: self.evidence(id)?, snapshot })
    }

    /// The attempt that came to something.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn attempt_of(&self, id: Uuid) -> Result<Option<AttemptId>, CatalogueError> {
        // Ids of attempts sort by time, as texts too.
        let query = "SELECT max(attempt) FROM attempts WHERE snapshot = ?1";
        let found: Option<String> = self.lock().query_row(query, [id.to_string()], |row| row.get(0))?;
        Ok(found.and_then(|attempt| attempt.parse().ok()))
    }

    /// Takes in a snapshot as its hosts kept it.
    ///
    /// # Errors
    /// [`CatalogueError::NameTaken`] among others.
    pub fn restore_row(&self, attempt: AttemptId, record: &Record) -> Result<(), CatalogueError> {
        let Record { snapshot, evidence, .. } = record;
        let Snapshot { id, name, state, why, created, manifest, schedule } = snapshot;
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let insert = "INSERT INTO snapshots (id, name, state, why, created, manifest, evidence, schedule)
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let manifest_text = manifest.as_ref().map(serde_json::to_string).transpose()?;
        let evidence = evidence.as_ref().map(serde_json::to_string).transpose()?;
        let row =
            params![id.to_string(), name, word(state)?, why, created, manifest_text, evidence, schedule];
        transaction.execute(insert, row).map_err(|why| match why.sqlite_error_code() {
            Some(rusqlite::ErrorCode::ConstraintViolation) => CatalogueError::NameTaken(name.clone()),
            _ => why.into(),
        })?;
        for host in manifest.iter().flat_map(|manifest| &manifest.hosts) {
            transaction.execute(
                "INSERT INTO attempts (attempt, snapshot, host, owed) VALUES (?1, ?2, ?3, 0)",
                params![attempt.to_string(), id.to_string(), host.host],
            )?;
        }
        Ok(transaction.commit()?)
    }
}
