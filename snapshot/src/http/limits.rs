//! What one client may take of a daemon, so that the others are served: connections, time to send a request's head, time
//! to send its body, time to read an answer. How long a body may be, each router says.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::{AddExtension, Next};
use axum::response::{IntoResponse, Response};
use axum_server::accept::Accept;
use futures_util::future::BoxFuture;
use http_body_util::LengthLimitError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_layer::Layer;

use super::Refusal;

/// A client lets go of a connection that it has not used for so long: before [`Limits::head`] is over, so that no
/// request meets a connection that is just being closed.
pub(super) const IDLE: Duration = Duration::from_secs(20);

/// A listener's limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at a time. One more is closed at once.
    pub connections: usize,
    /// From the connection or the request before to the end of a request's head.
    pub head: Duration,
    /// From a request's head to the end of its body.
    pub body: Duration,
    /// How long an answer may wait for a client that does not read.
    pub unread: Duration,
}

/// Receives a request's body, of `longest` bytes at most, before anything is done for it. Routers may allow less.
pub(super) async fn receive(within: Duration, longest: usize, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    match tokio::time::timeout(within, to_bytes(body, longest)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, Body::from(bytes))).await,
        Ok(Err(why)) => {
            let is_long = std::error::Error::source(&why).is_some_and(|why| why.is::<LengthLimitError>());
            let status = if is_long { 413 } else { 400 };
            Refusal::new(status, format!("the request's body cannot be taken: {why}")).into_response()
        }
        Err(_) => Refusal::new(408, "the request's body did not come in time; send it again").into_response(),
    }
}

impl Default for Limits {
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Limits { connections: 1024, head: minute, body: minute, unread: minute }
    }
}

/// Accepts so many connections at a time. A connection's place is free again when its service is gone.
#[derive(Clone, Debug)]
pub(super) struct Limited<A> {
    inner: A,
    places: Arc<Semaphore>,
}

impl<A> Limited<A> {
    pub fn new(inner: A, connections: usize) -> Self {
        Limited { inner, places: Arc::new(Semaphore::new(connections)) }
    }
}

/// A connection's place.
type Place = Arc<OwnedSemaphorePermit>;

impl<A, I, S> Accept<I, S> for Limited<A>
where
    A: Accept<I, S>,
    A::Future: Send + 'static,
    A::Service: Send,
{
    type Stream = A::Stream;
    type Service = AddExtension<A::Service, Place>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: I, service: S) -> Self::Future {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            tracing::warn!("a connection was closed at once: there are as many as this daemon serves");
            return Box::pin(async { Err(io::Error::other("too many connections")) });
        };
        let accepted = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepted.await?;
            Ok((stream, Extension(Arc::new(place)).layer(service)))
        })
    }
}
