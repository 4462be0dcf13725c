//! A host's own bound for other programs on it: how far its `CLOCK_REALTIME` is from the server's.
//!
//! Only the server knows the bound. About once a second it tells each host that wants it *what the server's wall clock
//! read when the host's own clock read so much*, and how the two run against each other ([`ServerTime`]). The host carries
//! that on by its own clock, reads its wall clock, and publishes the difference ([`Publisher`]).
//!
//! # Why the published bound is true
//!
//! C is the host's `CLOCK_MONOTONIC_RAW` and θ = C − x its offset from the server's, x. W and S are the wall clocks of host
//! and server. What is wanted is D = W − S.
//!
//! - *The statement.* The server reads S = `wall` at an instant between x₁ and x₂. C is monotone, so C read between
//!   x₁ + lo(x₁) and x₂ + hi(x₂) then, with the hard bound [lo, hi] on θ: that is `at`. Against C, S runs at
//!   (1 + f)/(1 + θ′), where f is S's rate against x, measured over the last seconds, and θ′ lies where the hard bound's
//!   program allows. Both intervals together are `rate`.
//! - *Carried on.* e after `at`, S = wall + e·(1 + rate) to within e·(error of rate + budget) + κ′·e²/2. κ is the hard
//!   bound's limit for θ″; κ′ = 1.03·κ, as |d/dθ′ (1 + f)/(1 + θ′)| < 1.03 for |θ′| ≤ 1 %. The budget is the one new
//!   assumption: neither wall clock is steered away from its measured rate by more than `max_drift`.
//! - *Compared.* The host reads W and C together, so D is known to the nanosecond as well as S is. Nothing is assumed of
//!   how W came there: a wall clock that was set is off by more, and the bound says so.
//! - *Between two publications* a reader lets the bound grow with `CLOCK_MONOTONIC`: at the rate by which W and S were seen
//!   to part, with all its errors, and the budget of both wall clocks ([`Published::growth_ppb`]). It is 1 % more than
//!   that, since `CLOCK_MONOTONIC` itself is slewed.
//!
//! The bound is withdrawn, not stretched, where its ground is gone: the server is silent for [`MAX_AGE`], the machine was
//! suspended (C stood still: the server must have heard of it before it is believed again), W was set since the last
//! publication, or a new statement or reading contradicts what was published, which proves that an assumption broke. What
//! a reader saw in the moments before that, no publisher can take back: up to a publication's interval after W was set or
//! steered, up to a second after S was.

pub mod chrony;
pub mod clockbound;
mod shell;

use serde::{Deserialize, Serialize};

pub use shell::{Outlets, PublishError, PublisherThread};

use crate::bound::WindowError;
use crate::identity::Incarnation;
use crate::source::Observation;
use crate::time::{Host, Nanos, Server, Span, Time, Wall};
use crate::translate::ClockReading;

/// A statement that is older is not used any more, and a publication is void after as long.
pub const MAX_AGE: Nanos = Nanos::from_millis(5_000);
/// A rate is measured over at least so long, and at most over twice as long if it is asked for often.
const RATE_OVER: Nanos = Nanos::from_millis(1_000);

/// How fast one clock runs against another, beyond 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// In parts per billion.
    pub ppb: i64,
    /// It is off by no more than this, in parts per billion.
    pub error_ppb: u32,
}

/// What the server's wall clock read when the host's own clock did, and how it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTime {
    /// The run of the host's daemon whose clock is meant.
    pub host: Incarnation,
    /// How often that host was suspended, as of the exchanges that this comes from.
    pub suspends: u32,
    /// Who says so.
    pub server: Incarnation,
    /// When, by the host's clock.
    pub at: Span<Host>,
    /// What the server's `CLOCK_REALTIME` read then.
    pub wall: Time<Wall>,
    /// How that runs against the host's clock.
    pub rate: Rate,
    /// κ of the hard bound: how fast this may change, in ppb per second. 0 where the rate's error covers any change.
    pub wander_ppb_per_s: u32,
}

impl ServerTime {
    /// What `server` may tell a host that it has observed so: `reading` is of the server's own clocks, `wall_rate` the
    /// rate of its wall clock against its raw one.
    ///
    /// # Errors
    /// [`WindowError`], as of the hard bound.
    pub fn of(
        observation: &Observation,
        server: Incarnation,
        reading: &ClockReading,
        wall_rate: Rate,
    ) -> Result<Self, WindowError> {
        let window = &observation.window;
        let (from, to): (Time<Server>, Time<Server>) = (
            Time::from_nanos(reading.raw.earliest.as_nanos()),
            Time::from_nanos(reading.raw.latest.as_nanos()),
        );
        let drift = window.drift(to)?;
        let [f, f_error] = [wall_rate.ppb as f64, f64::from(wall_rate.error_ppb)];
        // The two corners of (1 + f)/(1 + θ') − 1, in ppb. An f64 has seven digits more than are used here.
        let corner = |f: f64, drift: f64| ((1.0 + f * 1e-9) / (1.0 + drift * 1e-9) - 1.0) * 1e9;
        let least = corner(f - f_error, drift.ppb + drift.error_ppb);
        let most = corner(f + f_error, drift.ppb - drift.error_ppb);
        let middle = f64::midpoint(least, most).round();
        let error = (most - middle).max(middle - least).ceil() + 1.0;
        Ok(ServerTime {
            host: observation.incarnation,
            suspends: observation.suspends,
            server,
            at: Span { earliest: from + window.hard(from)?.lo, latest: to + window.hard(to)?.hi },
            wall: reading.wall,
            // `as` saturates; rates of 10 % and more are refused by whoever hears of them.
            rate: Rate { ppb: middle as i64, error_ppb: error as u32 },
            wander_ppb_per_s: window.assumptions().wander_ppb_per_s.unwrap_or(0),
        })
    }

    /// What the server's wall clock read when the host's clock read an instant in `raw`, if neither strays by more than
    /// `budget_ppb` from its rate. Exact integers; see the head of this file.
    fn carried(&self, raw: Span<Host>, budget_ppb: u32) -> Span<Wall> {
        const BILLION: i128 = 1_000_000_000;
        let least = i128::from((raw.earliest - self.at.latest).get());
        let most = i128::from((raw.latest - self.at.earliest).get());
        let farthest = least.abs().max(most.abs());
        let rated = |distance: i128| distance + (distance * i128::from(self.rate.ppb)).div_euclid(BILLION);
        let strays = farthest * (i128::from(self.rate.error_ppb) + i128::from(budget_ppb)) / BILLION;
        // κ' · e² / 2, in ns: ppb/s · ns² = 10⁻¹⁸ · ns.
        let wanders =
            i128::from(self.wander_ppb_per_s) * farthest * farthest / 2 * 103 / 100 / (BILLION * BILLION);
        // One for each division above, and one because a clock shows only its whole nanoseconds.
        let doubt = strays + wanders + 4;
        let clamp = |nanos: i128| {
            Nanos::new(i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }))
        };
        Span {
            earliest: self.wall + clamp(rated(least) - doubt),
            latest: self.wall + clamp(rated(most) + doubt),
        }
    }
}

/// Measures the rate of a machine's `CLOCK_REALTIME` against its `CLOCK_MONOTONIC_RAW` over the last second or two.
#[derive(Clone, Copy, Debug, Default)]
pub struct WallRate {
    anchors: Option<(ClockReading, ClockReading)>,
}

impl WallRate {
    /// The mean rate up to `now`. None for the first second, and after the wall clock was set.
    pub fn measure(&mut self, now: &ClockReading) -> Option<Rate> {
        let (older, newer) = match self.anchors {
            Some((older, newer)) if older.steps_before == now.steps_after => (older, newer),
            _ => (*now, *now),
        };
        let turn = now.raw.earliest - newer.raw.latest >= RATE_OVER;
        self.anchors = Some(if turn { (newer, *now) } else { (older, newer) });
        let least = (now.raw.earliest - older.raw.latest).get();
        if least < RATE_OVER.get() {
            return None;
        }
        let most = (now.raw.latest - older.raw.earliest).get();
        let went = (now.wall - older.wall).get();
        let ppb = |went: i64, took: i64| i128::from(went - took) * 1_000_000_000 / i128::from(took);
        let (slowest, fastest) = (ppb(went - 1, most), ppb(went + 1, least));
        let middle = (slowest + fastest) / 2;
        let error = (fastest - middle).max(middle - slowest) + 2;
        Some(Rate { ppb: i64::try_from(middle).ok()?, error_ppb: u32::try_from(error).ok()? })
    }
}

/// Why a statement is not believed. Each is a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disbelief {
    /// It is about another run of the daemon.
    #[error("the statement is for another run of this host's daemon; it has restarted since")]
    Restarted,
    /// The server has not heard of the last suspend.
    #[error("this host was suspended since the exchanges that the statement comes from")]
    Suspended,
    /// It is about the future, or too long ago.
    #[error("the statement holds for another time than now")]
    Untimely,
    /// Rates beyond anything that clocks do.
    #[error("the statement's rates make no sense")]
    Senseless,
}

/// Why there is no bound now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawn {
    /// The server has said nothing for [`MAX_AGE`], or the host has just begun to look at its clocks.
    Unknown,
    /// A suspend, a step, or a contradiction.
    Disrupted,
}

/// The host's `CLOCK_REALTIME` against the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// When, by the host's `CLOCK_REALTIME`.
    pub wall: Time<Wall>,
    /// When, by the host's `CLOCK_MONOTONIC`: not later than this reading of it.
    pub monotonic: Nanos,
    /// Host less server, at least and at most.
    pub offset: (Nanos, Nanos),
    /// How fast that may grow on either side, in ns for each second of `CLOCK_MONOTONIC`.
    pub growth_ppb: u32,
}

impl Published {
    /// The host's `CLOCK_REALTIME` was within this of the server's.
    pub fn bound(&self) -> Nanos {
        self.offset.0.abs().max(self.offset.1.abs())
    }

    /// Whether a later publication, `elapsed` afterwards, can be true if this one was.
    fn allows(&self, later: (Nanos, Nanos), elapsed: Nanos) -> bool {
        let growth = i128::from(self.growth_ppb) * i128::from(elapsed.get()) / 1_000_000_000 + 1;
        let growth = Nanos::new(i64::try_from(growth).unwrap_or(i64::MAX));
        later.0 <= self.offset.1 + growth && later.1 >= self.offset.0 - growth
    }
}

/// Decides what may be published. Does no I/O and reads no clock.
#[derive(Clone, Debug)]
pub struct Publisher {
    host: Incarnation,
    max_drift_ppb: u32,
    statement: Option<ServerTime>,
    /// The statement contradicted the one before: only the next one shows which of them can be built on.
    doubted: bool,
    rate: WallRate,
    last: Option<Published>,
    steps: Option<u32>,
}

impl Publisher {
    /// For the daemon `host`. `max_drift_ppb`: neither wall clock is steered away from its measured rate by more.
    pub fn new(host: Incarnation, max_drift_ppb: u32) -> Self {
        let rate = WallRate::default();
        Publisher { host, max_drift_ppb, statement: None, doubted: false, rate, last: None, steps: None }
    }

    /// Hears a statement at `now`, the machine having been suspended `suspends` times.
    ///
    /// # Errors
    /// [`Disbelief`]; then nothing has changed.
    pub fn hear(&mut self, told: ServerTime, now: &ClockReading, suspends: u32) -> Result<(), Disbelief> {
        const SENSIBLE_PPB: u64 = 100_000_000;
        if told.host != self.host {
            return Err(Disbelief::Restarted);
        }
        if told.suspends != suspends {
            return Err(Disbelief::Suspended);
        }
        let raw = host(now);
        // All of `at` may not lie in the past yet: it is as wide as the bound, and the statement's way may be short.
        if told.at.earliest > raw.latest || raw.latest - told.at.earliest > MAX_AGE {
            return Err(Disbelief::Untimely);
        }
        if told.rate.ppb.unsigned_abs() > SENSIBLE_PPB || u64::from(told.rate.error_ppb) > SENSIBLE_PPB {
            return Err(Disbelief::Senseless);
        }
        self.doubted = self.statement.is_some_and(|before| {
            let expected = before.carried(told.at, self.max_drift_ppb);
            before.suspends == told.suspends && (told.wall < expected.earliest || told.wall > expected.latest)
        });
        if self.doubted {
            tracing::warn!(
                "the server's CLOCK_REALTIME is not where it was said to be going: it was set, or steered by more than \
                 publish.max_drift_ppm"
            );
        }
        self.statement = Some(told);
        Ok(())
    }

    /// The statement that is built on, if there is one.
    pub fn statement(&self) -> Option<&ServerTime> {
        self.statement.as_ref()
    }

    /// What may be published at `now`, the machine having been suspended `suspends` times.
    ///
    /// # Errors
    /// [`Withdrawn`]: what was published before must not be relied on any more.
    pub fn publish(&mut self, now: &ClockReading, suspends: u32) -> Result<Published, Withdrawn> {
        let rate = self.rate.measure(now);
        let result = self.decide(now, suspends, rate);
        self.last = result.ok();
        result
    }

    fn decide(
        &mut self,
        now: &ClockReading,
        suspends: u32,
        rate: Option<Rate>,
    ) -> Result<Published, Withdrawn> {
        let stepped = self.steps.replace(now.steps_after).is_some_and(|steps| steps != now.steps_after);
        // A step within the reading itself leaves open on which side of it the wall clock was read.
        if stepped || now.steps_before != now.steps_after {
            return Err(Withdrawn::Disrupted);
        }
        let told = self.statement.ok_or(Withdrawn::Unknown)?;
        if told.suspends != suspends || self.doubted {
            return Err(Withdrawn::Disrupted);
        }
        let raw = host(now);
        if raw.latest - told.at.earliest > MAX_AGE {
            return Err(Withdrawn::Unknown);
        }
        let rate = rate.ok_or(Withdrawn::Unknown)?;
        let server = told.carried(raw, self.max_drift_ppb);
        // The clock shows its whole nanoseconds: it may be short of the next one.
        let offset = (now.wall - server.latest, now.wall - server.earliest + Nanos::new(1));
        let published = Published {
            wall: now.wall,
            monotonic: Nanos::new(now.wall.as_nanos()) - now.ahead_of_monotonic.1,
            offset,
            growth_ppb: self.growth(&told, rate),
        };
        if let Some(last) = self.last
            && !last.allows(offset, published.monotonic - last.monotonic)
        {
            tracing::warn!("CLOCK_REALTIME was steered by more than publish.max_drift_ppm");
            // Its rate is another one now, and the mean of both says nothing of what comes.
            self.rate = WallRate::default();
            return Err(Withdrawn::Disrupted);
        }
        Ok(published)
    }

    /// See the head of this file. The statement's rate may have wandered since it was made, and wanders on until the
    /// publication is void.
    fn growth(&self, told: &ServerTime, rate: Rate) -> u32 {
        let seconds = 2 * MAX_AGE.get() / 1_000_000_000;
        let wandered = i64::from(told.wander_ppb_per_s) * seconds;
        let errors =
            i64::from(rate.error_ppb) + i64::from(told.rate.error_ppb) + 2 * i64::from(self.max_drift_ppb);
        let sum = (rate.ppb - told.rate.ppb).abs() + errors + wandered;
        // For CLOCK_MONOTONIC's own slew, and the products of rates that a sum leaves out.
        u32::try_from(sum + sum / 100 + 1).unwrap_or(u32::MAX)
    }
}

/// A real host's own timeline is its raw clock; one that is simulated publishes nothing.
fn host(reading: &ClockReading) -> Span<Host> {
    let on_host = |at: Time<crate::time::Raw>| Time::from_nanos(at.as_nanos());
    Span { earliest: on_host(reading.raw.earliest), latest: on_host(reading.raw.latest) }
}

#[cfg(test)]
mod tests;
