//! Mutual TLS: both ends present a certificate of the fleet's own CA.
//!
//! The files are looked at again before a handshake: a certificate, key or CA that was replaced counts from the next
//! connection on, without a restart. Files that do not go together (yet) are told in the log, and what was read last
//! stays. No session is resumed: every connection shows its certificate anew.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme,
};
use serde::{Deserialize, Serialize};
use timesync::clock::ServerClock;
use timesync::time::{Nanos, Server, Time};

use super::HttpError;

/// The files are not looked at more often.
const LOOK_EVERY: Nanos = Nanos::from_millis(1_000);

/// PEM files of one daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Its certificate, then intermediate ones.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CA that the other end's certificate must come from.
    pub ca: PathBuf,
}

impl TlsFiles {
    /// For the end that listens: a client without a certificate of the CA does not get past the handshake.
    pub(crate) fn server(&self) -> Result<Arc<ServerConfig>, HttpError> {
        let current = Arc::new(Current::read(self)?);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|why| unusable(&self.cert, why))?
            .with_client_cert_verifier(Arc::<Current>::clone(&current))
            .with_cert_resolver(current);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// For the end that connects.
    pub(crate) fn client(&self) -> Result<ClientConfig, HttpError> {
        let current = Arc::new(Current::read(self)?);
        let mut config = client_builder(&self.ca)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::<Current>::clone(&current))
            .with_client_cert_resolver(current);
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// When the certificates expire that there are now, each with the file's key in the configuration. One that cannot
    /// be read is left out.
    pub fn expiries(&self) -> Vec<(&'static str, DateTime<Utc>)> {
        let end = |path: &Path| {
            let ends = certificates(path).ok()?.into_iter().filter_map(|certificate| {
                let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
                DateTime::from_timestamp(parsed.validity().not_after.timestamp(), 0)
            });
            ends.min()
        };
        let files = [("cert", &self.cert), ("ca", &self.ca)];
        files.into_iter().filter_map(|(name, path)| Some((name, end(path)?))).collect()
    }

    fn load(&self) -> Result<Loaded, HttpError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|why| unusable(&self.ca, why))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|why| unusable(&self.key, why))?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|why| unusable(&self.cert, why))?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider()).build();
        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider()).build();
        Ok(Loaded {
            key: Arc::new(key),
            clients: clients.map_err(|why| unusable(&self.ca, why))?,
            servers: servers.map_err(|why| unusable(&self.ca, why))?,
        })
    }

    /// Which files they are: another one, or another version of one, differs.
    fn versions(&self) -> [Option<(u64, i64, i64, u64)>; 3] {
        [&self.cert, &self.key, &self.ca].map(|path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
        })
    }
}

/// What the files held when they were read.
#[derive(Clone)]
struct Loaded {
    key: Arc<CertifiedKey>,
    clients: Arc<dyn ClientCertVerifier>,
    servers: Arc<dyn ServerCertVerifier>,
}

/// What the files hold: one end's identity, and whom it trusts.
struct Current {
    files: TlsFiles,
    state: Mutex<State>,
}

struct State {
    loaded: Loaded,
    versions: [Option<(u64, i64, i64, u64)>; 3],
    looked: Time<Server>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Current {
    fn read(files: &TlsFiles) -> Result<Self, HttpError> {
        // Before: what changes meanwhile is read again.
        let versions = files.versions();
        let state = State { loaded: files.load()?, versions, looked: ServerClock.now() };
        Ok(Current { files: files.clone(), state: Mutex::new(state) })
    }

    fn get(&self) -> Loaded {
        let mut state = self.state();
        let now = ServerClock.now();
        if now - state.looked >= LOOK_EVERY {
            state.looked = now;
            let versions = self.files.versions();
            if versions != state.versions {
                state.versions = versions;
                match self.files.load() {
                    Ok(loaded) => {
                        tracing::info!(cert = %self.files.cert.display(), "the TLS files were read again");
                        state.loaded = loaded;
                    }
                    Err(why) => tracing::warn!("the new TLS files are not used: {why}"),
                }
            }
        }
        state.loaded.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic under it leaves what was read before.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get().key)
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get().key)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Current {
    /// None: whoever connects has one certificate, and the names would be those of the day that it was asked.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.get().clients.verify_client_cert(certificate, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.get().clients.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.get().clients.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.get().clients.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Current {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.get().servers.verify_server_cert(certificate, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.get().servers.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.get().servers.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.get().servers.supported_verify_schemes()
    }
}

/// A client that trusts nobody: plain HTTP only.
pub(super) fn client_without_certificates() -> Result<ClientConfig, HttpError> {
    let nowhere = Path::new("no CA");
    Ok(client_builder(nowhere)?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

fn client_builder(
    ca: &Path,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, HttpError> {
    ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|why| unusable(ca, why))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|why| unusable(path, why))?;
    if found.is_empty() {
        return Err(unusable(path, "it holds no certificate"));
    }
    Ok(found)
}

fn unusable(path: &Path, why: impl ToString) -> HttpError {
    HttpError::Tls { path: path.to_owned(), why: why.to_string() }
}
