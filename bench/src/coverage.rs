//! Is the bound ever wrong, and how much narrower could it be?
//!
//! Clocks and networks are simulated, so the truth is known; everything between the packets and the answers is the
//! product's own code: the translation of stamps, the matching of answers, the server's record of a host, its window and
//! bounds, the plan and the certificate. Each scenario runs with many seeds, and every run is its seed's alone, so
//! `--scenario NAME --seed N` shows any miss again.

mod cuts;
mod oracle;
mod run;
mod statistics;
#[cfg(test)]
mod tests;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use harness::clocks::{clock, estimator, host, network, scenario};
use serde::Serialize;
use timesync::server::{HostConfig, Record};

use run::{Answer, Effort, Tally, run as run_seed, statistical};
use scenario::{Scenario, Tell};
use statistics::{coverage_at_least, quantile};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only this scenario.
    #[arg(long)]
    scenario: Option<String>,
    /// Only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Seeds of each scenario.
    #[arg(long, default_value_t = 50)]
    seeds: u64,
    /// Instants of queries for each seed; three queries each.
    #[arg(long, default_value_t = 500)]
    instants: usize,
    /// Queries that the oracle answers too, for each seed.
    #[arg(long, default_value_t = 4)]
    oracle: usize,
    /// Independent answers of the statistical bound that rest on samples, for each scenario.
    #[arg(long, default_value_t = 628)]
    statistical: u64,
    /// A slice of it, in some 20 s.
    #[arg(long)]
    quick: bool,
    /// Prints the rows as JSON.
    #[arg(long)]
    json: bool,
}

/// The confidence that the statistical bound is asked for.
const NOMINAL: f64 = 0.99;

/// So many answers without a miss prove it, at 95 %. (628, which is asked for by default, may have two.)
const ENOUGH: u64 = 299;
/// Windows of their own that are tried for so many answers: where some rest on samples, and where none do.
const MOST_WINDOWS: u64 = 40_000;
const MOST_IN_VAIN: u64 = 1_000;

/// A scenario's row, as it is printed with `--json`.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    assumptions_hold: bool,
    queries: u64,
    hard_misses: u64,
    /// Null where the assumptions break.
    statistical_misses: Option<u64>,
    nominal: f64,
    half_width_ns: Quantiles,
    /// To the oracle's width. Null where the oracle was not asked.
    ratio: Quantiles,
    wrong_trusted_s: f64,
    probe_interval_s: f64,
    /// Null where nothing broke.
    detect_s: Option<f64>,
    wrongly_certified: u64,
    #[serde(skip)]
    more: More,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Quantiles {
    p50: Option<f64>,
    p99: Option<f64>,
}

/// What is printed for people only.
#[derive(Default)]
struct More {
    first_miss: Option<String>,
    asked: Asked,
    over_floor: Quantiles,
    solved: usize,
    unsolved: u64,
    wrong_by: f64,
    cuts: u64,
    certified: u64,
    wrongly_at_all: u64,
    /// Why the row does not reach what it must.
    failures: Vec<String>,
}

/// Runs the benchmark and prints its rows. Fails where a bound was wrong.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let chosen: Vec<&'static Scenario> = scenario::all()
        .iter()
        .filter(|known| arguments.scenario.as_ref().is_none_or(|name| known.name == name))
        .collect();
    if chosen.is_empty() {
        let names: Vec<_> = scenario::all().iter().map(|known| known.name).collect();
        return Err(format!("no such scenario; there are {}", names.join(", ")).into());
    }
    let quick = |full: u64, less: u64| if arguments.quick { full.min(less) } else { full };
    let effort = Effort {
        instants: quick(arguments.instants as u64, 100) as usize,
        oracle: quick(arguments.oracle as u64, 1) as usize,
        cuts: 8,
        history_s: 160,
        aftermath_s: 20,
    };
    let seeds: Vec<u64> = match arguments.seed {
        Some(seed) => vec![seed],
        None => (0..quick(arguments.seeds, 4)).collect(),
    };
    let independent = if arguments.seed.is_some() { 0 } else { quick(arguments.statistical, 60) };
    if !arguments.json {
        print_header();
    }
    let mut rows = Vec::new();
    for scenario in chosen {
        let row = measure(scenario, &seeds, independent, effort);
        if !arguments.json {
            print(&row);
        }
        rows.push(row);
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "scenarios": rows }));
    }
    let failed: Vec<_> = rows
        .iter()
        .flat_map(|row| row.more.failures.iter().map(move |why| format!("{}: {why}", row.name)))
        .collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

fn record(config: HostConfig, window: usize) -> Record {
    Record::new(config, window, true)
}

fn measure(scenario: &'static Scenario, seeds: &[u64], independent: u64, effort: Effort) -> Row {
    let tallies = in_parallel(seeds, |seed| run_seed(scenario, seed, record, effort));
    let mut asked = Asked::default();
    if scenario.breaks.is_none() && !scenario.agentless {
        asked = ask(scenario, independent);
    }
    row(scenario, tallies, asked)
}

/// Asks the statistical bound alone, once in each window, until `wanted` answers rest on samples. When it ends depends on
/// their number only, never on how many were wrong: else it could not be told what they prove.
fn ask(scenario: &'static Scenario, wanted: u64) -> Asked {
    let mut asked = Asked::default();
    let mut next = 0;
    while asked.on_samples < wanted
        && asked.asked < if asked.on_samples == 0 { MOST_IN_VAIN } else { MOST_WINDOWS }
    {
        let seeds: Vec<u64> = (next..next + (wanted - asked.on_samples).clamp(50, 500)).collect();
        next += seeds.len() as u64;
        for answer in in_parallel(&seeds, |seed| statistical(scenario, seed, record, NOMINAL)) {
            if asked.on_samples < wanted {
                asked.count(answer);
            }
        }
    }
    asked
}

/// Independent queries of the statistical bound.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    asked: u64,
    /// Whose answer rests on samples, and carries the nominal confidence. The others are given the hard bound.
    on_samples: u64,
    missed: u64,
    /// Where the samples contradicted the budget.
    contradicted: u64,
}

impl Asked {
    fn count(&mut self, answer: Answer) {
        self.asked += 1;
        self.on_samples += u64::from(matches!(answer, Answer::OnSamples { .. }));
        self.missed += u64::from(answer == Answer::OnSamples { right: false });
        self.contradicted += u64::from(answer == Answer::Contradicted);
    }

    /// What they prove of the coverage, at 95 %; none where none rests on samples.
    fn proven(&self) -> Option<f64> {
        (self.on_samples > 0).then(|| coverage_at_least(self.missed, self.on_samples))
    }
}

fn row(scenario: &'static Scenario, tallies: Vec<Tally>, asked: Asked) -> Row {
    let sum = |of: fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let worst = |of: fn(&Tally) -> f64| tallies.iter().map(of).fold(0.0, f64::max);
    let quantiles = |of: fn(&Tally) -> &Vec<f64>| {
        let mut all: Vec<f64> = tallies.iter().flat_map(|tally| of(tally).iter().copied()).collect();
        Quantiles { p50: quantile(&mut all, 0.5), p99: quantile(&mut all, 0.99) }
    };
    let stamps = scenario.breaks.is_some_and(|kind| kind.tell() == Tell::Stamps);
    // A break that the stamps never showed was never wrong by more than the round trip.
    let detected = |tally: &Tally| if stamps { Some(tally.detect_s.unwrap_or(0.0)) } else { tally.detect_s };
    let detect_s = scenario.breaks.and_then(|_| {
        tallies.iter().map(detected).try_fold(0.0, |worst: f64, seconds| Some(worst.max(seconds?)))
    });
    let probe_interval_s = scenario.pair_interval() as f64 * 1e-9;
    let mut row = Row {
        name: scenario.name,
        assumptions_hold: scenario.breaks.is_none(),
        queries: sum(|tally| tally.queries),
        hard_misses: sum(|tally| tally.misses),
        statistical_misses: scenario.breaks.is_none().then_some(asked.missed),
        nominal: NOMINAL,
        half_width_ns: quantiles(|tally| &tally.half_widths),
        ratio: quantiles(|tally| &tally.ratios),
        wrong_trusted_s: worst(|tally| tally.wrong_s),
        probe_interval_s,
        detect_s,
        wrongly_certified: sum(|tally| tally.wrong_cuts),
        more: More {
            first_miss: tallies.iter().find_map(|tally| tally.first_miss.clone()),
            asked,
            over_floor: quantiles(|tally| &tally.over_floor),
            solved: tallies.iter().map(|tally| tally.ratios.len()).sum(),
            unsolved: sum(|tally| tally.unsolved),
            wrong_by: worst(|tally| tally.wrong_by),
            cuts: sum(|tally| tally.cuts),
            certified: sum(|tally| tally.certified),
            wrongly_at_all: sum(|tally| tally.wrong_cuts_at_all),
            failures: Vec::new(),
        },
    };
    row.more.failures = failures(&row, scenario, sum(|tally| tally.trusted_after_told));
    row
}

/// What the row should have reached and did not.
fn failures(row: &Row, scenario: &Scenario, trusted_after_told: u64) -> Vec<String> {
    let mut failures = Vec::new();
    if let Some(miss) = &row.more.first_miss {
        failures.push(format!("{} hard misses; {miss}", row.hard_misses));
    } else if row.hard_misses > 0 {
        failures.push(format!("{} hard misses", row.hard_misses));
    }
    let Asked { on_samples, missed, .. } = row.more.asked;
    // Enough of them must prove that the confidence is kept; few must not prove that it is not.
    let not_kept = 1.0 - coverage_at_least(on_samples - missed, on_samples) < NOMINAL;
    let unproven = coverage_at_least(missed, on_samples) < NOMINAL;
    if on_samples > 0 && if on_samples >= ENOUGH { unproven } else { not_kept } {
        failures.push(format!("{missed} of {on_samples} statistical bounds missed"));
    }
    if row.wrongly_certified > 0 {
        failures.push(format!("{} cuts certified wrongly", row.wrongly_certified));
    }
    if trusted_after_told > 0 {
        failures.push("trusted after the host had told".to_owned());
    }
    // The exchange that shows it takes its time too. One that was under way when a host stopped has to be given up first.
    let told = scenario.breaks.is_some_and(|kind| kind.tell() != Tell::Stamps);
    let latest = row.probe_interval_s + if told { 0.26 } else { 0.01 };
    if scenario.breaks.is_some() && row.detect_s.is_none_or(|seconds| seconds > latest) {
        failures.push(format!("noticed after {:?} s", row.detect_s));
    }
    failures
}

/// Does the same for all seeds on all processors; the results stand in the seeds' order.
fn in_parallel<T: Send>(seeds: &[u64], act: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let next = AtomicU64::new(0);
    let done = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((index, seed)) = {
                    let index = next.fetch_add(1, Ordering::Relaxed) as usize;
                    seeds.get(index).map(|seed| (index, *seed))
                } {
                    let result = act(seed);
                    done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn print_header() {
    println!("half-widths in ns; statistical bounds at {NOMINAL} with an honest asymmetry budget\n");
    println!(
        "{:<22} {:>8} {:>6} | {:>9} {:>9} | {:>6} {:>6} {:>5} | {:>6} | {:>15} {:>7}",
        "assumptions hold",
        "queries",
        "misses",
        "p50",
        "p99",
        "oracle",
        "p99",
        "of",
        "floor",
        "statistical",
        "proven",
    );
}

fn print(row: &Row) {
    let number =
        |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
    let more = &row.more;
    print!(
        "{:<22} {:>8} {:>6} | {:>9} {:>9} | {:>6} {:>6} {:>5} | {:>6}",
        row.name,
        row.queries,
        row.hard_misses,
        number(row.half_width_ns.p50, 0),
        number(row.half_width_ns.p99, 0),
        number(row.ratio.p50, 3),
        number(row.ratio.p99, 3),
        more.solved,
        number(more.over_floor.p50, 2),
    );
    if row.assumptions_hold {
        let Asked { asked, on_samples, missed, contradicted } = more.asked;
        let proven = number(more.asked.proven(), 4);
        println!(" | {missed:>4} of {on_samples:>5} of {asked:>5} {proven:>7} {contradicted:>4}");
    } else {
        println!(
            " | wrong {:.3} s by {:.0} ns, noticed {} s, {} of {} cuts certified, {} wrongly{}",
            row.wrong_trusted_s,
            more.wrong_by,
            number(row.detect_s, 3),
            more.certified,
            more.cuts,
            row.wrongly_certified,
            if more.wrongly_at_all > row.wrongly_certified {
                format!(" ({} within the round trip)", more.wrongly_at_all)
            } else {
                String::new()
            },
        );
    }
    if more.unsolved > 0 {
        println!("    the oracle's solver gave up on {} queries", more.unsolved);
    }
    for why in &more.failures {
        println!("    FAILS: {why}");
    }
}
