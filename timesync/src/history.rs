//! How the bounds were over time: a point every ten seconds for an hour, in memory, and a point every ten minutes, to be
//! kept elsewhere. Pure: told what time it is.
//!
//! A point of ten minutes holds the *worst* of its ten-second points: the widest bounds, the extreme round trips. A
//! spike of the bound is never averaged away. The offset is the last one; the widest bound around it is a true one, for
//! it is no narrower than the one that belongs to it.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::server::Record;
use crate::time::{Nanos, Server, Time, Wall};

/// From one fine point to the next.
pub const FINE: Nanos = Nanos::from_millis(10_000);
/// Fine points are kept so long.
pub const FINE_SPAN: Nanos = Nanos::from_millis(3_600_000);
/// From one coarse point to the next.
pub const COARSE: Nanos = Nanos::from_millis(600_000);
/// Coarse points are to be kept so long.
pub const COARSE_SPAN: Nanos = Nanos::from_millis(7 * 86_400_000);

/// Fine points of each host.
const KEPT: usize = (FINE_SPAN.get() / FINE.get()) as usize;

/// One host over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Track {
    /// Its name.
    pub host: String,
    /// Oldest first.
    pub points: Vec<Point>,
    /// Round trips since its timeline last changed: `[up to ns, count]` of every bucket that is not empty.
    pub round_trips: Vec<(u64, u64)>,
}

/// One host at one time. Null: no bound then, or no exchange since the point before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Point {
    /// By the server's `CLOCK_REALTIME`, in ms since 1970.
    pub at_ms: i64,
    /// `CLOCK_REALTIME` of host less server.
    pub offset_ns: Option<i64>,
    /// The hard bound's half-width.
    pub hard_ns: Option<i64>,
    /// The statistical bound's.
    pub statistical_ns: Option<i64>,
    /// The smallest round trip since the point before.
    pub rtt_min_ns: Option<u64>,
    /// The largest.
    pub rtt_max_ns: Option<u64>,
    /// Exchanges since the point before.
    pub exchanges: u64,
    /// Those of which anything was lost.
    pub lost: u64,
}

/// What is known of a host at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its name.
    pub host: String,
    offset_ns: Option<i64>,
    hard_ns: Option<i64>,
    statistical_ns: Option<i64>,
    round_trips: Option<(u64, u64)>,
    counted: Counted,
}

/// Exchanges of a host so far: all, and lost ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    exchanges: u64,
    lost: u64,
}

impl Counted {
    pub fn of(record: &Record) -> Self {
        Counted { exchanges: record.exchanges, lost: record.lost }
    }
}

impl Sample {
    /// Of a record and its bounds (offset, hard, statistical), with the round trips that its window still has of the
    /// requests since `since`.
    pub(crate) fn of(record: &Record, bounds: Option<(i64, i64, i64)>, since: Time<Server>) -> Self {
        let window = record.published().map(|(window, _)| window);
        let trips = window.into_iter().flat_map(|window| window.round_trips(since));
        let trips = trips.map(|trip| u64::try_from(trip.get()).unwrap_or(0));
        let round_trips = trips.fold(None, |range: Option<(u64, u64)>, trip| {
            Some(range.map_or((trip, trip), |(min, max)| (min.min(trip), max.max(trip))))
        });
        Sample {
            host: record.config.name.clone(),
            offset_ns: bounds.map(|(offset, ..)| offset),
            hard_ns: bounds.map(|(_, hard, _)| hard),
            statistical_ns: bounds.map(|(.., statistical)| statistical),
            round_trips,
            counted: Counted::of(record),
        }
    }

    /// As a point, with what was counted since `before`.
    pub(crate) fn point(&self, at: Time<Wall>, before: Counted) -> (Point, Counted) {
        let point = Point {
            at_ms: at.as_nanos() / 1_000_000,
            offset_ns: self.offset_ns,
            hard_ns: self.hard_ns,
            statistical_ns: self.statistical_ns,
            rtt_min_ns: self.round_trips.map(|(min, _)| min),
            rtt_max_ns: self.round_trips.map(|(_, max)| max),
            exchanges: self.counted.exchanges.saturating_sub(before.exchanges),
            lost: self.counted.lost.saturating_sub(before.lost),
        };
        (point, self.counted)
    }
}

impl Point {
    /// The worst of these, as of the last; none of none.
    pub fn worst(points: impl IntoIterator<Item = Point>) -> Option<Point> {
        points.into_iter().reduce(|worst, next| Point {
            at_ms: next.at_ms,
            offset_ns: next.offset_ns.or(worst.offset_ns),
            // None is the least of all.
            hard_ns: worst.hard_ns.max(next.hard_ns),
            statistical_ns: worst.statistical_ns.max(next.statistical_ns),
            rtt_min_ns: worst.rtt_min_ns.into_iter().chain(next.rtt_min_ns).min(),
            rtt_max_ns: worst.rtt_max_ns.max(next.rtt_max_ns),
            exchanges: worst.exchanges + next.exchanges,
            lost: worst.lost + next.lost,
        })
    }
}

/// The fine points of all hosts.
#[derive(Clone, Debug, Default)]
pub struct History {
    hosts: BTreeMap<String, Ring>,
}

#[derive(Clone, Debug, Default)]
struct Ring {
    counted: Counted,
    points: VecDeque<Packed>,
}

impl History {
    /// Takes a sample of every host. Returns the coarse points that this completes: when the first fine point after
    /// them comes.
    pub fn push(&mut self, at: Time<Wall>, samples: &[Sample]) -> Vec<(String, Point)> {
        let mut complete = Vec::new();
        for sample in samples {
            let ring = self.hosts.entry(sample.host.clone()).or_default();
            let (point, counted) = sample.point(at, ring.counted);
            ring.counted = counted;
            let last = ring.points.back().map(|last| last.unpack());
            if last.is_some_and(|last| slot(last.at_ms) != slot(point.at_ms)) {
                complete.extend(ring.newest_slot().map(|point| (sample.host.clone(), point)));
            }
            if ring.points.len() == KEPT {
                ring.points.pop_front();
            } else if ring.points.is_empty() {
                ring.points.reserve_exact(KEPT);
            }
            ring.points.push_back(Packed::of(&point));
        }
        complete
    }

    /// The coarse points that are not complete yet.
    pub fn incomplete(&self) -> Vec<(String, Point)> {
        let newest = |(host, ring): (&String, &Ring)| Some((host.clone(), ring.newest_slot()?));
        self.hosts.iter().filter_map(newest).collect()
    }

    /// A host's fine points after the instant `since_ms`, in ms since 1970, oldest first.
    pub fn fine(&self, host: &str, since_ms: i64) -> Vec<Point> {
        let points = self.hosts.get(host).into_iter().flat_map(|ring| &ring.points);
        points.map(Packed::unpack).filter(|point| point.at_ms > since_ms).collect()
    }
}

impl Ring {
    /// The fine points since the last multiple of ten minutes, as one.
    fn newest_slot(&self) -> Option<Point> {
        let newest = slot(self.points.back()?.unpack().at_ms);
        let mut points: Vec<Point> = self
            .points
            .iter()
            .rev()
            .map(Packed::unpack)
            .take_while(|point| slot(point.at_ms) == newest)
            .collect();
        points.reverse();
        Point::worst(points)
    }
}

fn slot(at_ms: i64) -> i64 {
    at_ms.div_euclid(COARSE.get() / 1_000_000)
}

/// A point in 40 bytes: an hour of them takes 14 KiB a host.
#[derive(Clone, Copy, Debug)]
struct Packed {
    at_ms: i64,
    offset: i64,
    /// In ns, up to 4.29 s; what is wider is that wide. [`NONE`]: none.
    hard: u32,
    statistical: u32,
    rtt_min: u32,
    rtt_max: u32,
    exchanges: u32,
    lost: u32,
}

const NONE: u32 = u32::MAX;

impl Packed {
    fn of(point: &Point) -> Self {
        let narrow = |wide: u64| u32::try_from(wide).unwrap_or(NONE).min(NONE - 1);
        let width = |wide: Option<i64>| wide.map_or(NONE, |wide| narrow(u64::try_from(wide).unwrap_or(0)));
        let trip = |wide: Option<u64>| wide.map_or(NONE, narrow);
        Packed {
            at_ms: point.at_ms,
            offset: point.offset_ns.unwrap_or(i64::MIN),
            hard: width(point.hard_ns),
            statistical: width(point.statistical_ns),
            rtt_min: trip(point.rtt_min_ns),
            rtt_max: trip(point.rtt_max_ns),
            exchanges: narrow(point.exchanges),
            lost: narrow(point.lost),
        }
    }

    fn unpack(&self) -> Point {
        let width = |narrow: u32| (narrow != NONE).then_some(i64::from(narrow));
        let trip = |narrow: u32| (narrow != NONE).then_some(u64::from(narrow));
        Point {
            at_ms: self.at_ms,
            offset_ns: (self.offset != i64::MIN).then_some(self.offset),
            hard_ns: width(self.hard),
            statistical_ns: width(self.statistical),
            rtt_min_ns: trip(self.rtt_min),
            rtt_max_ns: trip(self.rtt_max),
            exchanges: self.exchanges.into(),
            lost: self.lost.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn sample(host: &str, hard_ns: Option<i64>, exchanges: u64) -> Sample {
        Sample {
            host: host.into(),
            offset_ns: hard_ns.map(|_| -5),
            hard_ns,
            statistical_ns: hard_ns,
            round_trips: hard_ns.map(|hard| (hard.unsigned_abs(), hard.unsigned_abs().saturating_mul(3))),
            counted: Counted { exchanges, lost: exchanges / 10 },
        }
    }

    fn at(seconds: i64) -> Time<Wall> {
        Time::from_nanos((1_000 * 600 + seconds) * SECOND)
    }

    #[test]
    fn ten_minutes_become_one_point_that_hides_no_spike() {
        let mut history = History::default();
        let mut complete = Vec::new();
        for second in (0..600).step_by(10) {
            let hard = match second {
                300 => Some(90_000),
                310 => None,
                _ => Some(700),
            };
            assert!(complete.is_empty());
            complete = history.push(at(second), &[sample("a", hard, 160 * (second as u64 / 10 + 1))]);
        }
        assert_eq!(history.incomplete().len(), 1);
        let complete = history.push(at(600), &[sample("a", Some(700), 160 * 61)]);
        let worst = Point {
            at_ms: at(590).as_nanos() / 1_000_000,
            offset_ns: Some(-5),
            hard_ns: Some(90_000),
            statistical_ns: Some(90_000),
            rtt_min_ns: Some(700),
            rtt_max_ns: Some(270_000),
            exchanges: 160 * 60,
            lost: 16 * 60,
        };
        assert_eq!(complete, [("a".to_owned(), worst)]);
        let fine = history.fine("a", at(300).as_nanos() / 1_000_000 - 1);
        assert_eq!((fine[0].hard_ns, fine[1].hard_ns, fine[1].rtt_min_ns), (Some(90_000), None, None));
        assert_eq!((fine[0].exchanges, fine[0].lost, fine.len()), (160, 16, 31));
        assert!(history.fine("b", 0).is_empty());
    }

    #[test]
    fn an_hour_is_kept_and_takes_little_memory() {
        let mut history = History::default();
        for second in (0..7_200).step_by(10) {
            history.push(at(second), &[sample("a", Some(i64::MAX), 1)]);
        }
        let kept = history.fine("a", 0);
        assert_eq!((kept.len(), kept[0].at_ms), (360, at(3_600).as_nanos() / 1_000_000));
        assert_eq!(kept[0].hard_ns, Some(i64::from(u32::MAX - 1)), "as wide as can be kept");
        let ring = &history.hosts["a"];
        assert!(ring.points.capacity() * size_of::<Packed>() + size_of::<Ring>() <= 15 * 1024);
    }
}
