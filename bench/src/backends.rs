//! How long a snapshot pauses volumes outside Coeval, beside the stretch of Coeval's own, in one run.
//!
//! Two hosts on this machine, each with a volume of every kind: file systems in images that are copied by reflink or as a
//! btrfs subvolume, frozen meanwhile, and the built-in one. One kind after the other is snapshotted on both hosts at once,
//! under one writer on each of its volumes. The writers' worst write tells how long the pause was from outside.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::workload::{Export, Workload};
use harness::external::{ImageVolume, Means};
use harness::filesystem::{Kind, with_own_mounts};
use harness::{coeval, eventually};
use serde::Serialize;
use snapshot::client::ServerClient;
use snapshot::http::Connector;
use snapshot::messages::{CreateRequest, CreateVolumeOn, Manifest, Member, RequestedMode};
use snapshot::nbd::Endpoint;
use timesync::clock::pace_now;
use timesync::report::Report;
use timesync::time::Nanos;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const HOSTS: [&str; 2] = ["a", "b"];
const KINDS: [(&str, Means); 3] = [
    ("xfs-reflink", Means::XfsReflink),
    ("btrfs-reflink", Means::BtrfsReflink),
    ("btrfs-subvolume", Means::BtrfsSubvolume),
];
const BUILT_IN: &str = "built-in";
const VOLUME_SIZE: u64 = 16 << 20;
/// Between two writes.
const REST: Duration = Duration::from_micros(200);
/// Between two snapshots.
const SETTLE: Duration = Duration::from_millis(50);

/// Options of the benchmark. It needs root.
#[derive(clap::Args)]
pub struct Arguments {
    /// Snapshots of each kind.
    #[arg(long, default_value_t = 50)]
    snapshots: usize,
    /// Prints the rows as JSON.
    #[arg(long)]
    json: bool,
}

/// One kind's figures, in nanoseconds, over all hosts and snapshots.
#[derive(Serialize)]
struct Row {
    backend: &'static str,
    snapshots: usize,
    /// Until the pause was confirmed.
    pausing: Quantiles,
    /// From its beginning to the resume; for the built-in volume, the longest stretch of a reply.
    held: Quantiles,
    /// The worst write of those that overlap the snapshot.
    worst_write: Quantiles,
    /// The resume after T + V. The command ended before, if this is small.
    after_t_plus_v: Quantiles,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Quantiles {
    p50: i64,
    p99: i64,
    max: i64,
}

fn quantiles(mut values: Vec<i64>) -> Quantiles {
    values.sort_unstable();
    let at = |per_cent: usize| values.get((values.len().saturating_sub(1)) * per_cent / 100).copied();
    let [p50, p99, max] = [50, 99, 100].map(|per_cent| at(per_cent).unwrap_or(0));
    Quantiles { p50, p99, max }
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let rows = with_own_mounts(|| measure(arguments.snapshots))?;
    if arguments.json {
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }
    println!(
        "{:<16} {:>26} {:>26} {:>26} {:>26}",
        "p50/p99/max in µs", "pausing", "held", "worst write", "after T + V"
    );
    for row in &rows {
        let cell = |figure: Quantiles| {
            format!(
                "{:.0}/{:.0}/{:.0}",
                figure.p50 as f64 / 1e3,
                figure.p99 as f64 / 1e3,
                figure.max as f64 / 1e3
            )
        };
        println!(
            "{:<16} {:>26} {:>26} {:>26} {:>26}",
            row.backend,
            cell(row.pausing),
            cell(row.held),
            cell(row.worst_write),
            cell(row.after_t_plus_v)
        );
    }
    Ok(())
}

fn measure(snapshots: usize) -> Result<Vec<Row>, Failure> {
    let directory = tempfile::tempdir()?;
    let mut volumes = Vec::new();
    let mut hosts = Vec::new();
    for host in HOSTS {
        let mut config = String::new();
        for (name, means) in KINDS {
            let volume =
                ImageVolume::new(&directory.path().join(format!("{host}-{name}")), means, Kind::Ext4);
            config += &volume.config(name, "", "");
            volumes.push((name, volume));
        }
        hosts.push((host, Place { config, ..Place::loopback(&[]) }));
    }
    let cluster = Cluster::start(coeval(), &hosts, &Place::loopback(&[]), |_, address| Ok(address))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let api = ServerClient::new(&Connector::new(None, false)?, &cluster.api)?;
    for host in HOSTS {
        let order = CreateVolumeOn { host: host.to_owned(), name: BUILT_IN.to_owned(), size: VOLUME_SIZE };
        runtime.block_on(api.create_volume(&order))?;
    }
    eventually(|| {
        let report: Report =
            serde_json::from_value(runtime.block_on(api.skew()).map_err(|error| error.to_string())?)
                .map_err(|error| error.to_string())?;
        let all = report.hosts.iter().all(|host| host.hard_ns.is_some());
        if all { Ok(()) } else { Err("not every clock is bounded".to_owned()) }
    });
    let mut rows = Vec::new();
    for (name, _) in KINDS {
        let mounts = volumes.iter().filter(|(kind, _)| *kind == name).map(|(_, volume)| volume.mount_point());
        let writers: Vec<Writer> = mounts.map(Writer::start).collect();
        let worst = || writers.iter().map(|writer| writer.worst.swap(0, Ordering::Relaxed)).collect();
        rows.push(series(&runtime, &api, name, snapshots, worst)?);
    }
    let exports: Vec<Export> = cluster
        .hosts
        .iter()
        .map(|host| Export { endpoint: Endpoint::Unix(host.nbd_socket.clone()), name: BUILT_IN.to_owned() })
        .collect();
    let workload = Workload::start(&exports, HOSTS.len(), REST)?;
    rows.push(series(&runtime, &api, BUILT_IN, snapshots, Vec::new)?);
    drop(workload);
    Ok(rows)
}

fn series(
    runtime: &tokio::runtime::Runtime,
    api: &ServerClient,
    volume: &'static str,
    snapshots: usize,
    mut worst: impl FnMut() -> Vec<i64>,
) -> Result<Row, Failure> {
    let (mut pausing, mut held, mut writes, mut late) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..snapshots {
        let name = format!("bench{number}");
        let group = HOSTS.map(|host| Member { host: host.to_owned(), volume: volume.to_owned() }).to_vec();
        let order = CreateRequest {
            name: Some(name.clone()),
            group,
            mode: RequestedMode::Timed,
            attempts: Some(20),
            ..CreateRequest::default()
        };
        std::thread::sleep(SETTLE);
        worst();
        let manifest: Manifest = runtime.block_on(api.create(&order, |_| {}))?;
        std::thread::sleep(SETTLE);
        writes.extend(worst());
        for host in &manifest.hosts {
            if let (Some(at), Some(q), Some(v)) = (host.at_ns, host.q_ns, manifest.v_ns) {
                late.push((q - at - v).get());
            }
            match host.volumes.iter().find_map(|volume| volume.external.as_ref()?.pause) {
                Some(pause) => {
                    pausing.push(pause.pausing_ns.get());
                    held.push(pause.paused_ns.get());
                }
                None => held.push(i64::try_from(host.stretch_ns.max)?),
            }
        }
        // The digests of the built-in volume may be under way.
        eventually(|| runtime.block_on(api.delete(&name)));
    }
    Ok(Row {
        backend: volume,
        snapshots,
        pausing: quantiles(pausing),
        held: quantiles(held),
        worst_write: quantiles(writes),
        after_t_plus_v: quantiles(late),
    })
}

/// Writes a block again and again, and remembers which write took longest.
struct Writer {
    worst: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(volume: PathBuf) -> Writer {
        let (worst, stop) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
        let (longest, stopped) = (Arc::clone(&worst), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let Ok(file) = File::create(volume.join("written")) else { return };
            while !stopped.load(Ordering::Relaxed) {
                let began: Nanos = pace_now();
                if file.write_all_at(&[1; 4096], 0).is_err() {
                    return;
                }
                longest.fetch_max((pace_now() - began).get(), Ordering::Relaxed);
                std::thread::sleep(REST);
            }
        });
        Writer { worst, stop, thread: Some(thread) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A writer that failed has measured nothing, which shows.
            let _ = thread.join();
        }
    }
}
