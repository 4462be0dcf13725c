//! The history of the bounds, in as many slots as a chart can show. No clock.
//!
//! A slot holds the worst of its points: a spike of the bound is never averaged away.

use serde::{Deserialize, Serialize};
use timesync::history::{COARSE, FINE, FINE_SPAN, Point, Track};
use timesync::time::{Nanos, Time, Wall};
use utoipa::ToSchema;

/// How hosts were over time, in slots of equal length. `GET /api/v1/dashboard/history`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Chart {
    /// When the first slot begins, by the server's `CLOCK_REALTIME`, in ms since 1970.
    pub from_ms: i64,
    /// How long each is.
    pub step_ms: i64,
    /// The hosts, in the order of the configuration.
    pub hosts: Vec<HostChart>,
}

/// One host over time: a value for each slot, null where there was no bound or nobody looked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostChart {
    /// Its name.
    pub host: String,
    /// `CLOCK_REALTIME` of host less server; the last of the slot.
    pub offset_ns: Vec<Option<i64>>,
    /// The hard bound's half-width; the widest of the slot.
    pub hard_ns: Vec<Option<i64>>,
    /// The statistical bound's.
    pub statistical_ns: Vec<Option<i64>>,
    /// Round trips since its timeline last changed: `[n, count]` of every bin that is not empty. Bin n has those of up
    /// to 2^(n/4) ns and more than 2^((n-1)/4) ns.
    pub round_trips: Vec<(u32, u64)>,
}

/// The slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    from_ms: i64,
    step_ms: i64,
    slots: usize,
}

impl Axis {
    /// At most `points` slots for the last `span`. None is so short that a server that looked all the time could have
    /// left it empty: a fine point may come a little late, a coarse one comes at the end of its ten minutes.
    pub fn over(now: Time<Wall>, span: Nanos, points: u16) -> Self {
        let ms = |nanos: Nanos| nanos.get() / 1_000_000;
        let least = if span <= FINE_SPAN { 2 * ms(FINE) } else { ms(COARSE) };
        let steps = ((ms(span) / i64::from(points.max(1)) + least - 1) / least).max(1);
        let step_ms = steps * least;
        let end = (now.as_nanos() / 1_000_000).div_euclid(step_ms) + 1;
        let slots = (ms(span).div_euclid(step_ms)).clamp(1, i64::from(points.max(1)));
        Axis { from_ms: (end - slots) * step_ms, step_ms, slots: usize::try_from(slots).unwrap_or(1) }
    }

    fn slot(self, at_ms: i64) -> Option<usize> {
        let slot = usize::try_from((at_ms - self.from_ms).div_euclid(self.step_ms)).ok()?;
        (slot < self.slots).then_some(slot)
    }
}

impl Chart {
    /// The tracks along an axis.
    pub fn of(tracks: &[Track], axis: Axis) -> Self {
        let hosts = tracks.iter().map(|track| HostChart::of(track, axis)).collect();
        Chart { from_ms: axis.from_ms, step_ms: axis.step_ms, hosts }
    }
}

impl HostChart {
    fn of(track: &Track, axis: Axis) -> Self {
        let mut slots: Vec<Option<Point>> = vec![None; axis.slots];
        for point in &track.points {
            if let Some(slot) = axis.slot(point.at_ms).and_then(|slot| slots.get_mut(slot)) {
                *slot = Point::worst(slot.iter().copied().chain([*point]));
            }
        }
        // A time without a bound within a slot counts as one with it: a gap is what fills a slot.
        let values =
            |value: fn(&Point) -> Option<i64>| slots.iter().map(|slot| value(slot.as_ref()?)).collect();
        HostChart {
            host: track.host.clone(),
            offset_ns: values(|point| point.offset_ns.filter(|_| point.hard_ns.is_some())),
            hard_ns: values(|point| point.hard_ns),
            statistical_ns: values(|point| point.statistical_ns),
            round_trips: bins(&track.round_trips),
        }
    }
}

/// From `(up to ns, count)` of narrow buckets to bins of a quarter of an octave.
fn bins(buckets: &[(u64, u64)]) -> Vec<(u32, u64)> {
    let mut bins: Vec<(u32, u64)> = Vec::new();
    for (up_to, count) in buckets {
        let bin = bin(*up_to);
        match bins.last_mut() {
            Some((last, sum)) if *last == bin => *sum += count,
            _ => bins.push((bin, *count)),
        }
    }
    bins
}

fn bin(ns: u64) -> u32 {
    #[expect(clippy::cast_precision_loss, reason = "a bin is a fifth of the value wide")]
    let quarters = (ns.max(1) as f64).log2() * 4.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ..= 256")]
    let bin = quarters.ceil() as u32;
    bin
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Nanos = Nanos::from_millis(3_600_000);

    fn at(ms: i64) -> Time<Wall> {
        Time::from_nanos(ms * 1_000_000)
    }

    fn point(at_ms: i64, hard_ns: Option<i64>) -> Point {
        Point {
            at_ms,
            offset_ns: hard_ns.map(|hard| -hard),
            hard_ns,
            statistical_ns: hard_ns,
            ..Point::default()
        }
    }

    fn track(points: Vec<Point>) -> Track {
        Track { host: "a".to_owned(), points, round_trips: Vec::new() }
    }

    #[test]
    fn a_slot_is_long_enough_to_hold_a_point() {
        let axis = Axis::over(at(10_000_000), HOUR, 90);
        assert_eq!((axis.from_ms, axis.step_ms, axis.slots), (6_440_000, 40_000, 90));
        assert_eq!((axis.slot(10_000_000), axis.slot(6_439_999)), (Some(89), None));
        assert_eq!(Axis::over(at(10_000_000), HOUR, 1_000).step_ms, 20_000);
        assert_eq!(Axis::over(at(10_000_000), HOUR, 1_000).slots, 180);
        let day = Nanos::from_millis(86_400_000);
        assert_eq!((Axis::over(at(0), day, 360).step_ms, Axis::over(at(0), day, 360).slots), (600_000, 144));
    }

    #[test]
    fn a_spike_is_seen_and_a_gap_too() {
        let axis = Axis { from_ms: 0, step_ms: 20_000, slots: 4 };
        let points = vec![
            point(0, Some(700)),
            point(10_000, Some(90_000)),
            point(20_000, None),
            point(30_000, Some(600)),
            point(40_000, None),
            point(99_000, Some(1)),
        ];
        let chart = Chart::of(&[track(points)], axis);
        assert_eq!(chart.hosts[0].hard_ns, [Some(90_000), Some(600), None, None]);
        assert_eq!(chart.hosts[0].offset_ns, [Some(-90_000), Some(-600), None, None]);
    }

    #[test]
    fn every_round_trip_is_in_one_bin() {
        assert_eq!((bin(0), bin(1), bin(2), bin(1_024), bin(1_025)), (0, 0, 4, 40, 41));
        let buckets = [(1_000, 3), (1_010, 4), (1_024, 1), (1_100, 5), (u64::MAX, 1)];
        assert_eq!(bins(&buckets), [(40, 8), (41, 5), (256, 1)]);
    }
}
