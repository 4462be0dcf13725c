//! The data behind `coeval skew`.

mod pairs;

use std::net::SocketAddr;

use hdrhistogram::{Counter, Histogram};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bound::{Assumptions, AsymmetrySource, Basis, Interval, Statistical};
use crate::exchange::StampClass;
use crate::server::{Latest, Record, State};
use crate::time::{Nanos, Server, Time};

/// What is known of all hosts' clocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Report {
    /// Each host against the server.
    pub hosts: Vec<HostRow>,
    /// Hosts against each other, the widest hard bound first. Of up to [`ALL_PAIRS_OF`] hosts all pairs, last those of
    /// which one has no bound; of more hosts the [`WORST_PAIRS`] widest.
    pub pairs: Vec<PairRow>,
    /// How many pairs there are, shown or not.
    pub pair_count: u64,
}

/// A report on so many hosts has all their pairs.
pub const ALL_PAIRS_OF: usize = 64;
/// A report on more hosts has so many of their pairs.
pub const WORST_PAIRS: usize = 64;

/// One host's `CLOCK_REALTIME` against the server's, as of the last exchange. Null: not known yet, or no longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostRow {
    /// Its name.
    pub host: String,
    /// Where it is probed.
    #[schema(value_type = String)]
    pub address: SocketAddr,
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
    /// The statistical bound's; 1 where it is the hard bound, which leaves nothing to chance.
    pub confidence: Option<f64>,
    /// What the statistical bound rests on.
    pub basis: Option<Basis>,
    /// The asymmetry budget that the statistical bound uses.
    pub asymmetry: Option<Asymmetry>,
    /// What the hard bound assumes.
    pub assumptions: Assumptions,
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
    #[schema(value_type = Option<i64>)]
    pub at_ns: Option<Time<Server>>,
    /// Since then.
    pub age_ms: Option<i64>,
    /// What to make of it.
    pub state: State,
    /// Why there is no bound, and what to do about it: one sentence for people.
    pub why: Option<String>,
}

/// An asymmetry budget and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Asymmetry {
    /// The largest difference between the two directions' usual delays.
    pub ns: i64,
    /// Where it comes from.
    pub source: AsymmetrySource,
}

/// Round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

/// The row of `record` at the server's instant `now`, with the statistical bound at `confidence`; and the half-width that
/// counts in pairs.
pub(crate) fn row(
    record: &Record,
    now: Time<Server>,
    confidence: f64,
    allow_simulated: bool,
) -> (HostRow, Option<i64>) {
    let state = record.state(now, allow_simulated);
    let latest = record.published().map(|(_, latest)| latest);
    let bounds = if is_shown(state) { bounds(record, confidence) } else { None };
    let trips = &record.round_trips;
    let row = HostRow {
        host: record.config.name.clone(),
        address: record.config.address,
        offset_ns: bounds.as_ref().map(|bounds| bounds.offset),
        hard_ns: bounds.as_ref().map(|bounds| bounds.hard),
        timeline_ns: bounds.as_ref().map(|bounds| bounds.timeline),
        statistical_ns: bounds.as_ref().map(|bounds| bounds.statistical_half),
        confidence: bounds.as_ref().map(|bounds| bounds.statistical.confidence),
        basis: bounds.as_ref().map(|bounds| bounds.statistical.basis),
        asymmetry: bounds.as_ref().map(|bounds| Asymmetry {
            ns: bounds.statistical.asymmetry.get(),
            source: bounds.statistical.asymmetry_source,
        }),
        assumptions: record.assumptions(),
        rtt_ns: (!trips.is_empty()).then(|| RoundTrips::of(trips)),
        drift_ppb: bounds.as_ref().and_then(|bounds| bounds.drift_ppb),
        timestamps: latest.map(|latest| latest.class),
        exchanges: record.exchanges,
        lost: record.lost,
        at_ns: latest.map(|latest| latest.server_wall.at.earliest),
        age_ms: latest.map(|latest| (now - latest.server_wall.at.latest).get() / 1_000_000),
        state,
        why: why_unbounded(record, state, now),
    };
    (row, bounds.map(|bounds| bounds.half_for_pairs))
}

/// Offset, hard and statistical half-width as in [`row`], and nothing else: for every host again and again.
pub(crate) fn half_widths(
    record: &Record,
    now: Time<Server>,
    confidence: f64,
    allow_simulated: bool,
) -> Option<(i64, i64, i64)> {
    if !is_shown(record.state(now, allow_simulated)) {
        return None;
    }
    let (window, latest) = record.published()?;
    let at = latest.server_wall.at.earliest;
    let hard = wall_offset(window.hard(at).ok()?, latest);
    let statistical = window.statistical(at, confidence, record.config.asymmetry).ok()?;
    let offset = middle(hard);
    let statistical = half_width(wall_offset(statistical.interval, latest), offset);
    Some((offset, half_width(hard, offset), statistical))
}

fn is_shown(state: State) -> bool {
    matches!(state, State::Ok | State::Agentless)
}

fn middle((lo, hi): (i64, i64)) -> i64 {
    lo + (hi - lo) / 2
}

fn half_width((lo, hi): (i64, i64), offset: i64) -> i64 {
    (hi - offset).max(offset - lo)
}

/// Why a host in this state has no bound.
fn why_unbounded(record: &Record, state: State, now: Time<Server>) -> Option<String> {
    let address = record.config.address;
    Some(match (state, record.heard()) {
        (State::Ok | State::Agentless, _) => return None,
        (State::Silent, None) => format!(
            "has never answered at {address}; start `coeval host` there, and let UDP to that port and back through the firewalls"
        ),
        (State::Silent, Some(heard)) => format!(
            "has not answered at {address} for {} s; look whether the machine and its `coeval host` still run",
            (now - heard).get() / 1_000_000_000
        ),
        (State::Unauthenticated, _) => format!(
            "answers at {address}, but without its key; look at `time_key` on both ends, or whether the server can reach its \
             `coeval host` to hand it one"
        ),
        (State::Simulated, _) => {
            "runs on a simulated clock; only a server started with --simulation accepts it".to_owned()
        }
        (State::Broken, _) => format!(
            "contradicted the clock assumptions (a step, a suspend, a rate beyond {} ppm, or a lie); good exchanges bring the \
             bound back in a second; if it breaks again, look at what sets or steers its clock, or raise `rate_ppm`",
            record.assumptions().rate_ppb / 1_000
        ),
        (State::Warming, _) => "has too few good exchanges yet; try again in a second".to_owned(),
    })
}

fn bounds(record: &Record, confidence: f64) -> Option<Bounds> {
    let (window, latest) = record.published()?;
    let at = latest.server_wall.at.earliest;
    let budget = record.config.asymmetry;
    let timelines = window.hard(at).ok()?;
    let hard = wall_offset(timelines, latest);
    let offset = middle(hard);
    let half = |interval| half_width(interval, offset);
    let statistical = window.statistical(at, confidence, budget).ok()?;
    let for_pairs = 1.0 - (1.0 - confidence) / 2.0;
    let pairs = match statistical.basis {
        // Without a budget of its own it is the hard one at any confidence.
        Basis::DefaultBudget => statistical,
        _ => window.statistical(at, for_pairs, budget).ok()?,
    };
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
    fn a_host_that_was_never_heard_of_has_a_row_of_nulls_a_state_and_a_reason() {
        let record = Record::new(HostConfig::new("a", "10.0.0.1:319".parse().unwrap()), 64, true);
        let report = Report::of(vec![row(&record, Time::from_nanos(0), 0.99, false)]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"hosts": [{
                "host": "a", "address": "10.0.0.1:319", "at_ns": null, "offset_ns": null, "hard_ns": null,
                "timeline_ns": null, "statistical_ns": null, "confidence": null, "basis": null, "asymmetry": null,
                "assumptions": {"rate_ppb": 200_000, "wander_ppb_per_s": 100, "min_forward": 0, "min_backward": 0,
                    "trust_correction": false, "authenticated": false},
                "rtt_ns": null, "drift_ppb": null, "timestamps": null, "exchanges": 0, "lost": 0,
                "age_ms": null, "state": "silent",
                "why": "has never answered at 10.0.0.1:319; start `coeval host` there, and let UDP to that port and \
                        back through the firewalls",
            }], "pairs": [], "pair_count": 0})
        );
    }
}
