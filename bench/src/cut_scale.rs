//! How long a snapshot takes with many hosts, from the command to the certificate, and what it takes.
//!
//! Up to a hundred hosts are real ones: see [`real`]. With a thousand and with ten thousand, everything but the
//! messages is: see [`simulated`].

mod floor;
mod real;
mod simulated;

use serde::Serialize;

use crate::quantiles::Quantiles;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Arguments {
    /// Numbers of real hosts.
    #[arg(long, value_delimiter = ',', default_values_t = [3, 10, 30, 100])]
    hosts: Vec<u16>,
    /// Numbers of simulated hosts.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000])]
    simulated: Vec<u32>,
    /// Snapshots in each mode, with each number of real hosts.
    #[arg(long, default_value_t = 15)]
    snapshots: usize,
    /// Prints the rows as JSON.
    #[arg(long)]
    json: bool,
}

/// One mode with one number of hosts. Times in ns.
#[derive(Serialize)]
struct Row {
    hosts: usize,
    /// `real`, or `simulated`: then the times are those of the arithmetic, and no message was sent.
    kind: &'static str,
    mode: &'static str,
    snapshots: usize,
    /// Attempts of all of them.
    attempts: usize,
    /// From the command to the certificate.
    certificate_ns: Quantiles,
    /// From the command until every host has named the snapshot.
    named_ns: Quantiles,
    /// Requests and answers of the control plane, in one snapshot.
    control_messages: u64,
    /// Exchanges of timestamps in one snapshot, those that went on anyway included.
    exchanges: u64,
    /// Null in barrier mode.
    v_ns: Option<i64>,
    margin_ns: Option<i64>,
    /// From T to the release, on the hosts that have a writer.
    stretch_ns: Quantiles,
    /// How late as many threads as there are hosts go on at one instant: see [`floor`].
    floor_ns: Option<Quantiles>,
    /// What the time between command and certificate went to, by step; medians.
    steps_ns: Vec<(String, i64)>,
}

/// Runs the benchmark and prints its rows.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut show = |row: Row| {
        if !arguments.json {
            print(&row, rows.is_empty());
        }
        rows.push(row);
    };
    for &hosts in &arguments.hosts {
        for row in real::measure(hosts, arguments.snapshots)? {
            show(row);
        }
    }
    for &hosts in &arguments.simulated {
        show(simulated::measure(hosts)?);
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "rows": rows }));
    }
    Ok(())
}

fn print(row: &Row, first: bool) {
    if first {
        println!("times in ms, V, margin and stretch in µs");
        println!(
            "{:>6} {:<10} {:<8} {:>9} {:>7} {:>7} {:>7} {:>9} {:>8} {:>9} {:>7} {:>7} {:>8} {:>7} {:>7} {:>8}",
            "hosts",
            "kind",
            "mode",
            "attempts",
            "certif.",
            "p99",
            "named",
            "messages",
            "exchang.",
            "V",
            "margin",
            "stretch",
            "p99",
            "max",
            "floor",
            "p99"
        );
    }
    #[expect(clippy::cast_precision_loss, reason = "one decimal is printed")]
    let in_units = |nanos: i64, unit: f64| format!("{:.1}", nanos as f64 / unit);
    let (millis, micros) = (|nanos| in_units(nanos, 1e6), |nanos| in_units(nanos, 1e3));
    let or_dash = |nanos: Option<i64>| nanos.map_or_else(|| "-".to_owned(), micros);
    println!(
        "{:>6} {:<10} {:<8} {:>9} {:>7} {:>7} {:>7} {:>9} {:>8} {:>9} {:>7} {:>7} {:>8} {:>7} {:>7} {:>8}",
        row.hosts,
        row.kind,
        row.mode,
        format!("{}/{}", row.snapshots, row.attempts),
        millis(row.certificate_ns.p50),
        millis(row.certificate_ns.p99),
        millis(row.named_ns.p50),
        row.control_messages,
        row.exchanges,
        or_dash(row.v_ns),
        or_dash(row.margin_ns),
        micros(row.stretch_ns.p50),
        micros(row.stretch_ns.p99),
        micros(row.stretch_ns.max),
        or_dash(row.floor_ns.map(|floor| floor.p50)),
        or_dash(row.floor_ns.map(|floor| floor.p99)),
    );
    let steps: Vec<String> =
        row.steps_ns.iter().map(|(step, nanos)| format!("{step} {}", millis(*nanos))).collect();
    println!("       {}", steps.join(", "));
}
