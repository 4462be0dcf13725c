//! What every HTTP end of the control plane shares: where a daemon may listen, how it says no, how it is stopped.

mod client;
mod expiry;
mod limits;
mod origin;
mod peer;
mod tls;

#[cfg(feature = "simulation")]
pub use client::Carry;
pub use client::{Connector, ControlClient, ControlError, Lines};
pub use expiry::{warn_of_expiry, warnings};
pub(crate) use peer::whoami_routes;
pub use peer::{Admits, Identity, Me, NoIdentity, Role};
pub use tls::TlsFiles;

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use axum_server::accept::NoDelayAcceptor;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use hyper_util::rt::TokioTimer;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use rustls::ServerConfig;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::orders::Problem;
use limits::{Limited, Limits};
use origin::Site;
use peer::Identifying;

/// Stops a server: at once, or gracefully within a time.
pub type StopHandle = axum_server::Handle<SocketAddr>;

/// Why an HTTP end cannot start. Each is a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Plain HTTP would leave the machine.
    #[error(
        "refusing plain HTTP on {0}, which is not a loopback address; configure a TLS certificate, key and CA, \
         or allow it with `insecure`"
    )]
    Plain(String),
    /// Somebody has the port.
    #[error("port {} of {} is in use; stop what listens there or choose another address", .0.port(), .0.ip())]
    PortInUse(SocketAddr),
    /// Any other failure to listen.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        why: std::io::Error,
    },
    /// A certificate, key or CA file is unusable.
    #[error("cannot use {} for TLS: {why}", .path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A URL is not one.
    #[error("{url} is not a control URL ({why}); write it as https://host:port")]
    Url {
        /// As configured.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The client could not be set up.
    #[error("cannot set up the HTTP client: {0}")]
    Client(String),
}

/// A bound socket of the control plane that does not serve yet.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    limits: Limits,
}

impl Listener {
    /// Binds `address`. With `tls`, only clients that present a certificate of its CA are served; without, `address`
    /// must be a loopback address unless `insecure` is set.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn bind(address: SocketAddr, tls: Option<&TlsFiles>, insecure: bool) -> Result<Self, HttpError> {
        if tls.is_none() && !insecure && !address.ip().is_loopback() {
            return Err(HttpError::Plain(address.to_string()));
        }
        let tls = tls.map(TlsFiles::server).transpose()?;
        let listen = |why: std::io::Error| match why.kind() {
            std::io::ErrorKind::AddrInUse => HttpError::PortInUse(address),
            _ => HttpError::Listen { address, why },
        };
        let socket = TcpListener::bind(address).map_err(listen)?;
        socket.set_nonblocking(true).map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        let listener = Listener { socket, address, tls, limits: Limits::default() };
        listener.let_go_of_who_does_not_read().map_err(listen)?;
        Ok(listener)
    }

    /// For all connections that come from now on, before anybody serves them too: they inherit it (tcp(7)).
    fn let_go_of_who_does_not_read(&self) -> std::io::Result<()> {
        let unread = u32::try_from(self.limits.unread.as_millis()).unwrap_or(u32::MAX);
        Ok(setsockopt(&self.socket, TcpUserTimeout, &unread)?)
    }

    /// Where it listens; tells the port that the system chose for port 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL for clients on this machine or on the address that it was bound to.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.tls.is_some() { "https" } else { "http" }, self.address)
    }

    /// Serves those whom it `admits` until `stop` says otherwise.
    ///
    /// # Errors
    /// When the listening socket fails.
    pub async fn serve(self, router: Router, admits: Admits, stop: StopHandle) -> std::io::Result<()> {
        // Around all there is, so that no route can be forgotten; the last one first.
        let Limits { connections, head, body, .. } = self.limits;
        let router = router.fallback(no_such_page).method_not_allowed_fallback(no_such_method);
        let site = Site::of(self.tls.is_some(), self.address);
        let service = router
            .layer(from_fn(move |request, next| limits::receive(body, admits.longest_body(), request, next)))
            .layer(from_fn(move |request, next| admits.check(request, next)))
            .layer(from_fn(move |request, next| site.check(request, next)))
            .into_make_service();
        // Small requests answer each other (strike, release): Nagle's delay would dominate a barrier.
        let mut server = axum_server::from_tcp(self.socket)?.handle(stop).acceptor(NoDelayAcceptor::new());
        server.http_builder().http1().timer(TokioTimer::new()).header_read_timeout(head);
        // HTTP/1 only: a look for another version would wait for a client that says nothing.
        match self.tls {
            None => server.map(|inner| Limited::new(inner, connections)).http1_only().serve(service).await,
            Some(config) => {
                let tls = RustlsAcceptor::new(RustlsConfig::from_config(config));
                let identifying = |inner| Limited::new(Identifying(tls.acceptor(inner)), connections);
                server.map(identifying).http1_only().serve(service).await
            }
        }
    }
}

/// An answer that says no: problem+json (RFC 9457).
#[derive(Debug)]
pub struct Refusal(Problem);

impl Refusal {
    /// `detail` is one sentence that says what to do; an invalid `status` becomes 500.
    pub fn new(status: u16, detail: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Refusal(Problem {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            detail: detail.into(),
        })
    }

    /// The problem itself, for answers that carry it inside.
    pub fn into_problem(self) -> Problem {
        self.0
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Refusal(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, "application/problem+json")], Json(self.0)).into_response()
    }
}

/// A JSON body; what is wrong with one is answered as a problem.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        // That it is called JSON, the listener has seen to. Not by axum's `Json`, which says where in the body an error is:
        // that may be as long as the body.
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| Refusal::new(rejection.status().as_u16(), rejection.body_text()))?;
        let body: Value = serde_json::from_slice(&bytes)
            .map_err(|why| Refusal::new(400, format!("the body is no JSON: {why}")))?;
        // serde takes an array for a structure without names, an empty one for all defaults. Nobody means that.
        if body.is_array() {
            return Err(Refusal::new(422, "the body is an array; an object is expected"));
        }
        let body = serde_json::from_value(body);
        body.map(JsonBody)
            .map_err(|why| Refusal::new(422, format!("the body is not what is expected: {why}")))
    }
}

/// The variable segments of a path; what is wrong with them is answered as a problem.
#[derive(Debug)]
pub struct Segments<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segments<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(segments)) => Ok(Segments(segments)),
            Err(rejection) => Err(Refusal::new(rejection.status().as_u16(), rejection.body_text())),
        }
    }
}

/// What stands in the query; what is wrong with it is answered as a problem.
#[derive(Debug)]
pub struct Parameters<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(parameters)) => Ok(Parameters(parameters)),
            Err(rejection) => Err(Refusal::new(rejection.status().as_u16(), rejection.body_text())),
        }
    }
}

async fn no_such_page(request: Request) -> Refusal {
    Refusal::new(404, format!("there is nothing at {}", request.uri().path()))
}

async fn no_such_method(request: Request) -> Refusal {
    Refusal::new(405, format!("{} does not apply to {}", request.method(), request.uri().path()))
}

#[cfg(test)]
mod tests;
