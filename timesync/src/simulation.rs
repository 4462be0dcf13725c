//! Clocks that lie in a known way, for demonstrations and tests.

use std::str::FromStr;

use crate::time::{Nanos, Raw, Time};

/// How a simulated clock deviates from the machine's own.
///
/// As text: `offset=35ms,drift=40ppm,since=123456789,wander=0.05ppm/60s,step=5ms@30s`; each part may be left out.
/// `since` is in ns of `CLOCK_MONOTONIC_RAW` (default 0, the machine's boot); the step comes so long after it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Simulation {
    /// The deviation at `since`. At most a day.
    pub offset: Nanos,
    /// Rate relative to the true clock. At most ±1 000 000 (1 000 ppm).
    pub drift_ppb: i64,
    /// The true reading at which the deviation is `offset`, in ns of `CLOCK_MONOTONIC_RAW`.
    pub since: i64,
    /// A rate that comes and goes.
    pub wander: Option<Wander>,
    /// A jump forward: what a suspended or migrated machine does.
    pub step: Option<Step>,
}

/// A rate of `amplitude_ppb` · sin(2π t / period).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wander {
    /// At most 100 000 (100 ppm).
    pub amplitude_ppb: f64,
    /// At least a second.
    pub period: Nanos,
}

/// A jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// By how much: 0 or more, as the clock must not run backwards.
    pub by: Nanos,
    /// When, after `since`.
    pub after: Nanos,
}

/// Why a text describes no simulated clock.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SimulationError {
    /// A part without `=`, or with an unknown key.
    #[error("{0:?} is no part of a simulated clock; use offset=, drift=, since=, wander= or step=")]
    Part(String),
    /// A value that cannot be read.
    #[error("{value:?} is no {wanted}")]
    Value {
        /// What stands there.
        value: String,
        /// What should, with an example.
        wanted: &'static str,
    },
    /// A value that would make the clock run backwards, or that no clock has.
    #[error("{value:?} is out of range: {range}")]
    Range {
        /// What stands there.
        value: String,
        /// What is allowed.
        range: &'static str,
    },
}

impl Simulation {
    /// What the clock reads too much at the true reading `raw`.
    ///
    /// The reading `raw + deviation(raw)` never decreases: everything but the step is one smooth function with a slope
    /// above −0.0011, rounded once, and the step goes forward.
    pub fn deviation(&self, raw: Time<Raw>) -> Nanos {
        let elapsed = raw.as_nanos().saturating_sub(self.since);
        #[expect(
            clippy::cast_precision_loss,
            reason = "exact below 2^53 ns, a hundred days; beyond, monotone still"
        )]
        let (t, drift) = (elapsed as f64, self.drift_ppb as f64 * 1e-9);
        let wander = self.wander.map_or(0.0, |wander| {
            #[expect(clippy::cast_precision_loss, reason = "a period is far below 2^53 ns")]
            let period = wander.period.get() as f64;
            let turns = std::f64::consts::TAU / period;
            // The integral of amplitude · sin(turns · t).
            wander.amplitude_ppb * 1e-9 / turns * (1.0 - (turns * t).cos())
        });
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`as` saturates, and the ranges keep it far from that"
        )]
        let smooth = (drift * t + wander).round() as i64;
        let step = self.step.filter(|step| elapsed >= step.after.get()).map_or(Nanos::ZERO, |step| step.by);
        self.offset + Nanos::new(smooth) + step
    }
}

impl FromStr for Simulation {
    type Err = SimulationError;

    fn from_str(text: &str) -> Result<Self, SimulationError> {
        let mut simulation = Simulation::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').ok_or_else(|| SimulationError::Part(part.into()))?;
            match key {
                "offset" => {
                    simulation.offset = duration(value)?;
                    in_range(value, simulation.offset.abs() <= DAY, "an offset is at most a day")?;
                }
                "drift" => {
                    let ppb = rate(value)?;
                    in_range(value, ppb.abs() <= 1e6, "a drift is at most 1000ppm")?;
                    #[expect(clippy::cast_possible_truncation, reason = "its range was checked just now")]
                    let ppb = ppb.round() as i64;
                    simulation.drift_ppb = ppb;
                }
                "since" => {
                    simulation.since = value.parse().map_err(|_| wrong(value, "number of nanoseconds"))?;
                }
                "wander" => {
                    let (amplitude, period) = pair(value, '/', "wander such as 0.05ppm/60s")?;
                    let wander = Wander { amplitude_ppb: rate(amplitude)?, period: duration(period)? };
                    in_range(amplitude, wander.amplitude_ppb.abs() <= 1e5, "a wander is at most 100ppm")?;
                    in_range(period, wander.period.get() >= 1_000_000_000, "a period is at least 1s")?;
                    simulation.wander = Some(wander);
                }
                "step" => {
                    let (by, after) = pair(value, '@', "step such as 5ms@30s")?;
                    let step = Step { by: duration(by)?, after: duration(after)? };
                    let forward = Nanos::ZERO <= step.by && step.by <= DAY;
                    in_range(
                        by,
                        forward,
                        "a step goes forward, at most a day: the clock must not run backwards",
                    )?;
                    simulation.step = Some(step);
                }
                _ => return Err(SimulationError::Part(part.into())),
            }
        }
        Ok(simulation)
    }
}

const DAY: Nanos = Nanos::from_millis(86_400_000);

fn wrong(value: &str, wanted: &'static str) -> SimulationError {
    SimulationError::Value { value: value.into(), wanted }
}

fn in_range(value: &str, fits: bool, range: &'static str) -> Result<(), SimulationError> {
    if fits { Ok(()) } else { Err(SimulationError::Range { value: value.into(), range }) }
}

fn pair<'a>(value: &'a str, at: char, wanted: &'static str) -> Result<(&'a str, &'a str), SimulationError> {
    value.split_once(at).ok_or_else(|| wrong(value, wanted))
}

fn duration(value: &str) -> Result<Nanos, SimulationError> {
    // `ns` before `s`: the longer unit would also match its own last letter.
    let nanos = quantity(value, &[("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)])
        .ok_or_else(|| wrong(value, "duration such as 35ms"))?;
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates; the callers check the range")]
    let nanos = nanos.round() as i64;
    Ok(Nanos::new(nanos))
}

fn rate(value: &str) -> Result<f64, SimulationError> {
    quantity(value, &[("ppm", 1e3), ("ppb", 1.0)]).ok_or_else(|| wrong(value, "rate such as 40ppm"))
}

fn quantity(value: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, unit) = units.iter().find_map(|(name, unit)| Some((value.strip_suffix(name)?, unit)))?;
    let number: f64 = number.trim().parse().ok()?;
    number.is_finite().then_some(number * unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_text_describes_a_clock() {
        let simulation: Simulation =
            "offset=-35ms, drift=40ppm,since=123456789,wander=0.05ppm/60s,step=5ms@30s".parse().unwrap();
        assert_eq!(
            simulation,
            Simulation {
                offset: Nanos::from_millis(-35),
                drift_ppb: 40_000,
                since: 123_456_789,
                wander: Some(Wander { amplitude_ppb: 50.0, period: Nanos::from_millis(60_000) }),
                step: Some(Step { by: Nanos::from_millis(5), after: Nanos::from_millis(30_000) }),
            }
        );
        assert_eq!("".parse(), Ok(Simulation::default()));
    }

    #[test]
    fn a_wrong_text_is_refused_with_a_sentence() {
        for (text, sentence) in [
            (
                "ofset=1ms",
                "\"ofset=1ms\" is no part of a simulated clock; use offset=, drift=, since=, wander= or step=",
            ),
            ("offset=1", "\"1\" is no duration such as 35ms"),
            ("drift=NaNppm", "\"NaNppm\" is no rate such as 40ppm"),
            ("drift=2000ppm", "\"2000ppm\" is out of range: a drift is at most 1000ppm"),
            ("wander=1ppm", "\"1ppm\" is no wander such as 0.05ppm/60s"),
            ("wander=1ppm/1ms", "\"1ms\" is out of range: a period is at least 1s"),
            (
                "step=-1ms@3s",
                "\"-1ms\" is out of range: a step goes forward, at most a day: the clock must not run backwards",
            ),
            ("since=now", "\"now\" is no number of nanoseconds"),
        ] {
            assert_eq!(text.parse::<Simulation>().unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn the_deviation_is_what_the_parts_say() {
        let at = |text: &str, raw| text.parse::<Simulation>().unwrap().deviation(Time::from_nanos(raw)).get();
        let second = 1_000_000_000;
        assert_eq!(at("offset=3us,since=5", 5), 3_000);
        assert_eq!(at("drift=40ppm,since=5000000000", 3 * second), -80_000);
        // Half a period of 0.05 ppm · sin: amplitude · period / π.
        assert_eq!(at("wander=0.05ppm/60s", 30 * second), 955);
        assert_eq!(at("step=5ms@30s", 30 * second - 1), 0);
        assert_eq!(at("step=5ms@30s", 30 * second), 5_000_000);
    }

    proptest! {
        #[test]
        fn the_clock_never_runs_backwards(
            drift in -1_000_000_i64..=1_000_000,
            amplitude in -1e5_f64..1e5,
            period in 1_000_000_000_i64..100_000_000_000,
            raw in -(1_i64 << 52)..1 << 52,
            ahead in 1_i64..100,
        ) {
            let simulation = Simulation {
                drift_ppb: drift,
                wander: Some(Wander { amplitude_ppb: amplitude, period: Nanos::new(period) }),
                ..Simulation::default()
            };
            let read = |raw| raw + simulation.deviation(Time::from_nanos(raw)).get();
            prop_assert!(read(raw + ahead) >= read(raw));
        }
    }
}
