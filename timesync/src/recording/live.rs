//! Recording from a running server.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, MutexGuard};

use super::{Bound, FORMAT, Header, Heard, Line, PROGRAM, Tap};
use crate::clock::{ServerClock, wall_now};
use crate::identity::Incarnation;
use crate::server::Record;
use crate::time::{Nanos, Server, Time};

/// Events that may wait to be written. A thousand hosts at 16 exchanges a second fill it in four seconds.
const BACKLOG: usize = 65_536;
/// Each host's bound is recorded so often.
const BOUND_EVERY: Nanos = Nanos::from_millis(1_000);

/// Why there is no recording, or no more of it. Each is a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not in the configuration.
    #[error("no host is called {0}; the server's configuration lists the hosts")]
    Unknown(String),
    /// One at a time.
    #[error("somebody else is recording; try again when they have finished")]
    Busy,
    /// Whoever takes the lines is too slow.
    #[error("the recording could not keep up with the exchanges; record fewer hosts with --host")]
    Overflow,
}

/// Takes the taps away again, whatever happens.
struct Taps<'a, F: Fn(usize) -> MutexGuard<'a, Record>> {
    record: F,
    hosts: Vec<usize>,
}

impl<'a, F: Fn(usize) -> MutexGuard<'a, Record>> Drop for Taps<'a, F> {
    fn drop(&mut self) {
        for host in &self.hosts {
            (self.record)(*host).tap = None;
        }
    }
}

/// How to record.
pub(crate) struct Settings {
    pub server: Incarnation,
    pub confidence: f64,
    pub allow_simulated: bool,
    pub duration: Nanos,
}

/// Records the `hosts`, by their numbers, for a duration or until `each`, which gets every line, has had enough. No more
/// than one may record at a time.
///
/// Every line's place is where it happened: a record's copies are taken, and its events sent, under its own lock.
pub(crate) fn record<'a>(
    record: impl Fn(usize) -> MutexGuard<'a, Record>,
    hosts: Vec<usize>,
    settings: &Settings,
    mut each: impl FnMut(serde_json::Value) -> bool,
) -> Result<(), RecordError> {
    let begin = ServerClock.now();
    let header = Header {
        format: FORMAT,
        program: PROGRAM.to_owned(),
        server: settings.server,
        confidence: settings.confidence,
        allow_simulated: settings.allow_simulated,
        at: begin,
        wall: wall_now(),
    };
    let mut session = Session { each: &mut each, names: Vec::new(), wanted: true };
    session.write(&Line::Recording(header));

    let (into, events) = sync_channel(BACKLOG);
    let overflowed = Arc::new(AtomicBool::new(false));
    let taps = Taps { record, hosts };
    for (number, host) in taps.hosts.iter().enumerate() {
        let copy = {
            let mut record = (taps.record)(*host);
            record.tap = Some(Tap { host: number, into: into.clone(), overflowed: Arc::clone(&overflowed) });
            record.clone()
        };
        session.names.push(copy.config.name.clone());
        session.write(&Line::Host(Box::new(copy)));
    }

    let end = begin + settings.duration;
    let mut due = begin;
    while session.wanted && !overflowed.load(Ordering::Relaxed) {
        let now = ServerClock.now();
        let last = now >= end;
        if last || now >= due {
            due = now + BOUND_EVERY;
            for host in &taps.hosts {
                session.bound(|| (taps.record)(*host), &into, &events, settings);
            }
            if last {
                break;
            }
        }
        session.take_until(due.min(end), &events);
    }
    drop(taps);
    if overflowed.load(Ordering::Relaxed) { Err(RecordError::Overflow) } else { Ok(()) }
}

struct Session<'a, E: FnMut(serde_json::Value) -> bool> {
    each: &'a mut E,
    names: Vec<String>,
    wanted: bool,
}

impl<E: FnMut(serde_json::Value) -> bool> Session<'_, E> {
    fn write(&mut self, line: &Line) {
        // Types that turn into JSON always; a line that did not would be missed by the replay.
        let line = serde_json::to_value(line).unwrap_or_default();
        self.wanted = self.wanted && (self.each)(line);
    }

    /// Writes what is heard. Whether it was an event.
    fn take(&mut self, heard: Heard) -> bool {
        let Heard::Event { host, event } = heard else { return false };
        let host = self.names[host].clone();
        self.write(&Line::Event { host, what: event });
        true
    }

    fn take_until(&mut self, deadline: Time<Server>, events: &Receiver<Heard>) {
        while self.wanted {
            let left = deadline - ServerClock.now();
            if left <= Nanos::ZERO {
                return;
            }
            match events.recv_timeout(left.to_std()) {
                Ok(heard) => drop(self.take(heard)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Copies the record, then writes all that it was told before, and its bound.
    fn bound<'a>(
        &mut self,
        record: impl FnOnce() -> MutexGuard<'a, Record>,
        into: &SyncSender<Heard>,
        events: &Receiver<Heard>,
        settings: &Settings,
    ) {
        let (copy, now) = {
            let record = record();
            // With the backlog full, events are lost as well, and the recording ends.
            if into.try_send(Heard::Copied).is_err() {
                return;
            }
            (record.clone(), ServerClock.now())
        };
        while let Ok(heard) = events.recv() {
            if !self.take(heard) {
                break;
            }
        }
        let bound = Bound::of(&copy, now, settings.confidence, settings.allow_simulated);
        self.write(&Line::Bound(Box::new(bound)));
    }
}
