//! Serves a connection while its own thread waits for the disk, or is at a long write.
//!
//! A hand-over to another thread would cost a flush of a client that sends nothing meanwhile a wake-up or two. So the
//! connection's thread itself waits for the disk, and only tells the kernel first that the stand-in wants to hear of
//! input, which costs half a microsecond. The stand-in never blocks: it stops where its next step would, at a second
//! request for the disk too, and when the connection's thread is back. At most one request of a connection is executed
//! beside another, therefore, and that by a device that serves many connections at once anyway.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Scope};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::MsgFlags;

use super::{Broken, Chosen, Connection, Ended, Next, Outbox, lock};

/// What the two threads know of each other.
pub(super) struct Watch {
    outbox: Arc<Outbox>,
    /// Tells the stand-in of input once, when it is armed.
    input: Epoll,
    /// The connection's thread waits for the lock, or holds it.
    is_back: AtomicBool,
    /// There will be nothing more to do.
    ended: AtomicBool,
}

impl Watch {
    pub fn new(outbox: Arc<Outbox>) -> Result<Self, Ended> {
        let input = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(Broken)?;
        input.add(outbox.socket(), EpollEvent::new(EpollFlags::EPOLLONESHOT, 0)).map_err(Broken)?;
        Ok(Watch { outbox, input, is_back: AtomicBool::new(true), ended: AtomicBool::new(false) })
    }

    /// Lets the stand-in serve what comes, and what has come already.
    pub fn leave(&self, connection: MutexGuard<'_, Connection>) -> Result<(), Ended> {
        self.is_back.store(false, Ordering::SeqCst);
        let mut awaited = EpollFlags::EPOLLIN;
        // That it could send is true at once, or as soon as the client takes replies.
        let unsent = connection.outbox.backlog()?.unsent;
        awaited.set(EpollFlags::EPOLLOUT, unsent > 0 || !connection.input.is_empty());
        drop(connection);
        self.arm(awaited)
    }

    /// Takes the connection over again: at once, or when the stand-in has executed what it is at.
    pub fn come_back<'a>(&self, shared: &'a Mutex<Connection>) -> Result<MutexGuard<'a, Connection>, Ended> {
        self.is_back.store(true, Ordering::SeqCst);
        let connection = lock(shared);
        // With the lock: the stand-in arms it, if at all, before it lets go of that.
        self.arm(EpollFlags::empty())?;
        Ok(connection)
    }

    /// Ends the connection and the stand-in.
    fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        // The end of the stream is input, too.
        self.outbox.shutdown();
        // Fails only where the system is out of memory, and then the stand-in hears of the end by itself.
        let _ = self.arm(EpollFlags::EPOLLIN);
    }

    fn arm(&self, awaited: EpollFlags) -> Result<(), Ended> {
        let events = awaited | EpollFlags::EPOLLONESHOT;
        Ok(self.input.modify(self.outbox.socket(), &mut EpollEvent::new(events, 0)).map_err(Broken)?)
    }

    /// Waits for input.
    fn wait(&self) {
        let mut events = [EpollEvent::empty()];
        // Interrupted or not, the caller looks at everything.
        let _ = self.input.wait(&mut events, EpollTimeout::NONE);
    }
}

/// Starts the stand-in.
pub(super) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    shared: &'scope Mutex<Connection>,
    export: &'scope Chosen,
    watch: &'scope Watch,
) -> io::Result<()> {
    let stand_in = move || {
        let _end = End(watch);
        while !watch.ended.load(Ordering::SeqCst) {
            watch.wait();
            let mut connection = lock(shared);
            if !watch.is_back.load(Ordering::SeqCst)
                && let Ok(Some(awaited)) = serve(&mut connection, export, watch)
            {
                // With the lock, so that it is not armed once the connection's thread is back. If it fails, what comes
                // waits for that.
                let _ = watch.arm(awaited);
            }
        }
    };
    thread::Builder::new().name("nbd stand-in".into()).spawn_scoped(scope, stand_in)?;
    Ok(())
}

/// Serves what can be served at once. Returns what it lacks, if that is input or a client that takes replies: an error, the
/// end of the stream and all else that it stops at is left for the connection's thread, which meets it too.
fn serve(connection: &mut Connection, export: &Chosen, watch: &Watch) -> Result<Option<EpollFlags>, Ended> {
    connection.outbox.resume()?;
    loop {
        let next = connection.advance(export, true)?;
        if watch.is_back.load(Ordering::SeqCst) {
            return Ok(None);
        }
        connection.send()?;
        if connection.outbox.backlog()?.unsent > 0 {
            return Ok(Some(EpollFlags::EPOLLOUT));
        }
        let Next::Input(missing) = next else { return Ok(None) };
        if !connection.receive_some(missing, MsgFlags::MSG_DONTWAIT)? {
            return Ok(Some(EpollFlags::EPOLLIN));
        }
    }
}

/// Ends all when it is dropped, when a request panics too: neither the client nor the other thread may wait for somebody
/// who is gone.
pub(super) struct End<'a>(pub &'a Watch);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
