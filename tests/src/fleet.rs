//! A server and hosts, each in a network namespace of its own: real UDP with the kernel's stamps, and a control plane
//! over HTTPS with certificates on both ends.

use std::io;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Host, Place};
use coeval_cli::daemon::DaemonError;
use coeval_cli::relay::Relay;
use coeval_cli::workload::{Export, Workload, check_exports};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use snapshot::client::ServerClient;
use snapshot::http::{Connector, Role, TlsFiles};
use snapshot::messages::{CreateVolumeOn, Snapshot};
use snapshot::nbd::{Client, Endpoint};
use snapshot::orders::VolumeDescription;
use timesync::clock::ServerClock;
use timesync::report::Report;
use timesync::time::Nanos;

use crate::coeval;
use crate::distance::Distance;
use crate::eventually;
use crate::namespaces::{Namespace, Network};
use crate::tls::Authority;

/// The hosts of [`Fleet::of_three`].
pub const HOSTS: [&str; 3] = ["a", "b", "c"];

/// The volume on every host.
pub const VOLUME: &str = "data";
const VOLUME_SIZE: u64 = 16 << 20;

/// Tokens of the workload.
const TOKENS: usize = 8;
/// Each token's rest after a write: leaves the daemons some of a small machine's processor.
const REST: Duration = Duration::from_millis(1);

/// The daemons' own ports: with these a host that starts again is found where it was.
const API_PORT: u16 = 7420;
const HOST_PORT: u16 = 7421;
const TIME_PORT: u16 = 319;
/// Where one socket serves event and general messages, so that a relay between two ports carries both.
const RELAYED_TIME_PORT: u16 = 7319;

/// Each fleet loads the machine, and none should wait for another's processor: one at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What a fleet is like.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Flags of each host.
    pub host_flags: Vec<String>,
    /// Flags of the server.
    pub server_flags: Vec<String>,
    /// More lines for each host's entry in the server's configuration.
    pub entry: String,
    /// What every packet to the server and from it takes longer.
    pub away: Option<Nanos>,
    /// A fleet for snapshots that are taken wrongly on purpose: simulated clocks that differ by tens of milliseconds, and
    /// time exchanges that take so much longer to every other host, and from the others.
    pub lopsided: Option<Nanos>,
}

/// A server and hosts, with this machine's real clock unless told otherwise. All is gone when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    // Dropped in this order: first the processes, then their network.
    /// The daemons.
    pub cluster: Cluster,
    _relays: Vec<Relay>,
    _distance: Option<Distance>,
    /// Their network: the server is its first host.
    pub network: Network,
    client: TlsFiles,
    _authority: Authority,
    _turn: MutexGuard<'static, ()>,
}

impl Fleet {
    /// Starts hosts of these names and a server, each with these flags.
    ///
    /// # Errors
    /// When namespaces cannot be made (that needs root) or a daemon does not start.
    pub fn start(names: &[&str], host_flags: &[&str], server_flags: &[&str]) -> Result<Fleet, DaemonError> {
        let owned = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect();
        let (host_flags, server_flags) = (owned(host_flags), owned(server_flags));
        Fleet::start_with(names, &Setup { host_flags, server_flags, ..Setup::default() })
    }

    /// Starts hosts of these names and a server, as `setup` says.
    ///
    /// # Errors
    /// As [`Fleet::start`].
    pub fn start_with(names: &[&str], setup: &Setup) -> Result<Fleet, DaemonError> {
        // A test that failed has dropped its fleet all the same.
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let network = Network::new(u8::try_from(names.len() + 1).map_err(io::Error::other)?)?;
        let distance = setup.away.map(|delay| network.move_away(0, delay)).transpose()?;
        let time_port = if setup.lopsided.is_some() { RELAYED_TIME_PORT } else { TIME_PORT };
        let authority = Authority::new();
        let place = |role, name: &str, namespace: &Namespace, ports: [String; 2], flags: &[String]| Place {
            address: namespace.address,
            launcher: namespace.launcher(),
            flags: ports.into_iter().chain(flags.iter().cloned()).collect(),
            tls: Some(authority.issue(role, name, namespace.address)),
            entry: setup.entry.clone(),
            ..Place::loopback(&[])
        };
        let hosts: Vec<(&str, Place)> = names
            .iter()
            .zip(&network.hosts[1..])
            .enumerate()
            .map(|(number, (name, namespace))| {
                let address = namespace.address;
                let ports =
                    [format!("--listen={address}:{HOST_PORT}"), format!("--time={address}:{time_port}")];
                let clock = setup.lopsided.map(|_| format!("--simulate-clock={}", other_clock(number)));
                let flags: Vec<String> = setup.host_flags.iter().cloned().chain(clock).collect();
                (*name, place(Role::Host, name, namespace, ports, &flags))
            })
            .collect();
        let server = &network.hosts[0];
        let client = authority.issue(Role::Operator, "client", server.address);
        let ports = [format!("--listen={}:{API_PORT}", server.address), format!("--time-port={time_port}")];
        let simulation = setup.lopsided.map(|_| "--simulation".to_owned());
        let flags: Vec<String> = setup.server_flags.iter().cloned().chain(simulation).collect();
        let server = place(Role::Server, "server", server, ports, &flags);
        let mut relays = Vec::new();
        let cluster = Cluster::start(coeval(), &hosts, &server, |number, address| {
            let Some(added) = setup.lopsided else { return Ok(address) };
            let (forward, backward) =
                if number.is_multiple_of(2) { (added, Nanos::ZERO) } else { (Nanos::ZERO, added) };
            let relay = network.hosts[0].inside(|| Relay::start(address, forward, backward))??;
            let address = relay.address();
            relays.push(relay);
            Ok(address)
        })?;
        Ok(Fleet {
            cluster,
            _relays: relays,
            _distance: distance,
            network,
            client,
            _authority: authority,
            _turn: turn,
        })
    }

    /// Three hosts with a volume each, whose clocks are bounded.
    ///
    /// # Panics
    /// When they do not start; that needs root.
    pub fn of_three() -> Fleet {
        let started = Fleet::start(&HOSTS, &[], &[]);
        let fleet = started.unwrap_or_else(|why| panic!("no hosts in network namespaces: {why}"));
        for host in HOSTS {
            fleet.create_volume(host);
        }
        fleet.wait_for_bounds();
        fleet
    }

    /// Creates [`VOLUME`] on a host.
    pub fn create_volume(&self, host: &str) {
        let order = CreateVolumeOn { host: host.to_owned(), name: VOLUME.to_owned(), size: VOLUME_SIZE };
        self.api(async |api| api.create_volume(&order).await).unwrap();
    }

    /// The server's namespace: clients of its API run there.
    pub fn server_namespace(&self) -> &Namespace {
        &self.network.hosts[0]
    }

    /// A client of the server's API, to be used inside the server's namespace.
    pub fn client(&self) -> ServerClient {
        let connector = Connector::new(Some(&self.client), false).unwrap();
        ServerClient::new(&connector, &self.cluster.api).unwrap()
    }

    /// Runs `work` with a client of the server's API inside the server's namespace.
    pub fn api<T: Send>(&self, work: impl AsyncFnOnce(&ServerClient) -> T + Send) -> T {
        self.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(&self.client()))
        })
    }

    /// A `coeval` command that talks to the server, to be given its arguments.
    pub fn command(&self) -> Command {
        let mut command = self.server_namespace().command(coeval());
        command.env("COEVAL_SERVER", &self.cluster.api);
        command.env("COEVAL_CERT", &self.client.cert);
        command.env("COEVAL_KEY", &self.client.key);
        command.env("COEVAL_CA", &self.client.ca);
        command
    }

    /// The result of a `coeval` command with `--json`.
    ///
    /// # Panics
    /// When it fails; stderr says why.
    pub fn coeval<T: DeserializeOwned>(&self, arguments: &[&str]) -> T {
        json_of(self.command().args(arguments).arg("--json"))
    }

    /// Waits until every host's clock is bounded.
    pub fn wait_for_bounds(&self) {
        eventually(|| {
            let report: Report =
                serde_json::from_value(self.api(async |api| api.skew().await).unwrap()).unwrap();
            // What a host that was restarted since had answered before is older by now.
            let all = report.hosts.iter().all(|host| host.hard_ns.is_some() && host.age_ms < Some(250));
            if all { Ok(()) } else { Err(format!("not every clock is bounded: {report:?}")) }
        });
    }

    /// The volumes of these hosts, or a snapshot of each, over TCP.
    pub fn exports(&self, hosts: &[Host], snapshot: Option<&str>) -> Vec<Export> {
        let name = snapshot.map_or_else(|| VOLUME.to_owned(), |snapshot| format!("{VOLUME}@{snapshot}"));
        hosts.iter().map(|host| Export { endpoint: endpoint(host), name: name.clone() }).collect()
    }

    /// Starts the causal workload on the volumes of these hosts.
    pub fn start_workload(&self, hosts: &[Host]) -> Workload {
        let exports = self.exports(hosts, None);
        self.inside(|| Workload::start(&exports, TOKENS, REST)).unwrap()
    }

    /// Opens a snapshot on these hosts, all that the workload runs on, and checks that it is a consistent cut.
    ///
    /// # Panics
    /// When it is not.
    pub fn assert_consistent(&self, hosts: &[Host], snapshot: &str) {
        let exports = self.exports(hosts, Some(snapshot));
        let violations = self.inside(|| check_exports(&exports, TOKENS)).unwrap();
        assert!(violations.is_empty(), "snapshot {snapshot} is torn: {violations:?}");
    }

    /// Opens an export.
    pub fn open(&self, export: &Export) -> Client {
        self.inside(|| Client::connect(&export.endpoint, &export.name)).unwrap()
    }

    /// The names of a host's exports.
    pub fn list_exports(&self, host: &Host) -> Vec<String> {
        self.inside(|| Client::list(&endpoint(host))).unwrap()
    }

    /// The snapshots of this name, those that failed too.
    pub fn rows(&self, snapshot: &str) -> Vec<Snapshot> {
        let mut rows = self.api(async |api| api.list().await).unwrap();
        rows.retain(|row| row.name == snapshot);
        rows
    }

    /// Deletes a snapshot, as soon as nothing reads it any more.
    pub fn delete(&self, snapshot: &str) {
        eventually(|| match self.api(async |api| api.delete(snapshot).await) {
            Err(error) if error.status() == Some(409) => Err(error),
            result => {
                result.unwrap();
                Ok(())
            }
        });
    }

    /// Waits until no host has a snapshot and every chain is as short as it can be: base and head.
    pub fn wait_until_nothing_is_left(&self) {
        eventually(|| {
            let hosts = self.api(async |api| api.volumes().await).unwrap();
            let clean = |volume: &VolumeDescription| volume.snapshots.is_empty() && volume.layers <= 2;
            let all = hosts.iter().all(|host| host.problem.is_none() && host.volumes.iter().all(clean));
            if all { Ok(()) } else { Err(format!("something is left: {hosts:?}")) }
        });
        for host in &self.cluster.hosts {
            assert_eq!(self.list_exports(host), [VOLUME]);
        }
    }

    /// Runs `work` in the server's namespace. Threads that it starts stay there.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.server_namespace().inside(work).unwrap()
    }
}

/// Runs a command and reads the JSON that it prints.
///
/// # Panics
/// When it fails or prints something else.
pub fn json_of<T: DeserializeOwned>(command: &mut Command) -> T {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}: {stderr}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Kills a daemon as kill -9 does; it may be dead already.
pub fn kill(daemon: &coeval_cli::daemon::Daemon) {
    // It is a child that nobody has waited for, so it cannot be another process.
    let _ = daemon.signal(Signal::SIGKILL);
}

/// Waits until every host has acknowledged more writes than now.
///
/// # Panics
/// When one does not, or the workload meets an error.
pub fn assert_writes_go_on(workload: &Workload) {
    let before = workload.writes();
    eventually(|| {
        assert!(!workload.has_failed(), "the workload met an error");
        let now = workload.writes();
        let all = before.iter().zip(&now).all(|(before, now)| *now > before + 20);
        if all { Ok(()) } else { Err(format!("writes went from {before:?} to {now:?}")) }
    });
}

/// A clock that is off by up to sixty milliseconds and drifts, otherwise than its neighbours'.
fn other_clock(number: usize) -> String {
    let (offset, drift) = ((number * 37) % 121, (number * 29) % 91);
    let since = ServerClock.now().as_nanos();
    format!("offset={}ms,drift={}ppm,since={since}", offset as i64 - 60, drift as i64 - 45)
}

fn endpoint(host: &Host) -> Endpoint {
    let address = host.ready.nbd.iter().find_map(|uri| uri.strip_prefix("nbd://")).unwrap();
    Endpoint::Tcp(address.parse().unwrap())
}
