//! The daemon's end of its watchdog: starts it, tells it what happens, and resumes in its place if it dies.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use timesync::clock::pace_now;
use timesync::time::Nanos;

use super::{PauseOrder, Paused, Report, Resumed, Word};
use crate::backend::{BackendError, Held};

/// A watchdog that has not answered so long after the deadline is stuck: it is killed, and the daemon resumes.
const GRACE: Nanos = Nanos::from_millis(500);

/// Between tries to resume what cannot be resumed.
const RETRY: Duration = Duration::from_millis(500);

/// How a watchdog is started: a program with its first arguments, such as `/proc/self/exe watchdog`. It must call
/// [`super::run`] with its standard input and output, and the daemon's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchdogProgram(pub Vec<OsString>);

/// A watchdog, from the daemon's side. Dropping it ends the pause, if there is one.
#[derive(Debug)]
pub struct Watchdog {
    shared: Arc<Shared>,
    socket: UnixStream,
    /// From then on (`pace_now`) a watchdog that has not answered is stuck.
    stuck_at: Mutex<Nanos>,
}

#[derive(Debug)]
struct Shared {
    child: Mutex<Child>,
    state: Mutex<State>,
    changed: Condvar,
}

/// How far a watchdog is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It has not answered yet.
    Starting,
    /// It waits for its order.
    Ready,
    /// It is carrying its order out.
    Ordered,
    /// The volume is paused.
    Paused(Paused),
    /// It is not, and will not be by this watchdog.
    NotPaused(String),
    /// The pause is over.
    Resumed(Paused, Resumed),
    /// The watchdog died; the daemon has resumed what was paused.
    Died,
}

impl Watchdog {
    /// Starts a watchdog over `held` and waits until it is ready. Nothing is paused yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &WatchdogProgram, held: Held) -> Result<Watchdog, BackendError> {
        let failed = |error| BackendError(format!("cannot start a watchdog: {error}"));
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let (name, arguments) = program.0.split_first().ok_or_else(|| {
            BackendError("there is no watchdog program, so nothing may be paused".to_owned())
        })?;
        let theirs_of_held = held.try_clone().map_err(failed)?;
        let child = Command::new(name)
            .args(arguments)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(theirs_of_held.file))
            // A log might be on what is paused.
            .stderr(Stdio::null())
            .current_dir("/")
            // A signal to the daemon's group is not for it.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let shared = Arc::new(Shared {
            child: Mutex::new(child),
            state: Mutex::new(State::Starting),
            changed: Condvar::new(),
        });
        let watchdog = Watchdog {
            socket: ours.try_clone().map_err(failed)?,
            shared: Arc::clone(&shared),
            stuck_at: Mutex::new(Nanos::ZERO),
        };
        watchdog.say(&Word::Hold(theirs_of_held.pause));
        let listener = std::thread::Builder::new().name("watchdog".to_owned());
        listener.spawn(move || shared.listen(BufReader::new(ours), held)).map_err(failed)?;
        match shared_wait(&watchdog.shared, |state| matches!(state, State::Starting)) {
            State::Ready => Ok(watchdog),
            _ => Err(BackendError("the watchdog ended as soon as it was started".to_owned())),
        }
    }

    /// Pauses, and returns when that is confirmed.
    ///
    /// # Errors
    /// When it is not paused.
    pub fn pause(&self, order: PauseOrder) -> Result<Paused, BackendError> {
        *lock(&self.stuck_at) = pace_now() + order.deadline + GRACE;
        {
            let mut state = lock(&self.shared.state);
            if !matches!(*state, State::Ready) {
                return Err(self.shared.died());
            }
            *state = State::Ordered;
        }
        self.say(&Word::Pause(order));
        match self.wait(|state| matches!(state, State::Ordered)) {
            State::Paused(paused) | State::Resumed(paused, _) => Ok(paused),
            State::NotPaused(why) => Err(BackendError(why)),
            _ => Err(self.shared.died()),
        }
    }

    /// The snapshot was taken.
    pub fn taken(&self) {
        self.say(&Word::Taken);
    }

    /// Barrier: every host has cut.
    pub fn release(&self) {
        self.say(&Word::Release);
    }

    /// Resume at once.
    pub fn abort(&self) {
        self.say(&Word::Abort);
    }

    /// Waits until the pause is over: not much longer than its deadline.
    ///
    /// # Errors
    /// When there was no pause, or the watchdog died in it: it is resumed all the same.
    pub fn wait_resumed(&self) -> Result<Resumed, BackendError> {
        match self.wait(|state| matches!(state, State::Ordered | State::Paused(_))) {
            State::Resumed(_, resumed) => Ok(resumed),
            State::NotPaused(why) => Err(BackendError(why)),
            _ => Err(self.shared.died()),
        }
    }

    /// The watchdog's process id.
    pub fn process(&self) -> u32 {
        lock(&self.shared.child).id()
    }

    /// Waits while the state is such; kills a watchdog that is stuck.
    fn wait(&self, is_such: impl Fn(&State) -> bool) -> State {
        let patience = (*lock(&self.stuck_at) - pace_now()).to_std();
        let state = lock(&self.shared.state);
        let (state, waited) = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |state| is_such(state))
            .unwrap_or_else(PoisonError::into_inner);
        if !waited.timed_out() {
            return state.clone();
        }
        drop(state);
        tracing::error!("a watchdog is stuck; it is killed, and the volume resumed in its place");
        // An error means that it has ended.
        let _ = lock(&self.shared.child).kill();
        shared_wait(&self.shared, is_such)
    }

    fn say(&self, word: &Word) {
        // A watchdog that cannot be reached is dead, and the listener deals with that.
        let _ = write_line(&self.socket, word);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // To the watchdog that is the end of the daemon, and to the listener, when it has gone, the end of the watchdog.
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}

impl Shared {
    /// Follows the watchdog to its end. `held` is the daemon's own copy.
    fn listen(&self, reports: impl BufRead, mut held: Held) {
        for line in reports.lines() {
            let Ok(line) = line else { break };
            let mut state = lock(&self.state);
            *state = match (serde_json::from_str(&line), &*state) {
                (Ok(Report::Ready), _) => State::Ready,
                (Ok(Report::Paused(paused)), _) => State::Paused(paused),
                (Ok(Report::NotPaused(why)), _) => State::NotPaused(why),
                (Ok(Report::Resumed(resumed)), State::Paused(paused)) => State::Resumed(*paused, resumed),
                _ => break,
            };
            self.changed.notify_all();
        }
        // No more is to come from it. If it hangs or is confused, it must not resume later what is paused anew by then.
        let mut child = lock(&self.child);
        let died = matches!(*lock(&self.state), State::Ordered | State::Paused(_));
        if died {
            let _ = child.kill();
        }
        let _ = child.wait();
        drop(child);
        if died {
            tracing::error!(pause = ?held.pause, "the watchdog died; resuming in its place");
            while let Err(error) = held.resume() {
                tracing::error!(pause = ?held.pause, %error, "cannot resume; trying again");
                std::thread::sleep(RETRY);
            }
        }
        let mut state = lock(&self.state);
        if !matches!(*state, State::NotPaused(_) | State::Resumed(..)) {
            *state = State::Died;
        }
        self.changed.notify_all();
    }

    fn died(&self) -> BackendError {
        BackendError("the watchdog died; the volume is resumed, and the attempt is void".to_owned())
    }
}

fn shared_wait(shared: &Shared, is_such: impl Fn(&State) -> bool) -> State {
    let state = lock(&shared.state);
    let state = shared.changed.wait_while(state, |state| is_such(state));
    state.unwrap_or_else(PoisonError::into_inner).clone()
}

fn write_line(mut socket: &UnixStream, word: &Word) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(word)?;
    bytes.push(b'\n');
    socket.write_all(&bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
