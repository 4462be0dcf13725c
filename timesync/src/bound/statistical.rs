//! The statistical bound: the hard one, narrowed at a stated confidence by order statistics and an asymmetry budget.
//!
//! Let d_f and d_b be the delays that packets meet on the two ways, q_f and q_b the same quantile ([`QUANTILE`]) of both, and A the
//! budget on |q_f − q_b|. Brought to the instant x0 with the middle of the feasible rates, a forward half says what
//! α + d_f is, where α = θ(x0), and a backward half says what d_b − α is, each to within an error that is bounded:
//! the stamps' widths, (half-width of the feasible rates)·|dx| and κ·dx²/2. From many of them, order statistics bound
//! α + q_f and q_b − α, and
//!
//! α = ((α + q_f) − (q_b − α))/2 − (q_f − q_b)/2, with the last term in ± A/2.
//!
//! Nothing is assumed about the shape of the delays' distributions, only that each keeps its quantile while the samples are taken.
//! The chance of a miss is divided evenly among the four order statistics: two ways, two sides.
//!
//! Delays come in runs, so n samples count for less. What an order statistic rests on is how many samples lie below
//! the quantile, so the effective number is n over the autocorrelation time of that indicator (Geyer's initial
//! positive sequence; C. J. Geyer, Practical Markov chain Monte Carlo, 1992), the smaller of the two ways'. It is an
//! estimate, the only one in here; the ranks are those of so many independent samples, stretched to n.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};

use super::hard::{Constraint, Solution, in_host_time};
use super::{Assumptions, Interval};
use crate::time::{Nanos, Offset, Server, Time};

/// The quantile of the delays that the two ways are compared by. Low, because queues come and go on each way by itself and the lower
/// quarter of the packets meets few of them; but not the minimum, which no number of samples brackets without a model
/// of the tail. 16 samples bracket the lower quartile at 95 %.
const QUANTILE: f64 = 0.25;

/// Samples count as long as their age adds no more than this share of the hard half-width to their error. More
/// samples narrow the noise, older ones add error; the choice rests on instants only, never on a sample's own delay.
const AGE_SHARE: f64 = 0.5;

/// With less confidence than this a bound is more often wrong than right, and the hard one is given instead.
const LEAST_CONFIDENCE: f64 = 0.5;

/// Where an asymmetry budget comes from. It is never estimated from the path itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AsymmetrySource {
    /// The operator declared it.
    Configured,
    /// The smallest round trip: the most it can be, and it adds nothing to the hard bound.
    Default,
}

/// The largest |q_f − q_b|, q being the lower quartile of the delays on each of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AsymmetryBudget {
    /// The smallest round trip in the window.
    SmallestRoundTrip,
    /// Declared by the operator; not negative.
    Configured(Nanos),
}

/// What a statistical bound rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// The samples narrowed the hard bound, or at least agreed with it.
    Samples,
    /// It is the hard bound: the default budget adds nothing to it.
    DefaultBudget,
    /// It is the hard bound: there are too few samples near the instant.
    TooFewSamples,
    /// It is the hard bound: the samples contradict the declared budget (or, rarely, the confidence was missed).
    BudgetContradicted,
}

/// A statistical bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistical {
    /// Where θ lies. Never outside the hard bound.
    pub interval: Interval,
    /// With this confidence, which is what was asked for or, where the samples carry less, what they carry. 1 where
    /// the interval is the hard bound's.
    pub confidence: f64,
    /// The budget that was used.
    pub asymmetry: Nanos,
    /// Where it comes from.
    pub asymmetry_source: AsymmetrySource,
    /// What the interval rests on.
    pub basis: Basis,
    /// How many independent samples the ones near the instant are worth; 0 where none were looked at.
    pub effective_samples: usize,
}

/// Narrows the hard `solution` at the instant `at` by the `full` exchanges.
pub(super) fn narrow(
    solution: &Solution,
    full: impl Iterator<Item = (Constraint, Constraint)>,
    smallest_round_trip: Option<Nanos>,
    at: Time<Server>,
    assumptions: &Assumptions,
    confidence: f64,
    budget: AsymmetryBudget,
) -> Statistical {
    let hard = solution.interval;
    let (asymmetry, asymmetry_source) = match budget {
        AsymmetryBudget::Configured(declared) => (declared, AsymmetrySource::Configured),
        AsymmetryBudget::SmallestRoundTrip => {
            (smallest_round_trip.unwrap_or(hard.hi - hard.lo), AsymmetrySource::Default)
        }
    };
    let the_hard_one = |basis, effective_samples| Statistical {
        interval: hard,
        confidence: 1.0,
        asymmetry,
        asymmetry_source,
        basis,
        effective_samples,
    };
    if asymmetry_source == AsymmetrySource::Default {
        return the_hard_one(Basis::DefaultBudget, 0);
    }

    let mut samples: Vec<Sample> =
        full.filter_map(|pair| Sample::new(pair, solution, at, assumptions)).collect();
    samples.sort_unstable_by_key(|sample| sample.at);
    let forward: Vec<Sighting> = samples.iter().map(|sample| sample.forward).collect();
    let backward: Vec<Sighting> = samples.iter().map(|sample| sample.backward).collect();
    let effective = effective_size(&forward).min(effective_size(&backward));
    let ranks = match Ranks::new(effective, confidence) {
        Some(ranks) if ranks.confidence >= LEAST_CONFIDENCE => ranks,
        _ => return the_hard_one(Basis::TooFewSamples, effective),
    };

    let (forward, backward) = (ranks.bracket(&forward, effective), ranks.bracket(&backward, effective));
    let budget = asymmetry.get() as f64;
    // Outwards to whole nanoseconds. All terms are distances from the middle of the hard bound, so an f64 holds them to
    // far less than a nanosecond wherever a bound is of any use.
    let lowest = ((forward.0 - backward.1 - budget) / 2.0).floor() as i64;
    let highest = ((forward.1 - backward.0 + budget) / 2.0).ceil() as i64;
    let middle = hard.middle();
    let by_samples = Interval { lo: middle + Nanos::new(lowest), hi: middle + Nanos::new(highest) };
    match hard.intersect(by_samples) {
        Some(interval) => Statistical {
            interval,
            confidence: ranks.confidence,
            asymmetry,
            asymmetry_source,
            basis: Basis::Samples,
            effective_samples: effective,
        },
        None => the_hard_one(Basis::BudgetContradicted, effective),
    }
}

/// What one packet says of α + d_f, or of d_b − α: it is in `least ..= most`, in ns from the middle of the hard bound.
#[derive(Clone, Copy, Debug)]
struct Sighting {
    least: f64,
    most: f64,
}

struct Sample {
    at: Time<Server>,
    forward: Sighting,
    backward: Sighting,
}

impl Sample {
    /// None where the exchange is too far from `at` to tell anything.
    fn new(
        (upper, lower): (Constraint, Constraint),
        solution: &Solution,
        at: Time<Server>,
        assumptions: &Assumptions,
    ) -> Option<Self> {
        // κ·dx²/2 where the wander is bounded; where it is not, the rate box is all in `solution.rate`.
        let kappa = f64::from(assumptions.wander_ppb_per_s.unwrap_or(0)) * 1e-18;
        let rate = (solution.rate.0 + solution.rate.1) / 2.0;
        let rate_error = (solution.rate.1 - solution.rate.0) / 2.0;
        let middle = solution.interval.middle();
        let farthest = AGE_SHARE * solution.interval.half_width().get() as f64;
        let sighting = |constraint: Constraint, limit: Offset, sign: f64| {
            let dx = (constraint.at - at).get() as f64;
            let error = rate_error * dx.abs() + kappa * dx * dx / 2.0;
            let value = sign * ((limit - middle).get() as f64 - rate * dx);
            let least = value - constraint.width.get() as f64 - error;
            (error <= farthest).then_some(Sighting { least, most: value + error })
        };
        // The known minimum delays are part of the delays that the budget compares.
        Some(Sample {
            at: upper.at,
            forward: sighting(upper, upper.limit + in_host_time(assumptions.min_forward, assumptions), 1.0)?,
            backward: sighting(
                lower,
                lower.limit - in_host_time(assumptions.min_backward, assumptions),
                -1.0,
            )?,
        })
    }
}

/// Which order statistics bracket the quantile, of `effective` independent samples.
struct Ranks {
    /// The sample of this rank, counted from 1, is not above the quantile, and
    below: usize,
    /// the one of this rank is not below it,
    above: usize,
    /// both on both ways, with this confidence.
    confidence: f64,
}

impl Ranks {
    /// The narrowest pair with the asked confidence; where there is none, the extremes with the confidence that they
    /// carry. None without samples.
    ///
    /// The rank-th smallest of n samples is above the quantile iff fewer than `rank` samples are at or below it: at most
    /// P(Bin(n, p) < rank). It is below the quantile iff at least `rank` samples are: at most P(Bin(n, p) ≥ rank).
    fn new(effective: usize, confidence: f64) -> Option<Self> {
        if effective == 0 {
            return None;
        }
        let count = Binomial::new(QUANTILE, effective as u64).ok()?;
        let fewer_than = |rank: usize| count.cdf(rank as u64 - 1);
        let at_least = |rank: usize| count.sf(rank as u64 - 1);
        let miss = (1.0 - confidence) / 4.0;
        let below = (1..=effective).take_while(|rank| fewer_than(*rank) <= miss).last();
        let above = (1..=effective).find(|rank| at_least(*rank) <= miss);
        Some(match (below, above) {
            (Some(below), Some(above)) => Ranks { below, above, confidence },
            _ => {
                let (below, above) = (below.unwrap_or(1), above.unwrap_or(effective));
                let carried = 1.0 - 2.0 * (fewer_than(below) + at_least(above));
                Ranks { below, above, confidence: carried.min(confidence) }
            }
        })
    }

    /// Where the quantile of what was sighted lies. A rank among `effective` samples is stretched outwards to one
    /// among all of them.
    fn bracket(&self, sightings: &[Sighting], effective: usize) -> (f64, f64) {
        let n = sightings.len();
        let below = (self.below - 1) * n / effective;
        let above = (self.above * n).div_ceil(effective) - 1;
        let ranked = |rank: usize, value: fn(&Sighting) -> f64| sorted(sightings, value)[rank.min(n - 1)];
        (ranked(below, |sighting| sighting.least), ranked(above, |sighting| sighting.most))
    }
}

fn sorted(sightings: &[Sighting], value: fn(&Sighting) -> f64) -> Vec<f64> {
    let mut values: Vec<f64> = sightings.iter().map(value).collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// How many independent samples these are worth, in order of time, for counting how many are below the quantile: at
/// least 1 and at most their number; 0 without any.
fn effective_size(sightings: &[Sighting]) -> usize {
    let n = sightings.len();
    if n == 0 {
        return 0;
    }
    let quantile = sorted(sightings, |sighting| sighting.most)[(n as f64 * QUANTILE) as usize];
    let below: Vec<f64> =
        sightings.iter().map(|sighting| f64::from(u8::from(sighting.most <= quantile))).collect();
    let mean = below.iter().sum::<f64>() / n as f64;
    let covariance = |lag: usize| {
        below.iter().zip(below.iter().skip(lag)).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>() / n as f64
    };
    let variance = covariance(0);
    if variance == 0.0 {
        return 1; // all alike, so nothing tells how long their runs are
    }
    // Geyer: sums of neighbouring covariances are positive for a reversible chain; what follows the first that is not
    // is noise.
    let pairs: Vec<f64> = (0..n / 2)
        .map(|pair| covariance(2 * pair) + covariance(2 * pair + 1))
        .take_while(|sum| *sum > 0.0)
        .collect();
    let time = (2.0 * pairs.iter().sum::<f64>() / variance - 1.0).max(1.0);
    // Few samples let the time seem shorter than it is, by (2W + 1)/n of it when W lags are summed (U. Wolff, Monte Carlo
    // errors with less errors, 2004, section 3).
    let lags = (4 * pairs.len()).saturating_sub(1) as f64 / n as f64;
    let time = time * (1.0 + lags);
    ((n as f64 / time) as usize).max(1)
}

#[cfg(test)]
mod tests {
    use statrs::distribution::{Beta, ContinuousCDF};

    use super::super::simulation::{Clock, Path, Random};
    use super::super::{Policy, Window};
    use super::*;

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

    /// Ten seconds of pairs, then a burst of `burst` at 1 ms that ends at 50 s. A queue is kept for the next exchange
    /// with the probability `sticky`.
    fn window(clock: &Clock, burst: i64, sticky: f64, random: &mut Random) -> Window {
        let mut window = Window::new(Assumptions::default(), 512);
        let before = (0..80).map(|pair| 40 * SECOND + pair * SECOND / 8 - SECOND / 10);
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
            Beta::new(f64::from(self.covered), f64::from(self.of - self.covered + 1))
                .unwrap()
                .inverse_cdf(1e-3)
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
            let Coverage { tally, statistical, hard } = coverage(2_500, 64, sticky, 0.95, truth());
            assert!(tally.of >= 1_000 && tally.at_least() >= 0.95, "sticky {sticky}: {tally:?}");
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
        // 0.75¹⁵ = 0.0134 and 0.75¹⁶ = 0.0100 stand around 0.0125, the share of each of four sides in a miss of 0.05.
        // The others by the sums of binomial coefficients.
        for (effective, below, above) in [(16, 1, 9), (100, 16, 36)] {
            let ranks = Ranks::new(effective, 0.95).unwrap();
            assert_eq!((ranks.below, ranks.above, ranks.confidence), (below, above, 0.95));
        }
        assert_eq!(Ranks::new(15, 0.97).unwrap().below, 1);
        assert!(
            (Ranks::new(8, 0.95).unwrap().confidence - (1.0 - 2.0 * (0.100_113 + 0.004_227))).abs() < 1e-5
        );
        assert!(Ranks::new(1, 0.95).unwrap().confidence < 0.0);
        assert!(Ranks::new(0, 0.95).is_none());
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
}
