//! Real daemons that are killed, stopped and cut off at random: nothing wrong is certified, nothing stays frozen.

use std::time::Duration;

use harness::chaos::{Plan, run};
use harness::tools::seed;

#[test]
fn no_fault_tears_a_certified_snapshot_or_leaves_anything_waiting() {
    let time = Duration::from_secs(45);
    let plan = Plan { hosts: 5, seed: seed(), snapshots: usize::MAX, time, calm: false };
    let outcome = run(&plan);
    println!("{outcome}");
    assert!(outcome.torn.is_empty(), "torn: {:?}", outcome.torn);
    assert!(outcome.certified > 0, "no snapshot was certified, so nothing was tested");
    assert!(outcome.control > 0, "a torn set of images was never seen, so the check sees nothing");
}
