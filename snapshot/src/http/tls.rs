//! Mutual TLS: both ends present a certificate of the fleet's own CA.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};

use super::HttpError;

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
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider())
            .build()
            .map_err(|why| unusable(&self.ca, why))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|why| unusable(&self.cert, why))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain()?, self.private_key()?)
            .map_err(|why| unusable(&self.cert, why))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }

    /// For the end that connects.
    pub(super) fn client(&self) -> Result<ClientConfig, HttpError> {
        client_builder(&self.ca)?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain()?, self.private_key()?)
            .map_err(|why| unusable(&self.cert, why))
    }

    fn roots(&self) -> Result<RootCertStore, HttpError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            roots.add(certificate).map_err(|why| unusable(&self.ca, why))?;
        }
        Ok(roots)
    }

    fn chain(&self) -> Result<Vec<CertificateDer<'static>>, HttpError> {
        certificates(&self.cert)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, HttpError> {
        PrivateKeyDer::from_pem_file(&self.key).map_err(|why| unusable(&self.key, why))
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
