//! An endpoint that requires TLS (`doc/proto.md`, "TLS versions", mode FORCEDTLS): a proxy in front of a connection.
//!
//! The client is spoken to in the clear until it has sent STARTTLS, then by TLS; from there on the octets go to and
//! from a connection like any other, on one end of a socket pair. Nothing that came in the clear reaches it: it
//! negotiates anew. Replies that a cut holds leave that connection only once they may (R2), so they leave this proxy
//! later still.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::{ServerConfig, ServerConnection};
use timesync::clock::HostClock;
use timesync::time::{Host, Nanos, Time};

use super::wire::{
    self, MAGIC, MAX_OPTION, MAX_OPTIONS, OPTION_MAGIC, Violation, handshake_flag, option, option_reply,
};
use crate::http::Identity;

/// A client that has not got through the handshake by then is in somebody's way.
const HANDSHAKE_TIMEOUT: Nanos = Nanos::from_millis(10_000);
/// How long the last octets may take to leave, in milliseconds.
const LAST_WORDS: u16 = 5_000;
/// Octets that are moved at a time.
const CHUNK: usize = 64 << 10;
/// While so many octets wait for the connection, no more are received.
const MOST_INCOMING: usize = 256 << 10;

/// Why a client did not get through.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A client that has got through the TLS handshake.
pub(super) struct Secured {
    stream: TcpStream,
    session: ServerConnection,
    /// The flags that it sent in the clear: the only thing it said there that counts.
    flags: u32,
    /// Who its certificate says it is.
    pub identity: Option<Identity>,
}

/// Negotiates TLS. None if the client left before.
pub(super) fn negotiate(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    clock: &HostClock,
) -> Result<Option<Secured>, TlsError> {
    let mut limited = Limited { stream: &stream, clock, deadline: clock.now() + HANDSHAKE_TIMEOUT };
    let Some(flags) = await_starttls(&mut limited)? else { return Ok(None) };
    let mut session = ServerConnection::new(config).map_err(io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(&mut limited)?;
    }
    let certificates = session.peer_certificates();
    let identity = Identity::of(certificates.and_then(|chain| chain.first()));
    Ok(Some(Secured { stream, session, flags, identity }))
}

/// Greets the client and refuses every option but STARTTLS. Returns the client's flags; None if it left.
fn await_starttls(stream: &mut (impl Read + Write)) -> Result<Option<u32>, TlsError> {
    let mut greeting = [MAGIC.to_be_bytes(), OPTION_MAGIC.to_be_bytes()].concat();
    let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    greeting.extend(offered.to_be_bytes());
    stream.write_all(&greeting)?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & !u32::from(offered) != 0 {
        return Err(Violation::HandshakeFlags.into());
    }
    // One option after the other is read, and nothing beyond it: what follows STARTTLS belongs to TLS.
    for _ in 0..MAX_OPTIONS {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        let rest = &mut head.as_slice();
        let magic = wire::take_u64(rest);
        let (option, length) = (wire::take_u32(rest).unwrap_or(0), wire::take_u32(rest).unwrap_or(0));
        if magic != Some(OPTION_MAGIC) {
            return Err(Violation::Magic.into());
        }
        if length > MAX_OPTION {
            return Err(Violation::LongOption(length).into());
        }
        if io::copy(&mut Read::by_ref(stream).take(length.into()), &mut io::sink())? < length.into() {
            return Ok(None);
        }
        let (kind, text) = match option {
            option::STARTTLS if length == 0 => (option_reply::ACK, ""),
            option::STARTTLS => (option_reply::ERR_INVALID, ""),
            option::ABORT => (option_reply::ACK, ""),
            // It has no error reply: all a server can do is hang up.
            option::EXPORT_NAME => return Ok(None),
            _ => (option_reply::ERR_TLS_REQD, "this server requires TLS and a client certificate"),
        };
        let mut reply = wire::option_reply_head(option, kind, text.len() as u32).to_vec();
        reply.extend(text.as_bytes());
        stream.write_all(&reply)?;
        match (option, kind) {
            (option::STARTTLS, option_reply::ACK) => return Ok(Some(flags)),
            (option::ABORT, _) => return Ok(None),
            _ => {}
        }
    }
    Err(Violation::ManyOptions.into())
}

/// A stream whose every call ends by the same deadline: no client gains time by sending one octet after the other.
struct Limited<'a> {
    stream: &'a TcpStream,
    clock: &'a HostClock,
    deadline: Time<Host>,
}

impl Limited<'_> {
    fn rest(&self) -> io::Result<Option<std::time::Duration>> {
        let rest = self.deadline - self.clock.now();
        if rest <= Nanos::ZERO {
            return Err(io::Error::new(ErrorKind::TimedOut, "the client did not begin TLS in time"));
        }
        // A timeout of zero would be none.
        Ok(Some(rest.to_std().max(std::time::Duration::from_millis(1))))
    }
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.rest()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.rest()?)?;
        self.stream.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Octets on their way to the connection.
#[derive(Default)]
struct Incoming {
    octets: Vec<u8>,
    sent: usize,
}

impl Secured {
    /// Moves octets between the client and `inner`, the other end of which a connection serves, until one of them ends.
    /// What waits for a slow end is bounded, and the other one is not read meanwhile.
    pub fn relay(mut self, mut inner: UnixStream) -> io::Result<()> {
        // The connection greets; the client has been greeted, and has said its flags.
        inner.read_exact(&mut [0; 18])?;
        inner.write_all(&self.flags.to_be_bytes())?;
        // Nothing is given to it while it has something to send.
        self.session.set_buffer_limit(None);
        self.stream.set_nonblocking(true)?;
        inner.set_nonblocking(true)?;
        let mut incoming = Incoming::default();
        let mut chunk = vec![0; CHUNK];
        let mut leaving = false;
        // The handshake's last record may have come with the first of what follows.
        self.decrypt(&mut incoming)?;
        loop {
            let mut wants_client = PollFlags::empty();
            wants_client.set(PollFlags::POLLIN, incoming.octets.is_empty() && !leaving);
            wants_client.set(PollFlags::POLLOUT, self.session.wants_write());
            let mut wants_inner = PollFlags::empty();
            wants_inner.set(PollFlags::POLLIN, !self.session.wants_write() && !leaving);
            wants_inner.set(PollFlags::POLLOUT, !incoming.octets.is_empty() && !leaving);
            if leaving && !self.session.wants_write() {
                return Ok(());
            }
            let (client, connection) = wait(&self.stream, wants_client, &inner, wants_inner, leaving)?;
            if client.is_empty() && connection.is_empty() && leaving {
                return Ok(());
            }
            if wants_client.contains(PollFlags::POLLIN) && !client.is_empty() {
                while incoming.octets.len() < MOST_INCOMING {
                    match self.session.read_tls(&mut self.stream) {
                        // The client has gone. So has whoever would be answered.
                        Ok(0) => return Ok(()),
                        Ok(_) => {
                            self.session.process_new_packets().map_err(io::Error::other)?;
                            self.decrypt(&mut incoming)?;
                        }
                        Err(error) if is_passing(&error) => break,
                        Err(error) => return Err(error),
                    }
                }
            }
            if !incoming.octets.is_empty() && !leaving {
                incoming.send(&mut inner)?;
            }
            if wants_inner.contains(PollFlags::POLLIN) && !connection.is_empty() {
                match inner.read(&mut chunk) {
                    Ok(0) => {
                        leaving = true;
                        self.session.send_close_notify();
                    }
                    Ok(count) => self.session.writer().write_all(&chunk[..count])?,
                    Err(error) if is_passing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            while self.session.wants_write() {
                match self.session.write_tls(&mut self.stream) {
                    Ok(_) => {}
                    Err(error) if is_passing(&error) => break,
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Takes out what has been decrypted: at most a few records, as the client is read no further meanwhile.
    fn decrypt(&mut self, incoming: &mut Incoming) -> io::Result<()> {
        match self.session.reader().read_to_end(&mut incoming.octets) {
            Ok(_) => Ok(()),
            Err(error) if is_passing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Incoming {
    fn send(&mut self, inner: &mut UnixStream) -> io::Result<()> {
        while self.sent < self.octets.len() {
            match inner.write(&self.octets[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if is_passing(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.octets.clear();
        self.sent = 0;
        Ok(())
    }
}

/// Waits until one of the ends can do what is wanted of it. An end of which nothing is wanted is not looked at: that it
/// hung up would wake this thread again and again.
fn wait(
    client: &TcpStream,
    wants_client: PollFlags,
    inner: &UnixStream,
    wants_inner: PollFlags,
    leaving: bool,
) -> io::Result<(PollFlags, PollFlags)> {
    let ends = [(client.as_fd(), wants_client), (inner.as_fd(), wants_inner)];
    let mut fds: Vec<PollFd<'_>> = ends
        .into_iter()
        .filter(|(_, wants)| !wants.is_empty())
        .map(|(fd, wants)| PollFd::new(fd, wants))
        .collect();
    let timeout = if leaving { PollTimeout::from(LAST_WORDS) } else { PollTimeout::NONE };
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let found = |end: i32| {
        let fd = fds.iter().find(|fd| fd.as_fd().as_raw_fd() == end);
        fd.and_then(PollFd::revents).unwrap_or(PollFlags::empty())
    };
    Ok((found(client.as_raw_fd()), found(inner.as_raw_fd())))
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
