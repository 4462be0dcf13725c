//! Keeps the history of the bounds: asks the time-sync server every ten seconds, and keeps points of ten minutes for
//! seven days in a database of its own, `history.sqlite` in the server's state directory.
//!
//! Nothing else depends on it. Its commits are not synced: a power failure may cost the last points. If the database
//! cannot be used, a warning says so, and what was before the start is unknown.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, Row, params};
use timesync::clock::wall_now;
use timesync::history::{COARSE_SPAN, FINE, FINE_SPAN, History, Point, Sample, Track};
use timesync::server::TimeServer;
use timesync::time::{Nanos, Time, Wall};

const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE points (
        host TEXT NOT NULL,
        at_ms INTEGER NOT NULL,
        offset_ns INTEGER,
        hard_ns INTEGER,
        statistical_ns INTEGER,
        rtt_min_ns INTEGER,
        rtt_max_ns INTEGER,
        exchanges INTEGER NOT NULL,
        lost INTEGER NOT NULL,
        PRIMARY KEY (host, at_ms)
    ) STRICT, WITHOUT ROWID;
";

/// Why there is no history. Each is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// SQLite failed.
    #[error("the history failed: {0}")]
    Database(#[from] rusqlite::Error),
    /// Written by a later version of this program.
    #[error("history.sqlite has schema {0}, newer than the {SCHEMA_VERSION} that this version knows")]
    Newer(i64),
    /// Not in the configuration.
    #[error("no host is called {0}; the server's configuration lists the hosts")]
    Unknown(String),
}

/// Keeps the history while it is there.
#[derive(Debug)]
pub struct Keeper {
    time: Arc<TimeServer>,
    shared: Arc<Mutex<Shared>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    fine: History,
    store: Store,
}

impl Keeper {
    /// Starts to keep the history of `time`, with its database in `directory`.
    ///
    /// # Errors
    /// When there is not even memory for a database, or no thread.
    pub fn start(time: Arc<TimeServer>, directory: &Path) -> Result<Keeper, std::io::Error> {
        let store = Store::open(&directory.join("history.sqlite")).or_else(|why| {
            tracing::warn!(
                "{why}; what was before now is unknown, and nothing will be known after a restart"
            );
            Store::with(Connection::open_in_memory()?)
        });
        let store = store.map_err(std::io::Error::other)?;
        let shared = Arc::new(Mutex::new(Shared { fine: History::default(), store }));
        let (stop, stopped) = mpsc::channel();
        let (source, kept) = (Arc::clone(&time), Arc::clone(&shared));
        let thread = std::thread::Builder::new().name("history".to_owned()).spawn(move || {
            // The sender is dropped in order to stop.
            while stopped.recv_timeout(FINE.to_std()) == Err(RecvTimeoutError::Timeout) {
                let samples = source.samples();
                lock(&kept).take(wall_now(), &samples);
            }
            lock(&kept).finish();
        })?;
        Ok(Keeper { time, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// The history of one host, or of all, that far back. Up to an hour: every ten seconds, if the server ran then;
    /// further back, every ten minutes.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn tracks(&self, span: Nanos, host: Option<&str>) -> Result<Vec<Track>, HistoryError> {
        let all = self.time.names();
        let named = |name: &str| {
            let known = all.iter().find(|known| *known == name).cloned();
            known.ok_or_else(|| HistoryError::Unknown(name.to_owned()))
        };
        let hosts = match host {
            Some(name) => vec![named(name)?],
            None => all.to_vec(),
        };
        let now = wall_now();
        let track = |host: String| {
            let points = lock(&self.shared).points(&host, now, span)?;
            let round_trips = self.time.round_trips(&host);
            Ok(Track { host, points, round_trips })
        };
        hosts.into_iter().map(track).collect()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whatever panicked meanwhile, a history is whole after each of its methods.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn take(&mut self, at: Time<Wall>, samples: &[Sample]) {
        let complete = self.fine.push(at, samples);
        self.keep(&complete);
    }

    /// What is not complete is kept as it is: the next start begins a new point.
    fn finish(&mut self) {
        let rest = self.fine.incomplete();
        self.keep(&rest);
    }

    fn keep(&mut self, points: &[(String, Point)]) {
        if let Err(why) = self.store.insert(points) {
            tracing::warn!("points of the history are lost: {why}");
        }
    }

    /// Oldest first.
    fn points(&self, host: &str, now: Time<Wall>, span: Nanos) -> Result<Vec<Point>, HistoryError> {
        let since = (now - span).as_nanos() / 1_000_000;
        let mut points = self.store.select(host, since)?;
        let fine = self.fine.fine(host, since);
        if span <= FINE_SPAN {
            points.retain(|point| fine.first().is_none_or(|first| point.at_ms < first.at_ms));
            points.extend(fine);
        } else {
            let last = points.last().map_or(i64::MIN, |last| last.at_ms);
            points.extend(fine.into_iter().filter(|point| point.at_ms > last));
        }
        Ok(points)
    }
}

/// The points of ten minutes.
#[derive(Debug)]
struct Store {
    connection: Connection,
}

impl Store {
    fn open(path: &Path) -> Result<Self, HistoryError> {
        Store::with(Connection::open(path)?)
    }

    fn with(connection: Connection) -> Result<Self, HistoryError> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        match connection.pragma_query_value(None, "user_version", |row| row.get(0))? {
            0 => {
                connection.execute_batch(&format!(
                    "BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                ))?;
            }
            SCHEMA_VERSION => {}
            newer => return Err(HistoryError::Newer(newer)),
        }
        Ok(Store { connection })
    }

    /// Adds points, and forgets those of the same hosts that are too old.
    fn insert(&mut self, points: &[(String, Point)]) -> Result<(), HistoryError> {
        if points.is_empty() {
            return Ok(());
        }
        let transaction = self.connection.transaction()?;
        {
            let mut insert = transaction.prepare_cached(
                "INSERT OR REPLACE INTO points VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?;
            let mut forget =
                transaction.prepare_cached("DELETE FROM points WHERE host = ?1 AND at_ms < ?2")?;
            for (host, point) in points {
                insert.execute(params![
                    host,
                    point.at_ms,
                    point.offset_ns,
                    point.hard_ns,
                    point.statistical_ns,
                    point.rtt_min_ns.map(u64::cast_signed),
                    point.rtt_max_ns.map(u64::cast_signed),
                    point.exchanges.cast_signed(),
                    point.lost.cast_signed(),
                ])?;
                forget.execute(params![host, point.at_ms - COARSE_SPAN.get() / 1_000_000])?;
            }
        }
        Ok(transaction.commit()?)
    }

    fn select(&self, host: &str, since_ms: i64) -> Result<Vec<Point>, HistoryError> {
        let mut select = self
            .connection
            .prepare_cached("SELECT * FROM points WHERE host = ?1 AND at_ms > ?2 ORDER BY at_ms")?;
        let points = select.query_map(params![host, since_ms], point)?.collect::<Result<_, _>>()?;
        Ok(points)
    }
}

fn point(row: &Row<'_>) -> rusqlite::Result<Point> {
    let unsigned = |value: Option<i64>| value.map(i64::cast_unsigned);
    Ok(Point {
        at_ms: row.get("at_ms")?,
        offset_ns: row.get("offset_ns")?,
        hard_ns: row.get("hard_ns")?,
        statistical_ns: row.get("statistical_ns")?,
        rtt_min_ns: unsigned(row.get("rtt_min_ns")?),
        rtt_max_ns: unsigned(row.get("rtt_max_ns")?),
        exchanges: row.get::<_, i64>("exchanges")?.cast_unsigned(),
        lost: row.get::<_, i64>("lost")?.cast_unsigned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: i64 = 60_000;

    fn point_at(at_ms: i64) -> (String, Point) {
        let point = Point {
            at_ms,
            offset_ns: Some(-7),
            hard_ns: Some(900),
            statistical_ns: None,
            rtt_min_ns: Some(5),
            rtt_max_ns: None,
            exchanges: 9_600,
            lost: 3,
        };
        ("a".to_owned(), point)
    }

    #[test]
    fn points_survive_a_restart_for_seven_days() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.sqlite");
        let week = 7 * 24 * 60 * MINUTE;
        let mut store = Store::open(&path).unwrap();
        store.insert(&[point_at(10 * MINUTE), point_at(20 * MINUTE)]).unwrap();
        drop(store);
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.select("a", 0).unwrap(), [point_at(10 * MINUTE).1, point_at(20 * MINUTE).1]);
        assert_eq!(store.select("a", 10 * MINUTE).unwrap(), [point_at(20 * MINUTE).1]);
        assert_eq!(store.select("b", 0).unwrap(), []);
        store.insert(&[point_at(week + 15 * MINUTE)]).unwrap();
        assert_eq!(store.select("a", 0).unwrap().len(), 2, "the oldest is forgotten");
    }

    #[test]
    fn a_database_of_a_later_version_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.sqlite");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
        assert!(matches!(Store::open(&path), Err(HistoryError::Newer(9))));
    }

    #[test]
    fn what_was_before_the_start_comes_from_the_database() {
        let store = Store::with(Connection::open_in_memory().unwrap()).unwrap();
        let mut shared = Shared { fine: History::default(), store };
        let now = Time::from_nanos(100 * MINUTE * 1_000_000);
        shared.keep(&[point_at(20 * MINUTE), point_at(50 * MINUTE), point_at(90 * MINUTE)]);
        let at = |span: i64| -> Vec<i64> {
            let points = shared.points("a", now, Nanos::from_millis(span * MINUTE)).unwrap();
            points.iter().map(|point| point.at_ms / MINUTE).collect()
        };
        assert_eq!((at(60), at(90)), (vec![50, 90], vec![20, 50, 90]));
    }
}
