//! The same under a driver. A thread without one (a test of this crate built with the feature) gets the real thing.
//!
//! Every lock, wait and timer is a point at which the driver may let any other thread go first, or let this one sleep
//! for as long as it likes.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
use std::time::Duration;

/// Who decides which thread runs when.
pub trait Driver {
    /// Lets others go first.
    fn pause(&self);
    /// Sleeps, by the timers of the machine that this thread is on.
    fn sleep(&self, time: Duration);
    /// Waits until somebody wakes `key`, or for `limit`. False if the limit passed first.
    fn wait(&self, key: usize, limit: Option<Duration>) -> bool;
    /// Wakes all that wait for `key`.
    fn wake(&self, key: usize);
    /// Starts a thread in the same process as this one, and gives its number.
    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> u64;
    /// Waits until a thread is unparked, or was so since it last parked, or for `limit`.
    fn park(&self, limit: Duration);
    /// Unparks a thread.
    fn unpark(&self, thread: u64);
    /// Waits for a thread's end.
    fn join(&self, thread: u64);
    /// Calls `then` after a time.
    fn alarm(&self, after: Duration, then: Box<dyn FnOnce() + Send>);
    /// As long as a disk takes for a sync.
    fn disk(&self);
}

thread_local! {
    static DRIVER: RefCell<Option<Rc<dyn Driver>>> = const { RefCell::new(None) };
}

/// From here on, this thread's simulated threads are `driver`'s; none: they are real again.
pub fn drive(driver: Option<Rc<dyn Driver>>) {
    DRIVER.with(|current| *current.borrow_mut() = driver);
}

fn driver() -> Option<Rc<dyn Driver>> {
    DRIVER.with(|current| current.borrow().clone())
}

/// A point at which others may go first.
pub(crate) fn pause() {
    if let Some(driver) = driver() {
        driver.pause();
    }
}

/// A sync of a simulated disk.
pub(crate) fn disk() {
    if let Some(driver) = driver() {
        driver.disk();
    }
}

fn wake(key: usize) {
    if let Some(driver) = driver() {
        driver.wake(key);
    }
}

/// Whatever waits for a thing waits for its address.
fn key<T: ?Sized>(of: &T) -> usize {
    std::ptr::from_ref(of).cast::<()>().addr()
}

/// Tries until it has the lock.
fn acquire<G>(
    key: usize,
    mut attempt: impl FnMut() -> TryLockResult<G>,
    real: impl FnOnce() -> LockResult<G>,
) -> LockResult<G> {
    let Some(driver) = driver() else { return real() };
    driver.pause();
    loop {
        match attempt() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Err(poisoned),
            Err(TryLockError::WouldBlock) => {
                driver.wait(key, None);
            }
        }
    }
}

/// A guard that wakes whoever waits for its lock.
pub(crate) struct Guard<'a, L, G> {
    lock: &'a L,
    /// None only while it is being dropped or waited with.
    inner: Option<G>,
}

impl<L, G> Guard<'_, L, G> {
    fn get(&self) -> &G {
        #[expect(
            clippy::expect_used,
            reason = "only `drop` and the wait that consumes the guard take it out"
        )]
        self.inner.as_ref().expect("the guard is whole")
    }
}

impl<L, G: Deref> Deref for Guard<'_, L, G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        self.get()
    }
}

impl<L, G: DerefMut> DerefMut for Guard<'_, L, G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        #[expect(
            clippy::expect_used,
            reason = "only `drop` and the wait that consumes the guard take it out"
        )]
        self.inner.as_mut().expect("the guard is whole")
    }
}

impl<L, G> Drop for Guard<'_, L, G> {
    fn drop(&mut self) {
        if self.inner.take().is_some() {
            wake(key(self.lock));
        }
    }
}

impl<L, G: fmt::Debug> fmt::Debug for Guard<'_, L, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

fn guard<L, G>(lock: &L, result: LockResult<G>) -> LockResult<Guard<'_, L, G>> {
    match result {
        Ok(inner) => Ok(Guard { lock, inner: Some(inner) }),
        Err(poisoned) => Err(PoisonError::new(Guard { lock, inner: Some(poisoned.into_inner()) })),
    }
}

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

pub(crate) type MutexGuard<'a, T> = Guard<'a, Mutex<T>, std::sync::MutexGuard<'a, T>>;

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(std::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        guard(self, acquire(key(self), || self.0.try_lock(), || self.0.lock()))
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(std::sync::RwLock<T>);

pub(crate) type RwLockReadGuard<'a, T> = Guard<'a, RwLock<T>, std::sync::RwLockReadGuard<'a, T>>;
pub(crate) type RwLockWriteGuard<'a, T> = Guard<'a, RwLock<T>, std::sync::RwLockWriteGuard<'a, T>>;

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        RwLock(std::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        guard(self, acquire(key(self), || self.0.try_read(), || self.0.read()))
    }

    pub(crate) fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        guard(self, acquire(key(self), || self.0.try_write(), || self.0.write()))
    }

    pub(crate) fn try_write(&self) -> TryLockResult<RwLockWriteGuard<'_, T>> {
        pause();
        match self.0.try_write() {
            Ok(inner) => Ok(Guard { lock: self, inner: Some(inner) }),
            Err(TryLockError::WouldBlock) => Err(TryLockError::WouldBlock),
            Err(TryLockError::Poisoned(poisoned)) => Err(TryLockError::Poisoned(PoisonError::new(Guard {
                lock: self,
                inner: Some(poisoned.into_inner()),
            }))),
        }
    }
}

/// Whether a wait's limit passed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitTimeoutResult(bool);

impl WaitTimeoutResult {
    pub(crate) fn timed_out(self) -> bool {
        self.0
    }
}

#[derive(Debug, Default)]
pub(crate) struct Condvar {
    real: std::sync::Condvar,
    /// So that two of them never have the same address.
    _place: u8,
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Condvar::default()
    }

    pub(crate) fn notify_all(&self) {
        self.real.notify_all();
        wake(key(self));
    }

    /// Wakes one at least: where there is a driver, all of them, as any wait may end early.
    pub(crate) fn notify_one(&self) {
        self.real.notify_one();
        wake(key(self));
    }

    /// Waits once; the lock is let go of meanwhile. True if the limit passed first.
    fn wait_once<'a, T>(
        &self,
        mut held: MutexGuard<'a, T>,
        limit: Option<Duration>,
    ) -> (LockResult<MutexGuard<'a, T>>, bool) {
        let lock: &'a Mutex<T> = held.lock;
        let Some(driver) = driver() else {
            #[expect(clippy::expect_used, reason = "only `drop` and this take it out")]
            let inner = held.inner.take().expect("the guard is whole");
            return match limit {
                None => (guard(lock, self.real.wait(inner)), false),
                Some(limit) => {
                    let (inner, waited) =
                        self.real.wait_timeout(inner, limit).unwrap_or_else(PoisonError::into_inner);
                    (guard(lock, Ok(inner)), waited.timed_out())
                }
            };
        };
        // Nobody runs between the two: a waiter is woken by whoever takes the lock next.
        drop(held);
        let woken = driver.wait(key(self), limit);
        (lock.lock(), !woken)
    }

    pub(crate) fn wait<'a, T>(&self, held: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.wait_once(held, None).0
    }

    pub(crate) fn wait_while<'a, T>(
        &self,
        mut held: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut held) {
            held = self.wait(held)?;
        }
        Ok(held)
    }

    pub(crate) fn wait_timeout_while<'a, T>(
        &self,
        mut held: MutexGuard<'a, T>,
        limit: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
        let mut over = false;
        // A wait that ends early begins its limit anew: longer than asked for, never shorter.
        while condition(&mut held) {
            if over {
                return Ok((held, WaitTimeoutResult(true)));
            }
            let (next, timed_out) = self.wait_once(held, Some(limit));
            held = next.unwrap_or_else(PoisonError::into_inner);
            over = timed_out;
        }
        Ok((held, WaitTimeoutResult(false)))
    }
}

pub(crate) mod thread {
    use std::io;
    use std::time::Duration;

    use super::{driver, pause};

    #[derive(Clone, Debug)]
    pub(crate) enum Thread {
        Real(std::thread::Thread),
        Simulated(u64),
    }

    impl Thread {
        pub(crate) fn unpark(&self) {
            match self {
                Thread::Real(thread) => thread.unpark(),
                Thread::Simulated(thread) => {
                    if let Some(driver) = driver() {
                        driver.unpark(*thread);
                    }
                }
            }
        }
    }

    #[derive(Debug)]
    pub(crate) struct JoinHandle<T> {
        thread: Thread,
        real: Option<std::thread::JoinHandle<T>>,
    }

    impl JoinHandle<()> {
        pub(crate) fn thread(&self) -> &Thread {
            &self.thread
        }

        pub(crate) fn join(self) -> std::thread::Result<()> {
            if let Some(real) = self.real {
                return real.join();
            }
            if let (Thread::Simulated(thread), Some(driver)) = (self.thread, driver()) {
                driver.join(thread);
            }
            Ok(())
        }
    }

    pub(crate) fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
        if let Some(driver) = driver() {
            let thread = Thread::Simulated(driver.spawn(&name, Box::new(work)));
            return Ok(JoinHandle { thread, real: None });
        }
        let real = std::thread::Builder::new().name(name).spawn(work)?;
        Ok(JoinHandle { thread: Thread::Real(real.thread().clone()), real: Some(real) })
    }

    pub(crate) fn sleep(time: Duration) {
        match driver() {
            Some(driver) => driver.sleep(time),
            None => std::thread::sleep(time),
        }
    }

    pub(crate) fn park_timeout(limit: Duration) {
        match driver() {
            Some(driver) => driver.park(limit),
            None => std::thread::park_timeout(limit),
        }
    }

    pub(crate) fn yield_now() {
        match driver() {
            Some(_) => pause(),
            None => std::thread::yield_now(),
        }
    }
}

pub(crate) mod mpsc {
    use std::sync::Arc;
    use std::sync::mpsc::TryRecvError;
    pub(crate) use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError};
    use std::time::Duration;

    use super::{driver, key, wake};

    #[derive(Debug)]
    pub(crate) struct Sender<T> {
        /// None only while it is being dropped.
        real: Option<std::sync::mpsc::Sender<T>>,
        place: Arc<u8>,
    }

    #[derive(Debug)]
    pub(crate) struct Receiver<T> {
        real: std::sync::mpsc::Receiver<T>,
        place: Arc<u8>,
    }

    pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let (sender, real) = std::sync::mpsc::channel();
        let place = Arc::new(0);
        (Sender { real: Some(sender), place: Arc::clone(&place) }, Receiver { real, place })
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, value: T) -> Result<(), SendError<T>> {
            match &self.real {
                Some(real) => real.send(value)?,
                None => return Err(SendError(value)),
            }
            wake(key(&*self.place));
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.real = None;
            wake(key(&*self.place));
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            let Some(driver) = driver() else { return self.real.recv() };
            loop {
                match self.real.try_recv() {
                    Ok(value) => return Ok(value),
                    Err(TryRecvError::Disconnected) => return Err(RecvError),
                    Err(TryRecvError::Empty) => {
                        driver.wait(key(&*self.place), None);
                    }
                }
            }
        }

        pub(crate) fn recv_timeout(&self, limit: Duration) -> Result<T, RecvTimeoutError> {
            let Some(driver) = driver() else { return self.real.recv_timeout(limit) };
            let mut over = false;
            loop {
                match self.real.try_recv() {
                    Ok(value) => return Ok(value),
                    Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                    Err(TryRecvError::Empty) if over => return Err(RecvTimeoutError::Timeout),
                    Err(TryRecvError::Empty) => over = !driver.wait(key(&*self.place), Some(limit)),
                }
            }
        }
    }
}

/// What waits without a thread. Under a driver each task is a simulated thread of its own.
pub(crate) mod task {
    use std::fmt;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex, PoisonError};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    use super::{block_on, driver};

    /// The task panicked.
    #[derive(Debug)]
    pub(crate) struct Panicked(String);

    impl fmt::Display for Panicked {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    #[derive(Debug)]
    pub(crate) struct Slot<T> {
        value: Option<T>,
        waker: Option<Waker>,
    }

    #[derive(Debug)]
    pub(crate) enum JoinHandle<T> {
        Real(tokio::task::JoinHandle<T>),
        Simulated(Arc<Mutex<Slot<T>>>),
    }

    impl<T> Future for JoinHandle<T> {
        type Output = Result<T, Panicked>;

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            match self.get_mut() {
                JoinHandle::Real(task) => {
                    Pin::new(task).poll(context).map_err(|why| Panicked(why.to_string()))
                }
                JoinHandle::Simulated(slot) => {
                    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
                    match slot.value.take() {
                        Some(value) => Poll::Ready(Ok(value)),
                        None => {
                            slot.waker = Some(context.waker().clone());
                            Poll::Pending
                        }
                    }
                }
            }
        }
    }

    fn start<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let slot = Arc::new(Mutex::new(Slot { value: None, waker: None }));
        let filled = Arc::clone(&slot);
        let work = move || {
            let value = work();
            let mut slot = filled.lock().unwrap_or_else(PoisonError::into_inner);
            slot.value = Some(value);
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        };
        if let Some(driver) = driver() {
            driver.spawn(name, Box::new(work));
        }
        JoinHandle::Simulated(slot)
    }

    pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match driver() {
            Some(_) => start("task", move || block_on(future)),
            None => JoinHandle::Real(tokio::spawn(future)),
        }
    }

    pub(crate) fn spawn_blocking<T: Send + 'static>(
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        match driver() {
            Some(_) => start("blocking", work),
            None => JoinHandle::Real(tokio::task::spawn_blocking(work)),
        }
    }

    pub(crate) async fn sleep(time: Duration) {
        match ring_after(time) {
            // It cannot panic: it has no code.
            Some(rung) => drop(rung.await),
            None => tokio::time::sleep(time).await,
        }
    }

    fn ring_after(time: Duration) -> Option<JoinHandle<()>> {
        let slot = Arc::new(Mutex::new(Slot { value: None, waker: None }));
        let rung = Arc::clone(&slot);
        let ring = move || {
            let mut slot = rung.lock().unwrap_or_else(PoisonError::into_inner);
            slot.value = Some(());
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        };
        driver()?.alarm(time, Box::new(ring));
        Some(JoinHandle::Simulated(slot))
    }
}

#[derive(Debug, Default)]
struct Woken(std::sync::atomic::AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        wake(key(&*self));
    }
}

/// Runs a future to its end on this simulated thread.
///
/// # Panics
/// On a thread without a driver.
pub fn block_on<F: Future>(future: F) -> F::Output {
    #[expect(clippy::expect_used, reason = "documented")]
    let driver = driver().expect("a simulated thread");
    let woken = std::sync::Arc::new(Woken::default());
    let waker = std::task::Waker::from(std::sync::Arc::clone(&woken));
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        while !woken.0.swap(false, std::sync::atomic::Ordering::SeqCst) {
            driver.wait(key(&*woken), None);
        }
    }
}
