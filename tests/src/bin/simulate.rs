//! Runs seeds of the simulator: `cargo run --release -p coeval-tests --features simulator --bin simulate -- --help`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test program fails")]

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use harness::simulator::{Report, run};
use snapshot::simulation::Mutation;

#[derive(Parser)]
#[command(about = "Runs the product in simulated worlds, one for each seed, and checks what must be true")]
struct Arguments {
    /// The seeds, the last one excluded: FROM..TO
    #[arg(long, value_parser = seeds, default_value = "0..1000")]
    seeds: Range<u64>,
    /// Hosts in every world; by default the seed decides (2 to 5).
    #[arg(long)]
    hosts: Option<usize>,
    /// With each mistake built in, counts the seeds until one notices.
    #[arg(long)]
    mutations: bool,
    /// Tells the story of one seed instead.
    #[arg(long)]
    trace: Option<u64>,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.ok_or_else(|| format!("{text} is not FROM..TO"))
}

fn main() {
    let Arguments { seeds, hosts, mutations, trace } = Arguments::parse();
    if let Some(seed) = trace {
        let report = run(seed, hosts, None, true);
        report.trace.iter().for_each(|line| println!("{line}"));
        report.violations.iter().for_each(|line| println!("VIOLATION: {line}"));
        std::process::exit(i32::from(!report.violations.is_empty()));
    }
    if mutations {
        for mutation in Mutation::ALL {
            let noticed = seeds.clone().find_map(|seed| {
                let report = run(seed, hosts, Some(mutation), false);
                Some((seed, report.violations.first()?.clone()))
            });
            match noticed {
                Some((seed, how)) => println!("{mutation:?}: seed {seed}: {how}"),
                None => println!("{mutation:?}: NOT NOTICED"),
            }
        }
        return;
    }
    let begin = timesync::clock::pace_now();
    let (next, sum) = (AtomicU64::new(seeds.start), Mutex::new((Report::default(), 0_u64, Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(seed) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| seeds.contains(seed))
                {
                    let report = run(seed, hosts, None, false);
                    let (total, failed, failures) = &mut *sum.lock().unwrap();
                    total.certified += report.certified;
                    total.refused += report.refused;
                    total.writes += report.writes;
                    total.steps += report.steps;
                    total.virtual_ns += report.virtual_ns;
                    if !report.violations.is_empty() {
                        *failed += 1;
                        if failures.len() < 10 {
                            failures.push(report);
                        }
                    }
                }
            });
        }
    });
    let (total, failed, failures) = sum.into_inner().unwrap();
    let seconds = (timesync::clock::pace_now() - begin).get() as f64 * 1e-9;
    println!(
        "{} seeds in {seconds:.1} s ({:.0} a second): {} snapshots certified, {} refused, {} writes, {} steps, {:.0} s of virtual time",
        seeds.end - seeds.start,
        (seeds.end - seeds.start) as f64 / seconds,
        total.certified,
        total.refused,
        total.writes,
        total.steps,
        total.virtual_ns as f64 * 1e-9,
    );
    for report in &failures {
        println!("seed {}: {}", report.seed, report.violations.join("\n    "));
        let hosts = hosts.map_or(String::new(), |hosts| format!(" --hosts {hosts}"));
        println!(
            "    its story: cargo run --release -p coeval-tests --features simulator --bin simulate -- --trace {}{hosts}",
            report.seed
        );
    }
    println!("{failed} seeds with violations");
    std::process::exit(i32::from(failed > 0));
}
