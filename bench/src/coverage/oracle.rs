//! How narrow a bound can be: the range of θ(x0) over all functions with |θ'| ≤ ρ and |θ''| ≤ κ that fit the stamps.
//!
//! Written apart from the estimator. θ' is taken piecewise linear between the instants of the stamps, x0, and more
//! instants in between, so θ' and θ at these instants are the variables of a linear program that an interior-point
//! solver solves. What is left out are functions that bend within a step: they reach farther by κ·h²/8 at most, a
//! tenth of a nanosecond. Without a limit κ, θ' is taken constant in each step, which leaves nothing out.

use clarabel::algebra::CscMatrix;
use clarabel::solver::{
    DefaultSettingsBuilder, DefaultSolver, IPSolver, NonnegativeConeT, SolverStatus, ZeroConeT,
};
use timesync::bound::Assumptions;

use super::estimator::Measured;

/// The longest step, in ns.
const STEP: i64 = 60_000_000;
/// But no more instants than this between two stamps.
const MOST_BETWEEN: i64 = 12;

/// θ(x) ≤ limit, or ≥.
#[derive(Clone, Copy)]
struct Limit {
    x: i64,
    upper: bool,
    theta: i64,
}

/// The width of the range at `x0` in ns; none where the solver finds no answer.
pub fn width<'a>(
    measured: impl Iterator<Item = &'a Measured>,
    assumptions: &Assumptions,
    x0: i64,
) -> Option<f64> {
    let mut limits = limits(measured, assumptions);
    let rho = f64::from(assumptions.rate_ppb);
    limits.sort_by_key(|limit| limit.x);
    let limits = telling(&limits, rho * 1e-9);
    let nodes = nodes(&limits, x0);
    // Coordinates in which the answer is of the order of one: they change what is computed with, not the answer.
    let (first, last) = (limits.iter().find(|limit| limit.upper)?, limits.iter().rfind(|limit| limit.upper)?);
    let slope = (last.theta - first.theta) as f64 / ((last.x - first.x) as f64).max(1.0);
    let turned = |limit: &Limit| (limit.theta - first.theta) as f64 - slope * (limit.x - x0) as f64;
    let lows = limits.iter().filter(|limit| !limit.upper).map(turned);
    let base = lows.fold(f64::NEG_INFINITY, f64::max);
    let highs = limits.iter().filter(|limit| limit.upper).map(turned);
    let unit = (highs.fold(f64::INFINITY, f64::min) - base).abs().clamp(100.0, 1e6);
    let limits: Vec<_> =
        limits.iter().map(|limit| (limit.x, limit.upper, (turned(limit) - base) / unit)).collect();
    let program = Program {
        limits: &limits,
        nodes: &nodes,
        x0,
        unit,
        rho,
        slope: slope * 1e9,
        wander: assumptions.wander_ppb_per_s,
    };
    Some((program.extreme(1.0)? - program.extreme(-1.0)?) * unit)
}

/// The constraints, derived from the stamps anew.
fn limits<'a>(measured: impl Iterator<Item = &'a Measured>, assumptions: &Assumptions) -> Vec<Limit> {
    let host = |delay: i64| (delay as f64 * (1.0 - f64::from(assumptions.rate_ppb) * 1e-9)).floor() as i64;
    let mut limits = Vec::new();
    for Measured { exchange, .. } in measured {
        if let Some(forward) = exchange.forward {
            let x = forward.sent.earliest.as_nanos();
            let theta = forward.received.latest.as_nanos() - x - host(assumptions.min_forward.get());
            limits.push(Limit { x, upper: true, theta });
        }
        if let Some(backward) = exchange.backward {
            let x = backward.received.latest.as_nanos();
            let theta = backward.sent.earliest.as_nanos() - x + host(assumptions.min_backward.get());
            limits.push(Limit { x, upper: false, theta });
        }
    }
    limits
}

/// Without those that another one implies by the limit of the rate: none is needed, and they make the solver slow.
fn telling(limits: &[Limit], rho: f64) -> Vec<Limit> {
    let mut keep = vec![true; limits.len()];
    let forwards: Vec<usize> = (0..limits.len()).collect();
    let backwards: Vec<usize> = forwards.iter().rev().copied().collect();
    for order in [forwards, backwards] {
        for upper in [true, false] {
            let mut reached: Option<(i64, i64)> = None;
            for &index in order.iter().filter(|index| limits[**index].upper == upper) {
                let Limit { x, theta, .. } = limits[index];
                let theta = if upper { theta } else { -theta };
                // In whole nanoseconds towards keeping.
                let implied = reached
                    .is_some_and(|(at, limit)| (theta - limit) as f64 > rho * (x - at).abs() as f64 + 1.0);
                if implied { keep[index] = false } else { reached = Some((x, theta)) }
            }
        }
    }
    limits.iter().zip(keep).filter(|(_, keep)| *keep).map(|(limit, _)| *limit).collect()
}

fn nodes(limits: &[Limit], x0: i64) -> Vec<i64> {
    let mut given: Vec<i64> = limits.iter().map(|limit| limit.x).chain([x0]).collect();
    given.sort_unstable();
    given.dedup();
    let mut nodes = Vec::new();
    for pair in given.windows(2) {
        let steps = ((pair[1] - pair[0]) / STEP + 1).min(MOST_BETWEEN);
        nodes.extend((0..steps).map(|step| pair[0] + (pair[1] - pair[0]) * step / steps));
    }
    nodes.extend(given.last());
    nodes
}

struct Program<'a> {
    /// Instant, whether from above, and the limit in units.
    limits: &'a [(i64, bool, f64)],
    nodes: &'a [i64],
    x0: i64,
    unit: f64,
    /// In ppb, as the slope that θ is counted from.
    rho: f64,
    slope: f64,
    wander: Option<u32>,
}

/// Rows of A·v ≤ b, or A·v = b.
#[derive(Default)]
struct Rows {
    row: Vec<usize>,
    column: Vec<usize>,
    value: Vec<f64>,
    right: Vec<f64>,
}

impl Rows {
    fn add(&mut self, terms: &[(usize, f64)], right: f64) {
        for (column, value) in terms {
            self.row.push(self.right.len());
            self.column.push(*column);
            self.value.push(*value);
        }
        self.right.push(right);
    }
}

impl Program<'_> {
    /// The largest θ(x0) (`sign` 1) or the smallest (−1), in units from the base.
    ///
    /// Variables: θ at node k is 2k, θ' at node k is 2k + 1, in units and units per second.
    fn extreme(&self, sign: f64) -> Option<f64> {
        let ppb = 1.0 / self.unit;
        let mut rows = Rows::default();
        for (k, pair) in self.nodes.windows(2).enumerate() {
            let step = (pair[1] - pair[0]) as f64 * 1e-9;
            let (here, next) = if self.wander.is_some() { (step / 2.0, step / 2.0) } else { (step, 0.0) };
            rows.add(&[(2 * k + 2, 1.0), (2 * k, -1.0), (2 * k + 1, -here), (2 * k + 3, -next)], 0.0);
        }
        let equalities = rows.right.len();
        for (k, pair) in self.nodes.windows(2).enumerate() {
            let Some(wander) = self.wander else { break };
            let most = f64::from(wander) * ppb * (pair[1] - pair[0]) as f64 * 1e-9;
            rows.add(&[(2 * k + 3, 1.0), (2 * k + 1, -1.0)], most);
            rows.add(&[(2 * k + 3, -1.0), (2 * k + 1, 1.0)], most);
        }
        for k in 0..self.nodes.len() {
            rows.add(&[(2 * k + 1, 1.0)], (self.rho - self.slope) * ppb);
            rows.add(&[(2 * k + 1, -1.0)], (self.rho + self.slope) * ppb);
        }
        for (x, upper, theta) in self.limits {
            let k = self.nodes.binary_search(x).ok()?;
            let side = if *upper { 1.0 } else { -1.0 };
            rows.add(&[(2 * k, side)], side * theta);
        }
        let variables = 2 * self.nodes.len();
        let at = 2 * self.nodes.binary_search(&self.x0).ok()?;
        let mut cost = vec![0.0; variables];
        cost[at] = -sign;
        let none = CscMatrix::zeros((variables, variables));
        let matrix =
            CscMatrix::new_from_triplets(rows.right.len(), variables, rows.row, rows.column, rows.value);
        let cones = [ZeroConeT(equalities), NonnegativeConeT(rows.right.len() - equalities)];
        let settings = DefaultSettingsBuilder::default().verbose(false).max_iter(100).build().ok()?;
        let mut solver = DefaultSolver::new(&none, &cost, &matrix, &rows.right, &cones, settings).ok()?;
        solver.solve();
        let solved = matches!(solver.solution.status, SolverStatus::Solved | SolverStatus::AlmostSolved);
        solved.then(|| solver.solution.x[at])
    }
}
