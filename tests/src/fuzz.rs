//! What fuzzers call: everything that parses octets from somebody else. Each target takes any octets and must neither
//! panic nor hang.
//!
//! `fuzz/` has a libFuzzer program for each; the test `fuzz` runs each on its corpus.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::ops::Range;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use coeval_cli::config::{HostConfig, ServerConfig, parse};
use coeval_cli::units;
use serde::Serialize;
use serde::de::DeserializeOwned;
use snapshot::certificate::{Evidence, certify};
use snapshot::device::{Changes, Device, Exports, Outcome, Visit};
use snapshot::http::Role;
use snapshot::nbd::{Client, Endpoint, Server};
use snapshot::{agent, messages, orders};
use timesync::authentication::{Association, Key, Keyring, SessionKey};
use timesync::bound::{Assumptions, AsymmetryBudget, Window};
use timesync::clock::HostClock;
use timesync::correction::Corrections;
use timesync::exchange::{Backward, Exchange, Forward};
use timesync::time::{Nanos, Span, Time};
use timesync::wire::Message;

use crate::tls::Authority;

/// What a fuzzer calls with octets of its own making.
pub type Target = fn(&[u8]);

/// The targets, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("wire", wire),
    ("authentication", authentication),
    ("exchanges", exchanges),
    ("nbd_server", nbd_server),
    ("nbd_tls", nbd_tls),
    ("nbd_client", nbd_client),
    ("json", json),
    ("config", config),
];

/// A time exchange's datagram. What was read is written and read again as the same.
pub fn wire(data: &[u8]) {
    if let Ok(message) = Message::parse(data) {
        assert_eq!(Message::parse(&message.encode()), Ok(message));
    }
}

/// A datagram that is to be authenticated, and a key file. Nobody guesses a key.
pub fn authentication(data: &[u8]) {
    static KEYS: OnceLock<(Keyring, Association)> = OnceLock::new();
    let (keyring, association) = KEYS.get_or_init(|| {
        let keyring = Keyring::new(Some(Key::new(0, 0, &[7; 32])));
        let session = SessionKey::draw().unwrap();
        keyring.add(&session);
        (keyring, Association::new(session.key(), true))
    });
    assert!(keyring.admit(data).is_err() && association.admit(data).is_err());
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Key::read(text);
    }
}

/// Timestamps and corrections, as far out as the wire lets them be: a bound may be wide or withdrawn, no more.
pub fn exchanges(data: &[u8]) {
    const LIMIT: i64 = 1 << 61;
    let mut numbers = data.chunks_exact(8).map(|octets| {
        let number = i64::from_le_bytes(octets.try_into().unwrap());
        // Half of them near each other: that is where bounds are.
        if number & 1 == 0 { number >> 40 } else { number.clamp(-LIMIT, LIMIT) }
    });
    let mut window = Window::new(Assumptions::default(), 64);
    let mut at = Time::from_nanos(0);
    while let (Some(t1), Some(t2), Some(t3), Some(t4), Some(forward), Some(backward)) =
        (numbers.next(), numbers.next(), numbers.next(), numbers.next(), numbers.next(), numbers.next())
    {
        at = Time::from_nanos(t4);
        let measured = Exchange {
            forward: Some(Forward {
                sent: Span::exact(Time::from_nanos(t1)),
                received: Span::exact(Time::from_nanos(t2)),
            }),
            backward: Some(Backward { sent: Span::exact(Time::from_nanos(t3)), received: Span::exact(at) }),
        };
        let _ = measured.round_trip();
        window.push(&measured);
        if let Ok(corrected) = (Corrections { forward, backward }).apply(&measured, 200_000) {
            window.push(&corrected);
        }
    }
    let _ = (
        window.hard(at),
        window.drift(at),
        window.statistical(at, 0.999, AsymmetryBudget::SmallestRoundTrip),
    );
    if let Ok(bound) = window.hard(at + Nanos::from_millis(1_000)) {
        assert!(bound.half_width() >= Nanos::ZERO);
    }
}

/// Zeros that forget what is written.
struct Nothing;

const NOTHING_SIZE: u64 = 1 << 20;

impl Device for Nothing {
    fn size(&self) -> u64 {
        NOTHING_SIZE
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
        buffer.fill(0);
        within(offset, buffer.len() as u64)
    }
    fn write(&self, offset: u64, data: &[u8], _: bool) -> Outcome {
        within(offset, data.len() as u64)
    }
    fn write_zeroes(&self, offset: u64, length: u64, _: bool, _: bool) -> Outcome {
        within(offset, length)
    }
    fn trim(&self, offset: u64, length: u64, _: bool) -> Outcome {
        within(offset, length)
    }
    fn flush(&self) -> Outcome {
        Outcome::now(Ok(()))
    }
    fn snapshots(&self) -> Vec<String> {
        vec!["s".to_owned()]
    }
    fn changes_since(&self, _: &str) -> Option<Box<dyn Changes>> {
        Some(Box::new(Nothing))
    }
}

impl Changes for Nothing {
    fn within(&self, range: Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        let outcome = within(range.start, range.end - range.start);
        let _ = visit(range, true);
        outcome
    }
}

fn within(offset: u64, length: u64) -> Outcome {
    assert!(offset + length <= NOTHING_SIZE, "a request beyond the end reached the device");
    Outcome::now(Ok(()))
}

impl Exports for Nothing {
    fn list(&self) -> Vec<String> {
        vec!["a".to_owned()]
    }
    fn open(&self, name: &str) -> Option<Arc<dyn Device>> {
        (name == "a").then(|| Arc::new(Nothing) as Arc<dyn Device>)
    }
}

/// A socket's place, one for each process.
fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("coeval-fuzz-{name}-{}", std::process::id()))
}

/// All that an NBD client sends, from the handshake on.
pub fn nbd_server(data: &[u8]) {
    static SERVER: OnceLock<(PathBuf, Server)> = OnceLock::new();
    let (path, _) = SERVER.get_or_init(|| {
        let path = socket("server");
        let endpoints = [Endpoint::Unix(path.clone())];
        let server = Server::bind(&endpoints, Arc::new(Nothing), HostClock::real()).unwrap();
        (path, server)
    });
    let stream = UnixStream::connect(path).unwrap();
    talk(&stream, &stream, || stream.shutdown(Shutdown::Write), data);
}

/// The same where TLS is required: nothing that is sent in the clear reaches an export.
pub fn nbd_tls(data: &[u8]) {
    static SERVER: OnceLock<(Server, Authority)> = OnceLock::new();
    let (server, _) = SERVER.get_or_init(|| {
        let authority = Authority::new();
        let files = authority.issue(Role::Host, "a", Ipv4Addr::LOCALHOST.into());
        let endpoints = ["tls://127.0.0.1:0".parse().unwrap()];
        let clock = HostClock::real();
        let server = Server::bind_with_tls(&endpoints, Arc::new(Nothing), clock, Some(&files)).unwrap();
        (server, authority)
    });
    let Endpoint::Tls(address) = server.endpoints()[0] else { unreachable!("it is the only one") };
    let stream = TcpStream::connect(address).unwrap();
    talk(&stream, &stream, || stream.shutdown(Shutdown::Write), data);
}

/// Says `data` to a server, which greets first and may hang up at any octet.
fn talk(
    mut reader: impl Read + Send,
    mut writer: impl Write,
    end: impl FnOnce() -> std::io::Result<()>,
    data: &[u8],
) {
    std::thread::scope(|scope| {
        // The server answers while it is being told more.
        let answers = scope.spawn(move || {
            let mut greeting = [0; 18];
            reader.read_exact(&mut greeting).unwrap();
            assert!(greeting.starts_with(b"NBDMAGICIHAVEOPT"));
            let _ = reader.read_to_end(&mut Vec::new());
        });
        let _ = writer.write_all(data);
        let _ = end();
        answers.join().unwrap();
    });
}

/// All that an NBD server sends to our client.
pub fn nbd_client(data: &[u8]) {
    static LISTENER: OnceLock<(PathBuf, Mutex<UnixListener>)> = OnceLock::new();
    let (path, listener) = LISTENER.get_or_init(|| {
        let path = socket("client");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        (path, Mutex::new(listener))
    });
    let listener = listener.lock().unwrap();
    let endpoint = Endpoint::Unix(path.clone());
    std::thread::scope(|scope| {
        let answers = scope.spawn(|| {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.write_all(data);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            }
        });
        if let Ok(mut client) = Client::connect(&endpoint, "a") {
            let _ = (client.size(), client.read_only());
            let _ = client.read(0, &mut [0; 512]);
            let _ = client.write(0, &[1; 64], true);
            let _ = client.flush();
            let _ = client.disconnect();
        }
        let _ = Client::list(&endpoint);
        answers.join().unwrap();
    });
}

/// Every body that the control plane reads, on either end. What was read is written and read again.
pub fn json(data: &[u8]) {
    fn body<T: Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
        let value: T = serde_json::from_slice(data).ok()?;
        let written = serde_json::to_vec(&value).unwrap();
        assert!(serde_json::from_slice::<T>(&written).is_ok(), "{}", String::from_utf8_lossy(&written));
        Some(value)
    }
    body::<orders::PrepareOrder>(data);
    body::<orders::ArmOrder>(data);
    body::<orders::Armed>(data);
    body::<orders::Struck>(data);
    body::<orders::ReleaseOrder>(data);
    body::<orders::Sealed>(data);
    body::<orders::CommitOrder>(data);
    body::<orders::HostDescription>(data);
    body::<orders::CreateVolume>(data);
    body::<orders::ContentDigest>(data);
    body::<orders::Problem>(data);
    body::<agent::UncoordinatedOrder>(data);
    body::<SessionKey>(data);
    body::<messages::CreateRequest>(data);
    body::<messages::operations::Operation>(data);
    body::<messages::CreateVolumeOn>(data);
    body::<messages::SnapshotDetails>(data);
    body::<messages::VerifyReport>(data);
    body::<messages::HostVolumes>(data);
    body::<timesync::report::Report>(data);
    // Stored evidence may be damaged, or somebody else's.
    if let Some(evidence) = body::<Evidence>(data) {
        let _ = certify(&evidence);
    }
}

/// Configuration files and what people write in them and on command lines.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let path = std::path::Path::new("x");
    if let Ok(config) = parse::<ServerConfig>(text, path)
        && config.check().is_ok()
    {
        let _ = config.time_server(false);
    }
    let _ = parse::<HostConfig>(text, path).map(|config| config.check());
    let _ = (units::duration(text), units::signed_duration(text), units::size(text));
    if let Ok(endpoint) = text.parse::<Endpoint>() {
        assert_eq!(endpoint.to_string().parse::<Endpoint>().unwrap(), endpoint);
    }
}
