//! The hard bound: a linear program over (offset, rate), and the plain rate box inside it.
//!
//! # What a packet says
//!
//! C is the host's clock, θ(x) = C(x) − x, and C is strictly increasing because |θ'| ≤ ρ < 1.
//!
//! *Forward half.* The packet left at a server time x_s ≥ t1.earliest and arrived at x_r ≥ x_s + d_f, where the host
//! read C(x_r) ≤ t2.latest. In the server's d_f the host's clock advances by at least d_f·(1 − ρ). So
//! C(t1.earliest) ≤ C(x_s) ≤ C(x_r) − d_f·(1 − ρ) ≤ t2.latest − d_f·(1 − ρ), which is
//! θ(t1.earliest) ≤ t2.latest − t1.earliest − d_f·(1 − ρ): an *upper* constraint at x = t1.earliest. The width of t1
//! needs no term of its own at that x, because C is monotone.
//!
//! *Backward half.* The host read C(x_s) ≥ t3.earliest, and the packet arrived at a server time x_r ≥ x_s + d_b with
//! x_r ≤ t4.latest. So C(t4.latest) ≥ C(x_r) ≥ C(x_s) + d_b·(1 − ρ) ≥ t3.earliest + d_b·(1 − ρ), which is
//! θ(t4.latest) ≥ t3.earliest − t4.latest + d_b·(1 − ρ): a *lower* constraint at x = t4.latest.
//!
//! # What they say together
//!
//! For any instant x0, with α = θ(x0) and β = θ'(x0): θ(x) = α + β·(x − x0) + r with |r| ≤ κ·(x − x0)²/2 and |β| ≤ ρ.
//! So with dx = x_i − x0 every upper constraint (x_i, U_i) gives
//!
//! - the box: α ≤ U_i + ρ·|dx|,
//! - the program: α ≤ U_i + κ·dx²/2 − β·dx, the same β for all of them,
//!
//! and every lower constraint the same for −α. The bound is the largest and the smallest α for which some β in [−ρ, ρ]
//! satisfies all of that. If there is none, an assumption is broken.
//!
//! # How it is solved
//!
//! F(β) = min over the upper lines is concave. So is F̄(β), the same for −α, and H = F + F̄ too. The feasible rates are
//! the interval H ≥ 0, the largest α is max F on it, and the smallest is −max F̄. Each evaluation is a scan over the
//! constraints. Convex hulls would make it faster, but the inflation moves with x0, so they would have to be built
//! again for every query; half a dozen scans of 512 constraints cost less than that.
//!
//! # Rounding
//!
//! Differences are taken in integers, so an uptime of years costs no digits. The box is computed in integers. In the
//! program a line's dx is exact (|dx| ≤ 2^52 ns; older constraints count in the box only). A line is kept only where it can
//! say more than the box, so κ·dx²/2 < 2ρ·|dx|, and every term of every line is at most
//! M = (width of the box) + 3ρ·max|dx|. A height and its value at a rate take fewer than 8 roundings of 2^-53 each, so
//! a computed value is off by less than 2^-50·M. Every line is raised by the slack 2^-48·M, which contains that four
//! times: the solver works on exact lines that lie outside the true ones. A computed root or crossing is off by a
//! few more roundings of terms ≤ M, so the slack covers these too. The result is rounded outwards to whole nanoseconds.
//! For ρ = 200 ppm and ages up to 2 hours M is 5 s and the slack 0.02 ns at most.

use serde::{Deserialize, Serialize};

use super::{Assumptions, Interval, WindowError};
use crate::exchange::{Backward, Forward};
use crate::time::{Nanos, Offset, Server, Time};

const BILLION: i128 = 1_000_000_000;

/// The largest |dx| in the program: exact in an f64, and so are the sums of two.
const REACH: i128 = 1 << 52;

/// Both searches stop early without harm, so this only keeps a strange input from taking long.
const MAX_STEPS: usize = 100;

/// One packet's constraint: θ(`at`) is at most, or at least, `limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Time<Server>, Offset)", into = "(Time<Server>, Offset)")]
pub(super) struct Constraint {
    pub at: Time<Server>,
    pub limit: Offset,
}

impl From<(Time<Server>, Offset)> for Constraint {
    fn from((at, limit): (Time<Server>, Offset)) -> Self {
        Constraint { at, limit }
    }
}

impl From<Constraint> for (Time<Server>, Offset) {
    fn from(constraint: Constraint) -> Self {
        (constraint.at, constraint.limit)
    }
}

impl Constraint {
    /// The upper constraint of a packet to the host.
    pub fn upper(forward: &Forward, assumptions: &Assumptions) -> Self {
        let at = forward.sent.earliest;
        let limit = Offset::between(forward.received.latest, at);
        Constraint { at, limit: limit - in_host_time(assumptions.min_forward, assumptions) }
    }

    /// The lower constraint of a packet from the host.
    pub fn lower(backward: &Backward, assumptions: &Assumptions) -> Self {
        let at = backward.received.latest;
        let limit = Offset::between(backward.sent.earliest, at);
        Constraint { at, limit: limit + in_host_time(assumptions.min_backward, assumptions) }
    }
}

/// ⌊d·(1 − ρ)⌋: by how much the host's clock advances at least during `delay` on the server's.
pub(super) fn in_host_time(delay: Nanos, assumptions: &Assumptions) -> Nanos {
    let least = i128::from(delay.get()) * (BILLION - i128::from(assumptions.rate_ppb));
    Nanos::new(clamp(least.div_euclid(BILLION)))
}

/// What the constraints allow at one instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Solution {
    /// Where θ lies.
    pub interval: Interval,
    /// Where dθ/dx lies.
    pub rate: (f64, f64),
}

/// Solves the program at the instant `at`.
///
/// Errors: [`WindowError::Empty`] without an upper or without a lower constraint, [`WindowError::Broken`] where they
/// contradict each other.
pub(super) fn solve(
    uppers: impl Iterator<Item = Constraint> + Clone,
    lowers: impl Iterator<Item = Constraint> + Clone,
    at: Time<Server>,
    assumptions: &Assumptions,
) -> Result<Solution, WindowError> {
    let relative =
        |c: Constraint| (i128::from(c.at.as_nanos()) - i128::from(at.as_nanos()), i128::from(c.limit.get()));
    // A lower constraint on α at dx is an upper constraint on −α at −dx, for the same β.
    let uppers = uppers.map(relative);
    let lowers = lowers.map(relative).map(|(dx, limit)| (-dx, -limit));

    let rate_ppb = i128::from(assumptions.rate_ppb);
    let box_hi = box_ceiling(uppers.clone(), rate_ppb).ok_or(WindowError::Empty)?;
    let box_lo = -box_ceiling(lowers.clone(), rate_ppb).ok_or(WindowError::Empty)?;
    if box_lo > box_hi {
        return Err(WindowError::Broken);
    }
    let in_box = Interval { lo: Offset::new(clamp(box_lo)), hi: Offset::new(clamp(box_hi)) };
    let rho = f64::from(assumptions.rate_ppb) * 1e-9;
    let Some(wander) = assumptions.wander_ppb_per_s else {
        return Ok(Solution { interval: in_box, rate: (-rho, rho) });
    };
    let kappa = f64::from(wander) * 1e-18; // 10⁻⁹ per second, as 1/ns

    let base = box_lo + (box_hi - box_lo) / 2;
    let mut uppers = lines(uppers.map(|(dx, limit)| (dx, limit - base)), box_hi - base, rho, kappa);
    let mut lowers = lines(lowers.map(|(dx, limit)| (dx, limit + base)), base - box_lo, rho, kappa);
    let farthest = uppers.iter().chain(&lowers).fold(0.0, |most: f64, line| most.max(line.dx.abs()));
    let magnitude = (box_hi - box_lo) as f64 + 3.0 * rho * farthest;
    let slack = magnitude * 2f64.powi(-48);
    for line in uppers.iter_mut().chain(&mut lowers) {
        line.height += slack;
    }

    let least = feasible_edge(&uppers, &lowers, -rho).ok_or(WindowError::Broken)?;
    let most = feasible_edge(&uppers, &lowers, rho).ok_or(WindowError::Broken)?;
    if least > most {
        return Err(WindowError::Broken);
    }
    let hi = base + (highest(&uppers, least, most) + slack).ceil() as i128;
    let lo = base - (highest(&lowers, least, most) + slack).ceil() as i128;
    let interval = Interval { lo: Offset::new(clamp(lo)), hi: Offset::new(clamp(hi)) };
    // The lines lie outside the true ones, so this only takes the rounding back where the box is the tighter one.
    let interval = interval.intersect(in_box).ok_or(WindowError::Broken)?;
    Ok(Solution { interval, rate: (least, most) })
}

/// min over (dx, limit) of limit + ⌈ρ·|dx|⌉; none without constraints.
fn box_ceiling(constraints: impl Iterator<Item = (i128, i128)>, rate_ppb: i128) -> Option<i128> {
    constraints.map(|(dx, limit)| limit - (-dx.abs() * rate_ppb).div_euclid(BILLION)).min()
}

/// α ≤ `height` − β·`dx`, in nanoseconds; β is dimensionless.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Line {
    height: f64,
    dx: f64,
}

impl Line {
    fn at(self, rate: f64) -> f64 {
        self.height - rate * self.dx
    }
}

/// The program's lines: the box as one that is level, and each constraint that may say more than the box. One whose
/// lowest point U + κ·dx²/2 − ρ·|dx| is not below the box is implied by it. To leave one out is sound in any case.
fn lines(constraints: impl Iterator<Item = (i128, i128)>, ceiling: i128, rho: f64, kappa: f64) -> Vec<Line> {
    let level = Line { height: ceiling as f64, dx: 0.0 };
    let sloped = constraints.filter(|(dx, _)| dx.abs() <= REACH).map(|(dx, limit)| {
        let dx = dx as f64;
        Line { height: limit as f64 + kappa * dx * dx / 2.0, dx }
    });
    let telling = sloped.filter(|line| line.height - rho * line.dx.abs() < level.height);
    std::iter::once(level).chain(telling).collect()
}

/// The line that limits α at `rate`.
fn active(lines: &[Line], rate: f64) -> Line {
    lines
        .iter()
        .skip(1)
        .fold(lines[0], |lowest, line| if line.at(rate) < lowest.at(rate) { *line } else { lowest })
}

/// The end of the feasible rates on the side of `limit` (−ρ or ρ), approached from outside; none where no rate in
/// [−ρ, ρ] is feasible.
///
/// Newton's method on the concave H = F + F̄: a tangent lies above H, so its root never passes the true edge. Every
/// iterate is outside the feasible rates, and stopping early is sound.
fn feasible_edge(uppers: &[Line], lowers: &[Line], limit: f64) -> Option<f64> {
    let inwards = -limit.signum();
    let mut rate = limit;
    for _ in 0..MAX_STEPS {
        let (upper, lower) = (active(uppers, rate), active(lowers, rate));
        if upper.at(rate) + lower.at(rate) >= 0.0 {
            break;
        }
        // H(β) ≤ height − β·dx < 0 here. Where that does not rise inwards, it is negative on all the rates that are left.
        let (height, dx) = (upper.height + lower.height, upper.dx + lower.dx);
        if -dx * inwards <= 0.0 {
            return None;
        }
        let root = height / dx;
        if root * inwards > limit.abs() {
            return None;
        }
        if (root - rate) * inwards <= 0.0 {
            break; // no more progress in f64
        }
        rate = root;
    }
    Some(rate)
}

/// An upper limit of max over [`least`, `most`] of the concave min over `lines`: the maximum itself but for rounding.
///
/// Cutting planes: `left` rises and `right` falls, both lie above the function, so their crossing is above its maximum.
/// The line that is active at the crossing replaces the one of its side. Every crossing is a sound answer, so
/// stopping early is sound.
fn highest(lines: &[Line], least: f64, most: f64) -> f64 {
    let (mut left, mut right) = (active(lines, least), active(lines, most));
    if left.dx >= 0.0 {
        return left.at(least);
    }
    if right.dx <= 0.0 {
        return right.at(most);
    }
    let mut top = f64::INFINITY;
    for _ in 0..MAX_STEPS {
        // The height of the crossing as a mean of the two heights, with weights that make it level: well conditioned
        // even where the rate of the crossing is not.
        let run = right.dx - left.dx;
        top = top.min(left.height * (right.dx / run) + right.height * (-left.dx / run));
        let rate = ((right.height - left.height) / run).clamp(least, most);
        let cut = active(lines, rate);
        if cut.at(rate) >= top || cut == left || cut == right {
            break;
        }
        if cut.dx < 0.0 {
            left = cut;
        } else if cut.dx > 0.0 {
            right = cut;
        } else {
            return top.min(cut.height);
        }
    }
    top
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}
