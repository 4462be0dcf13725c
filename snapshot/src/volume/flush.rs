//! Flushes that arrive together become one.

use std::sync::PoisonError;

use super::lock;
use crate::device::DeviceError;
use crate::sync::{Condvar, Mutex};

/// Syncs in rounds: a caller is served by a round that *began* after it came.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    rounds: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    begun: u64,
    running: bool,
    /// The last round that ended, and how.
    ended: u64,
    failure: Option<DeviceError>,
}

impl Flushes {
    /// Runs `sync` in a new round, or waits for somebody who does.
    ///
    /// A later round than the needed one may have ended meanwhile; its result counts as well: it covered all that the
    /// needed one did.
    ///
    /// # Errors
    /// As `sync` had it.
    pub(super) fn run(&self, sync: impl FnOnce() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
        let mut rounds = lock(&self.rounds);
        let needed = rounds.begun + 1;
        while rounds.running && rounds.ended < needed {
            rounds = self.ended.wait(rounds).unwrap_or_else(PoisonError::into_inner);
        }
        if rounds.ended < needed {
            (rounds.begun, rounds.running) = (needed, true);
            drop(rounds);
            let result = sync();
            rounds = lock(&self.rounds);
            (rounds.ended, rounds.running, rounds.failure) = (needed, false, result.err());
            self.ended.notify_all();
        }
        rounds.failure.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_round_that_began_earlier_does_not_serve_and_later_ones_are_shared() {
        let flushes = Arc::new(Flushes::default());
        let (began, go_on) = (mpsc::channel(), mpsc::channel());
        let syncs = Arc::new(AtomicUsize::new(0));
        let first = {
            let flushes = Arc::clone(&flushes);
            thread::spawn(move || {
                flushes.run(|| {
                    began.0.send(()).unwrap();
                    go_on.1.recv().unwrap();
                    Err(DeviceError::Io)
                })
            })
        };
        began.1.recv().unwrap();
        let later: Vec<_> = (0..8)
            .map(|_| {
                let (flushes, syncs) = (Arc::clone(&flushes), Arc::clone(&syncs));
                thread::spawn(move || {
                    flushes.run(|| {
                        syncs.fetch_add(1, Ordering::SeqCst);
                        Ok(())
                    })
                })
            })
            .collect();
        go_on.0.send(()).unwrap();
        assert_eq!(first.join().unwrap(), Err(DeviceError::Io));
        for thread in later {
            assert_eq!(thread.join().unwrap(), Ok(()), "served by the round that had begun before");
        }
        assert!((1..=8).contains(&syncs.load(Ordering::SeqCst)));
        assert_eq!(flushes.run(|| Err(DeviceError::NoSpace)), Err(DeviceError::NoSpace));
        assert_eq!(flushes.run(|| Ok(())), Ok(()));
    }
}
