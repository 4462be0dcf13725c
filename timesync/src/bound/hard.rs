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
//! # Another anchor
//!
//! The program lets θ bend towards one packet and away from the next one beside it, as no function can that has to
//! bend both ways at once. Where x0 lies outside the packets that matter (a prediction, or queues since the last good
//! packet), that costs a lot: κ·a·b·(a + b)/(b − a)/2 for packets of the ages a < b, where functions reach κ·a·b/2. The
//! tangent at *another* instant xa serves as well: θ(x_i) = α' + β'·(x_i − xa) + r with |r| ≤ κ·(x_i − xa)²/2, for each
//! packet and for x0 too. With α the tangent's height at x0,
//!
//! - α ≤ U_i + κ·(dx − a)²/2 − β'·dx, where a = xa − x0, and θ(x0) ≤ α + κ·a²/2.
//!
//! It is the same program with other heights. At a = the instant of the packet that limits α, those two packets give
//! κ·a·b/2 exactly. So the program is solved at a = 0, and again at the packets that limited it; all the answers are
//! true, and so is their intersection.
//!
//! # How it is solved
//!
//! F(β) = min over the upper lines is concave. So is F̄(β), the same for −α, and H = F + F̄ too. The feasible rates are
//! the interval H ≥ 0, the largest α is max F on it, and the smallest is −max F̄. Each evaluation is a scan over the
//! constraints.
//!
//! A point (dx, U + κ·dx²/2) that is not on the lower convex hull of them all is implied by its neighbours on the hull,
//! at every β. Only the hull is scanned: some tens of a thousand. Another anchor adds κ·a²/2 − κ·a·dx to the heights,
//! which is straight in dx, so the hull stays the hull. The box looks at every constraint.
//!
//! # Rounding
//!
//! Differences are taken in integers, so an uptime of years costs no digits. The box is computed in integers. In the
//! program a line's dx is exact (|dx| ≤ 2^52 ns; older constraints count in the box only). A line is kept only where
//! it can say more than the box, so κ·(dx − a)²/2 < 2ρ·|dx| + κ·a²/2, and every term of every line is at most
//! M = 1 ns + (width of the box) + 3ρ·max|dx| + κ·a². A height and its value at a rate take fewer than 8 roundings of 2^-53 each, so a computed
//! value is off by less than 2^-50·M. Every line is raised by the slack 2^-48·M, which contains that four times: the
//! solver works on exact lines that lie outside the true ones. A computed root or crossing is off by a few more
//! roundings of terms ≤ M, so the slack covers these too. To leave a line out is sound in any case, so the hull may be
//! rounded. The result is rounded outwards to whole nanoseconds. For ρ
//! = 200 ppm and ages up to 2 hours M is 5 s and the slack 2·10⁻⁵ ns.

use serde::{Deserialize, Serialize};

use super::{Assumptions, Interval, WindowError};
use crate::exchange::{Backward, Forward};
use crate::time::{Host, Nanos, Offset, Server, Span, Time};

const BILLION: i128 = 1_000_000_000;

/// The largest |dx| in the program: exact in an f64, and so are the sums of two.
const REACH: i128 = 1 << 52;

/// Both searches stop early without harm, so this only keeps a strange input from taking long.
const MAX_STEPS: usize = 100;

/// One packet's constraint: θ(`at`) is at most, or at least, `limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Time<Server>, Offset, Nanos)", into = "(Time<Server>, Offset, Nanos)")]
pub(super) struct Constraint {
    pub at: Time<Server>,
    pub limit: Offset,
    /// How much of the distance between θ and the limit the stamps' intervals may explain, in the host's time. The hard
    /// bound takes the outer ends and needs no more; the statistical one also needs to know where the inner ends are.
    pub width: Nanos,
}

impl From<(Time<Server>, Offset, Nanos)> for Constraint {
    fn from((at, limit, width): (Time<Server>, Offset, Nanos)) -> Self {
        Constraint { at, limit, width }
    }
}

impl From<Constraint> for (Time<Server>, Offset, Nanos) {
    fn from(constraint: Constraint) -> Self {
        (constraint.at, constraint.limit, constraint.width)
    }
}

impl Constraint {
    /// The upper constraint of a packet to the host.
    pub fn upper(forward: &Forward, assumptions: &Assumptions) -> Self {
        let at = forward.sent.earliest;
        let limit = Offset::between(forward.received.latest, at);
        let width = stamps(forward.sent, forward.received, assumptions);
        Constraint { at, limit: limit - in_host_time(assumptions.min_forward, assumptions), width }
    }

    /// The lower constraint of a packet from the host.
    pub fn lower(backward: &Backward, assumptions: &Assumptions) -> Self {
        let at = backward.received.latest;
        let limit = Offset::between(backward.sent.earliest, at);
        let width = stamps(backward.received, backward.sent, assumptions);
        Constraint { at, limit: limit + in_host_time(assumptions.min_backward, assumptions), width }
    }
}

/// The widths of a packet's two stamps; while the server's clock crosses its own, the host's advances by up to
/// (1 + ρ) times as much.
fn stamps(server: Span<Server>, host: Span<Host>, assumptions: &Assumptions) -> Nanos {
    let most = i128::from(server.width().get()) * (BILLION + i128::from(assumptions.rate_ppb));
    host.width() + Nanos::new(clamp(-(-most).div_euclid(BILLION)))
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
    let (in_box, base, program) = prepare(uppers, lowers, at, assumptions)?;
    let Some(program) = program else {
        let rho = f64::from(assumptions.rate_ppb) * 1e-9;
        return Ok(Solution { interval: in_box, rate: (-rho, rho) });
    };
    let first = program.solve(0.0).ok_or(WindowError::Broken)?;
    let mut most = first.most;
    let mut anchors: Vec<f64> = first.limiting.into_iter().flatten().filter(|dx| *dx != 0.0).collect();
    anchors.sort_unstable_by(f64::total_cmp);
    anchors.dedup();
    for anchor in anchors {
        let again = program.solve(anchor).ok_or(WindowError::Broken)?;
        most = (most.0.min(again.most.0), most.1.min(again.most.1));
    }
    let (hi, lo) = (base + most.0.ceil() as i128, base - most.1.ceil() as i128);
    if lo > hi {
        return Err(WindowError::Broken);
    }
    let interval = Interval { lo: Offset::new(clamp(lo)), hi: Offset::new(clamp(hi)) };
    // The lines lie outside the true ones, so this only takes the rounding back where the box is the tighter one.
    let interval = interval.intersect(in_box).ok_or(WindowError::Broken)?;
    Ok(Solution { interval, rate: first.rates })
}

/// The box at the instant `at`, what the program counts offsets from, and the program, where the wander is bounded.
fn prepare(
    uppers: impl Iterator<Item = Constraint> + Clone,
    lowers: impl Iterator<Item = Constraint> + Clone,
    at: Time<Server>,
    assumptions: &Assumptions,
) -> Result<(Interval, i128, Option<Program>), WindowError> {
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
    let base = box_lo + (box_hi - box_lo) / 2;
    let program = assumptions.wander_ppb_per_s.map(|wander| {
        let kappa = f64::from(wander) * 1e-18; // 10⁻⁹ per second, as 1/ns
        Program {
            uppers: hull(uppers.map(|(dx, limit)| (dx, limit - base)), kappa),
            lowers: hull(lowers.map(|(dx, limit)| (dx, limit + base)), kappa),
            ceilings: ((box_hi - base) as f64, (base - box_lo) as f64),
            rho: f64::from(assumptions.rate_ppb) * 1e-9,
            kappa,
        }
    });
    Ok((in_box, base, program))
}

/// min over (dx, limit) of limit + ⌈ρ·|dx|⌉; none without constraints.
fn box_ceiling(constraints: impl Iterator<Item = (i128, i128)>, rate_ppb: i128) -> Option<i128> {
    // Rounded once, after the minimum: the same, as all are rounded alike.
    let least = constraints.map(|(dx, limit)| limit * BILLION + dx.abs() * rate_ppb).min()?;
    Some(-(-least).div_euclid(BILLION))
}

/// A constraint in the program: at `dx` from x0, α is limited to `limit`, both in ns.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    dx: f64,
    limit: f64,
}

/// The lower convex hull of (dx, limit + κ·dx²/2), in order of dx.
fn hull(constraints: impl Iterator<Item = (i128, i128)>, kappa: f64) -> Vec<Point> {
    let mut points: Vec<Point> = constraints
        .filter(|(dx, _)| dx.abs() <= REACH)
        .map(|(dx, limit)| Point { dx: dx as f64, limit: limit as f64 })
        .collect();
    if !points.is_sorted_by_key(|point| point.dx) {
        points.sort_unstable_by(|a, b| a.dx.total_cmp(&b.dx));
    }
    let height = |point: Point| point.limit + kappa * point.dx * point.dx / 2.0;
    let mut hull: Vec<(Point, f64)> = Vec::new();
    for point in points {
        let here = height(point);
        while let Some(&(last, last_height)) = hull.last() {
            let implied = match hull.len().checked_sub(2).map(|index| hull[index]) {
                _ if last.dx == point.dx => last_height >= here,
                None => false,
                Some((before, before_height)) => {
                    (last_height - before_height) * (point.dx - before.dx)
                        >= (here - before_height) * (last.dx - before.dx)
                }
            };
            if !implied {
                break;
            }
            hull.pop();
        }
        if hull.last().is_none_or(|(last, _)| last.dx != point.dx) {
            hull.push((point, here));
        }
    }
    hull.into_iter().map(|(point, _)| point).collect()
}

/// The program for one x0, at any anchor.
struct Program {
    uppers: Vec<Point>,
    /// For −α: dx and limit have the opposite signs.
    lowers: Vec<Point>,
    /// The box's limits of α and of −α.
    ceilings: (f64, f64),
    rho: f64,
    kappa: f64,
}

/// What the program says at one anchor.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Answer {
    /// θ(x0) and −θ(x0) are at most these.
    most: (f64, f64),
    /// Where the rate at the anchor lies.
    rates: (f64, f64),
    /// The instants, from x0, of the constraints that limit α and −α.
    limiting: [Option<f64>; 4],
}

impl Program {
    /// None where no line fits. `anchor` is the distance from x0.
    fn solve(&self, anchor: f64) -> Option<Answer> {
        let bend = self.kappa * anchor * anchor / 2.0;
        let lines =
            |points: &[Point], ceiling, anchor| lines(points, ceiling + bend, self.rho, self.kappa, anchor);
        let mut uppers = lines(&self.uppers, self.ceilings.0, anchor);
        let mut lowers = lines(&self.lowers, self.ceilings.1, -anchor);
        let farthest = uppers.iter().chain(&lowers).fold(0.0, |most: f64, line| most.max(line.dx.abs()));
        let width = self.ceilings.0 + self.ceilings.1;
        let magnitude = 1.0 + width + 3.0 * self.rho * farthest + 2.0 * bend;
        let slack = magnitude * 2f64.powi(-48);
        for line in uppers.iter_mut().chain(&mut lowers) {
            line.height += slack;
        }
        let least = feasible_edge(&uppers, &lowers, -self.rho)?;
        let most = feasible_edge(&uppers, &lowers, self.rho)?;
        if least > most {
            return None;
        }
        let (hi, [a, b]) = highest(&uppers, least, most);
        let (lo, [c, d]) = highest(&lowers, least, most);
        Some(Answer {
            most: (hi + bend + slack, lo + bend + slack),
            rates: (least, most),
            limiting: [a, b, c.map(|dx| -dx), d.map(|dx| -dx)],
        })
    }
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
/// lowest point U + κ·(dx − a)²/2 − ρ·|dx| is not below the box is implied by it.
fn lines(points: &[Point], ceiling: f64, rho: f64, kappa: f64, anchor: f64) -> Vec<Line> {
    let level = Line { height: ceiling, dx: 0.0 };
    let sloped = points.iter().map(|point| {
        let away = point.dx - anchor;
        Line { height: point.limit + kappa * away * away / 2.0, dx: point.dx }
    });
    let telling = sloped.filter(|line| line.height - rho * line.dx.abs() < level.height);
    std::iter::once(level).chain(telling).collect()
}

/// The line that limits α at `rate`. There is always one: the box.
fn active(lines: &[Line], rate: f64) -> Line {
    let (mut lowest, mut height) = (lines[0], lines[0].at(rate));
    for line in &lines[1..] {
        let here = line.at(rate);
        if here < height {
            (lowest, height) = (*line, here);
        }
    }
    lowest
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
        // H(β) ≤ height − β·dx < 0 here. Where that does not rise inwards, it is negative on all the rates that are
        // left.
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
/// And the dx of the one or two lines that it lies on.
///
/// Cutting planes: `left` rises and `right` falls, both lie above the function, so their crossing is above its maximum.
/// The line that is active at the crossing replaces the one of its side. Every crossing is a sound answer, so
/// stopping early is sound.
fn highest(lines: &[Line], least: f64, most: f64) -> (f64, [Option<f64>; 2]) {
    let (mut left, mut right) = (active(lines, least), active(lines, most));
    if left.dx >= 0.0 {
        return (left.at(least), [Some(left.dx), None]);
    }
    if right.dx <= 0.0 {
        return (right.at(most), [Some(right.dx), None]);
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
            return (top.min(cut.height), [Some(cut.dx), None]);
        }
    }
    (top, [Some(left.dx), Some(right.dx)])
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Scales α so that everything in the oracle is an integer when instants are whole milliseconds.
    const UNIT: i128 = 2_000_000;

    /// a·α + b·β ≤ c, with α in 1/UNIT ns and β in 1/UNIT ns per ms.
    type HalfPlane = (i128, i128, i128);

    /// The same program solved by enumerating all vertices in exact integers: (least, most) of θ(x0) and of the rate,
    /// each as a fraction. None where it is infeasible. `relief` ns are granted to every constraint.
    fn oracle(
        uppers: &[(i64, i64)],
        lowers: &[(i64, i64)],
        (rate_ppb, wander): (u32, Option<u32>),
        anchor: i64,
        relief: i128,
    ) -> Option<[(i128, i128); 4]> {
        let rho = 2_000 * i128::from(rate_ppb);
        let mut planes: Vec<HalfPlane> = vec![(0, 1, rho), (0, -1, rho)];
        let bend = |ms: i64| i128::from(wander.unwrap_or(0)) * i128::from(ms) * i128::from(ms);
        for (sign, constraints) in [(1, uppers), (-1, lowers)] {
            for &(ms, limit) in constraints {
                let limit = sign * i128::from(limit) * UNIT + relief * UNIT;
                planes.push((sign, 0, limit + rho * i128::from(ms).abs() + bend(anchor)));
                if wander.is_some() {
                    planes.push((sign, sign * i128::from(ms), limit + bend(ms - anchor)));
                }
            }
        }
        let mut best: Option<[(i128, i128); 4]> = None;
        for (i, &(a1, b1, c1)) in planes.iter().enumerate() {
            for &(a2, b2, c2) in &planes[i + 1..] {
                let det = a1 * b2 - a2 * b1;
                if det == 0 {
                    continue;
                }
                let (alpha, beta, det) =
                    (det.signum() * (c1 * b2 - c2 * b1), det.signum() * (a1 * c2 - a2 * c1), det.abs());
                if planes.iter().all(|&(a, b, c)| a * alpha + b * beta <= c * det) {
                    let less = |x: (i128, i128), y: (i128, i128)| if x.0 * y.1 < y.0 * x.1 { x } else { y };
                    let more = |x: (i128, i128), y: (i128, i128)| if x.0 * y.1 > y.0 * x.1 { x } else { y };
                    let (low, high) = ((alpha - bend(anchor) * det, det), (alpha + bend(anchor) * det, det));
                    let beta = (beta, det);
                    let [al, ah, bl, bh] = best.unwrap_or([low, high, beta, beta]);
                    best = Some([less(al, low), more(ah, high), less(bl, beta), more(bh, beta)]);
                }
            }
        }
        best
    }

    // Years of uptime and a large offset must not cost a digit.
    const X0: i64 = 300_000_000_000_000_000;
    const THETA0: i64 = -1_500_000_000_123_456_789;

    fn constraints(list: &[(i64, i64)]) -> Vec<Constraint> {
        let place = |&(ms, limit): &(i64, i64)| Constraint {
            at: Time::from_nanos(X0 + ms * 1_000_000),
            limit: Offset::new(THETA0 + limit),
            width: Nanos::ZERO,
        };
        list.iter().map(place).collect()
    }

    fn compare(
        uppers: &[(i64, i64)],
        lowers: &[(i64, i64)],
        (rate_ppb, wander): (u32, Option<u32>),
        anchor: i64,
    ) -> Result<(), TestCaseError> {
        let assumptions = Assumptions { rate_ppb, wander_ppb_per_s: wander, ..Assumptions::default() };
        let (upper, lower) = (constraints(uppers), constraints(lowers));
        let anchor = if wander.is_some() { anchor } else { 0 };
        let at = Time::from_nanos(X0);
        let rho = f64::from(rate_ppb) * 1e-9;
        let solved = prepare(upper.iter().copied(), lower.iter().copied(), at, &assumptions).map(
            |(in_box, base, program)| match program {
                None => Some((in_box, (-rho, rho))),
                Some(program) => program.solve(anchor as f64 * 1e6).map(|answer| {
                    let (hi, lo) = (base + answer.most.0.ceil() as i128, base - answer.most.1.ceil() as i128);
                    let interval = Interval { lo: Offset::new(clamp(lo)), hi: Offset::new(clamp(hi)) };
                    (interval, answer.rates)
                }),
            },
        );
        let at_anchor = |relief| oracle(uppers, lowers, (rate_ppb, wander), anchor, relief);
        let whole = solve(upper.iter().copied(), lower.iter().copied(), at, &assumptions);
        let Some([al, ah, bl, bh]) = at_anchor(0) else {
            if at_anchor(1).is_none() {
                prop_assert!(matches!(solved, Err(WindowError::Broken) | Ok(None)), "{:?}", solved);
            }
            return Ok(());
        };
        let feasible = matches!(solved, Ok(Some(_)));
        prop_assert!(feasible, "feasible, but {:?}", solved);
        let (interval, rate) = solved.unwrap().unwrap();
        let lo = i128::from(interval.lo.get() - THETA0) * UNIT;
        let hi = i128::from(interval.hi.get() - THETA0) * UNIT;
        prop_assert!(lo * al.1 <= al.0 && ah.0 <= hi * ah.1, "narrower than the truth");
        prop_assert!(
            (lo + 2 * UNIT) * al.1 >= al.0 && ah.0 >= (hi - 2 * UNIT) * ah.1,
            "not as sharp as it could be"
        );
        if let (0, Ok(whole)) = (anchor, whole) {
            prop_assert!(
                interval.intersect(whole.interval) == Some(whole.interval),
                "other anchors only narrow it"
            );
        }
        if wander.is_some() {
            let ppb = |(numerator, denominator): (i128, i128)| numerator as f64 / denominator as f64 / 2e3;
            prop_assert!(rate.0 * 1e9 <= ppb(bl) + 1e-6 && ppb(bh) - 1e-6 <= rate.1 * 1e9, "rate too narrow");
            // The box is rounded to whole nanoseconds, which leaves the rate the room of one more.
            let [_, _, bl, bh] = at_anchor(1).expect("relieved, still feasible");
            prop_assert!(ppb(bl) - 1e-6 <= rate.0 * 1e9 && rate.1 * 1e9 <= ppb(bh) + 1e-6, "rate too wide");
        }
        Ok(())
    }

    /// In milliseconds: seconds or hours, to both sides.
    fn ages() -> impl Strategy<Value = i64> {
        prop_oneof![-20_000i64..20_000, -18_000_000i64..18_000_000]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn agrees_with_exact_enumeration(
            rate_ppb in 1u32..10_000_000,
            wander in prop::option::of(0u32..100_000),
            truth in -1.0f64..1.0,
            anchor in -20_000i64..20_000,
            uppers in prop::collection::vec((ages(), 0i64..100_000), 1..7),
            lowers in prop::collection::vec((ages(), 0i64..100_000), 1..7),
        ) {
            let line = |ms: i64| (truth * f64::from(rate_ppb) * 1e-3 * ms as f64) as i64;
            let uppers: Vec<_> = uppers.iter().map(|&(ms, delay)| (ms, line(ms) + delay)).collect();
            let lowers: Vec<_> = lowers.iter().map(|&(ms, delay)| (ms, line(ms) - delay)).collect();
            for anchor in [0, anchor] {
                compare(&uppers, &lowers, (rate_ppb, wander), anchor)?;
            }
        }

        #[test]
        fn agrees_with_exact_enumeration_on_nonsense(
            rate_ppb in 1u32..1_000_000,
            wander in prop::option::of(0u32..1_000),
            uppers in prop::collection::vec((-300i64..300, -20_000i64..100_000), 1..7),
            lowers in prop::collection::vec((-300i64..300, -100_000i64..20_000), 1..7),
            anchor in -300i64..300,
        ) {
            for anchor in [0, anchor] {
                compare(&uppers, &lowers, (rate_ppb, wander), anchor)?;
            }
        }
    }

    #[test]
    fn one_direction_alone_is_no_bound() {
        let constraint = || {
            [Constraint { at: Time::from_nanos(5), limit: Offset::new(7), width: Nanos::ZERO }].into_iter()
        };
        let none = || std::iter::empty();
        let (at, assumptions) = (Time::from_nanos(0), Assumptions::default());
        assert_eq!(solve(constraint(), none(), at, &assumptions), Err(WindowError::Empty));
        assert_eq!(solve(none(), constraint(), at, &assumptions), Err(WindowError::Empty));
        assert!(solve(constraint(), constraint(), at, &assumptions).is_ok());
    }

    #[test]
    fn the_ends_of_the_number_line_do_not_overflow() {
        let far = |at, limit| {
            let (at, limit) = (Time::from_nanos(at), Offset::new(limit));
            std::iter::once(Constraint { at, limit, width: Nanos::ZERO })
        };
        let assumptions =
            Assumptions { rate_ppb: 10_000_000, wander_ppb_per_s: Some(0), ..Assumptions::default() };
        for x0 in [-1i64 << 61, 0, 1 << 61] {
            let wide =
                solve(far(-1 << 61, 1 << 62), far(1 << 61, -1 << 62), Time::from_nanos(x0), &assumptions);
            let interval = wide.unwrap().interval;
            assert!(interval.lo <= Offset::new(-1 << 62) && Offset::new(1 << 62) <= interval.hi);
        }
    }
}
