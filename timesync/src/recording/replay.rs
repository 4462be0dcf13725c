//! Replaying: the same records are told the same, and every number is compared.

use std::collections::BTreeMap;
use std::io::{self, BufRead};

use super::{Bound, Chain, FORMAT, Header, Line, PROGRAM};
use crate::history::{Counted, Sample, Track};
use crate::report::{self, Report};
use crate::server::Record;

/// Longer lines are refused: a record with the largest window takes 10 MB.
const LONGEST: u64 = 64 << 20;

/// What a replay gives.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// As of the last bound of each host.
    pub report: Report,
    /// The bounds over time.
    pub tracks: Vec<Track>,
    /// How many events the records were told.
    pub events: u64,
    /// How many bounds were computed again, and were as recorded.
    pub bounds: u64,
    /// The program that recorded.
    pub program: String,
}

/// Why a recording is refused. Each is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(#[from] io::Error),
    /// A line is not as it was written, or not as it should be.
    #[error("line {line}: {what}")]
    Line {
        /// Counted from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

#[derive(Default)]
struct State {
    header: Option<Header>,
    /// In the order of the recording.
    names: Vec<String>,
    hosts: BTreeMap<String, Host>,
    events: u64,
    bounds: u64,
    ended: bool,
}

struct Host {
    record: Record,
    /// Its last bound: what was told since has no instant to be looked at from.
    last: Option<Bound>,
    counted: Counted,
    track: Track,
}

/// Replays a recording. Every bound is computed again by the estimator itself and must be the same to the last bit.
///
/// # Errors
/// [`ReplayError`], with the line: of damage, of a bound that comes out differently, of a missing end.
pub fn replay(mut from: impl BufRead) -> Result<Replayed, ReplayError> {
    let (mut state, mut chain, mut text) = (State::default(), Chain::default(), String::new());
    for line in 1_u64.. {
        let wrong = |what: String| ReplayError::Line { line, what };
        text.clear();
        let read =
            io::Read::take(&mut from, LONGEST).read_line(&mut text).map_err(|why| match why.kind() {
                io::ErrorKind::InvalidData => wrong("it is not UTF-8 text".to_owned()),
                _ => why.into(),
            })?;
        if read == 0 {
            return state.finish().map_err(wrong);
        }
        let content = chain.open(text.trim_end_matches('\n'));
        let content = content.ok_or_else(|| {
            wrong("its checksum is wrong: it or a line before it was changed, or this is no recording".into())
        })?;
        let parsed = serde_json::from_str(&content).map_err(|why| wrong(why.to_string()))?;
        state.take(parsed).map_err(wrong)?;
    }
    unreachable!("a file has fewer than 2^64 lines")
}

impl State {
    fn take(&mut self, line: Line) -> Result<(), String> {
        if self.ended {
            return Err("there is more after the end".to_owned());
        }
        match (line, &self.header) {
            (Line::Recording(header), None) if header.format == FORMAT => self.header = Some(header),
            (Line::Recording(header), None) => {
                return Err(format!("format {} is not {FORMAT}, which this version replays", header.format));
            }
            (Line::Recording(_), Some(_)) => return Err("a second beginning".to_owned()),
            (_, None) => return Err("a recording begins with a line `recording`".to_owned()),
            (Line::Host(record), Some(_)) => self.begin(*record)?,
            (Line::Event { host, what }, Some(_)) => {
                self.events += 1;
                self.host(&host)?.record.apply(&what);
            }
            (Line::Bound(bound), Some(header)) => {
                let header = header.clone();
                self.bounds += 1;
                self.host(&bound.host)?.compare(&bound, &header)?;
            }
            (Line::End { events, bounds }, Some(_)) => {
                if (events, bounds) != (self.events, self.bounds) {
                    return Err(format!("there should be {events} events and {bounds} bounds before it"));
                }
                self.ended = true;
            }
        }
        Ok(())
    }

    fn begin(&mut self, record: Record) -> Result<(), String> {
        let name = record.config.name.clone();
        let round_trips = Vec::new();
        let track = Track { host: name.clone(), points: Vec::new(), round_trips };
        self.names.push(name.clone());
        let host = Host { last: None, counted: Counted::of(&record), record, track };
        match self.hosts.insert(name.clone(), host) {
            None => Ok(()),
            Some(_) => Err(format!("host {name} begins twice")),
        }
    }

    fn host(&mut self, name: &str) -> Result<&mut Host, String> {
        self.hosts.get_mut(name).ok_or_else(|| format!("there was no line `host` for {name}"))
    }

    fn finish(mut self) -> Result<Replayed, String> {
        let header = match self.header {
            Some(header) if self.ended => header,
            Some(_) => return Err("the recording is cut off: its line `end` is missing".to_owned()),
            None => return Err("there is nothing in it".to_owned()),
        };
        let mut hosts: Vec<Host> = self.names.iter().filter_map(|name| self.hosts.remove(name)).collect();
        let rows = hosts.iter().map(|host| match &host.last {
            Some(bound) => (bound.row.clone(), bound.pair_ns),
            None => report::row(&host.record, header.at, header.confidence, header.allow_simulated),
        });
        let report = Report::of(rows.collect());
        for host in &mut hosts {
            host.track.round_trips = super::histogram::counts(&host.record.round_trips);
        }
        Ok(Replayed {
            report,
            tracks: hosts.into_iter().map(|host| host.track).collect(),
            events: self.events,
            bounds: self.bounds,
            program: header.program,
        })
    }
}

impl Host {
    fn compare(&mut self, recorded: &Bound, header: &Header) -> Result<(), String> {
        let computed = Bound::of(&self.record, recorded.now, header.confidence, header.allow_simulated);
        if computed != *recorded {
            let [was, is] =
                [recorded, &computed].map(|bound| serde_json::to_value(bound).unwrap_or_default());
            let differing = first_difference(&was, &is, "bound").unwrap_or_else(|| "a bound".to_owned());
            let by = if header.program == PROGRAM {
                String::new()
            } else {
                format!(" (recorded by {}, replayed by {})", header.program, PROGRAM)
            };
            return Err(format!("computed again, {differing}{by}"));
        }
        let wall = header.wall + (recorded.now - header.at);
        let since = self.last.as_ref().map_or(header.at, |last| last.now);
        let bounds =
            report::half_widths(&self.record, recorded.now, header.confidence, header.allow_simulated);
        let sample = Sample::of(&self.record, bounds, since);
        let (point, counted) = sample.point(wall, self.counted);
        self.track.points.push(point);
        self.counted = counted;
        self.last = Some(computed);
        Ok(())
    }
}

/// Where two values differ first, as a phrase.
fn first_difference(was: &serde_json::Value, is: &serde_json::Value, path: &str) -> Option<String> {
    use serde_json::Value;
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => was
            .iter()
            .find_map(|(key, value)| first_difference(value, is.get(key)?, &format!("{path}.{key}"))),
        (Value::Array(was), Value::Array(is)) if was.len() == is.len() => {
            let mut pairs = was.iter().zip(is).enumerate();
            pairs.find_map(|(i, (was, is))| first_difference(was, is, &format!("{path}[{i}]")))
        }
        _ if was == is => None,
        _ => Some(format!("{path} is {is}, not {was} as recorded")),
    }
}
