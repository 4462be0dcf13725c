//! Listens, and gives each client a thread of its own; two, where TLS stands between.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use rustls::ServerConfig;
use timesync::clock::HostClock;

use super::connection::{Connection, Ended};
use super::outbox::Outbox;
use super::tls::{self, TlsError};
use super::traffic::{Counted, Traffic};
use super::{Endpoint, NbdError, access};
use crate::device::{Disconnect, Exports};
use crate::http::TlsFiles;

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
    traffic: Arc<Traffic>,
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
        Server::bind_with_tls(endpoints, exports, clock, None)
    }

    /// The same. Endpoints that require TLS use `tls`, and admit those whose certificates come from its CA.
    ///
    /// # Errors
    /// As [`Server::bind`]; or such an endpoint has no certificate, or a file of `tls` is unusable.
    pub fn bind_with_tls(
        endpoints: &[Endpoint],
        exports: Arc<dyn Exports>,
        clock: HostClock,
        tls: Option<&TlsFiles>,
    ) -> Result<Server, NbdError> {
        let secured = endpoints.iter().find(|endpoint| matches!(endpoint, Endpoint::Tls(_)));
        let tls = match (secured, tls) {
            (None, _) => None,
            (Some(endpoint), None) => return Err(NbdError::NoCertificate { endpoint: endpoint.clone() }),
            (Some(_), Some(files)) => {
                let mut config = ServerConfig::clone(&*files.server()?);
                // NBD has no name there.
                config.alpn_protocols.clear();
                Some(Arc::new(config))
            }
        };
        let listeners = endpoints.iter().map(Listener::bind).collect::<Result<Vec<_>, _>>()?;
        let endpoints = listeners.iter().map(|listener| listener.endpoint.clone()).collect();
        let stop =
            EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(|errno| NbdError::Start(errno.into()))?;
        let (stop, traffic) = (Arc::new(stop), Arc::<Traffic>::default());
        let acceptor = Acceptor {
            listeners,
            stop: Arc::clone(&stop),
            exports,
            clock,
            tls,
            traffic: Arc::clone(&traffic),
            connections: Vec::new(),
        };
        let acceptor = thread::Builder::new()
            .name("nbd accept".into())
            .spawn(move || acceptor.run())
            .map_err(NbdError::Start)?;
        Ok(Server { endpoints, stop, acceptor: Some(acceptor), traffic })
    }

    /// Where it listens, in the order given; with the port that the system chose where 0 was asked for.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// What its clients have asked for.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
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

/// Who has connected.
enum Client {
    Plain(OwnedFd),
    /// One that has to begin TLS.
    Tls(TcpStream),
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
            Endpoint::Tcp(address) | Endpoint::Tls(address) => {
                let socket = TcpListener::bind(address).map_err(failed)?;
                // A client that gives up between poll and accept must not block the others.
                socket.set_nonblocking(true).map_err(failed)?;
                let address = socket.local_addr().map_err(failed)?;
                let endpoint = match endpoint {
                    Endpoint::Tls(_) => Endpoint::Tls(address),
                    _ => Endpoint::Tcp(address),
                };
                Ok(Listener { endpoint, socket: Socket::Tcp(socket) })
            }
            Endpoint::Unix(path) => {
                remove_stale(path, endpoint)?;
                let socket = UnixListener::bind(path).map_err(failed)?;
                // Its user and its directory's group, whatever the daemon's umask is: connecting is writing.
                fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed)?;
                socket.set_nonblocking(true).map_err(failed)?;
                Ok(Listener { endpoint: endpoint.clone(), socket: Socket::Unix(socket) })
            }
        }
    }

    fn accept(&self) -> io::Result<Client> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, _) = socket.accept()?;
                stream.set_nodelay(true)?;
                // A client that vanished without a word must not keep its export in use for ever.
                socket2::SockRef::from(&stream).set_keepalive(true)?;
                let secured = matches!(self.endpoint, Endpoint::Tls(_));
                Ok(if secured { Client::Tls(stream) } else { Client::Plain(stream.into()) })
            }
            Socket::Unix(socket) => Ok(Client::Plain(socket.accept()?.0.into())),
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
    /// There, if a listener requires it.
    tls: Option<Arc<ServerConfig>>,
    traffic: Arc<Traffic>,
    /// Each connection's thread, and how to end it.
    connections: Vec<(JoinHandle<()>, Disconnect)>,
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
        for (_, end) in &self.connections {
            end();
        }
        for (thread, _) in self.connections {
            // A panic has been printed when it happened, and its connection was closed.
            let _ = thread.join();
        }
    }

    fn admit(&mut self, client: Client) -> io::Result<()> {
        self.connections.retain(|(thread, _)| !thread.is_finished());
        if self.connections.len() >= MAX_CONNECTIONS {
            tracing::warn!("an NBD client was turned away: {MAX_CONNECTIONS} are connected");
            return Ok(());
        }
        let (exports, clock) = (Arc::clone(&self.exports), self.clock.clone());
        let counted = self.traffic.connect();
        let connection = match (client, &self.tls) {
            (Client::Plain(socket), _) => serve(socket, exports, clock, counted)?,
            (Client::Tls(stream), Some(config)) => {
                serve_tls(stream, Arc::clone(config), exports, clock, counted)?
            }
            // Such a listener is not bound without.
            (Client::Tls(_), None) => return Ok(()),
        };
        self.connections.push(connection);
        Ok(())
    }
}

/// Serves a client on a thread of its own. Returns also how to end that.
fn serve(
    socket: OwnedFd,
    exports: Arc<dyn Exports>,
    clock: HostClock,
    counted: Counted,
) -> io::Result<(JoinHandle<()>, Disconnect)> {
    let outbox = Arc::new(Outbox::new(socket)?);
    // Weak, so that a connection's descriptor goes with its thread and its last held reply.
    let weak = Arc::downgrade(&outbox);
    let connection = Connection::new(outbox, clock, counted);
    let thread =
        thread::Builder::new().name("nbd".into()).spawn(move || match connection.serve(&*exports) {
            Ended::Left => tracing::debug!("an NBD client left"),
            ended => tracing::info!("an NBD connection ended: {ended}"),
        })?;
    let end = move || {
        if let Some(outbox) = weak.upgrade() {
            outbox.shutdown();
        }
    };
    Ok((thread, Box::new(end)))
}

/// The same, for a client that has to begin TLS and show who it is.
fn serve_tls(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    exports: Arc<dyn Exports>,
    clock: HostClock,
    counted: Counted,
) -> io::Result<(JoinHandle<()>, Disconnect)> {
    let handle = Arc::new(stream.try_clone()?);
    // Weak, so that the client sees the end of its connection when the thread is done.
    let weak = Arc::downgrade(&handle);
    let proxy = move || -> Result<(), TlsError> {
        let _handle = handle;
        let Some(secured) = tls::negotiate(stream, config, &clock)? else { return Ok(()) };
        let exports = access::exports_for(secured.identity.as_ref(), exports);
        let (outer, inner) = UnixStream::pair()?;
        let (connection, end) = serve(inner.into(), exports, clock, counted)?;
        let relayed = secured.relay(outer);
        end();
        // It panicked if this fails, which has been printed.
        let _ = connection.join();
        Ok(relayed?)
    };
    let thread = thread::Builder::new().name("nbd tls".into()).spawn(move || match proxy() {
        Ok(()) => tracing::debug!("an NBD client by TLS left"),
        Err(error) => tracing::info!("an NBD connection by TLS ended: {error}"),
    })?;
    let end = move || {
        if let Some(stream) = weak.upgrade() {
            // It has ended already if this fails.
            let _ = stream.shutdown(Shutdown::Both);
        }
    };
    Ok((thread, Box::new(end)))
}

/// Nobody is waiting, or whoever was has given up.
fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionAborted)
}
