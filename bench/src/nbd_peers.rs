//! Our NBD server beside those that people use today: the same fio jobs over Unix sockets, on one file system.
//!
//! Every server has a file of its own, written in full beforehand, so that nobody allocates while it is measured, and in
//! the page cache. All servers run all the time; they take turns job by job, so that all meet the same weather. Figures
//! are medians over turns. With snapshots, the peers are qcow2 images with as many backing files: in both, each layer
//! has a share of the blocks, chosen at random. A null server of ours, which answers without touching data, is the
//! client's ceiling.

mod jobs;
mod servers;

use serde::Serialize;

use jobs::{JOBS, Job, Measured};
use servers::{Kind, Server, Site};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Arguments {
    /// Turns of each server in each job.
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// MiB of each volume or file.
    #[arg(long, default_value_t = 256)]
    size: u64,
    /// Length of the requests that write the files at first. Long ones leave the page cache in long pieces, in which
    /// short writes are slow; the default does not, with any server.
    #[arg(long, default_value = "8k")]
    fill: String,
    /// One short turn: shows that all works, not how fast.
    #[arg(long)]
    quick: bool,
    /// Only this job (may be repeated).
    #[arg(long = "job")]
    jobs: Vec<String>,
    /// Only this server (may be repeated).
    #[arg(long = "server")]
    servers: Vec<String>,
    /// Only so many connections (may be repeated).
    #[arg(long = "connections", default_values_t = [1, 4])]
    connections: Vec<u32>,
    /// Only so many snapshots or backing files (may be repeated).
    #[arg(long = "chain", default_values_t = [0, 1, 8])]
    chains: Vec<usize>,
    /// Prints the rows as JSON.
    #[arg(long)]
    json: bool,
}

/// One server's figures in one job.
#[derive(Serialize)]
struct Row {
    job: &'static str,
    server: &'static str,
    connections: u32,
    /// Snapshots, or backing files.
    chain: usize,
    iops: f64,
    /// Of one request; in jobs with a sync after each write, of the sync.
    p50_ns: u64,
    p99_ns: u64,
    /// The server's processor time, user and system.
    cpu_us_per_op: f64,
    /// Null where no peer took part.
    ratio_to_best_peer: Option<f64>,
    /// Not of the client's ceiling.
    #[serde(skip)]
    is_peer: bool,
}

/// Runs the benchmark and prints its rows.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (turns, seconds) =
        if arguments.quick { (1, 0.3) } else { (arguments.turns.max(1), arguments.seconds) };
    let wanted = |list: &[String], name: &str| list.is_empty() || list.iter().any(|one| one == name);
    servers::check_programs()?;
    let site = Site::new(arguments.size << 20, &arguments.fill)?;
    let mut rows = Vec::new();
    for &chain in &arguments.chains {
        let kinds = Kind::ALL
            .into_iter()
            .filter(|kind| kind.takes_part(chain) && wanted(&arguments.servers, kind.name()));
        // Opened one after the other, and each closed again with its files at the end of its chain length.
        let mut servers =
            kinds.map(|kind| Server::start(&site, kind, chain)).collect::<Result<Vec<_>, _>>()?;
        for job in JOBS.iter().filter(|job| job.takes_part(chain) && wanted(&arguments.jobs, job.name)) {
            for &connections in &arguments.connections {
                let measured = take_turns(&site, &mut servers, job, connections, turns, seconds)?;
                rows.extend(group(job, connections, chain, &servers, &measured));
            }
        }
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "rows": rows }));
    } else {
        print(&rows);
    }
    Ok(())
}

/// Each server's measurements, in the servers' order.
fn take_turns(
    site: &Site,
    servers: &mut [Server],
    job: &Job,
    connections: u32,
    turns: usize,
    seconds: f64,
) -> Result<Vec<Vec<Measured>>, Failure> {
    let mut measured: Vec<Vec<Measured>> = servers.iter().map(|_| Vec::new()).collect();
    for turn in 1..=turns {
        for (server, measured) in servers.iter_mut().zip(&mut measured) {
            eprintln!(
                "chain of {}, {}, {connections} connections, turn {turn} of {turns}: {}",
                server.chain,
                job.name,
                server.kind.name()
            );
            let run = jobs::measure(site, server, job, connections, seconds);
            measured.push(run.map_err(|why| format!("{}, {}: {why}", server.kind.name(), job.name))?);
        }
    }
    Ok(measured)
}

/// The rows of one comparison.
fn group(
    job: &Job,
    connections: u32,
    chain: usize,
    servers: &[Server],
    measured: &[Vec<Measured>],
) -> Vec<Row> {
    let mut rows: Vec<Row> = servers
        .iter()
        .zip(measured)
        .map(|(server, turns)| Row {
            job: job.name,
            server: server.kind.name(),
            connections,
            chain,
            iops: median(turns, |turn| turn.iops),
            p50_ns: median(turns, |turn| turn.p50_ns as f64) as u64,
            p99_ns: median(turns, |turn| turn.p99_ns as f64) as u64,
            cpu_us_per_op: median(turns, |turn| turn.cpu_us_per_op),
            ratio_to_best_peer: None,
            is_peer: server.kind.is_peer(),
        })
        .collect();
    let best = best_peer(&rows).map(|best| best.iops);
    for row in &mut rows {
        row.ratio_to_best_peer = best.map(|best| row.iops / best);
    }
    rows
}

fn best_peer(rows: &[Row]) -> Option<&Row> {
    rows.iter().filter(|row| row.is_peer).max_by(|a, b| a.iops.total_cmp(&b.iops))
}

fn median(turns: &[Measured], of: impl Fn(&Measured) -> f64) -> f64 {
    let mut values: Vec<f64> = turns.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print(all: &[Row]) {
    let same = |a: &Row, b: &Row| (a.job, a.connections, a.chain) == (b.job, b.connections, b.chain);
    for rows in all.chunk_by(same) {
        let [first, ..] = rows else { continue };
        println!("\n{}, {} connections, chain of {}", first.job, first.connections, first.chain);
        println!(
            "{:<22} {:>9} {:>9} {:>9} {:>8} {:>14}",
            "", "IOPS", "p50 µs", "p99 µs", "CPU µs", "of best peer"
        );
        for row in rows {
            let ratio = row.ratio_to_best_peer.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            println!(
                "{:<22} {:>9.0} {:>9.1} {:>9.1} {:>8.2} {ratio:>14}",
                row.server,
                row.iops,
                row.p50_ns as f64 / 1e3,
                row.p99_ns as f64 / 1e3,
                row.cpu_us_per_op,
            );
        }
        summarise(first, rows, all);
    }
}

/// What ours is measured by: the best peer, the client's ceiling, and itself without snapshots.
fn summarise(at: &Row, rows: &[Row], all: &[Row]) {
    let is = |row: &&Row, kind: Kind| row.server == kind.name();
    let Some(ours) = rows.iter().find(|row| is(row, Kind::Ours)) else { return };
    let mut said = Vec::new();
    if let Some(best) = best_peer(rows) {
        said.push(format!(
            "processor time of the best peer's: {:.2}",
            ours.cpu_us_per_op / best.cpu_us_per_op
        ));
    }
    if let Some(null) = rows.iter().find(|row| is(row, Kind::Null)) {
        said.push(format!("IOPS of the null server's: {:.2}", ours.iops / null.iops));
    }
    // A first write is compared with one into a file that is there.
    let job = at.job.trim_start_matches("first-");
    let alone =
        |row: &&Row| is(row, Kind::Ours) && (row.job, row.connections, row.chain) == (job, at.connections, 0);
    if at.chain > 0
        && let Some(alone) = all.iter().find(alone)
    {
        said.push(format!("IOPS of those without snapshots: {:.2}", ours.iops / alone.iops));
    }
    if !said.is_empty() {
        println!("coeval's {}", said.join(", "));
    }
}
