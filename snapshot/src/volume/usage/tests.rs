use super::*;
use crate::orders::WhenFull;
use crate::volume::tests::{create, done, open, restore, settle, take};

fn used(volume: &Volume) -> (Vec<(u64, u64)>, u64, u64) {
    let VolumeUsage { snapshots, live, held, .. } = volume.usage();
    let blocks =
        snapshots.values().map(|usage| (usage.referenced / BLOCK, usage.exclusive / BLOCK)).collect();
    (blocks, live / BLOCK, held / BLOCK)
}

#[test]
fn a_block_is_exclusive_if_one_snapshot_alone_reads_it() {
    let (_root, volume) = create(100);
    let device = volume.attach().unwrap();
    let write = |blocks: std::ops::Range<u64>| {
        let data = vec![1; ((blocks.end - blocks.start) * BLOCK) as usize];
        done(device.write(blocks.start * BLOCK, &data, false));
    };
    write(0..10);
    take(&volume, "a");
    assert_eq!(used(&volume), (vec![(10, 0)], 10, 0), "the live volume reads it all");
    write(0..4);
    take(&volume, "b");
    assert_eq!(used(&volume), (vec![(10, 4), (10, 0)], 10, 4));
    write(2..6);
    done(device.trim(6 * BLOCK, BLOCK, false));
    assert_eq!(used(&volume), (vec![(10, 4), (10, 2)], 9, 9), "4 to 6 are read by both snapshots");
    // What deleting it gives back is what was exclusive.
    volume.delete_snapshot("a").unwrap();
    settle(&volume);
    assert_eq!(used(&volume), (vec![(10, 5)], 9, 5));
    drop(device);
    restore(&volume, "b", Some("c"));
    assert_eq!(used(&volume), (vec![(10, 0), (9, 4)], 10, 4), "c alone has what was written after b");
}

#[test]
fn a_quota_refuses_snapshots_and_nothing_else() {
    let (root, volume) = create(100);
    let device = volume.attach().unwrap();
    let quota = Quota { bytes: 10 * BLOCK, warn_percent: 50, when_full: WhenFull::Refuse };
    volume.set_quota(Some(quota)).unwrap();
    let overwrite = |blocks: u64| done(device.write(0, &vec![1; (blocks * BLOCK) as usize], false));
    overwrite(10);
    take(&volume, "a");
    assert_eq!(volume.usage().level, QuotaLevel::Good);
    overwrite(5);
    assert_eq!(volume.usage().level, QuotaLevel::Warning);
    take(&volume, "b");
    overwrite(10);
    let VolumeUsage { level, held, .. } = volume.usage();
    assert_eq!((level, held), (QuotaLevel::Full, 15 * BLOCK));
    let refused = volume.prepare("taking a snapshot").unwrap_err().to_string();
    assert!(refused.contains("61440 bytes") && refused.contains("40960"), "{refused}");
    overwrite(10);
    // It is the volume's, not the daemon's.
    drop(device);
    drop(volume);
    let volume = open(&root).unwrap();
    assert_eq!(volume.usage().quota, Some(quota));
    volume.prepare("taking a snapshot").unwrap_err();
    volume.delete_snapshot("a").unwrap();
    volume.prepare("taking a snapshot").unwrap_err();
    volume.delete_snapshot("b").unwrap();
    take(&volume, "c");
    volume.set_quota(None).unwrap();
    assert_eq!(volume.usage().level, QuotaLevel::Good);
}
