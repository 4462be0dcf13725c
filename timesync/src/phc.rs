//! From a network card's clock (PHC) to `CLOCK_MONOTONIC_RAW`. Decides; the clock itself is read by [`device`].
//!
//! A card stamps packets by a clock of its own, which any program may step and slew (ptp4l does) without the kernel
//! telling others. What can be known:
//!
//! - A *reading* shows the PHC between two instants of the raw clock.
//! - The kernel tells which frequency the PHC was last set to. Its rate is that, give or take what the two oscillators
//!   may differ by.
//!
//! So a reading *k* before the packet and a reading *j* after it each say when, on the raw clock, the PHC showed the
//! packet's stamp, given any rate between the frequencies seen from *k* to *j*. **The stamp is taken to lie anywhere in
//! the hull of both answers, never only where they agree**: if the PHC was stepped once in between, *k*'s answer is true
//! of packets before the step and *j*'s of packets after it, so the truth is in the hull whichever it was. A step makes
//! the interval wider by its own size; a change of frequency, by what it comes to until the nearer reading.
//!
//! Which readings are before the packet? The caller knows an instant before a packet that it sent itself. Otherwise the
//! PHC tells: without a step, a reading that shows less than the stamp is before the packet. A step shifts this by its
//! own size, so the reading must show less by more than the largest step that readings would not notice
//! ([`History::unnoticed`]). A step that they do notice ([`History::push`]) empties the history, and for a second
//! nothing is translated: stamps from before the step may still be on their way.
//!
//! This is sound as long as the oscillators differ by no more than the tolerance, and nobody changes the PHC twice, in
//! opposite directions, within the few readings around one packet (they are 10 ms apart at most while their thread gets
//! to run).

pub mod device;

use std::collections::VecDeque;

use crate::time::{Nanos, Raw, Span, Time};

/// A network card's clock. It has any zero, steps, and is slewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phc {}

/// A PHC at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhcReading {
    /// What it showed.
    pub phc: Time<Phc>,
    /// `CLOCK_MONOTONIC_RAW` at that instant.
    pub raw: Span<Raw>,
    /// The frequencies, in ppb off nominal, that it was set to just before and just after.
    pub frequency_ppb: (i64, i64),
}

/// Readings that are kept: they reach back further than any stamp takes to come back.
const CAPACITY: usize = 64;
/// After a step that was noticed, nothing is translated for so long.
const QUARANTINE: Nanos = Nanos::from_millis(1_000);
/// Cards count in steps of up to 16 ns (82576), and drivers correct their stamps for the way through the PHY by a nominal
/// value: a stamp may be off by this in either direction.
const STAMP_ERROR: i64 = 50;
/// A reading and a stamp are in whole nanoseconds.
const TRUNCATION: i64 = 1;
const BILLION: i128 = 1_000_000_000;

/// The latest readings of one PHC, oldest first. Between any two of them that follow each other, no step was noticed.
#[derive(Clone, Debug)]
pub struct History {
    readings: VecDeque<PhcReading>,
    tolerance_ppb: i64,
    stepped: Option<Time<Raw>>,
    steps: u32,
}

impl History {
    /// Of a PHC whose oscillator and the raw clock's differ by at most `tolerance_ppb` (0 ..= 10_000_000).
    pub fn new(tolerance_ppb: u32) -> Self {
        let readings = VecDeque::with_capacity(CAPACITY);
        History { readings, tolerance_ppb: tolerance_ppb.into(), stepped: None, steps: 0 }
    }

    /// The newest reading.
    pub fn newest(&self) -> Option<&PhcReading> {
        self.readings.back()
    }

    /// How many steps were noticed.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Takes a reading, later than all before it. Returns whether it shows that the PHC was stepped since the newest one,
    /// or ran faster or slower than it can.
    pub fn push(&mut self, reading: PhcReading) -> bool {
        let stepped = self.newest().is_some_and(|newest| {
            let expected = carried(newest, reading.phc, self.rates([newest, &reading]));
            expected.earliest > reading.raw.latest || reading.raw.earliest > expected.latest
        });
        if stepped {
            self.readings.clear();
            self.stepped = Some(reading.raw.latest);
            self.steps = self.steps.wrapping_add(1);
        } else if self.readings.len() == CAPACITY {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);
        stepped
    }

    /// When, on the raw clock, the PHC showed `stamp`, of a packet that passed before the newest reading, and if `since`
    /// is given, after that instant. None where that cannot be known.
    pub fn translate(&self, stamp: Time<Phc>, since: Option<Time<Raw>>) -> Option<Span<Raw>> {
        let newest = self.newest()?;
        if self.stepped.is_some_and(|at| newest.raw.earliest - at < QUARANTINE) {
            return None;
        }
        let unnoticed = self.unnoticed();
        if newest.phc + unnoticed < stamp {
            return None;
        }
        let is_before = |reading: &PhcReading| {
            since.is_some_and(|since| reading.raw.latest <= since) || reading.phc + unnoticed < stamp
        };
        let before = self.readings.iter().rposition(is_before)?;
        let is_after = |reading: &PhcReading| reading.phc > stamp + unnoticed;
        let after = self.readings.iter().position(is_after).unwrap_or(self.readings.len() - 1).max(before);
        let rates = self.rates(self.readings.range(before..=after));
        let (a, b) =
            (carried(&self.readings[before], stamp, rates), carried(&self.readings[after], stamp, rates));
        let error = Nanos::new(STAMP_ERROR);
        let span =
            Span { earliest: a.earliest.min(b.earliest) - error, latest: a.latest.max(b.latest) + error };
        // A stamp from before the packet was sent is another packet's.
        since.is_none_or(|since| since <= span.latest).then_some(span)
    }

    /// The largest step that might have gone unnoticed between two readings.
    fn unnoticed(&self) -> Nanos {
        let pairs = self.readings.iter().zip(self.readings.iter().skip(1));
        let doubts = pairs.map(|(a, b)| carried(a, b.phc, self.rates([a, b])).width() + b.raw.width());
        doubts.fold(Nanos::new(STAMP_ERROR), Nanos::max)
    }

    /// The smallest and the largest rate, in ppb off nominal, that the PHC may have had between these readings.
    fn rates<'a>(&self, readings: impl IntoIterator<Item = &'a PhcReading>) -> (i128, i128) {
        let all = readings.into_iter().flat_map(|reading| [reading.frequency_ppb.0, reading.frequency_ppb.1]);
        let (low, high) = all.fold((i64::MAX, i64::MIN), |(low, high), ppb| (low.min(ppb), high.max(ppb)));
        // A clock that stands still, or runs backwards, is no clock. Nothing can be divided by its rate either.
        let fit = |ppb: i64| i128::from(ppb).clamp(1 - BILLION, BILLION);
        (fit(low.saturating_sub(self.tolerance_ppb)), fit(high.saturating_add(self.tolerance_ppb)))
    }
}

/// When, on the raw clock, a PHC that showed `reading` showed `stamp`, at any of `rates`: it went `distance` while the
/// raw clock went distance/(1 + rate).
fn carried(reading: &PhcReading, stamp: Time<Phc>, (slow, fast): (i128, i128)) -> Span<Raw> {
    let distance = i128::from((stamp - reading.phc).get());
    let over = |distance: i128, rate: i128, up: bool| {
        let scaled = distance * BILLION;
        let quotient = scaled.div_euclid(BILLION + rate) + i128::from(up);
        Nanos::new(i64::try_from(quotient).unwrap_or(if quotient < 0 { i64::MIN } else { i64::MAX }))
    };
    let (low, high) = (distance - i128::from(TRUNCATION), distance + i128::from(TRUNCATION));
    Span {
        earliest: reading.raw.earliest + over(low, if low >= 0 { fast } else { slow }, false),
        latest: reading.raw.latest + over(high, if high >= 0 { slow } else { fast }, true),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOLERANCE: u32 = 200_000;
    const MILLI: i64 = 1_000_000;

    /// A PHC that is `ahead` of the raw clock and runs as fast, read to ± 500 ns.
    fn reading(raw: i64, ahead: i64) -> PhcReading {
        PhcReading {
            phc: Time::from_nanos(raw + ahead),
            raw: Span { earliest: Time::from_nanos(raw - 500), latest: Time::from_nanos(raw + 500) },
            frequency_ppb: (0, 0),
        }
    }

    fn history(readings: impl IntoIterator<Item = PhcReading>) -> History {
        let mut history = History::new(TOLERANCE);
        for reading in readings {
            history.push(reading);
        }
        history
    }

    #[test]
    fn a_stamp_between_two_readings_is_as_sharp_as_they_are() {
        let history = history((0..5).map(|i| reading(i * MILLI, 7_000)));
        let span = history.translate(Time::from_nanos(3 * MILLI + 20_000 + 7_000), None).unwrap();
        let truth = Time::from_nanos(3 * MILLI + 20_000);
        assert!(span.earliest <= truth && truth <= span.latest, "{span:?}");
        assert!(span.width() < Nanos::new(1_600), "{span:?}");
    }

    #[test]
    fn what_is_not_between_two_readings_is_not_translated() {
        let readings = || (1..5).map(|i| reading(i * MILLI, 0));
        for (stamp, since) in [(MILLI, None), (MILLI / 2, None), (MILLI + 2_000, None), (5 * MILLI, None)] {
            assert_eq!(history(readings()).translate(Time::from_nanos(stamp), since), None, "{stamp}");
        }
        // Sent right after a reading: only the sender knows that.
        let since = Some(Time::from_nanos(2 * MILLI + 600));
        let span = history(readings()).translate(Time::from_nanos(2 * MILLI + 700), since).unwrap();
        assert!(span.width() < Nanos::new(1_600), "{span:?}");
        // Sent after its stamp was taken: another packet's.
        assert_eq!(history(readings()).translate(Time::from_nanos(2 * MILLI - 5_000), since), None);
        assert_eq!(History::new(TOLERANCE).translate(Time::from_nanos(0), None), None);
    }

    #[test]
    fn a_step_that_shows_is_noticed_and_nothing_is_believed_for_a_second() {
        for step in [-5 * MILLI, -20_000, 20_000, 1 << 40] {
            let mut history = history((0..5).map(|i| reading(i * MILLI, 0)));
            assert!(history.push(reading(5 * MILLI, step)));
            assert_eq!((history.steps(), history.readings.len()), (1, 1));
            for i in 6..1_000 {
                assert!(!history.push(reading(i * MILLI, step)));
                let before_the_step = Time::from_nanos(4 * MILLI + MILLI / 2);
                assert_eq!(history.translate(before_the_step, None), None);
                assert_eq!(history.translate(Time::from_nanos(i * MILLI - 500 + step), None), None);
            }
            for i in 1_000..1_010 {
                history.push(reading(i * MILLI, step));
            }
            assert!(history.translate(Time::from_nanos(1_008 * MILLI + 5_000 + step), None).is_some());
        }
    }

    #[test]
    fn a_step_that_does_not_show_makes_the_interval_wider_by_itself() {
        let history =
            history([reading(0, 0), reading(MILLI, 0), reading(2 * MILLI, 600), reading(3 * MILLI, 600)]);
        assert_eq!(history.steps(), 0);
        let span = history.translate(Time::from_nanos(MILLI + 30_000), None).unwrap();
        assert!(span.earliest <= Time::from_nanos(MILLI + 30_000 - 600), "{span:?}");
        assert!(span.latest >= Time::from_nanos(MILLI + 30_000), "{span:?}");
    }

    #[test]
    fn a_frequency_that_was_set_is_followed_not_taken_for_a_step() {
        // 62 000 ppm, an i210's largest.
        let fast = |raw: i64| PhcReading {
            frequency_ppb: (62_000_000, 62_000_000),
            ..reading(raw, raw / 1_000 * 62)
        };
        let mut history = history((0..5).map(|i| fast(i * MILLI)));
        assert_eq!(history.steps(), 0);
        let truth = 3 * MILLI + 30_000;
        let span = history.translate(Time::from_nanos(truth + truth / 1_000 * 62), None).unwrap();
        assert!(span.earliest.as_nanos() <= truth && truth <= span.latest.as_nanos(), "{span:?}");
        assert!(
            history.push(PhcReading { frequency_ppb: (0, 0), ..fast(500 * MILLI) }) || history.steps() == 0
        );
    }

    /// A PHC by what happens to it: it runs at a frequency and an error of its own, both of which may change once, when
    /// it may be stepped too.
    #[derive(Clone, Copy, Debug)]
    struct Simulated {
        change_at: i64,
        step: i64,
        frequency_ppb: (i64, i64),
        error_ppb: (i64, i64),
    }

    impl Simulated {
        fn shows(&self, raw: i64) -> i64 {
            let leg = |length: i64, ppb: i64| i128::from(length) * (BILLION + i128::from(ppb));
            let first = leg(raw.min(self.change_at), self.frequency_ppb.0 + self.error_ppb.0);
            let second = leg((raw - self.change_at).max(0), self.frequency_ppb.1 + self.error_ppb.1);
            let step = if raw >= self.change_at { self.step } else { 0 };
            i64::try_from((first + second).div_euclid(BILLION)).unwrap() + step
        }

        fn frequency(&self, raw: i64) -> i64 {
            if raw >= self.change_at { self.frequency_ppb.1 } else { self.frequency_ppb.0 }
        }

        fn read(&self, raw: i64, early: i64, late: i64) -> PhcReading {
            PhcReading {
                phc: Time::from_nanos(self.shows(raw)),
                raw: Span { earliest: Time::from_nanos(raw - early), latest: Time::from_nanos(raw + late) },
                frequency_ppb: (self.frequency(raw - early), self.frequency(raw + late)),
            }
        }
    }

    fn simulated() -> impl Strategy<Value = Simulated> {
        let tolerance = i64::from(TOLERANCE);
        let frequency = prop_oneof![Just(0), -100_000_i64..100_000, -60_000_000_i64..60_000_000];
        let step = prop_oneof![
            3 => Just(0_i64),
            3 => -3_000_i64..3_000,
            2 => -100_000_i64..100_000,
            1 => -1_000_000_000_i64..1_000_000_000,
        ];
        (
            0_i64..200 * MILLI,
            step,
            (frequency.clone(), frequency),
            (-tolerance..=tolerance, -tolerance..=tolerance),
        )
            .prop_map(|(change_at, step, frequency_ppb, error_ppb)| Simulated {
                change_at,
                step,
                frequency_ppb,
                error_ppb,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Readings at any pace and of any sharpness; packets anywhere, whose stamps come back late. Whatever is
        /// translated must cover the truth, and where nothing was stepped, all packets after the start are.
        #[test]
        fn the_true_instant_is_inside(
            clock in simulated(),
            readings in proptest::collection::vec((1_000_i64..10 * MILLI, 0_i64..3_000, 0_i64..3_000), 3..40),
            packets in proptest::collection::vec((0.0_f64..1.0, 0_usize..4, any::<bool>()), 1..30),
        ) {
            let mut at = 0;
            let instants: Vec<(i64, PhcReading)> = readings
                .iter()
                .map(|(gap, early, late)| {
                    at += gap + early + late;
                    (at, clock.read(at, *early, *late))
                })
                .collect();
            for (place, delay, is_own) in packets {
                #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "any place will do")]
                let packet = (place * at as f64) as i64;
                let after = instants.iter().position(|(instant, reading)| {
                    *instant >= packet && reading.raw.earliest.as_nanos() >= packet
                });
                let Some(after) = after else { continue };
                let mut history = History::new(TOLERANCE);
                for (_, reading) in instants.iter().take(after + 1 + delay) {
                    history.push(*reading);
                }
                let since = is_own.then(|| Time::from_nanos(packet - 1));
                let stamp = Time::from_nanos(clock.shows(packet));
                match history.translate(stamp, since) {
                    Some(span) => prop_assert!(
                        span.earliest.as_nanos() <= packet && packet <= span.latest.as_nanos(),
                        "{packet} is not in {span:?}"
                    ),
                    None => {
                        let started = instants[0].1.raw.latest.as_nanos() < packet;
                        prop_assert!(!(is_own && started && clock.step == 0), "nothing was stepped");
                    }
                }
            }
        }

        #[test]
        fn hostile_values_never_panic(values in proptest::collection::vec(any::<(i64, i64, i64, i64)>(), 1..5)) {
            let mut history = History::new(u32::MAX);
            for (phc, raw, low, high) in values {
                let raw = Span::exact(Time::from_nanos(raw));
                history.push(PhcReading { phc: Time::from_nanos(phc), raw, frequency_ppb: (low, high) });
                let _ = history.translate(Time::from_nanos(phc), Some(raw.earliest));
                let _ = history.translate(Time::from_nanos(low), None);
            }
        }
    }
}
