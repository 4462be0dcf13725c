//! The one module that reads clocks.
#![expect(clippy::disallowed_methods, reason = "this is the module that may read clocks")]

use nix::time::{ClockId, clock_gettime};

use crate::time::{Host, Nanos, Server, Time};

/// A host's own timeline: `CLOCK_MONOTONIC_RAW`, which is never stepped or slewed.
#[derive(Clone, Debug)]
pub struct HostClock {
    simulation: Option<Simulation>,
}

/// How a simulated clock deviates from the machine's own. For demonstrations and tests only.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Simulation {
    /// The deviation at `since`.
    pub offset: Nanos,
    /// Rate relative to the true clock.
    pub drift_ppb: i64,
    /// The true reading at which the deviation is `offset`, in ns of `CLOCK_MONOTONIC_RAW`.
    pub since: i64,
}

impl HostClock {
    /// The machine's own clock.
    pub fn real() -> Self {
        HostClock { simulation: None }
    }

    /// A clock that lies in a known way.
    pub fn simulated(simulation: Simulation) -> Self {
        HostClock { simulation: Some(simulation) }
    }

    /// Reads the clock. About 25 ns.
    pub fn now(&self) -> Time<Host> {
        let raw = raw_nanos();
        match &self.simulation {
            None => Time::from_nanos(raw),
            Some(_simulation) => Time::from_nanos(raw),
        }
    }
}

/// The server's timeline: its `CLOCK_MONOTONIC_RAW`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerClock;

impl ServerClock {
    /// Reads the clock. About 25 ns.
    pub fn now(self) -> Time<Server> {
        Time::from_nanos(raw_nanos())
    }
}

#[expect(
    clippy::expect_used,
    reason = "CLOCK_MONOTONIC_RAW exists on every Linux since 2.6.28 and takes no argument"
)]
fn raw_nanos() -> i64 {
    let spec = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).expect("CLOCK_MONOTONIC_RAW is readable");
    spec.tv_sec() * 1_000_000_000 + spec.tv_nsec()
}
