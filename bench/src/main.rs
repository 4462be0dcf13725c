//! Benchmarks. Each prints medians and ratios against a peer in the same run; `--json` gives the rows.

mod backends;
mod chaos;
mod coverage;
mod cut_scale;
mod nbd_peers;
mod probe_scale;
mod quantiles;
mod stall;
mod time_peers;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Benchmarks of Coeval, side by side with what one would use instead")]
struct Arguments {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Subcommand)]
enum Benchmark {
    /// How many hosts one server can probe, and how many requests a module can answer.
    ProbeScale(probe_scale::Arguments),
    /// How long a snapshot pauses volumes outside Coeval, beside the stretch of its own.
    Backends(backends::Arguments),
    /// Whether the bound is ever wrong, and how much narrower it could be, against known truth.
    Coverage(coverage::Arguments),
    /// How long a snapshot takes with 3 to 10 000 hosts, from the command to the certificate.
    CutScale(cut_scale::Arguments),
    /// Timed snapshots on a fleet whose processes are killed, stopped and cut off at random.
    Chaos(chaos::Arguments),
    /// Our NBD server against nbdkit, nbd-server and QEMU's, with and without snapshots.
    NbdPeers(nbd_peers::Arguments),
    /// What a snapshot costs its writers: timed against barrier against none.
    Stall(stall::Arguments),
    /// Our bound against chronyd and ptp4l, on one virtual Ethernet in one kernel.
    TimePeers(time_peers::Arguments),
}

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    match Arguments::parse().benchmark {
        Benchmark::ProbeScale(arguments) => probe_scale::run(&arguments),
        Benchmark::Backends(arguments) => backends::run(&arguments),
        Benchmark::Chaos(arguments) => chaos::run(&arguments),
        Benchmark::Coverage(arguments) => coverage::run(&arguments),
        Benchmark::CutScale(arguments) => cut_scale::run(&arguments),
        Benchmark::NbdPeers(arguments) => nbd_peers::run(&arguments),
        Benchmark::Stall(arguments) => stall::run(&arguments),
        Benchmark::TimePeers(arguments) => time_peers::run(&arguments),
    }
}
