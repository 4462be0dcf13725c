use statrs::distribution::{Beta, ContinuousCDF};

use super::*;
use crate::bound::simulation::{Clock, Path};
use crate::bound::{Policy, Window};
use crate::random::Random;

const SECOND: i64 = 1_000_000_000;

/// Both ways have queues, exponential ones, and the way to the host is the longer one.
const LOPSIDED: Path = Path {
    forward: 900.0,
    backward: 500.0,
    forward_queue: 300.0,
    backward_queue: 200.0,
    stamp: 10.0,
    loss: 0.02,
};

/// |q_f − q_b| of the lopsided path, and 2 ns for its whole nanoseconds.
fn truth() -> Nanos {
    let quantile = |least: f64, queue: f64| least - queue * (1.0 - QUANTILE).ln();
    let (forward, backward) = (quantile(900.0, 300.0), quantile(500.0, 200.0));
    Nanos::new((forward - backward).abs().ceil() as i64 + 2)
}

/// Five seconds at 8 exchanges a second, then a burst of `burst` at 1 ms that ends at 50 s. A queue is kept for the
/// next exchange with the probability `sticky`.
fn window(clock: &Clock, burst: i64, sticky: f64, random: &mut Random) -> Window {
    let mut window = Window::new(Assumptions::default(), 512);
    let before = (0..40).map(|i| 45 * SECOND + i * SECOND / 8 - SECOND / 10);
    let mut queues = (0.0, 0.0);
    for at in before.chain((0..burst).map(|i| 50 * SECOND - (burst - i) * SECOND / 1_000)) {
        if !random.chance(sticky) {
            queues =
                (random.exponential(LOPSIDED.forward_queue), random.exponential(LOPSIDED.backward_queue));
        }
        let path = Path {
            forward: LOPSIDED.forward + queues.0,
            backward: LOPSIDED.backward + queues.1,
            forward_queue: 0.0,
            backward_queue: 0.0,
            ..LOPSIDED
        };
        window.push(&path.exchange(clock, at, random));
    }
    window
}

#[derive(Debug, Default)]
struct Tally {
    covered: u32,
    of: u32,
}

impl Tally {
    fn count(&mut self, covered: bool) {
        self.covered += u32::from(covered);
        self.of += 1;
    }

    /// The coverage is not below this, at 99.9 % (Clopper and Pearson).
    fn at_least(&self) -> f64 {
        Beta::new(f64::from(self.covered), f64::from(self.of - self.covered + 1)).unwrap().inverse_cdf(1e-3)
    }
}

struct Coverage {
    /// Of the bounds that rest on samples and carry the asked confidence.
    tally: Tally,
    /// Their half-widths, summed.
    statistical: i64,
    /// And those of the hard bounds beside them.
    hard: i64,
}

fn coverage(windows: u64, burst: i64, sticky: f64, confidence: f64, budget: Nanos) -> Coverage {
    let mut seen = Coverage { tally: Tally::default(), statistical: 0, hard: 0 };
    for seed in 0..windows {
        let random = &mut Random(seed);
        let clock = Clock::within(&Assumptions::default(), 0.5, random);
        let window = window(&clock, burst, sticky, random);
        let x = 50 * SECOND + random.between(-2e7, 5e7) as i64;
        let at = Time::from_nanos(x);
        let bound = window.statistical(at, confidence, AsymmetryBudget::Configured(budget)).unwrap();
        let hard = window.hard(at).unwrap();
        assert!(clock.is_within(hard, x));
        assert_eq!(hard.intersect(bound.interval), Some(bound.interval), "outside the hard bound");
        if bound.basis == Basis::Samples && bound.confidence >= confidence {
            seen.tally.count(clock.is_within(bound.interval, x));
            seen.statistical += bound.interval.half_width().get();
            seen.hard += hard.half_width().get();
        }
    }
    seen
}

#[test]
fn the_confidence_is_kept_with_an_honest_budget() {
    for sticky in [0.0, 0.6] {
        let Coverage { tally, statistical, hard } = coverage(2_000, 64, sticky, 0.95, truth());
        assert!(tally.of >= 800 && tally.at_least() >= 0.95, "sticky {sticky}: {tally:?}");
        assert!(statistical * 5 < hard * 4, "{statistical} of {hard} ns");
    }
}

#[test]
fn a_dishonest_budget_is_not_saved_by_the_noise() {
    let tally = coverage(300, 256, 0.0, 0.95, Nanos::ZERO).tally;
    assert!(tally.of > 200 && tally.covered < tally.of / 2, "{tally:?}");
}

#[test]
fn a_budget_that_the_samples_contradict_shows_itself() {
    let busy = |forward, backward| Path {
        forward,
        backward,
        forward_queue: 20.0,
        backward_queue: 20.0,
        ..Path::QUIET
    };
    let random = &mut Random(7);
    let clock = Clock::within(&Assumptions::default(), 0.5, random);
    let mut window = Window::new(Assumptions::default(), 512);
    // Fast both ways, so the rate is well known; then a route changes, and only one packet in sixteen is still fast
    // on its way to the host.
    for i in 0..16 {
        window.push(&busy(100.0, 100.0).exchange(&clock, 48 * SECOND + i * SECOND / 8, random));
    }
    for i in 0..64 {
        let forward = if i % 16 == 0 { 100.0 } else { 10_000.0 };
        window.push(&busy(forward, 100.0).exchange(&clock, 50 * SECOND + i * 1_000_000, random));
    }
    let at = Time::from_nanos(50 * SECOND + 32_000_000);
    let bound = window.statistical(at, 0.95, AsymmetryBudget::Configured(Nanos::ZERO)).unwrap();
    assert_eq!((bound.basis, bound.confidence), (Basis::BudgetContradicted, 1.0));
    assert_eq!(bound.interval, window.hard(at).unwrap());
}

#[test]
fn the_default_budget_adds_nothing() {
    let random = &mut Random(8);
    let clock = Clock::within(&Assumptions::default(), 0.5, random);
    let window = window(&clock, 64, 0.0, random);
    let at = Time::from_nanos(50 * SECOND);
    let bound = window.statistical(at, 0.95, AsymmetryBudget::SmallestRoundTrip).unwrap();
    assert_eq!((bound.interval, bound.basis), (window.hard(at).unwrap(), Basis::DefaultBudget));
    assert_eq!(
        (bound.asymmetry, bound.asymmetry_source),
        (window.smallest_round_trip().unwrap(), AsymmetrySource::Default)
    );
}

#[test]
fn no_more_confidence_than_the_samples_carry() {
    let random = &mut Random(9);
    let clock = Clock::within(&Assumptions::default(), 0.5, random);
    let window = window(&clock, 64, 0.0, random);
    let (at, budget) = (Time::from_nanos(50 * SECOND), AsymmetryBudget::Configured(truth()));
    let hard = window.hard(at).unwrap();
    let by = |confidence| window.bound(at, &Policy::Statistical { confidence, budget }).unwrap();
    assert!(by(0.95).half_width() < hard.half_width());
    assert_eq!(window.bound(at, &Policy::Hard), Ok(hard));
    // Some 60 samples carry seven nines. Twelve are beyond them, so the policy falls back to hard.
    let asked = 1.0 - 1e-12;
    let bound = window.statistical(at, asked, budget).unwrap();
    assert_eq!(bound.basis, Basis::Samples);
    let least_miss = 2.0 * 0.75f64.powi(bound.effective_samples as i32);
    assert!((0.99..=1.0 - least_miss).contains(&bound.confidence), "{bound:?}");
    assert_eq!(by(asked), hard);
    // Half a minute later the samples are too old to say anything.
    let later = Time::from_nanos(80 * SECOND);
    let bound = window.statistical(later, 0.95, budget).unwrap();
    assert_eq!((bound.basis, bound.confidence), (Basis::TooFewSamples, 1.0));
    assert_eq!(Ok(bound.interval), window.hard(later));
}

#[test]
fn ranks_of_the_lower_quartile() {
    // By sums of binomial coefficients. 0.75¹⁶ = 0.0100 is within 0.0125, the share of each of four sides in a miss of
    // 0.05. 0.75¹⁵ = 0.0134 is not, but the other side leaves it room; 0.75¹⁴ = 0.0178 is too much.
    for (effective, below, above) in [(15, 1, 9), (16, 1, 9), (100, 16, 36)] {
        let ranks = Ranks::new(effective, 0.95).unwrap();
        assert_eq!((ranks.below, ranks.above, ranks.confidence), (below, above, 0.95));
    }
    assert!(Ranks::new(14, 0.95).unwrap().confidence < 0.95);
    assert!((Ranks::new(8, 0.95).unwrap().confidence - (1.0 - 2.0 * (0.100_113 + 0.004_227))).abs() < 1e-5);
    assert!(Ranks::new(1, 0.95).unwrap().confidence < 0.0);
    assert!(Ranks::new(0, 0.95).is_none());
}

#[test]
fn a_rank_is_stretched_outwards_over_samples_that_come_in_runs() {
    // Ranks 1 and 9 of 16, from 0.
    for (n, effective, expected) in [(16, 16, (0.0, 8.0)), (32, 16, (0.0, 17.0)), (33, 16, (0.0, 18.0))] {
        let sightings: Vec<_> =
            (0..n).rev().map(|i| Sighting { least: f64::from(i), most: f64::from(i) }).collect();
        assert_eq!(Ranks::new(effective, 0.95).unwrap().bracket(&sightings, effective), expected);
    }
    let ranks = Ranks { below: 3, above: 5, confidence: 0.95 };
    let sightings: Vec<_> =
        (0..20).map(|i| Sighting { least: f64::from(i), most: f64::from(i) + 0.5 }).collect();
    assert_eq!(ranks.bracket(&sightings, 10), (4.0, 9.5));
}

#[test]
fn a_sample_sights_its_own_delay() {
    for seed in 0..2_000 {
        let random = &mut Random(seed);
        let (forward, backward) = (random.between(1_000.0, 1e6).ceil(), random.between(1_000.0, 1e6).ceil());
        let assumptions = Assumptions {
            min_forward: Nanos::new(random.between(0.0, forward) as i64),
            min_backward: Nanos::new(random.between(0.0, backward) as i64),
            ..Assumptions::default()
        };
        let clock = Clock::within(&assumptions, 0.0, random);
        let path = Path { forward, backward, stamp: [0.0, 500.0][(seed % 2) as usize], ..Path::QUIET };
        let x = 50 * SECOND;
        let sent = x + random.between(-2e9, 2e9) as i64;
        let exchange = path.exchange(&clock, sent, random);
        let pair = (
            Constraint::upper(&exchange.forward.unwrap(), &assumptions),
            Constraint::lower(&exchange.backward.unwrap(), &assumptions),
        );
        let (offset, rest) = clock.theta(x);
        let middle = Nanos::new(random.between(-1e3, 1e3) as i64);
        let interval = Interval {
            lo: Offset::new(offset + rest as i64) + middle - Nanos::from_millis(1),
            hi: Offset::new(offset + rest as i64) + middle + Nanos::from_millis(1),
        };
        let (less, more) = (random.between(0.0, 1e-6), random.between(0.0, 1e-6));
        let rate = (clock.rate(x) * 1e-9 - less, clock.rate(x) * 1e-9 + more);
        let sample =
            Sample::new(pair, &Solution { interval, rate }, Time::from_nanos(x), &assumptions).unwrap();
        // The delays last a little longer or shorter by the host's clock.
        let alpha = rest.fract() - middle.get() as f64;
        for (sighting, truth, delay) in
            [(sample.forward, alpha + forward, forward), (sample.backward, backward - alpha, backward)]
        {
            let slower = delay * 2e-4 + 1.0;
            assert!(
                sighting.least <= truth + slower && truth - slower <= sighting.most,
                "{sighting:?} {truth}"
            );
            let error = (less + more) / 2.0 * 2.1e9 + 200.0 + 2.0 * path.stamp * 2.0 + 4.0;
            assert!(sighting.most - sighting.least <= 2.0 * error, "{sighting:?}");
        }
    }
}

/// Of 2 000 times `n` exponential delays, each kept for the next one with the probability `sticky`: how many brackets
/// carry 95 %, and how many of these contain the quantile. `effective` judges the samples' worth.
fn brackets(n: usize, sticky: f64, effective: fn(&[Sighting]) -> usize) -> Tally {
    let mut tally = Tally::default();
    for seed in 0..2_000 {
        let random = &mut Random(seed);
        let mut delay = random.exponential(1.0);
        let mut next = || {
            if !random.chance(sticky) {
                delay = random.exponential(1.0);
            }
            Sighting { least: delay, most: delay }
        };
        let sightings: Vec<_> = (0..n).map(|_| next()).collect();
        let effective = effective(&sightings);
        let ranks = Ranks::new(effective, 0.95).unwrap();
        if ranks.confidence >= 0.95 {
            let (least, most) = ranks.bracket(&sightings, effective);
            let quantile = -(1.0 - QUANTILE).ln();
            tally.count(least <= quantile && quantile <= most);
        }
    }
    tally
}

#[test]
fn brackets_of_delays_that_come_in_runs_keep_their_confidence() {
    // One way's share of a miss of 0.05 is half of it.
    for (n, sticky) in [(64, 0.0), (64, 0.6), (128, 0.6)] {
        let tally = brackets(n, sticky, effective_size);
        assert!(tally.of > 1_000 && tally.at_least() >= 0.975, "{n}, {sticky}: {tally:?}");
    }
    // The control: what taking every sample for independent would do.
    let naive = brackets(128, 0.6, <[_]>::len);
    assert!(f64::from(naive.covered) < 0.96 * f64::from(naive.of), "{naive:?}");
}
