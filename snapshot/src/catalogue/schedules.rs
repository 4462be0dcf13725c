//! The catalogue's schedules.

use chrono::{DateTime, Utc};
use rusqlite::{Row, params};

use super::{Catalogue, CatalogueError, from_json};
use crate::schedule::{Outcome, Schedule};

/// The schedules, and which snapshots are whose.
pub(super) const SCHEMA: &str = "
    CREATE TABLE schedules (
        name TEXT PRIMARY KEY,
        definition TEXT NOT NULL,
        handled INTEGER NOT NULL,
        missed INTEGER NOT NULL DEFAULT 0,
        outcome TEXT
    ) STRICT;
    ALTER TABLE snapshots ADD COLUMN schedule TEXT;
";

/// A schedule as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredSchedule {
    /// What it is.
    pub schedule: Schedule,
    /// Due times up to here have been dealt with. To the second.
    pub handled: DateTime<Utc>,
    /// Due times that passed without a snapshot.
    pub missed: u64,
    /// How the last one went.
    pub last: Option<Outcome>,
}

impl Catalogue {
    /// Stores a new schedule, whose first snapshot is due after `now`.
    ///
    /// # Errors
    /// [`CatalogueError::ScheduleExists`] among others.
    pub fn add_schedule(&self, schedule: &Schedule, now: DateTime<Utc>) -> Result<(), CatalogueError> {
        let insert = "INSERT INTO schedules (name, definition, handled) VALUES (?1, ?2, ?3)";
        let definition = serde_json::to_string(schedule)?;
        self.lock().execute(insert, params![schedule.name, definition, now.timestamp()]).map_err(|why| {
            match why.sqlite_error_code() {
                Some(rusqlite::ErrorCode::ConstraintViolation) => {
                    CatalogueError::ScheduleExists(schedule.name.clone())
                }
                _ => why.into(),
            }
        })?;
        Ok(())
    }

    /// Forgets a schedule. Its snapshots stay.
    ///
    /// # Errors
    /// [`CatalogueError::NoSuchSchedule`] among others.
    pub fn remove_schedule(&self, name: &str) -> Result<(), CatalogueError> {
        match self.lock().execute("DELETE FROM schedules WHERE name = ?1", [name])? {
            0 => Err(CatalogueError::NoSuchSchedule(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// All schedules, by name.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn schedules(&self) -> Result<Vec<StoredSchedule>, CatalogueError> {
        let connection = self.lock();
        let mut query =
            connection.prepare("SELECT definition, handled, missed, outcome FROM schedules ORDER BY name")?;
        let rows = query.query_map([], stored)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Due times up to `handled` have been dealt with, `missed` of them without a snapshot. Before the snapshot itself is
    /// taken: a server that dies over it does not begin it again when its time is long past.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn handle_schedule(
        &self,
        name: &str,
        handled: DateTime<Utc>,
        missed: u64,
    ) -> Result<(), CatalogueError> {
        self.lock().execute(
            "UPDATE schedules SET handled = ?2, missed = missed + ?3 WHERE name = ?1",
            params![name, handled.timestamp(), i64::try_from(missed).unwrap_or(i64::MAX)],
        )?;
        Ok(())
    }

    /// Notes how a schedule's last snapshot went.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn note_outcome(&self, name: &str, outcome: &Outcome) -> Result<(), CatalogueError> {
        let outcome = serde_json::to_string(outcome)?;
        self.lock().execute("UPDATE schedules SET outcome = ?2 WHERE name = ?1", params![name, outcome])?;
        Ok(())
    }

    /// The names of a schedule's snapshots that stand, each with when it was asked for.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn snapshots_of(&self, schedule: &str) -> Result<Vec<(DateTime<Utc>, String)>, CatalogueError> {
        let connection = self.lock();
        let mut query = connection.prepare(
            "SELECT created, name FROM snapshots WHERE schedule = ?1 AND state = 'complete' ORDER BY created",
        )?;
        let rows = query.query_map([schedule], |row| {
            let created: String = row.get(0)?;
            Ok((from_json(0, &serde_json::Value::String(created).to_string())?, row.get(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn stored(row: &Row<'_>) -> rusqlite::Result<StoredSchedule> {
    let outcome: Option<String> = row.get(3)?;
    Ok(StoredSchedule {
        schedule: from_json(0, &row.get::<_, String>(0)?)?,
        handled: DateTime::from_timestamp(row.get(1)?, 0).unwrap_or_default(),
        missed: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
        last: outcome.map(|text| from_json(3, &text)).transpose()?,
    })
}
