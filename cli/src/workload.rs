//! The causal workload: tokens that go from volume to volume, each by a thread with connections of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;
use snapshot::nbd::{Client, ClientError, Endpoint};
use timesync::clock::ServerClock;
use timesync::random::Random;
use timesync::time::{Server, Time};

use crate::causal::{self, Record, Slot, Violation};

/// A write that takes longer will never be answered.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often a token looks for a host that is gone.
const RETRY: Duration = Duration::from_millis(20);

/// What a token does when its connection breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// It stops with an error.
    Fail,
    /// It waits until the host is there again, and sends its write again: the same bytes twice are the same as once.
    /// Every write is durable when it is acknowledged, since tokens tell of it on other hosts.
    Reconnect,
}

/// A volume or a snapshot of one, as NBD clients see it.
#[derive(Clone, Debug)]
pub struct Export {
    /// The NBD server.
    pub endpoint: Endpoint,
    /// `volume` or `volume@snapshot`.
    pub name: String,
}

/// What goes on beside the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Period {
    /// Something that is not to be measured.
    Other,
    /// Nothing.
    Quiet,
    /// A snapshot is taken.
    Snapshot,
}

/// How long writes took, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Latencies {
    /// Writes that began and ended in [`Period::Quiet`].
    pub quiet: Histogram<u64>,
    /// Writes that began or ended in [`Period::Snapshot`].
    pub during: Histogram<u64>,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies { quiet: histogram(), during: histogram() }
    }
}

/// Why the workload could not go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// A volume failed.
    #[error("export {export}: {error}")]
    Export {
        /// Its name.
        export: String,
        /// How.
        error: ClientError,
    },
    /// A slot holds no whole record, so there is nothing to continue from.
    #[error("export {export}: token {token} has no whole record there")]
    Damaged {
        /// Its name.
        export: String,
        /// The token.
        token: usize,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running workload; stops when dropped.
#[derive(Debug)]
pub struct Workload {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<Latencies, WorkloadError>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    period: AtomicU8,
    writes: Vec<AtomicU64>,
}

impl Workload {
    /// Starts so many tokens over one export per host. Tokens continue from what the volumes hold, and rest for `pause`
    /// after each write.
    ///
    /// # Errors
    /// [`WorkloadError`].
    pub fn start(exports: &[Export], tokens: usize, pause: Duration) -> Result<Workload, WorkloadError> {
        Workload::start_with(exports, tokens, pause, Broken::Fail)
    }

    /// As [`Workload::start`], for hosts that are killed and started again: tokens wait for them. Every write is
    /// durable when it is acknowledged.
    ///
    /// # Errors
    /// [`WorkloadError`].
    pub fn start_enduring(
        exports: &[Export],
        tokens: usize,
        pause: Duration,
    ) -> Result<Workload, WorkloadError> {
        Workload::start_with(exports, tokens, pause, Broken::Reconnect)
    }

    fn start_with(
        exports: &[Export],
        tokens: usize,
        pause: Duration,
        broken: Broken,
    ) -> Result<Workload, WorkloadError> {
        let writes = exports.iter().map(|_| AtomicU64::new(0)).collect();
        let shared = Shared { writes, ..Shared::default() };
        let mut workload = Workload { shared: Arc::new(shared), threads: Vec::new() };
        for token in 0..tokens {
            let mut walk = Token::new(token, exports, broken)?;
            let shared = Arc::clone(&workload.shared);
            let thread = std::thread::Builder::new()
                .name(format!("token {token}"))
                .spawn(move || walk.run(&shared, pause).map(|()| walk.latencies))?;
            workload.threads.push(thread);
        }
        Ok(workload)
    }

    /// Writes that each host has acknowledged so far.
    pub fn writes(&self) -> Vec<u64> {
        self.shared.writes.iter().map(|writes| writes.load(Ordering::Relaxed)).collect()
    }

    /// Says what goes on, so that writes are counted with their like. It begins with [`Period::Other`].
    pub fn set_period(&self, period: Period) {
        self.shared.period.store(period as u8, Ordering::Relaxed);
    }

    /// Whether a token has met an error and stopped; [`Workload::stop`] tells which.
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Stops all tokens.
    ///
    /// # Errors
    /// The first error that a token met.
    pub fn stop(mut self) -> Result<Latencies, WorkloadError> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut all = Latencies::default();
        for thread in self.threads.drain(..) {
            let latencies = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            for (sum, part) in [(&mut all.quiet, latencies.quiet), (&mut all.during, latencies.during)] {
                // Both have the same fixed range, so adding cannot fail.
                let _ = sum.add(part);
            }
        }
        Ok(all)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Whoever wants to know how it went calls `stop`.
            let _ = thread.join();
        }
    }
}

/// Opens one export per host and checks that together they are a consistent cut.
///
/// # Errors
/// When one cannot be read.
pub fn check_exports(exports: &[Export], tokens: usize) -> Result<Vec<Violation>, WorkloadError> {
    let read = |export: &Export| {
        let mut image = vec![0; Slot::region(tokens)];
        connect(export)?.read(0, &mut image).map_err(|error| failed(export, error))?;
        Ok(image)
    };
    let images = exports.iter().map(read).collect::<Result<Vec<_>, WorkloadError>>()?;
    Ok(causal::check(&images, tokens))
}

/// One token on its way.
struct Token {
    record: Record,
    connections: Vec<(Export, Client)>,
    latencies: Latencies,
    random: Random,
    broken: Broken,
}

impl Token {
    fn new(token: usize, exports: &[Export], broken: Broken) -> Result<Token, WorkloadError> {
        let mut written = vec![0; exports.len()];
        let mut connections = Vec::new();
        let slot = Slot::of(token);
        for export in exports {
            let mut client = connect(export)?;
            let mut bytes = vec![0; slot.length];
            client.read(slot.offset as u64, &mut bytes).map_err(|error| failed(export, error))?;
            let found = Record::decode(token, &bytes)
                .map_err(|_| WorkloadError::Damaged { export: export.name.clone(), token })?;
            // The last record knows most, and is not marked as the last: take the most that any of them knows.
            for (count, known) in written.iter_mut().zip(found.into_iter().flat_map(|record| record.written))
            {
                *count = known.max(*count);
            }
            connections.push((export.clone(), client));
        }
        let record = Record { token, host: 0, written };
        Ok(Token {
            record,
            connections,
            latencies: Latencies::default(),
            random: Random(token as u64),
            broken,
        })
    }

    fn run(&mut self, shared: &Shared, pause: Duration) -> Result<(), WorkloadError> {
        let slot = Slot::of(self.record.token);
        while !shared.stop.load(Ordering::Relaxed) {
            let host = self.next_host();
            self.record.host = host;
            self.record.written[host] += 1;
            let bytes = self.record.encode();
            let (began, period) = (now(), shared.period.load(Ordering::Relaxed));
            if !self.write(slot.offset as u64, &bytes, shared)? {
                break;
            }
            let took = u64::try_from((now() - began).get()).unwrap_or(0);
            let periods = [period, shared.period.load(Ordering::Relaxed)];
            if periods.contains(&(Period::Snapshot as u8)) {
                self.latencies.during.saturating_record(took);
            } else if periods == [Period::Quiet as u8; 2] {
                self.latencies.quiet.saturating_record(took);
            }
            shared.writes[host].fetch_add(1, Ordering::Relaxed);
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        Ok(())
    }

    /// Writes the record on its host. False: it had to stop before that was acknowledged.
    fn write(&mut self, offset: u64, bytes: &[u8], shared: &Shared) -> Result<bool, WorkloadError> {
        let (export, client) = &mut self.connections[self.record.host];
        let enduring = self.broken == Broken::Reconnect;
        loop {
            match client.write(offset, bytes, enduring) {
                Ok(()) => return Ok(true),
                Err(ClientError::Io(error)) if enduring && is_broken(&error) => {}
                Err(error) => return Err(failed(export, error)),
            }
            // Its volume may still be on its way.
            *client = loop {
                match connect(export) {
                    Ok(client) => break client,
                    Err(_) if shared.stop.load(Ordering::Relaxed) => return Ok(false),
                    Err(_) => std::thread::sleep(RETRY),
                }
            };
        }
    }

    /// Another host than the last one, at random.
    fn next_host(&mut self) -> usize {
        let hosts = self.connections.len();
        let others = hosts.saturating_sub(1).max(1);
        (self.record.host + 1 + self.random.below(others)) % hosts
    }
}

fn connect(export: &Export) -> Result<Client, WorkloadError> {
    let mut client =
        Client::connect(&export.endpoint, &export.name).map_err(|error| failed(export, error))?;
    client.set_timeout(Some(TIMEOUT)).map_err(|error| failed(export, error))?;
    Ok(client)
}

/// Whether the other end is gone. A timeout is no such thing: that end may still execute the write, when the token has
/// long written other records over it.
fn is_broken(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

fn failed(export: &Export, error: ClientError) -> WorkloadError {
    WorkloadError::Export { export: export.name.clone(), error }
}

/// Only differences count, so any machine-wide monotonic clock serves.
fn now() -> Time<Server> {
    ServerClock.now()
}

#[expect(
    clippy::expect_used,
    reason = "the arguments are constants that hdrhistogram accepts: 1 ≤ 60 s, 3 digits"
)]
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use snapshot::device::{Device, DeviceError, Exports, Outcome};
    use snapshot::nbd::Server as NbdServer;
    use timesync::clock::HostClock;

    use super::*;

    const TOKENS: usize = 4;

    /// A disk in memory, and `frozen`: the same disk as it was when it was frozen.
    #[derive(Default)]
    struct Disk {
        live: Mutex<Vec<u8>>,
        frozen: Mutex<Vec<u8>>,
    }

    struct View(Arc<Disk>, bool);

    impl Device for View {
        fn size(&self) -> u64 {
            Slot::region(TOKENS) as u64
        }
        fn read_only(&self) -> bool {
            self.1
        }
        fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
            let bytes = if self.1 { &self.0.frozen } else { &self.0.live };
            let offset = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(&bytes.lock().unwrap()[offset..][..buffer.len()]);
            Outcome::now(Ok(()))
        }
        fn write(&self, offset: u64, data: &[u8], _: bool) -> Outcome {
            let offset = usize::try_from(offset).unwrap();
            self.0.live.lock().unwrap()[offset..][..data.len()].copy_from_slice(data);
            Outcome::now(Ok(()))
        }
        fn write_zeroes(&self, _: u64, _: u64, _: bool, _: bool) -> Outcome {
            Outcome::now(Err(DeviceError::Unsupported))
        }
        fn trim(&self, _: u64, _: u64, _: bool) -> Outcome {
            Outcome::now(Err(DeviceError::Unsupported))
        }
        fn flush(&self) -> Outcome {
            Outcome::now(Ok(()))
        }
    }

    struct Disks(Vec<Arc<Disk>>);

    impl Exports for Disks {
        fn list(&self) -> Vec<String> {
            Vec::new()
        }
        fn open(&self, name: &str) -> Option<Arc<dyn Device>> {
            let (number, frozen) = name.split_once('@').map_or((name, false), |(number, _)| (number, true));
            Some(Arc::new(View(Arc::clone(self.0.get(number.parse::<usize>().ok()?)?), frozen)))
        }
    }

    fn exports(server: &NbdServer, suffix: &str) -> Vec<Export> {
        let export =
            |number| Export { endpoint: server.endpoints()[0].clone(), name: format!("{number}{suffix}") };
        (0..3).map(export).collect()
    }

    fn write_some(exports: &[Export]) -> u64 {
        let workload = Workload::start(exports, TOKENS, Duration::ZERO).unwrap();
        workload.set_period(Period::Quiet);
        // Tokens have been under way since before that.
        let so_many = || workload.writes().iter().sum::<u64>();
        let enough = so_many() + 200;
        while so_many() < enough {
            assert!(!workload.has_failed());
            std::thread::yield_now();
        }
        workload.stop().unwrap().quiet.len()
    }

    #[test]
    fn tokens_go_on_where_they_were_and_what_is_frozen_at_different_times_is_torn() {
        let disk = || Disk { live: vec![0; Slot::region(TOKENS)].into(), frozen: Mutex::default() };
        let disks: Vec<Arc<Disk>> = (0..3).map(|_| Arc::new(disk())).collect();
        let endpoint = "tcp://127.0.0.1:0".parse().unwrap();
        let server = NbdServer::bind(&[endpoint], Arc::new(Disks(disks.clone())), HostClock::real()).unwrap();
        let live = exports(&server, "");

        assert!(write_some(&live) > 0, "latencies are counted");
        assert_eq!(check_exports(&live, TOKENS).unwrap(), []);
        let freeze = |disk: &Disk| disk.frozen.lock().unwrap().clone_from(&disk.live.lock().unwrap());
        freeze(&disks[0]);
        write_some(&live);
        assert_eq!(check_exports(&live, TOKENS).unwrap(), [], "tokens continue from what is there");
        disks[1..].iter().for_each(|disk| freeze(disk));
        assert_ne!(check_exports(&exports(&server, "@frozen"), TOKENS).unwrap(), []);
    }
}
