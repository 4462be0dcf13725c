//! One attempt on one host, from its preparation to its end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::time::{Host, Nanos, Time};
use uuid::Uuid;

use super::HostError;
use super::pausing::PausingCut;
use crate::certificate::Mode;
use crate::cut::{Cause, Cut, Readings};
use crate::mutation::mutated;
use crate::orders::{ArmTiming, AttemptId, PrepareOrder, Sealed};
use crate::sync::thread::{self, Thread};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::volume::VolumeCut;

/// A prepared attempt that nobody arms, or an armed barrier that nobody strikes, is dropped after this long.
const ORDER_PATIENCE: Nanos = Nanos::from_millis(10_000);

/// How long a sealed attempt waits to be committed before it is dropped.
const COMMIT_PATIENCE: Nanos = Nanos::from_millis(60_000);

/// How long requests that were in flight at T may take before the attempt is given up. They are not waited for by
/// anybody else.
const DRAIN_PATIENCE: Nanos = Nanos::from_millis(30_000);

/// How long the replies that were held, and whatever their clients do next, have the machine for themselves before the
/// cut is sealed and reported. A write that pays for the stretch does not also pay for that.
const CATCH_UP: Nanos = Nanos::from_millis(10);

/// From here on the keeper spins, if a reply waits: an idle processor wakes tens of microseconds late.
const SPIN: Nanos = Nanos::from_micros(100);

/// How far an attempt is.
enum Phase {
    /// From its preparation to the end of the stretch and the sealing.
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
    snapshot: Option<Uuid>,
    server: Incarnation,
    clock: HostClock,
    /// Set once, by the order to arm.
    armed: OnceLock<(Mode, Arc<Cut>)>,
    /// Locked for file work and for arming; never on the way to a release.
    volumes: Mutex<Vec<VolumeCut>>,
    /// The volumes outside Coeval, which pause instead.
    pausing: Vec<Arc<PausingCut>>,
    phase: Mutex<Phase>,
    /// It was given up, and not committed.
    called_off: AtomicBool,
    changed: Condvar,
    nonce: OnceLock<Uuid>,
    keeper: OnceLock<Thread>,
}

impl Attempt {
    pub(super) fn new(
        id: AttemptId,
        order: &PrepareOrder,
        volumes: Vec<VolumeCut>,
        pausing: Vec<Arc<PausingCut>>,
        clock: HostClock,
    ) -> Self {
        Attempt {
            id,
            snapshot: order.snapshot,
            server: order.server,
            clock,
            armed: OnceLock::new(),
            volumes: Mutex::new(volumes),
            pausing,
            phase: Mutex::new(Phase::Cutting),
            called_off: AtomicBool::new(false),
            changed: Condvar::new(),
            nonce: OnceLock::new(),
            keeper: OnceLock::new(),
        }
    }

    /// Within it are all lines of the log that belong to the attempt.
    pub(super) fn span(&self) -> tracing::Span {
        let snapshot = self.snapshot.map(tracing::field::display);
        tracing::info_span!("attempt", snapshot, attempt = %self.id)
    }

    pub(super) fn server(&self) -> Incarnation {
        self.server
    }

    fn cut(&self) -> Option<&Arc<Cut>> {
        self.armed.get().map(|(_, cut)| cut)
    }

    pub(super) fn set_keeper(&self, keeper: Thread) {
        // Set once, by the one call that spawned it.
        let _ = self.keeper.set(keeper);
    }

    /// Arms every volume and returns the reading at which that was complete. Where that fails, or there is no cut to be
    /// armed, the attempt is called off; an order that comes twice changes nothing.
    pub(super) fn arm(
        &self,
        timing: ArmTiming,
        cut: Result<(Mode, Arc<Cut>), HostError>,
    ) -> Result<Time<Host>, HostError> {
        let volumes = self.volumes();
        if matches!(*self.phase(), Phase::Over) || self.armed.get().is_some() {
            return Err(HostError::Gone);
        }
        let armed = cut.and_then(|(mode, cut)| self.publish(&volumes, timing, mode, cut));
        drop(volumes);
        if armed.is_err() {
            // Without waiting for a pause that is under way: whoever gave the order has others to call off.
            self.let_go();
        }
        armed
    }

    fn publish(
        &self,
        volumes: &[VolumeCut],
        timing: ArmTiming,
        mode: Mode,
        cut: Arc<Cut>,
    ) -> Result<Time<Host>, HostError> {
        let (_, cut) = self.armed.get_or_init(|| (mode, cut));
        // The keeper knows of the cut before a request does.
        self.wake_keeper();
        let patience_ends = self.clock.now() + ORDER_PATIENCE;
        #[cfg(feature = "simulation")]
        let early = self.clock.now();
        let mut late = || {
            !mutated!(LateOrder)
                && (cut.is_released() || self.clock.now() >= cut.at().unwrap_or(patience_ends))
        };
        // All at once: coming to rest may take as long as the lead.
        for volume in &self.pausing {
            volume.start(timing)?;
        }
        for volume in volumes {
            volume.arm(cut, &mut late)?;
        }
        for volume in &self.pausing {
            if let Some(reading) = volume.wait_paused(&mut late)? {
                cut.armed(reading).map_err(|late| HostError::Refused(late.to_string()))?;
            }
        }
        // Every gate has been passed, every pause confirmed: whoever was dispatched by the unarmed state was so before this reading.
        let reading = self.clock.now();
        #[cfg(feature = "simulation")]
        let reading = if mutated!(ArmedTooEarly) { early } else { reading };
        cut.armed(reading).map_err(|late| HostError::Refused(late.to_string()))?;
        if cut.is_released() && !mutated!(LateOrder) {
            return Err(HostError::Gone);
        }
        Ok(reading)
    }

    /// Barrier mode: closes all gates, cuts at one reading, and draws the nonce after it.
    pub(super) fn strike(&self) -> Result<Uuid, HostError> {
        let (mode, cut) = self.armed.get().ok_or(HostError::Gone)?;
        if *mode != Mode::Barrier {
            return Err(HostError::Refused("a timed cut takes its own time; it cannot be struck".to_owned()));
        }
        {
            let volumes = self.volumes();
            let _gates: Vec<_> = volumes.iter().map(VolumeCut::close_gate).collect();
            if cut.is_released() {
                return Err(HostError::Gone);
            }
            if cut.at().is_some() {
                return self.nonce.get().copied().ok_or(HostError::Gone);
            }
            cut.strike(self.clock.now());
        }
        let nonce = *self.nonce.get_or_init(Uuid::new_v4);
        self.wake_keeper();
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
        if let Some(cut) = self.cut() {
            cut.release(cause, self.clock.now());
        }
        self.pausing.iter().for_each(|volume| volume.end(cause));
        self.wake_keeper();
    }

    fn wake_keeper(&self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
    }

    /// Lets go of everything held and paused, and drops the attempt. The layers stay: they hold acknowledged data. Snapshots
    /// outside Coeval go: they hold nothing else than the live volumes did.
    pub(super) fn call_off(&self) {
        self.let_go();
        self.pausing.iter().for_each(|volume| volume.discard());
    }

    fn let_go(&self) {
        self.end_stretch_now(Cause::Abort);
        let mut volumes = self.volumes();
        for volume in volumes.iter() {
            volume.disarm();
        }
        volumes.drain(..).for_each(VolumeCut::discard);
        // Under the lock: an order to arm finds the phase, or what it armed is found here; a commit is done by now.
        self.called_off.store(true, Ordering::SeqCst);
        self.set_phase(Phase::Over);
        drop(volumes);
    }

    /// The keeper's last task: of an attempt that was called off nothing is left outside when it is forgotten, so that the
    /// next one does not find the volumes busy. And a commit has done its work by then: an abort that no longer found the
    /// attempt would not wait for it, and miss the names that are still to come.
    pub(super) fn tidy(&self) {
        drop(self.volumes());
        if self.called_off.load(Ordering::SeqCst) {
            self.pausing.iter().for_each(|volume| volume.discard());
        }
    }

    /// The rest of the keeper's life: seals, and drops what nobody commits.
    pub(super) fn keep(&self) {
        self.wait_unless_over(CATCH_UP);
        let sealed = self.seal();
        let mut phase = self.phase();
        if matches!(*phase, Phase::Cutting) {
            *phase = match sealed {
                Ok(()) => Phase::Sealed,
                Err(why) => Phase::Failed(why.to_string()),
            };
            self.changed.notify_all();
        }
        drop(phase);
        if !self.wait_unless_over(COMMIT_PATIENCE) {
            tracing::warn!("nobody committed this attempt; it is dropped");
            self.call_off();
        }
    }

    /// Whether the attempt was over before the time was.
    fn wait_unless_over(&self, patience: Nanos) -> bool {
        let is_over = self
            .changed
            .wait_timeout_while(self.phase(), patience.to_std(), |phase| !matches!(phase, Phase::Over))
            .unwrap_or_else(PoisonError::into_inner);
        !is_over.1.timed_out()
    }

    /// The keeper's first task. Returns once the cut is released, by this host's clock at the latest; or the attempt was
    /// called off unarmed.
    pub(super) fn end_stretch_in_time(&self) {
        // Without it the kernel may round a sleep up by 50 µs; the cut is as sound, only slower.
        let _ = nix::sys::prctl::set_timerslack(1);
        let ordered_by = self.clock.now() + ORDER_PATIENCE;
        let Some((mode, cut)) = self.wait_armed(ordered_by) else { return };
        #[cfg(feature = "simulation")]
        self.use_timers(*mode, cut);
        while !cut.is_released() {
            let now = self.clock.now();
            match cut.release_due() {
                None if now >= ordered_by => cut.release(Cause::Abort, now),
                None => thread::park_timeout((ordered_by - now).to_std()),
                // The reading was taken before anything is sent: R2.
                Some(due) if now >= due => {
                    cut.may_release(now);
                }
                // A thread that loses its processor between the reading and the sleep sleeps on past the end, by up to
                // what it sleeps: no more than the limit leaves. And half of what is left, because a timer runs wrongly
                // by a part of what it is set to.
                Some(due) if due - now > SPIN => {
                    let longest = cut.leeway().max(SPIN).to_std();
                    thread::park_timeout(longest.min((due - now).to_std() / 2));
                }
                Some(_) if *mode == Mode::Timed && cut.is_holding() => thread::yield_now(),
                Some(due) => thread::park_timeout((due - now).to_std()),
            }
        }
    }

    /// The mistakes that trust a timer.
    #[cfg(feature = "simulation")]
    fn use_timers(&self, mode: Mode, cut: &Cut) {
        let (Mode::Timed, Some(at), Some(due)) = (mode, cut.at(), cut.release_due()) else { return };
        if mutated!(ClassifyByTimer) {
            thread::sleep((at - self.clock.now()).to_std());
            cut.timer.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        if mutated!(ReleaseByTimer) {
            thread::sleep((due - self.clock.now()).to_std());
            cut.may_release(due);
        }
    }

    /// None if nobody armed the attempt in time, or it was called off.
    fn wait_armed(&self, ordered_by: Time<Host>) -> Option<&(Mode, Arc<Cut>)> {
        loop {
            if let Some(armed) = self.armed.get() {
                return Some(armed);
            }
            let now = self.clock.now();
            if now >= ordered_by {
                tracing::warn!("nobody armed this attempt; it is dropped");
                self.call_off();
            }
            if matches!(*self.phase(), Phase::Over) {
                return None;
            }
            thread::park_timeout((ordered_by - now).to_std());
        }
    }

    fn seal(&self) -> Result<(), HostError> {
        let volumes = self.volumes();
        for volume in volumes.iter() {
            volume.disarm();
        }
        if !self.is_valid() {
            // What stretched too long ends the pauses too.
            self.pausing.iter().for_each(|volume| volume.end(Cause::Abort));
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
        self.pausing.iter().try_for_each(|volume| volume.wait_done())
    }

    /// Whether the stretch ended as it should have.
    fn is_valid(&self) -> bool {
        let Some((mode, released_by)) = self.readings().map(|(mode, readings)| (mode, readings.released_by))
        else {
            return false;
        };
        matches!(
            (mode, released_by),
            (Mode::Timed, Cause::Time) | (Mode::Barrier, Cause::Barrier) | (_, Cause::Unpaused)
        ) || (mutated!(TimeoutCertified) && released_by == Cause::Timeout)
    }

    /// How it was to be released, and what was read; of volumes that pause, as far as they are done.
    fn readings(&self) -> Option<(Mode, Readings)> {
        let (mode, cut) = self.armed.get()?;
        let readings = cut.readings()?;
        Some((*mode, self.pausing.iter().fold(readings, |readings, volume| volume.add_to(readings))))
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
            Phase::Sealed => self.evidence(host).ok_or(HostError::Gone),
        }
    }

    /// What the clock read, and what became of the volumes outside; none before the release.
    pub(super) fn evidence(&self, host: Incarnation) -> Option<Sealed> {
        let (mode, readings) = self.readings()?;
        let (server, nonce) = (self.server, self.nonce.get().copied());
        let externals = self.pausing.iter().map(|volume| volume.part()).collect();
        Some(Sealed { host, server, mode, readings, nonce, externals })
    }

    /// Keeps the record by `keep`, then names the sealed state on every volume; ends the attempt, whether that worked or
    /// not. [`HostError::Gone`]: somebody else has ended it, and nothing was done here, so what stands is not the
    /// caller's to undo.
    pub(super) fn commit(
        &self,
        name: &str,
        keep: impl FnOnce() -> Result<(), HostError>,
    ) -> Result<(), HostError> {
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
        let mut outcome = keep();
        for volume in volumes.drain(..) {
            if outcome.is_ok() {
                outcome = volume.commit(name, self.id).map_err(HostError::from);
            } else {
                volume.discard();
            }
        }
        for volume in &self.pausing {
            outcome = outcome.and_then(|()| volume.commit(name));
            if outcome.is_err() {
                volume.discard();
            }
        }
        outcome
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
