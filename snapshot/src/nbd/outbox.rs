//! The sending side of one connection. Its own thread sends replies here, and so does whoever ends a stretch; neither
//! ever waits for a slow client, so that one client cannot hold up the release of another's replies.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};

use super::buffer::Buffer;

/// While replies of more bytes than this are held, further requests wait too. Above one reply of the greatest length.
const MAX_HELD: usize = 64 << 20;

/// The client has gone, or its connection broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection broke: {0}")]
pub(super) struct Broken(pub Errno);

/// Bytes of replies that have not left yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backlog {
    /// The client has not taken them.
    pub unsent: usize,
    /// A cut has not released them.
    pub held: usize,
}

impl Backlog {
    pub fn is_empty(self) -> bool {
        self == Backlog::default()
    }

    /// Whether further requests wait: until the system's buffer has taken all that may leave, which is enough for the
    /// client to be at. Replies need no copy then, and the same memory serves for the next ones.
    pub fn is_full(self) -> bool {
        self.unsent > 0 || self.held > MAX_HELD
    }
}

struct Sending {
    unsent: Buffer,
    held: usize,
    broken: Option<Broken>,
}

pub(super) struct Outbox {
    socket: OwnedFd,
    /// Readable after a release that left something to do for the connection's thread.
    wake: EventFd,
    sending: Mutex<Sending>,
}

impl Outbox {
    /// Sends to `socket`, a connected stream. Fails where the system has no descriptor left.
    pub fn new(socket: OwnedFd) -> Result<Self, Errno> {
        Ok(Outbox {
            socket,
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            sending: Mutex::new(Sending { unsent: Buffer::new(), held: 0, broken: None }),
        })
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Sends what the client takes at once and keeps the rest. Leaves `replies` empty, with the memory of what was sent last
    /// if nothing is kept.
    pub fn send(&self, replies: &mut Buffer) -> Result<(), Broken> {
        let mut sending = self.lock();
        if sending.unsent.is_empty() {
            std::mem::swap(&mut sending.unsent, replies);
        } else {
            sending.unsent.push(replies.filled());
            replies.clear();
        }
        self.drain(&mut sending)?;
        sending.give_back(replies);
        Ok(())
    }

    /// Gives `replies`, which are empty, the memory of what was sent last, unless some of that is kept.
    pub fn reuse(&self, replies: &mut Buffer) {
        self.lock().give_back(replies);
    }

    /// Sends more of what was kept.
    pub fn resume(&self) -> Result<(), Broken> {
        self.drain(&mut self.lock())
    }

    /// Announces a reply that [`Outbox::release`] will send.
    pub fn hold(&self, reply: &[u8]) {
        self.lock().held += reply.len();
    }

    /// Sends a held reply; the caller has the cut's permission. If the client is gone, so is the reply.
    pub fn release(&self, reply: &[u8]) {
        let mut sending = self.lock();
        let was_full = sending.backlog().is_full();
        sending.held -= reply.len();
        if sending.broken.is_none() {
            sending.unsent.push(reply);
        }
        let broken = self.drain(&mut sending).is_err();
        if broken || was_full || !sending.unsent.is_empty() {
            // The counter only fails to be raised when it is already above zero, and then the thread wakes anyway.
            let _ = self.wake.write(1);
        }
    }

    pub fn backlog(&self) -> Result<Backlog, Broken> {
        let sending = self.lock();
        sending.broken.map_or(Ok(sending.backlog()), Err)
    }

    /// Forgets earlier wake-ups.
    pub fn clear_wake(&self) {
        // Fails only when there was none.
        let _ = self.wake.read();
    }

    /// Ends the connection for both sides. The descriptor stays until the last held reply is gone.
    pub fn shutdown(&self) {
        // Fails only when the client has ended the connection before.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    fn drain(&self, sending: &mut Sending) -> Result<(), Broken> {
        if let Some(broken) = sending.broken {
            return Err(broken);
        }
        while !sending.unsent.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.socket.as_raw_fd(), sending.unsent.filled(), flags) {
                Ok(count) => sending.unsent.consume(count),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    sending.unsent.clear();
                    sending.broken = Some(Broken(errno));
                    return Err(Broken(errno));
                }
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Sending> {
        // Nothing under the lock panics half-way: it moves bytes and counts them.
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sending {
    fn backlog(&self) -> Backlog {
        Backlog { unsent: self.unsent.len(), held: self.held }
    }

    /// The memory of what was sent last is still in the processor's cache.
    fn give_back(&mut self, replies: &mut Buffer) {
        if self.unsent.is_empty() {
            std::mem::swap(&mut self.unsent, replies);
        }
    }
}
