//! Recordings: everything that a server's bounds follow from, and the bounds themselves, as lines of JSON.
//!
//! A host's record is a machine without clocks or I/O: its state follows from what it was told. A recording holds each
//! record as it was when the recording began, then everything that it was told, and, once a second, what the server made
//! of it. [`replay`] tells the same to the same machine and compares every number.
//!
//! # The format, version 1
//!
//! UTF-8, one JSON object a line, each with a key `crc` and one other key, which says what the line is. All instants and
//! durations are in ns, on the timeline that the name says (`server`: the server's `CLOCK_MONOTONIC_RAW`).
//!
//! | key | holds |
//! | --- | --- |
//! | `recording` | first line: `format` (1), `program` (name and version), `server` (its incarnation), `confidence`, `allow_simulated`, `at` (server) and `wall` (server's `CLOCK_REALTIME`), both when it began |
//! | `host` | one for each host, before the first `event`: its whole record, with its configuration and assumptions. The exchanges of before are in `window.exchanges`, as the constraints that they are |
//! | `event` | `host`, and `what`: who was `heard` to answer, where it is another one than before; an `exchange` (the stamps t1 to t4 as intervals `earliest`, `latest`; their worst class; who answered, with boot and process; both wall clocks), `lost`, or `server_changed` |
//! | `bound` | `host`, `now` (server), `row` (as in `coeval skew --json`), `pair_ns` (the half-width that counts in pairs), and `theta`: host less server on the monotonic timelines at `now` and 50 ms later; null where none is published |
//! | `end` | last line: `events`, `bounds`: how many there are |
//!
//! `crc` comes first in its line: eight hexadecimal digits, the CRC-32C of the line before's digits and the line without
//! this key. It finds damage; it is no signature.

mod live;
mod replay;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use serde::{Deserialize, Serialize};

use crate::authentication::Refused;
use crate::bound::{Drift, Interval, Statistical};
use crate::identity::Incarnation;
use crate::report::{self, HostRow};
use crate::server::{Outcome, Record, Responder};
use crate::time::{Nanos, Server, Time, Wall};

pub(crate) use histogram::counts;
pub use live::RecordError;
pub(crate) use live::{Settings, record};
pub use replay::{ReplayError, Replayed, replay};

/// The version of the format.
const FORMAT: u32 = 1;

/// Who writes and replays.
const PROGRAM: &str = concat!("coeval ", env!("CARGO_PKG_VERSION"));

/// Bounds are also computed for an instant so far ahead: the default lead of a cut.
const AHEAD: Nanos = Nanos::from_millis(50);

/// One line, without its checksum.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Recording(Header),
    Host(Box<Record>),
    Event { host: String, what: Box<Event> },
    Bound(Box<Bound>),
    End { events: u64, bounds: u64 },
}

/// What a recording begins with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    pub format: u32,
    pub program: String,
    pub server: Incarnation,
    pub confidence: f64,
    pub allow_simulated: bool,
    pub at: Time<Server>,
    pub wall: Time<Wall>,
}

/// What a record is told.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// An answer came, by another responder than before.
    Heard(Responder),
    /// Something came of an exchange.
    Exchange(Outcome),
    /// Nothing came of one.
    Lost,
    /// An answer was not authenticated with the host's key.
    Refused {
        /// When it came.
        at: Time<Server>,
        /// What was wrong with it.
        why: Refused,
    },
    /// The server's own timeline became another one.
    ServerChanged {
        /// Its clock source keeps an oscillator's rate.
        trusted: bool,
    },
}

/// What the server made of a record at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Bound {
    host: String,
    now: Time<Server>,
    row: HostRow,
    pair_ns: Option<i64>,
    theta: Option<[Theta; 2]>,
}

/// The bound on the monotonic timelines at one instant; none where the window has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Theta {
    at: Time<Server>,
    hard: Option<Interval>,
    statistical: Option<Statistical>,
    drift: Option<Drift>,
}

impl Bound {
    fn of(record: &Record, now: Time<Server>, confidence: f64, allow_simulated: bool) -> Self {
        let (row, pair_ns) = report::row(record, now, confidence, allow_simulated);
        let theta = |at| {
            let (window, _) = record.published()?;
            Some(Theta {
                at,
                hard: window.hard(at).ok(),
                statistical: window.statistical(at, confidence, record.config.asymmetry).ok(),
                drift: window.drift(at).ok(),
            })
        };
        let theta = theta(now).zip(theta(now + AHEAD)).map(|(now, ahead)| [now, ahead]);
        Bound { host: record.config.name.clone(), now, row, pair_ns, theta }
    }
}

/// What the recording thread hears.
#[derive(Debug)]
enum Heard {
    Event {
        host: usize,
        event: Box<Event>,
    },
    /// The record of the host was copied here: its bound comes at this place.
    Copied,
}

/// Where a record's events go while somebody records.
#[derive(Clone, Debug)]
pub struct Tap {
    host: usize,
    into: SyncSender<Heard>,
    overflowed: Arc<AtomicBool>,
}

impl Tap {
    /// Whether to go on. Never waits: the prober must not.
    pub(crate) fn event(&self, event: Event) -> bool {
        self.send(Heard::Event { host: self.host, event: Box::new(event) })
    }

    fn send(&self, heard: Heard) -> bool {
        match self.into.try_send(heard) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.overflowed.store(true, Ordering::Relaxed);
                false
            }
            Err(TrySendError::Disconnected(_)) => false,
        }
    }
}

/// Adds the checksums to a recording's lines, and counts them.
#[derive(Debug, Default)]
pub struct Sealer {
    chain: Chain,
    events: u64,
    bounds: u64,
}

impl Sealer {
    /// The line for the file, with its newline.
    pub fn seal(&mut self, line: &serde_json::Value) -> String {
        self.events += u64::from(line.get("event").is_some());
        self.bounds += u64::from(line.get("bound").is_some());
        self.chain.seal(&line.to_string())
    }

    /// The last line. To be written when the server's lines have ended, or nobody wants any more.
    pub fn end(mut self) -> String {
        self.chain
            .seal(&serde_json::json!({"end": {"events": self.events, "bounds": self.bounds}}).to_string())
    }
}

/// The checksum so far.
#[derive(Debug, Default)]
struct Chain(u32);

impl Chain {
    const PREFIX: &str = "{\"crc\":\"";

    fn next(&mut self, content: &str) -> String {
        let before = format!("{:08x}", self.0);
        self.0 = crc32c::crc32c_append(crc32c::crc32c(before.as_bytes()), content.as_bytes());
        format!("{:08x}", self.0)
    }

    /// `content` is a JSON object that is not empty.
    fn seal(&mut self, content: &str) -> String {
        let digits = self.next(content);
        format!("{}{digits}\",{}\n", Self::PREFIX, content.trim_start_matches('{'))
    }

    /// The content of a sealed line; none where the checksum is missing or another.
    fn open(&mut self, line: &str) -> Option<String> {
        let rest = line.strip_prefix(Self::PREFIX)?;
        let (digits, rest) = rest.split_at_checked(8)?;
        let content = format!("{{{}", rest.strip_prefix("\",")?);
        (self.next(&content) == digits).then_some(content)
    }
}

/// For serde: a histogram of round trips as its counts, `[[ns, count], …]`.
pub(crate) mod histogram {
    use hdrhistogram::Histogram;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// The value up to which each bucket that is not empty reaches, and its count.
    pub fn counts(histogram: &Histogram<u32>) -> Vec<(u64, u64)> {
        histogram
            .iter_recorded()
            .map(|step| (step.value_iterated_to(), step.count_at_value().into()))
            .collect()
    }

    pub fn serialize<S: Serializer>(histogram: &Histogram<u32>, serializer: S) -> Result<S::Ok, S::Error> {
        counts(histogram).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Histogram<u32>, D::Error> {
        let mut histogram = crate::server::round_trips();
        for (value, count) in Vec::<(u64, u32)>::deserialize(deserializer)? {
            histogram.record_n(value, count).map_err(D::Error::custom)?;
        }
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_line_opens_once_and_only_in_its_place() {
        let (mut sealer, mut first, mut second) = (Chain::default(), Chain::default(), Chain::default());
        let lines = [r#"{"lost":{"host":"a"}}"#, r#"{"lost":{"host":"a"}}"#].map(|line| sealer.seal(line));
        assert!(lines[0].starts_with("{\"crc\":\"") && lines[0].ends_with("\n") && lines[0] != lines[1]);
        assert!(serde_json::from_str::<serde_json::Value>(&lines[0]).is_ok(), "a line is JSON");
        assert_eq!(first.open(lines[0].trim_end()).as_deref(), Some(r#"{"lost":{"host":"a"}}"#));
        assert!(first.open(lines[1].trim_end()).is_some());
        assert!(second.open(lines[1].trim_end()).is_none(), "a line is missing before it");
        for damaged in
            ["", "{", "{\"crc\":\"", "{\"crc\":\"0000000µ\",\"a\":1}", "{\"crc\":\"00000000\",\"a\":1}"]
        {
            assert!(Chain::default().open(damaged).is_none(), "{damaged}");
        }
    }

    #[test]
    fn a_histogram_comes_back_the_same() {
        let mut histogram = crate::server::round_trips();
        for value in [1, 7, 7, 1_234_567, 59_999_999_999, u64::MAX] {
            histogram.saturating_record(value);
        }
        let counts = histogram::counts(&histogram);
        let mut again = crate::server::round_trips();
        for (value, count) in &counts {
            again.record_n(*value, u32::try_from(*count).unwrap()).unwrap();
        }
        assert_eq!(histogram::counts(&again), counts);
        assert_eq!((again.min(), again.max(), again.len()), (histogram.min(), histogram.max(), 6));
    }
}
