//! A network card's clock (PHC) that somebody steps and steers, read and translated as the product does it.

use timesync::phc::{History, PhcReading};
use timesync::random::Random;
use timesync::time::{Nanos, Raw, Span, Time};

use super::clock::{Clock, SECOND};

/// What is done to a card's clock.
#[derive(Clone, Copy, Debug)]
pub struct Handling {
    /// It is stepped about every so many seconds, by 20 ns to 1 s. 0: never.
    pub step_s: f64,
    /// Another frequency is set about every so many seconds, up to what ptp4l and the cards do. 0: never.
    pub set_s: f64,
}

/// Its oscillator and the processor's differ by less than this (timesync/src/hardware.rs).
const TOLERANCE_PPB: u32 = 200_000;
/// Its clock is read this often (timesync/src/hardware.rs), or a little later.
const READ_EVERY: i64 = 10_000_000;
/// A reading before a packet may be so old (timesync/src/hardware.rs).
const FRESH: i64 = 200_000;
/// A reading is known to this, on either side, and a frequency is read so long before and after it.
const READING: i64 = 150;
/// Its stamps are off by no more than this: what the product allows for is 50.
const STAMP_ERROR: i64 = 40;
/// Nobody changes a clock twice within the readings around one packet.
const APART: i64 = SECOND / 20;

/// From a server's instant on, until the next one.
#[derive(Clone, Copy, Debug)]
struct Leg {
    from: i64,
    /// The machine's raw clock then,
    raw: i64,
    /// and the card's.
    shows: i64,
    /// The frequency that it is set to.
    set_ppb: i64,
    /// What its oscillator adds to that.
    error_ppb: i64,
}

/// A card's clock in one machine, and what that machine has read of it.
#[derive(Clone, Debug)]
pub struct Card {
    /// The machine's raw clock.
    clock: Clock,
    legs: Vec<Leg>,
    history: History,
    /// The newest reading.
    read_at: i64,
}

impl Card {
    /// A card of a machine with this raw clock, for so many seconds. From `fault.0` on, its oscillator is off by `fault.1`
    /// ppb more than a card's can be.
    pub fn new(
        handling: Handling,
        seconds: i64,
        fault: Option<(i64, f64)>,
        clock: Clock,
        random: &mut Random,
    ) -> Self {
        let within = i64::from(TOLERANCE_PPB) * 95 / 100;
        let first = Leg {
            from: i64::MIN,
            raw: clock.read(0),
            shows: random.nanos(0, 1 << 60),
            set_ppb: random.nanos(-50_000, 50_000),
            error_ppb: random.nanos(-within, within),
        };
        let mut changes: Vec<(i64, Change)> =
            fault.map(|(at, ppb)| (at, Change::Fault(ppb))).into_iter().collect();
        for (every, is_step) in [(handling.step_s, true), (handling.set_s, false)] {
            let mut x = SECOND;
            while every > 0.0 && x < seconds * SECOND {
                x += APART + (random.exponential(every) * SECOND as f64) as i64;
                changes.push((x, Change::draw(is_step, random)));
            }
        }
        changes.sort_by_key(|(at, _)| *at);
        changes.dedup_by(|later, earlier| later.0 - earlier.0 < APART);
        let history = History::new(TOLERANCE_PPB);
        let mut card = Card { clock, legs: vec![first], history, read_at: i64::MIN };
        for (from, change) in changes {
            let raw = card.clock.read(from);
            let leg = *card.leg(from);
            let on = Leg { from, raw, shows: leg.at(raw), ..leg };
            card.legs.push(match change {
                Change::Step(by) => Leg { shows: on.shows + by, ..on },
                Change::Set(set_ppb) => Leg { set_ppb, ..on },
                Change::Fault(ppb) => Leg { error_ppb: on.error_ppb + ppb as i64, ..on },
            });
        }
        card
    }

    fn leg(&self, x: i64) -> &Leg {
        let after = self.legs.partition_point(|leg| leg.from <= x);
        &self.legs[after.saturating_sub(1)]
    }

    /// Reads it at `x`, after the readings that its thread made until then.
    pub fn read(&mut self, x: i64, random: &mut Random) {
        if self.read_at == i64::MIN {
            self.read_at = x - SECOND / 2;
        }
        loop {
            let next = self.read_at + READ_EVERY + random.nanos(0, READ_EVERY / 8);
            if next >= x {
                break;
            }
            self.push(next, random);
        }
        if self.read_at < x {
            self.push(x, random);
        }
    }

    fn push(&mut self, x: i64, random: &mut Random) {
        self.read_at = x;
        let raw = self.clock.read(x);
        let (early, late) = (random.nanos(0, READING), random.nanos(1, READING));
        self.history.push(PhcReading {
            phc: Time::from_nanos(self.leg(x).at(raw)),
            raw: Span { earliest: Time::from_nanos(raw - early), latest: Time::from_nanos(raw + late) },
            frequency_ppb: (self.leg(x - READING).set_ppb, self.leg(x + READING).set_ppb),
        });
    }

    /// Sees to a reading just before a packet that is sent at `x`.
    pub fn prepare(&mut self, x: i64, random: &mut Random) {
        if x.saturating_sub(self.read_at) > FRESH {
            self.read(x, random);
        }
    }

    /// The stamp of a packet that passes at `x`, on the raw clock as far as the readings of now tell; `since` is an
    /// instant before the packet, where the machine knows one.
    pub fn stamp(&self, x: i64, since: Option<i64>, random: &mut Random) -> Option<Span<Raw>> {
        let error = random.nanos(-STAMP_ERROR, STAMP_ERROR + 1);
        let shown = Time::from_nanos(self.leg(x).at(self.clock.read(x))) + Nanos::new(error);
        self.history.translate(shown, since.map(|x| Time::from_nanos(self.clock.read(x))))
    }
}

impl Leg {
    /// What the card shows when the raw clock reads `raw`.
    fn at(&self, raw: i64) -> i64 {
        let rate = 1_000_000_000 + i128::from(self.set_ppb + self.error_ppb);
        self.shows + (i128::from(raw - self.raw) * rate).div_euclid(1_000_000_000) as i64
    }
}

#[derive(Clone, Copy)]
enum Change {
    Step(i64),
    Set(i64),
    Fault(f64),
}

impl Change {
    fn draw(is_step: bool, random: &mut Random) -> Self {
        let sign = if random.chance(0.5) { 1.0 } else { -1.0 };
        // Small ones as often as large ones.
        let size = |low: f64, high: f64, random: &mut Random| sign * low * (high / low).powf(random.unit());
        if is_step {
            Change::Step(size(20.0, 1e9, random) as i64)
        } else {
            // 62 000 ppm is the most that an i210 takes.
            Change::Set(size(10.0, 6.2e7, random) as i64)
        }
    }
}
