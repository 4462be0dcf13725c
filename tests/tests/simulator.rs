//! A slice of the simulator: what must be true is true, in as many worlds as fit; and mistakes are noticed.

use harness::simulator::history::{BLOCK, Fate, History, UNIT, Version, content, unit};
use harness::simulator::{Aim, Report, Wanted, run};
use snapshot::simulation::Mutation;
use timesync::time::Nanos;

const AGAIN: &str = "cargo run --release -p coeval-tests --features simulator --bin simulate -- --trace";

/// A seed without violations, or its story.
fn holds(seed: u64, hosts: Option<usize>) -> Report {
    let wanted = Wanted { hosts, ..Wanted::default() };
    let report = run(seed, wanted);
    if !report.violations.is_empty() {
        run(seed, Wanted { tracing: true, ..wanted }).trace.iter().for_each(|line| println!("{line}"));
        let hosts = hosts.map_or(String::new(), |hosts| format!(" --hosts {hosts}"));
        panic!("seed {seed}: {:#?}\nagain: {AGAIN} {seed}{hosts}", report.violations);
    }
    report
}

/// What a block of zeros shows whose anchor shows the client's first write: the zeros' numbers. The zeros come as the
/// second write and the fourth, the whole unit as the third, which is lost at `lost_at` and comes at 30.
fn zeros_shown(lost_at: Option<i64>) -> (u32, u32) {
    let mut history = History::new(1, 1);
    let whole = unit(0);
    let block = whole.start + BLOCK..whole.end;
    for (zeros, received) in [(false, 10), (true, 20), (false, 30), (true, 40)] {
        let sectors = if zeros { block.clone() } else { whole.clone() };
        let place = history.issue(0, 0, sectors, zeros, vec![0], false);
        (history.writes[place].received, history.writes[place].fate) = (Some(received), Fate::Done);
    }
    if let Some(at) = lost_at {
        history.lose(2, at);
    }
    let image = (0..UNIT).map(|at| if at < BLOCK { content(0, 1) } else { content(0, 0) });
    let shown = history.versions(0, whole.start, &image.flatten().collect::<Vec<_>>(), true);
    let Some(Version { least, most, .. }) = shown[BLOCK as usize] else { panic!("torn") };
    (least, most)
}

#[test]
fn which_zeros_an_image_shows() {
    assert_eq!(zeros_shown(None), (2, 2), "the later ones came over a unit that was written anew");
    assert_eq!(zeros_shown(Some(50)), (2, 2), "it was taken away after them, and they with it");
    // They were under way while a restore took it away: these images show either.
    assert_eq!(zeros_shown(Some(35)), (2, 4));
}

#[test]
fn nothing_wrong_is_certified_and_nothing_is_lost() {
    // As many as fit in a minute and a few seconds, from the first one on.
    let end = timesync::clock::pace_now() + Nanos::from_millis(65_000);
    let (mut seeds, mut certified) = (0, 0);
    while seeds < 500 || timesync::clock::pace_now() < end {
        certified += holds(seeds, None).certified;
        seeds += 1;
    }
    println!("{seeds} seeds, {certified} snapshots certified");
    assert!(certified > seeds, "so few snapshots prove little: {certified} in {seeds} seeds");
}

#[test]
fn nor_in_a_large_fleet() {
    let of = |hosts, seeds| (0..seeds).map(|seed| holds(seed, Some(hosts)).certified).sum::<u64>();
    assert!(of(30, 4) >= 4, "at least the last one of each");
    assert!(of(200, 1) >= 1, "at least the last one of each");
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in 0..20 {
        let wanted = Wanted { tracing: true, ..Wanted::default() };
        assert_eq!(run(seed, wanted).trace, run(seed, wanted).trace);
    }
}

#[test]
fn mistakes_are_noticed() {
    let noticed_by = |mutation| {
        let wanted = Wanted { aim: Aim::at(mutation), mutation: Some(mutation), ..Wanted::default() };
        (0..2_000).find(|&seed| !run(seed, wanted).violations.is_empty())
    };
    let mut missed = Vec::new();
    for mutation in Mutation::ALL {
        match noticed_by(mutation) {
            Some(seed) => println!("{mutation:?}: seed {seed}"),
            None => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not noticed: {missed:?}");
}
