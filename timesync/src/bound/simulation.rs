//! A host's clock whose truth is known, and packets that obey only what the assumptions say. For tests.

use std::f64::consts::TAU;

use super::{Assumptions, Window};
use crate::exchange::{Backward, Exchange, Forward};
use crate::random::Random;
use crate::time::{Host, Server, Span, Time};

/// How long the random walk keeps one acceleration, in seconds.
const SEGMENT: f64 = 0.5;

/// θ(x) = offset + rate·x + a sine + a random walk of the rate, for x in 0 ..= 100 s.
#[derive(Clone, Debug)]
pub struct Clock {
    offset: i64,
    rate_ppb: f64,
    amplitude: f64,
    omega: f64,
    phase: f64,
    /// At the start of each segment: what the walk has added to θ (ns) and to the rate (ppb); and its acceleration.
    walk: Vec<(f64, f64, f64)>,
}

impl Clock {
    pub const SECONDS: i64 = 100;

    /// A clock that keeps |θ'| ≤ ρ and |θ''| ≤ κ, and comes close to both. `steadiness` 0 uses all of κ, 1 none.
    pub fn within(assumptions: &Assumptions, steadiness: f64, random: &mut Random) -> Self {
        let kappa = f64::from(assumptions.wander_ppb_per_s.unwrap_or(0)) * (1.0 - steadiness);
        let share = random.unit();
        let omega = TAU / random.between(5.0, 200.0);
        let amplitude = share * kappa / (omega * omega);
        let mut walk = vec![];
        let (mut theta, mut rate) = (0.0, 0.0);
        for _ in 0..=(Self::SECONDS as f64 / SEGMENT) as usize {
            // Extremes more often than not: they are what κ has to cover.
            let bias = if random.chance(0.5) {
                random.between(-1.0, 1.0).signum()
            } else {
                random.between(-1.0, 1.0)
            };
            let acceleration = (1.0 - share) * kappa * bias;
            walk.push((theta, rate, acceleration));
            theta += rate * SEGMENT + acceleration * SEGMENT * SEGMENT / 2.0;
            rate += acceleration * SEGMENT;
        }
        let most = walk.iter().fold(0.0, |most: f64, (_, rate, _)| most.max(rate.abs())) + amplitude * omega;
        let room = f64::from(assumptions.rate_ppb) - most;
        assert!(room >= 0.0, "the wander alone exceeds the rate limit");
        Clock {
            offset: random.between(-1e17, 1e17) as i64,
            rate_ppb: if random.chance(0.3) {
                room * [1.0, -1.0][(random.bits() & 1) as usize]
            } else {
                random.between(-room, room)
            },
            amplitude,
            omega,
            phase: random.between(0.0, TAU),
            walk,
        }
    }

    /// θ at `at`, as an integer and a rest, in ns.
    pub fn theta(&self, at: i64) -> (i64, f64) {
        let x = at as f64 * 1e-9;
        let segment = ((x / SEGMENT).max(0.0) as usize).min(self.walk.len() - 1);
        let (theta, rate, acceleration) = self.walk[segment];
        let into = x - segment as f64 * SEGMENT;
        let walked = theta + rate * into + acceleration * into * into / 2.0;
        (self.offset, self.rate_ppb * x + self.amplitude * (self.omega * x + self.phase).sin() + walked)
    }

    /// θ'(x) in ppb.
    pub fn rate(&self, at: i64) -> f64 {
        let x = at as f64 * 1e-9;
        let segment = ((x / SEGMENT).max(0.0) as usize).min(self.walk.len() - 1);
        let (_, rate, acceleration) = self.walk[segment];
        let sine = self.amplitude * self.omega * (self.omega * x + self.phase).cos();
        self.rate_ppb + sine + rate + acceleration * (x - segment as f64 * SEGMENT)
    }

    /// The two nanoseconds around the host's clock at the server's instant `at`.
    pub fn read(&self, at: i64) -> Span<Host> {
        let (offset, rest) = self.theta(at);
        // A millionth of a nanosecond is more than the rounding of `rest`.
        let (low, high) = ((rest - 1e-6).floor() as i64, (rest + 1e-6).ceil() as i64);
        Span { earliest: Time::from_nanos(at + offset + low), latest: Time::from_nanos(at + offset + high) }
    }

    /// Whether the true θ at `at` is in lo ..= hi, to a millionth of a nanosecond.
    pub fn is_within(&self, interval: super::Interval, at: i64) -> bool {
        let (offset, rest) = self.theta(at);
        ((interval.lo.get() - offset) as f64) <= rest + 1e-6
            && rest - 1e-6 <= (interval.hi.get() - offset) as f64
    }
}

/// What the network and the stamps do to an exchange.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// The smallest delay from server to host, in ns.
    pub forward: f64,
    /// The smallest delay back.
    pub backward: f64,
    /// The mean of the queues on the way to the host.
    pub forward_queue: f64,
    /// And back.
    pub backward_queue: f64,
    /// The largest width of a stamp's interval.
    pub stamp: f64,
    /// How many packets are lost.
    pub loss: f64,
}

impl Path {
    pub const QUIET: Path = Path {
        forward: 500.0,
        backward: 500.0,
        forward_queue: 0.0,
        backward_queue: 0.0,
        stamp: 0.0,
        loss: 0.0,
    };

    /// An exchange that starts at the server's instant `at`.
    pub fn exchange(&self, clock: &Clock, at: i64, random: &mut Random) -> Exchange {
        let arrives = at + (self.forward + random.exponential(self.forward_queue)).ceil() as i64;
        let leaves = arrives + random.between(1e3, 1e6) as i64;
        let returns = leaves + (self.backward + random.exponential(self.backward_queue)).ceil() as i64;
        let forward = Forward {
            sent: widened(Span::<Server>::exact(Time::from_nanos(at)), self.stamp, random),
            received: widened(clock.read(arrives), self.stamp, random),
        };
        let backward = Backward {
            sent: widened(clock.read(leaves), self.stamp, random),
            received: widened(Span::exact(Time::from_nanos(returns)), self.stamp, random),
        };
        let lost = |random: &mut Random| random.chance(self.loss);
        Exchange {
            forward: (!lost(random)).then_some(forward),
            backward: (!lost(random)).then_some(backward),
        }
    }
}

fn widened<T>(span: Span<T>, width: f64, random: &mut Random) -> Span<T> {
    let mut by = || crate::time::Nanos::new(random.between(0.0, width) as i64);
    Span { earliest: span.earliest - by(), latest: span.latest + by() }
}

/// A window of `count` exchanges at random instants between `from` and `to` (ns on the server's timeline).
pub fn window(
    assumptions: Assumptions,
    clock: &Clock,
    path: Path,
    count: usize,
    (from, to): (i64, i64),
    random: &mut Random,
) -> Window {
    let mut window = Window::new(assumptions, count);
    for _ in 0..count {
        let at = random.between(from as f64, to as f64) as i64;
        window.push(&path.exchange(clock, at, random));
    }
    window
}
