//! How fast background work may go, and how far it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use timesync::clock::HostClock;
use timesync::time::{Host, Nanos, Time};

use super::lock;
use crate::sync::{Mutex, thread};

/// Whoever wants the work to stop waits no longer for it.
const NAP: Duration = Duration::from_millis(20);

/// Default of [`Pace::set_rate`]: 256 MiB a second.
const DEFAULT_RATE: u64 = 256 << 20;

/// Spaces out what a volume's background threads read.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes per second, above 0.
    rate: AtomicU64,
    /// When what was done so far is paid for.
    free_at: Mutex<Option<Time<Host>>>,
    done: AtomicU64,
    /// Bytes of the merge under way; 0: there is none.
    total: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            rate: AtomicU64::new(DEFAULT_RATE),
            free_at: Mutex::default(),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
        }
    }
}

impl Pace {
    pub(super) fn set_rate(&self, bytes_per_second: u64) {
        self.rate.store(bytes_per_second.max(1), Ordering::Relaxed);
    }

    /// Waits until `bytes` that were just done are paid for. False if they are to `stop` meanwhile.
    pub(super) fn pay(&self, bytes: u64, clock: &HostClock, stop: impl Fn() -> bool) -> bool {
        let due = {
            let mut free_at = lock(&self.free_at);
            let due = after(*free_at, clock.now(), bytes, self.rate.load(Ordering::Relaxed));
            *free_at = Some(due);
            due
        };
        loop {
            if stop() {
                return false;
            }
            let left = due - clock.now();
            if left <= Nanos::ZERO {
                return true;
            }
            thread::sleep(left.to_std().min(NAP));
        }
    }

    pub(super) fn begin(&self, total: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.total.store(total, Ordering::Relaxed);
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.total.store(0, Ordering::Relaxed);
    }

    /// How much of the merge under way is done, in percent.
    pub(super) fn progress(&self) -> Option<u8> {
        let (done, total) = (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        let percent = (u128::from(done) * 100).checked_div(u128::from(total))?;
        Some(u8::try_from(percent.min(100)).unwrap_or(100))
    }
}

/// When `bytes` are paid for that were done by `now`, if those before are by `free_at`. Idle time is not saved up.
fn after(free_at: Option<Time<Host>>, now: Time<Host>, bytes: u64, rate: u64) -> Time<Host> {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    let begin = free_at.map_or(now, |free_at| free_at.max(now));
    begin + Nanos::new(i64::try_from(nanos).unwrap_or(i64::MAX / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_as_long_as_its_rate_says_and_idle_time_is_lost() {
        let at = |nanos| Time::<Host>::from_nanos(nanos);
        let second = 1_000_000_000;
        assert_eq!(after(None, at(5), 100, 100), at(5 + second));
        assert_eq!(after(Some(at(5 + second)), at(6), 50, 100), at(5 + second + second / 2));
        assert_eq!(after(Some(at(7)), at(9 * second), 100, 100), at(10 * second));
    }

    #[test]
    fn progress_is_that_of_the_merge_under_way() {
        let pace = Pace::default();
        assert_eq!(pace.progress(), None);
        pace.begin(200);
        pace.advance(86);
        assert_eq!(pace.progress(), Some(43));
        pace.end();
        assert_eq!(pace.progress(), None);
    }
}
