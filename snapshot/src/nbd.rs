//! Exports over NBD (NetworkBlockDevice/nbd, `doc/proto.md`): a server on TCP and Unix sockets, and a small client.
//!
//! Fixed newstyle; for those who ask, structured replies and BLOCK_STATUS; TLS where an endpoint requires it. Replies may leave in another order than requests came;
//! that is what lets a cut hold back some of them while reads go on.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

mod access;
mod buffer;
mod client;
mod connection;
mod handshake;
mod meta;
mod outbox;
mod server;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod traffic;
mod wire;

pub use client::{Client, ClientError};
pub use server::Server;
pub use traffic::{CommandCounts, Traffic};
pub use wire::ErrorCode;

/// Where a server listens: `tcp://ADDRESS:PORT`, `tls://ADDRESS:PORT` or `unix:///path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// An IPv4 or IPv6 address and a port; a server that binds port 0 is given one by the system.
    Tcp(SocketAddr),
    /// The same; clients must begin TLS before anything else, and present a certificate.
    Tls(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

impl FromStr for Endpoint {
    type Err = NbdError;

    fn from_str(text: &str) -> Result<Self, NbdError> {
        let tcp = text.strip_prefix("tcp://").and_then(|address| address.parse().ok()).map(Endpoint::Tcp);
        let tls = text.strip_prefix("tls://").and_then(|address| address.parse().ok()).map(Endpoint::Tls);
        let path = text.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        tcp.or(tls)
            .or(path.map(|path| Endpoint::Unix(path.into())))
            .ok_or_else(|| NbdError::BadEndpoint { text: text.to_owned() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "tcp://{address}"),
            Endpoint::Tls(address) => write!(f, "tls://{address}"),
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Why a server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// Neither `tcp://ADDRESS:PORT` nor `tls://ADDRESS:PORT` nor `unix:///path`.
    #[error("\"{text}\" is no NBD endpoint: write tcp://ADDRESS:PORT, tls://ADDRESS:PORT or unix:///path")]
    BadEndpoint {
        /// What was given.
        text: String,
    },
    /// TLS without certificates.
    #[error("{endpoint} needs a certificate, a key and a CA: give them in [tls]")]
    NoCertificate {
        /// Where this server was to listen.
        endpoint: Endpoint,
    },
    /// A certificate, key or CA file is unusable.
    #[error(transparent)]
    Tls(#[from] crate::http::HttpError),
    /// Another process listens there.
    #[error("{endpoint} is in use by another process: stop it or choose another endpoint")]
    InUse {
        /// Where this server was to listen.
        endpoint: Endpoint,
    },
    /// A file of another kind is in the socket's place. It was not touched.
    #[error("{} exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket {
        /// The socket's path.
        path: PathBuf,
    },
    /// Any other failure.
    #[error("cannot listen on {endpoint}: {source}")]
    Listen {
        /// Where this server was to listen.
        endpoint: Endpoint,
        /// What the system said.
        source: std::io::Error,
    },
    /// No thread or descriptor left.
    #[error("cannot start the NBD server: {0}")]
    Start(#[source] std::io::Error),
}
