//! Hooks that are owed: begun before a snapshot, and not yet known to have been ended after it.

use rusqlite::params;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Catalogue, CatalogueError, from_json, parsed};
use crate::hooks::{About, Hook};
use crate::messages::StoryEntry;

/// A row goes in the transaction that tells what became of the hook.
pub(super) const SCHEMA: &str = "
    CREATE TABLE hooks (
        snapshot TEXT NOT NULL,
        debt TEXT NOT NULL,
        PRIMARY KEY (snapshot, debt)
    ) STRICT;
";

/// Whose hook is owed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Debt {
    /// A host's: it runs there, and the host knows what.
    Host(String),
    /// This server's own.
    Own {
        /// Its name in the configuration.
        name: String,
        /// What is to be run, as it was when the other one was.
        after: Option<Hook>,
        /// What it is told.
        about: About,
    },
}

impl Catalogue {
    /// Notes that a hook is owed, before the one before the snapshot is started.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn owe_hooks(&self, snapshot: Uuid, debts: &[Debt]) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for debt in debts {
            let debt = serde_json::to_string(debt)?;
            transaction.execute("INSERT INTO hooks VALUES (?1, ?2)", params![snapshot.to_string(), debt])?;
        }
        Ok(transaction.commit()?)
    }

    /// The hooks that are owed: of one snapshot, or of all.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn hooks_owed(&self, snapshot: Option<Uuid>) -> Result<Vec<(Uuid, Debt)>, CatalogueError> {
        let connection = self.lock();
        let mut query = connection.prepare_cached(
            "SELECT snapshot, debt FROM hooks WHERE ?1 IS NULL OR snapshot = ?1 ORDER BY rowid",
        )?;
        let rows = query.query_map([snapshot.map(|id| id.to_string())], |row| {
            Ok((parsed(row, 0)?, from_json(1, &row.get::<_, String>(1)?)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A hook has ended: it is owed no more, and the snapshot's story says what became of it.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn settle_hook(&self, snapshot: Uuid, debt: &Debt, entry: &StoryEntry) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        transaction.execute(
            "DELETE FROM hooks WHERE snapshot = ?1 AND debt = ?2",
            params![snapshot.to_string(), serde_json::to_string(debt)?],
        )?;
        super::insert_story(&transaction, snapshot, entry)?;
        Ok(transaction.commit()?)
    }
}
