//! A machine's two clocks as its kernel shows them: the raw one, and the wall clock that is slewed and set.

use std::f64::consts::TAU;

use timesync::random::Random;
use timesync::time::{Nanos, Raw, Span, Time, Wall};
use timesync::translate::ClockReading;

use super::clock::{Clock, SECOND};

/// The kernel announces a step so long after it has made it.
const ANNOUNCED_AFTER: i64 = 5_000;
/// A reading of both clocks takes this long, to either side.
const READING: i64 = 500;
/// `CLOCK_REALTIME` − `CLOCK_MONOTONIC` is known to this.
const DISTANCE_KNOWN_TO: i64 = 600;

/// How a wall clock is disciplined, and how well it can be read.
#[derive(Clone, Copy, Debug)]
pub struct Discipline {
    /// It is slewed by up to this, in ppb: less than `limit_ppb`.
    pub slew_ppb: f64,
    /// What the kernel says it may be slewed by.
    pub limit_ppb: u32,
    /// It is set about every so many seconds. 0: never.
    pub step_s: f64,
    /// The raw clock's instant of a reading is known to twice this, in ns.
    pub reading_ns: i64,
}

#[derive(Clone, Debug)]
pub struct Machine {
    discipline: Discipline,
    base: i64,
    omega: f64,
    phase: f64,
    /// When the wall clock was set, and by how much.
    steps: Vec<(i64, i64)>,
}

impl Machine {
    pub fn new(discipline: Discipline, seconds: i64, random: &mut Random) -> Self {
        let mut steps = Vec::new();
        let mut x = if discipline.step_s > 0.0 { SECOND } else { i64::MAX };
        while x < seconds * SECOND {
            let size = random.nanos(1_000_000, 2_000_000_000);
            steps.push((x, if random.chance(0.5) { size } else { -size }));
            x += (random.exponential(discipline.step_s) * SECOND as f64) as i64 + SECOND / 10;
        }
        let omega = TAU / random.between(4.0, 60.0);
        Machine {
            discipline,
            base: random.nanos(1 << 60, 3 << 59),
            omega,
            phase: random.between(0.0, TAU),
            steps,
        }
    }

    fn stepped(&self, x: i64) -> (u32, i64) {
        let made = self.steps.iter().take_while(|(at, _)| *at <= x);
        made.fold((0, 0), |(count, sum), (_, by)| (count + 1, sum + by))
    }

    /// What the wall clock says more than the raw one, as an integer and a rest.
    pub fn wall_ahead(&self, x: i64) -> (i64, f64) {
        // The integral of slew · sin(ω t).
        let slew = self.discipline.slew_ppb / self.omega;
        let slewed = -slew * (self.omega * x as f64 * 1e-9 + self.phase).cos();
        (self.base + self.stepped(x).1, slewed)
    }

    /// The wall clock at `x`, in whole nanoseconds.
    pub fn wall(&self, x: i64, raw: (i64, f64)) -> Time<Wall> {
        let (ahead, rest) = self.wall_ahead(x);
        Time::from_nanos(raw.0 + ahead + (raw.1 + rest).floor() as i64)
    }

    /// Both clocks, read at `x`.
    pub fn reading(&self, x: i64, raw: (i64, f64), random: &mut Random) -> ClockReading {
        let mut unknown = || Nanos::new(random.nanos(0, self.discipline.reading_ns.max(1)));
        let whole = Time::<Raw>::from_nanos(raw.0 + raw.1.floor() as i64);
        let raw_span = Span { earliest: whole - unknown(), latest: whole + unknown() };
        let ahead = self.stepped(x).1;
        let known = |x: i64| self.stepped(x - ANNOUNCED_AFTER).0;
        ClockReading {
            wall: self.wall(x, raw),
            raw: raw_span,
            ahead_of_monotonic: (
                Nanos::new(self.base + ahead - DISTANCE_KNOWN_TO),
                Nanos::new(self.base + ahead + DISTANCE_KNOWN_TO),
            ),
            slew_ppb: self.discipline.limit_ppb,
            steps_before: known(x - READING),
            steps_after: known(x + READING),
        }
    }
}

/// The server's raw clock is the axis itself.
pub fn server_raw(x: i64) -> (i64, f64) {
    (x, 0.0)
}

/// A host's raw clock.
pub fn host_raw(clock: &Clock, x: i64) -> (i64, f64) {
    clock.exactly(x)
}
