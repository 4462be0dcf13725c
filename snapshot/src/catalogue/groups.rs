//! The catalogue's labels and saved groups.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};

use super::{Catalogue, CatalogueError, from_json};
use crate::groups::{Group, LabelChange, Labels};
use crate::messages::Member;

/// Volumes' labels, and groups with names.
pub(super) const SCHEMA: &str = "
    CREATE TABLE labels (
        host TEXT NOT NULL,
        volume TEXT NOT NULL,
        label TEXT NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (host, volume, label)
    ) STRICT;
    CREATE TABLE saved_groups (
        name TEXT PRIMARY KEY,
        definition TEXT NOT NULL
    ) STRICT;
";

impl Catalogue {
    /// Changes a volume's labels, and answers with what it has then.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn change_labels(&self, volume: &Member, change: &LabelChange) -> Result<Labels, CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for (label, value) in change {
            let Member { host, volume } = volume;
            match value {
                Some(value) => transaction.execute(
                    "INSERT INTO labels (host, volume, label, value) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (host, volume, label) DO UPDATE SET value = excluded.value",
                    params![host, volume, label, value],
                )?,
                None => transaction.execute(
                    "DELETE FROM labels WHERE host = ?1 AND volume = ?2 AND label = ?3",
                    params![host, volume, label],
                )?,
            };
        }
        let labels = {
            let mut query =
                transaction.prepare("SELECT label, value FROM labels WHERE host = ?1 AND volume = ?2")?;
            let rows =
                query.query_map([&volume.host, &volume.volume], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        transaction.commit()?;
        Ok(labels)
    }

    /// Forgets the labels of a volume that is gone.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn forget_labels(&self, volume: &Member) -> Result<(), CatalogueError> {
        let delete = "DELETE FROM labels WHERE host = ?1 AND volume = ?2";
        self.lock().execute(delete, [&volume.host, &volume.volume])?;
        Ok(())
    }

    /// The volumes that have labels of their own.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn labels(&self) -> Result<BTreeMap<Member, Labels>, CatalogueError> {
        let connection = self.lock();
        let mut query = connection.prepare("SELECT host, volume, label, value FROM labels")?;
        let rows = query.query_map([], |row| {
            Ok((Member { host: row.get(0)?, volume: row.get(1)? }, row.get(2)?, row.get(3)?))
        })?;
        let mut labels: BTreeMap<Member, Labels> = BTreeMap::new();
        for row in rows {
            let (member, label, value) = row?;
            labels.entry(member).or_default().insert(label, value);
        }
        Ok(labels)
    }

    /// Stores a new group.
    ///
    /// # Errors
    /// [`CatalogueError::GroupExists`] among others.
    pub fn add_group(&self, group: &Group) -> Result<(), CatalogueError> {
        let insert = "INSERT INTO saved_groups (name, definition) VALUES (?1, ?2)";
        let definition = serde_json::to_string(group)?;
        self.lock().execute(insert, [&group.name, &definition]).map_err(|why| {
            match why.sqlite_error_code() {
                Some(rusqlite::ErrorCode::ConstraintViolation) => {
                    CatalogueError::GroupExists(group.name.clone())
                }
                _ => why.into(),
            }
        })?;
        Ok(())
    }

    /// Forgets a group. Its snapshots stay.
    ///
    /// # Errors
    /// [`CatalogueError::NoSuchGroup`] among others.
    pub fn remove_group(&self, name: &str) -> Result<(), CatalogueError> {
        match self.lock().execute("DELETE FROM saved_groups WHERE name = ?1", [name])? {
            0 => Err(CatalogueError::NoSuchGroup(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// A group.
    ///
    /// # Errors
    /// [`CatalogueError::NoSuchGroup`] among others.
    pub fn group(&self, name: &str) -> Result<Group, CatalogueError> {
        let query = "SELECT definition FROM saved_groups WHERE name = ?1";
        let found = self.lock().query_row(query, [name], |row| from_json(0, &row.get::<_, String>(0)?));
        found.optional()?.ok_or_else(|| CatalogueError::NoSuchGroup(name.to_owned()))
    }

    /// All groups, by name.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn groups(&self) -> Result<Vec<Group>, CatalogueError> {
        let connection = self.lock();
        let mut query = connection.prepare("SELECT definition FROM saved_groups ORDER BY name")?;
        let rows = query.query_map([], |row| from_json(0, &row.get::<_, String>(0)?))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
