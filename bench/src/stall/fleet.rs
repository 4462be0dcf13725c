//! Snapshots of hosts in network namespaces, timed against barrier, in turn. All clocks there are one kernel's, so a
//! host's readings are the server's.

use std::time::Duration;

use coeval_cli::cluster::Cluster;
use harness::fleet::{Fleet, Setup};
use snapshot::client::ServerClient;
use snapshot::messages::{CreateRequest, CreateVolumeOn, Manifest, RequestedMode, RequestedPolicy};
use snapshot::nbd::Endpoint;
use timesync::bound::AsymmetryBudget;
use timesync::time::Nanos;

use super::writer::{SIZE, Writer};
use super::{Arguments, Failure, Row, Samples, TAIL, now, rows};

const VOLUME: &str = "data";

/// Snapshots are deleted, and their layers merged, in batches between the measurements.
const BATCH: usize = 20;
/// Lets what a snapshot left to do come to its end before the next quiet window.
const SETTLE: Duration = Duration::from_millis(20);
/// As long as most snapshots take, so that there is a quiet window of a whole snapshot's length.
const QUIET: Duration = Duration::from_millis(150);

/// How far away a far server is, one way: nothing gets there sooner.
const AWAY: Nanos = Nanos::from_micros(500);
/// By how much the two ways may differ. They are one program's, which delays both alike; half of this is how late it is
/// at either, sometimes.
const ASYMMETRY: Nanos = Nanos::from_micros(50);
/// What a few hundred exchanges carry.
const CONFIDENCE: f64 = 0.9;

/// How snapshots are taken, and how many of them.
struct Variant {
    name: &'static str,
    request: CreateRequest,
    count: usize,
}

impl Variant {
    fn timed(name: &'static str, policy: RequestedPolicy, count: usize) -> Self {
        let request = CreateRequest { mode: RequestedMode::Timed, policy, ..CreateRequest::default() };
        Variant { name, request, count }
    }

    fn barrier(count: usize) -> Self {
        let request = CreateRequest { mode: RequestedMode::Barrier, ..CreateRequest::default() };
        Variant { name: "barrier", request, count }
    }
}

/// Server and hosts on one switch.
pub fn straight(arguments: &Arguments, hosts: u8) -> Result<Vec<Row>, Failure> {
    let variants = [
        Variant::timed("timed", RequestedPolicy::Hard, arguments.timed),
        Variant::barrier(arguments.barrier),
    ];
    run(arguments, "straight", hosts, &Setup::default(), &variants)
}

/// A far server of which nothing is known but what is measured; or how different the two ways may be.
pub fn far(arguments: &Arguments, hosts: u8) -> Result<Vec<Row>, Failure> {
    let setup = Setup { away: Some(AWAY), ..Setup::default() };
    let statistical = RequestedPolicy::Statistical {
        group_confidence: CONFIDENCE,
        budget: AsymmetryBudget::Configured(ASYMMETRY),
    };
    let variants = [
        Variant::timed("timed", RequestedPolicy::Hard, arguments.timed),
        Variant::timed("timed, A = 50 µs", statistical, arguments.timed),
        Variant::barrier(arguments.barrier),
    ];
    run(arguments, "1 ms away", hosts, &setup, &variants)
}

/// A far server that knows how far at least.
pub fn far_with_known_delays(arguments: &Arguments, hosts: u8) -> Result<Vec<Row>, Failure> {
    let entry = format!("min_forward = \"{0}ns\"\nmin_backward = \"{0}ns\"\n", AWAY.get());
    let setup = Setup { away: Some(AWAY), entry, ..Setup::default() };
    let variants = [
        Variant::timed("timed", RequestedPolicy::Hard, arguments.timed),
        Variant::barrier(arguments.barrier),
    ];
    run(arguments, "1 ms away, which is known", hosts, &setup, &variants)
}

fn run(
    arguments: &Arguments,
    section: &'static str,
    hosts: u8,
    setup: &Setup,
    variants: &[Variant],
) -> Result<Vec<Row>, Failure> {
    let names: Vec<String> = (1..=hosts).map(|number| format!("host{number}")).collect();
    let fleet = Fleet::start_with(&names.iter().map(String::as_str).collect::<Vec<_>>(), setup)?;
    let think = Duration::from_micros(arguments.think_us);
    // The API is reached from inside the server's namespace.
    let samples = fleet.server_namespace().inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(measure(&fleet.client(), &fleet.cluster, think, variants))
    })??;
    Ok(rows(section, hosts, &samples))
}

async fn measure(
    api: &ServerClient,
    cluster: &Cluster,
    think: Duration,
    variants: &[Variant],
) -> Result<Vec<(String, Samples)>, Failure> {
    for host in &cluster.hosts {
        let order = CreateVolumeOn { host: host.name.clone(), name: VOLUME.to_owned(), size: SIZE };
        api.create_volume(&order).await?;
    }
    let writers = cluster
        .hosts
        .iter()
        .map(|host| Writer::start(&Endpoint::Unix(host.nbd_socket.clone()), VOLUME, think))
        .collect::<Result<Vec<_>, Failure>>()?;
    // The first snapshots meet cold caches and an empty time window.
    take(api, &writers, &variants[0].request, BATCH, &mut Samples::default()).await?;
    let mut samples: Vec<Samples> = variants.iter().map(|_| Samples::default()).collect();
    let most = variants.iter().map(|variant| variant.count).max().unwrap_or(0);
    let rounds = most.div_ceil(BATCH);
    // Alternating, so that all meet the same weather.
    for round in 1..=rounds {
        for (variant, samples) in variants.iter().zip(&mut samples) {
            let batch = variant.count * round / rounds - samples.worst.len();
            take(api, &writers, &variant.request, batch, samples).await?;
        }
    }
    for writer in writers {
        writer.stop()?;
    }
    Ok(variants.iter().map(|variant| variant.name.to_owned()).zip(samples).collect())
}

/// Takes `count` snapshots and deletes them.
async fn take(
    api: &ServerClient,
    writers: &[Writer],
    request: &CreateRequest,
    count: usize,
    samples: &mut Samples,
) -> Result<(), Failure> {
    let mut names = Vec::new();
    for _ in 0..count {
        tokio::time::sleep(SETTLE).await;
        let quiet_from = now();
        tokio::time::sleep(QUIET).await;
        let commanded = now();
        let manifest = api.create(request, |_| {}).await?;
        let whole = commanded..now();
        // The window's last writes may still be under way.
        tokio::time::sleep(Duration::from_nanos(TAIL.unsigned_abs())).await;
        let writes: Vec<(i64, i64)> = writers.iter().flat_map(Writer::drain).collect();
        samples.add_cut(&manifest, &writes, quiet_from, whole);
        // Digests read whole volumes in the background; they belong to no window.
        while !api
            .show(&manifest.name, false)
            .await?
            .snapshot
            .manifest
            .is_some_and(|known| is_digested(&known))
        {
            tokio::time::sleep(SETTLE).await;
        }
        names.push(manifest.name);
    }
    for name in &names {
        api.delete(name).await?;
    }
    settle(api).await
}

fn is_digested(manifest: &Manifest) -> bool {
    manifest.hosts.iter().flat_map(|host| &host.volumes).all(|volume| volume.digest.is_some())
}

impl Samples {
    fn add_cut(
        &mut self,
        manifest: &Manifest,
        writes: &[(i64, i64)],
        quiet_from: i64,
        whole: std::ops::Range<i64>,
    ) {
        let cuts =
            manifest.hosts.iter().filter_map(|host| Some((host.at_ns?.as_nanos(), host.q_ns?.as_nanos())));
        let first = cuts.clone().map(|(at, _)| at).min().unwrap_or(0);
        let last = cuts.clone().map(|(_, q)| q).max().unwrap_or(0);
        let window = match (manifest.t_ns, manifest.v_ns) {
            (Some(t), Some(v)) => t.as_nanos()..t.as_nanos() + v.get() + TAIL,
            _ => first..last + TAIL,
        };
        self.add(writes, quiet_from, window, whole);
        self.hold.extend(cuts.map(|(at, q)| q - at));
        let held = manifest.hosts.iter().filter(|host| host.held > 0);
        self.stretch.extend(held.map(|host| host.stretch_ns.max.cast_signed()));
        self.v.extend(manifest.v_ns.map(Nanos::get));
        self.round_trip.extend(manifest.control_round_trip_ns.map(Nanos::get));
        self.repeated += usize::from(manifest.attempts > 1);
    }
}

/// Waits until the deleted snapshots' layers are merged.
async fn settle(api: &ServerClient) -> Result<(), Failure> {
    loop {
        let hosts = api.volumes().await?;
        // The base, what is left of the deleted ones, and the head.
        if hosts.iter().flat_map(|host| &host.volumes).all(|volume| volume.layers <= 3) {
            return Ok(());
        }
        tokio::time::sleep(SETTLE).await;
    }
}
