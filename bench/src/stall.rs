//! What a snapshot costs its writers.
//!
//! A writer at queue depth 1 on each host. Per snapshot: the worst write that overlaps [T, T + V + 5 ms] (barrier: from
//! the first cut to 5 ms after the last release), against the same statistic over a window of the same length shortly
//! before, with no snapshot. A percentile over all writes would hide the cost: one write in thousands is hit. Beside it,
//! the same over the whole snapshot, from the command to its end: the daemons' work before and after the cut takes its
//! share of the processors too.
//!
//! Sections: hosts in network namespaces ([`fleet`]), the same with their server a millisecond away, and what else
//! people snapshot with ([`peers`]).

mod fleet;
mod peers;
pub mod writer;

use std::ops::Range;

use clap::ValueEnum;
use serde::Serialize;
use timesync::clock::ServerClock;

use crate::quantiles::Quantiles;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a window has after its release.
const TAIL: i64 = 5_000_000;

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to measure
    #[arg(long = "section", value_enum, default_values_t = [Section::Straight, Section::Far, Section::Peers])]
    sections: Vec<Section>,
    /// Numbers of hosts, each with one writer; a far server has the first one
    #[arg(long, value_delimiter = ',', default_values_t = [3, 16])]
    hosts: Vec<u8>,
    /// Timed snapshots with each number of hosts and each policy
    #[arg(long, default_value_t = 200)]
    timed: usize,
    /// Barrier snapshots
    #[arg(long, default_value_t = 100)]
    barrier: usize,
    /// Snapshots of each peer
    #[arg(long, default_value_t = 60)]
    peers: usize,
    /// How long a writer thinks between two writes, in microseconds. Without a pause, as many busy hosts as this has
    /// on a machine with fewer processors wait for each other: the rare worst writes are then the scheduler's, in every
    /// mode
    #[arg(long, default_value_t = 200)]
    think_us: u64,
    /// Prints the rows as JSON
    #[arg(long)]
    json: bool,
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// Server and hosts on one switch
    Straight,
    /// A server to which every round trip takes a millisecond more
    Far,
    /// fsfreeze of ext4, and QEMU's transaction of blockdev-snapshot
    Peers,
}

/// One mode's figures, in nanoseconds.
#[derive(Serialize)]
struct Row {
    section: &'static str,
    hosts: u8,
    mode: String,
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
    /// Timed mode: snapshots that took more than one attempt.
    repeated: usize,
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
    repeated: usize,
}

impl Samples {
    /// Takes the worst write of `window`, and of one as long that began, with no snapshot, at `quiet_from`; and the same
    /// of the whole snapshot.
    fn add(&mut self, writes: &[(i64, i64)], quiet_from: i64, window: Range<i64>, whole: Range<i64>) {
        let worst = |from: i64, until: i64| writer::worst(writes, from, until);
        self.worst.push(worst(window.start, window.end));
        self.quiet.push(worst(quiet_from, quiet_from + (window.end - window.start)));
        self.whole.push(worst(whole.start, whole.end));
        self.quiet_whole.push(worst(quiet_from, quiet_from + (whole.end - whole.start)));
    }

    fn row(&self, section: &'static str, hosts: u8, mode: &str) -> Row {
        Row {
            section,
            hosts,
            mode: mode.to_owned(),
            windows: self.worst.len(),
            worst_write_ns: Quantiles::of(&self.worst),
            whole_ns: Quantiles::of(&self.whole),
            hold_ns: Quantiles::of(&self.hold),
            stretch_ns: Quantiles::of(&self.stretch),
            v_ns: Quantiles::of(&self.v).p50,
            control_round_trip_ns: Quantiles::of(&self.round_trip).p50,
            repeated: self.repeated,
        }
    }
}

/// The row of the windows in which nothing happened, and one for each mode.
fn rows(section: &'static str, hosts: u8, modes: &[(String, Samples)]) -> Vec<Row> {
    let all =
        |of: fn(&Samples) -> &Vec<i64>| modes.iter().flat_map(|(_, samples)| of(samples)).copied().collect();
    let quiet = Samples { worst: all(|s| &s.quiet), whole: all(|s| &s.quiet_whole), ..Samples::default() };
    let quiet = quiet.row(section, hosts, "quiet");
    [quiet].into_iter().chain(modes.iter().map(|(mode, samples)| samples.row(section, hosts, mode))).collect()
}

/// Runs the benchmark and prints its rows.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut show = |part: Vec<Row>| {
        if !arguments.json {
            print(&part);
        }
        rows.extend(part);
    };
    for section in &arguments.sections {
        match section {
            Section::Straight => {
                for &hosts in &arguments.hosts {
                    show(fleet::straight(arguments, hosts)?);
                }
            }
            Section::Far => {
                let hosts = arguments.hosts.first().copied().unwrap_or(3);
                show(fleet::far(arguments, hosts)?);
                show(fleet::far_with_known_delays(arguments, hosts)?);
            }
            Section::Peers => {
                show(peers::ext4(arguments)?);
                show(peers::qemu(arguments)?);
            }
        }
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "rows": rows }));
    }
    Ok(())
}

fn now() -> i64 {
    ServerClock.now().as_nanos()
}

fn print(rows: &[Row]) {
    let Some(quiet) = rows.first() else { return };
    println!(
        "{}, {} hosts: worst write per snapshot (µs), writers at queue depth 1",
        quiet.section, quiet.hosts
    );
    println!(
        "  {:<26} {:>7} {:>8} {:>8} {:>9} | {:>9} {:>8} | {:>9} {:>8} | {:>9} {:>8} | {:>6} {:>8} {:>5}",
        "mode",
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
        "control",
        "again"
    );
    #[expect(clippy::cast_precision_loss, reason = "one decimal is printed")]
    let micros = |nanos: i64| format!("{:.1}", nanos as f64 / 1e3);
    for row in rows {
        println!(
            "  {:<26} {:>7} {:>8} {:>8} {:>9} | {:>9} {:>8} | {:>9} {:>8} | {:>9} {:>8} | {:>6} {:>8} {:>5}",
            row.mode,
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
            row.repeated,
        );
    }
    let cost =
        |row: &Row, at: fn(&Quantiles) -> i64| micros(at(&row.worst_write_ns) - at(&quiet.worst_write_ns));
    let costs = rows[1..]
        .iter()
        .map(|row| format!("{} {} (p50) {} (p99)", row.mode, cost(row, |q| q.p50), cost(row, |q| q.p99)));
    println!("  cost beyond quiet: {}\n", costs.collect::<Vec<_>>().join(", "));
}
