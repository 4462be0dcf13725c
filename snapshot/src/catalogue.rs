//! The server's memory of its snapshots: one SQLite database in its state directory.
//!
//! Order of writes, so that a crash at any point leaves nothing that is called consistent without being so:
//! 1. the row `planning`, then each attempt with the hosts that it will be sent to, before anything is sent;
//! 2. `committing` with manifest and evidence, before any host is told the name;
//! 3. `complete`, after every host has taken the name. In the same transaction the attempt's hosts stop being owed an
//!    abort.
//!
//! Whatever is found in `planning` or `committing` at start-up has failed, and its hosts are owed an abort until each
//! has answered one. Every commit is synced (`synchronous=FULL`).

mod groups;
mod hooks;
mod records;
mod requests;
mod restores;
mod schedules;

pub use hooks::Debt;
pub use requests::StoredRequest;
pub use schedules::StoredSchedule;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use timesync::time::{Server, Time};
use uuid::Uuid;

use crate::certificate::Evidence;
use crate::messages::{Manifest, Member, Snapshot, SnapshotState, Step, StoryEntry};
use crate::orders::AttemptId;

const SCHEMA_VERSION: i64 = 6;

/// A failed snapshot gives its name back; any other holds it.
const SCHEMA: &str = "
    CREATE TABLE snapshots (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        state TEXT NOT NULL,
        why TEXT,
        manifest TEXT,
        evidence TEXT,
        created TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
    ) STRICT;
    CREATE UNIQUE INDEX held_names ON snapshots (name) WHERE state <> 'failed';
    CREATE TABLE attempts (
        attempt TEXT NOT NULL,
        snapshot TEXT NOT NULL,
        host TEXT NOT NULL,
        owed INTEGER NOT NULL,
        PRIMARY KEY (attempt, host)
    ) STRICT;
    CREATE TABLE story (
        snapshot TEXT NOT NULL,
        attempt TEXT NOT NULL,
        at_ns INTEGER NOT NULL,
        step TEXT NOT NULL,
        host TEXT,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX story_of_snapshot ON story (snapshot);
";

/// Restores that are on their way: `preparing` until every host is prepared, then `decided` until every host has
/// switched.
const RESTORES: &str = "
    CREATE TABLE restores (
        id TEXT PRIMARY KEY,
        state TEXT NOT NULL,
        plan TEXT NOT NULL
    ) STRICT;
";

const COLUMNS: &str = "id, name, state, why, created, manifest, schedule";

/// Why the catalogue cannot do what it was asked. Each is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Two servers on one state directory would undo each other's snapshots.
    #[error("another server uses {}; stop it, or give this one its own state directory", .0.display())]
    InUse(PathBuf),
    /// The directory is unusable.
    #[error("cannot use the state directory {}: {why}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        why: std::io::Error,
    },
    /// Written by a later version of this program.
    #[error(
        "the catalogue has schema {found}, newer than the {SCHEMA_VERSION} that this version knows; upgrade coeval"
    )]
    Newer {
        /// Its schema version.
        found: i64,
    },
    /// SQLite failed.
    #[error("the catalogue failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// A stored value is not what this program stores.
    #[error("the catalogue holds a value that does not parse: {0}")]
    Corrupt(#[from] serde_json::Error),
    /// The name is taken.
    #[error("a snapshot called {0} exists already; delete it or choose another name")]
    NameTaken(String),
    /// There is no such snapshot.
    #[error("there is no snapshot {0}")]
    NoSuch(String),
    /// The schedule's name is taken.
    #[error("a schedule called {0} exists already; delete it or choose another name")]
    ScheduleExists(String),
    /// There is no such schedule.
    #[error("there is no schedule {0}")]
    NoSuchSchedule(String),
    /// The group's name is taken.
    #[error("a group called {0} exists already; delete it or choose another name")]
    GroupExists(String),
    /// There is no such group.
    #[error("there is no group {0}; `coeval group list` shows what there is")]
    NoSuchGroup(String),
    /// A restore of the volume is decided, and not done yet.
    #[error(
        "volume {0} is still to be restored: its host has not answered yet, and is asked until it has; try again then, or \
         without it"
    )]
    BeingRestored(Member),
    /// Its state does not allow it.
    #[error("snapshot {name} is {state}; wait until it is done")]
    Busy {
        /// Which.
        name: String,
        /// Its state.
        state: String,
    },
}

/// The catalogue, open. No other process has it open meanwhile.
#[derive(Debug)]
pub struct Catalogue {
    connection: Mutex<Connection>,
    _lock: Option<Flock<std::fs::File>>,
}

/// Brings the schema up to date, and takes up what a server left that died.
fn prepare(connection: &mut Connection) -> Result<(), CatalogueError> {
    let transaction = connection.transaction()?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > SCHEMA_VERSION {
        return Err(CatalogueError::Newer { found });
    }
    // Each version's schema is what it added to the one before.
    let versions = [SCHEMA, schedules::SCHEMA, RESTORES, groups::SCHEMA, hooks::SCHEMA, requests::SCHEMA];
    for (version, added) in (1..).zip(versions) {
        if found < version {
            transaction.execute_batch(added)?;
        }
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    // Hosts give up by themselves what nobody goes on with.
    transaction.execute("DELETE FROM restores WHERE state = 'preparing'", [])?;
    transaction.execute(
        "UPDATE snapshots SET state = 'failed', why = 'the server stopped while the snapshot was being taken'
         WHERE state IN ('planning', 'committing')",
        [],
    )?;
    Ok(transaction.commit()?)
}

impl Catalogue {
    /// Opens (or creates) the catalogue in `directory`. Snapshots that were being taken when the last server died are
    /// `failed` from here on.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn open(directory: &Path) -> Result<Self, CatalogueError> {
        let unusable = |why| CatalogueError::Directory { path: directory.to_owned(), why };
        std::fs::create_dir_all(directory).map_err(unusable)?;
        let file = std::fs::File::create(directory.join("server.lock")).map_err(unusable)?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, why)| match why {
            nix::errno::Errno::EWOULDBLOCK => CatalogueError::InUse(directory.to_owned()),
            other => unusable(other.into()),
        })?;
        let mut connection = Connection::open(directory.join("catalogue.sqlite"))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        prepare(&mut connection)?;
        Ok(Catalogue { connection: Mutex::new(connection), _lock: Some(lock) })
    }

    /// A catalogue that lives no longer than this value: a simulator's disk.
    ///
    /// # Errors
    /// [`CatalogueError`].
    #[cfg(feature = "simulation")]
    pub fn in_memory() -> Result<Self, CatalogueError> {
        let mut connection = Connection::open_in_memory()?;
        prepare(&mut connection)?;
        Ok(Catalogue { connection: Mutex::new(connection), _lock: None })
    }

    /// What [`Catalogue::open`] does with what it finds, as if a server had died and another one begun.
    ///
    /// # Errors
    /// [`CatalogueError`].
    #[cfg(feature = "simulation")]
    pub fn reopen(&self) -> Result<(), CatalogueError> {
        prepare(&mut self.lock())
    }

    /// Starts a snapshot, of a schedule or of nobody.
    ///
    /// # Errors
    /// [`CatalogueError::NameTaken`] among others.
    pub fn begin(&self, id: Uuid, name: &str, schedule: Option<&str>) -> Result<(), CatalogueError> {
        let insert = "INSERT INTO snapshots (id, name, schedule, state) VALUES (?1, ?2, ?3, 'planning')";
        self.lock().execute(insert, params![id.to_string(), name, schedule]).map_err(|why| {
            match why.sqlite_error_code() {
                Some(rusqlite::ErrorCode::ConstraintViolation) => CatalogueError::NameTaken(name.to_owned()),
                _ => why.into(),
            }
        })?;
        Ok(())
    }

    /// Notes to whom an attempt will be sent, before it is: from now on they are owed an abort.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn begin_attempt(
        &self,
        id: Uuid,
        attempt: AttemptId,
        hosts: &[String],
    ) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        for host in hosts {
            transaction.execute(
                "INSERT INTO attempts (attempt, snapshot, host, owed) VALUES (?1, ?2, ?3, 1)",
                params![attempt.to_string(), id.to_string(), host],
            )?;
        }
        Ok(transaction.commit()?)
    }

    /// A host has answered an abort: it is owed none any more, and the story of the snapshot, if it is still there, says
    /// so.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn settle(&self, attempt: AttemptId, host: &str, at: Time<Server>) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let settled = transaction.execute(
            "UPDATE attempts SET owed = 0 WHERE attempt = ?1 AND host = ?2 AND owed = 1",
            params![attempt.to_string(), host],
        )?;
        if settled == 1 {
            transaction.execute(
                "INSERT INTO story (snapshot, attempt, at_ns, step, host, detail)
                 SELECT snapshot, attempt, ?3, ?4, host, 'undone there' FROM attempts
                 WHERE attempt = ?1 AND host = ?2 AND snapshot IN (SELECT id FROM snapshots)",
                params![attempt.to_string(), host, at.as_nanos(), word(&Step::Abort)?],
            )?;
        }
        Ok(transaction.commit()?)
    }

    /// The aborts that are owed, oldest attempt first.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn owed(&self) -> Result<Vec<(AttemptId, String)>, CatalogueError> {
        let connection = self.lock();
        let mut query =
            connection.prepare("SELECT attempt, host FROM attempts WHERE owed = 1 ORDER BY attempt, host")?;
        let rows = query.query_map([], |row| Ok((parsed(row, 0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// How many snapshots there are in each state.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn states(&self) -> Result<Vec<(String, u64)>, CatalogueError> {
        let connection = self.lock();
        let mut query =
            connection.prepare("SELECT state, count(*) FROM snapshots GROUP BY state ORDER BY state")?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The snapshot that an attempt is or was for, by id.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn snapshot_of(&self, attempt: AttemptId) -> Result<Option<String>, CatalogueError> {
        let query = "SELECT snapshot FROM attempts WHERE attempt = ?1 LIMIT 1";
        Ok(self.lock().query_row(query, [attempt.to_string()], |row| row.get(0)).optional()?)
    }

    /// Adds to the story of a snapshot. This is not synced: nothing rests on it, and it survives the server's death, if
    /// not the machine's.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn tell(&self, id: Uuid, story: &[StoryEntry]) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let told = tell(&mut connection, id, story);
        connection.pragma_update(None, "synchronous", "FULL")?;
        told
    }

    /// The cut is judged; the hosts may be told the name after this.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn committing(&self, manifest: &Manifest, evidence: Option<&Evidence>) -> Result<(), CatalogueError> {
        let evidence = evidence.map(serde_json::to_string).transpose()?;
        self.change(
            manifest.id,
            "UPDATE snapshots SET state = 'committing', manifest = ?2, evidence = ?3
             WHERE id = ?1 AND state = 'planning'",
            params![manifest.id.to_string(), serde_json::to_string(manifest)?, evidence],
        )
    }

    /// Every host has taken the name that `attempt` was given: the snapshot stands as `state`.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn finish(&self, id: Uuid, attempt: AttemptId, state: SnapshotState) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let changed = transaction.execute(
            "UPDATE snapshots SET state = ?2 WHERE id = ?1 AND state = 'committing'",
            params![id.to_string(), word(&state)?],
        )?;
        if changed != 1 {
            return Err(CatalogueError::NoSuch(id.to_string()));
        }
        transaction.execute("UPDATE attempts SET owed = 0 WHERE attempt = ?1", [attempt.to_string()])?;
        Ok(transaction.commit()?)
    }

    /// The snapshot came to nothing; its name is free again.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn fail(&self, id: Uuid, why: &str) -> Result<(), CatalogueError> {
        self.change(
            id,
            "UPDATE snapshots SET state = 'failed', why = ?2
             WHERE id = ?1 AND state IN ('planning', 'committing')",
            params![id.to_string(), why],
        )
    }

    /// Stores the digest of one volume's content, unless the snapshot is gone.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn set_digest(&self, id: Uuid, host: &str, volume: &str, digest: &str) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        let stored: Option<Option<String>> = transaction
            .query_row("SELECT manifest FROM snapshots WHERE id = ?1", [id.to_string()], |row| row.get(0))
            .optional()?;
        let Some(text) = stored.flatten() else { return Ok(()) };
        let mut manifest: Manifest = serde_json::from_str(&text)?;
        let hosts = manifest.hosts.iter_mut().filter(|result| result.host == host);
        for found in hosts.flat_map(|result| &mut result.volumes).filter(|found| found.name == volume) {
            found.digest = Some(digest.to_owned());
        }
        transaction.execute(
            "UPDATE snapshots SET manifest = ?2 WHERE id = ?1",
            params![id.to_string(), serde_json::to_string(&manifest)?],
        )?;
        Ok(transaction.commit()?)
    }

    /// Starts a deletion. A failed snapshot keeps its state: there is nothing of it on any host, and its name may be
    /// another's by now.
    ///
    /// # Errors
    /// [`CatalogueError::Busy`] while it is being taken, among others.
    pub fn deleting(&self, key: &str) -> Result<Snapshot, CatalogueError> {
        let snapshot = self.find(key)?;
        match snapshot.state {
            SnapshotState::Planning | SnapshotState::Committing => {
                Err(CatalogueError::Busy { name: snapshot.name, state: word(&snapshot.state)? })
            }
            SnapshotState::Failed => Ok(snapshot),
            SnapshotState::Complete | SnapshotState::Inconsistent | SnapshotState::Deleting => {
                let update = "UPDATE snapshots SET state = 'deleting', why = NULL WHERE id = ?1";
                self.change(snapshot.id, update, [snapshot.id.to_string()])?;
                Ok(snapshot)
            }
        }
    }

    /// Forgets a snapshot. Aborts that are still owed for it stay owed.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn remove(&self, id: Uuid) -> Result<(), CatalogueError> {
        let mut connection = self.lock();
        let transaction = connection.transaction()?;
        transaction.execute("DELETE FROM snapshots WHERE id = ?1", [id.to_string()])?;
        transaction.execute("DELETE FROM story WHERE snapshot = ?1", [id.to_string()])?;
        transaction.execute("DELETE FROM attempts WHERE snapshot = ?1 AND owed = 0", [id.to_string()])?;
        Ok(transaction.commit()?)
    }

    /// All snapshots, oldest first.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn list(&self) -> Result<Vec<Snapshot>, CatalogueError> {
        let connection = self.lock();
        let mut query =
            connection.prepare(&format!("SELECT {COLUMNS} FROM snapshots ORDER BY created, id"))?;
        let rows = query.query_map([], snapshot)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The newest `limit` snapshots, newest first, and how many there are.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn newest(&self, limit: u32) -> Result<(Vec<Snapshot>, u64), CatalogueError> {
        let connection = self.lock();
        let total: i64 = connection.query_row("SELECT count(*) FROM snapshots", [], |row| row.get(0))?;
        let mut query = connection
            .prepare(&format!("SELECT {COLUMNS} FROM snapshots ORDER BY created DESC, id DESC LIMIT ?1"))?;
        let rows = query.query_map([limit], snapshot)?;
        Ok((rows.collect::<Result<_, _>>()?, total.cast_unsigned()))
    }

    /// One snapshot, by id or by name; of several with a name the one that holds it, then the newest.
    ///
    /// # Errors
    /// [`CatalogueError::NoSuch`] among others.
    pub fn find(&self, key: &str) -> Result<Snapshot, CatalogueError> {
        let query = format!(
            "SELECT {COLUMNS} FROM snapshots WHERE id = ?1 OR name = ?1
             ORDER BY id = ?1 DESC, state = 'failed', created DESC, id DESC LIMIT 1"
        );
        let found = self.lock().query_row(&query, [key], snapshot).optional()?;
        found.ok_or_else(|| CatalogueError::NoSuch(key.to_owned()))
    }

    /// What happened in a snapshot's attempts, in order.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn story(&self, id: Uuid) -> Result<Vec<StoryEntry>, CatalogueError> {
        let connection = self.lock();
        let mut query = connection.prepare(
            "SELECT attempt, at_ns, step, host, detail FROM story WHERE snapshot = ?1 ORDER BY rowid",
        )?;
        let rows = query.query_map([id.to_string()], |row| {
            Ok(StoryEntry {
                attempt: parsed(row, 0)?,
                at_ns: Time::from_nanos(row.get(1)?),
                step: parsed(row, 2)?,
                host: row.get(3)?,
                detail: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// What a snapshot's certificate was computed from.
    ///
    /// # Errors
    /// [`CatalogueError`].
    pub fn evidence(&self, id: Uuid) -> Result<Option<Evidence>, CatalogueError> {
        let text: Option<String> = self.lock().query_row(
            "SELECT evidence FROM snapshots WHERE id = ?1",
            [id.to_string()],
            |row| row.get(0),
        )?;
        Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
    }

    fn change(&self, id: Uuid, sql: &str, with: impl rusqlite::Params) -> Result<(), CatalogueError> {
        change(&self.lock(), id, sql, with)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic under the lock drops its transaction, which rolls back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Changes the row of an id, which has to be there.
fn change(
    connection: &Connection,
    id: Uuid,
    sql: &str,
    with: impl rusqlite::Params,
) -> Result<(), CatalogueError> {
    match connection.execute(sql, with)? {
        0 => Err(CatalogueError::NoSuch(id.to_string())),
        _ => Ok(()),
    }
}

fn tell(connection: &mut Connection, id: Uuid, story: &[StoryEntry]) -> Result<(), CatalogueError> {
    let transaction = connection.transaction()?;
    for entry in story {
        insert_story(&transaction, id, entry)?;
    }
    Ok(transaction.commit()?)
}

fn insert_story(connection: &Connection, id: Uuid, entry: &StoryEntry) -> Result<(), CatalogueError> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO story (snapshot, attempt, at_ns, step, host, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    insert.execute(params![
        id.to_string(),
        entry.attempt.to_string(),
        entry.at_ns.as_nanos(),
        word(&entry.step)?,
        entry.host,
        entry.detail,
    ])?;
    Ok(())
}

fn snapshot(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    let manifest: Option<String> = row.get(5)?;
    Ok(Snapshot {
        id: parsed(row, 0)?,
        name: row.get(1)?,
        state: parsed(row, 2)?,
        why: row.get(3)?,
        created: row.get(4)?,
        manifest: manifest.map(|text| from_json(5, &text)).transpose()?,
        schedule: row.get(6)?,
    })
}

/// A value that is stored as a bare word.
fn parsed<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    from_json(column, &serde_json::Value::String(row.get(column)?).to_string())
}

fn from_json<T: DeserializeOwned>(column: usize, text: &str) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|why| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(why))
    })
}

fn word(value: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string(value)?.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests;
