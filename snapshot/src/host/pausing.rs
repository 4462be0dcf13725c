//! A volume that pauses, in one attempt: paused and cut on a thread of its own, so that several pause at once.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use timesync::clock::HostClock;
use timesync::time::{Host, Time};

use super::HostError;
use super::external::{Claim, External};
use crate::backend::BackendError;
use crate::backend::watchdog::{PauseOrder, Paused, Resumed, Watchdog};
use crate::cut::{Cause, Readings};
use crate::orders::{ArmTiming, AttemptId, ExternalPart, PauseTimes};

/// Somebody who waits for a pause looks at the clock so often.
const LOOK: Duration = Duration::from_millis(5);

/// How long whoever calls an attempt off waits for a pause to end: a freeze that is under way cannot be called back.
const END_PATIENCE: Duration = Duration::from_secs(20);

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
    claim: Option<Claim>,
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
    Done(Result<Option<(Paused, Resumed)>, String>),
    /// Committed or discarded.
    Over,
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
            volume.record.may_pause(volume.boot, &held.pause)?;
            cut.watchdog = Some(Watchdog::start(&volume.watchdog, held)?);
        }
        Ok(Arc::new(cut))
    }

    pub(super) fn pauses(&self) -> bool {
        self.watchdog.is_some()
    }

    /// Begins to pause. The snapshot is taken as soon as that is confirmed.
    pub(super) fn start(self: &Arc<Self>, timing: ArmTiming) -> Result<(), HostError> {
        let deadline = self.volume.deadline;
        if let ArmTiming::Timed { at, stretch } = timing {
            let until_release = at + stretch - self.clock.now();
            if until_release >= deadline {
                return Err(HostError::Refused(format!(
                    "T + V lies {until_release} ahead, and volume {} may be paused for {deadline} only: choose a smaller \
                     lead, or a larger deadline in the host's configuration",
                    self.volume.name
                )));
            }
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
            let outcome = cut.take(PauseOrder { timing, deadline });
            cut.finish(outcome.map_err(|why| why.to_string()));
        });
        if let Err(error) = started {
            self.lock().step = Step::Prepared;
            return Err(HostError::Failed(format!("cannot start a thread for the pause: {error}")));
        }
        Ok(())
    }

    fn take(&self, order: PauseOrder) -> Result<Option<(Paused, Resumed)>, BackendError> {
        let within = order.deadline.to_std();
        let Some(watchdog) = &self.watchdog else {
            self.set(Step::Cutting(None));
            self.cut(within)?;
            self.volume.backend.seal(&self.snapshot)?;
            return Ok(None);
        };
        let paused = watchdog.pause(order)?;
        self.set(Step::Cutting(Some(paused)));
        let late = matches!(order.timing, ArmTiming::Timed { at, .. } if paused.p >= at);
        let left = (paused.began + order.deadline - self.clock.now()).to_std();
        // After T the watchdog resumes by itself, and whoever waits for the pause calls the attempt off.
        let taken = if late { Ok(()) } else { self.cut(left) };
        match &taken {
            Ok(()) => watchdog.taken(),
            Err(_) => watchdog.abort(),
        }
        let resumed = watchdog.wait_resumed();
        self.volume.record.resumed(Some(paused.p - paused.began))?;
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
        Ok(Some((paused, resumed)))
    }

    fn cut(&self, within: Duration) -> Result<(), BackendError> {
        if self.lock().doomed {
            return Err(BackendError("the attempt was called off".to_owned()));
        }
        self.volume.backend.cut(&self.snapshot, within)
    }

    fn finish(&self, outcome: Result<Option<(Paused, Resumed)>, String>) {
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
                Step::Done(Ok(pause)) => return Ok(pause.map(|(paused, _)| paused.p)),
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
            Step::Done(Ok(Some((paused, resumed)))) => {
                readings.with_pause(paused.p, resumed.q, resumed.cause)
            }
            Step::Done(Ok(None)) => readings.with_pause(readings.p, readings.q, Cause::Unpaused),
            _ => readings,
        }
    }

    /// What the manifest says of it.
    pub(super) fn part(&self) -> ExternalPart {
        let pause = match &self.lock().step {
            Step::Done(Ok(Some((paused, resumed)))) => {
                Some(PauseTimes { pausing_ns: paused.p - paused.began, paused_ns: resumed.q - paused.began })
            }
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
