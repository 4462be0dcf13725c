//! What every backend must do, as a check that a test calls with a real volume.

use std::time::Duration;

use timesync::clock::HostClock;
use timesync::time::Nanos;

use super::watchdog::{PauseOrder, Watchdog, WatchdogProgram};
use super::{Backend, BackendError, Resumption};
use crate::cut::Cause;
use crate::orders::ArmTiming;

/// Far longer than a pause takes, and far shorter than somebody waits.
const DEADLINE: Duration = Duration::from_secs(20);

/// Puts a backend through its paces: the snapshots `first` and `second` are taken, listed, discarded and deleted; the pause
/// begins and ends as it should, by the backend itself and by a watchdog, if there is a program for one. The volume must have
/// neither snapshot, and nobody else may pause it meanwhile. It is left as it was.
///
/// That a snapshot holds what it should is for each backend's own test, and that no write gets through a pause.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn check(backend: &dyn Backend, watchdog: Option<&WatchdogProgram>) -> Result<(), BackendError> {
    let wrong = |what: &str| Err(BackendError(format!("{backend:?}: {what}")));
    let has = |name: &str| Ok::<_, BackendError>(backend.list()?.iter().any(|listed| listed == name));
    if has("first")? || has("second")? {
        return wrong("it has the snapshots already that the check takes");
    }
    // Whatever was not made can be removed.
    backend.delete("first")?;
    backend.discard("first")?;

    // Prepared and given up.
    let held = backend.prepare("first")?;
    if held.is_some() != backend.describe()?.pauses {
        return wrong("it says otherwise than it does whether it pauses");
    }
    drop(held);
    backend.discard("first")?;
    if has("first")? {
        return wrong("preparing leaves a snapshot");
    }

    // Paused, cut and resumed by hand.
    let held = backend.prepare("first")?;
    match held {
        None => backend.cut("first", DEADLINE)?,
        Some(mut held) => {
            let again = held.try_clone().map_err(BackendError::at("cannot open the pause twice"))?;
            held.pause().map_err(BackendError::at("it does not pause"))?;
            let cut = backend.cut("first", DEADLINE);
            let resumed = held.resume().map_err(BackendError::at("it does not resume"))?;
            cut?;
            if resumed != Resumption::Ours {
                return wrong("somebody else resumed it, or its pause is none");
            }
            let mut again = again;
            match again.resume() {
                Ok(Resumption::Others) => {}
                _ => return wrong("resuming what is not paused must tell so"),
            }
        }
    }
    backend.seal("first")?;
    if !has("first")? || has("second")? {
        return wrong("the snapshot that was taken is not in the list, or another is");
    }

    // A second one, by a watchdog; and discarded, which leaves the first.
    let held = backend.prepare("second")?;
    match held.zip(watchdog) {
        None => backend.cut("second", DEADLINE)?,
        Some((held, program)) => by_watchdog(backend, Watchdog::start(program, held)?)?,
    }
    if !has("second")? {
        return wrong("the second snapshot is not in the list");
    }
    for _ in 0..2 {
        backend.discard("second")?;
    }
    if has("second")? || !has("first")? {
        return wrong("discarding one snapshot must remove it and no other");
    }
    for _ in 0..2 {
        backend.delete("first")?;
    }
    if has("first")? { wrong("a snapshot stays after it was deleted") } else { Ok(()) }
}

fn by_watchdog(backend: &dyn Backend, watchdog: Watchdog) -> Result<(), BackendError> {
    let clock = HostClock::real();
    let (at, stretch) = (clock.now() + Nanos::from_millis(5_000), Nanos::from_micros(50));
    let deadline = Nanos::from_millis(20_000);
    let paused = watchdog.pause(PauseOrder { timing: ArmTiming::Timed { at, stretch }, deadline })?;
    let cut = backend.cut("second", DEADLINE);
    if cut.is_ok() {
        watchdog.taken()
    } else {
        watchdog.abort()
    }
    let resumed = watchdog.wait_resumed()?;
    cut?;
    if resumed.cause != Cause::Time || resumed.by_others || paused.p >= at || resumed.q < at + stretch {
        return Err(BackendError(format!(
            "{backend:?}: its pause does not certify: {paused:?}, {resumed:?}"
        )));
    }
    Ok(())
}
