//! Who is at the other end of a connection, and what that one may do.
//!
//! A certificate of the fleet's CA says so itself, in a URI among its subject alternative names:
//! `coeval://server/NAME`, `coeval://host/NAME`, `coeval://operator/NAME` or `coeval://viewer/NAME`. A certificate
//! without one gets past the handshake and no further. Plain HTTP has no certificates: it stays on loopback, where
//! whoever reaches the port may do everything, unless somebody allowed more with `insecure`.

use std::fmt;
use std::io;
use std::str::FromStr;

use axum::extract::Request;
use axum::http::Method;
use axum::middleware::{AddExtension, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use axum_server::accept::{Accept, NoDelayAcceptor};
use axum_server::tls_rustls::RustlsAcceptor;
use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tower_layer::Layer;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use webpki::EndEntityCert;

use super::Refusal;

/// Where every daemon serves its metrics.
const METRICS: &str = "/metrics";

/// What a certificate's holder is in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The time-sync server and coordinator: gives orders to hosts.
    Server,
    /// A host: takes orders.
    Host,
    /// A person or program that takes snapshots and deletes them, and makes, resizes and deletes volumes.
    Operator,
    /// A person or program that reads.
    Viewer,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Server => "server",
            Role::Host => "host",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        })
    }
}

/// Who somebody is: a role and a name, as a certificate carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The role.
    pub role: Role,
    /// The name: for people who read logs, and of a host its name in the server's configuration.
    pub name: String,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "coeval://{}/{}", self.role, self.name)
    }
}

/// A text that is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form coeval://ROLE/NAME")]
pub struct NoIdentity;

impl FromStr for Identity {
    type Err = NoIdentity;

    fn from_str(uri: &str) -> Result<Self, NoIdentity> {
        let (role, name) =
            uri.strip_prefix("coeval://").and_then(|rest| rest.split_once('/')).ok_or(NoIdentity)?;
        let role = [Role::Server, Role::Host, Role::Operator, Role::Viewer]
            .into_iter()
            .find(|known| known.to_string() == role)
            .ok_or(NoIdentity)?;
        if name.is_empty() || name.contains('/') {
            return Err(NoIdentity);
        }
        Ok(Identity { role, name: name.to_owned() })
    }
}

/// The other end of a TLS connection. Requests without one came by plain HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer(Option<Identity>);

impl Peer {
    fn of(certificate: Option<&CertificateDer<'_>>) -> Self {
        Peer(Identity::of(certificate))
    }
}

impl Identity {
    /// Exactly one identity counts: a certificate with two would be whatever suits its holder.
    pub(crate) fn of(certificate: Option<&CertificateDer<'_>>) -> Option<Self> {
        let certificate = certificate.and_then(|der| EndEntityCert::try_from(der).ok());
        let mut identities = certificate
            .iter()
            .flat_map(|certificate| certificate.valid_uri_names())
            .filter_map(|uri| uri.parse::<Identity>().ok());
        match (identities.next(), identities.next()) {
            (Some(identity), None) => Some(identity),
            _ => None,
        }
    }
}

/// Whose requests a daemon takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admits {
    /// The server's API: viewers read, operators do everything.
    People,
    /// A host's control plane: the server gives orders, and nobody else does. People may look at its metrics.
    TheServer,
}

impl Admits {
    /// Lets a request pass, or refuses it with a sentence.
    pub(super) async fn check(self, request: Request, next: Next) -> Response {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let scrapes = reads && request.uri().path() == METRICS;
        let needed = match self {
            Admits::People if reads => "an operator or a viewer",
            Admits::People => "an operator",
            Admits::TheServer if scrapes => "the server, an operator or a viewer",
            Admits::TheServer => "the server",
        };
        let refusal = match request.extensions().get::<Peer>() {
            None => None,
            Some(Peer(Some(identity))) if self.allows(identity.role, reads, scrapes) => None,
            Some(Peer(Some(Identity { role, name }))) => {
                Some(format!("this needs the certificate of {needed}; {name} has that of a {role}"))
            }
            Some(Peer(None)) => Some(format!(
                "this needs the certificate of {needed}; this one carries no role, `coeval pki issue` makes some that \
                 do"
            )),
        };
        match refusal {
            None => next.run(request).await,
            Some(sentence) => Refusal::new(403, sentence).into_response(),
        }
    }

    /// No request's body is longer: a host keeps the certificates of ten thousand hosts, which its server sends.
    pub(super) fn longest_body(self) -> usize {
        match self {
            Admits::People => 4 << 20,
            Admits::TheServer => 32 << 20,
        }
    }

    fn allows(self, role: Role, reads: bool, scrapes: bool) -> bool {
        match self {
            Admits::People => role == Role::Operator || (reads && role == Role::Viewer),
            Admits::TheServer => {
                role == Role::Server || (scrapes && matches!(role, Role::Operator | Role::Viewer))
            }
        }
    }
}

/// Whoever asks, as known here. `GET /api/v1/me`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Me {
    /// What they may do.
    pub role: Role,
    /// As their certificate calls them; null over plain HTTP.
    pub name: Option<String>,
}

/// The page that tells who asks.
pub(crate) fn whoami_routes<S: Clone + Send + Sync + 'static>() -> OpenApiRouter<S> {
    OpenApiRouter::new().routes(routes!(me))
}

/// Tells who asks. Over plain HTTP it is somebody on this machine, who may do all that an operator may.
#[utoipa::path(get, path = "/api/v1/me", tag = "server",
    responses((status = 200, description = "Role and name", body = Me)))]
async fn me(peer: Option<Extension<Peer>>) -> Json<Me> {
    Json(match peer {
        Some(Extension(Peer(Some(Identity { role, name })))) => Me { role, name: Some(name) },
        _ => Me { role: Role::Operator, name: None },
    })
}

/// Accepts TLS connections and notes on each request who sent it.
#[derive(Clone, Debug)]
pub(super) struct Identifying(pub RustlsAcceptor<NoDelayAcceptor>);

impl<S: Send + 'static> Accept<TcpStream, S> for Identifying {
    type Stream = TlsStream<TcpStream>;
    type Service = AddExtension<S, Peer>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let acceptor = self.0.clone();
        Box::pin(async move {
            let (stream, service) = acceptor.accept(stream, service).await?;
            let certificates = stream.get_ref().1.peer_certificates();
            let peer = Peer::of(certificates.and_then(|chain| chain.first()));
            Ok((stream, Extension(peer).layer(service)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_a_known_role_and_a_name() {
        let db1 = Identity { role: Role::Host, name: "db1".to_owned() };
        assert_eq!("coeval://host/db1".parse(), Ok(db1.clone()));
        assert_eq!(db1.to_string().parse(), Ok(db1));
        for wrong in
            ["", "coeval://host", "coeval://host/", "coeval://root/x", "http://host/db1", "coeval://host/a/b"]
        {
            assert_eq!(wrong.parse::<Identity>(), Err(NoIdentity), "{wrong}");
        }
    }

    fn certificate(uris: &[&str]) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap())).collect();
        params.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn a_certificate_with_two_roles_has_none() {
        let operator = Peer(Some(Identity { role: Role::Operator, name: "anna".to_owned() }));
        let one = ["spiffe://elsewhere/x", "coeval://operator/anna"];
        assert_eq!(Peer::of(Some(&certificate(&one))), operator);
        let two = ["coeval://viewer/anna", "coeval://operator/anna"];
        assert_eq!(Peer::of(Some(&certificate(&two))), Peer(None));
        assert_eq!(Peer::of(Some(&certificate(&[]))), Peer(None));
        assert_eq!(Peer::of(None), Peer(None));
    }
}
