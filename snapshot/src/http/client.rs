//! The connecting end: pooled connections, limits in time, and problems turned back into sentences.

use std::net::IpAddr;
use std::time::Duration;

use axum::body::Bytes;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::limits::IDLE;
use super::tls::client_without_certificates;
use super::{HttpError, TlsFiles};
use crate::orders::Problem;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Makes clients that share one pool of connections and one identity.
#[derive(Clone, Debug)]
pub struct Connector {
    http: reqwest::Client,
    insecure: bool,
    #[cfg(feature = "simulation")]
    wire: Option<Wire>,
}

/// Carries a request where no network does.
#[cfg(feature = "simulation")]
pub trait Carry: Send + Sync {
    /// Carries it, and brings the answer's status and body within the limit. Otherwise says why there is no way there;
    /// None: the limit passed.
    fn carry(
        &self,
        request: axum::http::Request<Bytes>,
        limit: Duration,
    ) -> futures_util::future::BoxFuture<'static, Result<(u16, Bytes), Option<String>>>;
}

#[cfg(feature = "simulation")]
#[derive(Clone)]
struct Wire(std::sync::Arc<dyn Carry>);

#[cfg(feature = "simulation")]
impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wire")
    }
}

impl Connector {
    /// With `tls`, the client presents its certificate and accepts only servers of its CA; without, it speaks plain
    /// HTTP, to loopback addresses only unless `insecure` is set.
    ///
    /// # Errors
    /// [`HttpError::Tls`] and [`HttpError::Client`].
    pub fn new(tls: Option<&TlsFiles>, insecure: bool) -> Result<Self, HttpError> {
        let config = tls.map_or_else(client_without_certificates, TlsFiles::client)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|why| HttpError::Client(root_cause(&why)))?;
        Ok(Connector {
            http,
            insecure,
            #[cfg(feature = "simulation")]
            wire: None,
        })
    }

    /// The same, over another wire.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn over(&self, wire: std::sync::Arc<dyn Carry>) -> Self {
        Connector { wire: Some(Wire(wire)), ..self.clone() }
    }

    /// The bare client, for tests that look at answers as they are.
    #[cfg(test)]
    pub(crate) fn bare(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// A client for one peer. `peer` is how errors call it, such as `host a` or `the server`.
    ///
    /// # Errors
    /// [`HttpError::Url`], and [`HttpError::Plain`] where plain HTTP would leave the machine.
    pub fn connect(&self, peer: &str, url: &str) -> Result<ControlClient, HttpError> {
        let bad = |why: &str| HttpError::Url { url: url.to_owned(), why: why.to_owned() };
        let base = Url::parse(url).map_err(|why| bad(&why.to_string()))?;
        let host = base.host_str().ok_or_else(|| bad("it names no host"))?;
        match base.scheme() {
            "https" => {}
            "http" if self.insecure || is_loopback(host) => {}
            "http" => return Err(HttpError::Plain(host.to_owned())),
            _ => return Err(bad("its scheme is neither https nor http")),
        }
        Ok(ControlClient {
            http: self.http.clone(),
            base,
            peer: peer.to_owned(),
            #[cfg(feature = "simulation")]
            wire: self.wire.clone(),
        })
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Speaks JSON to one peer. Each call gives up after its own time limit.
#[derive(Clone, Debug)]
pub struct ControlClient {
    http: reqwest::Client,
    base: Url,
    peer: String,
    #[cfg(feature = "simulation")]
    wire: Option<Wire>,
}

/// Why a call failed. Each is a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// No connection, or it broke.
    #[error("{peer} does not answer at {url}: {why}")]
    Unreachable {
        /// Whom.
        peer: String,
        /// Where.
        url: String,
        /// What the network says.
        why: String,
    },
    /// The time limit passed. Whether the peer did what it was asked is unknown.
    #[error("{peer} did not answer within {} ms", .after.as_millis())]
    TimedOut {
        /// Who.
        peer: String,
        /// The limit.
        after: Duration,
    },
    /// It said no.
    #[error("{peer}: {}", .problem.detail)]
    Refused {
        /// Who.
        peer: String,
        /// What it said.
        problem: Problem,
    },
    /// Its answer makes no sense: probably not the peer one thinks, or another version of it.
    #[error("{peer} answered what this version does not understand: {why}")]
    Malformed {
        /// Who.
        peer: String,
        /// What is wrong with it.
        why: String,
    },
}

impl ControlError {
    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            ControlError::Refused { problem, .. } => Some(problem.status),
            _ => None,
        }
    }
}

impl ControlClient {
    /// The address of a page below the peer's URL. Each segment is escaped.
    pub fn page(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        // An http(s) URL always has path segments; `connect` admits nothing else.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    /// `GET`.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn get<T: DeserializeOwned>(&self, page: Url, limit: Duration) -> Result<T, ControlError> {
        self.json(self.http.request(Method::GET, page), limit).await
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn delete<T: DeserializeOwned>(&self, page: Url, limit: Duration) -> Result<T, ControlError> {
        self.json(self.http.request(Method::DELETE, page), limit).await
    }

    /// `POST` with a JSON body.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        page: Url,
        body: &B,
        limit: Duration,
    ) -> Result<T, ControlError> {
        self.json(self.http.request(Method::POST, page).json(body), limit).await
    }

    /// `POST` with a body that is JSON already: one serialisation for many hosts.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn post_bytes<T: DeserializeOwned>(
        &self,
        page: Url,
        body: Bytes,
        limit: Duration,
    ) -> Result<T, ControlError> {
        let request =
            self.http.request(Method::POST, page).header("content-type", "application/json").body(body);
        self.json(request, limit).await
    }

    /// `POST` with a JSON body, for an answer that comes line by line. `limit` holds for the whole answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn post_for_lines<B: Serialize + Sync>(
        &self,
        page: Url,
        body: &B,
        limit: Duration,
    ) -> Result<Lines, ControlError> {
        let response = self.send(self.http.request(Method::POST, page).json(body), limit).await?;
        Ok(Lines { response, buffer: Vec::new(), client: self.clone(), limit })
    }

    /// `POST` with a JSON body, for an answer of server-sent events. `limit` holds for the whole answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn post_for_events<B: Serialize + Sync>(
        &self,
        page: Url,
        body: &B,
        limit: Duration,
    ) -> Result<Lines, ControlError> {
        let request = self.http.request(Method::POST, page).header("accept", "text/event-stream").json(body);
        let response = self.send(request, limit).await?;
        Ok(Lines { response, buffer: Vec::new(), client: self.clone(), limit })
    }

    /// `GET`, for an answer that comes line by line. `limit` holds for the whole answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn get_lines(&self, page: Url, limit: Duration) -> Result<Lines, ControlError> {
        let response = self.send(self.http.request(Method::GET, page), limit).await?;
        Ok(Lines { response, buffer: Vec::new(), client: self.clone(), limit })
    }

    async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<T, ControlError> {
        let response = self.send(request, limit).await?;
        let body = response.bytes().await.map_err(|why| self.failure(&why, limit))?;
        self.parse(&body)
    }

    async fn send(&self, request: RequestBuilder, limit: Duration) -> Result<Response, ControlError> {
        let response = self.deliver(request, limit).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|why| self.failure(&why, limit))?;
        match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => Err(ControlError::Refused { peer: self.peer.clone(), problem }),
            Err(_) => {
                Err(ControlError::Malformed { peer: self.peer.clone(), why: format!("HTTP status {status}") })
            }
        }
    }

    async fn deliver(&self, request: RequestBuilder, limit: Duration) -> Result<Response, ControlError> {
        #[cfg(feature = "simulation")]
        if let Some(Wire(wire)) = &self.wire {
            let (peer, url) = (self.peer.clone(), self.base.to_string());
            let request = request.build().map_err(|why| self.failure(&why, limit))?;
            let body = request.body().and_then(reqwest::Body::as_bytes).map(Bytes::copy_from_slice);
            let mut carried = axum::http::Request::new(body.unwrap_or_default());
            *carried.method_mut() = request.method().clone();
            *carried.uri_mut() =
                request.url().as_str().parse().map_err(|_| self.malformed("its URL is none"))?;
            *carried.headers_mut() = request.headers().clone();
            let (status, body) = wire.carry(carried, limit).await.map_err(|failure| match failure {
                None => ControlError::TimedOut { peer, after: limit },
                Some(why) => ControlError::Unreachable { peer, url, why },
            })?;
            let mut response = axum::http::Response::new(body);
            *response.status_mut() =
                axum::http::StatusCode::from_u16(status).map_err(|_| self.malformed("its status is none"))?;
            return Ok(Response::from(response));
        }
        request.timeout(limit).send().await.map_err(|why| self.failure(&why, limit))
    }

    /// Reads JSON that came inside an answer.
    pub(crate) fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ControlError> {
        serde_json::from_slice(body).map_err(|why| self.malformed(&why.to_string()))
    }

    /// The error for a problem that came inside an answer.
    pub fn refused(&self, problem: Problem) -> ControlError {
        ControlError::Refused { peer: self.peer.clone(), problem }
    }

    /// The error for an answer that makes no sense.
    pub fn malformed(&self, why: &str) -> ControlError {
        ControlError::Malformed { peer: self.peer.clone(), why: why.to_owned() }
    }

    fn failure(&self, why: &reqwest::Error, limit: Duration) -> ControlError {
        if why.is_timeout() && !why.is_connect() {
            return ControlError::TimedOut { peer: self.peer.clone(), after: limit };
        }
        let url = self.base.as_str().trim_end_matches('/').to_owned();
        ControlError::Unreachable { peer: self.peer.clone(), url, why: root_cause(why) }
    }
}

/// An answer that comes line by line: newline-delimited JSON, or server-sent events.
#[derive(Debug)]
pub struct Lines {
    response: Response,
    buffer: Vec<u8>,
    client: ControlClient,
    limit: Duration,
}

impl Lines {
    /// The answer as it comes, not in lines: to be passed on. None at its end.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ControlError> {
        self.response.chunk().await.map_err(|why| self.client.failure(&why, self.limit))
    }

    /// The next line; none at the end of the answer.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ControlError> {
        match self.line().await? {
            Some(line) => self.client.parse(&line).map(Some),
            None => Ok(None),
        }
    }

    /// The name and the data of the next server-sent event; none at the end of the answer. (WHATWG HTML, 9.2, as far as
    /// this server makes use of it: one line of data, and lines end in LF.)
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn next_event(&mut self) -> Result<Option<(String, Vec<u8>)>, ControlError> {
        let (mut name, mut data) = (String::new(), None);
        while let Some(line) = self.line().await? {
            let line = line.trim_ascii_end();
            if line.is_empty() {
                if let Some(data) = data {
                    return Ok(Some((name, data)));
                }
            } else if let Some(text) = line.strip_prefix(b"event: ") {
                name = String::from_utf8_lossy(text).into_owned();
            } else if let Some(text) = line.strip_prefix(b"data: ") {
                data = Some(text.to_vec());
            }
        }
        Ok(None)
    }

    async fn line(&mut self) -> Result<Option<Vec<u8>>, ControlError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                return Ok(Some(self.buffer.drain(..=end).collect()));
            }
            match self.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Ok(Some(std::mem::take(&mut self.buffer))),
            }
        }
    }
}

/// The innermost reason: the outer ones only say that a request failed.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
