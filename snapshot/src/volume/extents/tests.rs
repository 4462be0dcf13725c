use super::*;
use crate::volume::tests::{create, done, restore, settle, take};
use ExtentState::{Data, Unchanged, Zero};

fn extents(volume: &Volume, snapshot: &str, since: Option<&str>) -> Vec<(u64, ExtentState)> {
    let extents = volume.extents(snapshot, since).unwrap();
    extents.within(0..u64::MAX).map(|extent| (extent.length / BLOCK, extent.state)).collect()
}

#[test]
fn exactly_the_blocks_that_were_written_in_between_count_as_changed() {
    let (_root, volume) = create(100);
    let device = volume.attach().unwrap();
    let write = |block: u64| done(device.write(block * BLOCK, &[1; BLOCK as usize], false));
    write(10);
    write(11);
    take(&volume, "a");
    write(11);
    take(&volume, "b");
    write(50);
    done(device.trim(10 * BLOCK, BLOCK, false));
    take(&volume, "c");
    let whole_a = [(10, Zero), (2, Data), (88, Zero)];
    let b_since_a = [(11, Unchanged), (1, Data), (88, Unchanged)];
    let c_since_b = [(10, Unchanged), (1, Zero), (39, Unchanged), (1, Data), (49, Unchanged)];
    let c_since_a = [(10, Unchanged), (1, Zero), (1, Data), (38, Unchanged), (1, Data), (49, Unchanged)];
    assert_eq!(extents(&volume, "a", None), whole_a);
    assert_eq!(extents(&volume, "b", Some("a")), b_since_a);
    assert_eq!(extents(&volume, "c", Some("b")), c_since_b);
    assert_eq!(extents(&volume, "c", Some("a")), c_since_a);
    assert_eq!(extents(&volume, "a", Some("a")), [(100, Unchanged)]);

    let part: Vec<_> = volume.extents("c", Some("a")).unwrap().within(10 * BLOCK + 1..12 * BLOCK).collect();
    let extent = |offset: u64, state| Extent { offset: offset * BLOCK, length: BLOCK, state };
    assert_eq!(part, [extent(10, Zero), extent(11, Data)], "whole blocks of the range asked for");

    // Merging changes nothing about it.
    volume.delete_snapshot("b").unwrap();
    settle(&volume);
    assert_eq!(extents(&volume, "c", Some("a")), c_since_a);
    drop(device);

    // Another branch: what either side wrote counts.
    restore(&volume, "a", Some("d"));
    let device = volume.attach().unwrap();
    done(device.write(70 * BLOCK, &[2; BLOCK as usize], false));
    take(&volume, "e");
    let e_since_c = [
        (10, Unchanged),
        (2, Data), // as it was in a
        (38, Unchanged),
        (1, Zero),
        (19, Unchanged),
        (1, Data),
        (29, Unchanged),
    ];
    assert_eq!(extents(&volume, "e", Some("c")), e_since_c);
}

#[test]
fn extents_keep_their_snapshots() {
    let (_root, volume) = create(4);
    take(&volume, "a");
    take(&volume, "b");
    let extents = volume.extents("b", Some("a")).unwrap();
    assert!(volume.delete_snapshot("a").is_err());
    assert!(volume.delete_snapshot("b").is_err());
    drop(extents);
    volume.delete_snapshot("a").unwrap();
    assert!(volume.extents("b", Some("a")).is_err(), "it is gone");
}
