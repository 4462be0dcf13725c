//! Endpoints that require TLS, in the clear and beyond.

use std::net::TcpStream;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::*;
use crate::http::TlsFiles;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).unwrap();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    fn issue(&self, identity: Option<&str>) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
        params.subject_alt_names.extend(identity.map(|uri| SanType::URI(uri.try_into().unwrap())));
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

struct Secured {
    server: Server,
    exports: Arc<TwoExports>,
    authority: Authority,
    _directory: TempDir,
}

impl Secured {
    fn start() -> Self {
        let (directory, authority) = (tempfile::tempdir().unwrap(), Authority::new());
        let (certificate, key) = authority.issue(Some("coeval://host/a"));
        let file = |name: &str, text: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let files = TlsFiles {
            cert: file("cert", certificate.pem()),
            key: file("key", key.serialize_pem()),
            ca: file("ca", authority.certificate.pem()),
        };
        let exports = exports();
        let endpoints = ["tls://127.0.0.1:0".parse().unwrap()];
        let server =
            Server::bind_with_tls(&endpoints, Arc::clone(&exports) as _, HostClock::real(), Some(&files));
        Secured { server: server.unwrap(), exports, authority, _directory: directory }
    }

    /// A connection in the clear, past an empty greeting.
    fn raw(&self) -> TcpStream {
        let Endpoint::Tls(address) = &self.server.endpoints()[0] else { unreachable!() };
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream
    }

    fn secure(&self, mut stream: TcpStream, identity: Option<&str>) -> Channel {
        stream.write_all(&option_bytes(option::STARTTLS, &[])).unwrap();
        assert_eq!(option_reply(&mut stream).1, option_reply::ACK);
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let (certificate, key) = self.authority.issue(identity);
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = builder
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
    }
}

type Channel = StreamOwned<ClientConnection, TcpStream>;

fn go(channel: &mut Channel, export: &[u8]) -> u32 {
    channel.write_all(&option_bytes(option::GO, &info_data(export, &[]))).unwrap();
    let (_, kind, data) = option_reply(channel);
    if kind == option_reply::INFO {
        assert_eq!(option_reply(channel).1, option_reply::ACK);
        assert_eq!(data[2..10], (SIZE as u64).to_be_bytes());
    }
    kind
}

#[test]
fn nothing_but_starttls_is_done_in_the_clear() {
    let secured = Secured::start();
    let mut stream = secured.raw();
    for option in [option::LIST, option::INFO, option::GO, option::STRUCTURED_REPLY, 9, 10, 4711] {
        stream.write_all(&option_bytes(option, &info_data(b"vol", &[]))).unwrap();
        let (answered, kind, _) = option_reply(&mut stream);
        assert_eq!((answered, kind), (option, option_reply::ERR_TLS_REQD));
    }
    stream.write_all(&option_bytes(option::STARTTLS, b"x")).unwrap();
    assert_eq!(option_reply(&mut stream).1, option_reply::ERR_INVALID);
    stream.write_all(&option_bytes(option::ABORT, &[])).unwrap();
    assert_eq!(option_reply(&mut stream).1, option_reply::ACK);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);

    let mut stream = secured.raw();
    stream.write_all(&option_bytes(option::EXPORT_NAME, b"vol")).unwrap();
    assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
    // What follows STARTTLS in the clear is no option, and ends the connection.
    let mut stream = secured.raw();
    let injected =
        [option_bytes(option::STARTTLS, &[]), option_bytes(option::GO, &info_data(b"vol", &[]))].concat();
    stream.write_all(&injected).unwrap();
    assert_eq!(option_reply(&mut stream).1, option_reply::ACK);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.len() < 20, "at most an alert: {rest:?}");
}

#[test]
fn an_operator_reads_and_writes_and_the_server_reads() {
    let secured = Secured::start();
    let mut operator = secured.secure(secured.raw(), Some("coeval://operator/anna"));
    assert_eq!(go(&mut operator, b"vol"), option_reply::INFO);
    // More than any buffer on the way holds, in both directions at once.
    let data: Vec<u8> = (0..wire::MAX_PAYLOAD).map(|at| (at % 239) as u8).collect();
    operator.write_all(&write_request(1, 4096, &data)).unwrap();
    assert_eq!(reply(&mut operator), (1, Ok(())));
    operator.write_all(&request(command::READ, 0, 2, 4096, wire::MAX_PAYLOAD)).unwrap();
    assert_eq!(reply(&mut operator), (2, Ok(())));
    let mut back = vec![0; data.len()];
    operator.read_exact(&mut back).unwrap();
    assert!(back == data);

    let mut server = secured.secure(secured.raw(), Some("coeval://server/backup"));
    assert_eq!(go(&mut server, b"vol"), option_reply::INFO);
    server.write_all(&write_request(1, 0, b"x")).unwrap();
    assert_eq!(reply(&mut server), (1, Err(ErrorCode::NotPermitted)));
    server.write_all(&request(command::READ, 0, 2, 4096, 3)).unwrap();
    assert_eq!(reply(&mut server), (2, Ok(())));
    server.read_exact(&mut back[..3]).unwrap();
    assert_eq!(back[..3], data[..3]);
}

#[test]
fn other_roles_are_refused_in_a_sentence() {
    let secured = Secured::start();
    for identity in [None, Some("coeval://viewer/eve"), Some("coeval://host/b")] {
        let mut channel = secured.secure(secured.raw(), identity);
        assert_eq!(go(&mut channel, b"vol"), option_reply::ERR_POLICY);
        channel.write_all(&option_bytes(option::LIST, &[])).unwrap();
        let (_, kind, sentence) = option_reply(&mut channel);
        assert_eq!(kind, option_reply::ERR_POLICY);
        assert!(String::from_utf8(sentence).unwrap().contains("operator"));
        channel.write_all(&option_bytes(option::EXPORT_NAME, b"vol")).unwrap();
        assert!(!matches!(channel.read(&mut [0]), Ok(1..)));
    }
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let (secured, stranger) = (Secured::start(), Authority::new());
    let foreign = Secured { authority: stranger, ..Secured::start() };
    // It knows whom it talks to, but is not known.
    let (certificate, key) = foreign.authority.issue(Some("coeval://operator/anna"));
    let mut roots = RootCertStore::empty();
    roots.add(secured.authority.certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let known = builder.clone().unwrap().with_root_certificates(roots.clone());
    let configs = [
        known.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap(),
        builder.unwrap().with_root_certificates(roots).with_no_client_auth(),
    ];
    for config in configs {
        let mut stream = secured.raw();
        stream.write_all(&option_bytes(option::STARTTLS, &[])).unwrap();
        assert_eq!(option_reply(&mut stream).1, option_reply::ACK);
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut channel = StreamOwned::new(session, stream);
        let _ = channel.write_all(&option_bytes(option::LIST, &[]));
        let mut rest = Vec::new();
        let _ = channel.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
}

#[test]
fn a_held_reply_stays_held_by_tls() {
    let secured = Secured::start();
    let mut channel = secured.secure(secured.raw(), Some("coeval://operator/anna"));
    assert_eq!(go(&mut channel, b"vol"), option_reply::INFO);
    let cut = Cut::new(Timing::Barrier, Nanos::from_millis(3_600_000));
    cut.strike(HostClock::real().now());
    let cut = Arc::new(cut);
    *secured.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    channel.write_all(&write_request(1, 0, b"later")).unwrap();
    channel.write_all(&request(command::FLUSH, 0, 2, 0, 0)).unwrap();
    assert_eq!(reply(&mut channel), (2, Ok(())));
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut channel), (1, Ok(())));
}

#[test]
fn a_server_that_stops_ends_all_connections() {
    let secured = Secured::start();
    let mut before = secured.raw();
    let mut after = secured.secure(secured.raw(), Some("coeval://operator/anna"));
    assert_eq!(go(&mut after, b"vol"), option_reply::INFO);
    drop(secured);
    assert!(!matches!(before.read(&mut [0]), Ok(1..)));
    assert!(!matches!(after.read(&mut [0]), Ok(1..)));
}

#[test]
fn tls_needs_certificates() {
    let endpoints = ["tls://127.0.0.1:0".parse().unwrap()];
    let error = Server::bind(&endpoints, exports() as _, HostClock::real()).unwrap_err();
    assert!(error.to_string().contains("[tls]"), "{error}");
}
