//! Runs seeds of the simulator: `cargo run --release -p coeval-tests --features simulator --bin simulate -- --help`.

#![expect(clippy::unwrap_used, reason = "a panic is how a test program fails")]

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use harness::simulator::{Aim, Report, Wanted, run};
use snapshot::simulation::Mutation;

#[derive(Parser)]
#[command(about = "Runs the product in simulated worlds, one for each seed, and checks what must be true")]
struct Arguments {
    /// The seeds, the last one excluded: FROM..TO
    #[arg(long, value_parser = seeds, default_value = "0..1000")]
    seeds: Range<u64>,
    /// Hosts in every world; by default the seed decides (2 to 5, seldom up to 25).
    #[arg(long)]
    hosts: Option<usize>,
    /// Seeds that run at the same time; by default as many as there are processors.
    #[arg(long)]
    threads: Option<usize>,
    /// With each mistake built in, tells the first seed that notices.
    #[arg(long)]
    mutations: bool,
    /// Builds this mistake in, and counts the seeds that notice.
    #[arg(long, value_parser = mistake)]
    mutation: Option<Mutation>,
    /// Aims every world at this; with --mutations, each at where the mistake shows.
    #[arg(long, value_parser = aim)]
    aim: Option<Aim>,
    /// Tells the story of one seed instead.
    #[arg(long)]
    trace: Option<u64>,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.ok_or_else(|| format!("{text} is not FROM..TO"))
}

fn mistake(text: &str) -> Result<Mutation, String> {
    let named = |mutation: &Mutation| format!("{mutation:?}") == text;
    Mutation::ALL.into_iter().find(named).ok_or_else(|| format!("there is no {text}"))
}

fn aim(text: &str) -> Result<Aim, String> {
    let named = |aim: &Aim| format!("{aim:?}") == text;
    Aim::ALL.into_iter().find(named).ok_or_else(|| format!("there is no {text}"))
}

fn main() {
    let arguments = Arguments::parse();
    let Arguments { hosts, aim, mutation, .. } = arguments;
    let wanted = Wanted { hosts, aim, mutation, tracing: false };
    if let Some(seed) = arguments.trace {
        let report = run(seed, Wanted { tracing: true, ..wanted });
        tell(&report);
        std::process::exit(i32::from(!report.violations.is_empty()));
    }
    if arguments.mutations {
        for mutation in Mutation::ALL {
            let wanted = Wanted { aim: aim.or(Aim::at(mutation)), mutation: Some(mutation), ..wanted };
            let noticed = arguments.seeds.clone().find_map(|seed| {
                let report = run(seed, wanted);
                Some((seed, report.violations.first()?.clone()))
            });
            match noticed {
                Some((seed, how)) => println!("{mutation:?} ({:?}): seed {seed}: {how}", wanted.aim),
                None => println!("{mutation:?} ({:?}): NOT NOTICED", wanted.aim),
            }
        }
        return;
    }
    let begin = timesync::clock::pace_now();
    let (total, failures) = run_all(&arguments, wanted);
    let seconds = (timesync::clock::pace_now() - begin).get() as f64 * 1e-9;
    let count = arguments.seeds.end - arguments.seeds.start;
    println!(
        "{count} seeds in {seconds:.1} s ({:.0} a second): {} snapshots certified, {} refused, {} writes, {} steps, {:.0} s of virtual time",
        count as f64 / seconds,
        total.certified,
        total.refused,
        total.writes,
        total.steps,
        total.virtual_ns as f64 * 1e-9,
    );
    for report in failures.iter().take(20) {
        println!("seed {}: {}", report.seed, report.violations.join("\n    "));
        println!("    its story: {}", repeat(&arguments, report.seed));
    }
    if let Some(first) = failures.first() {
        tell(&run(first.seed, Wanted { tracing: true, ..wanted }));
        println!("That was seed {}. Again: {}", first.seed, repeat(&arguments, first.seed));
    }
    println!("{} seeds with violations", failures.len());
    std::process::exit(i32::from(!failures.is_empty()));
}

/// Runs all seeds: the sum of their reports, and those with violations in the order of their seeds.
fn run_all(arguments: &Arguments, wanted: Wanted) -> (Report, Vec<Report>) {
    let threads =
        arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let seeds = &arguments.seeds;
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new((Report::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(seed) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| seeds.contains(seed))
                {
                    let report = run(seed, wanted);
                    let (total, failures) = &mut *sum.lock().unwrap();
                    total.certified += report.certified;
                    total.refused += report.refused;
                    total.writes += report.writes;
                    total.steps += report.steps;
                    total.virtual_ns += report.virtual_ns;
                    if !report.violations.is_empty() {
                        println!("seed {seed}: {}", report.violations[0]);
                        failures.push(report);
                    }
                }
            });
        }
    });
    let (total, mut failures) = sum.into_inner().unwrap();
    failures.sort_by_key(|report| report.seed);
    (total, failures)
}

fn tell(report: &Report) {
    report.trace.iter().for_each(|line| println!("{line}"));
    report.violations.iter().for_each(|line| println!("VIOLATION: {line}"));
}

/// The command that tells a seed's story.
fn repeat(arguments: &Arguments, seed: u64) -> String {
    let hosts = arguments.hosts.map_or(String::new(), |hosts| format!(" --hosts {hosts}"));
    let mutation = arguments.mutation.map_or(String::new(), |mutation| format!(" --mutation {mutation:?}"));
    let aim = arguments.aim.map_or(String::new(), |aim| format!(" --aim {aim:?}"));
    format!(
        "cargo run --release -p coeval-tests --features simulator --bin simulate -- --trace {seed}{hosts}{aim}{mutation}"
    )
}
