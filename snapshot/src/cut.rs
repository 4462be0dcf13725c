//! One cut on one host: which requests lie before it (R1), when later ones may be answered (R2), and what the clock
//! read meanwhile. No I/O and no clock: callers pass their readings in, so that each rule stands next to its reading.
//!
//! Why no timer is needed: a request's epoch is decided by a reading taken after the whole request was received, and
//! a post request's completion waits for a reading ≥ T + V. A thread that sleeps at the worst place reads a later
//! clock afterwards; later classification is post, later release is later still, and both are safe.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use timesync::time::{Host, Nanos, Time};
use utoipa::ToSchema;

#[cfg(feature = "simulation")]
use crate::mutation::mutated;
use crate::sync::{Mutex, MutexGuard};

/// On which side of the cut a request lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epoch {
    /// Before the cut: part of the snapshot.
    Pre,
    /// After the cut: not part of it, and answered only once no other host can still be before its own.
    Post,
}

/// What ended the stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The host's own clock read T + V or more.
    Time,
    /// A release that carried every host's nonce.
    Barrier,
    /// `max_stretch` ran out. The attempt is void.
    Timeout,
    /// The coordinator called the attempt off, or it was never armed in time. The attempt is void.
    Abort,
    /// Nothing was held or paused: the storage took its snapshot by itself, at an instant that nobody knows. That is good
    /// for one volume alone.
    Unpaused,
}

/// When a host cuts and what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timing {
    /// Cut at `at` and stretch by `stretch` (T and V, in the host's own clock).
    Timed {
        /// T, translated into this host's clock.
        at: Time<Host>,
        /// V.
        stretch: Nanos,
    },
    /// Cut when [`Cut::strike`] says so; stretch until released by message.
    Barrier,
}

/// A reply that waits for the end of the stretch. Called once, after the reading that released it.
pub type HeldReply = Box<dyn FnOnce() + Send>;

/// How long replies were held back beyond the moment they were ready, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Stretch {
    /// Median.
    pub p50: u64,
    /// 99th percentile.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

/// What the host's clock read, and what it did: the host's part of the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// T_i: in timed mode as ordered, in barrier mode as the host chose it.
    pub at: Time<Host>,
    /// P_i: the latest reading that classified a request as pre, or the one at which arming was complete.
    pub p: Time<Host>,
    /// Q_i: the earliest reading before any release, whatever its cause.
    pub q: Time<Host>,
    /// What ended the stretch.
    pub released_by: Cause,
    /// Replies that were held back.
    pub held: u64,
    /// For how long.
    pub stretch_ns: Stretch,
}

impl Readings {
    /// The same with a volume that was paused from before `p` to after `q`, and resumed by `cause`. For all of a host's
    /// volumes, the latest P and the earliest Q count; and a resume that voids the attempt.
    pub fn with_pause(self, p: Time<Host>, q: Time<Host>, cause: Cause) -> Self {
        let released_by = match self.released_by {
            Cause::Time | Cause::Barrier => cause,
            void => void,
        };
        Readings { p: self.p.max(p), q: self.q.min(q), released_by, ..self }
    }
}

struct HeldEntry {
    ready_at: Time<Host>,
    send: HeldReply,
}

impl std::fmt::Debug for HeldEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "reply ready at {:?}", self.ready_at)
    }
}

#[derive(Debug)]
struct Replies {
    waiting: Vec<HeldEntry>,
    released_by: Option<Cause>,
    stretch: Histogram<u64>,
}

/// One cut on one host, shared by all its volumes that take part.
#[derive(Debug)]
pub struct Cut {
    stretch: Option<Nanos>,
    max_stretch: Nanos,
    /// T_i; `i64::MAX` in barrier mode until the cut is struck.
    at: AtomicI64,
    /// P_i.
    pre_latest: AtomicI64,
    /// Q_i; `i64::MAX` while nothing was released.
    released_at: AtomicI64,
    /// Set after `released_by`, so that requests after the stretch pay one load instead of a lock.
    released: AtomicBool,
    replies: Mutex<Replies>,
    /// Only for a mistake: a timer for T has gone off.
    #[cfg(feature = "simulation")]
    pub(crate) timer: AtomicBool,
}

impl Cut {
    /// A cut that no request has seen yet. The stretch never exceeds `max_stretch` after T.
    pub fn new(timing: Timing, max_stretch: Nanos) -> Self {
        let (at, stretch) = match timing {
            Timing::Timed { at, stretch } => (at.as_nanos(), Some(stretch)),
            Timing::Barrier => (i64::MAX, None),
        };
        Cut {
            stretch,
            max_stretch,
            at: AtomicI64::new(at),
            pre_latest: AtomicI64::new(i64::MIN),
            released_at: AtomicI64::new(i64::MAX),
            released: AtomicBool::new(false),
            replies: Mutex::new(Replies { waiting: Vec::new(), released_by: None, stretch: new_histogram() }),
            #[cfg(feature = "simulation")]
            timer: AtomicBool::new(false),
        }
    }

    /// T_i, once it is known.
    pub fn at(&self) -> Option<Time<Host>> {
        let at = self.at.load(Ordering::SeqCst);
        (at != i64::MAX).then_some(Time::from_nanos(at))
    }

    /// The reading from which post requests may be answered without anybody's message: T + V, or T + `max_stretch`
    /// in barrier mode. None before a barrier cut is struck.
    pub fn release_due(&self) -> Option<Time<Host>> {
        Some(self.at()? + self.stretch.unwrap_or(self.max_stretch))
    }

    /// How late a release may be without a reply being held for longer than `max_stretch`. None in barrier mode: there
    /// the release by this host's clock comes at the very end.
    pub fn leeway(&self) -> Nanos {
        self.stretch.map_or(Nanos::ZERO, |stretch| self.max_stretch - stretch)
    }

    /// Completes arming: `reading` was taken after the last thread that could dispatch by the unarmed state was done.
    ///
    /// P_i starts here, because requests that were dispatched unarmed belong to the sealed layer and were classified
    /// no later than this reading.
    ///
    /// # Errors
    /// [`TooLate`] when the reading is not before T: somebody may have been dispatched unarmed after T. The caller
    /// must call the attempt off.
    pub fn armed(&self, reading: Time<Host>) -> Result<(), TooLate> {
        #[cfg(feature = "simulation")]
        if let Some(at) = self.at().filter(|_| mutated!(LateOrder)) {
            // Nobody looks whether it is: P is taken to lie before T, as it always does.
            self.pre_latest.fetch_max(reading.min(at - Nanos::new(1)).as_nanos(), Ordering::SeqCst);
            return Ok(());
        }
        self.pre_latest.fetch_max(reading.as_nanos(), Ordering::SeqCst);
        match self.at() {
            Some(at) if reading >= at => Err(TooLate { by: reading - at }),
            _ => Ok(()),
        }
    }

    /// Barrier mode: cuts now. `reading` must be taken while no request can be between its reading and its
    /// classification (all gates closed), so that every earlier one was below the T_i chosen here.
    pub fn strike(&self, reading: Time<Host>) -> Time<Host> {
        let at = reading + Nanos::new(1);
        self.pre_latest.fetch_max(reading.as_nanos(), Ordering::SeqCst);
        self.at.store(at.as_nanos(), Ordering::SeqCst);
        at
    }

    /// R1. `reading` must be taken after the whole request was received and after it was registered as in flight.
    pub fn classify(&self, reading: Time<Host>) -> Epoch {
        #[cfg(feature = "simulation")]
        if mutated!(ClassifyByTimer) && self.stretch.is_some() {
            return if self.timer.load(Ordering::SeqCst) { Epoch::Post } else { Epoch::Pre };
        }
        if reading.as_nanos() < self.at.load(Ordering::SeqCst) {
            self.pre_latest.fetch_max(reading.as_nanos(), Ordering::SeqCst);
            Epoch::Pre
        } else {
            Epoch::Post
        }
    }

    /// Whether the stretch is over for everybody: from here on, post requests are answered like any other.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }

    /// R2. Whether a completion may be sent after `reading`, which must be taken before the send. The first reading
    /// that allows it releases everything that waits.
    pub fn may_release(&self, reading: Time<Host>) -> bool {
        if self.is_released() {
            return true;
        }
        let Some(due) = self.release_due() else { return false };
        if reading < due {
            return false;
        }
        self.release(if self.stretch.is_some() { Cause::Time } else { Cause::Timeout }, reading);
        true
    }

    /// Keeps a post request's reply (or a read's that saw a held write) until the stretch ends.
    ///
    /// # Errors
    /// Gives the reply back if the stretch has ended meanwhile: the caller sends it at once.
    pub fn hold(&self, ready_at: Time<Host>, send: HeldReply) -> Result<(), HeldReply> {
        let mut replies = self.lock();
        if replies.released_by.is_some() {
            return Err(send);
        }
        replies.waiting.push(HeldEntry { ready_at, send });
        Ok(())
    }

    /// Whether replies wait.
    pub fn is_holding(&self) -> bool {
        !self.lock().waiting.is_empty()
    }

    /// Ends the stretch and sends what waits. The first cause stays; every reading counts for Q, the earliest wins.
    pub fn release(&self, cause: Cause, reading: Time<Host>) {
        // Before `released`: whoever sees the flag must find a Q that is no later than its own send.
        self.released_at.fetch_min(reading.as_nanos(), Ordering::SeqCst);
        let waiting = {
            let mut replies = self.lock();
            replies.released_by.get_or_insert(cause);
            let waiting = std::mem::take(&mut replies.waiting);
            for entry in &waiting {
                record(&mut replies.stretch, reading - entry.ready_at);
            }
            waiting
        };
        self.released.store(true, Ordering::SeqCst);
        for entry in waiting {
            (entry.send)();
        }
    }

    /// What ended the stretch; none before it ended.
    pub fn released_by(&self) -> Option<Cause> {
        self.lock().released_by
    }

    /// The host's part of the certificate; none before the cut was released.
    pub fn readings(&self) -> Option<Readings> {
        let replies = self.lock();
        let released_by = replies.released_by?;
        let stretch = &replies.stretch;
        Some(Readings {
            at: Time::from_nanos(self.at.load(Ordering::SeqCst)),
            p: Time::from_nanos(self.pre_latest.load(Ordering::SeqCst)),
            q: Time::from_nanos(self.released_at.load(Ordering::SeqCst)),
            released_by,
            held: stretch.len(),
            stretch_ns: Stretch {
                p50: stretch.value_at_quantile(0.5),
                p99: stretch.value_at_quantile(0.99),
                max: stretch.max(),
            },
        })
    }

    fn lock(&self) -> MutexGuard<'_, Replies> {
        // A panic while the lock was held cannot leave replies half moved: each step under it is one assignment.
        self.replies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn record(histogram: &mut Histogram<u64>, held_for: Nanos) {
    histogram.saturating_record(u64::try_from(held_for.get()).unwrap_or(0));
}

#[expect(
    clippy::expect_used,
    reason = "the arguments are constants that hdrhistogram accepts: 1 ≤ 10 s, 2 digits"
)]
fn new_histogram() -> Histogram<u64> {
    // A third digit makes ten times as many counters, to be cleared and read through in every cut.
    Histogram::new_with_bounds(1, 10_000_000_000, 2).expect("constant bounds")
}

/// An order arrived after its T.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the order was armed {by} after its own T")]
pub struct TooLate {
    /// How long after T the host was ready.
    pub by: Nanos,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const T: i64 = 1_000_000;
    const V: i64 = 2_000;

    fn at(nanos: i64) -> Time<Host> {
        Time::from_nanos(nanos)
    }

    fn timed() -> Cut {
        Cut::new(Timing::Timed { at: at(T), stretch: Nanos::new(V) }, Nanos::from_millis(100))
    }

    fn counter(sent: &Arc<AtomicUsize>) -> HeldReply {
        let sent = Arc::clone(sent);
        Box::new(move || {
            sent.fetch_add(1, Ordering::SeqCst);
        })
    }

    #[test]
    fn a_request_is_pre_only_below_t() {
        let cut = timed();
        assert_eq!(cut.classify(at(T - 1)), Epoch::Pre);
        assert_eq!(cut.classify(at(T)), Epoch::Post);
        cut.release(Cause::Abort, at(T + 1));
        assert_eq!(cut.readings().unwrap().p, at(T - 1), "a post reading is no part of P");
    }

    #[test]
    fn arming_after_t_is_refused() {
        assert_eq!(timed().armed(at(T - 1)), Ok(()));
        assert_eq!(timed().armed(at(T)), Err(TooLate { by: Nanos::ZERO }));
    }

    #[test]
    fn a_release_may_be_as_late_as_the_limit_leaves() {
        let limit = Nanos::from_millis(100);
        assert_eq!(timed().leeway(), limit - Nanos::new(V));
        assert_eq!(Cut::new(Timing::Barrier, limit).leeway(), Nanos::ZERO);
    }

    #[test]
    fn arming_counts_for_p() {
        let cut = timed();
        cut.armed(at(T - 50)).unwrap();
        cut.classify(at(T - 70));
        assert!(cut.may_release(at(T + V)));
        assert_eq!(cut.readings().unwrap().p, at(T - 50));
    }

    #[test]
    fn nothing_is_sent_before_t_plus_v() {
        let (cut, sent) = (timed(), Arc::new(AtomicUsize::new(0)));
        assert!(cut.hold(at(T + 10), counter(&sent)).is_ok());
        assert!(!cut.may_release(at(T + V - 1)));
        assert_eq!(sent.load(Ordering::SeqCst), 0);
        assert!(cut.may_release(at(T + V)));
        assert_eq!(sent.load(Ordering::SeqCst), 1);
        let readings = cut.readings().unwrap();
        assert_eq!((readings.q, readings.released_by, readings.held), (at(T + V), Cause::Time, 1));
        assert_eq!(readings.stretch_ns.max / 10, 199, "held from T + 10 to T + V");
    }

    #[test]
    fn a_reply_that_comes_after_the_release_is_given_back() {
        let (cut, sent) = (timed(), Arc::new(AtomicUsize::new(0)));
        cut.release(Cause::Time, at(T + V));
        assert!(cut.hold(at(T + V), counter(&sent)).is_err(), "held now, it would never be sent");
    }

    #[test]
    fn the_first_cause_and_the_earliest_reading_are_the_evidence() {
        let cut = timed();
        cut.release(Cause::Abort, at(T + 5));
        cut.release(Cause::Time, at(T + V));
        let readings = cut.readings().unwrap();
        assert_eq!((readings.q, readings.released_by), (at(T + 5), Cause::Abort));
    }

    #[test]
    fn a_host_with_volumes_that_pause_cuts_at_its_latest_p_and_releases_at_its_earliest_q() {
        let cut = timed();
        cut.armed(at(T - 50)).unwrap();
        assert!(cut.may_release(at(T + V + 7)));
        let readings = cut.readings().unwrap();
        let later = readings.with_pause(at(T - 80), at(T + V + 90), Cause::Time);
        assert_eq!((later.p, later.q, later.released_by), (at(T - 50), at(T + V + 7), Cause::Time));
        let tighter = readings.with_pause(at(T - 20), at(T + V), Cause::Time);
        assert_eq!((tighter.p, tighter.q), (at(T - 20), at(T + V)));
        let void = readings.with_pause(at(T - 80), at(T + V), Cause::Timeout);
        assert_eq!(void.with_pause(at(T - 80), at(T + V), Cause::Time).released_by, Cause::Timeout);
    }

    #[test]
    fn a_barrier_ends_by_itself_at_max_stretch() {
        let cut = Cut::new(Timing::Barrier, Nanos::from_millis(100));
        assert_eq!(cut.classify(at(5)), Epoch::Pre, "not struck yet");
        assert!(!cut.may_release(at(i64::MAX - 1)), "nothing is held before the cut is struck");
        assert_eq!(cut.strike(at(10)), at(11));
        assert_eq!((cut.classify(at(10)), cut.classify(at(11))), (Epoch::Pre, Epoch::Post));
        assert!(!cut.may_release(at(11 + 99_999_999)));
        assert!(cut.may_release(at(11 + 100_000_000)));
        assert_eq!(cut.readings().unwrap().released_by, Cause::Timeout);
    }
}
