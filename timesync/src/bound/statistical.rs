//! The statistical bound: the hard one, narrowed at a stated confidence by order statistics and an asymmetry budget.
//!
//! Let d_f and d_b be the delays that packets meet on the two ways, q_f and q_b the same quantile ([`QUANTILE`]) of
//! both, and A the budget on |q_f − q_b|. Brought to the instant x0 with the middle of the feasible rates, a forward
//! half says what α + d_f is, where α = θ(x0), and a backward half says what d_b − α is, each to within an error that
//! is bounded: the stamps' widths, (half-width of the feasible rates)·|dx| and κ·dx²/2. From many of them, order
//! statistics bound α + q_f and q_b − α, and
//!
//! α = ((α + q_f) − (q_b − α))/2 − (q_f − q_b)/2, with the last term in ± A/2.
//!
//! Nothing is assumed about the shape of the delays' distributions, only that each keeps its quantile while the
//! samples are taken. The chance of a miss is divided evenly among the four order statistics: two ways, two sides.
//!
//! Delays come in runs, so n samples count for less. What an order statistic rests on is how many samples lie below
//! the quantile, so the effective number is n over the autocorrelation time of that indicator (Geyer's initial
//! positive sequence; C. J. Geyer, Practical Markov chain Monte Carlo, 1992), the smaller of the two ways'. It is an
//! estimate, the only one in here; the ranks are those of so many independent samples, stretched to n.

use serde::{Deserialize, Serialize};
use statrs::distribution::{Binomial, DiscreteCDF};
use utoipa::ToSchema;

use super::hard::{Constraint, Solution, in_host_time};
use super::{Assumptions, Interval};
use crate::time::{Nanos, Offset, Server, Time};

/// The quantile of the delays that the two ways are compared by. Low, because queues come and go on each way by
/// itself and the lower quarter of the packets meets few of them; but not the minimum, which no number of samples
/// brackets without a model of the tail. 15 samples bracket the lower quartile at 95 %.
const QUANTILE: f64 = 0.25;

/// Samples count as long as their age adds no more than this share of the hard half-width to their error. More
/// samples narrow the noise, older ones add error; the choice rests on instants only, never on a sample's own delay.
const AGE_SHARE: f64 = 0.5;

/// With less confidence than this a bound is more often wrong than right, and the hard one is given instead.
const LEAST_CONFIDENCE: f64 = 0.5;

/// Where an asymmetry budget comes from. It is never estimated from the path itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AsymmetrySource {
    /// The operator declared it.
    Configured,
    /// The smallest round trip: the most it can be, and it adds nothing to the hard bound.
    Default,
}

/// The largest |q_f − q_b|, q being the lower quartile of the delays on each of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum AsymmetryBudget {
    /// The smallest round trip in the window.
    SmallestRoundTrip,
    /// Declared by the operator; not negative.
    Configured(Nanos),
}

/// What a statistical bound rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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

impl Sighting {
    /// The likeliest value. The ends would not do to tell how delays follow each other: they part with a sample's age,
    /// so that the young ones all look short and the old ones long.
    fn centre(&self) -> f64 {
        (self.least + self.most) / 2.0
    }
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
    /// The narrowest pair with the asked confidence. A side that has no such rank takes its extreme, and the pair has
    /// the confidence that this leaves, which may be next to none. None without samples.
    ///
    /// The rank-th smallest of n samples is above the quantile iff fewer than `rank` samples are at or below it: at
    /// most P(Bin(n, p) < rank). It is below the quantile iff at least `rank` samples are: at most P(Bin(n, p) ≥
    /// rank).
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
    let quantile = sorted(sightings, Sighting::centre)[(n as f64 * QUANTILE) as usize];
    let below: Vec<f64> =
        sightings.iter().map(|sighting| f64::from(u8::from(sighting.centre() <= quantile))).collect();
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
    // Few samples let the time seem shorter than it is, by (2W + 1)/n of it when W lags are summed (U. Wolff, Monte
    // Carlo errors with less errors, 2004, section 3).
    let lags = (4 * pairs.len()).saturating_sub(1) as f64 / n as f64;
    let time = time * (1.0 + lags);
    ((n as f64 / time) as usize).max(1)
}

#[cfg(test)]
mod tests;
