//! A fleet's own certificate authority.

use std::net::IpAddr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use snapshot::http::TlsFiles;
use tempfile::TempDir;

/// An authority and the files that it issued; they are removed when it is dropped.
#[derive(Debug)]
pub struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority.
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { directory, issuer }
    }

    /// A key and a certificate for whoever is at `address`.
    pub fn issue(&self, name: &str, address: IpAddr) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![address.to_string()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        std::fs::write(file("pem"), certificate.pem()).unwrap();
        std::fs::write(file("key"), key.serialize_pem()).unwrap();
        TlsFiles { cert: file("pem"), key: file("key"), ca: self.directory.path().join("ca.pem") }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}
