//! A fleet's certificate authority: a directory with its key and the certificates that it issued.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use snapshot::http::{Identity, Role, TlsFiles};
use time::{Duration, OffsetDateTime};
use timesync::clock;

/// The authority's own certificate: it goes to every machine.
const CA_CERTIFICATE: &str = "ca.pem";
/// The authority's key: it stays here.
const CA_KEY: &str = "ca.key";
/// A CA is not replaced often: everybody has to be given the new one.
const CA_DAYS: u32 = 3650;
/// Clocks of other machines may be behind.
const BACKDATED: Duration = Duration::HOUR;

/// Why the authority did not do it. Each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Nothing here is overwritten.
    #[error("{} exists already; remove it first if you mean to replace it", .0.display())]
    Exists(PathBuf),
    /// No authority there.
    #[error("there is no authority in {}; `coeval pki init --dir {}` makes one", .0.display(), .0.display())]
    None(PathBuf),
    /// A daemon that nobody can connect to.
    #[error("a {0} is connected to; say under which addresses or names, with --address")]
    NoAddress(Role),
    /// A name that would be something else in a path or a URI.
    #[error("{0:?} is not a name; use letters, digits, `-`, `_` and `.`, and begin with a letter or digit")]
    Name(String),
    /// An address that no certificate can hold.
    #[error("{0:?} is neither an IP address nor a host name")]
    Address(String),
    /// A file cannot be read or written.
    #[error("cannot use {}: {why}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        why: io::Error,
    },
    /// The cryptography library refused.
    #[error("cannot make the certificate: {0}")]
    Certificate(#[from] rcgen::Error),
}

/// An authority that can issue certificates.
#[derive(Debug)]
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new authority in `directory`, which is created for its owner alone if need be.
    ///
    /// # Errors
    /// [`PkiError`]; an authority that is there already stays.
    pub fn create(directory: &Path) -> Result<Self, PkiError> {
        let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        created.map_err(|why| file_error(directory, why))?;
        let key = KeyPair::generate()?;
        write_new(&directory.join(CA_KEY), &key.serialize_pem(), 0o600)?;
        let mut params = ca_params();
        let now = now();
        (params.not_before, params.not_after) = (now - BACKDATED, now + Duration::days(CA_DAYS.into()));
        let certificate = params.self_signed(&key)?;
        write_new(&directory.join(CA_CERTIFICATE), &certificate.pem(), 0o644)?;
        Ok(Authority { directory: directory.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Opens the authority in `directory`.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn open(directory: &Path) -> Result<Self, PkiError> {
        let path = directory.join(CA_KEY);
        let pem = fs::read_to_string(&path).map_err(|why| match why.kind() {
            io::ErrorKind::NotFound => PkiError::None(directory.to_owned()),
            _ => file_error(&path, why),
        })?;
        // Of its certificate, only the name and the key go into what it issues, and those are known.
        let issuer = Issuer::new(ca_params(), KeyPair::from_pem(&pem)?);
        Ok(Authority { directory: directory.to_owned(), issuer })
    }

    /// Issues a certificate, valid from now for `days`, and writes it beside its key as `NAME.pem` and `NAME.key`.
    /// `addresses` are the IP addresses and host names that a server or host is connected to under.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn issue(&self, who: &Identity, addresses: &[String], days: u32) -> Result<TlsFiles, PkiError> {
        let Identity { role, name } = who;
        if !is_name(name) {
            return Err(PkiError::Name(name.clone()));
        }
        let listens = matches!(role, Role::Server | Role::Host);
        if listens && addresses.is_empty() {
            return Err(PkiError::NoAddress(*role));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.subject_alt_names =
            addresses.iter().map(|address| alternative_name(address)).collect::<Result<_, _>>()?;
        params.subject_alt_names.push(SanType::URI(who.to_string().try_into()?));
        // No key is enciphered with it, but QEMU, as an NBD client, presents no certificate that does not allow it.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = match role {
            // The server is its hosts' client.
            Role::Server => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Role::Host => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Role::Operator | Role::Viewer => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        let now = now();
        (params.not_before, params.not_after) = (now - BACKDATED, now + Duration::days(days.into()));
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let file = |suffix: &str| self.directory.join(format!("{name}.{suffix}"));
        let files = TlsFiles { cert: file("pem"), key: file("key"), ca: self.directory.join(CA_CERTIFICATE) };
        write_new(&files.key, &key.serialize_pem(), 0o600)?;
        write_new(&files.cert, &certificate.pem(), 0o644)?;
        Ok(files)
    }
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Coeval fleet");
    // It issues to the fleet's members and to no other authority.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn alternative_name(address: &str) -> Result<SanType, PkiError> {
    if let Ok(ip) = address.parse() {
        return Ok(SanType::IpAddress(ip));
    }
    let is_host_name = address.split('.').all(|label| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    });
    if !is_host_name {
        return Err(PkiError::Address(address.to_owned()));
    }
    Ok(SanType::DnsName(address.try_into()?))
}

/// `ca` is taken: its files are the authority's own.
fn is_name(name: &str) -> bool {
    name != "ca"
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn now() -> OffsetDateTime {
    let nanos = clock::wall_now().as_nanos();
    // An i64 of nanoseconds is within the years that the type can hold.
    OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let mut file =
        File::options().write(true).create_new(true).mode(mode).open(path).map_err(|why| {
            match why.kind() {
                io::ErrorKind::AlreadyExists => PkiError::Exists(path.to_owned()),
                _ => file_error(path, why),
            }
        })?;
    file.write_all(text.as_bytes()).map_err(|why| file_error(path, why))
}

fn file_error(path: &Path, why: io::Error) -> PkiError {
    PkiError::File { path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn operator(name: &str) -> Identity {
        Identity { role: Role::Operator, name: name.to_owned() }
    }

    #[test]
    fn keys_are_for_their_owner_alone_and_nothing_is_overwritten() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("pki");
        let authority = Authority::create(&directory).unwrap();
        let files = authority.issue(&operator("anna"), &[], 1).unwrap();
        for key in [&directory.join(CA_KEY), &files.key] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
        }
        assert!(matches!(Authority::create(&directory), Err(PkiError::Exists(_))));
        let again = Authority::open(&directory).unwrap();
        assert!(matches!(again.issue(&operator("anna"), &[], 1), Err(PkiError::Exists(_))));
        assert!(matches!(Authority::open(home.path()), Err(PkiError::None(_))));
    }

    #[test]
    fn what_cannot_be_a_member_is_refused_in_a_sentence() {
        let home = tempfile::tempdir().unwrap();
        let authority = Authority::create(home.path()).unwrap();
        for name in ["ca", "", "../anna", "a/b", "-x", "anna@home"] {
            assert!(matches!(authority.issue(&operator(name), &[], 1), Err(PkiError::Name(_))), "{name}");
        }
        let host = Identity { role: Role::Host, name: "db1".to_owned() };
        assert!(matches!(authority.issue(&host, &[], 1), Err(PkiError::NoAddress(Role::Host))));
        let wrong = authority.issue(&host, &["10.0.0.1:7421".to_owned()], 1);
        assert!(matches!(wrong, Err(PkiError::Address(_))));
    }
}
