//! Clocks whose truth is known.

use std::f64::consts::TAU;

use timesync::random::Random;

pub const SECOND: i64 = 1_000_000_000;

/// How long the random walk keeps one acceleration, in seconds.
const SEGMENT: f64 = 0.5;

/// What a clock is made of, in shares of what the assumptions allow.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The largest |θ'| in ppb, 0 .. this.
    pub rate_ppb: f64,
    /// The largest |θ''| in ppb per second.
    pub wander_ppb_per_s: f64,
    /// The rate is at its limit.
    pub extreme: bool,
}

/// What happens to a clock at an instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// It jumps forward by so many ns.
    Step(f64),
    /// It stands still for so many ns of the server's time.
    Stop(i64),
    /// Its rate jumps by so many ppb.
    Rate(f64),
    /// Another boot: an entirely different offset, after so many ns without answers.
    Boot(i64),
    /// Nothing: the way to the host becomes shorter by so many ns.
    Shortcut(f64),
    /// Nothing: the transparent clocks say that they held requests (below 0: responses) for so many ns longer than they did.
    Lie(f64),
    /// Nothing: the oscillator of the host's network card runs off by so many ppb more than it can.
    Card(f64),
}

/// θ(x) = offset + rate · x + a sine (thermal) + a random walk of the rate, and at most one change.
#[derive(Clone, Debug)]
pub struct Clock {
    offset: i64,
    rate_ppb: f64,
    amplitude: f64,
    omega: f64,
    phase: f64,
    /// At the start of each segment: what the walk has added to θ (ns) and to the rate (ppb); and its acceleration.
    walk: Vec<(f64, f64, f64)>,
    change: Option<(i64, Change)>,
}

impl Clock {
    /// A clock for `seconds` seconds that keeps to `shape` until its `change`.
    pub fn new(shape: Shape, seconds: i64, change: Option<(i64, Change)>, random: &mut Random) -> Self {
        let share = random.unit();
        let omega = TAU / random.between(5.0, 300.0);
        let amplitude = share * shape.wander_ppb_per_s / (omega * omega);
        let mut walk = vec![];
        let (mut theta, mut rate) = (0.0, 0.0);
        for _ in 0..=(seconds as f64 / SEGMENT) as usize {
            // Extremes more often than not: they are what κ has to cover.
            let bias = random.between(-1.0, 1.0);
            let bias = if random.chance(0.5) { bias.signum() } else { bias };
            let acceleration = (1.0 - share) * shape.wander_ppb_per_s * bias;
            walk.push((theta, rate, acceleration));
            theta += rate * SEGMENT + acceleration * SEGMENT * SEGMENT / 2.0;
            rate += acceleration * SEGMENT;
        }
        let most = walk.iter().fold(0.0, |most: f64, (_, rate, _)| most.max(rate.abs())) + amplitude * omega;
        // Where the wander alone would exceed the rate, there is less of it.
        let share = (shape.rate_ppb / most.max(1e-9)).min(1.0);
        let amplitude = amplitude * share;
        for (theta, rate, acceleration) in &mut walk {
            (*theta, *rate, *acceleration) = (*theta * share, *rate * share, *acceleration * share);
        }
        let room = (shape.rate_ppb - most).max(0.0);
        let sign = if random.chance(0.5) { 1.0 } else { -1.0 };
        let rate_ppb = if shape.extreme { room * sign } else { random.between(-room, room) };
        let offset = random.nanos(-1 << 56, 1 << 56);
        Clock { offset, rate_ppb, amplitude, omega, phase: random.between(0.0, TAU), walk, change }
    }

    /// The server's own: the axis itself.
    pub fn server() -> Self {
        let still = Shape { rate_ppb: 0.0, wander_ppb_per_s: 0.0, extreme: false };
        Clock { offset: 0, ..Clock::new(still, 1, None, &mut Random(0)) }
    }

    /// θ at the server's instant `x`, as an integer and a rest, in ns.
    pub fn theta(&self, x: i64) -> (i64, f64) {
        let s = x as f64 * 1e-9;
        let segment = ((s / SEGMENT).max(0.0) as usize).min(self.walk.len() - 1);
        let (theta, rate, acceleration) = self.walk[segment];
        let into = s - segment as f64 * SEGMENT;
        let walked = theta + rate * into + acceleration * into * into / 2.0;
        let smooth = self.rate_ppb * s + self.amplitude * (self.omega * s + self.phase).sin() + walked;
        (self.offset, smooth + self.changed(x))
    }

    /// What the change has added to θ by then.
    fn changed(&self, x: i64) -> f64 {
        let Some((at, change)) = self.change.filter(|(at, _)| x >= *at) else { return 0.0 };
        let since = (x - at) as f64;
        match change {
            Change::Step(by) => by,
            // A little less than still, so that the clock never runs backwards whatever its drift.
            Change::Stop(long) => -since.min(long as f64) * 0.999,
            Change::Rate(ppb) => since * ppb * 1e-9,
            Change::Boot(_) => -1e10,
            Change::Shortcut(_) | Change::Lie(_) | Change::Card(_) => 0.0,
        }
    }

    /// The reading at `x`, as an integer and a rest.
    pub fn exactly(&self, x: i64) -> (i64, f64) {
        let (offset, rest) = self.theta(x);
        (x + offset, rest)
    }

    /// What the clock reads at `x`, in whole nanoseconds as clocks do.
    pub fn read(&self, x: i64) -> i64 {
        let (whole, rest) = self.exactly(x);
        whole + rest.floor() as i64
    }

    /// The first instant in `from ..= to` at which it reads `reading` or more.
    pub fn first(&self, reading: i64, mut from: i64, mut to: i64) -> i64 {
        while from < to {
            let middle = from + (to - from) / 2;
            if self.read(middle) >= reading {
                to = middle;
            } else {
                from = middle + 1;
            }
        }
        from
    }
}
