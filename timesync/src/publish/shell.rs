//! The thread that reads the host's clocks and publishes what the core decides.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::chrony::Refclock;
use super::clockbound::Segment;
use super::{Disbelief, Publisher, ServerTime, Withdrawn};
use crate::clock::{Clocks, SharedSuspendWatch, coarse_lag};
use crate::identity::Incarnation;

/// Publications are so far apart. A step of the wall clock is published at once.
const EVERY_MS: u16 = 100;

/// Where a bound is published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlets {
    /// ClockBound's shared-memory segment.
    pub clockbound: Option<PathBuf>,
    /// The socket of chronyd's `refclock SOCK`.
    pub chrony_sock: Option<PathBuf>,
}

/// Why nothing can be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The segment's file.
    #[error("cannot publish at {}: {error}", .path.display())]
    Segment {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Anything else.
    #[error("the system refuses a resource that publishing the bound needs: {0}")]
    System(#[from] io::Error),
}

/// Publishes until it is dropped; then the bound is withdrawn.
#[derive(Debug)]
pub struct PublisherThread {
    shared: Arc<Shared>,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    suspends: SharedSuspendWatch,
}

#[derive(Debug)]
struct State {
    clocks: Clocks,
    core: Publisher,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole after each call, whoever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PublisherThread {
    /// Starts to publish for the daemon `host`, whose time module's watch is `suspends`: what the server knows of suspends
    /// it knows from that.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn start(
        outlets: &Outlets,
        host: Incarnation,
        max_drift_ppb: u32,
        suspends: SharedSuspendWatch,
    ) -> Result<Self, PublishError> {
        let open = |path: &PathBuf| {
            Segment::open(path, coarse_lag())
                .map_err(|error| PublishError::Segment { path: path.clone(), error })
        };
        let segment = outlets.clockbound.as_ref().map(open).transpose()?;
        let refclock = outlets.chrony_sock.clone().map(Refclock::new).transpose()?;
        let clocks = Clocks::new()?;
        let set = clocks.as_fd().try_clone_to_owned()?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(io::Error::from)?);
        let core = Publisher::new(host, max_drift_ppb);
        let shared = Arc::new(Shared { state: Mutex::new(State { clocks, core }), suspends });
        let (told, worked_on) = (Arc::clone(&stop), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("publisher".into())
            .spawn(move || run(&worked_on, segment, refclock.as_ref(), &set, &told))?;
        Ok(PublisherThread { shared, stop, thread: Some(thread) })
    }

    /// Hears what the server says.
    ///
    /// # Errors
    /// [`Disbelief`].
    pub fn hear(&self, told: ServerTime) -> Result<(), Disbelief> {
        let State { clocks, core } = &mut *self.shared.lock();
        let now = clocks.read();
        core.hear(told, &now, self.shared.suspends.count())
    }
}

impl Drop for PublisherThread {
    fn drop(&mut self) {
        if self.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn run(
    shared: &Shared,
    mut segment: Option<Segment>,
    refclock: Option<&Refclock>,
    set: &OwnedFd,
    stop: &EventFd,
) {
    let mut sampled = None;
    let mut state = None;
    loop {
        let (published, statement) = {
            let State { clocks, core } = &mut *shared.lock();
            let now = clocks.read();
            // After the clocks, so that a suspend before they were read is known.
            (core.publish(&now, shared.suspends.count()), core.statement().copied())
        };
        let withdrawn = published.err();
        if state != Some(withdrawn) {
            match withdrawn {
                None => tracing::info!("this host's bound is published"),
                Some(why) => tracing::info!(?why, "this host's bound is not published"),
            }
            state = Some(withdrawn);
        }
        if let Some(segment) = &mut segment
            && let Err(error) = segment.publish(published)
        {
            tracing::warn!(%error, "cannot publish in the shared-memory segment");
        }
        // One sample for each statement: more would look like more knowledge.
        if let (Some(refclock), Ok(published)) = (refclock, &published)
            && statement != sampled
        {
            sampled = statement;
            if let Err(error) = refclock.send(published) {
                tracing::debug!(%error, "chronyd takes no sample");
            }
        }
        let mut fds =
            [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(set.as_fd(), PollFlags::POLLIN)];
        // An error (a signal) only means that the next turn comes early.
        let _ = poll(&mut fds, PollTimeout::from(EVERY_MS));
        if fds[0].any() == Some(true) {
            break;
        }
    }
    if let Some(segment) = &mut segment {
        // Readers that miss this see a bound that ends by itself.
        let _ = segment.publish(Err(Withdrawn::Unknown));
    }
}
