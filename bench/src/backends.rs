//! How long a snapshot pauses volumes outside Coeval, beside the stretch of Coeval's own, in one run.
//!
//! Two hosts on this machine, each with a volume of every kind: file systems in images that are copied by reflink or as a
//! btrfs subvolume, frozen meanwhile, and the built-in one; and, where `tests/vm/prepare` was run, a virtual machine beside
//! a built-in volume. One kind after the other is snapshotted on both hosts at once, under a writer on each of its volumes.
//!
//! The target, for each pause: from the first write that is blocked to the first that is released, as the writer sees it,
//! no more than the freeze + the longer one of the snapshot command and what was left until T + V + 1 ms.
//!
//! An emulated machine goes on slowly after it stood still: the same without any snapshot shows by how much.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Place};
use harness::external::{ImageVolume, Means};
use harness::filesystem::{Kind, with_own_mounts};
use harness::machine::{Disk, Machine};
use harness::tools::run as run_program;
use harness::{coeval, eventually};
use serde::Serialize;
use serde_json::json;
use snapshot::backend::qmp::Qmp;
use snapshot::client::ServerClient;
use snapshot::http::Connector;
use snapshot::messages::{CreateRequest, CreateVolumeOn, HostResult, Manifest, Member, RequestedMode};
use snapshot::nbd::Endpoint;
use snapshot::orders::PauseTimes;
use timesync::clock::ServerClock;
use timesync::report::Report;
use timesync::time::Nanos;

use crate::quantiles::Quantiles;
use crate::stall::writer::{SIZE, Writer, worst};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const HOSTS: [&str; 2] = ["a", "b"];
const KINDS: [(&str, Means); 3] = [
    ("xfs-reflink", Means::XfsReflink),
    ("btrfs-reflink", Means::BtrfsReflink),
    ("btrfs-subvolume", Means::BtrfsSubvolume),
];
const MACHINE: &str = "qemu";
/// The machine again: only `stop` and `cont`.
const STOPPED: &str = "qemu, stop alone";
/// For so long: about as long as in a snapshot.
const STOPPED_FOR: Duration = Duration::from_millis(13);
const BUILT_IN: &str = "built-in";
/// Between two writes.
const THINK: Duration = Duration::from_micros(200);
/// Between two snapshots.
const SETTLE: Duration = Duration::from_millis(50);
/// What is allowed beyond freeze, command, lead and V.
const SLACK: i64 = 1_000_000;

/// Options of the benchmark. It needs root.
#[derive(clap::Args)]
pub struct Arguments {
    /// Snapshots of each kind.
    #[arg(long, default_value_t = 100)]
    snapshots: usize,
    /// Only the virtual machine.
    #[arg(long)]
    machine: bool,
    /// Prints the rows as JSON.
    #[arg(long)]
    json: bool,
}

/// One kind's figures, in nanoseconds, over all hosts and snapshots.
#[derive(Serialize)]
struct Row {
    backend: &'static str,
    snapshots: usize,
    /// Snapshots that took more than one attempt.
    repeated: usize,
    /// Until the pause was confirmed.
    pausing: Quantiles,
    /// From then on, what the snapshot took.
    cutting: Quantiles,
    /// From then on, what was left until T + V.
    left: Quantiles,
    /// From the beginning of the pause to the resume; for the built-in volume, the longest stretch of a reply.
    held: Quantiles,
    /// The worst write around the cut.
    worst_write: Quantiles,
    /// The worst write of a window of the same length without a snapshot.
    quiet: Quantiles,
    /// The worst write beyond `pausing` and the longer one of `cutting` and `left`.
    beyond: Quantiles,
}

#[derive(Default)]
struct Samples {
    repeated: usize,
    pausing: Vec<i64>,
    cutting: Vec<i64>,
    left: Vec<i64>,
    held: Vec<i64>,
    worst_write: Vec<i64>,
    quiet: Vec<i64>,
    beyond: Vec<i64>,
}

/// Runs it.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let rows = with_own_mounts(|| measure(arguments))?;
    if arguments.json {
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }
    println!("p50 / p99 in ms, of {} snapshots of two hosts", arguments.snapshots);
    let headings = ["freeze", "command", "to T + V", "held", "worst write", "quiet", "beyond"];
    println!("{:<16}{}", "", headings.map(|heading| format!("{heading:>17}")).concat());
    for row in &rows {
        let cell =
            |figure: &Quantiles| format!("{:.2} / {:.2}", figure.p50 as f64 / 1e6, figure.p99 as f64 / 1e6);
        let figures =
            [&row.pausing, &row.cutting, &row.left, &row.held, &row.worst_write, &row.quiet, &row.beyond];
        println!("{:<16}{}", row.backend, figures.map(|figure| format!("{:>17}", cell(figure))).concat());
    }
    for row in rows.iter().filter(|row| ![BUILT_IN, STOPPED].contains(&row.backend)) {
        let verdict = if row.beyond.p50 <= SLACK { "kept" } else { "MISSED" };
        println!(
            "{}: write blocked ≤ freeze + max(command, to T + V) + 1 ms at p50: {verdict}; {} snapshots took more than one attempt",
            row.backend, row.repeated
        );
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Vec<Row>, Failure> {
    let kinds = if arguments.machine { &[][..] } else { &KINDS };
    let directory = tempfile::tempdir()?;
    let machine = start_machine(directory.path())?;
    let mut volumes = Vec::new();
    let mut hosts = Vec::new();
    for host in HOSTS {
        let mut config = String::new();
        for &(name, means) in kinds {
            let volume =
                ImageVolume::new(&directory.path().join(format!("{host}-{name}")), means, Kind::Ext4);
            config += &volume.config(name, "");
            volumes.push((name, volume));
        }
        if machine.is_some() && host == HOSTS[0] {
            let (monitor, overlays) = (directory.path().join("vm.qmp"), directory.path().join("overlays"));
            config += &format!(
                "[[backend]]\nkind = \"qemu\"\nvolume = \"{MACHINE}\"\nqmp = {monitor:?}\ndisks = [\"vda\"]\n\
                 directory = {overlays:?}\n"
            );
        }
        hosts.push((host, Place { config, ..Place::loopback(&[]) }));
    }
    let cluster = Cluster::start(coeval(), &hosts, &Place::loopback(&[]), |_, address| Ok(address))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let api = ServerClient::new(&Connector::new(None, false)?, &cluster.api)?;
    for host in HOSTS {
        let order = CreateVolumeOn { host: host.to_owned(), name: BUILT_IN.to_owned(), size: SIZE };
        runtime.block_on(api.create_volume(&order))?;
    }
    eventually(|| {
        let report: Report =
            serde_json::from_value(runtime.block_on(api.skew()).map_err(|error| error.to_string())?)
                .map_err(|error| error.to_string())?;
        let all = report.hosts.iter().all(|host| host.hard_ns.is_some());
        if all { Ok(()) } else { Err("not every clock is bounded".to_owned()) }
    });
    let member = |host: &str, volume: &str| Member { host: host.to_owned(), volume: volume.to_owned() };
    let bench = Bench { runtime: &runtime, api: &api, snapshots: arguments.snapshots };
    let mut rows = Vec::new();
    for &(name, _) in kinds {
        let group = HOSTS.map(|host| member(host, name));
        let of_kind = volumes.iter().filter(|(kind, _)| *kind == name);
        let writers = of_kind.map(|(_, volume)| on_file(&volume.mount_point().join("written")));
        rows.push(bench.series(name, &group, writers.collect::<Result<_, _>>()?)?);
    }
    let built_in =
        |host: usize| Writer::start(&Endpoint::Unix(cluster.hosts[host].nbd_socket.clone()), BUILT_IN, THINK);
    if let Some(machine) = &machine {
        let group = [member(HOSTS[0], MACHINE), member(HOSTS[1], BUILT_IN)];
        let disks = machine.disks();
        let writers = vec![Writer::start(&disks[0].endpoint, &disks[0].name, THINK)?, built_in(1)?];
        rows.push(bench.series(MACHINE, &group, writers)?);
        rows.push(bench.stops(machine)?);
    }
    let group = HOSTS.map(|host| member(host, BUILT_IN));
    rows.push(bench.series(BUILT_IN, &group, vec![built_in(0)?, built_in(1)?])?);
    Ok(rows)
}

fn on_file(path: &Path) -> Result<Writer, Failure> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.set_len(SIZE)?;
    Writer::on(THINK, move |offset, data| Ok(file.write_all_at(data, offset)?))
}

/// A machine with one disk, if there is what it needs.
fn start_machine(directory: &Path) -> Result<Option<Machine>, Failure> {
    if !Machine::is_prepared() {
        eprintln!("NOT MEASURED: a virtual machine; as root, tests/vm/prepare makes it (6 min)");
        return Ok(None);
    }
    let image = directory.join("vda.qcow2");
    let mut create = std::process::Command::new("qemu-img");
    run_program(create.args(["create", "-q", "-f", "qcow2"]).arg(&image).arg(SIZE.to_string()));
    Ok(Some(Machine::start(directory, "vm", &[Disk { id: "vda", format: "qcow2", image }])))
}

/// What all series have in common.
struct Bench<'a> {
    runtime: &'a tokio::runtime::Runtime,
    api: &'a ServerClient,
    snapshots: usize,
}

impl Bench<'_> {
    /// Stops a machine and sets it running again, by somebody else than Coeval.
    fn stops(&self, machine: &Machine) -> Result<Row, Failure> {
        let disk = &machine.disks()[0];
        let writer = Writer::start(&disk.endpoint, &disk.name, THINK)?;
        let patience = Nanos::from_millis(20_000);
        let mut monitor = Qmp::connect(&machine.monitor, patience)?;
        let mut samples = Samples::default();
        for _ in 0..self.snapshots {
            std::thread::sleep(SETTLE);
            let from = ServerClock.now();
            monitor.execute("stop", json!({}), patience)?;
            let stopped = ServerClock.now();
            std::thread::sleep(STOPPED_FOR);
            let left = ServerClock.now() - stopped;
            monitor.execute("cont", json!({}), patience)?;
            let until = ServerClock.now();
            std::thread::sleep(SETTLE);
            samples.pause(
                &writer.drain(),
                from.as_nanos(),
                until - from,
                [stopped - from, Nanos::ZERO, left],
            );
        }
        writer.stop()?;
        Ok(samples.row(STOPPED, self.snapshots))
    }

    /// Snapshots a group that has one volume on each of the hosts, each under its writer.
    fn series(&self, backend: &'static str, group: &[Member], writers: Vec<Writer>) -> Result<Row, Failure> {
        let mut samples = Samples::default();
        // The first one meets cold caches, and no pause that was measured.
        for number in 0..=self.snapshots {
            let order = CreateRequest {
                name: Some(format!("{backend}-{number}")),
                group: group.to_vec(),
                mode: RequestedMode::Timed,
                attempts: Some(20),
                ..CreateRequest::default()
            };
            std::thread::sleep(SETTLE);
            let manifest = self.runtime.block_on(self.api.create(&order, |_| {}))?;
            std::thread::sleep(SETTLE);
            let writes: Vec<_> = writers.iter().map(Writer::drain).collect();
            for (host, writes) in manifest.hosts.iter().zip(&writes).filter(|_| number > 0) {
                samples.add(backend, &manifest, host, writes);
            }
            samples.repeated += usize::from(number > 0 && manifest.attempts > 1);
            // The digests of the built-in volume may be under way.
            eventually(|| self.runtime.block_on(self.api.delete(&manifest.name)));
        }
        for writer in writers {
            writer.stop()?;
        }
        Ok(samples.row(backend, self.snapshots))
    }
}

impl Samples {
    /// One host's part in a snapshot. All clocks are one: nothing is simulated, and the writers read the same one.
    fn add(&mut self, backend: &str, manifest: &Manifest, host: &HostResult, writes: &[(i64, i64)]) {
        let (Some(at), Some(v)) = (host.at_ns, manifest.v_ns) else { return };
        let pause = host.volumes.iter().find_map(|volume| volume.external.as_ref()?.pause);
        if let Some(PauseTimes { p_ns: p, pausing_ns, cutting_ns, paused_ns }) = pause {
            let from = (p - pausing_ns).as_nanos();
            self.pause(writes, from, paused_ns, [pausing_ns, cutting_ns, at + v - p]);
        } else if backend == BUILT_IN {
            let (from, until) = (at.as_nanos(), (at + v).as_nanos());
            self.held.push(host.stretch_ns.max.cast_signed());
            self.worst_write.push(worst(writes, from, until + SLACK));
            self.quiet.push(worst(writes, 2 * from - until - SLACK, from));
        }
    }

    /// A pause that began at `from`, and was over `paused` later.
    fn pause(
        &mut self,
        writes: &[(i64, i64)],
        from: i64,
        paused: Nanos,
        [pausing, cutting, left]: [Nanos; 3],
    ) {
        let worst_write = worst(writes, from, from + paused.get());
        self.pausing.push(pausing.get());
        self.cutting.push(cutting.get());
        self.left.push(left.get());
        self.held.push(paused.get());
        self.worst_write.push(worst_write);
        // As long before the pause: writes that were over by then.
        let before = writes.iter().filter(|(began, ended)| *began >= from - paused.get() && *ended < from);
        self.quiet.push(before.map(|(began, ended)| ended - began).max().unwrap_or(0));
        self.beyond.push(worst_write - (pausing + cutting.max(left)).get());
    }

    fn row(&self, backend: &'static str, snapshots: usize) -> Row {
        Row {
            backend,
            snapshots,
            repeated: self.repeated,
            pausing: Quantiles::of(&self.pausing),
            cutting: Quantiles::of(&self.cutting),
            left: Quantiles::of(&self.left),
            held: Quantiles::of(&self.held),
            worst_write: Quantiles::of(&self.worst_write),
            quiet: Quantiles::of(&self.quiet),
            beyond: Quantiles::of(&self.beyond),
        }
    }
}
