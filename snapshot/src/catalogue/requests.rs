//! Requests with idempotency keys, and what was answered to each.

use rusqlite::params;
use uuid::Uuid;

use super::{Catalogue, CatalogueError, from_json, parsed};
use crate::messages::operations::OperationEvent;

/// A request's row is there before anything is done for it, and its answer before anybody hears that.
pub(super) const SCHEMA: &str = "
    CREATE TABLE requests (
        key TEXT PRIMARY KEY,
        request TEXT NOT NULL,
        snapshot TEXT NOT NULL,
        answer TEXT,
        at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    ) STRICT;
";

/// A request as it was first made.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRequest {
    /// The request's digest.
    pub request: String,
    /// The snapshot that is taken for it.
    pub snapshot: Uuid,
    /// What came of it; none: it is under way, or was when an earlier run of the server ended.
    pub answer: Option<OperationEvent>,
}

impl Catalogue {
    /// Stores a request under its key, unless there is one: then that is returned. Forgets answers that are older than a
    /// week.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn claim(&self, key: &str, request: &str, snapshot: Uuid) -> Result<StoredRequest, CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        transaction.execute(
            "DELETE FROM requests
             WHERE answer IS NOT NULL AND at < strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-7 days')",
            [],
        )?;
        transaction.execute(
            "INSERT INTO requests (key, request, snapshot) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
            params![key, request, snapshot.to_string()],
        )?;
        let stored = transaction.query_row(
            "SELECT request, snapshot, answer FROM requests WHERE key = ?1",
            [key],
            |row| {
                let answer: Option<String> = row.get(2)?;
                Ok(StoredRequest {
                    request: row.get(0)?,
                    snapshot: parsed(row, 1)?,
                    answer: answer.map(|text| from_json(2, &text)).transpose()?,
                })
            },
        )?;
        transaction.commit()?;
        Ok(stored)
    }

    /// Notes what came of a request.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn note_answer(&self, key: &str, answer: &OperationEvent) -> Result<(), CatalogueError> {
        let answer = serde_json::to_string(answer)?;
        self.lock().execute("UPDATE requests SET answer = ?2 WHERE key = ?1", params![key, answer])?;
        Ok(())
    }
}
