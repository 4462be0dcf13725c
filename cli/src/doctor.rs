//! What `coeval doctor` finds: facts in, findings out. No I/O.

mod judge;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;
use snapshot::messages::Forecast;
use timesync::hardware::Card;
use timesync::report::HostRow;
use timesync::time::Nanos;

pub use judge::judge;

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could, or not for long.
    Warn,
    /// It does not work.
    Fail,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about, in one word.
    pub about: &'static str,
    /// How serious it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What to do about it; null where nothing is to be done.
    pub todo: Option<String>,
}

impl Finding {
    fn ok(about: &'static str, what: impl Into<String>) -> Self {
        Finding { about, level: Level::Ok, what: what.into(), todo: None }
    }

    fn warn(about: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Finding { about, level: Level::Warn, what: what.into(), todo: Some(todo.into()) }
    }

    fn fail(about: &'static str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Finding { about, level: Level::Fail, what: what.into(), todo: Some(todo.into()) }
    }
}

/// What was read of this machine, a daemon's configuration, or a fleet.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// This machine.
    pub machine: Option<Machine>,
    /// Configurations that were read, and what they name.
    pub daemons: Vec<Daemon>,
    /// The fleet, as its server sees it; or why the server does not answer.
    pub fleet: Option<Result<Fleet, String>>,
}

/// This machine's clocks, cards and rights.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The kernel's clock source; none where /sys does not tell.
    pub clock_source: Option<String>,
    /// Those that could be chosen.
    pub clock_sources: Vec<String>,
    /// What one reading of the clock costs, the median.
    pub reading: Nanos,
    /// How fast CLOCK_REALTIME ran against CLOCK_MONOTONIC_RAW over some hundred milliseconds, in 10⁻⁹.
    pub slew_ppb: i64,
    /// Its network cards.
    pub cards: Vec<Card>,
    /// What this process may do: whoever runs the daemon may do something else.
    pub may: Rights,
}

/// What a process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Bind ports below 1024.
    pub low_ports: bool,
    /// Switch cards' stamps on.
    pub net_admin: bool,
}

/// A daemon's configuration and what it names.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// `host` or `server`.
    pub kind: &'static str,
    /// The file.
    pub file: PathBuf,
    /// Whether somebody asked for it. Else it lies where the package puts it, whether its daemon is to run or not.
    pub asked_for: bool,
    /// Why it cannot be used; the rest is empty then.
    pub problem: Option<String>,
    /// Whether the daemon answers at its control address: then its ports are its own.
    pub runs: bool,
    /// The ports that it binds.
    pub ports: Vec<Port>,
    /// Where it keeps its files.
    pub disks: Vec<Disk>,
    /// Its certificates.
    pub certificates: Vec<Certificate>,
    /// The hosts that it is to reach.
    pub hosts: Vec<Reach>,
}

/// A port that a daemon binds.
#[derive(Clone, Debug)]
pub struct Port {
    /// What for.
    pub what: &'static str,
    /// Where, as `udp 0.0.0.0:319`.
    pub address: String,
    /// Whether it could be bound now.
    pub bound: Bound,
}

/// Whether a port could be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Yes.
    Free,
    /// Somebody has it.
    InUse,
    /// This process may not.
    Denied,
    /// The address is not this machine's.
    NotHere,
    /// Another reason.
    Failed(String),
}

/// A directory that a daemon needs.
#[derive(Clone, Debug)]
pub struct Disk {
    /// What for.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// Bytes free for it and in all, of the nearest directory that there is; or why nobody can tell.
    pub space: Result<(u64, u64), String>,
}

/// A certificate of a daemon's [tls].
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The file.
    pub file: PathBuf,
    /// For how many days it is valid yet; or why it is of no use.
    pub days_left: Result<i64, String>,
}

/// Whether a host can be reached from here.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Its name.
    pub host: String,
    /// Where it answers time exchanges.
    pub time: SocketAddr,
    /// What came of some exchanges; none where they were not tried.
    pub exchanges: Option<Exchanges>,
    /// Its control address and whether it can be connected to; none for a host without one.
    pub control: Option<(String, Connection)>,
}

/// What came of some exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchanges {
    /// Some were answered: the smallest round trip.
    Answered {
        /// How many were not.
        lost: u64,
        /// The smallest round trip.
        round_trip: Nanos,
    },
    /// Nothing came back.
    Silence,
    /// The machine answers that nothing listens there.
    Refused,
    /// They could not be sent.
    NotSent,
}

/// What came of connecting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It was made.
    Made,
    /// The machine answers that nothing listens there.
    Refused,
    /// Nothing came back.
    Silence,
    /// Another reason.
    Failed(String),
}

/// A fleet as its server sees it.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// The clocks.
    pub clocks: Vec<HostRow>,
    /// Hosts whose control plane does not answer the server, and why.
    pub unreachable: Vec<(String, String)>,
    /// Volumes that are not served, `HOST/VOLUME`, and why.
    pub unserved: Vec<(String, String)>,
    /// What a snapshot of everything would be like; none where there is no volume.
    pub forecast: Option<Result<Forecast, String>>,
}

#[cfg(test)]
mod tests;
