//! What is done to a volume before it crashes.

use proptest::prelude::*;

use super::*;
use crate::volume::memory::Fault;
use crate::volume::tests::model::op;

/// The head is sealed before the restore is refused, and goes on to take requests.
#[test]
fn a_kill_after_a_restore_that_was_refused_loses_nothing() {
    let mut run = Recorder::new();
    run.cut(&[], &[], true);
    let prepared = run.volume().prepare_restore("s0", "restoring", false).unwrap();
    prepared.switch(Some("s0"), uuid::Uuid::nil()).unwrap_err();
    run.change(&write(3, 1, 9, false));
    run.kill();
    assert_eq!(run.broken, None);
}

/// A block that was flushed, written again since, on a disk of which a sync fails: `flush` or the opening after a kill.
fn written_again_before_a_failure(fault: Option<Fault>, flush: bool, operations: usize) -> Option<String> {
    let mut run = Recorder::new();
    run.change(&write(3, 1, 1, true));
    run.cut(&[], &[write(4, 1, 2, false)], true);
    run.flush();
    run.change(&write(3, 2, 3, false));
    if let Some(fault) = fault {
        run.memory.fail(fault);
    }
    run.memory.fail_after(operations);
    if flush {
        run.flush();
    }
    run.kill();
    run.kill();
    run.broken
}

#[test]
fn after_a_failed_sync_and_a_kill_what_was_flushed_shows_again() {
    for flush in [true, false] {
        for operations in 0..8 {
            assert_eq!(written_again_before_a_failure(None, flush, operations), None);
        }
        let forgets = |operations| {
            written_again_before_a_failure(Some(Fault::RecordsStay), flush, operations).is_some()
        };
        assert!((0..8).any(forgets), "what was recorded before the failure would hide it");
    }
}

/// What is wrong with the disk of a workload.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    Fault(Fault),
    /// After this many operations one fails.
    Failure(usize),
}

/// Everything that a volume does, once or twice.
fn workload(trouble: Trouble) -> Recorder {
    let trim = |block: usize, blocks: usize| Request::Trim {
        offset: block * BLOCK as usize,
        length: blocks * BLOCK as usize,
    };
    let mut run = Recorder::new();
    if let Trouble::Failure(operations) = trouble {
        run.memory.fail_after(operations);
    }
    for request in
        [write(0, 4, 1, false), part(5000, 100, 2, true), write(8, 1, 3, true), write(8, 1, 4, false)]
    {
        run.change(&request);
    }
    run.flush();
    run.cut(&[write(1, 2, 5, false)], &[write(2, 2, 6, false), part(100, 600, 7, false)], true);
    // Not earlier: each is to be found in the life of a volume, not in its creation.
    if let Trouble::Fault(fault) = trouble {
        run.memory.fail(fault);
    }
    run.change(&trim(1, 1));
    run.change(&write(8, 1, 8, true));
    run.change(&part(8 * 4096 + 700, 50, 9, false));
    run.flush();
    run.cut(&[write(4, 1, 10, false)], &[write(4, 1, 11, true)], false);
    run.change(&write(0, 1, 12, false));
    drop(run.went(run.volume().prepare("taking none")));
    run.cut(&[trim(2, 3)], &[part(9000, 10, 13, false)], true);
    run.flush();
    run.delete(0);
    run.change(&write(0, 2, 14, false));
    run.change(&part(17, 3, 15, true));
    run.settle();
    run.cut(&[], &[write(5, 1, 16, false)], true);
    run.change(&write(5, 1, 17, true));
    run.delete(1);
    run.delete(0);
    run.flush();
    run.reopen();
    run.change(&write(6, 2, 18, false));
    run.cut(&[write(6, 1, 19, false)], &[], true);
    run.change(&write(7, 1, 20, true));
    run.restore(0, true);
    run.change(&write(1, 2, 24, false));
    run.change(&part(50, 9, 25, true));
    run.cut(&[], &[write(9, 1, 26, false)], true);
    run.restore(1, false);
    run.change(&write(9, 1, 27, true));
    run.delete(0);
    let last = run.standing().last().map(|named| named.name.clone());
    if let Some(last) = last {
        drop(run.went(run.volume().prepare_restore(&last, "restoring", false)));
    }
    run.change(&write(11, 2, 28, false));
    run.kill();
    run.flush();
    run.change(&write(11, 1, 29, false));
    run.delete(0);
    run.kill();
    run.settle();
    run.change(&write(12, 1, 30, true));
    run.cut(&[], &[], true);
    // And one that is armed and never ends.
    let Some(attempt) = run.went(run.volume().prepare("taking a snapshot")) else { return run };
    let cut = arm(run.volume(), &attempt);
    run.change(&write(0, 1, 21, false));
    strike(run.volume(), &attempt, &cut);
    run.change(&write(0, 1, 22, false));
    run.change(&part(3 * 4096, 512, 23, true));
    drop(attempt);
    run
}

/// Clones, sizes, and merges of what they share.
fn life(trouble: Trouble) -> Recorder {
    let mut run = Recorder::new();
    if let Trouble::Failure(operations) = trouble {
        run.memory.fail_after(operations);
    }
    run.change(&write(0, 8, 1, true));
    run.cut(&[write(8, 2, 2, false)], &[write(0, 1, 3, false)], true);
    run.change(&write(1, 2, 4, false));
    run.cut(&[], &[part(9000, 600, 5, false)], true);
    if let Trouble::Fault(fault) = trouble {
        run.memory.fail(fault);
    }
    run.clone_one(0);
    run.clone_one(1);
    // What they came from goes, and the layers that they share must stay as they are.
    run.delete(0);
    run.settle();
    run.delete(0);
    run.cut(&[write(3, 1, 6, false)], &[], true);
    run.settle();
    run.kill();
    run.delete_clone(0);
    run.resize(6);
    run.change(&write(4, 2, 7, true));
    run.settle();
    run.cut(&[write(2, 1, 8, false)], &[part(50, 9, 9, false)], true);
    run.resize(BLOCKS);
    run.change(&write(12, 3, 10, true));
    run.clone_one(1);
    run.cut(&[], &[write(14, 1, 11, false)], true);
    run.delete(0);
    run.delete_clone(0);
    run.settle();
    run.reopen();
    run.restore(0, true);
    run.change(&write(5, 1, 12, true));
    run.delete(1);
    run.delete(1);
    run.delete_clone(0);
    run.cut(&[], &[], true);
    run.settle();
    run.kill();
    run.flush();
    run
}

#[test]
fn whatever_a_crash_leaves_clones_and_sizes_are_as_promised() {
    life(Trouble::None).check_all(1, 4).unwrap();
}

#[test]
fn whatever_a_crash_leaves_what_was_promised_is_there() {
    workload(Trouble::None).check_all(1, 6).unwrap();
}

/// The test above is worth what it finds.
#[test]
fn what_is_forgotten_or_done_in_a_wrong_order_is_found() {
    for fault in [
        Fault::NoDataSync,
        Fault::NoMapSync,
        Fault::DataSyncAfterMap,
        Fault::NoSyncOfNewFiles,
        Fault::NoSyncOfRename,
        Fault::ManifestSyncAfterRename,
        Fault::NoNewLife,
        Fault::NoRecords,
    ] {
        let found = workload(Trouble::Fault(fault)).check_all(1, 6);
        println!("{fault:?}: {}", found.as_ref().err().map_or("", |why| why));
        assert!(found.is_err(), "{fault:?} was not noticed");
    }
}

/// A disk that fails once, at whatever: what was answered with an error may have happened or not, all else holds.
#[test]
fn a_failing_operation_breaks_no_promise() {
    // COEVAL_EVERY_FAILURE=1: all of them, which takes minutes.
    let step = if std::env::var_os("COEVAL_EVERY_FAILURE").is_some() { 1 } else { 31 };
    for operations in (0..).step_by(step) {
        println!("operation {operations} fails");
        let runs = [workload, life].map(|run| run(Trouble::Failure(operations)));
        if !runs.iter().any(|run| run.memory.has_failed()) {
            assert!(operations > 200, "the workload is shorter than it was");
            return;
        }
        for run in runs {
            let result = run.check_all(7, 3);
            assert!(result.is_ok(), "operation {operations} failed: {}", result.unwrap_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn random_workloads_survive_crashes(ops in proptest::collection::vec(op(), 1..14)) {
        let mut run = Recorder::new();
        for op in &ops {
            run.apply(op);
        }
        let result = run.check_all(3, 4);
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    }
}
