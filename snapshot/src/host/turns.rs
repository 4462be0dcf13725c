//! One thing is done with an external volume at a time.
//!
//! Whoever comes while something else is done is refused. But an attempt that came to nothing may need a while to end: a
//! command that takes a snapshot cannot be called back. For that one waits a little; the next attempt is often the
//! same coordinator's.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a turn waits for one that is ending.
const PATIENCE: Duration = Duration::from_secs(20);

/// The turns that one volume's users take.
#[derive(Debug, Default)]
pub(super) struct Turns {
    work: Mutex<Option<Work>>,
    over: Condvar,
}

#[derive(Debug)]
struct Work {
    what: String,
    ending: bool,
}

/// While this lives, nobody else has one.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    /// Begins to do something.
    ///
    /// # Errors
    /// What else is being done.
    pub(super) fn take(self: &Arc<Self>, what: &str) -> Result<Turn, String> {
        let ending = |work: &mut Option<Work>| work.as_ref().is_some_and(|work| work.ending);
        let waited = self.over.wait_timeout_while(self.lock(), PATIENCE, ending);
        let mut work = waited.unwrap_or_else(PoisonError::into_inner).0;
        if let Some(other) = &*work {
            return Err(other.what.clone());
        }
        *work = Some(Work { what: what.to_owned(), ending: false });
        Ok(Turn(Arc::clone(self)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Work>> {
        // Each change under the lock is one assignment.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// It has come to nothing, and is over as soon as it can be.
    pub(super) fn is_ending(&self) {
        if let Some(work) = &mut *self.0.lock() {
            work.ending = true;
        }
        // Nobody waits yet: those who came before were refused.
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *self.0.lock() = None;
        self.0.over.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_is_refused_but_waits_for_what_is_ending() {
        let turns = Arc::<Turns>::default();
        let first = turns.take("snapshot attempt 1").unwrap();
        assert_eq!(turns.take("deleting s").unwrap_err(), "snapshot attempt 1");
        first.is_ending();
        let next = std::thread::scope(|scope| {
            let next = scope.spawn(|| turns.take("snapshot attempt 2"));
            drop(first);
            next.join().unwrap()
        });
        assert_eq!(turns.take("deleting s").unwrap_err(), "snapshot attempt 2");
        drop(next);
        turns.take("deleting s").unwrap();
    }
}
