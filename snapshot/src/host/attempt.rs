//! One attempt on one host, from arming to its end.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;

use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::time::{Host, Nanos, Time};
use uuid::Uuid;

use super::HostError;
use crate::certificate::Mode;
use crate::cut::{Cause, Cut};
use crate::orders::{AttemptId, Sealed};
use crate::volume::VolumeCut;

/// An armed barrier that nobody strikes is dropped after this long.
const STRIKE_PATIENCE: Nanos = Nanos::from_millis(10_000);

/// How long a sealed attempt waits to be committed before it is dropped.
const COMMIT_PATIENCE: Nanos = Nanos::from_millis(60_000);

/// How long requests that were in flight at T may take before the attempt is given up. They are not waited for by
/// anybody else.
const DRAIN_PATIENCE: Nanos = Nanos::from_millis(30_000);

/// From here on the keeper spins, if a reply waits: an idle processor wakes tens of microseconds late.
const SPIN: Nanos = Nanos::from_micros(100);

/// How far an attempt is.
enum Phase {
    /// From the order to the end of the stretch and the sealing.
    Cutting,
    /// Its layers are durable, unless it is void.
    Sealed,
    /// It came to nothing; the sentence says why.
    Failed(String),
    /// Committed or dropped.
    Over,
}

pub(super) struct Attempt {
    id: AttemptId,
    mode: Mode,
    server: Incarnation,
    cut: Arc<Cut>,
    clock: HostClock,
    /// Locked for file work and for arming; never on the way to a release.
    volumes: Mutex<Vec<VolumeCut>>,
    phase: Mutex<Phase>,
    changed: Condvar,
    nonce: OnceLock<Uuid>,
    keeper: OnceLock<Thread>,
}

impl Attempt {
    pub(super) fn new(
        id: AttemptId,
        mode: Mode,
        server: Incarnation,
        cut: Arc<Cut>,
        volumes: Vec<VolumeCut>,
        clock: HostClock,
    ) -> Self {
        Attempt {
            id,
            mode,
            server,
            cut,
            clock,
            volumes: Mutex::new(volumes),
            phase: Mutex::new(Phase::Cutting),
            changed: Condvar::new(),
            nonce: OnceLock::new(),
            keeper: OnceLock::new(),
        }
    }

    pub(super) fn set_keeper(&self, keeper: Thread) {
        // Set once, by the one call that spawned it.
        let _ = self.keeper.set(keeper);
    }

    /// Arms every volume and returns the reading at which that was complete.
    pub(super) fn publish(&self) -> Result<Time<Host>, HostError> {
        let volumes = self.volumes();
        let patience_ends = self.clock.now() + STRIKE_PATIENCE;
        let mut late = || {
            let now = self.clock.now();
            self.cut.is_released() || now >= self.cut.at().unwrap_or(patience_ends)
        };
        for volume in volumes.iter() {
            volume.arm(&self.cut, &mut late)?;
        }
        // Every gate has been passed: whoever was dispatched by the unarmed state was so before this reading.
        let reading = self.clock.now();
        self.cut.armed(reading).map_err(|late| HostError::Refused(late.to_string()))?;
        if self.cut.is_released() {
            return Err(HostError::Gone);
        }
        Ok(reading)
    }

    /// Barrier mode: closes all gates, cuts at one reading, and draws the nonce after it.
    pub(super) fn strike(&self) -> Result<Uuid, HostError> {
        if self.mode != Mode::Barrier {
            return Err(HostError::Refused("a timed cut takes its own time; it cannot be struck".to_owned()));
        }
        {
            let volumes = self.volumes();
            let _gates: Vec<_> = volumes.iter().map(VolumeCut::close_gate).collect();
            if self.cut.is_released() {
                return Err(HostError::Gone);
            }
            if self.cut.at().is_some() {
                return self.nonce.get().copied().ok_or(HostError::Gone);
            }
            self.cut.strike(self.clock.now());
        }
        let nonce = *self.nonce.get_or_init(Uuid::new_v4);
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
        Ok(nonce)
    }

    /// Barrier mode: ends the stretch, if the order knows of this host's cut.
    pub(super) fn release(&self, nonces: &[Uuid]) -> Result<(), HostError> {
        if !self.nonce.get().is_some_and(|nonce| nonces.contains(nonce)) {
            return Err(HostError::Refused("the release does not carry this host's nonce".to_owned()));
        }
        self.end_stretch_now(Cause::Barrier);
        Ok(())
    }

    pub(super) fn end_stretch_now(&self, cause: Cause) {
        self.cut.release(cause, self.clock.now());
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
    }

    /// Lets go of everything held and drops the attempt. The layers stay: they hold acknowledged data.
    pub(super) fn call_off(&self) {
        self.end_stretch_now(Cause::Abort);
        let mut volumes = self.volumes();
        for volume in volumes.iter() {
            volume.disarm();
        }
        volumes.drain(..).for_each(VolumeCut::discard);
        drop(volumes);
        self.set_phase(Phase::Over);
    }

    /// The keeper's life: ends the stretch by the clock, seals, and drops what nobody commits.
    pub(super) fn keep(&self) {
        self.end_stretch_in_time();
        let sealed = self.seal();
        let mut phase = self.phase();
        if matches!(*phase, Phase::Cutting) {
            *phase = match sealed {
                Ok(()) => Phase::Sealed,
                Err(why) => Phase::Failed(why.to_string()),
            };
            self.changed.notify_all();
        }
        let patience = COMMIT_PATIENCE.to_std();
        let (phase, waited) = self
            .changed
            .wait_timeout_while(phase, patience, |phase| !matches!(phase, Phase::Over))
            .unwrap_or_else(PoisonError::into_inner);
        drop(phase);
        if waited.timed_out() {
            tracing::warn!(attempt = %self.id, "nobody committed this attempt; it is dropped");
            self.call_off();
        }
    }

    /// Returns once the cut is released, by this host's clock at the latest.
    fn end_stretch_in_time(&self) {
        // Without it the kernel may round a sleep up by 50 µs; the cut is as sound, only slower.
        let _ = nix::sys::prctl::set_timerslack(1);
        let struck_by = self.clock.now() + STRIKE_PATIENCE;
        while !self.cut.is_released() {
            let now = self.clock.now();
            match self.cut.release_due() {
                None if now >= struck_by => self.cut.release(Cause::Abort, now),
                None => std::thread::park_timeout((struck_by - now).to_std()),
                // The reading was taken before anything is sent: R2.
                Some(due) if now >= due => {
                    self.cut.may_release(now);
                }
                Some(due) if due - now > SPIN => std::thread::park_timeout((due - now - SPIN).to_std()),
                Some(_) if self.mode == Mode::Timed && self.cut.is_holding() => std::thread::yield_now(),
                Some(due) => std::thread::park_timeout((due - now).to_std()),
            }
        }
    }

    fn seal(&self) -> Result<(), HostError> {
        let volumes = self.volumes();
        for volume in volumes.iter() {
            volume.disarm();
        }
        if !self.is_valid() {
            return Ok(());
        }
        // Released means the clock read T or more, so no request that registers from here on can be pre.
        let patience_ends = self.clock.now() + DRAIN_PATIENCE;
        for volume in volumes.iter() {
            if !volume.wait_drained(&mut || self.clock.now() >= patience_ends) {
                return Err(HostError::Failed(format!(
                    "requests that were in flight at T did not finish within {DRAIN_PATIENCE}"
                )));
            }
            volume.seal()?;
        }
        Ok(())
    }

    /// Whether the stretch ended as it should have.
    fn is_valid(&self) -> bool {
        let cause = self.cut.readings().map(|readings| readings.released_by);
        matches!((self.mode, cause), (Mode::Timed, Some(Cause::Time)) | (Mode::Barrier, Some(Cause::Barrier)))
    }

    /// Waits for the keeper to have sealed, and reports.
    pub(super) fn wait_sealed(&self, host: Incarnation) -> Result<Sealed, HostError> {
        let phase = self
            .changed
            .wait_while(self.phase(), |phase| matches!(phase, Phase::Cutting))
            .unwrap_or_else(PoisonError::into_inner);
        match &*phase {
            Phase::Failed(why) => Err(HostError::Failed(why.clone())),
            Phase::Over | Phase::Cutting => Err(HostError::Gone),
            // The gates were passed once more when the volumes were disarmed, so P is final.
            Phase::Sealed => Ok(Sealed {
                host,
                server: self.server,
                mode: self.mode,
                readings: self.cut.readings().ok_or(HostError::Gone)?,
                nonce: self.nonce.get().copied(),
            }),
        }
    }

    /// Names the sealed state on every volume; ends the attempt, whether that worked or not.
    pub(super) fn commit(&self, name: &str) -> Result<(), HostError> {
        let mut volumes = self.volumes();
        {
            let mut phase = self.phase();
            if !matches!(*phase, Phase::Sealed) || !self.is_valid() {
                return Err(HostError::Gone);
            }
            *phase = Phase::Over;
            self.changed.notify_all();
        }
        // An abort that comes now waits for the volumes' lock, and then finds the names that it has to drop.
        let mut outcome = Ok(());
        for volume in volumes.drain(..) {
            if outcome.is_ok() {
                outcome = volume.commit(name, self.id);
            } else {
                volume.discard();
            }
        }
        Ok(outcome?)
    }

    fn set_phase(&self, phase: Phase) {
        *self.phase() = phase;
        self.changed.notify_all();
    }

    fn phase(&self) -> MutexGuard<'_, Phase> {
        // One assignment under the lock; a panic cannot leave it half done.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn volumes(&self) -> MutexGuard<'_, Vec<VolumeCut>> {
        // A volume keeps its own invariants; the list is only drained as a whole.
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
