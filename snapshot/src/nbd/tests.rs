//! The server from outside: over real sockets, on a device in memory.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use timesync::clock::HostClock;
use timesync::time::Nanos;

use super::buffer::Buffer;
use super::handshake::{Handshake, Step};
use super::wire::{self, Request, command, command_flag, info, option, option_reply, transmission_flag};
use super::*;
use crate::cut::{Cause, Cut, Timing};
use crate::device::{Device, DeviceError, Exports, Outcome};

const SIZE: usize = 40 << 20;

/// Bytes in memory. While a cut is set, whatever changes them is beyond it.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    cut: Mutex<Option<Arc<Cut>>>,
    failing: AtomicBool,
}

impl Memory {
    fn new(read_only: bool) -> Arc<Self> {
        let mut bytes = vec![0; SIZE];
        for (number, page) in bytes.chunks_mut(4096).enumerate() {
            page.fill((number % 251) as u8);
        }
        Arc::new(Memory {
            bytes: Mutex::new(bytes),
            read_only,
            cut: Mutex::new(None),
            failing: AtomicBool::new(false),
        })
    }

    fn change(&self, offset: u64, length: usize, change: impl FnOnce(&mut [u8])) -> Outcome {
        if self.read_only {
            return Outcome::now(Err(DeviceError::ReadOnly));
        }
        let hold = self.cut.lock().unwrap().clone();
        if self.failing.load(Ordering::SeqCst) {
            return Outcome { result: Err(DeviceError::Io), hold };
        }
        change(&mut self.bytes.lock().unwrap()[offset as usize..][..length]);
        Outcome { result: Ok(()), hold }
    }
}

impl Device for Memory {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
        if self.failing.load(Ordering::SeqCst) {
            return Outcome::now(Err(DeviceError::Io));
        }
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Outcome::now(Ok(()))
    }

    fn write(&self, offset: u64, data: &[u8], _fua: bool) -> Outcome {
        assert_ne!(data, b"panic");
        self.change(offset, data.len(), |bytes| bytes.copy_from_slice(data))
    }

    fn write_zeroes(&self, offset: u64, length: u64, _may_punch: bool, _fua: bool) -> Outcome {
        self.change(offset, length as usize, |bytes| bytes.fill(0))
    }

    fn trim(&self, offset: u64, length: u64, _fua: bool) -> Outcome {
        self.change(offset, length as usize, |bytes| bytes.fill(0))
    }

    fn flush(&self) -> Outcome {
        Outcome::now(Ok(()))
    }
}

struct TwoExports {
    volume: Arc<Memory>,
    snapshot: Arc<Memory>,
}

impl Exports for TwoExports {
    fn list(&self) -> Vec<String> {
        vec!["vol".into(), "vol@monday".into()]
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Device>> {
        match name {
            "vol" => Some(Arc::clone(&self.volume) as _),
            "vol@monday" => Some(Arc::clone(&self.snapshot) as _),
            _ => None,
        }
    }
}

fn exports() -> Arc<TwoExports> {
    Arc::new(TwoExports { volume: Memory::new(false), snapshot: Memory::new(true) })
}

struct Served {
    server: Server,
    exports: Arc<TwoExports>,
    directory: TempDir,
}

impl Served {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let exports = exports();
        let endpoints = [Endpoint::Unix(directory.path().join("nbd")), "tcp://127.0.0.1:0".parse().unwrap()];
        let server = Server::bind(&endpoints, Arc::clone(&exports) as _, HostClock::real()).unwrap();
        Served { server, exports, directory }
    }

    fn unix(&self) -> PathBuf {
        self.directory.path().join("nbd")
    }

    fn client(&self) -> Client {
        let mut client = Client::connect(&self.server.endpoints()[0], "vol").unwrap();
        client.set_timeout(Some(Duration::from_secs(30))).unwrap();
        client
    }

    /// A connection without a client, past an empty greeting.
    fn raw(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.unix()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream
    }

    /// A connection on which requests may be sent.
    fn pipe(&self) -> UnixStream {
        let mut stream = self.raw();
        stream.write_all(&option_bytes(option::EXPORT_NAME, b"vol")).unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        stream
    }
}

fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::option_head(option, data.len() as u32).to_vec();
    bytes.extend(data);
    bytes
}

fn info_data(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name);
    data.extend((wanted.len() as u16).to_be_bytes());
    data.extend(wanted.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> [u8; Request::LEN] {
    Request { flags, command, cookie, offset, length }.encode()
}

fn write_request(cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = request(command::WRITE, 0, cookie, offset, data.len() as u32).to_vec();
    bytes.extend(data);
    bytes
}

fn reply(stream: &mut UnixStream) -> (u64, Result<(), ErrorCode>) {
    let mut bytes = [0; wire::SIMPLE_REPLY_LEN];
    stream.read_exact(&mut bytes).unwrap();
    wire::decode_simple_reply(bytes).unwrap()
}

fn option_reply(stream: &mut UnixStream) -> (u32, u32, Vec<u8>) {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let rest = &mut &head[8..];
    let (option, kind) = (wire::take_u32(rest).unwrap(), wire::take_u32(rest).unwrap());
    let mut data = vec![0; wire::take_u32(rest).unwrap() as usize];
    stream.read_exact(&mut data).unwrap();
    (option, kind, data)
}

/// A cut that nothing ends but the test.
fn barrier() -> Arc<Cut> {
    let cut = Cut::new(Timing::Barrier, Nanos::from_millis(3_600_000));
    cut.strike(HostClock::real().now());
    Arc::new(cut)
}

#[test]
fn a_client_does_everything_over_both_kinds_of_sockets() {
    let served = Served::start();
    for endpoint in served.server.endpoints() {
        assert_eq!(Client::list(endpoint).unwrap(), ["vol", "vol@monday"]);
        let mut client = Client::connect(endpoint, "vol").unwrap();
        assert_eq!((client.size(), client.read_only()), (SIZE as u64, false));
        let data: Vec<u8> = (0..wire::MAX_PAYLOAD).map(|at| (at % 241) as u8).collect();
        let mut back = vec![0; data.len()];
        for (offset, length) in [(0, 1), (4095, 2), (123, 65_536), (7, 1 << 20), (1, data.len())] {
            client.write(offset, &data[..length], length % 2 == 0).unwrap();
            client.read(offset, &mut back[..length]).unwrap();
            assert!(back[..length] == data[..length], "{length} bytes at {offset}");
        }
        client.flush().unwrap();
        client.trim(0, 4096, false).unwrap();
        client.write_zeroes(4096, 1, false, true).unwrap();
        client.read(0, &mut back[..4098]).unwrap();
        assert!(back[..4097].iter().all(|byte| *byte == 0));
        assert_eq!(back[4097], data[4096]);
        client.disconnect().unwrap();
        assert!(matches!(Client::connect(endpoint, "none"), Err(ClientError::NoSuchExport(_))));
    }
}

#[test]
fn refused_requests_leave_the_connection_in_step() {
    let served = Served::start();
    let mut client = served.client();
    let end = client.size();
    let mut page = [0; 4096];
    assert!(matches!(client.write(end - 1, &page, false), Err(ClientError::Refused(ErrorCode::NoSpace))));
    assert!(matches!(client.read(end, &mut page), Err(ClientError::Refused(ErrorCode::Invalid))));
    assert!(matches!(client.trim(end, 1, false), Err(ClientError::Refused(ErrorCode::Invalid))));
    client.read(0, &mut page).unwrap();

    let mut snapshot = Client::connect(&served.server.endpoints()[0], "vol@monday").unwrap();
    assert!(snapshot.read_only());
    assert!(matches!(snapshot.write(0, &page, true), Err(ClientError::Refused(ErrorCode::NotPermitted))));
    assert!(matches!(snapshot.trim(0, 1, true), Err(ClientError::Refused(ErrorCode::NotPermitted))));
    snapshot.read(0, &mut page).unwrap();

    let mut pipe = served.pipe();
    // A payload that is longer than allowed is passed over, and what follows it is understood.
    pipe.write_all(&request(command::WRITE, 0, 1, 0, wire::MAX_PAYLOAD + 1)).unwrap();
    pipe.write_all(&vec![0x25; wire::MAX_PAYLOAD as usize + 1]).unwrap();
    pipe.write_all(&request(99, 0, 2, 0, 1)).unwrap();
    pipe.write_all(&request(command::WRITE_ZEROES, command_flag::FAST_ZERO, 3, 0, 1)).unwrap();
    pipe.write_all(&request(command::FLUSH, 0, 4, 0, 0)).unwrap();
    assert_eq!(reply(&mut pipe), (1, Err(ErrorCode::Invalid)));
    assert_eq!(reply(&mut pipe), (2, Err(ErrorCode::Invalid)));
    assert_eq!(reply(&mut pipe), (3, Err(ErrorCode::Unsupported)));
    assert_eq!(reply(&mut pipe), (4, Ok(())));
}

#[test]
fn options_are_answered_as_the_protocol_says() {
    let served = Served::start();
    let mut stream = served.raw();
    let long_name = vec![b'x'; wire::MAX_STRING + 1];
    #[rustfmt::skip]
    let cases = [
        (option::STRUCTURED_REPLY, vec![1], option_reply::ERR_INVALID),
        (option::LIST, vec![1], option_reply::ERR_INVALID),
        (5, vec![], option_reply::ERR_UNSUP),
        (9, vec![0; 60_000], option_reply::ERR_UNSUP),
        (10, b"base:allocation".to_vec(), option_reply::ERR_UNSUP),
        (4711, vec![7; 3], option_reply::ERR_UNSUP),
        (option::INFO, vec![], option_reply::ERR_INVALID),
        (option::INFO, info_data(b"vol", &[])[..8].to_vec(), option_reply::ERR_INVALID),
        (option::GO, vec![0xff; 20], option_reply::ERR_INVALID),
        (option::GO, info_data(&long_name, &[]), option_reply::ERR_INVALID),
        (option::GO, info_data(b"none", &[]), option_reply::ERR_UNKNOWN),
        (option::GO, info_data(b"\xff\xfe", &[]), option_reply::ERR_UNKNOWN),
        (option::STRUCTURED_REPLY, vec![], option_reply::ACK),
    ];
    for (option, data, expected) in cases {
        stream.write_all(&option_bytes(option, &data)).unwrap();
        assert_eq!(option_reply(&mut stream), (option, expected, vec![]), "{data:?}");
    }
    stream.write_all(&option_bytes(option::GO, &info_data(b"vol@monday", &[info::BLOCK_SIZE, 77]))).unwrap();
    let (_, kind, data) = option_reply(&mut stream);
    use transmission_flag::*;
    let flags = HAS_FLAGS | READ_ONLY | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_DF;
    let expected = [&[0, 0][..], &(SIZE as u64).to_be_bytes(), &flags.to_be_bytes()].concat();
    assert_eq!((kind, data), (option_reply::INFO, expected));
    let (_, kind, data) = option_reply(&mut stream);
    assert_eq!((kind, data), (option_reply::INFO, vec![0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]));
    assert_eq!(option_reply(&mut stream).1, option_reply::ACK);

    // Structured replies from here on: a chunk with the data, or one with the error.
    stream.write_all(&request(command::READ, command_flag::DF, 5, 4096, 3)).unwrap();
    let mut data = [0; wire::DATA_CHUNK_LEN + 3];
    stream.read_exact(&mut data).unwrap();
    assert_eq!(data[..wire::DATA_CHUNK_LEN], wire::data_chunk(5, 4096, 3));
    assert_eq!(data[wire::DATA_CHUNK_LEN..], [1, 1, 1]);
    served.exports.snapshot.failing.store(true, Ordering::SeqCst);
    stream.write_all(&request(command::READ, 0, 6, 0, 100)).unwrap();
    let mut error = [0; 26];
    stream.read_exact(&mut error).unwrap();
    assert_eq!(error, wire::error_chunk(6, ErrorCode::Io));
}

#[test]
fn the_oldest_clients_get_their_zeroes() {
    let served = Served::start();
    let mut stream = UnixStream::connect(served.unix()).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&1u32.to_be_bytes()).unwrap();
    stream.write_all(&option_bytes(option::EXPORT_NAME, b"vol")).unwrap();
    let mut answer = [1; 8 + 2 + 124];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..8], (SIZE as u64).to_be_bytes());
    assert_eq!(answer[10..], [0; 124]);
    stream.write_all(&request(command::FLUSH, 0, 1, 0, 0)).unwrap();
    assert_eq!(reply(&mut stream), (1, Ok(())));
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    let served = Served::start();
    let mut pipe = served.pipe();
    let mut writer = pipe.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for cookie in 0..2_000 {
            writer.write_all(&write_request(cookie, cookie * 4096, &[cookie as u8 | 1; 4096])).unwrap();
        }
        for cookie in 0..2_000 {
            writer.write_all(&request(command::READ, 0, cookie, cookie * 4096, 4096)).unwrap();
        }
    });
    for cookie in 0..2_000 {
        assert_eq!(reply(&mut pipe), (cookie, Ok(())));
    }
    for cookie in 0..2_000 {
        assert_eq!(reply(&mut pipe), (cookie, Ok(())));
        let mut data = [0; 4096];
        pipe.read_exact(&mut data).unwrap();
        assert_eq!(data, [cookie as u8 | 1; 4096]);
    }
    sender.join().unwrap();
}

#[test]
fn a_client_that_takes_no_replies_is_not_read_any_further_and_others_go_on() {
    let served = Served::start();
    let mut lazy = served.pipe();
    lazy.set_nonblocking(true).unwrap();
    // Far more requests than all buffers between hold, each for far more bytes than it takes to ask for them.
    let asked = (0..1_000_000)
        .position(|cookie| lazy.write(&request(command::READ, 0, cookie, 0, 1 << 20)).is_err())
        .expect("the server stops reading");
    served.client().read(0, &mut [0; 4096]).unwrap();
    lazy.set_nonblocking(false).unwrap();
    let mut data = vec![0; 1 << 20];
    for cookie in 0..(asked as u64).min(50) {
        assert_eq!(reply(&mut lazy), (cookie, Ok(())));
        lazy.read_exact(&mut data).unwrap();
    }
}

#[test]
fn a_held_reply_waits_for_the_release_and_a_read_overtakes_it() {
    let served = Served::start();
    let mut pipe = served.pipe();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    pipe.write_all(&write_request(1, 0, b"later")).unwrap();
    served.exports.volume.failing.store(false, Ordering::SeqCst);
    for cookie in 2..100 {
        // The write is executed, only its answer waits: everything after it is answered before.
        pipe.write_all(&request(command::READ, 0, cookie, 0, 5)).unwrap();
        assert_eq!(reply(&mut pipe), (cookie, Ok(())));
        let mut data = [0; 5];
        pipe.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"later");
    }
    assert!(cut.is_holding());
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut pipe), (1, Ok(())));
    assert_eq!(cut.readings().unwrap().held, 1);
    // From here on nothing is held.
    pipe.write_all(&write_request(100, 0, b"after")).unwrap();
    assert_eq!(reply(&mut pipe), (100, Ok(())));
}

#[test]
fn the_error_of_a_post_request_is_held_too() {
    let served = Served::start();
    let mut pipe = served.pipe();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    served.exports.volume.failing.store(true, Ordering::SeqCst);
    pipe.write_all(&write_request(1, 0, b"fails")).unwrap();
    pipe.write_all(&request(command::FLUSH, 0, 2, 0, 0)).unwrap();
    assert_eq!(reply(&mut pipe), (2, Ok(())));
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut pipe), (1, Err(ErrorCode::Io)));
}

#[test]
fn a_timed_stretch_ends_by_the_connections_own_clock() {
    let served = Served::start();
    let mut client = served.client();
    for stretch in [Nanos::from_micros(5), Nanos::from_micros(50), Nanos::from_millis(5)] {
        let clock = HostClock::real();
        let at = clock.now();
        let cut = Arc::new(Cut::new(Timing::Timed { at, stretch }, Nanos::from_millis(100)));
        *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
        client.write(0, b"held", false).unwrap();
        assert!(clock.now() >= at + stretch);
        let readings = cut.readings().unwrap();
        assert_eq!(readings.released_by, Cause::Time);
        assert!(readings.q >= at + stretch);
    }
}

#[test]
fn a_client_that_leaves_before_the_release_does_no_harm() {
    let served = Served::start();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    let mut leaving = served.pipe();
    let mut staying = served.pipe();
    for (number, pipe) in [&mut leaving, &mut staying].into_iter().enumerate() {
        pipe.write_all(&write_request(1, number as u64 * 4096, b"later")).unwrap();
        pipe.write_all(&request(command::FLUSH, 0, 2, 0, 0)).unwrap();
        assert_eq!(reply(pipe), (2, Ok(())));
    }
    // Nothing leaks on the way out: a polite client that says good-bye reads the end, not the held reply.
    leaving.write_all(&request(command::DISC, 0, 3, 0, 0)).unwrap();
    let mut rest = Vec::new();
    leaving.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    drop(leaving);
    cut.release(Cause::Barrier, HostClock::real().now());
    assert_eq!(reply(&mut staying), (1, Ok(())));
}

#[test]
fn a_server_that_stops_leaks_no_held_reply() {
    let served = Served::start();
    let cut = barrier();
    *served.exports.volume.cut.lock().unwrap() = Some(Arc::clone(&cut));
    let mut pipe = served.pipe();
    pipe.write_all(&write_request(1, 0, b"later")).unwrap();
    pipe.write_all(&request(command::FLUSH, 0, 2, 0, 0)).unwrap();
    assert_eq!(reply(&mut pipe), (2, Ok(())));
    drop(served);
    cut.release(Cause::Abort, HostClock::real().now());
    let mut rest = Vec::new();
    pipe.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn hostile_clients_are_cut_off_and_the_server_lives_on() {
    let served = Served::start();
    let huge = wire::option_head(option::GO, u32::MAX).to_vec();
    for bytes in [vec![0; 64], vec![0xff; 300_000], huge, option_bytes(option::EXPORT_NAME, b"none")] {
        let mut stream = served.raw();
        // The server may have hung up before it was all sent.
        let _ = stream.write_all(&bytes);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    let mut pipe = served.pipe();
    pipe.write_all(&[0xaa; Request::LEN]).unwrap();
    assert_eq!(pipe.read(&mut [0]).unwrap(), 0);

    // A flood of options is answered one by one, at the pace at which the client takes the answers.
    let mut flood = served.raw();
    let mut writer = flood.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for _ in 0..20_000 {
            writer.write_all(&option_bytes(option::LIST, &[])).unwrap();
        }
    });
    for _ in 0..20_000 * 3 {
        assert_eq!(option_reply(&mut flood).0, option::LIST);
    }
    sender.join().unwrap();

    // One that makes the device panic loses its connection, and nobody else does.
    let mut other = served.client();
    let mut pipe = served.pipe();
    pipe.write_all(&write_request(1, 0, b"panic")).unwrap();
    assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
    other.read(0, &mut [0; 1]).unwrap();
    served.client().read(0, &mut [0; 1]).unwrap();
}

#[test]
fn a_socket_file_is_replaced_only_if_nobody_listens_on_it() {
    let served = Served::start();
    let bind =
        |endpoint: &Endpoint| Server::bind(std::slice::from_ref(endpoint), exports() as _, HostClock::real());
    for endpoint in served.server.endpoints() {
        let error = bind(endpoint).unwrap_err();
        assert!(matches!(error, NbdError::InUse { .. }), "{error}");
        assert!(error.to_string().contains(&endpoint.to_string()));
    }
    served.client().flush().unwrap();

    let stale = Endpoint::Unix(served.directory.path().join("stale"));
    let Endpoint::Unix(path) = &stale else { unreachable!() };
    drop(UnixListener::bind(path).unwrap());
    let server = bind(&stale).unwrap();
    Client::connect(&stale, "vol").unwrap().flush().unwrap();
    drop(server);
    assert!(!Path::exists(path), "the server cleans up behind itself");

    std::fs::write(path, "precious").unwrap();
    assert!(matches!(bind(&stale), Err(NbdError::NotASocket { .. })));
    assert_eq!(std::fs::read(path).unwrap(), b"precious");
}

#[test]
fn endpoints_are_written_as_they_are_read() {
    for text in ["tcp://127.0.0.1:10809", "tcp://[::1]:0", "unix:///run/coeval/nbd.sock"] {
        assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
    }
    for text in ["", "tcp://", "tcp://host", "unix://relative", "udp://127.0.0.1:1", "127.0.0.1:1"] {
        let error = text.parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains("tcp://ADDRESS:PORT"), "{error}");
    }
}

proptest! {
    #[test]
    fn the_handshake_takes_any_bytes(
        mut input in prop::collection::vec(any::<u8>(), 0..200),
        option in 0..12u32,
        sound in 0..4u8,
    ) {
        // Mostly with a sound beginning, so that the options' own parsers are reached.
        if sound > 0 {
            let head = wire::option_head(option, input.len() as u32);
            input = [&[0, 0, 0, 3][..], &head, &input].concat();
        }
        let exports = exports_of_nothing();
        let mut out = Buffer::new();
        let mut handshake = Handshake::start(&exports, &mut out);
        let mut rest = input.as_slice();
        while let Ok(Step::Used(count)) = handshake.step(rest, &mut out) {
            prop_assert!(count > 0);
            rest = &rest[count..];
        }
        prop_assert!(out.len() < 4096);
    }
}

fn exports_of_nothing() -> impl Exports {
    struct Nothing;
    impl Exports for Nothing {
        fn list(&self) -> Vec<String> {
            Vec::new()
        }
        fn open(&self, _name: &str) -> Option<Arc<dyn Device>> {
            None
        }
    }
    Nothing
}
