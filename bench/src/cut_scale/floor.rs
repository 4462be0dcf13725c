//! How late threads that want to go on at one instant do so on this machine: what a cut of so many hosts that share its
//! processors cannot do better than. On processors of their own they do not wait for each other.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use super::Failure;
use super::real::now;
use crate::quantiles::Quantiles;

/// From one instant to the next, in ns.
const APART: i64 = 50_000_000;
/// From here on a keeper spins if its host holds a reply.
const SPIN: i64 = 100_000;

/// The lateness of `watched` of so many `threads` that wait as the hosts' keepers do, over so many instants: these as one
/// whose host holds a reply.
pub(super) fn lateness(threads: usize, watched: usize, instants: usize) -> Result<Quantiles, Failure> {
    let first = now() + APART;
    let late = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for number in 0..threads {
            let late = &late;
            let wait = move || {
                // As a keeper: without it the kernel may add 50 µs to each sleep.
                let _ = nix::sys::prctl::set_timerslack(1);
                for at in (0..).map(|instant| first + instant * APART).take(instants) {
                    let woken = sleep_until(at, number < watched);
                    if number < watched
                        && let Ok(mut late) = late.lock()
                    {
                        late.push(woken - at);
                    }
                }
            };
            thread::Builder::new().spawn_scoped(scope, wait)?;
        }
        Ok::<_, std::io::Error>(())
    })?;
    Ok(Quantiles::of(&late.into_inner()?))
}

/// The first reading that is not before `at`.
fn sleep_until(at: i64, spins: bool) -> i64 {
    loop {
        let now = now();
        match at - now {
            ..=0 => return now,
            left if left > SPIN => thread::sleep(Duration::from_nanos(left.unsigned_abs() / 2)),
            _ if spins => thread::yield_now(),
            left => thread::sleep(Duration::from_nanos(left.unsigned_abs())),
        }
    }
}
