//! Holes and changes of live volumes and snapshots, as clients are told them.

use std::ops::{ControlFlow, Range};

use super::*;

type Answer = (Vec<(Range<u64>, bool)>, Outcome);

/// All runs, or the first one only.
fn told(one: bool, ask: impl FnOnce(&mut crate::device::Visit<'_>) -> Outcome) -> Answer {
    let mut runs = Vec::new();
    let outcome = ask(&mut |run, is_set| {
        runs.push((run, is_set));
        if one { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(outcome.result, Ok(()));
    (runs, outcome)
}

fn changed_blocks(device: &dyn Device, since: &str) -> Vec<u64> {
    let changes = device.changes_since(since).unwrap();
    let (runs, outcome) = told(false, |visit| changes.within(0..device.size(), visit));
    assert!(outcome.hold.is_none());
    let changed = runs.into_iter().filter(|(_, changed)| *changed);
    changed.flat_map(|(run, _)| run.start / BLOCK..run.end / BLOCK).collect()
}

fn write(volume: &Arc<Volume>, block: u64) {
    done(volume.attach().unwrap().write(block * BLOCK, &[7; BLOCK as usize], false));
}

#[test]
fn holes_and_changes_show_a_held_write_only_with_it() {
    let (_root, volume) = create(16);
    write(&volume, 0);
    take(&volume, "s");
    let device = volume.attach().unwrap();
    let changes = device.changes_since("s").unwrap();
    let (attempt, cut) = armed(&volume);
    strike(&volume, &attempt, &cut);
    assert!(held(&device.write(8 * BLOCK, &[2; 4096], false), &cut));
    type Ask<'a> = &'a dyn Fn(Range<u64>, &mut crate::device::Visit<'_>) -> Outcome;
    let holes: Ask<'_> = &|range, visit| device.holes(range, visit);
    let changes: Ask<'_> = &|range, visit| changes.within(range, visit);
    for ask in [holes, changes] {
        let waits = |one, blocks: Range<u64>| {
            let (_, outcome) = told(one, |visit| ask(blocks.start * BLOCK..blocks.end * BLOCK, visit));
            held(&outcome, &cut)
        };
        assert!(waits(false, 0..16));
        assert!(waits(false, 8..9));
        assert!(waits(true, 8..16));
        // That the run ends where it does tells of the write as well.
        assert!(waits(true, 4..16));
        assert!(!waits(false, 1..8));
        assert!(!waits(false, 9..16));
        assert!(!waits(false, 0..1));
    }
    cut.release(Cause::Barrier, volume.core.clock.now());
    for ask in [holes, changes] {
        assert!(told(false, |visit| ask(0..16 * BLOCK, visit)).1.hold.is_none());
    }
    drop(attempt);
}

#[test]
fn the_first_run_does_not_wait_for_what_lies_behind_it() {
    let (_root, volume) = create(16);
    write(&volume, 4);
    take(&volume, "s");
    let device = volume.attach().unwrap();
    let (attempt, cut) = armed(&volume);
    strike(&volume, &attempt, &cut);
    assert!(held(&device.write(8 * BLOCK, &[2; 4096], false), &cut));
    let (runs, outcome) = told(true, |visit| device.holes(0..16 * BLOCK, visit));
    assert_eq!(runs, [(0..4 * BLOCK, true)]);
    assert!(outcome.hold.is_none());
    cut.release(Cause::Barrier, volume.core.clock.now());
    drop(attempt);
}

#[test]
fn holes_are_what_was_never_written_or_given_up() {
    let (_root, volume) = create(8);
    let device = volume.attach().unwrap();
    for block in [1, 2, 3, 5] {
        write(&volume, block);
    }
    take(&volume, "s");
    done(device.trim(2 * BLOCK, BLOCK, false));
    done(device.write_zeroes(5 * BLOCK, BLOCK, false, false));
    let (runs, _) = told(false, |visit| device.holes(100..8 * BLOCK - 1, visit));
    let block = |block: u64| block * BLOCK;
    assert_eq!(
        runs,
        [
            (100..block(1), true),
            (block(1)..block(2), false),
            (block(2)..block(3), true),
            (block(3)..block(4), false),
            (block(4)..block(5), true),
            (block(5)..block(6), false),
            (block(6)..block(8) - 1, true),
        ]
    );
    let snapshot = volume.snapshot_device("s").unwrap();
    let (runs, _) = told(false, |visit| snapshot.holes(block(1)..block(4), visit));
    assert_eq!(runs, [(block(1)..block(4), false)]);
}

#[test]
fn changes_are_told_of_the_live_volume_as_it_goes_on() {
    let (_root, volume) = create(16);
    write(&volume, 0);
    take(&volume, "a");
    write(&volume, 1);
    take(&volume, "b");
    write(&volume, 2);
    let device = volume.attach().unwrap();
    assert_eq!(device.snapshots(), ["a", "b"]);
    assert!(device.changes_since("none").is_none());
    assert_eq!(changed_blocks(&*device, "a"), [1, 2]);
    assert_eq!(changed_blocks(&*device, "b"), [2]);

    // The same question later, after cuts and merges on both sides of the boundary.
    let changes = device.changes_since("b").unwrap();
    assert!(matches!(volume.delete_snapshot("b"), Err(VolumeError::SnapshotInUse { .. })));
    write(&volume, 3);
    take(&volume, "c");
    write(&volume, 4);
    take(&volume, "d");
    volume.delete_snapshot("a").unwrap();
    volume.delete_snapshot("c").unwrap();
    settle(&volume);
    write(&volume, 5);
    let (runs, _) = told(false, |visit| changes.within(0..16 * BLOCK, visit));
    assert_eq!(runs, [(0..2 * BLOCK, false), (2 * BLOCK..6 * BLOCK, true), (6 * BLOCK..16 * BLOCK, false)]);
    drop(changes);
    volume.delete_snapshot("b").unwrap();
}

#[test]
fn changes_between_snapshots_count_both_branches_of_a_restore() {
    let (_root, volume) = create(16);
    write(&volume, 0);
    take(&volume, "a");
    write(&volume, 1);
    take(&volume, "b");
    restore(&volume, "a", None);
    write(&volume, 2);
    take(&volume, "c");
    let (b, c) = (volume.snapshot_device("b").unwrap(), volume.snapshot_device("c").unwrap());
    assert_eq!((b.snapshots(), c.snapshots()), (vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]));
    assert!(b.changes_since("c").is_none(), "not older");
    assert!(b.changes_since("b").is_none(), "not older");
    assert_eq!(changed_blocks(&*b, "a"), [1]);
    assert_eq!(changed_blocks(&*c, "a"), [2]);
    assert_eq!(changed_blocks(&*c, "b"), [1, 2]);
    assert_eq!(changed_blocks(&*volume.attach().unwrap(), "b"), [1, 2]);
}

#[test]
fn fast_zeroes_are_done_whole_or_not_at_all() {
    let (_root, volume) = create(4);
    let device = volume.attach().unwrap();
    done(device.write(0, &[1; 4 * BLOCK as usize], false));
    done(device.write_zeroes_fast(BLOCK, BLOCK, true, false));
    assert_eq!(content(&*device)[BLOCK as usize..][..BLOCK as usize], [0; BLOCK as usize]);
    let refused = device.write_zeroes_fast(2 * BLOCK + 1, BLOCK, true, false);
    assert_eq!(refused.result, Err(DeviceError::Unsupported));
    assert!(content(&*device)[2 * BLOCK as usize..].iter().all(|&byte| byte == 1));

    let (attempt, cut) = armed(&volume);
    strike(&volume, &attempt, &cut);
    assert!(held(&device.write_zeroes_fast(0, BLOCK, true, false), &cut));
    // A file that has no holes: that it has none is held like any other answer.
    replace_head(&volume, "/dev/full");
    let outcome = device.write_zeroes_fast(3 * BLOCK, BLOCK, true, false);
    assert!(outcome.result.is_err() && held(&outcome, &cut), "{outcome:?}");
    cut.release(Cause::Barrier, volume.core.clock.now());
    drop(attempt);
}
