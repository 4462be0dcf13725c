//! A slice of the simulator: what must be true is true, in as many worlds as fit.

use harness::simulator::run;
use snapshot::simulation::Mutation;

#[test]
fn nothing_wrong_is_certified_and_nothing_is_lost() {
    for seed in 0..8_000 {
        let report = run(seed, None, None, false);
        assert!(
            report.violations.is_empty(),
            "seed {seed}: {:#?}\nits story: cargo run --release -p coeval-tests --features simulator --bin simulate -- --trace {seed}",
            report.violations
        );
    }
}

#[test]
fn the_same_seed_is_the_same_story() {
    for seed in 0..5 {
        assert_eq!(run(seed, None, None, true).trace, run(seed, None, None, true).trace);
    }
}

#[test]
fn mistakes_are_noticed() {
    // The others of `Mutation::ALL` have no such world yet: docs/simulator.md names them.
    let expected = [
        Mutation::ClassifyByTimer,
        Mutation::ReadBeforeComplete,
        Mutation::ReleaseByTimer,
        Mutation::LargerError,
        Mutation::ZeroStretch,
        Mutation::NotRemeasured,
        Mutation::NoReadHold,
        Mutation::AbortForgetsOne,
        Mutation::DiscardDeletes,
        Mutation::FlushSkipsSealing,
    ];
    for mutation in expected {
        let noticed = (0..2_000).any(|seed| !run(seed, None, Some(mutation), false).violations.is_empty());
        assert!(noticed, "{mutation:?}");
    }
}
