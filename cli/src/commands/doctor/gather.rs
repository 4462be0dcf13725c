//! Reads what the doctor judges. Changes nothing on the machine.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use snapshot::client::ServerClient;
use snapshot::http::TlsFiles;
use snapshot::messages::CreateRequest;
use snapshot::nbd::Endpoint;
use timesync::clock::{self, raw_now, wall_now};
use timesync::hardware::{Timestamps, survey};
use timesync::probe::{Probe, ProbeConfig};
use timesync::report::Report;
use timesync::time::Nanos;
use x509_parser::pem::Pem;

use crate::config::{self, ConfigError, HostConfig, HostEntry, ServerConfig};
use crate::doctor::{
    Bound, Certificate, Connection, Daemon, Disk, Exchanges, Facts, Fleet, Machine, Port, Reach, Rights,
};

/// Where the packages put the daemons' configurations.
const HOST_CONFIG: &str = "/etc/coeval/host.toml";
const SERVER_CONFIG: &str = "/etc/coeval/server.toml";

/// Clock readings of which the median is taken.
const READINGS: usize = 1001;
/// The rate of CLOCK_REALTIME is measured over so long.
const SLEW_SPAN: Duration = Duration::from_millis(300);
/// Exchanges with each host.
const EXCHANGES: u64 = 4;
/// An exchange or a connection that takes longer has failed.
const PATIENCE: Nanos = Nanos::from_millis(500);

/// This machine, and the daemons' configurations that are named, or those in their usual place.
pub fn here(host: Option<&Path>, server: Option<&Path>) -> Facts {
    let usual = |path: &'static str| Some(Path::new(path)).filter(|path| path.exists());
    let named = host.is_some() || server.is_some();
    let host = host.or_else(|| usual(HOST_CONFIG).filter(|_| !named));
    let server = server.or_else(|| usual(SERVER_CONFIG).filter(|_| !named));
    let mut daemons: Vec<Daemon> = host.map(of_host).into_iter().chain(server.map(of_server)).collect();
    daemons.iter_mut().for_each(|daemon| daemon.asked_for = named);
    Facts { machine: Some(machine()), daemons, fleet: None }
}

fn machine() -> Machine {
    let clock_sources =
        std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/available_clocksource");
    let mut readings: Vec<Nanos> = (0..READINGS)
        .map(|_| {
            let before = raw_now();
            raw_now() - before
        })
        .collect();
    readings.sort_unstable();
    let both = || (raw_now(), wall_now());
    let (raw, wall) = both();
    std::thread::sleep(SLEW_SPAN);
    let (raw_after, wall_after) = both();
    let (raw, wall) = ((raw_after - raw).get(), (wall_after - wall).get());
    let cards = UdpSocket::bind("0.0.0.0:0").map(|socket| survey(socket.as_fd())).unwrap_or_default();
    Machine {
        clock_source: clock::clock_source(),
        clock_sources: clock_sources.unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        reading: readings[READINGS / 2],
        slew_ppb: (wall - raw) * 1_000_000 / (raw / 1_000).max(1),
        cards,
        may: rights(),
    }
}

fn rights() -> Rights {
    // Numbers of linux/capability.h.
    const NET_BIND_SERVICE: u32 = 10;
    const NET_ADMIN: u32 = 12;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let has = |number: u32| effective >> number & 1 == 1;
    let free_from = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let all_free = free_from.is_ok_and(|port| port.trim().parse::<u32>().is_ok_and(|port| port <= 319));
    Rights { low_ports: has(NET_BIND_SERVICE) || all_free, net_admin: has(NET_ADMIN) }
}

fn empty(kind: &'static str, file: &Path) -> Daemon {
    Daemon {
        kind,
        file: file.to_owned(),
        asked_for: false,
        problem: None,
        runs: false,
        ports: Vec::new(),
        disks: Vec::new(),
        certificates: Vec::new(),
        hosts: Vec::new(),
    }
}

fn of_host(file: &Path) -> Daemon {
    let daemon = empty("host", file);
    let read = || -> Result<HostConfig, ConfigError> {
        let config: HostConfig = config::read(file)?;
        config.check()?;
        Ok(config)
    };
    let config = match read() {
        Ok(config) => config,
        Err(why) => return Daemon { problem: Some(why.to_string()), ..daemon },
    };
    let nbd = config.nbd.iter().filter_map(|endpoint| match endpoint {
        Endpoint::Tcp(address) | Endpoint::Tls(address) => Some(tcp("NBD clients", *address)),
        Endpoint::Unix(_) => None,
    });
    Daemon {
        runs: answers(config.listen),
        ports: [tcp("the server", config.listen)]
            .into_iter()
            .chain(time_ports(config.time))
            .chain(nbd)
            .collect(),
        disks: vec![disk("volumes", &config.volumes)],
        certificates: certificates(config.tls.as_ref()),
        ..daemon
    }
}

fn of_server(file: &Path) -> Daemon {
    let daemon = empty("server", file);
    let read = || -> Result<ServerConfig, ConfigError> {
        let config: ServerConfig = config::read(file)?;
        config.check()?;
        Ok(config)
    };
    let config = match read() {
        Ok(config) => config,
        Err(why) => return Daemon { problem: Some(why.to_string()), ..daemon },
    };
    let runs = answers(config.listen);
    let any = SocketAddr::from(([0, 0, 0, 0], config.time.port));
    let time = if config.time.port == 0 { Vec::new() } else { time_ports(any) };
    Daemon {
        runs,
        ports: [tcp("the API", config.listen)].into_iter().chain(time).collect(),
        disks: vec![disk("the catalogue", &config.state)],
        certificates: certificates(config.tls.as_ref()),
        hosts: config.hosts.iter().map(|host| reach(host, runs)).collect(),
        ..daemon
    }
}

/// An address that somebody listens at, on this machine.
fn answers(listen: SocketAddr) -> bool {
    let mut at = listen;
    if at.ip().is_unspecified() {
        let loopback: IpAddr =
            if at.is_ipv4() { [127, 0, 0, 1].into() } else { std::net::Ipv6Addr::LOCALHOST.into() };
        at.set_ip(loopback);
    }
    TcpStream::connect_timeout(&at, PATIENCE.to_std()).is_ok()
}

fn tcp(what: &'static str, address: SocketAddr) -> Port {
    Port { what, address: format!("tcp {address}"), bound: bound(TcpListener::bind(address).map(drop)) }
}

/// PTP's own port has a second one beside it, for general messages.
fn time_ports(event: SocketAddr) -> Vec<Port> {
    let mut addresses = vec![event];
    if event.port() == timesync::wire::EVENT_PORT {
        addresses.push(SocketAddr::new(event.ip(), event.port() + 1));
    }
    let port = |address: SocketAddr| Port {
        what: "time exchanges",
        address: format!("udp {address}"),
        bound: bound(UdpSocket::bind(address).map(drop)),
    };
    addresses.into_iter().map(port).collect()
}

fn bound(result: io::Result<()>) -> Bound {
    match result {
        Ok(()) => Bound::Free,
        Err(error) => match error.kind() {
            io::ErrorKind::AddrInUse => Bound::InUse,
            io::ErrorKind::PermissionDenied => Bound::Denied,
            io::ErrorKind::AddrNotAvailable => Bound::NotHere,
            _ => Bound::Failed(error.to_string()),
        },
    }
}

fn disk(what: &'static str, path: &Path) -> Disk {
    // The daemon makes the directory itself where it may.
    let nearest = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let space = if nearest.is_dir() {
        statvfs(nearest).map_err(|error| error.to_string()).map(|found| {
            let unit = found.fragment_size();
            (found.blocks_available().saturating_mul(unit), found.blocks().saturating_mul(unit))
        })
    } else {
        Err(format!("{} is no directory", nearest.display()))
    };
    Disk { what, path: path.to_owned(), space }
}

fn certificates(tls: Option<&TlsFiles>) -> Vec<Certificate> {
    let Some(TlsFiles { cert, key, ca }) = tls else { return Vec::new() };
    let mut found: Vec<Certificate> = [cert, ca].into_iter().map(certificate).collect();
    // Of a key there is nothing to say but that it can be read.
    if let Err(why) = std::fs::read(key) {
        found.push(Certificate { file: key.clone(), days_left: Err(why.to_string()) });
    }
    found
}

/// The first one in the file: its own, before those of the authorities between.
fn certificate(file: &PathBuf) -> Certificate {
    let read = || -> Result<i64, String> {
        let pem = std::fs::read(file).map_err(|error| error.to_string())?;
        let first = Pem::iter_from_buffer(&pem).next().ok_or("it holds no certificate")?;
        let first = first.map_err(|error| error.to_string())?;
        let certificate = first.parse_x509().map_err(|error| error.to_string())?;
        let until = certificate.validity().not_after.timestamp();
        Ok((until - wall_now().as_nanos() / 1_000_000_000).div_euclid(86_400))
    };
    Certificate { file: file.clone(), days_left: read() }
}

fn reach(entry: &HostEntry, server_runs: bool) -> Reach {
    // A host that got a key from the server answers nobody else: while the server runs, its own report says more.
    let exchanges = (!server_runs && entry.time_key.is_none()).then(|| exchanges(entry.time));
    let control = entry.control.as_deref().and_then(authority).map(|address| {
        let connection = connection(&address);
        (address, connection)
    });
    Reach { host: entry.name.clone(), time: entry.time, exchanges, control }
}

/// `https://HOST:PORT/…` without what stands around the middle.
fn authority(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split('/').next()?;
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let port = if scheme == "https" { 443 } else { 80 };
    Some(if has_port { authority.to_owned() } else { format!("{authority}:{port}") })
}

fn connection(address: &str) -> Connection {
    let resolved = match address.to_socket_addrs() {
        Ok(mut addresses) => addresses.next(),
        Err(error) => return Connection::Failed(error.to_string()),
    };
    let Some(resolved) = resolved else { return Connection::Failed("the name has no address".to_owned()) };
    match TcpStream::connect_timeout(&resolved, PATIENCE.to_std()) {
        Ok(_) => Connection::Made,
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Connection::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Connection::Silence,
            _ => Connection::Failed(error.to_string()),
        },
    }
}

/// From a port of our own: a daemon of this machine keeps its.
fn exchanges(target: SocketAddr) -> Exchanges {
    let config = ProbeConfig {
        target,
        event_port: 0,
        timestamps: Timestamps::Software,
        domain: 0,
        interval: Nanos::from_millis(20),
        timeout: PATIENCE,
    };
    let Ok(mut probe) = Probe::open(config) else { return Exchanges::NotSent };
    for _ in 0..EXCHANGES {
        if let Err(error) = probe.exchange() {
            return match error.kind() {
                io::ErrorKind::ConnectionRefused => Exchanges::Refused,
                _ => Exchanges::NotSent,
            };
        }
    }
    let summary = probe.summary();
    match summary.rtt_ns {
        Some(trips) => Exchanges::Answered {
            lost: summary.lost,
            round_trip: Nanos::new(i64::try_from(trips.min).unwrap_or(i64::MAX)),
        },
        None if refused(target) => Exchanges::Refused,
        None => Exchanges::Silence,
    }
}

/// Whether the machine says that nothing listens there: a connected socket is told.
fn refused(target: SocketAddr) -> bool {
    let ask = || -> io::Result<()> {
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(PATIENCE.to_std()))?;
        // Nothing that anybody would take for a message.
        socket.send(&[0])?;
        socket.recv(&mut [0; 64]).map(drop)
    };
    ask().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// The fleet as its server sees it; or why the server does not answer.
pub async fn fleet(server: &ServerClient) -> Result<Fleet, String> {
    let said = |error: snapshot::http::ControlError| error.to_string();
    let report: Report = serde_json::from_value(server.skew().await.map_err(said)?)
        .map_err(|error| format!("the server's report is of another version: {error}"))?;
    let hosts = server.volumes().await.map_err(said)?;
    let mut unreachable = Vec::new();
    let mut unserved = Vec::new();
    let mut any = BTreeSet::new();
    for host in hosts {
        unreachable.extend(host.problem.map(|why| (host.host.clone(), why)));
        let not_served = host.unserved.into_iter();
        unserved.extend(not_served.map(|(volume, why)| (format!("{}/{volume}", host.host), why)));
        any.extend(host.volumes.into_iter().map(|volume| (host.host.clone(), volume.name)));
    }
    let forecast = if any.is_empty() {
        None
    } else {
        Some(server.rehearse(&CreateRequest::default()).await.map_err(said))
    };
    Ok(Fleet { clocks: report.hosts, unreachable, unserved, forecast })
}
