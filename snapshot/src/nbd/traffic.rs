//! Counts requests: each connection for itself, so that none waits for another's cache line.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use timesync::time::Nanos;

use super::wire::Command;
use crate::metrics::Durations;

/// The commands, by their names in the metrics.
const COMMANDS: [&str; 7] = ["read", "write", "flush", "trim", "write_zeroes", "cache", "block_status"];

fn index(command: Command) -> usize {
    match command {
        Command::Read => 0,
        Command::Write { .. } => 1,
        Command::Flush => 2,
        Command::Trim { .. } => 3,
        Command::WriteZeroes { .. } => 4,
        Command::Cache => 5,
        Command::BlockStatus { .. } => 6,
    }
}

#[derive(Debug, Default)]
struct Counts {
    errors: AtomicU64,
    bytes: AtomicU64,
    durations: Durations,
}

/// What one connection has done.
#[derive(Debug, Default)]
pub(super) struct Counters([Counts; COMMANDS.len()]);

impl Counters {
    /// Counts a request about `length` bytes that took so long.
    pub fn add(&self, command: Command, length: u32, took: Nanos, is_good: bool) {
        let counts = &self.0[index(command)];
        if !is_good {
            counts.errors.fetch_add(1, Relaxed);
        }
        counts.bytes.fetch_add(length.into(), Relaxed);
        counts.durations.add(took);
    }

    fn add_to(&self, total: &Counters) {
        for (counts, total) in self.0.iter().zip(&total.0) {
            total.errors.fetch_add(counts.errors.load(Relaxed), Relaxed);
            total.bytes.fetch_add(counts.bytes.load(Relaxed), Relaxed);
            total.durations.add_all(&counts.durations);
        }
    }
}

/// What all connections of a server have done.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Those that are over.
    over: Counters,
    open: Mutex<Vec<Arc<Counters>>>,
}

/// A connection's counters. When it is dropped, they are added to those that are over.
#[derive(Debug)]
pub(super) struct Counted {
    counters: Arc<Counters>,
    traffic: Arc<Traffic>,
}

impl Counted {
    /// How many connections the server has, with this one.
    pub fn connections(&self) -> usize {
        self.traffic.connections()
    }
}

impl std::ops::Deref for Counted {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.counters
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // With the lock: a scrape sees it among the one or the other.
        let mut open = self.traffic.open();
        self.counters.add_to(&self.traffic.over);
        open.retain(|other| !Arc::ptr_eq(other, &self.counters));
    }
}

/// One command's numbers.
#[derive(Debug)]
pub struct CommandCounts {
    /// Its name.
    pub name: &'static str,
    /// Requests executed.
    pub requests: u64,
    /// Those that ended in an error.
    pub errors: u64,
    /// Bytes that they were about.
    pub bytes: u64,
    /// How long they took.
    pub durations: Durations,
}

impl Traffic {
    /// A connection's counters.
    pub(super) fn connect(self: &Arc<Self>) -> Counted {
        let counters = Arc::new(Counters::default());
        self.open().push(Arc::clone(&counters));
        Counted { counters, traffic: Arc::clone(self) }
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.open().len()
    }

    /// Each command's numbers, of all connections there were.
    pub fn commands(&self) -> Vec<CommandCounts> {
        let total = Counters::default();
        {
            let open = self.open();
            self.over.add_to(&total);
            for counters in open.iter() {
                counters.add_to(&total);
            }
        }
        let numbers = |(name, counts): (&'static str, Counts)| CommandCounts {
            name,
            requests: counts.durations.count(),
            errors: counts.errors.into_inner(),
            bytes: counts.bytes.into_inner(),
            durations: counts.durations,
        };
        COMMANDS.into_iter().zip(total.0).map(numbers).collect()
    }

    fn open(&self) -> MutexGuard<'_, Vec<Arc<Counters>>> {
        // Nothing that panics runs under it.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
