//! Timed snapshots on a fleet in network namespaces whose processes are killed, stopped and cut off at random, while
//! tokens write on it: how many were certified, and whether one of those is torn. The test of the same name is short.
//! `--calm`: on a fleet that is left alone; and snapshots taken wrongly on purpose, to see how much the check sees.

use std::time::Duration;

use harness::chaos::{Plan, run as carry_out};
use harness::controls;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Options of the run.
#[derive(clap::Args)]
pub struct Arguments {
    /// Hosts, each with one volume.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(2..=60))]
    hosts: u8,
    /// Ends after so many certified snapshots.
    #[arg(long, default_value_t = 1000)]
    snapshots: usize,
    /// Ends after so many seconds at the latest.
    #[arg(long, default_value_t = 24 * 3600)]
    seconds: u64,
    /// Nothing is killed, stopped or cut off
    #[arg(long)]
    calm: bool,
    /// With `--calm`: snapshots of each kind that are taken wrongly on purpose
    #[arg(long, default_value_t = 100)]
    controls: usize,
    /// What chance follows; without it another number in each run.
    #[arg(long)]
    seed: Option<u64>,
}

/// Carries it out and prints what happened.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let seed = arguments.seed.unwrap_or_else(|| std::process::id().into());
    let plan = Plan {
        hosts: arguments.hosts,
        seed,
        snapshots: arguments.snapshots,
        time: Duration::from_secs(arguments.seconds),
        calm: arguments.calm,
    };
    println!("{} hosts, --seed {seed}\n", plan.hosts);
    let outcome = carry_out(&plan);
    println!("{outcome}");
    if arguments.calm && arguments.controls > 0 {
        let controls = controls::run(plan.hosts, arguments.controls);
        println!("{controls}");
        if controls.certified_wrongly() > 0 {
            return Err("a snapshot that was taken wrongly is certified, and torn".into());
        }
    }
    if outcome.torn.is_empty() { Ok(()) } else { Err("a certified snapshot is torn".into()) }
}
