//! The ways between server and host: whatever delays packets.

use timesync::random::Random;

use super::clock::SECOND;

/// What a packet waits for on its way.
#[derive(Clone, Copy, Debug)]
pub enum Queue {
    /// Exponential, with this mean in ns.
    Steady(f64),
    /// Two means, each kept for a time that is exponential with the mean of so many seconds.
    Bursty { calm: f64, busy: f64, calm_s: f64, busy_s: f64 },
    /// A heavy tail of this scale, cut at 20 ms.
    Heavy(f64),
}

/// One direction. Delays in ns.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub least: f64,
    pub queue: Queue,
    /// What the first packet after a pause takes longer.
    pub cold: f64,
    /// For how long transparent clocks hold a packet: at least, and in the mean on top of that. This is not part of the
    /// delay here.
    pub held: (f64, f64),
    /// The least delay swings by this much, with this period in seconds.
    pub wave: (f64, f64),
    /// The least delay changes by up to this much, every so many seconds.
    pub reroute: (f64, f64),
}

impl Way {
    pub const fn steady(least: f64, mean: f64) -> Self {
        Way {
            least,
            queue: Queue::Steady(mean),
            cold: 0.0,
            held: (0.0, 0.0),
            wave: (0.0, 1.0),
            reroute: (0.0, 1.0),
        }
    }

    /// The delay's lower quartile where a share `cold` of the packets comes after a pause: least and most over time. A
    /// queue's state may outlast all the samples that a bound rests on.
    fn quartile(&self, cold: f64) -> (f64, f64) {
        let (calm, busy) = match self.queue {
            Queue::Bursty { calm, busy, .. } => (Queue::Steady(calm), Queue::Steady(busy)),
            queue => (queue, queue),
        };
        let wait = |queue: Queue| {
            let (mut low, mut high) = (0.0, 1e8);
            for _ in 0..80 {
                let middle = (low + high) / 2.0;
                let share = (1.0 - cold) * waiting(queue, middle) + cold * waiting(queue, middle - self.cold);
                if share < 0.25 { low = middle } else { high = middle }
            }
            low
        };
        let swing = self.wave.0.abs();
        (self.least + wait(calm) - swing, self.least + wait(busy) + swing + self.reroute.0.max(0.0))
    }
}

/// The share of packets that wait no longer than `wait`.
fn waiting(queue: Queue, wait: f64) -> f64 {
    match queue {
        _ if wait <= 0.0 => 0.0,
        Queue::Steady(mean) | Queue::Bursty { calm: mean, .. } => 1.0 - (-wait / mean.max(1e-9)).exp(),
        Queue::Heavy(scale) => 1.0 - (1.0 + wait / scale).powf(-1.5),
    }
}

/// An honest asymmetry budget: the two ways' lower quartiles never differ by more, whatever share of the packets comes
/// after a pause, and whenever each was sampled.
pub fn honest_budget(forward: &Way, backward: &Way) -> i64 {
    let differ = |cold: f64| {
        let ((fl, fh), (bl, bh)) = (forward.quartile(cold), backward.quartile(cold));
        (fh - bl).max(bh - fl)
    };
    let worst = (0..=10).map(|tenths| differ(f64::from(tenths) / 10.0)).fold(0.0, f64::max);
    // Delays are in whole nanoseconds, and last up to ρ longer by the host's clock.
    (worst * 1.001).ceil() as i64 + 2
}

/// A way, and the state of its queue.
#[derive(Clone, Debug)]
pub struct Traffic {
    way: Way,
    phase: f64,
    busy: bool,
    /// The queue keeps its state until then,
    until: i64,
    /// and the route its delay,
    routed_until: i64,
    /// which is longer by this.
    detour: f64,
}

impl Traffic {
    pub fn new(way: Way, random: &mut Random) -> Self {
        let busy = match way.queue {
            Queue::Bursty { calm_s, busy_s, .. } => random.chance(busy_s / (calm_s + busy_s)),
            Queue::Steady(_) | Queue::Heavy(_) => false,
        };
        Traffic { way, phase: random.unit(), busy, until: 0, routed_until: 0, detour: 0.0 }
    }

    /// The delay of a packet that leaves at `x`, at least 1 ns.
    pub fn delay(&mut self, x: i64, cold: bool, random: &mut Random) -> i64 {
        let queued = match self.way.queue {
            Queue::Steady(mean) => random.exponential(mean),
            Queue::Heavy(scale) => random.heavy(scale).min(2e7),
            Queue::Bursty { calm, busy, calm_s, busy_s } => {
                while self.until <= x {
                    self.busy = !self.busy;
                    let mean = if self.busy { busy_s } else { calm_s };
                    self.until += (random.exponential(mean) * SECOND as f64) as i64 + 1;
                }
                random.exponential(if self.busy { busy } else { calm })
            }
        };
        while self.routed_until <= x {
            let (most, every) = self.way.reroute;
            self.detour = random.between(0.0, most);
            self.routed_until += (random.exponential(every) * SECOND as f64) as i64 + SECOND / 100;
        }
        let (swing, period) = self.way.wave;
        let swing = swing * (std::f64::consts::TAU * (x as f64 * 1e-9 / period + self.phase)).sin();
        let cold = if cold { self.way.cold } else { 0.0 };
        ((self.way.least + self.detour + swing + cold + queued).ceil() as i64).max(1)
    }

    /// For how long transparent clocks hold a packet, and what they say of that in 2⁻¹⁶ ns: their clocks run within
    /// `rate_ppb` of the server's.
    pub fn held(&self, rate_ppb: u32, random: &mut Random) -> (i64, i64) {
        let (least, mean) = self.way.held;
        let held = (least + random.exponential(mean)) as i64;
        let off = random.between(-1.0, 1.0) * f64::from(rate_ppb) * 1e-9;
        (held, ((1.0 + off) * held as f64 * 65_536.0) as i64)
    }
}
