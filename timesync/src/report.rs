//! The data behind `coeval skew`.

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};

use crate::bound::{AsymmetrySource, Interval, Statistical};
use crate::exchange::StampClass;
use crate::server::{Latest, Record, State};
use crate::time::{Nanos, Server, Time};

/// What is known of all hosts' clocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Each host against the server.
    pub hosts: Vec<HostRow>,
    /// Each host against each other one.
    pub pairs: Vec<PairRow>,
}

/// One host's `CLOCK_REALTIME` against the server's, as of the last exchange. Null: not known yet, or no longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostRow {
    /// Its name.
    pub host: String,
    /// Host less server, the middle of the hard bound.
    pub offset_ns: Option<i64>,
    /// Half-width of the hard bound around it.
    pub hard_ns: Option<i64>,
    /// Half-width of the hard bound on the two machines' `CLOCK_MONOTONIC_RAW`, which is what sizes V. `hard_ns` is more:
    /// `CLOCK_REALTIME` may have been slewed against that while the stamps were taken.
    #[serde(default)]
    pub timeline_ns: Option<i64>,
    /// Half-width of the statistical bound around it.
    pub statistical_ns: Option<i64>,
    /// The statistical bound's.
    pub confidence: Option<f64>,
    /// The asymmetry budget that the statistical bound uses.
    pub asymmetry: Option<Asymmetry>,
    /// Round trips between the stamping points.
    pub rtt_ns: Option<RoundTrips>,
    /// Rate of `CLOCK_MONOTONIC_RAW` against the server's.
    pub drift_ppb: Option<f64>,
    /// The worse class of timestamps on either end.
    pub timestamps: Option<StampClass>,
    /// Exchanges that gave at least a half.
    pub exchanges: u64,
    /// Exchanges of which anything was lost.
    pub lost: u64,
    /// The instant that all of this holds for, on the server's timeline: that of the last exchange.
    pub at_ns: Option<Time<Server>>,
    /// Since then.
    pub age_ms: Option<i64>,
    /// What to make of it.
    pub state: State,
}

/// An asymmetry budget and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asymmetry {
    /// The largest difference between the two directions' usual delays.
    pub ns: i64,
    /// Where it comes from.
    pub source: AsymmetrySource,
}

/// Round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundTrips {
    /// The smallest.
    pub min: u64,
    /// The median.
    pub p50: u64,
    /// All but one in a hundred are at most this.
    pub p99: u64,
}

impl RoundTrips {
    pub(crate) fn of<C: Counter>(trips: &Histogram<C>) -> Self {
        RoundTrips { min: trips.min(), p50: trips.value_at_quantile(0.5), p99: trips.value_at_quantile(0.99) }
    }
}

/// One host's `CLOCK_REALTIME` against another's: the difference of their rows, each as of its own last exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairRow {
    /// One host.
    pub a: String,
    /// The other.
    pub b: String,
    /// a less b.
    pub offset_ns: Option<i64>,
    /// Half-width of the hard bound around it: the sum of both hosts'.
    pub hard_ns: Option<i64>,
    /// Half-width of the statistical bound around it, at the rows' confidence: each host gets half of what is left to
    /// chance, and counts with its hard bound where its samples do not carry that.
    pub statistical_ns: Option<i64>,
}

/// A host's bounds on `CLOCK_REALTIME`, in ns.
struct Bounds {
    offset: i64,
    hard: i64,
    timeline: i64,
    statistical: Statistical,
    statistical_half: i64,
    half_for_pairs: i64,
    drift_ppb: Option<f64>,
}

/// Both wall clocks may be slewed by so much while the request is on its way (frequency and adjtime: see
/// [`crate::translate::Steering`]).
pub(crate) const SLEW_PPB: i64 = 1_000_000;

/// The report on `records` at the server's instant `now`, with statistical bounds at `confidence`.
pub(crate) fn of(records: &[Record], now: Time<Server>, confidence: f64, allow_simulated: bool) -> Report {
    let rows: Vec<(HostRow, Option<i64>)> =
        records.iter().map(|record| row(record, now, confidence, allow_simulated)).collect();
    let mut pairs = Vec::new();
    for (i, (a, a_half)) in rows.iter().enumerate() {
        for (b, b_half) in &rows[i + 1..] {
            let sum = |a: Option<i64>, b: Option<i64>| Some(a?.saturating_add(b?));
            pairs.push(PairRow {
                a: a.host.clone(),
                b: b.host.clone(),
                offset_ns: a.offset_ns.zip(b.offset_ns).map(|(a, b)| a.saturating_sub(b)),
                hard_ns: sum(a.hard_ns, b.hard_ns),
                statistical_ns: sum(*a_half, *b_half),
            });
        }
    }
    Report { hosts: rows.into_iter().map(|(row, _)| row).collect(), pairs }
}

fn row(record: &Record, now: Time<Server>, confidence: f64, allow_simulated: bool) -> (HostRow, Option<i64>) {
    let state = record.state(now, allow_simulated);
    let latest = record.published().map(|(_, latest)| latest);
    let shown = matches!(state, State::Ok | State::Agentless);
    let bounds = if shown { bounds(record, confidence) } else { None };
    let trips = &record.round_trips;
    let row = HostRow {
        host: record.config.name.clone(),
        offset_ns: bounds.as_ref().map(|bounds| bounds.offset),
        hard_ns: bounds.as_ref().map(|bounds| bounds.hard),
        timeline_ns: bounds.as_ref().map(|bounds| bounds.timeline),
        statistical_ns: bounds.as_ref().map(|bounds| bounds.statistical_half),
        confidence: bounds.as_ref().map(|bounds| bounds.statistical.confidence),
        asymmetry: bounds.as_ref().map(|bounds| Asymmetry {
            ns: bounds.statistical.asymmetry.get(),
            source: bounds.statistical.asymmetry_source,
        }),
        rtt_ns: (!trips.is_empty()).then(|| RoundTrips::of(trips)),
        drift_ppb: bounds.as_ref().and_then(|bounds| bounds.drift_ppb),
        timestamps: latest.map(|latest| latest.class),
        exchanges: record.exchanges,
        lost: record.lost,
        at_ns: latest.map(|latest| latest.server_wall.at.earliest),
        age_ms: latest.map(|latest| (now - latest.server_wall.at.latest).get() / 1_000_000),
        state,
    };
    (row, bounds.map(|bounds| bounds.half_for_pairs))
}

fn bounds(record: &Record, confidence: f64) -> Option<Bounds> {
    let (window, latest) = record.published()?;
    let at = latest.server_wall.at.earliest;
    let budget = record.config.asymmetry;
    let timelines = window.hard(at).ok()?;
    let hard = wall_offset(timelines, latest);
    let offset = hard.0 + (hard.1 - hard.0) / 2;
    let half = |(lo, hi): (i64, i64)| (hi - offset).max(offset - lo);
    let statistical = window.statistical(at, confidence, budget).ok()?;
    let for_pairs = 1.0 - (1.0 - confidence) / 2.0;
    let pairs = window.statistical(at, for_pairs, budget).ok()?;
    let pairs = if pairs.confidence >= for_pairs { wall_offset(pairs.interval, latest) } else { hard };
    Some(Bounds {
        offset,
        hard: half(hard),
        timeline: timelines.half_width().get(),
        statistical,
        statistical_half: half(wall_offset(statistical.interval, latest)),
        half_for_pairs: half(pairs),
        drift_ppb: window.drift(at).ok().map(|drift| (drift.ppb * 10.0).round() / 10.0),
    })
}

/// From θ, host less server on their monotonic timelines, to the same of their `CLOCK_REALTIME`s, in ns.
///
/// With w = wall − timeline on each machine, as the request's stamps give it, the wall clocks differ by
/// θ + w(host) − w(server). The two are known at instants that lie a little apart: by the request's delay, if they are the
/// stamps' own. Meanwhile each wall clock may have been slewed against its timeline. Stamps are in whole nanoseconds: one more on each machine.
fn wall_offset(theta: Interval, latest: &Latest) -> (i64, i64) {
    let (server, host) = (&latest.server_wall, &latest.host_wall);
    let slewed = latest.apart.get().saturating_mul(2 * SLEW_PPB) / 1_000_000_000 + 3;
    let over_host = |at: Time<crate::time::Host>| host.wall.as_nanos().saturating_sub(at.as_nanos());
    let over_server = |at: Time<Server>| server.wall.as_nanos().saturating_sub(at.as_nanos());
    let sum = |theta: i64, host: i64, server: i64| Nanos::new(theta) + Nanos::new(host) - Nanos::new(server);
    let lo = sum(theta.lo.get(), over_host(host.at.latest), over_server(server.at.earliest));
    let hi = sum(theta.hi.get(), over_host(host.at.earliest), over_server(server.at.latest));
    ((lo - Nanos::new(slewed)).get(), (hi + Nanos::new(slewed)).get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::WallReading;
    use crate::server::HostConfig;
    use crate::time::{Offset, Span};

    fn exact<T>(wall: i64, at: i64) -> WallReading<T> {
        WallReading { wall: Time::from_nanos(wall), at: Span::exact(Time::from_nanos(at)) }
    }

    /// The server booted 1 000 s before its wall clock's zero, so to speak, the host 5 s later; their wall clocks are
    /// 700 ns apart.
    #[test]
    fn the_wall_clocks_offset_is_the_timelines_and_what_the_stamps_say() {
        let (x, second) = (2_000_000_000_i64, 1_000_000_000_i64);
        let latest = Latest {
            server_wall: exact(x + 1_000 * second, x),
            host_wall: exact(x + 1_000 * second + 700 + 400, x - 5 * second + 400),
            class: StampClass::Software,
            apart: Nanos::new(1_000_000),
            steps: 0,
        };
        let theta = Interval { lo: Offset::new(-5 * second - 300), hi: Offset::new(-5 * second + 200) };
        // 2 · 1 000 ppm of the delay, and 3 for the whole nanoseconds.
        assert_eq!(wall_offset(theta, &latest), (700 - 300 - 2_003, 700 + 200 + 2_003));
    }

    #[test]
    fn a_host_that_was_never_heard_of_has_a_row_of_nulls_and_a_state() {
        let record = Record::new(HostConfig::new("a", "10.0.0.1:319".parse().unwrap()), 64, true);
        let report = of(&[record], Time::from_nanos(0), 0.99, false);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"hosts": [{
                "host": "a", "at_ns": null, "offset_ns": null, "hard_ns": null, "timeline_ns": null, "statistical_ns": null, "confidence": null,
                "asymmetry": null, "rtt_ns": null, "drift_ppb": null, "timestamps": null, "exchanges": 0, "lost": 0,
                "age_ms": null, "state": "silent",
            }], "pairs": []})
        );
    }
}
