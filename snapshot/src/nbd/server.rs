//! Listens, and gives each client a thread of its own.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use timesync::clock::HostClock;

use super::connection::{Connection, Ended};
use super::outbox::Outbox;
use super::{Endpoint, NbdError};
use crate::device::Exports;

/// Clients served at once. One that comes beyond is turned away.
const MAX_CONNECTIONS: usize = 1024;
/// How long to wait when the system has no descriptor or memory for another client, in milliseconds.
const ACCEPT_PAUSE: u16 = 100;

/// A running NBD server. Dropping it disconnects the clients and waits until no request is being executed.
#[derive(Debug)]
pub struct Server {
    endpoints: Vec<Endpoint>,
    stop: Arc<EventFd>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `exports` on every endpoint. `clock` is the one that the cuts' instants are on.
    ///
    /// A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// An endpoint is in use or cannot be listened on, or the system has no thread or descriptor left.
    pub fn bind(
        endpoints: &[Endpoint],
        exports: Arc<dyn Exports>,
        clock: HostClock,
    ) -> Result<Server, NbdError> {
        let listeners = endpoints.iter().map(Listener::bind).collect::<Result<Vec<_>, _>>()?;
        let endpoints = listeners.iter().map(|listener| listener.endpoint.clone()).collect();
        let stop =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|errno| NbdError::Start(errno.into()))?;
        let stop = Arc::new(stop);
        let acceptor =
            Acceptor { listeners, stop: Arc::clone(&stop), exports, clock, connections: Vec::new() };
        let acceptor = thread::Builder::new()
            .name("nbd accept".into())
            .spawn(move || acceptor.run())
            .map_err(NbdError::Start)?;
        Ok(Server { endpoints, stop, acceptor: Some(acceptor) })
    }

    /// Where it listens, in the order given; with the port that the system chose where 0 was asked for.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A counter at zero can always be raised by one.
        let _ = self.stop.write(1);
        if let Some(acceptor) = self.acceptor.take() {
            // It panicked if this fails, which has been printed; there is nothing left to stop.
            let _ = acceptor.join();
        }
    }
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Debug)]
struct Listener {
    endpoint: Endpoint,
    socket: Socket,
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Endpoint::Unix(path) = &self.endpoint {
            // Gone already, or its directory is not writable any more: the next server finds that nobody listens on it.
            let _ = fs::remove_file(path);
        }
    }
}

impl Listener {
    fn bind(endpoint: &Endpoint) -> Result<Listener, NbdError> {
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::AddrInUse => NbdError::InUse { endpoint: endpoint.clone() },
            _ => NbdError::Listen { endpoint: endpoint.clone(), source },
        };
        match endpoint {
            Endpoint::Tcp(address) => {
                let socket = TcpListener::bind(address).map_err(failed)?;
                // A client that gives up between poll and accept must not block the others.
                socket.set_nonblocking(true).map_err(failed)?;
                let address = socket.local_addr().map_err(failed)?;
                Ok(Listener { endpoint: Endpoint::Tcp(address), socket: Socket::Tcp(socket) })
            }
            Endpoint::Unix(path) => {
                remove_stale(path, endpoint)?;
                let socket = UnixListener::bind(path).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                Ok(Listener { endpoint: endpoint.clone(), socket: Socket::Unix(socket) })
            }
        }
    }

    fn accept(&self) -> io::Result<OwnedFd> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, _) = socket.accept()?;
                stream.set_nodelay(true)?;
                // A client that vanished without a word must not keep its export in use for ever.
                socket2::SockRef::from(&stream).set_keepalive(true)?;
                Ok(stream.into())
            }
            Socket::Unix(socket) => Ok(socket.accept()?.0.into()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
        }
    }
}

/// Makes way for a socket file: removes one that a dead process left behind.
fn remove_stale(path: &Path, endpoint: &Endpoint) -> Result<(), NbdError> {
    let listen = |source| NbdError::Listen { endpoint: endpoint.clone(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(listen(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(NbdError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(listen),
        Err(error) => Err(listen(error)),
        Ok(_) => Err(NbdError::InUse { endpoint: endpoint.clone() }),
    }
}

struct Acceptor {
    listeners: Vec<Listener>,
    stop: Arc<EventFd>,
    exports: Arc<dyn Exports>,
    clock: HostClock,
    /// Weak, so that a connection's descriptor goes with its thread and its last held reply.
    connections: Vec<(JoinHandle<()>, Weak<Outbox>)>,
}

impl Acceptor {
    fn run(mut self) {
        let mut pause = false;
        loop {
            let mut fds = vec![PollFd::new(self.stop.as_fd(), PollFlags::POLLIN)];
            if !pause {
                fds.extend(
                    self.listeners.iter().map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)),
                );
            }
            let timeout = if pause { PollTimeout::from(ACCEPT_PAUSE) } else { PollTimeout::NONE };
            // A failed poll has looked at nothing: the accepts below find nobody, and it is tried again.
            let _ = poll(&mut fds, timeout);
            if fds[0].any() == Some(true) {
                break;
            }
            pause = false;
            for index in 0..self.listeners.len() {
                match self.listeners[index].accept().and_then(|socket| self.admit(socket)) {
                    Ok(()) => {}
                    Err(error) if is_transient(&error) => {}
                    Err(error) => {
                        tracing::warn!("an NBD client could not be served: {error}");
                        pause = true;
                    }
                }
            }
        }
        self.listeners.clear();
        for (_, outbox) in &self.connections {
            if let Some(outbox) = outbox.upgrade() {
                outbox.shutdown();
            }
        }
        for (thread, _) in self.connections {
            // A panic has been printed when it happened, and its connection was closed.
            let _ = thread.join();
        }
    }

    fn admit(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.connections.retain(|(thread, _)| !thread.is_finished());
        if self.connections.len() >= MAX_CONNECTIONS {
            tracing::warn!("an NBD client was turned away: {MAX_CONNECTIONS} are connected");
            return Ok(());
        }
        let outbox = Arc::new(Outbox::new(socket)?);
        let weak = Arc::downgrade(&outbox);
        let connection = Connection::new(outbox, self.clock.clone());
        let exports = Arc::clone(&self.exports);
        let thread =
            thread::Builder::new().name("nbd".into()).spawn(move || match connection.serve(&*exports) {
                Ended::Left => tracing::debug!("an NBD client left"),
                ended => tracing::info!("an NBD connection ended: {ended}"),
            })?;
        self.connections.push((thread, weak));
        Ok(())
    }
}

/// Nobody is waiting, or whoever was has given up.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}
