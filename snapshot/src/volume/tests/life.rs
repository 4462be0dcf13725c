//! Volumes that are cloned, resized and deleted, on real files.

use std::thread;

use super::super::memory::Memory;
use super::*;

fn live(volume: &Arc<Volume>) -> Vec<u8> {
    content(&*volume.attach().unwrap())
}

fn write(volume: &Arc<Volume>, block: u64, fill: u8) {
    done(volume.attach().unwrap().write(block * BLOCK, &[fill; 4096], false));
}

/// The first byte of each block.
fn blocks(content: &[u8]) -> Vec<u8> {
    content.chunks(BLOCK as usize).map(|block| block[0]).collect()
}

fn links(root: &TempDir, volume: &str, file: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(root.path().join(volume).join(file)).unwrap().nlink()
}

#[test]
fn a_clone_shares_files_and_nothing_else() {
    let (root, volume) = create(4);
    write(&volume, 0, 1);
    take(&volume, "a");
    write(&volume, 1, 2);
    take(&volume, "b");
    write(&volume, 2, 3);
    let clone = volume.clone_snapshot("b", "c").unwrap();
    assert_eq!(blocks(&live(&clone)), [1, 2, 0, 0]);
    assert_eq!((clone.describe().layers, clone.describe().snapshots.len()), (3, 0));
    assert_eq!((links(&root, "c", &data_name(0)), links(&root, "c", &map_name(1))), (2, 2));
    write(&clone, 0, 9);
    take(&clone, "s");
    assert_eq!(blocks(&live(&volume)), [1, 2, 3, 0]);

    // Neither merges into what the other has; what only one has, it does.
    for snapshot in ["a", "b"] {
        volume.delete_snapshot(snapshot).unwrap();
    }
    write(&volume, 1, 4);
    take(&volume, "d");
    settle(&volume);
    clone.delete_snapshot("s").unwrap();
    settle(&clone);
    assert_eq!((blocks(&live(&volume)), blocks(&live(&clone))), (vec![1, 4, 3, 0], vec![9, 2, 0, 0]));
    assert_eq!(volume.describe().layers, 4, "two that are shared, the snapshot's, the head");
    assert!(matches!(volume.clone_snapshot("d", "c"), Err(VolumeError::Exists { .. })));
    assert!(matches!(volume.clone_snapshot("a", "e"), Err(VolumeError::NoSnapshot { .. })));

    // A clone of a clone, and the first volume goes.
    take(&clone, "t");
    let third = clone.clone_snapshot("t", "third").unwrap();
    volume.delete_snapshot("d").unwrap();
    volume.delete(false).unwrap();
    drop(volume);
    assert!(!root.path().join("v").exists());
    clone.delete(true).unwrap();
    drop(clone);
    third.tidy();
    take(&third, "u");
    settle(&third);
    assert_eq!(blocks(&live(&third)), [9, 2, 0, 0]);
    assert_eq!(
        (third.describe().layers, links(&root, "third", &data_name(0))),
        (2, 1),
        "nothing is shared any more"
    );
    drop(third);
    let third = Volume::open(root.path(), "third", HostClock::real()).unwrap();
    assert_eq!(blocks(&live(&third)), [9, 2, 0, 0]);
}

#[test]
fn a_merge_is_cut_short_for_a_clone_and_goes_on_afterwards() {
    let (_root, volume) = create(4);
    take(&volume, "a");
    write(&volume, 1, 2);
    take(&volume, "b");
    let claim = volume.core.turns.claim();
    volume.delete_snapshot("a").unwrap();
    assert!(volume.core.turns.merge().is_none());
    drop(claim);
    let clone = volume.clone_snapshot("b", "c").unwrap();
    assert_eq!(blocks(&live(&clone)), [0, 2, 0, 0]);
    clone.delete(false).unwrap();
    drop(clone);
    volume.tidy();
    settle(&volume);
    assert_eq!(volume.describe().layers, 2);
}

#[test]
fn a_volume_in_use_is_not_deleted() {
    let (root, volume) = create(4);
    take(&volume, "s");
    let client = volume.attach().unwrap();
    assert!(matches!(volume.delete(true), Err(VolumeError::Connected { clients: 1, .. })));
    drop(client);
    let reader = volume.snapshot_device("s").unwrap();
    assert!(matches!(volume.delete(true), Err(VolumeError::SnapshotInUse { .. })));
    drop(reader);
    let told = volume.delete(false).unwrap_err().to_string();
    assert!(told.contains("has snapshots (s)"), "{told}");
    let attempt = volume.prepare("taking t").unwrap();
    assert!(matches!(volume.delete(true), Err(VolumeError::Busy { .. })));
    drop(attempt);
    done(volume.attach().unwrap().write(0, &[1; 4096], false));
    volume.delete(true).unwrap();
    assert!(volume.attach().is_none() && volume.snapshot_device("s").is_err());
    assert!(Volume::create(root.path(), "v", 4096, HostClock::real()).is_ok(), "its name is free");
}

#[test]
fn what_was_left_half_made_goes_and_what_lost_its_manifest_stays() {
    let (root, volume) = create(4);
    write(&volume, 0, 1);
    take(&volume, "s");
    drop(volume.clone_snapshot("s", "half").unwrap());
    drop(volume.clone_snapshot("s", "lost").unwrap());
    let manifest = |name: &str| root.path().join(name).join("volume.json");
    fs::rename(manifest("half"), root.path().join("half/unfinished")).unwrap();
    fs::remove_file(manifest("lost")).unwrap();
    fs::create_dir(root.path().join("notes")).unwrap();
    Volume::remove_left_overs(&Directory::on_disk(root.path())).unwrap();
    assert!(!root.path().join("half").exists());
    assert!(root.path().join("notes").exists());
    // Somebody may yet rescue it, and nobody writes over it: its files are also those of the first volume.
    assert!(root.path().join("lost").join(data_name(0)).exists());
    let refused = Volume::create(root.path(), "lost", 4096, HostClock::real());
    assert!(matches!(refused, Err(VolumeError::NoManifest { .. })));
    assert_eq!(blocks(&live(&volume)), [1, 0, 0, 0]);

    // A half-made one is taken over without emptying what it shares.
    fs::write(root.path().join("lost/unfinished"), "").unwrap();
    drop(Volume::create(root.path(), "lost", 4096, HostClock::real()).unwrap());
    assert_eq!(blocks(&live(&volume)), [1, 0, 0, 0]);
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let (root, volume) = create(8);
    let resize = |volume: &Arc<Volume>, blocks: u64| volume.resize(blocks * BLOCK, true).unwrap();
    for block in 0..8 {
        write(&volume, block, 1);
    }
    assert!(matches!(volume.resize(4 * BLOCK, false), Err(VolumeError::WouldShrink { .. })));
    assert!(matches!(volume.resize(4 * BLOCK + 1, true), Err(VolumeError::Size { .. })));
    resize(&volume, 4);
    write(&volume, 3, 2);
    resize(&volume, 12);
    write(&volume, 10, 3);
    let expected = [1, 1, 1, 2, 0, 0, 0, 0, 0, 0, 3, 0];
    assert_eq!(blocks(&live(&volume)), expected);
    // In one layer, too: and the sizes of the files follow.
    take(&volume, "s");
    settle(&volume);
    assert_eq!((blocks(&live(&volume)), volume.describe().layers), (expected.to_vec(), 2));
    let base = || fs::metadata(root.path().join("v").join(data_name(0))).unwrap().len();
    assert_eq!(base(), 12 * BLOCK);

    // A smaller layer between larger ones stays until the lower one goes.
    resize(&volume, 2);
    resize(&volume, 6);
    take(&volume, "t");
    settle(&volume);
    assert_eq!((blocks(&snapshot(&volume, "t")), volume.describe().layers), (vec![1, 1, 0, 0, 0, 0], 4));
    assert_eq!(blocks(&snapshot(&volume, "s")), expected);
    volume.delete_snapshot("s").unwrap();
    settle(&volume);
    assert_eq!((blocks(&snapshot(&volume, "t")), volume.describe().layers), (vec![1, 1, 0, 0, 0, 0], 2));
    assert_eq!(base(), 6 * BLOCK);
    drop(volume);
    assert!(Volume::check(root.path(), "v").unwrap().findings.is_empty());
    assert_eq!(blocks(&live(&open(&root).unwrap())), [1, 1, 0, 0, 0, 0]);
}

#[test]
fn a_volume_grows_under_its_clients() {
    let (_root, volume) = create(4);
    let client = volume.attach().unwrap();
    done(client.write(3 * BLOCK, &[1; 4096], false));
    assert!(matches!(volume.resize(BLOCK, true), Err(VolumeError::Connected { .. })));
    volume.resize(8 * BLOCK, false).unwrap();
    done(client.write(4 * BLOCK - 100, &[2; 200], false));
    assert_eq!(blocks(&content(&*client)), [0, 0, 0, 1, 2, 0, 0, 0]);
    done(client.trim(3 * BLOCK, 5 * BLOCK, false));
    assert!(content(&*client).iter().all(|&byte| byte == 0));
}

#[test]
fn a_cut_waits_for_requests_below_the_layer_that_it_seals() {
    let (_root, volume) = create(4);
    let request = volume.core.dispatch(&(0..4096));
    volume.resize(8 * BLOCK, false).unwrap();
    let (attempt, cut) = armed(&volume);
    strike(&volume, &attempt, &cut);
    assert!(!attempt.wait_drained(&mut || true));
    drop(request);
    assert!(attempt.wait_drained(&mut || true));
}

#[test]
fn what_an_unfinished_merge_left_beyond_a_layers_end_does_not_show() {
    let (root, volume) = create(4);
    volume.resize(8 * BLOCK, false).unwrap();
    let base = root.path().join("v").join(data_name(0));
    File::options().write(true).open(base).unwrap().write_all_at(&[7; 4096], 6 * BLOCK).unwrap();
    take(&volume, "s");
    settle(&volume);
    assert_eq!((blocks(&live(&volume)), volume.describe().layers), (vec![0; 8], 2));
}

#[test]
fn a_merge_that_failed_is_tried_again() {
    let mut again = 0;
    for operations in 0..30 {
        let memory = Memory::default();
        let root = Directory::new(Arc::new(memory.clone()), Path::new("/"));
        let volume = Volume::create_in(&root, "v", 4 * BLOCK, HostClock::real()).unwrap();
        take(&volume, "a");
        write(&volume, 1, 2);
        take(&volume, "b");
        memory.fail_after(operations);
        if volume.delete_snapshot("a").is_err() {
            continue;
        }
        // A layer whose sync failed is not merged until the volume is opened anew.
        let is_lost = || lock(&volume.core.structure).layers.values().any(|layer| layer.sync().is_err());
        while volume.core.next_tidying().is_some() && !is_lost() {
            thread::yield_now();
        }
        again += usize::from(memory.has_failed() && !is_lost());
    }
    assert!(again > 0, "some of these failures are a merge's");
}

#[test]
fn a_snapshot_that_is_opened_while_its_volume_is_being_deleted_stays() {
    let (_root, volume) = create(4);
    write(&volume, 0, 1);
    take(&volume, "a");
    let client = volume.attach().unwrap();
    let deleting = {
        let volume = Arc::clone(&volume);
        thread::spawn(move || volume.delete(true))
    };
    // It waits for the client, which may be about to leave.
    while volume.attach().is_some() {
        thread::yield_now();
    }
    let reader = volume.snapshot_device("a").unwrap();
    drop(client);
    let refused = deleting.join().unwrap();
    assert!(
        matches!(refused, Err(VolumeError::SnapshotInUse { .. } | VolumeError::Connected { .. })),
        "{refused:?}"
    );
    assert_eq!(blocks(&content(&*reader)), [1, 0, 0, 0]);
    drop(reader);
    volume.delete(true).unwrap();
}
