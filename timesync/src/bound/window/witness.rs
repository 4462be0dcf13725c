//! A cheap proof that a window's exchanges do not contradict each other.
//!
//! The hard bound's program is feasible at an instant x if a line θ(y) = α + β·(y − x) with |β| ≤ ρ keeps every
//! constraint, each loosened by κ·(y − x)²/2, and the box at x. Take such a line for the newest instant x, and let it
//! stand while exchanges arrive that it keeps *without* any loosening. Then the program is feasible at the newest
//! instant x' ≥ x too, by the same line:
//!
//! - a constraint that was there at x is loosened by κ·(y − x')²/2, which is no less than before, as y ≤ x ≤ x';
//! - a newer one needs no loosening;
//! - the box at x' allows ρ·(x' − x) more than the box at x did, and the line moves by no more than that.
//!
//! Constraints that leave the window make it no less feasible. So while the line stands the program need not be solved;
//! when it falls, solving tells. All of this to within a nanosecond, to which the solver rounds as well. No bound comes
//! from here: whoever asks for one has the program solved.

use super::{Constraint, Window, WindowError};
use crate::time::{Nanos, Offset, Server, Time};

/// A line that contradicts no exchange of a window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Witness {
    at: Time<Server>,
    /// The line's height at `at` is this and `more` ns.
    offset: Offset,
    more: f64,
    rate: f64,
}

impl Witness {
    /// How far the constraint's limit is above the line, in ns.
    fn below(&self, constraint: Constraint) -> f64 {
        float(constraint.limit - self.offset) - self.more - self.rate * float(constraint.at - self.at)
    }
}

impl Window {
    /// Whether the exchange that was pushed last keeps to `witness`.
    pub(crate) fn newest_keeps(&self, witness: &Witness) -> bool {
        self.exchanges.back().is_none_or(|entry| {
            entry.upper.is_none_or(|upper| witness.below(upper) >= 0.0)
                && entry.lower.is_none_or(|lower| witness.below(lower) <= 0.0)
        })
    }

    /// A line in the middle of what the hard bound allows at the newest instant.
    ///
    /// # Errors
    /// [`WindowError`], as for the hard bound.
    pub(crate) fn witness(&self) -> Result<Witness, WindowError> {
        let at = self.newest().ok_or(WindowError::Empty)?;
        let solution = self.solve(at)?;
        let (interval, (least, most)) = (solution.interval, solution.rate);
        let line = Witness { at, offset: interval.lo, more: 0.0, rate: f64::midpoint(least, most) };
        // What is left at this rate: the interval keeps the box, and without a wander limit there is nothing else.
        let (mut low, mut high) = (0.0, float(interval.hi - interval.lo));
        if let Some(wander) = self.assumptions.wander_ppb_per_s {
            let loosening = |constraint: Constraint| {
                let dx = float(constraint.at - at);
                f64::from(wander) * 1e-18 * dx * dx / 2.0
            };
            high = self.uppers().map(|upper| line.below(upper) + loosening(upper)).fold(high, f64::min);
            low = self.lowers().map(|lower| line.below(lower) - loosening(lower)).fold(low, f64::max);
        }
        Ok(Witness { more: f64::midpoint(low, high), ..line })
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^53 ns are 104 days; what is older is off by some ns")]
fn float(nanos: Nanos) -> f64 {
    nanos.get() as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bound::Assumptions;
    use crate::bound::simulation::{Clock, Path};
    use crate::random::Random;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// With clocks that keep the assumptions or not, and steps in between: a witness that stands never says feasible
        /// where the solver says broken.
        #[test]
        fn a_line_that_stands_proves_what_the_solver_finds(
            seed: u64,
            wander in 0_u32..5_000,
            extra in 1_u32..200_000,
            steered: bool,
            wilder in prop_oneof![Just(1_u32), Just(20)],
            step in prop_oneof![Just(0_i64), -5_000..5_000_i64],
            queue in prop_oneof![Just(0.0), 1.0..1e5],
        ) {
            let random = &mut Random(seed);
            let with = |rate_ppb, wander| {
                Assumptions { rate_ppb, wander_ppb_per_s: Some(wander), ..Assumptions::default() }
            };
            // A wander of κ over the simulation's 100 s stays within ρ.
            let rate_ppb = 100 * wander + extra;
            let clock = Clock::within(&with(rate_ppb * wilder, wander * wilder), 0.5, random);
            let told = with(rate_ppb, wander);
            let told = Assumptions { wander_ppb_per_s: told.wander_ppb_per_s.filter(|_| !steered), ..told };
            let path = Path { forward_queue: queue, backward_queue: queue, ..Path::QUIET };
            let (mut window, mut witness) = (Window::new(told, 64), None::<Witness>);
            for i in 0..150_i64 {
                let mut exchange = path.exchange(&clock, 20_000_000_000 + i * 125_000_000, random);
                if i >= 100 {
                    if let Some(half) = &mut exchange.forward {
                        half.received.earliest = half.received.earliest + Nanos::new(step);
                        half.received.latest = half.received.latest + Nanos::new(step);
                    }
                    if let Some(half) = &mut exchange.backward {
                        half.sent.earliest = half.sent.earliest + Nanos::new(step);
                        half.sent.latest = half.sent.latest + Nanos::new(step);
                    }
                }
                window.push(&exchange);
                let Some(newest) = window.newest() else { continue };
                if witness.is_some_and(|witness| window.newest_keeps(&witness)) {
                    // Which of a gap of less than a nanosecond exists is a matter of rounding.
                    prop_assert!(relieved(&window).hard(newest) != Err(WindowError::Broken), "exchange {i}");
                } else {
                    witness = window.witness().ok();
                }
            }
        }
    }

    /// The window with a nanosecond more room in each constraint.
    fn relieved(window: &Window) -> Window {
        let mut window = window.clone();
        for entry in &mut window.exchanges {
            if let Some(upper) = &mut entry.upper {
                upper.limit = upper.limit + Nanos::new(1);
            }
            if let Some(lower) = &mut entry.lower {
                lower.limit = lower.limit - Nanos::new(1);
            }
        }
        window
    }

    #[test]
    fn the_solver_is_seldom_needed() {
        let random = &mut Random(7);
        // 1 ppb/s: an ordinary oscillator.
        let clock = Clock::within(&Assumptions::default(), 0.99, random);
        let (mut window, mut witness, mut solved) = (Window::new(Assumptions::default(), 512), None, 0);
        for i in 0..1_200_i64 {
            window.push(&Path::QUIET.exchange(&clock, 20_000_000_000 + i * 62_500_000, random));
            if !witness.is_some_and(|witness| window.newest_keeps(&witness)) {
                (witness, solved) = (Some(window.witness().unwrap()), solved + 1);
            }
        }
        assert!(solved < 120, "solved {solved} times in 1200 exchanges");
    }
}
