//! The server from outside: over real sockets, on a device in memory.

use std::io::{Read, Write};
use std::ops::Range;
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
use crate::device::{Changes, Device, DeviceError, Exports, Outcome, Visit};

mod holding;
mod hostile;
mod overlap;
mod protocol;
mod status;
mod tls;

const SIZE: usize = 40 << 20;
/// Where reads wait with held writes (R3).
const WATCHED: u64 = 1 << 20;

/// Bytes in memory. While a cut is set, whatever changes them is beyond it, and so is a read of [`WATCHED`].
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
        let hold = if offset == WATCHED { self.cut.lock().unwrap().clone() } else { None };
        Outcome { result: Ok(()), hold }
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

    fn holes(&self, range: Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        if self.failing.load(Ordering::SeqCst) {
            return Outcome::now(Err(DeviceError::Io));
        }
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / 4096 + 1) * 4096);
            let zero = self.bytes.lock().unwrap()[at as usize..end as usize].iter().all(|byte| *byte == 0);
            if visit(at..end, zero).is_break() {
                break;
            }
            at = end;
        }
        let hold = if range.contains(&WATCHED) { self.cut.lock().unwrap().clone() } else { None };
        Outcome { result: Ok(()), hold }
    }

    fn snapshots(&self) -> Vec<String> {
        vec!["sunday".into(), "monday".into()]
    }

    fn changes_since(&self, snapshot: &str) -> Option<Box<dyn Changes>> {
        self.snapshots().contains(&snapshot.to_owned()).then(|| Box::new(SecondHalf) as _)
    }
}

/// All that has changed since any snapshot.
struct SecondHalf;

impl Changes for SecondHalf {
    fn within(&self, range: Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        let half = (SIZE as u64 / 2).clamp(range.start, range.end);
        for (run, changed) in [(range.start..half, false), (half..range.end, true)] {
            if !run.is_empty() && visit(run, changed).is_break() {
                break;
            }
        }
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

    fn describe(&self, name: &str) -> Option<String> {
        (name == "vol").then(|| "bytes in memory".into())
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

fn queries_data(export: &[u8], queries: &[&str]) -> Vec<u8> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend(export);
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
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

fn reply(stream: &mut impl Read) -> (u64, Result<(), ErrorCode>) {
    let mut bytes = [0; wire::SIMPLE_REPLY_LEN];
    stream.read_exact(&mut bytes).unwrap();
    wire::decode_simple_reply(bytes).unwrap()
}

fn option_reply(stream: &mut impl Read) -> (u32, u32, Vec<u8>) {
    let mut head = [0; 20];
    stream.read_exact(&mut head).unwrap();
    let rest = &mut &head[8..];
    let (option, kind) = (wire::take_u32(rest).unwrap(), wire::take_u32(rest).unwrap());
    let mut data = vec![0; wire::take_u32(rest).unwrap() as usize];
    stream.read_exact(&mut data).unwrap();
    (option, kind, data)
}
