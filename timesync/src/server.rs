//! The time-sync server: probes every host, keeps its exchanges, and answers what the skew bound is.

mod outstanding;
mod prober;
mod record;
mod schedule;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

pub use outstanding::{Outcome, Outstanding, Responder};
pub use record::{Latest, Record, State};

use crate::authentication::Key;
use crate::bound::{Assumptions, AsymmetryBudget};
use crate::clock::ServerClock;
use crate::hardware::Timestamps;
use crate::history::{self, Sample};
use crate::identity::Incarnation;
use crate::module::{StartError, source_is_trusted};
use crate::net_sync::Mechanism;
use crate::recording::{self, RecordError};
use crate::report::{self, Report};
use crate::source::{Observation, SkewSource, Unobserved};
use crate::time::{Nanos, Server, Time};
use crate::wire::EVENT_PORT;
use prober::{Command, Prober};
pub(crate) use record::round_trips;

/// A host to be probed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostConfig {
    /// What people and orders call it.
    pub name: String,
    /// Where its module listens for event messages.
    pub address: SocketAddr,
    /// What its hard bound assumes.
    pub assumptions: Assumptions,
    /// What its statistical bound assumes of its path.
    pub asymmetry: AsymmetryBudget,
    /// How it is asked.
    pub mechanism: Mechanism,
    /// The key that its answers must be authenticated with. None: whatever answers is believed. It is a secret, so it is
    /// in no recording; what the bound assumes because of it is.
    #[serde(skip)]
    pub key: Option<HostKey>,
}

/// The key that is shared with a host.
#[derive(Clone, Debug)]
pub struct HostKey {
    /// The key.
    pub key: Key,
    /// A plain PTP daemon has it: one that knows no numbers in the authentication (see [`crate::authentication`]).
    pub agentless: bool,
}

impl HostConfig {
    /// A host with the default assumptions.
    pub fn new(name: impl Into<String>, address: SocketAddr) -> Self {
        let (assumptions, asymmetry) = (Assumptions::default(), AsymmetryBudget::SmallestRoundTrip);
        let mechanism = Mechanism::PeerDelay;
        HostConfig { name: name.into(), address, assumptions, asymmetry, mechanism, key: None }
    }
}

/// How a server probes.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The hosts.
    pub hosts: Vec<HostConfig>,
    /// The server's own UDP port for event messages. PTP's is 319, with 320 for the general ones: hosts with a stock
    /// daemon answer to no other. At any other port, one socket serves both. 0: the system chooses.
    pub event_port: u16,
    /// Which timestamps are used. Network cards' only at PTP's port.
    pub timestamps: Timestamps,
    /// PTP domain, the same on all hosts.
    pub domain: u8,
    /// Pairs of exchanges a second, with each host. Range 1 ..= 1000.
    pub pairs_per_second: u32,
    /// Exchanges kept of each host. Range 8 ..= 65 536.
    pub window: usize,
    /// Exchanges of a burst.
    pub burst: u32,
    /// The time from one exchange of a burst to the next.
    pub burst_interval: Nanos,
    /// An answer that takes longer is lost.
    pub timeout: Nanos,
    /// Of the statistical bounds in reports. Above 0, below 1.
    pub confidence: f64,
    /// Publish bounds of hosts whose clock is simulated: for demonstrations and tests only.
    pub allow_simulated: bool,
}

impl Default for ServerConfig {
    /// No hosts; 8 pairs a second, a window of 512, bursts of 32 at 1 ms.
    fn default() -> Self {
        ServerConfig {
            hosts: Vec::new(),
            event_port: EVENT_PORT,
            timestamps: Timestamps::Auto,
            domain: 0,
            pairs_per_second: 8,
            window: 512,
            burst: 32,
            burst_interval: Nanos::from_millis(1),
            timeout: Nanos::from_millis(250),
            confidence: 0.999,
            allow_simulated: false,
        }
    }
}

/// Why a configuration cannot be used. Each is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Names are how people and orders tell hosts apart.
    #[error("two hosts are called {0}")]
    SameName(String),
    /// Answers are told apart by where they come from.
    #[error("the hosts {0} and {1} have the same address")]
    SameAddress(String, String),
    /// A number that makes no sense.
    #[error("{name} must be {range}")]
    Range {
        /// The setting.
        name: &'static str,
        /// What is allowed.
        range: &'static str,
    },
}

impl ServerConfig {
    /// Whether the configuration can be used.
    ///
    /// # Errors
    /// [`ConfigError`]: what is wrong with it.
    pub fn check(&self) -> Result<(), ConfigError> {
        let (mut names, mut addresses) = (HashSet::new(), HashMap::new());
        for host in &self.hosts {
            if !names.insert(&host.name) {
                return Err(ConfigError::SameName(host.name.clone()));
            }
            if let Some(other) = addresses.insert(host.address, &host.name) {
                return Err(ConfigError::SameAddress(other.clone(), host.name.clone()));
            }
        }
        let positive = |nanos: Nanos| nanos > Nanos::ZERO;
        for (name, fits, range) in [
            ("pairs_per_second", (1..=1_000).contains(&self.pairs_per_second), "1 to 1000"),
            ("window", (8..=65_536).contains(&self.window), "8 to 65536"),
            ("burst_interval", positive(self.burst_interval), "more than 0"),
            ("timeout", positive(self.timeout), "more than 0"),
            ("confidence", self.confidence > 0.0 && self.confidence < 1.0, "above 0 and below 1"),
        ] {
            if !fits {
                return Err(ConfigError::Range { name, range });
            }
        }
        Ok(())
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct TimeServer {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    commands: Mutex<Sender<Command>>,
    incarnation: Incarnation,
    confidence: f64,
    /// Held by whoever records.
    recording: Mutex<()>,
}

/// Counts since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Exchanges that gave at least a half.
    pub exchanges: u64,
    /// Exchanges of which anything was lost.
    pub lost: u64,
}

/// What the probing thread and everybody else share.
#[derive(Debug)]
struct Shared {
    /// Where the hosts' records are, by name.
    names: HashMap<String, usize>,
    records: Vec<Mutex<Record>>,
    allow_simulated: bool,
    /// Wakes the probing thread up for a command.
    wake: EventFd,
}

impl Shared {
    fn record(&self, index: usize) -> MutexGuard<'_, Record> {
        // A record is whole after each of its methods, so a panic elsewhere leaves it usable.
        self.records[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.names.get(name).copied()
    }
}

impl TimeServer {
    /// Starts to probe, in the name of `incarnation`. The configuration must have passed [`ServerConfig::check`].
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(config: &ServerConfig, incarnation: Incarnation) -> Result<Self, StartError> {
        let trusted = source_is_trusted();
        let record = |host: &HostConfig| Mutex::new(Record::new(host.clone(), config.window, trusted));
        let shared = Arc::new(Shared {
            names: config.hosts.iter().enumerate().map(|(i, host)| (host.name.clone(), i)).collect(),
            records: config.hosts.iter().map(record).collect(),
            allow_simulated: config.allow_simulated,
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
                .map_err(io::Error::from)?,
        });
        let (commands, inbox) = mpsc::channel();
        let prober = Prober::new(config, Arc::clone(&shared), inbox, trusted)?;
        let thread = std::thread::Builder::new().name("time-prober".into()).spawn(move || prober.run())?;
        let commands = Mutex::new(commands);
        Ok(TimeServer {
            thread: Some(thread),
            shared,
            commands,
            incarnation,
            confidence: config.confidence,
            recording: Mutex::new(()),
        })
    }

    /// What `coeval skew` shows, now.
    pub fn report(&self) -> Report {
        let row = |copy: Record| {
            report::row(&copy, ServerClock.now(), self.confidence, self.shared.allow_simulated)
        };
        Report::of(self.copies().map(row).collect())
    }

    /// What the history is to keep of every host, now. Called every [`history::FINE`].
    pub fn samples(&self) -> Vec<Sample> {
        let sample = |copy: Record| {
            let now = ServerClock.now();
            let bounds = report::half_widths(&copy, now, self.confidence, self.shared.allow_simulated);
            Sample::of(&copy, bounds, now - history::FINE)
        };
        self.copies().map(sample).collect()
    }

    /// A host's round trips since its timeline last changed: `(up to ns, count)` of every bucket that is not empty.
    pub fn round_trips(&self, host: &str) -> Vec<(u64, u64)> {
        let index = self.shared.find(host);
        index.map_or_else(Vec::new, |index| recording::counts(&self.shared.record(index).round_trips))
    }

    /// The names of the hosts, in the order of the configuration.
    pub fn names(&self) -> Vec<String> {
        (0..self.shared.records.len()).map(|index| self.shared.record(index).config.name.clone()).collect()
    }

    /// Records what happens with `hosts` (none: all) for a duration, or until `each`, which gets every line to be
    /// sealed, has had enough. Blocks: call it where blocking is allowed.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn record(
        &self,
        hosts: &[String],
        duration: Nanos,
        each: impl FnMut(serde_json::Value) -> bool,
    ) -> Result<(), RecordError> {
        let find = |name: &String| self.shared.find(name).ok_or_else(|| RecordError::Unknown(name.clone()));
        let mut hosts: Vec<usize> = match hosts {
            [] => (0..self.shared.records.len()).collect(),
            named => named.iter().map(find).collect::<Result<_, _>>()?,
        };
        hosts.sort_unstable();
        hosts.dedup();
        let settings = recording::Settings {
            server: self.incarnation,
            confidence: self.confidence,
            allow_simulated: self.shared.allow_simulated,
            duration,
        };
        let _only = match self.recording.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(RecordError::Busy),
            Ok(only) => only,
            // It guards nothing that a panic could have left half done.
            Err(TryLockError::Poisoned(only)) => only.into_inner(),
        };
        recording::record(|index| self.shared.record(index), hosts, &settings, each)
    }

    /// Copies of the records, one at a time: the prober must not wait while bounds are worked out.
    fn copies(&self) -> impl Iterator<Item = Record> {
        (0..self.shared.records.len()).map(|index| self.shared.record(index).clone())
    }

    /// How many exchanges there were with all hosts together.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for index in 0..self.shared.records.len() {
            let record = self.shared.record(index);
            totals.exchanges += record.exchanges;
            totals.lost += record.lost;
        }
        totals
    }

    /// A question to be asked again and again: was nothing that the host answered taken for so long, or ever?
    pub fn unheard(&self, host: &str) -> impl Fn(Nanos) -> bool + Send + use<> {
        let (shared, index) = (Arc::clone(&self.shared), self.shared.find(host));
        move |longer_than| {
            let heard = index.and_then(|index| shared.record(index).heard());
            heard.is_none_or(|heard| ServerClock.now() - heard > longer_than)
        }
    }

    fn command(&self, command: Command) {
        let sent = self.commands.lock().unwrap_or_else(PoisonError::into_inner).send(command);
        if sent.is_ok() {
            // It fails only when so many wake-ups are pending already that one more makes no difference.
            let _ = self.shared.wake.write(1);
        }
    }
}

impl SkewSource for TimeServer {
    fn now(&self) -> Time<Server> {
        ServerClock.now()
    }

    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn burst(&self, hosts: &[String]) {
        let hosts = hosts.iter().filter_map(|name| self.shared.find(name)).collect();
        // Nothing is ever sent: the prober drops its ends of the channel, the last one when the last host is done.
        let (done, all_done) = mpsc::channel();
        self.command(Command::Burst { hosts, done });
        let _ = all_done.recv();
    }

    fn observe(&self, host: &str) -> Result<Observation, Unobserved> {
        let index = self.shared.find(host).ok_or_else(|| Unobserved::Unknown(host.into()))?;
        self.shared.record(index).observe(ServerClock.now(), self.shared.allow_simulated)
    }
}

impl Drop for TimeServer {
    fn drop(&mut self) {
        self.command(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_cannot_work_is_refused_with_a_sentence() {
        let host = |name: &str, address: &str| HostConfig::new(name, address.parse().unwrap());
        let with = |hosts: Vec<HostConfig>| ServerConfig { hosts, ..ServerConfig::default() };
        assert_eq!(with(vec![host("a", "10.0.0.1:319"), host("b", "[fe80::1]:319")]).check(), Ok(()));
        for (config, sentence) in [
            (with(vec![host("a", "10.0.0.1:319"), host("a", "10.0.0.2:319")]), "two hosts are called a"),
            (
                with(vec![host("a", "10.0.0.1:319"), host("b", "10.0.0.1:319")]),
                "the hosts a and b have the same address",
            ),
            (ServerConfig { window: 3, ..ServerConfig::default() }, "window must be 8 to 65536"),
            (
                ServerConfig { confidence: 1.0, ..ServerConfig::default() },
                "confidence must be above 0 and below 1",
            ),
        ] {
            assert_eq!(config.check().unwrap_err().to_string(), sentence);
        }
    }
}
