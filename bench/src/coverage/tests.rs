//! A slice of the benchmark; and bounds that were broken on purpose, to see that it would find them.

use timesync::bound::{Assumptions, Interval};
use timesync::exchange::{Backward, Exchange, Forward};
use timesync::random::Random;
use timesync::server::{Outcome, Responder};
use timesync::source::{Observation, Unobserved};
use timesync::time::{Nanos, Server, Span, Time};

use super::clock::SECOND;
use super::estimator::{Estimator, Measured};
use super::host::Host;
use super::*;

const SLICE: Effort = Effort { instants: 60, oracle: 0, cuts: 4, history_s: 15, aftermath_s: 8 };

fn named(name: &str) -> &'static Scenario {
    scenario::all().iter().find(|scenario| scenario.name == name).unwrap()
}

fn slice<E: Estimator + Send>(name: &str, make: impl Fn(HostConfig, usize) -> E + Sync) -> Row {
    let scenario = named(name);
    row(scenario, in_parallel(&[1000, 1001], |seed| run_seed(scenario, seed, &make, SLICE)), Asked::default())
}

#[test]
fn no_bound_is_wrong_and_every_break_is_noticed() {
    for scenario in scenario::all() {
        let row = slice(scenario.name, record);
        assert!(row.more.failures.is_empty(), "{}: {:?}", scenario.name, row.more.failures);
        assert!(row.queries > 100, "{}: {} queries", scenario.name, row.queries);
    }
}

#[test]
fn cuts_are_certified_where_nothing_breaks() {
    let more = slice("idle", record).more;
    assert_eq!((more.certified, more.wrongly_at_all), (more.cuts, 0));
}

#[test]
fn network_cards_stamp_unless_their_clocks_were_just_stepped() {
    for (name, share) in
        [("hardware", 0.95..=1.0), ("phc-jumps", 0.1..=0.97), ("phc-rate-changes", 0.1..=1.0)]
    {
        let mut host = Host::new(
            named(name),
            record(HostConfig::new("a", ([127, 0, 0, 1], 319).into()), 512),
            None,
            40,
            &mut Random(7),
        );
        // Less than a window.
        host.advance(25 * SECOND);
        let by_card = host.by_card as f64 / host.measured.len() as f64;
        assert!(share.contains(&by_card), "{name}: {by_card}");
    }
}

/// Transparent clocks that hold packets for microseconds cost nothing where they are trusted.
#[test]
fn trusted_transparent_clocks_make_the_bound_narrower() {
    let p50 = |name| slice(name, record).half_width_ns.p50.unwrap();
    let untrusting = |config: HostConfig, window| {
        let assumptions = Assumptions { trust_correction: false, ..config.assumptions };
        record(HostConfig { assumptions, ..config }, window)
    };
    let trusted = p50("transparent-clocks");
    let row = slice("transparent-clocks", untrusting);
    assert_eq!(row.hard_misses, 0);
    assert!(trusted < 1.5 * p50("idle") && 4.0 * trusted < row.half_width_ns.p50.unwrap());
}

/// Trusted clocks that lie make the bound wrong, as the docs say; where they are not trusted, the same lie changes nothing.
#[test]
fn a_plausible_lie_breaks_the_bound_only_where_it_is_trusted() {
    let lies = slice("correction-lies", record);
    assert!(lies.wrong_trusted_s > 1.0 && lies.wrongly_certified == 0, "{}", lies.wrong_trusted_s);
    let untrusting = |config: HostConfig, window| {
        let assumptions = Assumptions { trust_correction: false, ..config.assumptions };
        record(HostConfig { assumptions, ..config }, window)
    };
    let untrusted = slice("correction-lies", untrusting);
    assert_eq!((untrusted.hard_misses, untrusted.wrong_trusted_s), (0, 0.0));
}

#[test]
fn a_statistical_bound_that_rests_on_samples_is_right_as_often_as_it_says() {
    // At 0.99, three misses of 40 are one case in a hundred.
    let asked = ask(named("heavy-tail"), 40);
    assert!(asked.on_samples == 40 && asked.missed <= 2, "{asked:?}");
}

/// A bound of half the width.
#[derive(Clone)]
struct Halved(Record);

impl Estimator for Halved {
    fn hear(&mut self, responder: Responder) {
        Estimator::hear(&mut self.0, responder);
    }
    fn complete(&mut self, outcome: &Outcome) {
        self.0.complete(outcome);
    }
    fn lose(&mut self) {
        self.0.lose();
    }
    fn server_changed(&mut self) {
        Estimator::server_changed(&mut self.0);
    }
    fn trusted(&self, now: Time<Server>) -> Option<usize> {
        self.0.trusted(now)
    }
    fn hard(&self, now: Time<Server>, at: Time<Server>) -> Option<Interval> {
        let interval = self.0.hard(now, at)?;
        let quarter = Nanos::new((interval.hi - interval.lo).get() / 4);
        Some(Interval { lo: interval.lo + quarter, hi: interval.hi - quarter })
    }
    fn observe(&self, now: Time<Server>) -> Result<Observation, Unobserved> {
        Estimator::observe(&self.0, now)
    }
}

#[test]
fn a_bound_of_half_the_width_is_found_out() {
    assert!(slice("asymmetric", |config, window| Halved(record(config, window))).hard_misses > 10);
}

#[test]
fn a_bound_that_ignores_wander_is_found_out() {
    let straight = |config: HostConfig, window| {
        let assumptions = Assumptions { wander_ppb_per_s: Some(0), ..config.assumptions };
        record(HostConfig { assumptions, ..config }, window)
    };
    assert!(slice("extreme-loaded", straight).hard_misses > 0);
}

#[test]
fn a_minimum_delay_that_is_not_kept_is_found_out() {
    let hasty = |config: HostConfig, window| {
        let assumptions = Assumptions { min_backward: Nanos::new(5_000), ..config.assumptions };
        record(HostConfig { assumptions, ..config }, window)
    };
    let row = slice("asymmetric", hasty);
    assert!(row.hard_misses > 10 && row.wrongly_certified > 0, "{:?}", row.more.failures);
}

/// Takes what contradicts the window for an outlier, and an announced change for nothing.
#[derive(Clone)]
struct Stubborn(Record);

impl Estimator for Stubborn {
    fn hear(&mut self, _responder: Responder) {}
    fn complete(&mut self, outcome: &Outcome) {
        let now = outcome.server_wall.at.latest;
        let mut next = self.0.clone();
        next.complete(outcome);
        if self.0.trusted(now).is_none() || next.trusted(now).is_some() {
            self.0 = next;
        }
    }
    fn lose(&mut self) {
        self.0.lose();
    }
    fn server_changed(&mut self) {}
    fn trusted(&self, now: Time<Server>) -> Option<usize> {
        self.0.trusted(now)
    }
    fn hard(&self, now: Time<Server>, at: Time<Server>) -> Option<Interval> {
        self.0.hard(now, at)
    }
    fn observe(&self, now: Time<Server>) -> Result<Observation, Unobserved> {
        Estimator::observe(&self.0, now)
    }
}

#[test]
fn a_window_that_is_not_emptied_at_a_break_is_found_out() {
    for name in ["jump", "suspend", "reboot", "clock-source", "server-suspend", "rate-beyond-limit"] {
        let row = slice(name, |config, window| Stubborn(record(config, window)));
        assert!(!row.more.failures.is_empty(), "{name}");
    }
}

/// Exchanges at these ages, in seconds, of a clock that is at 0, ±`error` ns.
fn exchanges(ages: &[i64], error: i64) -> Vec<Measured> {
    let exchange = |age: &i64| {
        let at = Span::exact(Time::from_nanos(-age * 1_000_000_000));
        let host = |by: i64| Span::exact(Time::from_nanos(-age * 1_000_000_000 + by));
        Exchange {
            forward: Some(Forward { sent: at, received: host(error) }),
            backward: Some(Backward { sent: host(-error), received: at }),
        }
    };
    let measured =
        |age| Measured { exchange: exchange(age), round_trip: None, forward: error, backward: error };
    ages.iter().map(measured).collect()
}

#[test]
fn the_oracle_knows_what_can_be_worked_out_by_hand() {
    let assumptions = Assumptions { wander_ppb_per_s: Some(100), ..Assumptions::default() };
    let width = |ages: &[i64], assumptions: &Assumptions| {
        oracle::width(exchanges(ages, 1_000).iter(), assumptions, 0).unwrap()
    };
    let near = |a: f64, b: f64| (a - b).abs() < 1.0;
    // One exchange, a second ago: the rate may be anything.
    assert!(near(width(&[1], &assumptions), 2.0 * (1_000.0 + 200_000.0)));
    // Ages a = 1 and b = 3: e·(b + a)/(b − a) + κ·a·b/2 above, and as much below.
    assert!(near(width(&[1, 3], &assumptions), 2.0 * (2_000.0 + 150.0)));
    // On both sides: e + κ·a·b/2.
    assert!(near(width(&[1, -1], &assumptions), 2.0 * (1_000.0 + 50.0)));
    let any = Assumptions { wander_ppb_per_s: None, ..assumptions };
    assert!(near(width(&[1, 3], &any), 2.0 * (1_000.0 + 200_000.0)));
}

#[test]
fn a_coverage_proves_as_much_as_clopper_and_pearson_say() {
    // Without a miss among n, the limit is 0.05^(1/n).
    assert!((coverage_at_least(0, 299) - 0.05f64.powf(1.0 / 299.0)).abs() < 1e-9);
    assert!(coverage_at_least(0, 299) > 0.99 && coverage_at_least(0, 298) < 0.99);
    assert!(coverage_at_least(1, 299) < 0.99);
}
