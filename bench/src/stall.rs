//! What a snapshot costs its writers.
//!
//! Three hosts in network namespaces, a writer at queue depth 1 on each. Per snapshot: the worst write that overlaps
//! [T, T + V + 5 ms] (barrier: from the first cut to 5 ms after the last release), against the same statistic over a
//! window of the same length shortly before, with no snapshot. A percentile over all writes would hide the cost: one
//! write in thousands is hit. Beside it, the same over the whole snapshot, from the command to its end: the daemons'
//! work before and after the cut takes its share of the processors too. All clocks here are one kernel's, so a host's
//! readings are the server's.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use coeval_cli::cluster::Cluster;
use harness::fleet::Fleet;
use serde::Serialize;
use snapshot::client::ServerClient;
use snapshot::messages::{CreateRequest, CreateVolumeOn, Manifest, RequestedMode};
use snapshot::nbd::{Client, Endpoint};
use timesync::clock::ServerClock;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const VOLUME: &str = "data";
/// Small: every cut syncs what was written since the last one, and a slow disk would be all that is measured.
const VOLUME_SIZE: u64 = 2 << 20;
const BLOCK: u64 = 4096;

/// What a window has after its release.
const TAIL: i64 = 5_000_000;
/// Snapshots are deleted, and their layers merged, in batches between the measurements.
const BATCH: usize = 20;
/// Lets what a snapshot left to do come to its end before the next quiet window.
const SETTLE: Duration = Duration::from_millis(20);
/// As long as most snapshots take, so that there is a quiet window of a whole snapshot's length.
const QUIET: Duration = Duration::from_millis(150);

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Arguments {
    /// Hosts, each with one writer.
    #[arg(long, default_value_t = 3)]
    hosts: u8,
    /// Timed snapshots.
    #[arg(long, default_value_t = 1000)]
    timed: usize,
    /// Barrier snapshots.
    #[arg(long, default_value_t = 300)]
    barrier: usize,
    /// How long a writer thinks between two writes, in microseconds. Without a pause, as many busy hosts as this has
    /// on a machine with fewer processors wait for each other: the rare worst writes are then the scheduler's, in every
    /// mode.
    #[arg(long, default_value_t = 0)]
    think_us: u64,
    /// Prints the rows as JSON.
    #[arg(long)]
    json: bool,
}

/// One mode's figures, in nanoseconds.
#[derive(Serialize)]
struct Row {
    hosts: u8,
    mode: &'static str,
    windows: usize,
    worst_write_ns: Quantiles,
    /// The worst write between the command and its end.
    whole_ns: Quantiles,
    /// From a host's T to its release.
    hold_ns: Quantiles,
    /// How long held replies were held beyond the moment they were ready: each host's longest per snapshot.
    stretch_ns: Quantiles,
    v_ns: i64,
    control_round_trip_ns: i64,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Quantiles {
    p50: i64,
    p99: i64,
    max: i64,
}

/// One mode's samples.
#[derive(Default)]
struct Samples {
    worst: Vec<i64>,
    whole: Vec<i64>,
    quiet: Vec<i64>,
    quiet_whole: Vec<i64>,
    hold: Vec<i64>,
    stretch: Vec<i64>,
    v: Vec<i64>,
    round_trip: Vec<i64>,
}

/// Runs the benchmark and prints its rows.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let names: Vec<String> = (1..=arguments.hosts).map(|number| format!("host{number}")).collect();
    let fleet = Fleet::start(&names.iter().map(String::as_str).collect::<Vec<_>>(), &[], &[])?;
    // The API is reached from inside the server's namespace.
    let rows = fleet.server_namespace().inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(measure(arguments, &fleet.client(), &fleet.cluster))
    })??;
    if arguments.json {
        println!("{}", serde_json::json!({ "rows": rows }));
    } else {
        print(&rows);
    }
    Ok(())
}

async fn measure(arguments: &Arguments, api: &ServerClient, cluster: &Cluster) -> Result<Vec<Row>, Failure> {
    for host in &cluster.hosts {
        let order = CreateVolumeOn { host: host.name.clone(), name: VOLUME.to_owned(), size: VOLUME_SIZE };
        api.create_volume(&order).await?;
    }
    let think = Duration::from_micros(arguments.think_us);
    let writers = cluster
        .hosts
        .iter()
        .map(|host| Writer::start(&Endpoint::Unix(host.nbd_socket.clone()), think))
        .collect::<Result<Vec<_>, Failure>>()?;
    // The first snapshots meet cold caches and an empty time window.
    take(api, &writers, RequestedMode::Timed, BATCH, &mut Samples::default()).await?;
    let (mut timed, mut barrier) = (Samples::default(), Samples::default());
    let (mut left_timed, mut left_barrier) = (arguments.timed, arguments.barrier);
    // Alternating, so that both meet the same weather.
    while left_timed + left_barrier > 0 {
        let batch = BATCH.min(left_timed);
        take(api, &writers, RequestedMode::Timed, batch, &mut timed).await?;
        left_timed -= batch;
        let share = (BATCH * arguments.barrier).div_ceil(arguments.timed.max(1)).min(left_barrier);
        let batch = if left_timed == 0 { left_barrier.min(BATCH) } else { share };
        take(api, &writers, RequestedMode::Barrier, batch, &mut barrier).await?;
        left_barrier -= batch;
    }
    for writer in writers {
        writer.stop()?;
    }
    let both = |of: fn(&Samples) -> &Vec<i64>| of(&timed).iter().chain(of(&barrier)).copied().collect();
    let quiet = Samples { worst: both(|s| &s.quiet), whole: both(|s| &s.quiet_whole), ..Samples::default() };
    let row = |mode, samples: &Samples| Row {
        hosts: arguments.hosts,
        mode,
        windows: samples.worst.len(),
        worst_write_ns: quantiles(&samples.worst),
        whole_ns: quantiles(&samples.whole),
        hold_ns: quantiles(&samples.hold),
        stretch_ns: quantiles(&samples.stretch),
        v_ns: quantiles(&samples.v).p50,
        control_round_trip_ns: quantiles(&samples.round_trip).p50,
    };
    Ok(vec![row("quiet", &quiet), row("timed", &timed), row("barrier", &barrier)])
}

/// Takes `count` snapshots and deletes them.
async fn take(
    api: &ServerClient,
    writers: &[Writer],
    mode: RequestedMode,
    count: usize,
    samples: &mut Samples,
) -> Result<(), Failure> {
    let mut names = Vec::new();
    for _ in 0..count {
        tokio::time::sleep(SETTLE).await;
        let quiet_from = now();
        tokio::time::sleep(QUIET).await;
        let request = CreateRequest { mode, ..CreateRequest::default() };
        let commanded = now();
        let manifest = api.create(&request, |_| {}).await?;
        let whole = commanded..now();
        // The window's last writes may still be under way.
        tokio::time::sleep(Duration::from_nanos(TAIL.unsigned_abs())).await;
        let writes: Vec<(i64, i64)> = writers.iter().flat_map(Writer::drain).collect();
        samples.add(&manifest, &writes, quiet_from, whole);
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
    fn add(&mut self, manifest: &Manifest, writes: &[(i64, i64)], quiet_from: i64, whole: Range<i64>) {
        let cuts =
            manifest.hosts.iter().filter_map(|host| Some((host.at_ns?.as_nanos(), host.q_ns?.as_nanos())));
        let first = cuts.clone().map(|(at, _)| at).min().unwrap_or(0);
        let last = cuts.clone().map(|(_, q)| q).max().unwrap_or(0);
        let (from, until) = match (manifest.t_ns, manifest.v_ns) {
            (Some(t), Some(v)) => (t.as_nanos(), t.as_nanos() + v.get() + TAIL),
            _ => (first, last + TAIL),
        };
        let worst = |from: i64, until: i64| {
            let overlapping = writes.iter().filter(|(began, ended)| *began <= until && *ended >= from);
            overlapping.map(|(began, ended)| ended - began).max().unwrap_or(0)
        };
        self.worst.push(worst(from, until));
        self.quiet.push(worst(quiet_from, quiet_from + (until - from)));
        self.whole.push(worst(whole.start, whole.end));
        self.quiet_whole.push(worst(quiet_from, quiet_from + (whole.end - whole.start)));
        self.hold.extend(cuts.map(|(at, q)| q - at));
        let held = manifest.hosts.iter().filter(|host| host.held > 0);
        self.stretch.extend(held.map(|host| host.stretch_ns.max.cast_signed()));
        self.v.extend(manifest.v_ns.map(timesync::time::Nanos::get));
        self.round_trip.extend(manifest.control_round_trip_ns.map(timesync::time::Nanos::get));
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

/// Writes 4 KiB blocks all over a volume, one at a time.
struct Writer {
    stop: Arc<AtomicBool>,
    /// When each write began and ended.
    writes: Arc<Mutex<Vec<(i64, i64)>>>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Writer {
    fn start(endpoint: &Endpoint, think: Duration) -> Result<Self, Failure> {
        let mut client = Client::connect(endpoint, VOLUME)?;
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(Mutex::new(Vec::new()));
        let (stopping, recorded) = (Arc::clone(&stop), Arc::clone(&writes));
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
            let (mut block, data) = (0_u64, [0x5a; BLOCK as usize]);
            while !stopping.load(Ordering::Relaxed) {
                // A stride that is coprime to the number of blocks reaches them all, scattered.
                block = (block + 1_663) % (VOLUME_SIZE / BLOCK);
                let began = now();
                client.write(block * BLOCK, &data, false)?;
                let write = (began, now());
                recorded.lock().unwrap_or_else(PoisonError::into_inner).push(write);
                if !think.is_zero() {
                    std::thread::sleep(think);
                }
            }
            Ok(())
        })?;
        Ok(Writer { stop, writes, thread })
    }

    fn drain(&self) -> Vec<(i64, i64)> {
        std::mem::take(&mut self.writes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stop(self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn now() -> i64 {
    ServerClock.now().as_nanos()
}

fn quantiles(samples: &[i64]) -> Quantiles {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at =
        |percent: usize| sorted.get((sorted.len().saturating_sub(1)) * percent / 100).copied().unwrap_or(0);
    Quantiles { p50: at(50), p99: at(99), max: at(100) }
}

fn print(rows: &[Row]) {
    println!("worst write per snapshot (µs), writers at queue depth 1");
    println!(
        "{:<8} {:>5} {:>8} {:>8} {:>8} {:>9} | {:>9} {:>8} | {:>9} {:>8} | {:>9} {:>8} | {:>6} {:>8}",
        "mode",
        "hosts",
        "windows",
        "p50",
        "p99",
        "max",
        "whole p50",
        "p99",
        "hold p50",
        "p99",
        "held p50",
        "p99",
        "V",
        "control"
    );
    #[expect(clippy::cast_precision_loss, reason = "one decimal is printed")]
    let micros = |nanos: i64| format!("{:.1}", nanos as f64 / 1e3);
    for row in rows {
        println!(
            "{:<8} {:>5} {:>8} {:>8} {:>8} {:>9} | {:>9} {:>8} | {:>9} {:>8} | {:>9} {:>8} | {:>6} {:>8}",
            row.mode,
            row.hosts,
            row.windows,
            micros(row.worst_write_ns.p50),
            micros(row.worst_write_ns.p99),
            micros(row.worst_write_ns.max),
            micros(row.whole_ns.p50),
            micros(row.whole_ns.p99),
            micros(row.hold_ns.p50),
            micros(row.hold_ns.p99),
            micros(row.stretch_ns.p50),
            micros(row.stretch_ns.p99),
            micros(row.v_ns),
            micros(row.control_round_trip_ns),
        );
    }
    if let [quiet, timed, barrier] = rows {
        let cost = |row: &Row, at: fn(&Quantiles) -> i64| at(&row.worst_write_ns) - at(&quiet.worst_write_ns);
        println!(
            "cost beyond quiet: timed {} (p50) {} (p99), barrier {} (p50) {} (p99)",
            micros(cost(timed, |q| q.p50)),
            micros(cost(timed, |q| q.p99)),
            micros(cost(barrier, |q| q.p50)),
            micros(cost(barrier, |q| q.p99)),
        );
    }
}
