//! The bound: how far a host's clock may be from the server's at any instant, from the exchanges in a window.
//!
//! θ(x) = host − server at the server's time x. A packet cannot arrive before it was sent, so each one bounds θ from
//! one side, whatever the network did to it: one to the host from above, one from the host from below.
//!
//! ```text
//!   θ │  ▽       ▽                 ▽ = t2 − t1 at t1: θ is not above
//!     │     ▽  ____▽___────▽
//!     │ ___────    true θ            a packet that queued says less, never anything false
//!     │    △   △        △
//!     │ △          △               △ = t3 − t4 at t4: θ is not below
//!     └──────────────────────── x
//! ```
//!
//! A window of such packets bounds θ at *any* instant x0, past or future, once something is said about the clock:
//!
//! - *Rate*, |θ'| ≤ ρ: a packet's limit loosens by ρ for every second away from it. This is the box. At 200 ppm it
//!   costs 3 µs for packets 16 ms apart.
//! - *Wander*, |θ''| ≤ κ: near x0, θ is a straight line α + β·(x − x0), but for κ·(x − x0)²/2. Any line that threads
//!   between the two kinds of packets is possible, and no other; the highest and the lowest α among them bound θ(x0).
//!   This is a linear program in (α, β), and it learns the rate from the window itself, so ρ hardly matters any more.
//!
//! The **hard bound** is both together ([`Window::hard`]). It is true whenever ρ, κ, the stamps' own intervals and
//! the known minimum delays are ([`Assumptions`]). Its width is about the smallest delay to the host plus the
//! smallest back, of different packets if need be. If no line threads between the packets, an assumption broke
//! ([`WindowError::Broken`]). The reverse does not hold: a break smaller than the round trip, or a constant lie,
//! leaves a line that fits.
//!
//! The **statistical bound** ([`Window::statistical`]) asks for one thing more, that the usual delays of the two ways
//! differ by no more than a declared budget, which no measurement from one path can tell. It narrows the hard bound
//! at a stated confidence.
//!
//! For two hosts the bounds are subtracted ([`pairwise`]), and a host's reading is placed on the server's timeline by
//! [`locate`]. All of it is arithmetic: nothing here reads a clock or does I/O.

mod hard;
#[cfg(test)]
mod simulation;
mod statistical;
mod window;

pub use statistical::{AsymmetryBudget, AsymmetrySource, Basis, Statistical};
pub(crate) use window::Witness;
pub use window::{Window, WindowError};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use crate::time::{Host, Nanos, Offset, Server, Span, Time};

/// Where θ = host − server lies: `lo ..= hi`. Never empty: `lo ≤ hi`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// θ is not below this.
    pub lo: Offset,
    /// θ is not above this.
    pub hi: Offset,
}

impl Interval {
    /// The middle m, rounded towards the lower end.
    pub fn middle(self) -> Offset {
        self.lo + Nanos::new((self.hi - self.lo).get() / 2)
    }

    /// The half-width e such that [m − e, m + e] covers the interval.
    pub fn half_width(self) -> Nanos {
        self.hi - self.middle()
    }

    /// What both intervals allow; none where they contradict each other.
    pub fn intersect(self, other: Interval) -> Option<Interval> {
        let (lo, hi) = (self.lo.max(other.lo), self.hi.min(other.hi));
        (lo <= hi).then_some(Interval { lo, hi })
    }

    /// Whether θ = `offset` is allowed.
    pub fn contains(self, offset: Offset) -> bool {
        self.lo <= offset && offset <= self.hi
    }
}

/// Where θ_i − θ_j of two hosts lies, both at one instant (design: pairwise).
pub fn pairwise(i: Interval, j: Interval) -> (Nanos, Nanos) {
    (i.lo - j.hi, i.hi - j.lo)
}

/// The host's rate relative to the server's, dθ/dx.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// The middle of what the exchanges allow, in parts per billion: positive where the host's clock is the faster one.
    pub ppb: f64,
    /// The rate is no farther from the middle than this, in parts per billion.
    pub error_ppb: f64,
}

/// The named assumptions of the hard bound. While they hold it is true; nothing on the network can break it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Assumptions {
    /// ρ: |dθ/dx| ≤ `rate_ppb` · 10⁻⁹, host relative to server. Range 1 ..= 10_000_000.
    #[serde(deserialize_with = "rate")]
    pub rate_ppb: u32,
    /// κ: |d²θ/dx²| ≤ `wander_ppb_per_s` · 10⁻⁹ per second. None: the rate may jump within ρ at any time (a clock that
    /// is steered), so only the rate box bounds it.
    pub wander_ppb_per_s: Option<u32>,
    /// d_f: no packet from server to host takes less, between the stamping points, in the server's time. Default 0,
    /// never negative.
    #[serde(deserialize_with = "delay")]
    pub min_forward: Nanos,
    /// d_b: no packet from host to server takes less, likewise. Default 0, never negative.
    #[serde(deserialize_with = "delay")]
    pub min_backward: Nanos,
    /// The packets' correctionFields are true (see [`crate::correction`]), and the least delays above are those without the
    /// time for which transparent clocks hold packets. Default: correctionFields are not regarded.
    #[serde(default)]
    pub trust_correction: bool,
    /// The packets were authenticated: that they are authentic rests on the secrecy of a key. Without, on the network.
    #[serde(default)]
    pub authenticated: bool,
}

/// Stored evidence may be damaged; with a rate of 1 and more a host's clock could stand still, and nothing would hold.
fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let ppb = u32::deserialize(deserializer)?;
    if (1..=10_000_000).contains(&ppb) {
        Ok(ppb)
    } else {
        Err(D::Error::custom("rate_ppb is not in 1 ..= 10000000"))
    }
}

fn delay<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Nanos, D::Error> {
    let delay = Nanos::deserialize(deserializer)?;
    if delay >= Nanos::ZERO { Ok(delay) } else { Err(D::Error::custom("a minimum delay is negative")) }
}

impl Default for Assumptions {
    /// 100 ppm for each of the two clocks, κ = 10⁻⁷/s, no known minimum delays.
    fn default() -> Self {
        Assumptions {
            rate_ppb: 200_000,
            wander_ppb_per_s: Some(100),
            min_forward: Nanos::ZERO,
            min_backward: Nanos::ZERO,
            trust_correction: false,
            authenticated: false,
        }
    }
}

/// Which bound sizes V and certifies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Only the named assumptions.
    Hard,
    /// Narrower, at a stated confidence and with an asymmetry budget. The hard bound where the samples do not carry it.
    Statistical {
        /// Confidence of this one bound: 0.5 ≤ confidence < 1.
        confidence: f64,
        /// The largest difference between the two ways' usual delays.
        budget: AsymmetryBudget,
    },
}

/// When a host's clock read `reading`, as a span of server instants, given that θ(`at`) lies in `theta` and that
/// |dθ/dx| ≤ `rate_ppb` · 10⁻⁹.
///
/// With f(x) = x + θ(x), the host's clock as a function of server time, f(at) lies in [at + lo, at + hi], and f's slope
/// in [1 − ρ, 1 + ρ]. So x − at, where f(x) = reading, lies between (reading − at − hi) and (reading − at − lo), each
/// divided by whichever slope moves it outwards.
pub fn locate(reading: Time<Host>, at: Time<Server>, theta: Interval, rate_ppb: u32) -> Span<Server> {
    const BILLION: i128 = 1_000_000_000;
    let rho = i128::from(rate_ppb);
    let over = |distance: i64, slope: i128, up: bool| {
        let scaled = i128::from(distance) * BILLION;
        let quotient = scaled.div_euclid(slope) + i128::from(up && scaled.rem_euclid(slope) != 0);
        Nanos::new(i64::try_from(quotient).unwrap_or(if up { i64::MAX } else { i64::MIN }))
    };
    let low = Offset::between(reading, at).get().saturating_sub(theta.hi.get());
    let high = Offset::between(reading, at).get().saturating_sub(theta.lo.get());
    let earliest = at + over(low, if low >= 0 { BILLION + rho } else { BILLION - rho }, false);
    let latest = at + over(high, if high >= 0 { BILLION - rho } else { BILLION + rho }, true);
    Span { earliest, latest }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::simulation::Clock;
    use super::*;
    use crate::random::Random;

    #[test]
    fn an_interval_is_covered_by_its_middle_and_half_width() {
        for (lo, hi) in [(-3, 4), (-4, 3), (5, 5), (-8, -5)] {
            let interval = Interval { lo: Offset::new(lo), hi: Offset::new(hi) };
            let (m, e) = (interval.middle(), interval.half_width());
            assert!(
                m - e <= interval.lo && interval.hi <= m + e && (e + e).get() <= hi - lo + 1,
                "{lo} {hi}"
            );
        }
    }

    #[test]
    fn assumptions_out_of_range_are_not_read() {
        let good = serde_json::to_value(Assumptions::default()).unwrap();
        assert_eq!(serde_json::from_value::<Assumptions>(good.clone()).unwrap(), Assumptions::default());
        for (field, value) in
            [("rate_ppb", 0), ("rate_ppb", 1_000_000_000), ("min_forward", -1), ("min_backward", -1)]
        {
            let mut bad = good.clone();
            bad[field] = value.into();
            assert!(serde_json::from_value::<Assumptions>(bad).is_err(), "{field} = {value}");
        }
    }

    proptest! {
        #[test]
        fn a_reading_is_located_where_the_clock_read_it(
            seed: u64,
            rate_ppb in 20_000u32..10_000_000,
            below in 0i64..1_000_000,
            above in 0i64..1_000_000,
            at in 0i64..100_000_000_000,
            x in 0i64..100_000_000_000,
        ) {
            let assumptions = Assumptions { rate_ppb, ..Assumptions::default() };
            let clock = Clock::within(&assumptions, 0.0, &mut Random(seed));
            let theta = Offset::between(clock.read(at).earliest, Time::from_nanos(at));
            // `read` rounds outwards, so θ(at) is at most 2 ns above.
            let theta = Interval { lo: theta - Nanos::new(below), hi: theta + Nanos::new(2 + above) };
            let (instant, reading) = (Time::from_nanos(x), clock.read(x));
            let [earlier, later] = [reading.earliest, reading.latest]
                .map(|reading| locate(reading, Time::from_nanos(at), theta, rate_ppb));
            // The clock read `reading.earliest` at or before x, and `reading.latest` at or after it.
            prop_assert!(earlier.earliest <= instant && instant <= later.latest);
            let rho = f64::from(rate_ppb) * 1e-9;
            let widest = ((below + above) as f64 + 10.0 + 2.1 * rho * (x - at).abs() as f64) / (1.0 - rho);
            prop_assert!((later.latest - earlier.earliest).get() as f64 <= widest);
        }
    }
}
