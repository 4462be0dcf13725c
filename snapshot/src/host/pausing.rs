//! A volume that pauses, in one attempt: paused and cut on a thread of its own, so that several pause at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use timesync::clock::HostClock;
use timesync::time::{Host, Nanos, Time};

use super::HostError;
use super::external::External;
use super::turns::Turn;
use crate::backend::BackendError;
use crate::backend::process::Process;
use crate::backend::watchdog::{PauseOrder, Paused, Resumed, Watchdog};
use crate::cut::{Cause, Readings};
use crate::orders::{ArmTiming, AttemptId, ExternalPart, PauseTimes};

/// Somebody who waits for a pause looks at the clock so often.
const LOOK: Duration = Duration::from_millis(5);

/// How long whoever calls an attempt off waits for a pause to end: a freeze that is under way cannot be called back.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// A timed pause begins before T by twice what the last one took, and this: a machine that is busy runs a thread late.
const ALLOWANCE: Nanos = Nanos::from_millis(10);

/// When a pause begins that should be confirmed before T, but not long before: writes wait from then on. One that never
/// was measured, and one that takes long, has half of its deadline.
fn begin(at: Time<Host>, last: Option<Nanos>, deadline: Nanos) -> Time<Host> {
    let half = Nanos::new(deadline.get() / 2);
    at - last.map_or(half, |last| half.min(last + last + ALLOWANCE))
}

/// A volume's part in an attempt.
#[derive(Debug)]
pub(super) struct PausingCut {
    volume: Arc<External>,
    snapshot: String,
    attempt: AttemptId,
    /// None for a backend that has no pause.
    watchdog: Option<Watchdog>,
    clock: HostClock,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    step: Step,
    /// It came to nothing: whoever works on it discards it at the end.
    doomed: bool,
    claim: Option<Turn>,
}

#[derive(Debug)]
enum Step {
    /// Nothing is paused.
    Prepared,
    /// Being paused.
    Pausing,
    /// Paused, and being cut. None without a pause.
    Cutting(Option<Paused>),
    /// Not paused any more, and durable if it is no failure.
    Done(Result<Option<Pausing>, String>),
    /// Committed or discarded.
    Over,
}

/// A pause that is over, as it went.
#[derive(Clone, Copy, Debug)]
struct Pausing {
    paused: Paused,
    /// What the snapshot took, from P on.
    cutting: Nanos,
    resumed: Resumed,
}

impl PausingCut {
    /// Does all that may take time. Nothing is paused yet, and the snapshot not taken.
    pub(super) fn prepare(
        volume: &Arc<External>,
        snapshot: &str,
        attempt: AttemptId,
        clock: &HostClock,
    ) -> Result<Arc<PausingCut>, HostError> {
        let claim = volume.claim(&format!("snapshot attempt {attempt}"))?;
        volume.discard_left_overs()?;
        if volume.backend.list()?.iter().any(|name| name == snapshot) {
            return Err(HostError::Refused(format!(
                "volume {} has a snapshot called {snapshot} in its own storage; choose another name",
                volume.name
            )));
        }
        // Durable before anything is made or paused.
        volume.record.begin(snapshot, attempt)?;
        // From here on, where something fails, dropping the cut discards what was prepared.
        let mut cut = PausingCut {
            volume: Arc::clone(volume),
            snapshot: snapshot.to_owned(),
            attempt,
            watchdog: None,
            clock: clock.clone(),
            state: Mutex::new(State { step: Step::Prepared, doomed: false, claim: Some(claim) }),
            changed: Condvar::new(),
        };
        if let Some(held) = volume.backend.prepare(snapshot)? {
            let pause = held.pause.clone();
            let watchdog = Watchdog::start(&volume.watchdog, held)?;
            let process =
                Process::of(watchdog.process()).map_err(BackendError::at("cannot start a watchdog"))?;
            volume.record.may_pause(volume.boot, &pause, process)?;
            cut.watchdog = Some(watchdog);
        }
        Ok(Arc::new(cut))
    }

    pub(super) fn pauses(&self) -> bool {
        self.watchdog.is_some()
    }

    /// Begins to pause, or will in time before T. The snapshot is taken as soon as that is confirmed.
    pub(super) fn start(self: &Arc<Self>, timing: ArmTiming) -> Result<(), HostError> {
        let (deadline, now) = (self.volume.deadline, self.clock.now());
        let begin = match timing {
            ArmTiming::Timed { at, .. } => now.max(begin(at, self.volume.record.last_pausing(), deadline)),
            ArmTiming::Barrier => now,
        };
        if let ArmTiming::Timed { at, stretch } = timing
            && at + stretch - begin >= deadline
        {
            return Err(HostError::Refused(format!(
                "volume {} would be paused for {}, and may be for {deadline} only: choose a larger deadline in the host's \
                 configuration",
                self.volume.name,
                at + stretch - begin
            )));
        }
        {
            let mut state = self.lock();
            if !matches!(state.step, Step::Prepared) {
                return Err(HostError::Gone);
            }
            state.step = Step::Pausing;
        }
        let (cut, span) = (Arc::clone(self), tracing::Span::current());
        let worker = std::thread::Builder::new().name("pause".to_owned());
        let started = worker.spawn(move || {
            let _span = span.entered();
            let outcome = cut.take(begin, PauseOrder { timing, deadline });
            cut.finish(outcome.map_err(|why| why.to_string()));
        });
        if let Err(error) = started {
            self.lock().step = Step::Prepared;
            return Err(HostError::Failed(format!("cannot start a thread for the pause: {error}")));
        }
        Ok(())
    }

    fn take(&self, begin: Time<Host>, order: PauseOrder) -> Result<Option<Pausing>, BackendError> {
        let within = order.deadline.to_std();
        let Some(watchdog) = &self.watchdog else {
            self.set(Step::Cutting(None));
            self.cut(within)?;
            self.volume.backend.seal(&self.snapshot)?;
            return Ok(None);
        };
        self.wait_until(begin)?;
        let paused = watchdog.pause(order)?;
        self.set(Step::Cutting(Some(paused)));
        let late = matches!(order.timing, ArmTiming::Timed { at, .. } if paused.p >= at);
        let left = (paused.began + order.deadline - self.clock.now()).to_std();
        // After T the watchdog resumes by itself, and whoever waits for the pause calls the attempt off.
        let taken = if late { Ok(()) } else { self.cut(left) };
        let cutting = self.clock.now() - paused.p;
        match &taken {
            Ok(()) => watchdog.taken(),
            Err(_) => watchdog.abort(),
        }
        let resumed = watchdog.wait_resumed();
        // With what it took to get there: the next one begins early enough for that.
        self.volume.record.resumed(Some(paused.p - begin))?;
        taken?;
        let resumed = resumed?;
        if resumed.by_others {
            return Err(BackendError(format!(
                "somebody else resumed volume {} while it was being cut; see to it that only Coeval does",
                self.volume.name
            )));
        }
        if matches!(resumed.cause, Cause::Time | Cause::Barrier) {
            self.volume.backend.seal(&self.snapshot)?;
        }
        Ok(Some(Pausing { paused, cutting, resumed }))
    }

    fn wait_until(&self, begin: Time<Host>) -> Result<(), BackendError> {
        let mut state = self.lock();
        loop {
            if state.doomed {
                return Err(BackendError("the attempt was called off".to_owned()));
            }
            let left = begin - self.clock.now();
            if left <= Nanos::ZERO {
                return Ok(());
            }
            let waited = self.changed.wait_timeout(state, left.to_std());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn cut(&self, within: Duration) -> Result<(), BackendError> {
        if self.lock().doomed {
            return Err(BackendError("the attempt was called off".to_owned()));
        }
        self.volume.backend.cut(&self.snapshot, within)
    }

    fn finish(&self, outcome: Result<Option<Pausing>, String>) {
        if let Err(why) = &outcome {
            tracing::warn!(volume = self.volume.name, why, "no snapshot was taken");
        }
        self.set(Step::Done(outcome));
        if self.lock().doomed {
            self.discard();
        }
    }

    /// Waits until the volume is paused, and returns the reading after that: P. None without a pause.
    pub(super) fn wait_paused(
        &self,
        late: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Time<Host>>, HostError> {
        let mut state = self.lock();
        loop {
            match &state.step {
                Step::Cutting(paused) => return Ok(paused.map(|paused| paused.p)),
                Step::Done(Ok(pausing)) => return Ok(pausing.map(|pausing| pausing.paused.p)),
                Step::Done(Err(why)) => return Err(HostError::Failed(why.clone())),
                Step::Prepared | Step::Over => return Err(HostError::Gone),
                Step::Pausing if late() => {
                    return Err(HostError::Refused(format!(
                        "volume {} was not paused before T; a longer lead gives it the time",
                        self.volume.name
                    )));
                }
                Step::Pausing => {}
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The attempt ends its stretch by this cause.
    pub(super) fn end(&self, cause: Cause) {
        match (&self.watchdog, cause) {
            (None, _) => {}
            (Some(watchdog), Cause::Barrier) => watchdog.release(),
            (Some(watchdog), _) => watchdog.abort(),
        }
    }

    /// Waits until the pause is over and the snapshot durable.
    pub(super) fn wait_done(&self) -> Result<(), HostError> {
        let under_way = |state: &mut State| matches!(state.step, Step::Pausing | Step::Cutting(_));
        let state = self.changed.wait_while(self.lock(), under_way).unwrap_or_else(PoisonError::into_inner);
        match &state.step {
            Step::Done(Ok(_)) => Ok(()),
            Step::Done(Err(why)) => Err(HostError::Failed(why.clone())),
            _ => Err(HostError::Gone),
        }
    }

    /// The host's readings with this volume's, once it is done.
    pub(super) fn add_to(&self, readings: Readings) -> Readings {
        match &self.lock().step {
            Step::Done(Ok(Some(Pausing { paused, resumed, .. }))) => {
                readings.with_pause(paused.p, resumed.q, resumed.cause)
            }
            Step::Done(Ok(None)) => readings.with_pause(readings.p, readings.q, Cause::Unpaused),
            _ => readings,
        }
    }

    /// What the manifest says of it.
    pub(super) fn part(&self) -> ExternalPart {
        let pause = match &self.lock().step {
            Step::Done(Ok(Some(Pausing { paused, cutting, resumed }))) => Some(PauseTimes {
                p_ns: paused.p,
                pausing_ns: paused.p - paused.began,
                cutting_ns: *cutting,
                paused_ns: resumed.q - paused.began,
            }),
            _ => None,
        };
        let backend = self.volume.backend.describe().map_or("unknown", |description| description.kind);
        ExternalPart { volume: self.volume.name.clone(), backend: backend.to_owned(), pause }
    }

    /// Keeps the snapshot.
    pub(super) fn commit(&self, name: &str) -> Result<(), HostError> {
        if name != self.snapshot {
            return Err(HostError::Refused(format!(
                "the snapshot was taken as {}, not as {name}",
                self.snapshot
            )));
        }
        let mut state = self.lock();
        if !matches!(state.step, Step::Done(Ok(_))) || state.doomed {
            return Err(HostError::Gone);
        }
        self.volume.record.commit(self.attempt)?;
        state.step = Step::Over;
        state.claim = None;
        Ok(())
    }

    /// Ends the pause and removes the snapshot, whatever became of it. What cannot be removed is left to the next attempt.
    pub(super) fn discard(&self) {
        self.end(Cause::Abort);
        let mut state = self.lock();
        state.doomed = true;
        if let Some(claim) = &state.claim {
            claim.is_ending();
        }
        self.changed.notify_all();
        let under_way = |state: &mut State| matches!(state.step, Step::Pausing | Step::Cutting(_));
        let waited = self.changed.wait_timeout_while(state, END_PATIENCE, under_way);
        let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() || matches!(state.step, Step::Over) {
            return;
        }
        let (volume, name) = (&self.volume, &self.snapshot);
        let mut outcome = volume.record.resumed(None);
        outcome =
            outcome.and_then(|()| volume.backend.discard(name)).and_then(|()| volume.record.forget(name));
        if let Err(why) = outcome {
            tracing::error!(volume = volume.name, %why, "something is left of snapshot {name}, which came to nothing");
        }
        state.step = Step::Over;
        state.claim = None;
    }

    fn set(&self, step: Step) {
        self.lock().step = step;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for PausingCut {
    fn drop(&mut self) {
        // Nobody committed it or called it off: a host that prepared in vain.
        self.discard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_begins_as_late_as_it_can() {
        let at = Time::from_nanos(10_000_000_000);
        let begin = |last: Option<i64>, deadline| {
            at - begin(at, last.map(Nanos::from_millis), Nanos::from_millis(deadline))
        };
        assert_eq!(begin(Some(3), 2_000), Nanos::from_millis(16));
        assert_eq!(begin(Some(1_500), 2_000), Nanos::from_millis(1_000));
        assert_eq!(begin(None, 2_000), Nanos::from_millis(1_000));
        assert_eq!(begin(Some(0), 10), Nanos::from_millis(5));
    }
}
