//! The watchdog: a process of its own that pauses a volume and resumes it, whatever happens to the daemon.
//!
//! One process for each pause. It is started before anything is paused, with what it needs already open, locks itself
//! into memory, and waits for its order, which names the deadline. Then it
//!
//! 1. pauses, and reads P;
//! 2. resumes at a reading Q ≥ T + V (barrier: when told that every host has cut), if it was told that the snapshot was
//!    taken; at the deadline otherwise, and at once when the daemon says so or is gone.
//!
//! As only the watchdog resumes, and says by which cause, a daemon that was stopped for longer than the deadline learns
//! here that its attempt is void.
//!
//! If the watchdog itself is killed, the daemon resumes in its place and the attempt is void. If both are, the next run
//! of the daemon does; see [`crate::host`].

mod client;
mod process;

use serde::{Deserialize, Serialize};
use timesync::time::{Host, Nanos, Time};

use crate::cut::Cause;
use crate::orders::ArmTiming;

pub use client::{Watchdog, WatchdogProgram};
pub use process::run;

/// When to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PauseOrder {
    /// T and V; or a barrier.
    pub timing: ArmTiming,
    /// So long after the pause began it ends, whatever happens.
    pub deadline: Nanos,
}

/// What the daemon tells its watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Word {
    /// What its standard output is for.
    Hold(super::Pause),
    /// Pause now.
    Pause(PauseOrder),
    /// The snapshot was taken.
    Taken,
    /// Barrier: every host has cut.
    Release,
    /// Resume at once.
    Abort,
}

/// What a watchdog says to its daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Report {
    /// It is in memory and waits for its order.
    Ready,
    /// It is paused.
    Paused(Paused),
    /// It is not: the sentence says why.
    NotPaused(String),
    /// The pause is over.
    Resumed(Resumed),
}

/// A pause that was confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// A reading before it: from here on writes may have waited.
    pub began: Time<Host>,
    /// P: the reading after it.
    pub p: Time<Host>,
}

/// A pause that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Q: the reading before the resume.
    pub q: Time<Host>,
    /// Why it was resumed.
    pub cause: Cause,
    /// Somebody else had resumed it before, nobody knows when: what was read proves nothing.
    pub by_others: bool,
}

/// What a watchdog knows of its pause. No I/O and no clock.
#[derive(Clone, Copy, Debug)]
struct Watch {
    order: PauseOrder,
    paused: Paused,
    taken: bool,
    released: bool,
    aborted: bool,
}

/// What it does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Listen until then at the latest.
    Listen(Time<Host>),
    /// Resume, by this cause.
    Resume(Cause),
}

impl Watch {
    fn new(order: PauseOrder, paused: Paused) -> Self {
        let late = matches!(order.timing, ArmTiming::Timed { at, .. } if paused.p >= at);
        Watch { order, paused, taken: false, released: false, aborted: late }
    }

    fn hear(&mut self, word: &Word) {
        match word {
            Word::Taken => self.taken = true,
            Word::Release => self.released = true,
            // Nothing else is said to a watchdog that has paused.
            Word::Abort | Word::Hold(_) | Word::Pause(_) => self.aborted = true,
        }
    }

    /// The daemon is gone.
    fn hung_up(&mut self) {
        self.aborted = true;
    }

    /// `now` is the reading that a resume would be by.
    fn next(&self, now: Time<Host>) -> Next {
        let deadline = self.paused.began + self.order.deadline;
        if self.aborted {
            return Next::Resume(Cause::Abort);
        }
        if now >= deadline {
            return Next::Resume(Cause::Timeout);
        }
        match self.order.timing {
            ArmTiming::Timed { at, stretch } if self.taken && now >= at + stretch => {
                Next::Resume(Cause::Time)
            }
            ArmTiming::Timed { at, stretch } if self.taken => Next::Listen(deadline.min(at + stretch)),
            ArmTiming::Barrier if self.taken && self.released => Next::Resume(Cause::Barrier),
            _ => Next::Listen(deadline),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: i64 = 1_000_000;
    const V: i64 = 2_000;
    const DEADLINE: i64 = 5_000_000;

    fn at(nanos: i64) -> Time<Host> {
        Time::from_nanos(nanos)
    }

    fn watch(timing: ArmTiming) -> Watch {
        let order = PauseOrder { timing, deadline: Nanos::new(DEADLINE) };
        Watch::new(order, Paused { began: at(0), p: at(T - 1) })
    }

    fn timed() -> Watch {
        watch(ArmTiming::Timed { at: at(T), stretch: Nanos::new(V) })
    }

    #[test]
    fn it_resumes_at_t_plus_v_once_the_snapshot_is_taken() {
        let mut watch = timed();
        assert_eq!(watch.next(at(T + V)), Next::Listen(at(DEADLINE)), "not taken yet");
        watch.hear(&Word::Taken);
        assert_eq!(watch.next(at(T + V - 1)), Next::Listen(at(T + V)));
        assert_eq!(watch.next(at(T + V)), Next::Resume(Cause::Time));
    }

    #[test]
    fn the_deadline_voids_even_what_was_taken() {
        let mut watch = timed();
        assert_eq!(watch.next(at(DEADLINE - 1)), Next::Listen(at(DEADLINE)));
        watch.hear(&Word::Taken);
        assert_eq!(watch.next(at(DEADLINE)), Next::Resume(Cause::Timeout));
    }

    #[test]
    fn a_daemon_that_is_gone_or_says_so_ends_it_at_once() {
        for end in [|watch: &mut Watch| watch.hung_up(), |watch: &mut Watch| watch.hear(&Word::Abort)] {
            let mut watch = timed();
            watch.hear(&Word::Taken);
            end(&mut watch);
            assert_eq!(watch.next(at(T + V)), Next::Resume(Cause::Abort));
        }
    }

    #[test]
    fn a_pause_that_came_too_late_ends_at_once() {
        let order = timed().order;
        let watch = Watch::new(order, Paused { began: at(0), p: at(T) });
        assert_eq!(watch.next(at(T)), Next::Resume(Cause::Abort));
    }

    #[test]
    fn a_barrier_waits_for_the_snapshot_and_for_every_host() {
        for words in [[Word::Taken, Word::Release], [Word::Release, Word::Taken]] {
            let mut watch = watch(ArmTiming::Barrier);
            watch.hear(&words[0]);
            assert_eq!(watch.next(at(T + V)), Next::Listen(at(DEADLINE)));
            watch.hear(&words[1]);
            assert_eq!(watch.next(at(T + V)), Next::Resume(Cause::Barrier));
        }
    }

    #[test]
    fn a_release_does_not_shorten_a_timed_cut() {
        let mut watch = timed();
        watch.hear(&Word::Taken);
        watch.hear(&Word::Release);
        assert_eq!(watch.next(at(T)), Next::Listen(at(T + V)));
    }
}
