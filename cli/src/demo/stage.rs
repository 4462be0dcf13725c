//! Where the demonstration takes place: daemons whose clocks differ, and the network between them.

use std::time::Duration;

use snapshot::client::ServerClient;
use snapshot::http::{Connector, ControlError};
use snapshot::messages::{CreateRequest, CreateVolumeOn, Manifest};
use snapshot::nbd::Endpoint;
use timesync::clock::ServerClock;
use timesync::report::Report;
use timesync::simulation::Simulation;
use timesync::time::{Nanos, Time};

use super::report::HostReport;
use crate::cluster::{Cluster, Place};
use crate::commands::Failure;
use crate::relay::Relay;
use crate::workload::{Export, check_exports};

/// The hosts, and how their clocks deviate from this machine's.
const HOSTS: [(&str, &str); 3] = [
    ("alpha", "offset=-38ms,drift=35ppm"),
    ("beta", "offset=13ms,drift=-47ppm"),
    ("gamma", "offset=57ms,drift=21ppm"),
];

const VOLUME: &str = "data";
/// Small, since every snapshot is read for its digest.
const VOLUME_SIZE: u64 = 16 << 20;

const PAUSE: Duration = Duration::from_millis(50);
const SHORT_PAUSE: Duration = Duration::from_millis(2);
/// Hosts answer within milliseconds; the machine may be busy.
const PATIENCE: u32 = 20 * 30;

/// The network between the server's prober and the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Loopback.
    Straight,
    /// Loopback, but packets to the first host and from the last one take so much longer.
    Lopsided(Nanos),
}

/// Daemons, ready to take snapshots.
#[derive(Debug)]
pub struct Stage {
    cluster: Cluster,
    clocks: Vec<Simulation>,
    api: ServerClient,
    _relays: Vec<Relay>,
}

impl Stage {
    /// Starts the daemons, creates the volumes, and waits until every clock is bounded.
    pub async fn start(network: Network) -> Result<Stage, Failure> {
        let since = ServerClock.now().as_nanos();
        let specs = HOSTS.map(|(_, spec)| format!("{spec},since={since}"));
        let hosts: Vec<(&str, Place)> = HOSTS
            .iter()
            .zip(&specs)
            .map(|((name, _), spec)| (*name, Place::loopback(&["--simulate-clock", spec])))
            .collect();
        let clocks = specs.iter().map(|spec| spec.parse()).collect::<Result<_, _>>()?;
        let mut relays = Vec::new();
        let cluster = tokio::task::block_in_place(|| {
            Cluster::start(
                &std::env::current_exe()?,
                &hosts,
                &Place::loopback(&["--simulation"]),
                |number, host| {
                    let (forward, backward) = match (network, number) {
                        (Network::Lopsided(added), 0) => (added, Nanos::ZERO),
                        (Network::Lopsided(added), number) if number == HOSTS.len() - 1 => {
                            (Nanos::ZERO, added)
                        }
                        _ => return Ok(host),
                    };
                    let relay = Relay::start(host, forward, backward)?;
                    let address = relay.address();
                    relays.push(relay);
                    Ok(address)
                },
            )
        })?;
        let api = ServerClient::new(&Connector::new(None, false)?, &cluster.api)?;
        for (host, _) in HOSTS {
            let order = CreateVolumeOn { host: host.to_owned(), name: VOLUME.to_owned(), size: VOLUME_SIZE };
            api.create_volume(&order).await?;
        }
        let stage = Stage { cluster, clocks, api, _relays: relays };
        stage.wait_for_bounds().await?;
        Ok(stage)
    }

    async fn skew(&self) -> Result<Report, Failure> {
        Ok(serde_json::from_value(self.api.skew().await?)?)
    }

    async fn wait_for_bounds(&self) -> Result<(), Failure> {
        for _ in 0..PATIENCE {
            let report = self.skew().await?;
            if report.hosts.iter().filter(|host| host.hard_ns.is_some()).count() == HOSTS.len() {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err("the hosts' clocks could not be bounded; `coeval skew` would say why".into())
    }

    /// The hosts' volumes, or a snapshot of each.
    pub fn exports(&self, snapshot: Option<&str>) -> Vec<Export> {
        let name = snapshot.map_or_else(|| VOLUME.to_owned(), |snapshot| format!("{VOLUME}@{snapshot}"));
        let export = |host: &crate::cluster::Host| Export {
            endpoint: Endpoint::Unix(host.nbd_socket.clone()),
            name: name.clone(),
        };
        self.cluster.hosts.iter().map(export).collect()
    }

    /// Takes a snapshot of all volumes; none if no attempt was certified.
    pub async fn snapshot(&self, order: &CreateRequest) -> Result<Option<Manifest>, Failure> {
        match self.api.create(order, |_| {}).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(ControlError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a snapshot on every host, counts the violations in it, and deletes it.
    pub async fn check_and_delete(&self, manifest: &Manifest, tokens: usize) -> Result<usize, Failure> {
        let exports = self.exports(Some(&manifest.name));
        let violations = tokio::task::block_in_place(|| check_exports(&exports, tokens))?;
        self.delete(&manifest.name).await?;
        Ok(violations.len())
    }

    /// Deletes a snapshot as soon as it is not in use any more: a host notices a little later that its client has left,
    /// and the server may still be computing the digests.
    async fn delete(&self, snapshot: &str) -> Result<(), Failure> {
        for _ in 0..PATIENCE {
            match self.api.delete(snapshot).await {
                Err(error) if error.status() == Some(409) => tokio::time::sleep(SHORT_PAUSE).await,
                result => return Ok(result?),
            }
        }
        Err(format!("snapshot {snapshot} stays in use").into())
    }

    /// How far the clocks are from the server's in truth, and what was measured.
    pub async fn clocks(&self) -> Result<Vec<HostReport>, Failure> {
        let report = self.skew().await?;
        let mut hosts = Vec::new();
        for ((name, _), clock) in HOSTS.iter().zip(&self.clocks) {
            let measured = report.hosts.iter().find(|host| host.host == *name);
            let measured = measured.and_then(|host| Some((host.offset_ns?, host.hard_ns?, host.at_ns?)));
            let (offset_ns, hard_ns, at) = measured.ok_or("a host's clock is not bounded any more")?;
            // One machine, one clock below: what the host's reads too much is all the offset there is.
            let truth = clock.deviation(Time::from_nanos(at.as_nanos())).get();
            hosts.push(HostReport {
                host: (*name).to_owned(),
                true_offset_ns: truth,
                offset_ns,
                hard_ns,
                covered: (truth - offset_ns).abs() <= hard_ns,
            });
        }
        Ok(hosts)
    }
}
