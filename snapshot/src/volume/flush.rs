//! Flushes that arrive together become one.

use std::sync::{Arc, PoisonError};

use super::lock;
use crate::device::DeviceError;
use crate::sync::{Condvar, Mutex};

/// Syncs in rounds: a caller is served by a round that *began* after it came.
///
/// Who comes while a round is under way joins the next one, and one of those who joined it runs it for all. Each of them
/// is woken once: with many clients that sync, waking would otherwise cost as much processor time as writing.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    rounds: Mutex<Rounds>,
}

#[derive(Debug, Default)]
struct Rounds {
    running: bool,
    /// Somebody has joined it.
    next: Option<Arc<Round>>,
}

/// A round that several have joined.
#[derive(Debug, Default)]
struct Round {
    stage: Mutex<Stage>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    /// The round before is under way.
    #[default]
    Early,
    /// Whoever sees this first runs it.
    Due,
    Running,
    Ended(Result<(), DeviceError>),
}

impl Flushes {
    /// Runs `sync` in a new round, or waits for somebody who does.
    ///
    /// # Errors
    /// As `sync` had it. [`DeviceError::Io`] if somebody's `sync` panicked, who ran it for this caller.
    pub(super) fn run(&self, sync: impl FnOnce() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
        let joined = {
            let mut rounds = lock(&self.rounds);
            if rounds.running {
                Some(Arc::clone(rounds.next.get_or_insert_default()))
            } else {
                rounds.running = true;
                None
            }
        };
        if let Some(result) = joined.as_ref().and_then(|round| round.wait()) {
            return result;
        }
        let mut running = Running { flushes: self, joined, result: Err(DeviceError::Io) };
        running.result = sync();
        running.result
    }
}

impl Round {
    /// Waits for its end. None if the caller is to run it.
    fn wait(&self) -> Option<Result<(), DeviceError>> {
        let mut stage = lock(&self.stage);
        loop {
            match *stage {
                Stage::Early | Stage::Running => {
                    stage = self.changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
                }
                Stage::Due => {
                    *stage = Stage::Running;
                    return None;
                }
                Stage::Ended(result) => return Some(result),
            }
        }
    }
}

/// A round under way. It ends when this is dropped, when `sync` panics too.
struct Running<'a> {
    flushes: &'a Flushes,
    joined: Option<Arc<Round>>,
    result: Result<(), DeviceError>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let next = {
            let mut rounds = lock(&self.flushes.rounds);
            rounds.running = rounds.next.is_some();
            rounds.next.take()
        };
        // First of all: the disk is idle.
        if let Some(next) = next {
            *lock(&next.stage) = Stage::Due;
            next.changed.notify_one();
        }
        if let Some(joined) = &self.joined {
            *lock(&joined.stage) = Stage::Ended(self.result);
            joined.changed.notify_all();
        }
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

    #[test]
    fn when_a_sync_panics_those_who_joined_its_round_hear_of_an_error_and_later_ones_go_on() {
        let flushes = Arc::new(Flushes::default());
        let (began, go_on) = (mpsc::channel(), mpsc::channel());
        let first = {
            let flushes = Arc::clone(&flushes);
            thread::spawn(move || {
                flushes.run(|| {
                    began.0.send(()).unwrap();
                    go_on.1.recv().unwrap();
                    Ok(())
                })
            })
        };
        began.1.recv().unwrap();
        let joined: Vec<_> = (0..3)
            .map(|_| {
                let flushes = Arc::clone(&flushes);
                thread::spawn(move || flushes.run(|| panic!("as a disk's driver should not")))
            })
            .collect();
        while lock(&flushes.rounds).next.as_ref().map_or(0, Arc::strong_count) < 1 + joined.len() {
            thread::yield_now();
        }
        go_on.0.send(()).unwrap();
        assert_eq!(first.join().unwrap(), Ok(()));
        let (panicked, told): (Vec<_>, Vec<_>) =
            joined.into_iter().map(thread::JoinHandle::join).partition(Result::is_err);
        assert_eq!(panicked.len(), 1);
        assert!(told.into_iter().all(|result| result.unwrap() == Err(DeviceError::Io)));
        assert_eq!(flushes.run(|| Ok(())), Ok(()));
    }
}
