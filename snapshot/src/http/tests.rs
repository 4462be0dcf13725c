use std::time::Duration;

use axum::routing::{get, post};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use super::*;

const LIMIT: Duration = Duration::from_secs(5);
const ANY: &str = "127.0.0.1:0";

fn echo() -> Router {
    Router::new()
        .route("/v1/ping", get(async || Json(())))
        .route("/v1/echo", post(async |JsonBody(number): JsonBody<u32>| Json(number)))
        .route("/v1/number/{number}", get(async |Segments(number): Segments<u32>| Json(number)))
        .route("/v1/long", get(async || "x".repeat(16 << 20)))
        .route("/v1/full", get(async || Refusal::new(507, "no space left; free some")))
}

/// Serves on loopback until the test's runtime ends.
fn serve(tls: Option<&TlsFiles>) -> String {
    let listener = Listener::bind(ANY.parse().unwrap(), tls, false).unwrap();
    let url = listener.url();
    tokio::spawn(listener.serve(echo(), Admits::TheServer, StopHandle::new()));
    url
}

/// A CA and what it issued, in a directory of its own.
struct Authority {
    directory: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = TempDir::new().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Authority { directory, issuer }
    }

    fn issue(&self, name: &str) -> TlsFiles {
        self.issue_as(Some(Role::Server), name)
    }

    fn issue_as(&self, role: Option<Role>, name: &str) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.subject_alt_names.extend(role.map(|role| {
            let who = Identity { role, name: name.to_owned() };
            rcgen::SanType::URI(who.to_string().try_into().unwrap())
        }));
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |suffix: &str| self.directory.path().join(format!("{name}.{suffix}"));
        let files =
            TlsFiles { cert: file("pem"), key: file("key"), ca: self.directory.path().join("ca.pem") };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

async fn ping(connector: &Connector, url: &str) -> Result<(), ControlError> {
    let client = connector.connect("host a", url).unwrap();
    client.get(client.page(&["v1", "ping"]), LIMIT).await
}

#[tokio::test]
async fn mutual_tls_admits_only_its_own_ca() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = ours.issue("server");
    let url = serve(Some(&server));
    assert!(url.starts_with("https://"));

    assert_eq!(ping(&Connector::new(Some(&ours.issue("client")), false).unwrap(), &url).await, Ok(()));

    // Everything that a listener serves asks for the role, what is not there too.
    for role in [None, Some(Role::Host), Some(Role::Operator), Some(Role::Viewer)] {
        let files = ours.issue_as(role, &format!("{role:?}"));
        let connector = Connector::new(Some(&files), false).unwrap();
        let client = connector.connect("host a", &url).unwrap();
        for page in [&["v1", "ping"][..], &["v1", "nothing"]] {
            let answer: Result<(), _> = client.get(client.page(page), LIMIT).await;
            assert_eq!(answer.unwrap_err().status(), Some(403), "{role:?} at {page:?}");
        }
    }

    let stranger = theirs.issue("client");
    let foreign = TlsFiles { ca: server.ca.clone(), ..stranger.clone() };
    let error = ping(&Connector::new(Some(&foreign), false).unwrap(), &url).await;
    assert!(matches!(error, Err(ControlError::Unreachable { .. })), "a foreign certificate: {error:?}");

    let error = ping(&Connector::new(Some(&stranger), false).unwrap(), &url).await;
    assert!(matches!(error, Err(ControlError::Unreachable { .. })), "a server of another CA: {error:?}");

    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(vec![ours.issuer.der().clone()]);
    let bare =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let bare = reqwest::Client::builder().tls_backend_preconfigured(bare).build().unwrap();
    assert!(bare.get(format!("{url}/v1/ping")).send().await.is_err(), "no certificate at all");
}

#[test]
fn plain_http_stays_on_loopback() {
    let outside: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let error = Listener::bind(outside, None, false).unwrap_err();
    assert!(matches!(error, HttpError::Plain(_)), "{error}");
    assert!(Listener::bind(outside, None, true).is_ok(), "unless told to");

    let connector = Connector::new(None, false).unwrap();
    for inside in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://192.0.2.1:1"] {
        assert!(connector.connect("host a", inside).is_ok(), "{inside}");
    }
    for refused in ["http://192.0.2.1:1", "http://localhost.example:1", "http://127.0.0.1.example:1"] {
        assert!(matches!(connector.connect("host a", refused), Err(HttpError::Plain(_))), "{refused}");
    }
    for bad in ["", "host-a:7411", "ftp://127.0.0.1", "https://"] {
        assert!(matches!(connector.connect("host a", bad), Err(HttpError::Url { .. })), "{bad}");
    }
    assert!(Connector::new(None, true).unwrap().connect("host a", "http://192.0.2.1:1").is_ok());
}

#[test]
fn a_port_in_use_is_named() {
    let first = Listener::bind(ANY.parse().unwrap(), None, false).unwrap();
    let error = Listener::bind(first.address(), None, false).unwrap_err().to_string();
    assert!(error.contains(&first.address().port().to_string()) && error.contains("in use"), "{error}");
}

#[test]
fn unusable_tls_files_are_named() {
    let authority = Authority::new();
    let good = authority.issue("server");
    let address = ANY.parse().unwrap();
    let missing = authority.directory.path().join("missing.pem");
    let cases = [
        (TlsFiles { cert: missing.clone(), ..good.clone() }, "missing.pem"),
        (TlsFiles { key: good.cert.clone(), ..good.clone() }, "server.pem"),
        (TlsFiles { ca: good.key.clone(), ..good.clone() }, "server.key"),
        (TlsFiles { key: authority.issue("other").key, ..good.clone() }, "server.pem"),
    ];
    for (files, culprit) in cases {
        let error = Listener::bind(address, Some(&files), false).unwrap_err().to_string();
        assert!(error.contains(culprit), "{error}");
        assert!(Connector::new(Some(&files), false).is_err());
    }
}

#[tokio::test]
async fn every_refusal_is_a_problem_with_a_sentence() {
    let url = serve(None);
    let client = Connector::new(None, false).unwrap().connect("host a", &url).unwrap();
    let echoed: u32 = client.post(client.page(&["v1", "echo"]), &7, LIMIT).await.unwrap();
    assert_eq!(echoed, 7);

    let full: Result<(), _> = client.get(client.page(&["v1", "full"]), LIMIT).await;
    assert_eq!(full.unwrap_err().to_string(), "host a: no space left; free some");
    let missing: Result<(), _> = client.get(client.page(&["v2", "what"]), LIMIT).await;
    assert_eq!(missing.unwrap_err().status(), Some(404));
    let method: Result<(), _> = client.delete(client.page(&["v1", "ping"]), LIMIT).await;
    assert_eq!(method.unwrap_err().status(), Some(405));
    let body: Result<u32, _> = client.post(client.page(&["v1", "echo"]), &"seven", LIMIT).await;
    assert_eq!(body.unwrap_err().status(), Some(422));
    let segment: Result<u32, _> = client.get(client.page(&["v1", "number", "x/../7"]), LIMIT).await;
    assert_eq!(segment.unwrap_err().status(), Some(400), "a segment cannot change the path");
}

#[tokio::test]
async fn a_silent_peer_costs_its_time_limit_and_an_absent_one_says_so() {
    let held = TcpListener::bind(ANY).unwrap();
    let silent = format!("http://{}", held.local_addr().unwrap());
    let client = Connector::new(None, false).unwrap().connect("host a", &silent).unwrap();
    let limit = Duration::from_millis(20);
    let error: Result<(), _> = client.get(client.page(&["v1", "ping"]), limit).await;
    assert_eq!(error, Err(ControlError::TimedOut { peer: "host a".to_owned(), after: limit }));

    drop(held);
    let error: Result<(), _> = client.get(client.page(&["v1", "ping"]), LIMIT).await;
    let sentence = error.unwrap_err().to_string();
    assert!(sentence.starts_with(&format!("host a does not answer at {silent}: ")), "{sentence}");
}

/// Serves on loopback with these limits.
fn serve_limited(limits: Limits) -> SocketAddr {
    let mut listener = Listener::bind(ANY.parse().unwrap(), None, false).unwrap();
    listener.limits = limits;
    listener.let_go_of_who_does_not_read().unwrap();
    let address = listener.address();
    tokio::spawn(listener.serve(echo(), Admits::TheServer, StopHandle::new()));
    address
}

/// What comes until the other end closes.
async fn read_to_end(stream: &mut tokio::net::TcpStream) -> String {
    use tokio::io::AsyncReadExt;
    let mut told = Vec::new();
    // A reset is an end, too.
    let _ = stream.read_to_end(&mut told).await;
    String::from_utf8_lossy(&told).into_owned()
}

#[tokio::test]
async fn whoever_sends_slowly_is_let_go_and_holds_nobody_up() {
    use tokio::io::AsyncWriteExt;
    let short = Duration::from_secs(2);
    let address = serve_limited(Limits { head: short, body: short, ..Limits::default() });
    let open = async |sends: &str| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(sends.as_bytes()).await.unwrap();
        stream
    };
    let mut silent = open("").await;
    let mut headless = open("GET /v1/ping HTTP/1.1\r\nhost: localhost\r\n").await;
    let head = "POST /v1/echo HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n1";
    let mut bodiless = open(head).await;
    let url = format!("http://{address}");
    let client = Connector::new(None, false).unwrap();
    assert_eq!(ping(&client, &url).await, Ok(()), "meanwhile");
    assert_eq!(read_to_end(&mut silent).await, "");
    // Closed, with or without a word.
    read_to_end(&mut headless).await;
    let told = read_to_end(&mut bodiless).await;
    assert!(told.contains("408") && told.contains("application/problem+json"), "{told}");
    // By another connection: the one from before may just be closed.
    let client = Connector::new(None, false).unwrap();
    assert_eq!(ping(&client, &url).await, Ok(()), "afterwards");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_and_places_become_free_again() {
    use tokio::io::AsyncWriteExt;
    let address = serve_limited(Limits { connections: 2, ..Limits::default() });
    let request = b"GET /v1/ping HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let served = async || {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // Fails where it was closed already.
        let _ = stream.write_all(request).await;
        let mut first = [0];
        let answered = tokio::io::AsyncReadExt::read(&mut stream, &mut first).await;
        answered.is_ok_and(|count| count == 1).then_some(stream)
    };
    let (first, second) = (served().await.unwrap(), served().await.unwrap());
    assert!(served().await.is_none(), "there are two");
    drop(first);
    let waiting = async {
        while served().await.is_none() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("a place becomes free");
    drop(second);
}

#[tokio::test]
async fn whoever_does_not_read_is_let_go() {
    use tokio::io::AsyncWriteExt;
    let unread = Duration::from_secs(3);
    let address = serve_limited(Limits { connections: 1, unread, ..Limits::default() });
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // Otherwise the system might take all of the answer in.
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = socket.connect(address).await.unwrap();
    stuck.write_all(b"GET /v1/long HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    // Its answer has begun, and then nobody reads on.
    stuck.readable().await.unwrap();
    let client = Connector::new(None, false).unwrap();
    let url = format!("http://{address}");
    assert!(ping(&client, &url).await.is_err(), "there is one place");
    let served = async {
        while ping(&client, &url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), served).await.expect("its place becomes free");
    drop(stuck);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let url = format!("http://{}", serve_limited(Limits::default()));
    let client = Connector::new(None, false).unwrap().connect("host a", &url).unwrap();
    let long = "x".repeat(33 << 20);
    let refused: Result<(), _> = client.post(client.page(&["v1", "echo"]), &long, LIMIT).await;
    // It may be closed before all of it was sent.
    let refused = refused.unwrap_err();
    assert!(
        refused.status() == Some(413) || matches!(refused, ControlError::Unreachable { .. }),
        "{refused:?}"
    );
}

#[test]
fn certificates_that_expire_soon_are_told_of() {
    use chrono::TimeDelta;
    let authority = Authority::new();
    let files = authority.issue("server");
    let [(_, cert), (_, ca)] = files.expiries()[..] else { panic!("there are two certificates") };
    let first = cert.min(ca);
    assert!(warnings(&files, first - TimeDelta::days(31)).is_empty());
    let soon = warnings(&files, first - TimeDelta::days(29));
    assert!(soon.iter().all(|sentence| sentence.contains(" expires on ")) && !soon.is_empty(), "{soon:?}");
    let late = warnings(&files, cert.max(ca));
    assert!(late.len() == 2 && late.iter().all(|sentence| sentence.contains(" expired on ")), "{late:?}");
    assert!(late.iter().any(|sentence| sentence.contains("coeval pki issue")), "{late:?}");
}

#[tokio::test]
async fn files_that_were_replaced_count_from_the_next_connection_on() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let (server, client) = (ours.issue("server"), ours.issue("client"));
    let url = serve(Some(&server));
    let connector = Connector::new(Some(&client), false).unwrap();
    assert_eq!(ping(&connector, &url).await, Ok(()));
    // Half of it: what was read before stays.
    let (new_server, new_client) = (theirs.issue("server"), theirs.issue("client"));
    std::fs::copy(&new_server.cert, &server.cert).unwrap();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(ping(&Connector::new(Some(&client), false).unwrap(), &url).await, Ok(()));
    std::fs::copy(&new_server.key, &server.key).unwrap();
    std::fs::copy(&new_server.ca, &server.ca).unwrap();
    let admitted = async {
        while ping(&Connector::new(Some(&new_client), false).unwrap(), &url).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), admitted).await.expect("the new authority is trusted");
    let old = TlsFiles { ca: new_client.ca.clone(), ..client };
    let error = ping(&Connector::new(Some(&old), false).unwrap(), &url).await;
    assert!(matches!(error, Err(ControlError::Unreachable { .. })), "the old authority is not: {error:?}");
}
