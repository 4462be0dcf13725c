//! How tight and how true our bound is, beside what chronyd and ptp4l say of the same clock over the same wire.
//!
//! Two network namespaces with one virtual Ethernet between them share one kernel's clock, so the true offset is exactly
//! 0 and whatever a program says of it is its error. All exchange 64 times a second; nobody steers the clock. One turn is
//! one program from start to end: it settles, then its processors' time is counted while nobody asks it anything, then it
//! is asked again and again, at instants that have nothing to do with its exchanges. Turns alternate, so that all meet the
//! same weather; figures are medians over turns of each turn's percentiles.

mod chrony;
mod ours;
mod process;
mod ptp4l;

use std::time::Duration;

use harness::namespaces::Network;
use serde::Serialize;
use timesync::clock::pace_now;

use process::Load;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Exchanges a second, of everybody.
const RATE: u32 = 64;
/// While the processors' time is counted.
const COUNTED: Duration = Duration::from_secs(4);

/// Options of the benchmark.
#[derive(clap::Args)]
pub struct Arguments {
    /// Turns of each program, idle and again loaded.
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// Seconds of a turn in which the program is asked.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Seconds that a program has to settle before it counts.
    #[arg(long, default_value_t = 10)]
    settle: u64,
    /// Prints the rows as JSON.
    #[arg(long)]
    json: bool,
}

/// How long the parts of a turn take.
#[derive(Clone, Copy)]
struct Times {
    settle: Duration,
    asked: Duration,
}

/// One program's turn. All instants are its own; in nanoseconds.
#[derive(Default)]
struct Turn {
    /// How far what it said was from the truth.
    errors: Vec<i64>,
    /// How far it said that this may be; empty where it says nothing of the kind.
    half_widths: Vec<i64>,
    /// How much of that no program could do without; see [`ours::Floor`].
    above_floor: Vec<i64>,
    /// How much of what is above the floor is how well stamps are known; likewise.
    of_stamps: Vec<i64>,
    cpu: Cpu,
}

/// What a turn's exchanges cost.
#[derive(Clone, Copy, Default)]
struct Cpu {
    exchanges: u64,
    /// Of the end that asks and says how far it is off.
    measuring: u64,
    /// Of the end that answers.
    answering: u64,
}

/// What takes turns. The first is ours, the second what we are held against.
#[derive(Clone, Copy)]
enum Peer {
    Ours(ours::Timeline),
    Chrony { interleaved: bool },
    Ptp4l { peer_delay: bool },
}

const PEERS: [Peer; 6] = [
    Peer::Ours(ours::Timeline::Raw),
    Peer::Chrony { interleaved: true },
    Peer::Chrony { interleaved: false },
    Peer::Ptp4l { peer_delay: false },
    Peer::Ptp4l { peer_delay: true },
    Peer::Ours(ours::Timeline::Wall),
];

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Ours(ours::Timeline::Raw) => "coeval",
            Peer::Ours(ours::Timeline::Wall) => "coeval CLOCK_REALTIME",
            Peer::Chrony { interleaved: true } => "chronyd interleaved",
            Peer::Chrony { interleaved: false } => "chronyd basic",
            Peer::Ptp4l { peer_delay: false } => "ptp4l E2E",
            Peer::Ptp4l { peer_delay: true } => "ptp4l P2P",
        }
    }

    fn turn(self, network: &Network, times: Times) -> Result<Turn, Failure> {
        match self {
            Peer::Ours(timeline) => ours::turn(network, timeline, times),
            Peer::Chrony { interleaved } => chrony::turn(network, interleaved, times),
            Peer::Ptp4l { peer_delay } => ptp4l::turn(network, peer_delay, times),
        }
    }
}

/// One program's figures.
#[derive(Serialize)]
struct Row {
    who: &'static str,
    load: &'static str,
    error_ns: Quantiles,
    /// Null where the program states no bound.
    half_width_ns: Option<Quantiles>,
    /// Of the half-width; null where it is not known.
    above_floor_ns: Option<Quantiles>,
    /// Of what is above the floor, how well stamps are known; null likewise.
    of_stamps_ns: Option<Quantiles>,
    /// Of both ends.
    cpu_us_per_exchange: f64,
    cpu_us_per_exchange_of: Ends,
    exchanges_per_s: f64,
    samples: usize,
}

#[derive(Clone, Copy, Serialize)]
struct Quantiles {
    p50: i64,
    p99: i64,
}

/// The measuring end asks and says how far it is off; the answering end only answers.
#[derive(Serialize)]
struct Ends {
    measuring: f64,
    answering: f64,
}

/// Runs the benchmark and prints its rows.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    process::check_programs()?;
    let times = Times {
        settle: Duration::from_secs(arguments.settle),
        asked: Duration::from_secs(arguments.seconds.max(1)),
    };
    let network = Network::pair()?;
    let mut rows = Vec::new();
    for load in ["idle", "loaded"] {
        let _load = (load == "loaded").then(Load::start).transpose()?;
        let mut turns: [Vec<Turn>; PEERS.len()] = Default::default();
        for number in 1..=arguments.turns.max(1) {
            for (peer, turns) in PEERS.iter().zip(&mut turns) {
                eprintln!("{load}, turn {number} of {}: {}", arguments.turns, peer.name());
                let turn = peer.turn(&network, times);
                turns.push(turn.map_err(|why| format!("{}: {why}", peer.name()))?);
            }
        }
        for (peer, turns) in PEERS.iter().zip(&turns) {
            rows.push(row(*peer, load, turns)?);
        }
    }
    if arguments.json {
        println!("{}", serde_json::json!({ "rows": rows }));
    } else {
        print(&rows);
    }
    Ok(())
}

/// Lets the program settle, counts its processors' time, then asks it through a client, which is started only now, at
/// instants that keep no step with its exchanges.
fn follow<C>(
    times: Times,
    cpu: impl Fn() -> Result<Cpu, Failure>,
    client: impl FnOnce() -> Result<C, Failure>,
    ask: impl Fn(&mut C, &mut Turn) -> Result<(), Failure>,
) -> Result<Turn, Failure> {
    std::thread::sleep(times.settle);
    let (begin, ()) = (cpu()?, std::thread::sleep(COUNTED));
    let end = cpu()?;
    let mut turn = Turn {
        cpu: Cpu {
            exchanges: end.exchanges - begin.exchanges,
            measuring: end.measuring - begin.measuring,
            answering: end.answering - begin.answering,
        },
        ..Turn::default()
    };
    let mut client = client()?;
    let until = pace_now().to_std() + times.asked;
    // Multiples of the golden ratio fall evenly over the unit interval.
    let mut phase = 0.0_f64;
    while pace_now().to_std() < until {
        phase = (phase + 0.618_033_988_749_895).fract();
        std::thread::sleep(Duration::from_millis(16) + Duration::from_millis(16).mul_f64(phase));
        ask(&mut client, &mut turn)?;
    }
    Ok(turn)
}

fn row(peer: Peer, load: &'static str, turns: &[Turn]) -> Result<Row, Failure> {
    let cost = |of: fn(&Cpu) -> u64| {
        let mut costs: Vec<f64> =
            turns.iter().map(|turn| of(&turn.cpu) as f64 / 1e3 / turn.cpu.exchanges.max(1) as f64).collect();
        costs.sort_by(f64::total_cmp);
        costs[costs.len() / 2]
    };
    let exchanges: u64 = turns.iter().map(|turn| turn.cpu.exchanges).sum();
    Ok(Row {
        who: peer.name(),
        load,
        error_ns: quantiles(turns, |turn| &turn.errors).ok_or("it said nothing")?,
        half_width_ns: quantiles(turns, |turn| &turn.half_widths),
        above_floor_ns: quantiles(turns, |turn| &turn.above_floor),
        of_stamps_ns: quantiles(turns, |turn| &turn.of_stamps),
        cpu_us_per_exchange: cost(|cpu| cpu.measuring + cpu.answering),
        cpu_us_per_exchange_of: Ends {
            measuring: cost(|cpu| cpu.measuring),
            answering: cost(|cpu| cpu.answering),
        },
        exchanges_per_s: exchanges as f64 / (COUNTED.as_secs_f64() * turns.len() as f64),
        samples: turns.iter().map(|turn| turn.errors.len()).sum(),
    })
}

/// The medians over turns; none without samples.
fn quantiles(turns: &[Turn], of: fn(&Turn) -> &Vec<i64>) -> Option<Quantiles> {
    let at = |percent: usize| {
        let mut all: Vec<i64> = turns.iter().filter_map(|turn| quantile(of(turn), percent)).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied()
    };
    Some(Quantiles { p50: at(50)?, p99: at(99)? })
}

fn quantile(samples: &[i64], percent: usize) -> Option<i64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len().saturating_sub(1)) * percent / 100).copied()
}

fn print(rows: &[Row]) {
    println!("offset between two namespaces (truth: 0), {RATE} exchanges a second; µs");
    println!(
        "{:<22} {:<7} {:>9} {:>7} {:>11} {:>7} {:>12} {:>7} {:>10} {:>7} {:>13} {:>10} {:>10} {:>7}",
        "",
        "load",
        "error p50",
        "p99",
        "half p50",
        "p99",
        "above floor",
        "p99",
        "of stamps",
        "p99",
        "CPU/exchange",
        "measuring",
        "answering",
        "rate"
    );
    let micros = |nanos: i64| format!("{:.2}", nanos as f64 / 1e3);
    let pair = |quantiles: Option<Quantiles>| match quantiles {
        Some(Quantiles { p50, p99 }) => [micros(p50), micros(p99)],
        None => ["-".to_owned(), "-".to_owned()],
    };
    for row in rows {
        let [error, half, above, stamps] =
            [Some(row.error_ns), row.half_width_ns, row.above_floor_ns, row.of_stamps_ns].map(pair);
        println!(
            "{:<22} {:<7} {:>9} {:>7} {:>11} {:>7} {:>12} {:>7} {:>10} {:>7} {:>13.1} {:>10.1} {:>10.1} {:>7.1}",
            row.who,
            row.load,
            error[0],
            error[1],
            half[0],
            half[1],
            above[0],
            above[1],
            stamps[0],
            stamps[1],
            row.cpu_us_per_exchange,
            row.cpu_us_per_exchange_of.measuring,
            row.cpu_us_per_exchange_of.answering,
            row.exchanges_per_s,
        );
    }
    for rows in rows.chunks(PEERS.len()) {
        let [ours, chronyd, ..] = rows else { continue };
        if let (Some(our), Some(their)) = (ours.half_width_ns, chronyd.half_width_ns) {
            let ratio = |our: i64, their: i64| our as f64 / their as f64;
            let best = rows[1..PEERS.len() - 1].iter().map(|row| row.error_ns.p99).min().unwrap_or(i64::MAX);
            println!(
                "{}: half-width over interleaved chronyd's: {:.2} (p50), {:.2} (p99); error p99 over the best peer's: {:.2}",
                ours.load,
                ratio(our.p50, their.p50),
                ratio(our.p99, their.p99),
                ratio(ours.error_ns.p99, best),
            );
        }
    }
}
