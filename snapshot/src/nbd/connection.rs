//! One client's connection, served by one thread.
//!
//! Requests are executed where they were received, one after the other, and their replies leave together once no
//! complete request is left: with the data in the page cache, a system call or a hand-over per request would cost more
//! than the request. Only a request that waits for the disk is not waited for by those behind it, nor a long write where
//! a processor is idle: if any come meanwhile, a stand-in serves them (`stand_in.rs`).
//!
//! What the cut rests on does not depend on who serves: each request is executed after it was received whole, by
//! itself, and reads the clock in the device then; and whoever adds a reply to the others holds the connection's lock,
//! so the reading that lets it go is taken before the send of all of them.

use std::os::fd::AsRawFd;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::time::TimeSpec;
use timesync::clock::HostClock;
use timesync::time::{Host, Nanos, Time};

use super::buffer::{Buffer, INITIAL};
use super::handshake::{Chosen, Handshake, Step};
use super::outbox::{Broken, Outbox};
use super::status;
use super::traffic::Counted;
use super::wire::{self, Command, ErrorCode, Request, Violation};
use crate::cut::Cut;
use crate::device::{Device, Exports, Outcome};

mod stand_in;

use stand_in::{End, Watch};

/// A client that has not chosen an export by then is in somebody's way.
const HANDSHAKE_TIMEOUT: Nanos = Nanos::from_millis(10_000);
/// How long before the end of a stretch the thread stops sleeping: an idle processor wakes that slowly.
const AWAKE_BEFORE_RELEASE: Nanos = Nanos::from_micros(100);
/// Replies are sent when they are this long together, even if more requests are waiting.
const GATHER: usize = 128 << 10;
/// A write of as many bytes takes so long that a hand-over costs little beside it.
const LONG: usize = 256 << 10;

static PROCESSORS: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));

/// Why a connection ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the client left")]
    Left,
    #[error("the client did not choose an export in time")]
    HandshakeTimeout,
    #[error(transparent)]
    Violation(#[from] Violation),
    #[error(transparent)]
    Broken(#[from] Broken),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Input,
    /// That the backlog shrinks below its limit.
    Room,
}

/// What has to happen before another request can be executed.
enum Next {
    /// So many more bytes come, or any.
    Input(usize),
    /// The client takes replies.
    Room,
    /// This one is done, which takes long and is still in the input.
    Long(Request, Command),
    /// Nothing: the client leaves.
    Left,
}

pub(super) struct Connection {
    outbox: Arc<Outbox>,
    clock: HostClock,
    counted: Counted,
    input: Buffer,
    /// Bytes of the input to be passed over: the rest of a payload too long to be looked at.
    skip: usize,
    replies: Buffer,
    /// Cuts that hold replies of this connection.
    cuts: Vec<Arc<Cut>>,
    /// When waiting ends in [`Ended::HandshakeTimeout`].
    deadline: Option<Time<Host>>,
}

impl Drop for Connection {
    /// Also when the thread panics: the client must not wait for somebody who is gone.
    fn drop(&mut self) {
        self.outbox.shutdown();
    }
}

impl Connection {
    pub fn new(outbox: Arc<Outbox>, clock: HostClock, counted: Counted) -> Self {
        let deadline = Some(clock.now() + HANDSHAKE_TIMEOUT);
        let (input, replies) = (Buffer::new(), Buffer::new());
        Connection { outbox, clock, counted, input, skip: 0, replies, cuts: Vec::new(), deadline }
    }

    /// Serves the client until it leaves.
    pub fn serve(mut self, exports: &dyn Exports) -> Ended {
        // Sleeps that end before a release must not end late by the default slack of 50 µs. Without it they still end.
        let _ = nix::sys::prctl::set_timerslack(1);
        let ended = self.negotiate(exports).and_then(|chosen| match chosen {
            Some(chosen) => transmit(self, &chosen),
            None => Err(Ended::Left),
        });
        match ended {
            Ok(()) => Ended::Left,
            Err(ended) => ended,
        }
    }

    /// None if the client aborted.
    fn negotiate(&mut self, exports: &dyn Exports) -> Result<Option<Chosen>, Ended> {
        let mut handshake = Handshake::start(exports, &mut self.replies);
        loop {
            self.send()?;
            if self.outbox.backlog()?.is_full() {
                self.wait(Awaited::Room)?;
            }
            match handshake.step(self.input.filled(), &mut self.replies)? {
                Step::Incomplete => self.receive(1)?,
                Step::Used(count) => self.input.consume(count),
                Step::Chosen(count, chosen) => {
                    self.input.consume(count);
                    self.deadline = None;
                    return Ok(Some(chosen));
                }
                Step::Aborted => {
                    self.send()?;
                    return Ok(None);
                }
            }
        }
    }

    /// Executes requests until something has to happen first. The stand-in, which has nobody to stand in for it, also
    /// executes long writes.
    fn advance(&mut self, export: &Chosen, is_stand_in: bool) -> Result<Next, Ended> {
        // When the request before was done: one reading a request is enough.
        let mut before = None;
        loop {
            if !self.cuts.is_empty() {
                // A client that never pauses never makes this thread wait.
                self.release_due();
            }
            if self.outbox.backlog()?.is_full() {
                return Ok(Next::Room);
            }
            let skipped = self.skip.min(self.input.len());
            self.input.consume(skipped);
            self.skip -= skipped;

            let Some(request) = Request::decode(self.input.filled()) else { return Ok(Next::Input(1)) };
            let request = request?;
            if request.command == wire::command::DISC {
                return Ok(Next::Left);
            }
            let length = Request::LEN + request.payload();
            if request.payload() > wire::MAX_PAYLOAD as usize {
                self.replies.push(&wire::simple_reply(request.cookie, Err(ErrorCode::Invalid)));
                self.skip = length;
                continue;
            }
            if self.input.len() < length {
                return Ok(Next::Input(length - self.input.len()));
            }
            match request.check(export.device.size(), export.structured) {
                Ok(command) => {
                    let is_helped = !is_stand_in && request.payload() >= LONG && self.may_be_helped();
                    if is_helped || command.waits_for_disk() {
                        return Ok(Next::Long(request, command));
                    }
                    let began = before.unwrap_or_else(|| self.clock.now());
                    let is_good = self.execute(export, request, command);
                    let done = self.clock.now();
                    self.counted.add(command, request.length, done - began, is_good);
                    before = Some(done);
                }
                Err(code) => self.answer(export, request, Err(code)),
            }
            self.input.consume(length);
            if self.replies.len() >= GATHER {
                self.send()?;
            }
        }
    }

    /// Whether each connection would find a second processor. A long write is copied twice, out of the socket and into the
    /// file: where processors are idle, one receives the next write while this one goes into its file. Where the
    /// connections keep all of them busy anyway, that would only take cache from each other.
    fn may_be_helped(&self) -> bool {
        2 * self.counted.connections() <= *PROCESSORS
    }

    /// Executes one request, whose payload follows its head in the input, and adds its reply to the others. Whether it
    /// went well.
    fn execute(&mut self, export: &Chosen, request: Request, command: Command) -> bool {
        let start = self.replies.len();
        let outcome = match command {
            Command::Read => self.read(export, request),
            Command::BlockStatus { one } => status::answer(export, request, one, &mut self.replies),
            _ => {
                let data = &self.input.filled()[Request::LEN..][..request.payload()];
                change(&*export.device, request, command, data)
            }
        };
        self.conclude(export, request, outcome, start)
    }

    /// Adds the reply to a request that has been executed. One with content begins at `start` already.
    fn conclude(&mut self, export: &Chosen, request: Request, outcome: Outcome, start: usize) -> bool {
        let is_good = outcome.result.is_ok();
        if !request.has_content() || outcome.result.is_err() {
            self.replies.truncate(start);
            self.answer(export, request, outcome.result.map_err(ErrorCode::from));
        }
        if let Some(cut) = outcome.hold {
            self.hold(cut, start);
        }
        is_good
    }

    /// Reads straight into the reply, which is complete if this succeeds.
    fn read(&mut self, export: &Chosen, request: Request) -> Outcome {
        let Request { cookie, offset, length, .. } = request;
        if export.structured {
            self.replies.push(&wire::data_chunk(cookie, offset, length));
        } else {
            self.replies.push(&wire::simple_reply(cookie, Ok(())));
        }
        export.device.read(offset, self.replies.append(length as usize))
    }

    /// A reply without data.
    fn answer(&mut self, export: &Chosen, request: Request, result: Result<(), ErrorCode>) {
        match result {
            Err(code) if export.structured && request.has_content() => {
                self.replies.push(&wire::error_chunk(request.cookie, code));
            }
            result => self.replies.push(&wire::simple_reply(request.cookie, result)),
        }
    }

    /// Keeps the reply that begins at `start` until `cut` permits it (R2, R3).
    fn hold(&mut self, cut: Arc<Cut>, start: usize) {
        // Everything in `replies` leaves after this reading.
        let ready_at = self.clock.now();
        if cut.may_release(ready_at) {
            return;
        }
        let reply = self.replies.split_off(start);
        self.outbox.hold(&reply);
        let outbox = Arc::clone(&self.outbox);
        match cut.hold(ready_at, Box::new(move || outbox.release(&reply))) {
            Ok(()) => {
                if !self.cuts.iter().any(|known| Arc::ptr_eq(known, &cut)) {
                    self.cuts.push(cut);
                }
            }
            // The stretch ended meanwhile, after a reading that allowed it.
            Err(send) => send(),
        }
    }

    fn send(&mut self) -> Result<(), Ended> {
        if !self.replies.is_empty() {
            self.outbox.send(&mut self.replies)?;
        }
        Ok(())
    }

    /// Receives at least a byte, where `missing` are needed for the next step.
    fn receive(&mut self, missing: usize) -> Result<(), Ended> {
        loop {
            // While nothing but input can happen, the receive itself is the wait: one system call less.
            let alone = self.deadline.is_none() && self.outbox.backlog()?.is_empty();
            let flags = if alone { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
            if self.receive_some(missing, flags)? {
                return Ok(());
            }
            self.wait(Awaited::Input)?;
        }
    }

    /// Receives once. False if nothing has come.
    fn receive_some(&mut self, missing: usize, flags: MsgFlags) -> Result<bool, Ended> {
        loop {
            let mut room = self.input.room(missing);
            if missing > INITIAL / 4 {
                // A long payload is received to its end and no further: what came after it would have to be moved.
                room = &mut room[..missing];
            }
            match recv(self.outbox.socket().as_raw_fd(), room, flags) {
                Ok(0) => return Err(Ended::Left),
                Ok(count) => {
                    self.input.commit(count);
                    return Ok(true);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(Broken(errno).into()),
            }
        }
    }

    /// Ends the stretches that hold replies of this connection and are over. Whoever reads a clock that allows it does
    /// so for everybody, so that no reply depends on one thread's waking in time.
    fn release_due(&mut self) -> Time<Host> {
        let now = self.clock.now();
        self.cuts.retain(|cut| !cut.may_release(now));
        now
    }

    /// Waits for what is awaited, and meanwhile sends what the client takes and releases what is due.
    fn wait(&mut self, awaited: Awaited) -> Result<(), Ended> {
        loop {
            let now = self.release_due();
            let backlog = self.outbox.backlog()?;
            if match awaited {
                Awaited::Room => !backlog.is_full(),
                Awaited::Input => backlog.is_empty() && self.deadline.is_none(),
            } {
                self.outbox.reuse(&mut self.replies);
                return Ok(());
            }
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                return Err(Ended::HandshakeTimeout);
            }
            let releases = self.cuts.iter().filter_map(|cut| cut.release_due());
            let until = releases.map(|due| due - AWAKE_BEFORE_RELEASE).chain(self.deadline).min();
            let timeout = until.map(|until| (until - now).to_std());

            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, awaited == Awaited::Input);
            events.set(PollFlags::POLLOUT, backlog.unsent > 0);
            let mut fds = [
                PollFd::new(self.outbox.socket(), events),
                PollFd::new(self.outbox.wake(), PollFlags::POLLIN),
            ];
            match ppoll(&mut fds, timeout.map(TimeSpec::from), None) {
                // Not to be slept through any more, but whoever else needs the processor may have it.
                Ok(0) => std::thread::yield_now(),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Broken(errno).into()),
            }
            let [socket, wake] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
            if !wake.is_empty() {
                self.outbox.clear_wake();
            }
            if socket.contains(PollFlags::POLLOUT) {
                self.outbox.resume()?;
            }
            if socket.contains(PollFlags::POLLIN) {
                return Ok(());
            }
            if socket.intersects(PollFlags::POLLERR | PollFlags::POLLHUP) {
                return Err(Ended::Left);
            }
        }
    }
}

/// Executes requests until the client says that it leaves.
fn transmit(connection: Connection, export: &Chosen) -> Result<(), Ended> {
    let outbox = Arc::downgrade(&connection.outbox);
    export.device.on_disconnect(Box::new(move || {
        if let Some(outbox) = outbox.upgrade() {
            outbox.shutdown();
        }
    }));
    let outbox = Arc::clone(&connection.outbox);
    let watch = Watch::new(outbox)?;
    let connection = Mutex::new(connection);
    thread::scope(|scope| {
        let _end = End(&watch);
        serve_requests(&connection, export, &watch, scope)
    })
}

fn serve_requests<'scope>(
    shared: &'scope Mutex<Connection>,
    export: &'scope Chosen,
    watch: &'scope Watch,
    scope: &'scope Scope<'scope, '_>,
) -> Result<(), Ended> {
    let mut has_stand_in = false;
    let mut connection = lock(shared);
    let clock = connection.clock.clone();
    // The request that takes long.
    let mut taken = Buffer::new();
    loop {
        match connection.advance(export, false)? {
            Next::Input(missing) => {
                connection.send()?;
                connection.receive(missing)?;
            }
            Next::Room => {
                connection.send()?;
                connection.wait(Awaited::Room)?;
            }
            // Replies that may leave, leave. Held ones stay behind: nobody waits for them.
            Next::Left => return connection.send(),
            Next::Long(request, command) => {
                // Replies that are ready do not wait for it.
                connection.send()?;
                if !has_stand_in {
                    // Without a thread for it, what comes meanwhile waits.
                    has_stand_in = stand_in::start(scope, shared, export, watch).is_ok();
                }
                connection.input.take(Request::LEN + request.payload(), &mut taken);
                watch.leave(connection)?;
                let began = clock.now();
                let outcome = change(&*export.device, request, command, &taken.filled()[Request::LEN..]);
                let took = clock.now() - began;
                taken.clear();
                connection = watch.come_back(shared)?;
                let start = connection.replies.len();
                let is_good = connection.conclude(export, request, outcome, start);
                connection.counted.add(command, request.length, took, is_good);
            }
        }
    }
}

/// Executes a request whose reply has no content.
fn change(device: &dyn Device, request: Request, command: Command, data: &[u8]) -> Outcome {
    let Request { offset, length, .. } = request;
    match command {
        Command::Read | Command::BlockStatus { .. } => unreachable!("it fills its reply"),
        Command::Write { fua } => device.write(offset, data, fua),
        Command::Flush => device.flush(),
        Command::Trim { fua } => device.trim(offset, length.into(), fua),
        Command::WriteZeroes { may_punch, fua, fast: false } => {
            device.write_zeroes(offset, length.into(), may_punch, fua)
        }
        Command::WriteZeroes { may_punch, fua, fast: true } => {
            device.write_zeroes_fast(offset, length.into(), may_punch, fua)
        }
        Command::Cache => device.cache(offset, length.into()),
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    // Whoever panics ends the connection: what he left half done leaves no more.
    connection.lock().unwrap_or_else(PoisonError::into_inner)
}
