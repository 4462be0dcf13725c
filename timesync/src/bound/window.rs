//! The exchanges that a bound is computed from.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::hard::{self, Constraint, Solution};
use super::statistical;
use super::{Assumptions, AsymmetryBudget, Drift, Interval, Policy, Statistical};
use crate::exchange::Exchange;
use crate::time::{Host, Nanos, Server, Time};

/// Why a window gives no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum WindowError {
    /// Not one packet in some direction.
    #[error("no exchanges yet")]
    Empty,
    /// The constraints contradict each other: an assumption broke.
    #[error(
        "the exchanges contradict the clock assumptions (a step, a suspend, a rate beyond the limit, or a lie)"
    )]
    Broken,
}

/// What one exchange says: `[upper, lower]` in JSON, each `[at, limit]` or null.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Halves", into = "Halves")]
struct Entry {
    upper: Option<Constraint>,
    lower: Option<Constraint>,
}

type Halves = (Option<Constraint>, Option<Constraint>);

impl From<Halves> for Entry {
    fn from((upper, lower): Halves) -> Self {
        Entry { upper, lower }
    }
}

impl From<Entry> for Halves {
    fn from(entry: Entry) -> Self {
        (entry.upper, entry.lower)
    }
}

/// Up to `capacity` exchanges with one host, kept as the constraints that they are for the bound.
///
/// Exchanges may be pushed in any order; the one pushed first is the first to leave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    assumptions: Assumptions,
    capacity: usize,
    exchanges: VecDeque<Entry>,
}

impl Window {
    /// An empty window for `capacity` exchanges, at least one.
    pub fn new(assumptions: Assumptions, capacity: usize) -> Self {
        Window { assumptions, capacity, exchanges: VecDeque::new() }
    }

    /// What the bound assumes.
    pub fn assumptions(&self) -> &Assumptions {
        &self.assumptions
    }

    /// Adds an exchange; when the window is full, the oldest one leaves. An exchange without any half says nothing and
    /// is not counted.
    pub fn push(&mut self, exchange: &Exchange) {
        let entry = Entry {
            upper: exchange.forward.as_ref().map(|forward| Constraint::upper(forward, &self.assumptions)),
            lower: exchange.backward.as_ref().map(|backward| Constraint::lower(backward, &self.assumptions)),
        };
        if entry.upper.is_none() && entry.lower.is_none() {
            return;
        }
        while self.exchanges.len() >= self.capacity.max(1) {
            self.exchanges.pop_front();
        }
        self.exchanges.push_back(entry);
    }

    /// How many exchanges are in the window.
    pub fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// Forgets all exchanges: after an assumption broke.
    pub fn clear(&mut self) {
        self.exchanges.clear();
    }

    /// The server's instant of the newest packet; the bound's age counts from here.
    pub fn newest(&self) -> Option<Time<Server>> {
        self.constraints().map(|constraint| constraint.at).max()
    }

    /// The smallest (t4 − t1) − (t3 − t2) of the full exchanges, between the outer ends of the stamps' intervals.
    pub fn smallest_round_trip(&self) -> Option<Nanos> {
        let known = hard::in_host_time(self.assumptions.min_forward, &self.assumptions)
            + hard::in_host_time(self.assumptions.min_backward, &self.assumptions);
        self.full().map(|(upper, lower)| upper.limit - lower.limit + known).min()
    }

    /// The bound at the server's instant `at`, past, present or future, by `policy`. A statistical one only where the
    /// samples carry the confidence that the policy asks for; the hard one otherwise.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn bound(&self, at: Time<Server>, policy: &Policy) -> Result<Interval, WindowError> {
        match *policy {
            Policy::Hard => self.hard(at),
            Policy::Statistical { confidence, budget } => {
                let statistical = self.statistical(at, confidence, budget)?;
                if statistical.confidence >= confidence { Ok(statistical.interval) } else { self.hard(at) }
            }
        }
    }

    /// The hard bound at the server's instant `at`.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn hard(&self, at: Time<Server>) -> Result<Interval, WindowError> {
        Ok(self.solve(at)?.interval)
    }

    /// The statistical bound at the server's instant `at`, at `confidence` (0 < confidence < 1) or what less the
    /// samples carry. It never leaves the hard bound.
    ///
    /// # Errors
    /// [`WindowError`], as for the hard bound.
    pub fn statistical(
        &self,
        at: Time<Server>,
        confidence: f64,
        budget: AsymmetryBudget,
    ) -> Result<Statistical, WindowError> {
        let solution = self.solve(at)?;
        let smallest = self.smallest_round_trip();
        Ok(statistical::narrow(&solution, self.full(), smallest, at, &self.assumptions, confidence, budget))
    }

    /// The host's rate relative to the server's at the instant `at`: the middle of the rates that the hard bound's
    /// assumptions allow.
    ///
    /// # Errors
    /// [`WindowError`], as for the hard bound.
    pub fn drift(&self, at: Time<Server>) -> Result<Drift, WindowError> {
        let (least, most) = self.solve(at)?.rate;
        Ok(Drift { ppb: (least + most) / 2.0 * 1e9, error_ppb: (most - least) / 2.0 * 1e9 })
    }

    /// Whether there are packets in both directions on both sides of `at`: before it, and at it or after it.
    pub fn brackets(&self, at: Time<Server>) -> bool {
        let before = |constraint: Constraint| constraint.at < at;
        self.uppers().any(before)
            && self.lowers().any(before)
            && !self.uppers().all(before)
            && !self.lowers().all(before)
    }

    /// A server instant near the one at which the host's clock read `reading`: by the offset that the packet nearest to
    /// it on the host's timeline gives, so it is off by about that packet's delay, and by the drift since.
    ///
    /// # Errors
    /// [`WindowError::Empty`].
    pub fn nearest(&self, reading: Time<Host>) -> Result<Time<Server>, WindowError> {
        let distance = |constraint: &Constraint| (constraint.at + constraint.limit - reading).abs();
        let nearest = self.constraints().min_by_key(distance).ok_or(WindowError::Empty)?;
        Ok(reading - nearest.limit)
    }

    fn solve(&self, at: Time<Server>) -> Result<Solution, WindowError> {
        hard::solve(self.uppers(), self.lowers(), at, &self.assumptions)
    }

    fn uppers(&self) -> impl Iterator<Item = Constraint> + Clone {
        self.exchanges.iter().filter_map(|entry| entry.upper)
    }

    fn lowers(&self) -> impl Iterator<Item = Constraint> + Clone {
        self.exchanges.iter().filter_map(|entry| entry.lower)
    }

    fn constraints(&self) -> impl Iterator<Item = Constraint> {
        self.uppers().chain(self.lowers())
    }

    /// The exchanges of which no half is missing.
    fn full(&self) -> impl Iterator<Item = (Constraint, Constraint)> {
        self.exchanges.iter().filter_map(|entry| Some((entry.upper?, entry.lower?)))
    }
}
