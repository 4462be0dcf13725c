//! From a `CLOCK_REALTIME` timestamp to `CLOCK_MONOTONIC_RAW`.
//!
//! The kernel stamps packets by `CLOCK_REALTIME`, which is slewed and set; the bound lives on `CLOCK_MONOTONIC_RAW`,
//! which is neither. Both clocks are read before the packet and after it. Each reading says how far the stamp may be
//! from it on the raw clock, given the largest rate at which the two may part; both must be right, so the stamp lies
//! where they agree. A reading says so whichever side of the packet it is on; the sides matter because no step may have
//! happened between the two readings *or* between a reading and the packet.

use crate::exchange::StampClass;
use crate::time::{Nanos, Raw, Span, Time, Wall};

/// Both clocks of a machine at (nearly) one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// What `CLOCK_REALTIME` read.
    pub wall: Time<Wall>,
    /// `CLOCK_MONOTONIC_RAW` at that instant.
    pub raw: Span<Raw>,
    /// `CLOCK_REALTIME` − `CLOCK_MONOTONIC`, from and to. Slewing moves both alike: only a step changes it.
    pub ahead_of_monotonic: (Nanos, Nanos),
    /// The largest rate, in ppb, at which `CLOCK_REALTIME` may part from `CLOCK_MONOTONIC_RAW` now.
    pub slew_ppb: u32,
    /// Steps of `CLOCK_REALTIME` that were known before the reading.
    pub steps_before: u32,
    /// Steps known after it.
    pub steps_after: u32,
}

/// A reading's two clocks count whole nanoseconds, so either may be just short of the next one.
const TRUNCATION: i64 = 1;

/// When, on the raw clock, `CLOCK_REALTIME` read `stamp`. None where the clock was set in between, or where the
/// readings contradict each other: then nothing is known.
///
/// Assumes that the slew limit did not rise and fall again between the readings. They are half a second apart at most;
/// chronyd, which changes the limit most, slews for a second at least.
pub fn translate(stamp: Time<Wall>, before: &ClockReading, after: &ClockReading) -> Option<Span<Raw>> {
    // The kernel announces a step some microseconds after it has made it. In between, a reading would not know; but then
    // the distance to CLOCK_MONOTONIC has changed already. What could slip through is a step in those microseconds that
    // is smaller than the distances are known to, a fraction of a microsecond.
    let (low, high) = (before.ahead_of_monotonic, after.ahead_of_monotonic);
    let stepped = before.steps_before != after.steps_after || low.0 > high.1 || high.0 > low.1;
    if stepped {
        return None;
    }
    let slew = i64::from(before.slew_ppb.max(after.slew_ppb));
    let (a, b) = (around(stamp, before, slew), around(stamp, after, slew));
    let (earliest, latest) = (a.earliest.max(b.earliest), a.latest.min(b.latest));
    (earliest <= latest).then_some(Span { earliest, latest })
}

/// What one reading allows: the wall clock went `distance` while the raw clock went between distance/(1 + σ) and
/// distance/(1 − σ).
fn around(stamp: Time<Wall>, reading: &ClockReading, slew_ppb: i64) -> Span<Raw> {
    const BILLION: i128 = 1_000_000_000;
    let slew = i128::from(slew_ppb).min(BILLION - 1);
    let distance = (stamp - reading.wall).get();
    let over = |distance: i64, rate: i128| -> i128 { (i128::from(distance) * BILLION).div_euclid(rate) };
    let clamp =
        |nanos: i128| Nanos::new(i64::try_from(nanos).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }));
    let (low, high) = (distance.saturating_sub(TRUNCATION), distance.saturating_add(TRUNCATION));
    let low = over(low, if low >= 0 { BILLION + slew } else { BILLION - slew });
    let high = over(high, if high >= 0 { BILLION - slew } else { BILLION + slew }) + 1;
    Span {
        earliest: reading.raw.earliest + clamp(low),
        latest: reading.raw.latest + Nanos::new(TRUNCATION) + clamp(high),
    }
}

/// What stamped a packet on its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketStamp {
    /// The kernel, by `CLOCK_REALTIME`.
    pub software: Option<Time<Wall>>,
    /// The network card, by its clock: translated (see [`crate::phc`]).
    pub hardware: Option<Span<Raw>>,
}

impl PacketStamp {
    /// Whether nothing did.
    pub fn is_none(&self) -> bool {
        self.software.is_none() && self.hardware.is_none()
    }

    /// Both stamps of a packet may come one after the other.
    pub fn merge(&mut self, other: PacketStamp) {
        self.software = self.software.or(other.software);
        self.hardware = self.hardware.or(other.hardware);
    }
}

impl From<Option<Time<Wall>>> for PacketStamp {
    fn from(software: Option<Time<Wall>>) -> Self {
        PacketStamp { software, hardware: None }
    }
}

/// A network card's stamp says nothing of `CLOCK_REALTIME`: its wall time is what the reading of both clocks before it
/// was sent, or after it was received, says for the middle of its interval. Where that reading leaves more open than this, it is added to the interval. What
/// `CLOCK_REALTIME` may have been slewed by between stamp and reading comes on top.
pub const HARDWARE_WALL_ERROR: Nanos = Nanos::new(200);

/// When a packet passed, on both of a machine's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// By `CLOCK_REALTIME`.
    pub wall: Time<Wall>,
    /// By `CLOCK_MONOTONIC_RAW`.
    pub raw: Span<Raw>,
    /// Where it was taken.
    pub class: StampClass,
}

impl Stamp {
    /// Of a packet that was sent after `before` was read: the network card's stamp, or where there is none, the kernel's, or
    /// where there is none that can be translated, `before` itself. A transmit stamp may be early, that only adds to the
    /// packet's delay.
    pub fn sent(stamp: impl Into<PacketStamp>, before: &ClockReading, after: &ClockReading) -> Self {
        let stamp = stamp.into();
        let hardware = stamp.hardware.map(|raw| Self::hardware(raw, before));
        let best = hardware.or_else(|| Self::kernel(stamp.software, before, after));
        best.unwrap_or_else(|| Self::userspace(before))
    }

    /// Of a packet that was received before `after` was read: likewise, and a receive stamp may be late.
    pub fn received(stamp: impl Into<PacketStamp>, before: &ClockReading, after: &ClockReading) -> Self {
        let stamp = stamp.into();
        let hardware = stamp.hardware.map(|raw| Self::hardware(raw, after));
        let best = hardware.or_else(|| Self::kernel(stamp.software, before, after));
        best.unwrap_or_else(|| Self::userspace(after))
    }

    fn kernel(stamp: Option<Time<Wall>>, before: &ClockReading, after: &ClockReading) -> Option<Self> {
        let wall = stamp?;
        Some(Stamp { wall, raw: translate(wall, before, after)?, class: StampClass::Software })
    }

    fn hardware(raw: Span<Raw>, near: &ClockReading) -> Self {
        let open = Nanos::new(near.raw.width().get() / 2 + TRUNCATION);
        let error = if open > HARDWARE_WALL_ERROR { open } else { Nanos::ZERO };
        Stamp {
            wall: near.wall + (raw.middle() - near.raw.middle()),
            raw: Span { earliest: raw.earliest - error, latest: raw.latest + error },
            class: StampClass::Hardware,
        }
    }

    fn userspace(reading: &ClockReading) -> Self {
        Stamp { wall: reading.wall, raw: reading.raw, class: StampClass::Userspace }
    }
}

/// How the kernel may steer `CLOCK_REALTIME`, as `adjtimex(2)` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Steering {
    /// Microseconds per tick; 10 000 is nominal (a tick is 1/100 s for user space).
    pub tick: i64,
    /// What the kernel's PLL still has to slew away, in ns.
    pub pending: Nanos,
    /// The PLL's time constant, a power of two.
    pub constant: i64,
}

impl Steering {
    /// The largest rate, in ppb, at which `CLOCK_REALTIME` may part from `CLOCK_MONOTONIC_RAW`.
    ///
    /// It is the sum of what can act at once: the frequency correction (the kernel caps it at 500 ppm), `adjtime(3)`
    /// (500 ppm), the tick (100 ppm for each microsecond; chronyd slews by it), and the PLL, which each second removes
    /// the pending offset's 2^-(2 + constant)th part (`ntp_offset_chunk`, kernel/time/ntp.c). The first two change
    /// often, so they are taken at their limits.
    pub fn largest_slew_ppb(&self) -> u32 {
        const FREQUENCY_AND_ADJTIME: i64 = 1_000_000;
        let tick = self.tick.saturating_sub(10_000).saturating_abs().saturating_mul(100_000);
        let shift = u32::try_from(self.constant.clamp(0, 30)).unwrap_or(0) + 2;
        let pll = self.pending.abs().get() >> shift;
        let sum = FREQUENCY_AND_ADJTIME.saturating_add(tick).saturating_add(pll);
        u32::try_from(sum).unwrap_or(u32::MAX)
    }

    /// Where the kernel does not tell: the tick is at its limit of 10 %, and half a second (the most there can be) is
    /// pending at the shortest time constant.
    pub const UNKNOWN: Steering = Steering { tick: 11_000, pending: Nanos::from_millis(500), constant: 0 };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reading(wall: i64, raw: i64) -> ClockReading {
        ClockReading {
            wall: Time::from_nanos(wall),
            raw: Span { earliest: Time::from_nanos(raw - 20), latest: Time::from_nanos(raw + 20) },
            ahead_of_monotonic: (Nanos::new(wall - raw - 100), Nanos::new(wall - raw + 100)),
            slew_ppb: 1_000_000,
            steps_before: 0,
            steps_after: 0,
        }
    }

    #[test]
    fn a_stamp_near_a_reading_is_as_sharp_as_the_reading() {
        let span = translate(Time::from_nanos(1_000_500), &reading(1_000_000, 0), &reading(1_001_000, 1_000))
            .unwrap();
        assert!(span.earliest.as_nanos() <= 500 && span.latest.as_nanos() >= 500);
        assert!(span.width().get() <= 50, "{span:?}");
    }

    #[test]
    fn after_a_step_there_is_no_stamp() {
        let (before, after) = (reading(1_000_000, 0), reading(1_001_000, 1_000));
        let stamp = Time::from_nanos(1_000_500);
        let announced = ClockReading { steps_after: 1, ..after };
        assert_eq!(translate(stamp, &before, &announced), None);
        let earlier = ClockReading { steps_before: 1, steps_after: 1, ..after };
        assert_eq!(translate(stamp, &before, &earlier), None);
        let unannounced = reading(1_001_000 + 5_000, 1_000);
        assert_eq!(translate(stamp, &before, &unannounced), None);
    }

    #[test]
    fn contradictory_readings_give_no_stamp() {
        // 5 µs apart over 1 µs is far beyond the slew limit, even if nobody announced a step.
        let after = ClockReading {
            ahead_of_monotonic: reading(1_000_000, 0).ahead_of_monotonic,
            ..reading(1_006_000, 1_000)
        };
        assert_eq!(translate(Time::from_nanos(1_000_500), &reading(1_000_000, 0), &after), None);
    }

    #[test]
    fn the_network_cards_stamp_counts_before_the_kernels() {
        let (before, after) = (reading(1_000_000, 0), reading(1_200_000, 200_000));
        let span = Span { earliest: Time::from_nanos(149_990), latest: Time::from_nanos(150_010) };
        let software = Some(Time::from_nanos(1_190_000));
        let both = PacketStamp { software, hardware: Some(span) };
        let stamp = Stamp::received(both, &before, &after);
        assert_eq!(stamp.class, StampClass::Hardware);
        assert_eq!((stamp.wall, stamp.raw), (Time::from_nanos(1_150_000), span));
        assert_eq!(Stamp::received(software, &before, &after).class, StampClass::Software);
        assert_eq!(Stamp::received(None, &before, &after).class, StampClass::Userspace);
        // Where the reading says little of CLOCK_REALTIME, the stamp says no more.
        let raw = Span { earliest: Time::from_nanos(199_000), latest: Time::from_nanos(201_000) };
        let stamp = Stamp::received(both, &before, &ClockReading { raw, ..after });
        assert_eq!(stamp.raw.width(), Nanos::new(20 + 2 * 1_001));
    }

    #[test]
    fn the_slew_limit_adds_up_what_may_act_at_once() {
        let limit = |tick, pending, constant| {
            Steering { tick, pending: Nanos::new(pending), constant }.largest_slew_ppb()
        };
        assert_eq!(limit(10_000, 0, 7), 1_000_000);
        assert_eq!(limit(10_833, 0, 7), 84_300_000); // chronyd's largest slew
        assert_eq!(limit(9_990, -1 << 20, 2), 2_000_000 + (1 << 16));
        assert_eq!(limit(i64::MIN, i64::MIN, i64::MIN), u32::MAX);
        assert_eq!(Steering::UNKNOWN.largest_slew_ppb(), 226_000_000);
    }

    proptest! {
        /// The wall clock runs at any rates within the limit, before the packet and after it; the true raw instant of
        /// the stamp must be inside.
        #[test]
        fn the_true_instant_is_inside(
            start in 0_i64..1 << 60,
            wall_start in 0_i64..1 << 60,
            legs in proptest::array::uniform2((0_i64..1_000_000_000, -1_000_000_i64..=1_000_000)),
            reading_errors in proptest::array::uniform4(0_i64..200),
        ) {
            let mut raw = start;
            let mut wall = i128::from(wall_start) * 1_000_000_000;
            let mut points = vec![(raw, wall)];
            for (length, ppb) in legs {
                raw += length;
                wall += i128::from(length) * (1_000_000_000 + i128::from(ppb));
                points.push((raw, wall));
            }
            let wall = |i: usize| i64::try_from(points[i].1.div_euclid(1_000_000_000)).unwrap();
            let read = |i: usize, early, late| ClockReading {
                raw: Span {
                    earliest: Time::from_nanos(points[i].0 - early),
                    latest: Time::from_nanos(points[i].0 + late),
                },
                ahead_of_monotonic: (Nanos::ZERO, Nanos::ZERO),
                ..reading(wall(i), 0)
            };
            let [a, b, c, d] = reading_errors;
            let span = translate(Time::from_nanos(wall(1)), &read(0, a, b), &read(2, c, d)).unwrap();
            prop_assert!(span.earliest.as_nanos() <= points[1].0 && points[1].0 <= span.latest.as_nanos());
        }

        #[test]
        fn hostile_values_never_panic(stamp: i64, wall: i64, raw: i64, slew: u32) {
            let reading = ClockReading { slew_ppb: slew, ..ClockReading {
                wall: Time::from_nanos(wall), raw: Span::exact(Time::from_nanos(raw)),
                ahead_of_monotonic: (Nanos::ZERO, Nanos::ZERO), slew_ppb: 0, steps_before: 0, steps_after: 0,
            }};
            let _ = translate(Time::from_nanos(stamp), &reading, &reading);
        }
    }
}
