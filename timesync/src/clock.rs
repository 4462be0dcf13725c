//! The one module that reads clocks.
#![expect(clippy::disallowed_methods, reason = "this is the module that may read clocks")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::prctl::set_timerslack;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId as TimerClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_getres, clock_gettime};

use crate::sys;
use crate::time::{Host, Nanos, Raw, Server, Span, Time, Wall};
use crate::translate::{ClockReading, Steering};
use crate::vmclock::VmClock;

pub use crate::simulation::Simulation;

/// A host's own timeline: `CLOCK_MONOTONIC_RAW`, which is never stepped or slewed.
#[derive(Clone, Debug)]
pub struct HostClock {
    simulation: Option<Simulation>,
    #[cfg(feature = "simulation")]
    driven: Option<Driven>,
}

/// Reads a clock that a simulator drives.
#[cfg(feature = "simulation")]
#[derive(Clone)]
struct Driven(Arc<dyn Fn() -> Time<Host> + Send + Sync>);

#[cfg(feature = "simulation")]
impl std::fmt::Debug for Driven {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Driven")
    }
}

impl HostClock {
    /// The machine's own clock.
    pub fn real() -> Self {
        HostClock {
            simulation: None,
            #[cfg(feature = "simulation")]
            driven: None,
        }
    }

    /// A clock that reads whatever `read` says: a simulator's, in virtual time.
    #[cfg(feature = "simulation")]
    pub fn driven(read: impl Fn() -> Time<Host> + Send + Sync + 'static) -> Self {
        HostClock { driven: Some(Driven(Arc::new(read))), ..HostClock::real() }
    }

    /// A clock that lies in a known way. It never runs backwards. For demonstrations and tests only.
    pub fn simulated(simulation: Simulation) -> Self {
        let mut clock = HostClock::real();
        clock.simulation = Some(simulation);
        clock
    }

    /// Whether the clock lies. Whoever answers by it must say so.
    pub fn is_simulated(&self) -> bool {
        self.simulation.is_some()
    }

    /// Reads the clock. About 25 ns, and some more where it is simulated.
    pub fn now(&self) -> Time<Host> {
        #[cfg(feature = "simulation")]
        if let Some(driven) = &self.driven {
            return driven.0();
        }
        self.at(raw_now())
    }

    /// What this clock reads when the machine's own reads `raw`.
    pub fn at(&self, raw: Time<Raw>) -> Time<Host> {
        Time::from_nanos(raw.as_nanos()) + self.deviation(raw)
    }

    /// The same instants on this clock: it never runs backwards, so the ends stay the ends.
    pub fn span(&self, raw: Span<Raw>) -> Span<Host> {
        Span { earliest: self.at(raw.earliest), latest: self.at(raw.latest) }
    }

    /// How much this clock lies when the machine's own reads `raw`: 0 for the machine's own.
    pub fn deviation(&self, raw: Time<Raw>) -> Nanos {
        self.simulation.as_ref().map_or(Nanos::ZERO, |simulation| simulation.deviation(raw))
    }

    /// Sleeps until the clock reads `deadline` or later, and returns that reading: late by 0.05 µs at the median where
    /// the core is free.
    ///
    /// An idle processor takes some 40 µs to wake up, so the last 100 µs are spun away; whoever else wants the core gets
    /// it meanwhile.
    pub fn sleep_until(&self, deadline: Time<Host>) -> Time<Host> {
        const SPIN: Nanos = Nanos::from_micros(100);
        let mut exact = false;
        loop {
            let now = self.now();
            let left = deadline - now;
            if left <= Nanos::ZERO {
                return now;
            }
            if left > SPIN {
                if !exact {
                    exact_sleeps();
                    exact = true;
                }
                std::thread::sleep((left - SPIN).to_std());
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// The server's timeline: its `CLOCK_MONOTONIC_RAW`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerClock;

impl ServerClock {
    /// Reads the clock. About 25 ns.
    pub fn now(self) -> Time<Server> {
        Time::from_nanos(raw_now().as_nanos())
    }

    /// The same instants on the server's timeline, which is the machine's own.
    pub fn span(self, raw: Span<Raw>) -> Span<Server> {
        Span {
            earliest: Time::from_nanos(raw.earliest.as_nanos()),
            latest: Time::from_nanos(raw.latest.as_nanos()),
        }
    }
}

/// Reads `CLOCK_MONOTONIC_RAW`.
pub fn raw_now() -> Time<Raw> {
    Time::from_nanos(read(ClockId::CLOCK_MONOTONIC_RAW))
}

/// Reads `CLOCK_REALTIME`.
pub fn wall_now() -> Time<Wall> {
    Time::from_nanos(read(ClockId::CLOCK_REALTIME))
}

/// Reads `CLOCK_MONOTONIC`, in ns: for pacing in programs that need no more than that.
pub fn pace_now() -> Nanos {
    Nanos::new(read(ClockId::CLOCK_MONOTONIC))
}

/// How far `CLOCK_MONOTONIC_COARSE` may be behind `CLOCK_MONOTONIC`: a tick of the kernel.
pub fn coarse_lag() -> Nanos {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE);
    // The longest tick that Linux has is 1/100 s.
    tick.map_or(Nanos::from_millis(10), |tick| Nanos::new(tick.tv_sec() * 1_000_000_000 + tick.tv_nsec()))
}

#[expect(
    clippy::expect_used,
    reason = "these clocks exist on every Linux since 2.6.39, and are read into our own memory"
)]
fn read(clock: ClockId) -> i64 {
    let spec = clock_gettime(clock).expect("the kernel's clocks are readable");
    spec.tv_sec() * 1_000_000_000 + spec.tv_nsec()
}

/// Lets this thread's sleeps end as exactly as the timer hardware can, not up to 50 µs late to save power.
pub fn exact_sleeps() {
    // A sandbox may refuse: then sleeps end later, which every user of them tolerates.
    let _ = set_timerslack(1);
}

/// Reads a machine's wall clock and raw clock together, and knows when the wall clock was set.
#[derive(Debug)]
pub struct Clocks {
    on_set: TimerFd,
    steps: u32,
}

impl Clocks {
    /// Starts to watch for steps.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub fn new() -> io::Result<Self> {
        let on_set =
            TimerFd::new(TimerClock::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // A timer that nobody waits for (it is due in 2242): it is there for being cancelled when the clock is set.
        let far = Expiration::OneShot(TimeSpec::new(1 << 33, 0));
        let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
        on_set.set(far, flags)?;
        Ok(Clocks { on_set, steps: 0 })
    }

    /// How often the wall clock was set, as of the last reading.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// Reads both clocks. About 1 µs.
    ///
    /// Each wall reading lies between two raw readings, which is known to some 50 ns; three in a row agree on some 40.
    /// Steps are asked for last, so that none before the clocks were read goes unnoticed.
    pub fn read(&mut self) -> ClockReading {
        let steps_before = self.steps;
        let monotonic_first = read(ClockId::CLOCK_MONOTONIC);
        let raws_and_walls: [(i64, i64); 3] =
            std::array::from_fn(|_| (read(ClockId::CLOCK_MONOTONIC_RAW), read(ClockId::CLOCK_REALTIME)));
        let raw_last = read(ClockId::CLOCK_MONOTONIC_RAW);
        let monotonic_last = read(ClockId::CLOCK_MONOTONIC);
        let steering = sys::clock_steering().map_or(Steering::UNKNOWN, |timex| Steering {
            tick: timex.tick,
            pending: Nanos::new(timex.offset.saturating_mul(if timex.status & libc::STA_NANO != 0 {
                1
            } else {
                1_000
            })),
            constant: timex.constant,
        });
        if self.on_set.wait().is_ok() {
            self.steps = self.steps.wrapping_add(1);
        }
        let slew_ppb = steering.largest_slew_ppb();
        let [(raw_first, wall_first), (raw_second, _), (raw_third, wall)] = raws_and_walls;
        // When the last wall reading was taken: each earlier one, carried on by what the wall clock went since, says so
        // too, but for what the two clocks may have parted meanwhile.
        let parted = i64::from(slew_ppb).saturating_mul(raw_last - raw_first) / 1_000_000_000 + 1;
        let starts = raws_and_walls.iter().map(|(raw, at)| raw + (wall - at) - parted);
        let ends = raws_and_walls.iter().zip([raw_second, raw_third, raw_last]);
        let ends = ends.map(|((_, at), raw)| raw + (wall - at) + parted);
        let (earliest, latest) = (starts.fold(raw_third, i64::max), ends.fold(raw_last, i64::min));
        // Only a step among the readings makes them disagree.
        let raw = if earliest <= latest { (earliest, latest) } else { (raw_third, raw_last) };
        ClockReading {
            wall: Time::from_nanos(wall),
            raw: Span { earliest: Time::from_nanos(raw.0), latest: Time::from_nanos(raw.1) },
            ahead_of_monotonic: (
                Nanos::new(wall.min(wall_first).saturating_sub(monotonic_last)),
                Nanos::new(wall.max(wall_first).saturating_sub(monotonic_first)),
            ),
            slew_ppb,
            steps_before,
            steps_after: self.steps,
        }
    }
}

/// Readable when the wall clock was set; [`Clocks::read`] takes that off.
impl AsFd for Clocks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.on_set.as_fd()
    }
}

/// A [`SuspendWatch`] that several threads ask, so that all count the same.
#[derive(Clone, Debug, Default)]
pub struct SharedSuspendWatch(Arc<Mutex<SuspendWatch>>);

impl SharedSuspendWatch {
    /// Shares a watch.
    pub fn new(watch: SuspendWatch) -> Self {
        SharedSuspendWatch(Arc::new(Mutex::new(watch)))
    }

    /// See [`SuspendWatch::count`].
    pub fn count(&self) -> u32 {
        // A count is whole after each call, whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).count()
    }
}

/// Notices that the machine was suspended: `CLOCK_MONOTONIC_RAW` stood still meanwhile, `CLOCK_BOOTTIME` did not. Or that it
/// was moved or restored, where a hypervisor tells ([`crate::vmclock`]): that disrupts its clocks as a suspend does, and
/// counts as one.
#[derive(Debug)]
pub struct SuspendWatch {
    /// `CLOCK_BOOTTIME` − `CLOCK_MONOTONIC` is not more than this.
    asleep_at_most: i64,
    hypervisor: Option<VmClock>,
    count: u32,
}

impl SuspendWatch {
    /// Starts to watch.
    pub fn new() -> Self {
        Self::with_hypervisor(VmClock::of_this_machine())
    }

    /// Starts to watch, and to hear this hypervisor.
    pub fn with_hypervisor(hypervisor: Option<VmClock>) -> Self {
        SuspendWatch { asleep_at_most: i64::MAX, hypervisor, count: 0 }.checked()
    }

    /// How often the machine was suspended or moved since [`SuspendWatch::new`]. About 80 ns.
    pub fn count(&mut self) -> u32 {
        let before = read(ClockId::CLOCK_MONOTONIC);
        let boot = read(ClockId::CLOCK_BOOTTIME);
        let after = read(ClockId::CLOCK_MONOTONIC);
        let (at_least, at_most) = (boot - after, boot - before);
        if at_least > self.asleep_at_most {
            self.count = self.count.wrapping_add(1);
            self.asleep_at_most = at_most;
        }
        self.asleep_at_most = self.asleep_at_most.min(at_most);
        if self.hypervisor.as_mut().is_some_and(VmClock::disrupted) {
            self.count = self.count.wrapping_add(1);
        }
        self.count
    }

    fn checked(mut self) -> Self {
        self.count();
        self
    }
}

impl Default for SuspendWatch {
    fn default() -> Self {
        Self::new()
    }
}

/// The kernel's present clock source, such as `tsc`; none where /sys does not tell.
pub fn clock_source() -> Option<String> {
    let name =
        std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource").ok()?;
    Some(name.trim().to_owned())
}

/// Whether a clock source is a counter whose rate is an oscillator's: then `CLOCK_MONOTONIC_RAW`'s is too. Others are
/// read through a hypervisor or a slow bus, which may change their rate.
pub fn is_trusted_source(name: &str) -> bool {
    matches!(name, "tsc" | "arch_sys_counter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::translate;

    #[test]
    fn a_simulated_clock_deviates_as_described() {
        let simulation: Simulation = "offset=35ms,drift=40ppm".parse().unwrap();
        let clock = HostClock::simulated(simulation);
        let raw = raw_now();
        assert_eq!(clock.at(raw).as_nanos() - raw.as_nanos(), simulation.deviation(raw).get());
        assert!(clock.is_simulated() && !HostClock::real().is_simulated());
        assert_eq!(HostClock::real().deviation(raw), Nanos::ZERO);
    }

    #[test]
    fn sleeping_never_ends_early() {
        let clock = HostClock::simulated("drift=-500ppm".parse().unwrap());
        for micros in [0, 50, 300] {
            let deadline = clock.now() + Nanos::from_micros(micros);
            assert!(clock.sleep_until(deadline) >= deadline);
        }
    }

    /// Reads the real clocks: a raw reading and a wall reading taken between two [`Clocks::read`] must agree.
    #[test]
    fn a_wall_reading_is_translated_to_the_raw_instant_at_which_it_was_taken() {
        let mut clocks = Clocks::new().unwrap();
        for _ in 0..1_000 {
            let before = clocks.read();
            let low = raw_now();
            let wall = wall_now();
            let high = raw_now();
            let after = clocks.read();
            // Somebody may set this machine's clock while the test runs; then there is no stamp, which is right.
            let Some(span) = translate(wall, &before, &after) else { continue };
            assert!(span.latest >= low && span.earliest <= high, "{span:?} misses {low:?}..={high:?}");
        }
    }

    #[test]
    fn a_machine_that_stays_awake_counts_no_suspends() {
        let mut watch = SuspendWatch::new();
        for _ in 0..1_000 {
            assert_eq!(watch.count(), 0);
        }
    }
}
