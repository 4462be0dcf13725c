//! A fleet's own certificate authority.

use std::net::IpAddr;

use coeval_cli::pki;
use snapshot::http::{Identity, Role, TlsFiles};
use tempfile::TempDir;

/// An authority and the files that it issued; they are removed when it is dropped.
#[derive(Debug)]
pub struct Authority {
    authority: pki::Authority,
    directory: TempDir,
}

impl Authority {
    /// A new authority.
    pub fn new() -> Authority {
        let directory = tempfile::tempdir().unwrap();
        Authority { authority: pki::Authority::create(directory.path()).unwrap(), directory }
    }

    /// The files that were issued under this name.
    pub fn files(&self, name: &str) -> TlsFiles {
        let file = |name: &str| self.directory.path().join(name);
        TlsFiles { cert: file(&format!("{name}.pem")), key: file(&format!("{name}.key")), ca: file("ca.pem") }
    }

    /// A key and a certificate for whoever is at `address`.
    pub fn issue(&self, role: Role, name: &str, address: IpAddr) -> TlsFiles {
        let who = Identity { role, name: name.to_owned() };
        self.authority.issue(&who, &[address.to_string()], 1).unwrap()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}
