//! One scenario with one seed: the hosts' history, and the queries into it.

use timesync::bound::{AsymmetryBudget, Basis, Interval, pairwise};
use timesync::random::Random;
use timesync::server::HostConfig;

use super::clock::SECOND;
use super::cuts::{self, Verdict};
use super::estimator::Estimator;
use super::host::{Break, Host, at};
use super::network::honest_budget;
use super::oracle;
use super::scenario::{Scenario, Tell};

/// A bound that errs by no more than this is right: a millionth of a nanosecond, for the rounding of the truth.
const ROUNDING: f64 = 1e-6;

/// How much is asked of one seed.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Instants of queries: each is asked of both hosts and of their pair.
    pub instants: usize,
    /// Queries that the oracle answers too.
    pub oracle: usize,
    /// Attempts at a cut.
    pub cuts: usize,
    /// A run is no longer than this, in seconds, though the window may be;
    pub history_s: i64,
    /// and goes on for so long after a break.
    pub aftermath_s: i64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub queries: u64,
    pub misses: u64,
    /// The first miss, in words.
    pub first_miss: Option<String>,
    /// Half-widths in ns.
    pub half_widths: Vec<f64>,
    /// To the oracle's.
    pub ratios: Vec<f64>,
    /// To half of the smallest forward + backward delay.
    pub over_floor: Vec<f64>,
    /// Queries that the oracle could not answer.
    pub unsolved: u64,
    /// How long a bound was trusted and wrong, in seconds; and by how much at most, in ns.
    pub wrong_s: f64,
    pub wrong_by: f64,
    /// From the break (stamps alone: from when the error was beyond the round trip) until the bound was withdrawn.
    pub detect_s: Option<f64>,
    /// Trusted and wrong after the bound had been withdrawn once; or trusted at all after the host's first answer that
    /// could tell of the break.
    pub trusted_after_told: u64,
    pub cuts: u64,
    pub certified: u64,
    /// Certificates that are wrong: beyond the round trip, and at all.
    pub wrong_cuts: u64,
    pub wrong_cuts_at_all: u64,
}

/// A miss, by how much in ns; 0 within the interval.
fn miss<E: Estimator>(host: &Host<E>, interval: Interval, x: i64) -> f64 {
    let (whole, rest) = host.truth(x);
    let below = (interval.lo.get() - whole) as f64 - rest;
    let above = rest - (interval.hi.get() - whole) as f64;
    let by = below.max(above);
    if by > ROUNDING { by } else { 0.0 }
}

enum Event {
    Query,
    /// Is the bound trusted, and wrong? Stands for so many ns.
    Watch(i64),
    Cut,
}

/// Runs `scenario` with `seed`.
pub fn run<E: Estimator>(
    scenario: &'static Scenario,
    seed: u64,
    make: impl Fn(HostConfig, usize) -> E,
    effort: Effort,
) -> Tally {
    let random = &mut Random(seed ^ 0x636f_7665_7261_6765);
    let warm = 3 * SECOND;
    // As long as a window, and some more in which exchanges leave it.
    let long = (scenario.window_span() * 5 / 4 + 10 * SECOND).min(effort.history_s * SECOND);
    let breaking = scenario.breaks.map(|kind| {
        let at = warm + random.nanos(long / 2, long * 3 / 4);
        kind.draw(at, random)
    });
    let end = breaking.map_or(long, |b| b.over() + effort.aftermath_s * SECOND);
    let mut hosts: Vec<Host<E>> = (0..2)
        .map(|index| {
            let config = HostConfig {
                assumptions: scenario.assumptions,
                ..HostConfig::new(format!("host{index}"), ([127, 0, 0, 1], 319).into())
            };
            // A break is the second host's, unless it is the server's.
            let own = breaking.filter(|b| index == 1 || b.tell == Tell::Server);
            Host::new(scenario, make(config, scenario.window), own, end / SECOND + 5, random)
        })
        .collect();
    let mut tally = Tally::default();
    let mut oracle_left = effort.oracle;
    for (now, event) in events(breaking, warm, end, effort, random) {
        if let Event::Cut = event {
            // On copies: an attempt changes what is measured afterwards.
            let mut copies = hosts.clone();
            count_cut(&mut copies, now, breaking, random, &mut tally);
            continue;
        }
        hosts.iter_mut().for_each(|host| host.advance(now));
        match event {
            Event::Query => {
                let x = instant(now, &hosts[0], random);
                if counts(breaking, &hosts, now, x) {
                    query(&hosts, now, x, seed, &mut tally);
                    // Spread over the run.
                    if oracle_left > 0 && random.chance(0.1) {
                        oracle_left -= 1;
                        compare(&hosts[0], now, x, scenario, &mut tally);
                    }
                }
            }
            Event::Watch(step) => watch(&hosts, now, step, breaking, &mut tally),
            Event::Cut => {}
        }
    }
    if let Some(b) = breaking {
        judge(&hosts, b, &mut tally);
    }
    tally
}

fn events(
    breaking: Option<Break>,
    warm: i64,
    end: i64,
    effort: Effort,
    random: &mut Random,
) -> Vec<(i64, Event)> {
    let mut events: Vec<(i64, Event)> =
        (0..effort.instants).map(|_| (random.nanos(warm, end), Event::Query)).collect();
    for _ in 0..effort.cuts {
        // An attempt takes some 150 ms: most of these have the break inside.
        let from = breaking.map_or(random.nanos(warm, end), |b| b.at - random.nanos(0, 160_000_000));
        events.push((from, Event::Cut));
    }
    if let Some(b) = breaking {
        // Finely at first.
        let (fine, coarse) = (SECOND / 500, SECOND / 50);
        let over = b.over();
        events.extend((0..500).map(|i| (over + i * fine, Event::Watch(fine))));
        let later = over + SECOND;
        events.extend(
            (0..).map(|i| later + i * coarse).take_while(|x| *x < end).map(|x| (x, Event::Watch(coarse))),
        );
    }
    events.sort_by_key(|(at, _)| *at);
    events
}

/// Whether a query is within the assumptions: before the break; and where the break was told, after it again.
fn counts<E>(breaking: Option<Break>, hosts: &[Host<E>], now: i64, x: i64) -> bool {
    let Some(b) = breaking else { return true };
    if now < b.at {
        return x < b.at;
    }
    let withdrawn = |host: &Host<E>| host.withdrawn.iter().any(|at| *at >= b.at);
    b.tell != Tell::Stamps && x >= b.over() && hosts.iter().any(withdrawn)
}

/// In the past, now, or ahead by up to a second, the longest lead.
fn instant<E: Estimator>(now: i64, host: &Host<E>, random: &mut Random) -> i64 {
    let oldest = host.measured.front().and_then(|measured| measured.exchange.forward);
    let oldest = oldest.map_or(now, |forward| forward.sent.earliest.as_nanos());
    match random.bits() % 4 {
        0 => now,
        1 => now + random.nanos(0, SECOND / 10),
        2 => now + random.nanos(0, SECOND),
        _ => random.nanos(oldest.min(now), now + 1),
    }
}

fn query<E: Estimator>(hosts: &[Host<E>], now: i64, x: i64, seed: u64, tally: &mut Tally) {
    let bounds: Vec<Option<Interval>> =
        hosts.iter().map(|host| host.estimator.hard(at(now), at(x))).collect();
    for (index, (host, bound)) in hosts.iter().zip(&bounds).enumerate() {
        let Some(interval) = bound else { continue };
        tally.queries += 1;
        tally.half_widths.push(interval.half_width().get() as f64);
        let by = miss(host, *interval, x);
        if by > 0.0 {
            tally.misses += 1;
            tally.first_miss.get_or_insert_with(|| {
                format!("seed {seed}: host{index}, asked at {now} for {x}: {interval:?} misses by {by:.3} ns")
            });
        }
        if let (0, Some(counted)) = (index, host.counted(now)) {
            let forward = counted.clone().filter(|m| m.exchange.forward.is_some()).map(|m| m.forward).min();
            let backward = counted.filter(|m| m.exchange.backward.is_some()).map(|m| m.backward).min();
            if let (Some(forward), Some(backward)) = (forward, backward) {
                let floor = (forward + backward) as f64 / 2.0;
                tally.over_floor.push(interval.half_width().get() as f64 / floor);
            }
        }
    }
    if let [Some(i), Some(j)] = bounds.as_slice() {
        tally.queries += 1;
        let (least, most) = pairwise(*i, *j);
        let ((a, a_rest), (b, b_rest)) = (hosts[0].truth(x), hosts[1].truth(x));
        let below = (least.get() - (a - b)) as f64 - (a_rest - b_rest);
        let above = (a_rest - b_rest) - (most.get() - (a - b)) as f64;
        if below.max(above) > ROUNDING {
            tally.misses += 1;
        }
    }
}

fn compare<E: Estimator>(host: &Host<E>, now: i64, x: i64, scenario: &Scenario, tally: &mut Tally) {
    let (Some(bound), Some(counted)) = (host.estimator.hard(at(now), at(x)), host.counted(now)) else {
        return;
    };
    // What the record assumes of a host without a module.
    let assumptions = match host.estimator.observe(at(now)) {
        Ok(observation) => *observation.window.assumptions(),
        Err(_) => timesync::bound::Assumptions {
            rate_ppb: 1_200_000,
            wander_ppb_per_s: None,
            ..scenario.assumptions
        },
    };
    match oracle::width(counted, &assumptions, x) {
        Some(width) if width > 0.0 => tally.ratios.push((bound.hi - bound.lo).get() as f64 / width),
        _ => tally.unsolved += 1,
    }
}

/// The bound of now, seen every few milliseconds after a break.
fn watch<E: Estimator>(hosts: &[Host<E>], now: i64, step: i64, breaking: Option<Break>, tally: &mut Tally) {
    let Some(b) = breaking else { return };
    let by = hosts
        .iter()
        .filter_map(|host| Some(miss(host, host.estimator.hard(at(now), at(now))?, now)))
        .fold(0.0, f64::max);
    if by == 0.0 {
        return;
    }
    tally.wrong_s += step as f64 * 1e-9;
    tally.wrong_by = tally.wrong_by.max(by);
    if b.tell == Tell::Stamps {
        // Beyond the round trip, for how long at most?
        let round_trip = round_trip(&hosts[1]);
        if by > round_trip {
            tally.detect_s = Some(tally.detect_s.unwrap_or(0.0) + step as f64 * 1e-9);
        }
    } else if hosts.iter().any(|host| host.withdrawn.iter().any(|at| *at >= b.at)) {
        tally.trusted_after_told += 1;
    }
}

/// The smallest of the last exchanges, in ns.
fn round_trip<E>(host: &Host<E>) -> f64 {
    host.measured.iter().filter_map(|measured| measured.round_trip).min().unwrap_or(0) as f64
}

/// What the whole history says about how soon the break was noticed.
fn judge<E>(hosts: &[Host<E>], b: Break, tally: &mut Tally) {
    if b.tell == Tell::Stamps {
        return;
    }
    let first = |host: &Host<E>| host.withdrawn.iter().copied().find(|at| *at >= b.at);
    let noticed = hosts.iter().filter_map(first).max();
    tally.detect_s = noticed.map(|at| (at - b.over()).max(0) as f64 * 1e-9);
    if let (Some(host), true) = (hosts.get(1), b.tell != Tell::Server) {
        let late = first(host).zip(host.told).is_none_or(|(withdrawn, told)| withdrawn > told);
        tally.trusted_after_told += u64::from(late);
    }
}

fn count_cut<E: Estimator>(
    hosts: &mut [Host<E>],
    now: i64,
    breaking: Option<Break>,
    random: &mut Random,
    tally: &mut Tally,
) {
    tally.cuts += 1;
    let verdict = cuts::attempt(hosts, now, random);
    if verdict != Verdict::Refused {
        tally.certified += 1;
    }
    if let Verdict::Wrong(by) = verdict {
        tally.wrong_cuts_at_all += 1;
        let stamps = breaking.is_some_and(|b| b.tell == Tell::Stamps);
        let round_trip = hosts.iter().map(|host| round_trip(host)).fold(0.0, f64::max);
        if !stamps || by as f64 > round_trip {
            tally.wrong_cuts += 1;
        }
    }
}

/// What the statistical bound said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// An interval that rests on samples, at the confidence that was asked for.
    OnSamples { right: bool },
    /// The hard bound, as the samples contradicted the budget.
    Contradicted,
    /// The hard bound, or less confidence.
    TooFew,
}

/// One independent statistical query: a window of its own.
pub fn statistical<E: Estimator>(
    scenario: &'static Scenario,
    seed: u64,
    make: impl Fn(HostConfig, usize) -> E,
    nominal: f64,
) -> Answer {
    let random = &mut Random(seed ^ 0x0073_7461_7469_7374);
    let config = HostConfig {
        assumptions: scenario.assumptions,
        ..HostConfig::new("host", ([127, 0, 0, 1], 319).into())
    };
    let now = scenario.window_span() * 9 / 8 + SECOND + random.nanos(0, SECOND);
    let mut host = Host::new(scenario, make(config, scenario.window), None, now / SECOND + 5, random);
    host.advance(now);
    // In the steady course; ahead, after the burst that precedes a plan; or between that and the burst after the cut.
    let (now, x) = match random.below(3) {
        0 => (now, now - random.nanos(0, SECOND / 2)),
        1 => {
            let over = host.burst(now);
            (over, over + random.nanos(0, SECOND / 20))
        }
        _ => {
            let planned = host.burst(now);
            let over = host.burst(planned + SECOND / 20);
            (over, random.nanos(planned, over))
        }
    };
    let budget = honest_budget(&scenario.forward, &scenario.backward);
    let budget = AsymmetryBudget::Configured(timesync::time::Nanos::new(budget));
    let Ok(observation) = host.estimator.observe(at(now)) else { return Answer::TooFew };
    match observation.window.statistical(at(x), nominal, budget) {
        Ok(bound) if bound.basis == Basis::BudgetContradicted => Answer::Contradicted,
        Ok(bound) if bound.basis == Basis::Samples && bound.confidence >= nominal => {
            Answer::OnSamples { right: miss(&host, bound.interval, x) == 0.0 }
        }
        _ => Answer::TooFew,
    }
}
