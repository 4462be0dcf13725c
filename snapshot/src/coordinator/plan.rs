//! Choosing T, the T_i and V. No I/O and no clock.
//!
//! V must be at least the *sum* of two hosts' half-widths: host i may release early by e_i in server time while host j
//! still cuts late by e_j. The larger of the two would be unsound by a factor of two.
//!
//! A bad plan cannot produce a wrong certificate, only a refused one; so what is added to the sum is there to make the
//! first attempt succeed:
//!
//! - *Growth.* The planned interval of a future instant widens with its distance. Readings up to T + V are placed by
//!   the interval at their own instant, so e_i covers the interval's ends, seen from the middle at T, at T and at
//!   T + V + e.
//! - *Rates.* `locate` turns distances on the host's clock into distances on the server's, up to ρ wrong over at most
//!   V + e on either host.
//! - *Rounding.* P_j ≤ T_j − 1 gives one nanosecond; `locate` and the middle take at most two on either host.

use timesync::bound::{Interval, WindowError};
use timesync::time::{Host, Nanos, Offset, Server, Time};

use crate::messages::Control;
use crate::mutation::mutated;

/// What the plan needs to know of one host.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<B> {
    /// The bound on θ at a server instant.
    pub bound: B,
    /// ρ, in 10⁻⁹.
    pub rate_ppb: u32,
    /// The host's own limit for V.
    pub max_stretch: Nanos,
}

/// When to cut, and for how long to stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// T.
    pub t: Time<Server>,
    /// V.
    pub stretch: Nanos,
    /// T_i = T + m_i, in the order of the candidates.
    pub at: Vec<Time<Host>>,
    /// The half-widths of the bounds at T, in the order of the candidates.
    pub errors: Vec<Nanos>,
}

/// Why there is no plan. The index says for which candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlan {
    /// Its clock cannot be bounded.
    Unbounded(usize, WindowError),
    /// V would reach its limit.
    TooWide {
        /// The host with the smallest limit.
        host: usize,
        /// What V would be.
        stretch: Nanos,
    },
}

/// Plans a cut at `now + lead`.
///
/// # Errors
/// [`NoPlan`].
pub fn plan<B>(now: Time<Server>, lead: Nanos, candidates: &[Candidate<B>]) -> Result<Plan, NoPlan>
where
    B: Fn(Time<Server>) -> Result<Interval, WindowError>,
{
    let t = now + lead;
    let at_t = intervals(candidates, t)?;
    let middles: Vec<Offset> = at_t.iter().map(|interval| interval.middle()).collect();
    let at_once: Vec<Nanos> = at_t.iter().map(|interval| interval.half_width()).collect();
    let mut errors = at_once.clone();
    // Twice the first estimate is beyond T + V + e, whatever the growth adds to it.
    let end = t + two_largest(&errors) + two_largest(&errors);
    for ((error, middle), interval) in errors.iter_mut().zip(&middles).zip(intervals(candidates, end)?) {
        *error = (*error).max(interval.hi - *middle).max(*middle - interval.lo);
    }
    let rate = candidates.iter().map(|host| host.rate_ppb).max().unwrap_or(0);
    let stretch = if mutated!(ZeroStretch) { Nanos::ZERO } else { stretch(&errors, rate) };
    let limit = candidates.iter().enumerate().min_by_key(|(_, host)| host.max_stretch);
    if let Some((host, _)) = limit.filter(|(_, host)| stretch >= host.max_stretch) {
        return Err(NoPlan::TooWide { host, stretch });
    }
    let at = middles.into_iter().map(|middle| t + middle).collect();
    Ok(Plan { t, stretch, at, errors: at_once })
}

/// V from the half-widths and the largest ρ among the hosts.
fn stretch(errors: &[Nanos], rate_ppb: u32) -> Nanos {
    const ROUNDING: Nanos = Nanos::new(4);
    let sum = two_largest(errors);
    let distance = i128::from(sum.get()) * 2;
    let rates = (distance * 2 * i128::from(rate_ppb)).div_euclid(1_000_000_000) + 1;
    sum + Nanos::new(i64::try_from(rates).unwrap_or(i64::MAX)) + ROUNDING
}

/// No pair has a larger sum. A single host needs none: its own clock orders its cut and its release.
fn two_largest(errors: &[Nanos]) -> Nanos {
    let mut sorted = errors.to_vec();
    sorted.sort_unstable();
    match sorted.as_slice() {
        [.., first] if mutated!(LargerError) => *first,
        [.., second, first] => *second + *first,
        _ => Nanos::ZERO,
    }
}

fn intervals<B>(candidates: &[Candidate<B>], at: Time<Server>) -> Result<Vec<Interval>, NoPlan>
where
    B: Fn(Time<Server>) -> Result<Interval, WindowError>,
{
    candidates
        .iter()
        .enumerate()
        .map(|(index, host)| (host.bound)(at).map_err(|why| NoPlan::Unbounded(index, why)))
        .collect()
}

impl Plan {
    /// The certificate's margin, if each host's last reading before T is the one just before it, each releases at the
    /// first reading it may, and the exchanges after T teach nothing. None for a single host, which needs none.
    pub fn margin(&self) -> Option<Nanos> {
        (self.errors.len() > 1).then(|| self.stretch + Nanos::new(1) - two_largest(&self.errors))
    }

    /// The same plan, done wrongly on purpose.
    pub fn spoiled(mut self, control: Control) -> Self {
        match control {
            Control::Untranslated => {
                let number = Time::from_nanos(self.t.as_nanos());
                self.at.iter_mut().for_each(|at| *at = number);
            }
            Control::ZeroStretch => self.stretch = Nanos::ZERO,
            // Takes no orders, so it has no plan to spoil.
            Control::Uncoordinated => {}
        }
        self
    }
}

/// The confidence that each single bound needs so that all of them hold together at `group` (Boole's inequality: the
/// probabilities of failing add up, whatever their dependence). Every attempt counts, because the last one is chosen
/// by its outcome; and each host counts four times, with the bounds at P and at Q, of the window planned with and of the
/// re-measured one.
pub fn confidence_of_each(group: f64, hosts: usize, attempts: u32) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of hosts is far below 2^52")]
    let bounds = hosts.max(1) as f64 * 4.0 * f64::from(attempts.max(1));
    1.0 - (1.0 - group) / bounds
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use timesync::bound::{Policy, Window};

    use super::*;
    use crate::certificate::certify;
    use crate::simulated::{World, any_host};

    const NOW: Time<Server> = Time::from_nanos(1_000_000_000);
    const LEAD: Nanos = Nanos::from_millis(50);

    fn fixed(lo: i64, hi: i64) -> Candidate<impl Fn(Time<Server>) -> Result<Interval, WindowError>> {
        Candidate {
            bound: move |_| Ok(Interval { lo: Offset::new(lo), hi: Offset::new(hi) }),
            rate_ppb: 200_000,
            max_stretch: Nanos::from_millis(100),
        }
    }

    #[test]
    fn v_is_the_sum_of_the_two_largest_half_widths_and_little_more() {
        let plan = plan(NOW, LEAD, &[fixed(-1_000, 1_000), fixed(5_000, 11_000), fixed(0, 100)]).unwrap();
        assert_eq!(plan.t, NOW + LEAD);
        assert_eq!(plan.at[1], Time::from_nanos(1_050_008_000));
        assert!((4_000..4_020).contains(&plan.stretch.get()), "{}", plan.stretch);
    }

    #[test]
    fn one_host_needs_no_stretch_to_speak_of() {
        assert!(plan(NOW, LEAD, &[fixed(-50_000, 50_000)]).unwrap().stretch < Nanos::new(10));
    }

    #[test]
    fn growth_until_the_release_is_allowed_for() {
        let growing = |_| Candidate {
            bound: |at: Time<Server>| {
                let grown = 1_000 + (at - NOW).get() / 1_000;
                Ok(Interval { lo: Offset::new(-grown), hi: Offset::new(grown) })
            },
            rate_ppb: 1_000_000,
            max_stretch: Nanos::from_millis(100),
        };
        let plan = plan(NOW, LEAD, &[growing(0), growing(1)]).unwrap();
        let at_release = 1_000 + (LEAD + plan.stretch).get() / 1_000;
        assert!(plan.stretch.get() >= 2 * at_release, "{} < 2 × {at_release}", plan.stretch);
    }

    #[test]
    fn a_stretch_that_reaches_a_hosts_limit_is_no_plan() {
        let mut hosts = [fixed(-30_000_000, 30_000_000), fixed(-30_000_000, 30_000_000)];
        assert!(plan(NOW, LEAD, &hosts).is_ok());
        hosts[1].max_stretch = Nanos::from_millis(60);
        assert!(matches!(plan(NOW, LEAD, &hosts), Err(NoPlan::TooWide { host: 1, .. })));
    }

    #[test]
    fn a_host_without_a_bound_is_named() {
        let bound: fn(Time<Server>) -> Result<Interval, WindowError> = |_| Err(WindowError::Empty);
        let host = Candidate { bound, rate_ppb: 1, max_stretch: LEAD };
        assert_eq!(plan(NOW, LEAD, &[host]), Err(NoPlan::Unbounded(0, WindowError::Empty)));
    }

    #[test]
    fn the_confidence_of_all_bounds_together_is_the_groups() {
        for (hosts, attempts) in [(1, 1), (3, 3), (40, 10)] {
            let each = confidence_of_each(0.99, hosts, attempts);
            let failing = (1.0 - each) * hosts as f64 * 4.0 * f64::from(attempts);
            assert!((failing - 0.01).abs() < 1e-9, "{failing}");
        }
    }

    proptest! {
        #[test]
        fn v_covers_every_pair_and_every_t_i_is_possible(
            hosts in prop::collection::vec((-1_i64 << 50..1 << 50, 0_i64..20_000_000), 2..6)
        ) {
            let candidates: Vec<_> = hosts.iter().map(|&(lo, width)| fixed(lo, lo + width)).collect();
            let plan = plan(NOW, LEAD, &candidates).unwrap();
            for (i, &(lo, width)) in hosts.iter().enumerate() {
                let theta = Offset::between(plan.at[i], plan.t);
                prop_assert!(Offset::new(lo) <= theta && theta <= Offset::new(lo + width));
                // What each end of each interval may be wrong by, seen from the chosen T_i: the pair's worst case.
                for (j, &(other, _)) in hosts.iter().enumerate().filter(|&(j, _)| j != i) {
                    let late = Offset::between(plan.at[j], plan.t) - Offset::new(other);
                    let early = Offset::new(lo + width) - theta;
                    prop_assert!(plan.stretch >= early + late, "host {i} against {j}");
                }
            }
        }

        #[test]
        fn what_is_planned_is_certified_when_the_hosts_do_as_ordered(
            clocks in prop::collection::vec(any_host(), 1..=4),
            lead in 1_i64..10_000,
        ) {
            let lead = Nanos::from_millis(lead);
            let world = World::new(clocks, NOW, |windows| {
                let candidates: Vec<_> = windows
                    .iter()
                    .map(|window: &Window| Candidate {
                        bound: |at| window.bound(at, &Policy::Hard),
                        rate_ppb: window.assumptions().rate_ppb,
                        max_stretch: Nanos::from_millis(1_000),
                    })
                    .collect();
                let plan = plan(NOW, lead, &candidates).unwrap();
                (plan.at, plan.stretch)
            });
            let verdict = certify(&world.evidence);
            prop_assert!(verdict.is_ok(), "{verdict:?}");
        }
    }
}
