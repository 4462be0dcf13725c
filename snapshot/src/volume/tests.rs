//! What a user relies on, checked on real files.

mod concurrency;
mod crash;
mod life;
mod model;
mod status;
mod stored;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tempfile::TempDir;
use timesync::clock::HostClock;
use timesync::time::Nanos;

use super::layer::{data_name, map_name};
use super::storage::DiskFile;
use super::*;
use crate::cut::{Cause, Cut, Timing};
use crate::device::{Device, DeviceError, Outcome};

const MAX_STRETCH: Nanos = Nanos::from_millis(60_000);

pub(super) fn create(blocks: u64) -> (TempDir, Arc<Volume>) {
    let root = tempfile::tempdir().unwrap();
    let volume = Volume::create(root.path(), "v", blocks * BLOCK, HostClock::real()).unwrap();
    (root, volume)
}

pub(super) fn open(root: &TempDir) -> Result<Arc<Volume>, VolumeError> {
    Volume::open(root.path(), "v", HostClock::real())
}

pub(super) fn done(outcome: Outcome) {
    assert_eq!(outcome.result, Ok(()));
    assert!(outcome.hold.is_none(), "no cut, nothing to wait for");
}

fn held(outcome: &Outcome, cut: &Arc<Cut>) -> bool {
    outcome.hold.as_ref().is_some_and(|hold| Arc::ptr_eq(hold, cut))
}

fn content(device: &dyn Device) -> Vec<u8> {
    let mut content = vec![0xEE; device.size() as usize];
    assert_eq!(device.read(0, &mut content).result, Ok(()));
    content
}

fn snapshot(volume: &Arc<Volume>, name: &str) -> Vec<u8> {
    content(&*volume.snapshot_device(name).unwrap())
}

/// Waits for the merging thread.
pub(super) fn settle(volume: &Volume) {
    while volume.core.next_tidying().is_some() {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

/// What a crash now would leave, but for the kernel's cache: maps, for one, are written by a sync only.
fn crash(root: &TempDir, volume: &Volume) -> TempDir {
    // Merging may be anywhere between two steps.
    let _structure = lock(&volume.core.structure);
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("v")).unwrap();
    for entry in fs::read_dir(root.path().join("v")).unwrap() {
        let entry = entry.unwrap();
        match fs::copy(entry.path(), copy.path().join("v").join(entry.file_name())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // merged, just now
            result => assert!(result.is_ok()),
        }
    }
    copy
}

/// A cut that cuts when [`strike`] says so.
fn armed(volume: &Arc<Volume>) -> (VolumeCut, Arc<Cut>) {
    let attempt = volume.prepare("taking a snapshot").unwrap();
    let cut = arm(volume, &attempt);
    (attempt, cut)
}

fn arm(volume: &Volume, attempt: &VolumeCut) -> Arc<Cut> {
    let cut = Arc::new(Cut::new(Timing::Barrier, MAX_STRETCH));
    attempt.arm(&cut, &mut || false).unwrap();
    cut.armed(volume.core.clock.now()).unwrap();
    cut
}

fn strike(volume: &Volume, attempt: &VolumeCut, cut: &Cut) {
    let gate = attempt.close_gate();
    let at = cut.strike(volume.core.clock.now());
    drop(gate);
    while volume.core.clock.now() < at {}
}

fn release_and_seal(volume: &Volume, attempt: &VolumeCut, cut: &Cut) {
    assert!(attempt.wait_drained(&mut || false));
    attempt.seal().unwrap();
    cut.release(Cause::Barrier, volume.core.clock.now());
    attempt.disarm();
}

pub(super) fn take(volume: &Arc<Volume>, name: &str) {
    let (attempt, cut) = armed(volume);
    strike(volume, &attempt, &cut);
    release_and_seal(volume, &attempt, &cut);
    attempt.commit(name, uuid::Uuid::nil()).unwrap();
}

pub(super) fn restore(volume: &Arc<Volume>, snapshot: &str, keep: Option<&str>) {
    let prepared = volume.prepare_restore(snapshot, "restoring", false).unwrap();
    prepared.switch(keep, uuid::Uuid::nil()).unwrap();
}

/// Puts a layer whose data goes into `file` in the head's place.
fn replace_head(volume: &Volume, file: &str) {
    let file = File::options().read(true).write(true).open(file).unwrap();
    let mut dispatch = volume.core.gate.write().unwrap();
    let (head, below) = dispatch.chain.split_last().unwrap();
    dispatch.chain = below
        .iter()
        .cloned()
        .chain([Layer::new(head.id, head.size, Box::new(DiskFile::new(file)), None)])
        .collect();
}

#[test]
fn requests_before_the_cut_are_in_the_snapshot_and_later_ones_are_held() {
    let (_root, volume) = create(4);
    let device = volume.attach().unwrap();
    done(device.write(0, &[1; 4096], false));
    let (attempt, cut) = armed(&volume);
    done(device.write(4096, &[2; 4096], false));
    strike(&volume, &attempt, &cut);
    assert!(held(&device.write(0, &[3; 4096], true), &cut));
    assert!(held(&device.write(4100, &[4; 10], false), &cut));
    assert!(held(&device.trim(8192, 512, false), &cut));
    assert!(held(&device.write_zeroes(12288, 4096, false, false), &cut));
    done(device.flush());
    release_and_seal(&volume, &attempt, &cut);
    attempt.commit("s", uuid::Uuid::nil()).unwrap();
    done(device.write(2, &[5], false));

    let taken = snapshot(&volume, "s");
    assert_eq!((taken[0], taken[4096], taken[4105]), (1, 2, 2));
    let live = content(&*device);
    assert_eq!((live[0], live[2], live[4099], live[4100], live[4110]), (3, 5, 2, 4, 2));
    assert_eq!(volume.describe().snapshots, ["s"]);
}

#[test]
fn a_request_that_fails_after_the_cut_is_held_too() {
    let (_root, volume) = create(4);
    let (attempt, cut) = armed(&volume);
    strike(&volume, &attempt, &cut);
    let device = volume.attach().unwrap();
    replace_head(&volume, "/dev/full");
    let outcome = device.write(0, &[1; 4096], false);
    assert_eq!(outcome.result, Err(DeviceError::NoSpace));
    assert!(held(&outcome, &cut));
}

#[test]
fn a_read_waits_with_the_held_write_that_it_overlaps_and_no_other_does() {
    let (_root, volume) = create(4);
    let device = volume.attach().unwrap();
    let (attempt, cut) = armed(&volume);
    let read = |offset| device.read(offset, &mut [0; 512]);
    done(device.write(512, &[1; 512], false));
    done(read(512));
    strike(&volume, &attempt, &cut);
    done(read(512));
    assert!(held(&device.write(1000, &[2; 10], false), &cut));
    assert!(held(&read(512), &cut));
    assert!(held(&read(1009), &cut));
    done(read(488));
    done(read(1010));
    done(read(4096));
    cut.release(Cause::Barrier, volume.core.clock.now());
    done(read(1000));
    done(device.write(0, &[3], false));
    drop(attempt);
    done(read(1000));
}

#[test]
fn arming_is_not_complete_while_somebody_is_being_dispatched() {
    let (_root, volume) = create(4);
    let attempt = volume.prepare("taking a snapshot").unwrap();
    let cut = Arc::new(Cut::new(Timing::Barrier, MAX_STRETCH));
    let dispatching = volume.core.dispatcher();
    let mut tries = 0;
    let mut give_up = || {
        tries += 1;
        tries > 3
    };
    assert!(matches!(attempt.arm(&cut, &mut give_up), Err(VolumeError::GaveUp { .. })));
    assert_eq!(dispatching.chain.len(), 1, "nothing has changed");
    drop(dispatching);
    attempt.arm(&cut, &mut || false).unwrap();
    assert_eq!(volume.core.chain().len(), 2);
}

#[test]
fn a_layer_is_sealed_when_the_requests_before_the_cut_have_finished() {
    let (_root, volume) = create(4);
    let dispatch = || volume.core.dispatch(&(0..4096));
    let unarmed = dispatch();
    let (attempt, cut) = armed(&volume);
    let pre = dispatch();
    strike(&volume, &attempt, &cut);
    let post = dispatch();
    assert!(post.hold.is_some());
    assert!(held(&volume.attach().unwrap().read(4095, &mut [0]), &cut), "held before its data is there");
    assert!(!attempt.wait_drained(&mut || true));
    drop(unarmed);
    assert!(!attempt.wait_drained(&mut || true));
    assert!(matches!(attempt.seal(), Err(VolumeError::OutOfOrder { .. })));
    drop(pre);
    assert!(attempt.wait_drained(&mut || true), "a request after the cut is not waited for");
    attempt.seal().unwrap();
}

#[test]
fn one_structural_change_at_a_time() {
    let (_root, volume) = create(4);
    take(&volume, "s");
    let attempt = volume.prepare("taking snapshot nightly").unwrap();
    for refused in [volume.prepare("x").map(drop), volume.delete_snapshot("s")] {
        assert_eq!(refused.unwrap_err().to_string(), "volume v is busy: taking snapshot nightly");
    }
    drop(attempt);
    assert_eq!(volume.describe().layers, 2, "the unused layer is gone");
    drop(volume.prepare("x").unwrap());
}

#[test]
fn an_attempt_that_is_dropped_while_it_stretches_frees_its_writers_and_loses_nothing() {
    let (_root, volume) = create(4);
    let device = volume.attach().unwrap();
    let (attempt, cut) = armed(&volume);
    done(device.write(0, &[1; 4096], false));
    strike(&volume, &attempt, &cut);
    assert!(held(&device.write(4096, &[2; 4096], false), &cut));
    drop(attempt);
    assert!(cut.is_released());
    assert_eq!(cut.readings().unwrap().released_by, Cause::Abort);
    done(device.write(8192, &[3; 4096], false));
    take(&volume, "later");
    settle(&volume);
    let live = content(&*device);
    assert_eq!((live[0], live[4096], live[8192]), (1, 2, 3));
    assert_eq!(volume.describe().layers, 2, "the dropped attempt's layer was merged");
}

#[test]
fn a_snapshot_in_use_is_not_deleted() {
    let (_root, volume) = create(4);
    take(&volume, "s");
    let reader = volume.snapshot_device("s").unwrap();
    assert!(reader.read_only());
    assert_eq!(reader.write(0, &[1], false).result, Err(DeviceError::ReadOnly));
    assert!(matches!(volume.delete_snapshot("s"), Err(VolumeError::SnapshotInUse { .. })));
    drop(reader);
    volume.delete_snapshot("s").unwrap();
    assert!(matches!(volume.snapshot_device("s"), Err(VolumeError::NoSnapshot { .. })));
    settle(&volume);
    assert_eq!(volume.describe().layers, 2, "the base and the layer that takes requests");
}

#[test]
fn no_request_is_the_last_to_let_go_of_a_merged_layer() {
    let (_root, volume) = create(4);
    take(&volume, "s");
    take(&volume, "t");
    let request = volume.core.chain();
    volume.delete_snapshot("s").unwrap();
    settle(&volume);
    assert_eq!(volume.describe().layers, 2);
    // This one and the merging thread: freeing the space is left to that.
    assert!(Arc::strong_count(&request[1]) > 1);
    let merged = Arc::downgrade(&request[1]);
    drop(request);
    while merged.strong_count() > 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_flush_covers_the_layer_being_sealed() {
    let (root, volume) = create(8);
    take(&volume, "s");
    let device = volume.attach().unwrap();
    let (attempt, cut) = armed(&volume);
    done(device.write(0, &[1; 4096], false));
    strike(&volume, &attempt, &cut);
    assert!(held(&device.write(5000, &[2; 100], false), &cut));
    done(device.flush());
    assert!(held(&device.write(8192, &[3; 4096], true), &cut));
    let copy = crash(&root, &volume);
    let reopened = open(&copy).unwrap();
    assert_eq!(content(&*reopened.attach().unwrap()), content(&*device));
    assert!(snapshot(&reopened, "s").iter().all(|&byte| byte == 0));
}

#[test]
fn after_a_failed_sync_no_flush_succeeds_until_the_volume_is_opened_anew() {
    let (root, volume) = create(4);
    let device = volume.attach().unwrap();
    // It takes writes, and cannot be synced.
    replace_head(&volume, "/dev/null");
    done(device.write(0, &[1; 512], false));
    for _ in 0..3 {
        assert_eq!(device.flush().result, Err(DeviceError::Io));
    }
    assert_eq!(device.write(0, &[1; 512], true).result, Err(DeviceError::Io));
    let (attempt, cut) = armed(&volume);
    strike(&volume, &attempt, &cut);
    assert!(attempt.wait_drained(&mut || false));
    assert!(attempt.seal().is_err(), "nothing is certified on top of what may be lost");
    assert!(attempt.commit("s", uuid::Uuid::nil()).is_err());
    drop((device, volume));
    done(open(&root).unwrap().attach().unwrap().flush());
}

#[test]
fn a_corrupt_map_is_named() {
    let (root, volume) = create(4);
    take(&volume, "s");
    done(volume.attach().unwrap().write(0, &[1; 4096], true));
    drop(volume);
    let map = root.path().join("v").join(map_name(1));
    let file = fs::OpenOptions::new().write(true).open(&map).unwrap();
    file.write_all_at(&[7; 8192], 0).unwrap();
    assert_eq!(
        open(&root).unwrap_err().to_string(),
        format!("{} is corrupt at byte 0: neither copy of the map page there is valid", map.display())
    );
}

#[test]
fn of_a_damaged_volume_what_is_certain_is_read_and_nothing_is_guessed() {
    // Two pages of map, of which the first is lost in the layer above the snapshot `a`.
    let second_page = page::BLOCKS_PER_PAGE;
    let (root, volume) = create(second_page + 4);
    let write = |block: u64, fill: u8| {
        done(volume.attach().unwrap().write(block * BLOCK, &[fill; BLOCK as usize], true));
    };
    write(0, 1);
    take(&volume, "a");
    write(1, 2);
    write(second_page, 3);
    take(&volume, "b");
    write(2, 4);
    write(second_page + 1, 5);
    drop(volume);
    let map = File::options().write(true).open(root.path().join("v").join(map_name(1))).unwrap();
    map.write_all_at(&[7; 2 * page::SLOT], 0).unwrap();
    let files = || {
        let directory = fs::read_dir(root.path().join("v")).unwrap();
        let file = |entry: io::Result<fs::DirEntry>| {
            let path = entry.unwrap().path();
            (path.clone(), fs::read(path).unwrap())
        };
        directory.map(file).collect::<BTreeMap<_, _>>()
    };
    let before = files();
    assert!(matches!(open(&root), Err(VolumeError::Corrupt { .. })));

    let damaged = Damaged::open_in(&Directory::on_disk(root.path()), "v").unwrap();
    assert_eq!(damaged.snapshots(), ["a", "b"]);
    let read = |snapshot: Option<&str>, block: u64| {
        let (device, mut content) = (damaged.device(snapshot).unwrap(), [9; BLOCK as usize]);
        device.read(block * BLOCK, &mut content).result.map(|()| content[0])
    };
    let all = |snapshot| [0, 1, 2, second_page, second_page + 1].map(|block| read(snapshot, block));
    let lost = Err(DeviceError::Io);
    assert_eq!(all(Some("a")), [Ok(1), Ok(0), Ok(0), Ok(0), Ok(0)], "it does not stand on that layer");
    assert_eq!(all(Some("b")), [lost, lost, lost, Ok(3), Ok(0)]);
    assert_eq!(all(None), [lost, lost, Ok(4), Ok(3), Ok(5)], "what the head has is certain");
    let device = damaged.device(None).unwrap();
    assert!(device.read_only() && damaged.device(Some("c")).is_none());
    assert_eq!(device.write(0, &[1; 4096], false).result, Err(DeviceError::ReadOnly));
    let mut holes = Vec::new();
    let asked = device.holes(0..3 * BLOCK, &mut |run, is_hole| {
        holes.push((run, is_hole));
        std::ops::ControlFlow::Continue(())
    });
    assert_eq!((asked.result, holes), (Ok(()), vec![(0..3 * BLOCK, false)]), "no hole is made up");
    assert!(device.snapshots().is_empty() && device.changes_since("a").is_none());
    assert_eq!(files(), before);
}

#[test]
fn a_check_names_what_is_damaged_and_changes_nothing() {
    let (root, volume) = create(4);
    done(volume.attach().unwrap().write(0, &[1; 4096], false));
    take(&volume, "s");
    done(volume.attach().unwrap().write(4096, &[1; 4096], true));
    let check = || Volume::check(root.path(), "v");
    assert_eq!(check().unwrap_err().to_string(), "volume v is open in another process");
    drop(volume);
    assert!(matches!(Volume::check(root.path(), "w"), Err(VolumeError::Missing { .. })));
    let sound = check().unwrap();
    assert_eq!((sound.layers, sound.snapshots, sound.findings), (2, 1, vec![]));
    assert!(sound.read >= 2 * 4096);

    let directory = root.path().join("v");
    let spoil = |name: &str, at: u64, bytes: &[u8]| {
        let file = File::options().read(true).write(true).open(directory.join(name)).unwrap();
        let mut before = vec![0; bytes.len()];
        file.read_exact_at(&mut before, at).unwrap();
        file.write_all_at(bytes, at).unwrap();
        before
    };
    let found = || {
        let report = check().unwrap();
        let say = |finding: &Finding| format!("{} {} {}", finding.file, finding.offset, finding.what);
        (report.is_damaged(), report.findings.iter().map(say).collect::<Vec<_>>().join("\n"))
    };
    let older = spoil(&map_name(1), 4096, &[7; 10]);
    let (damaged, what) = found();
    assert!(!damaged && what.starts_with("000001.map 0 one copy of the map page"), "{what}");
    let newer = spoil(&map_name(1), 0, &[7; 10]);
    let (damaged, what) = found();
    assert!(damaged && what.starts_with("000001.map 0 neither copy of the map page"), "{what}");
    spoil(&map_name(1), 0, &newer);
    spoil(&map_name(1), 4096, &older);

    let text = fs::read_to_string(directory.join("volume.json")).unwrap();
    let at = text.find("\"head\": 1").unwrap() as u64 + 8;
    spoil("volume.json", at, b"0");
    let (damaged, what) = found();
    assert!(damaged && what == "volume.json 0 its checksum does not fit", "{what}");
    spoil("volume.json", at, b"1");
    fs::write(directory.join(data_name(7)), "x").unwrap();
    File::options().write(true).open(directory.join(data_name(1))).unwrap().set_len(4096).unwrap();
    let (damaged, what) = found();
    assert!(damaged && what.contains("000001.dat 4096 it has 4096 bytes instead of 16384"), "{what}");
    assert!(what.contains("000007.dat 0 it belongs to a change that did not end"), "{what}");
    assert!(directory.join(data_name(7)).exists());
}

#[test]
fn what_a_closed_volume_holds_survives_the_loss_of_either_copy_of_a_map() {
    for slot in [0, 4096] {
        let (root, volume) = create(4);
        take(&volume, "below");
        done(volume.attach().unwrap().write(0, &[1; 4096], true));
        take(&volume, "s");
        done(volume.attach().unwrap().write(0, &[2; 4096], true));
        drop(volume);
        for layer in [1, 2] {
            let map = root.path().join("v").join(map_name(layer));
            let file = fs::OpenOptions::new().write(true).open(&map).unwrap();
            file.write_all_at(&[7; 100], slot).unwrap();
        }
        let volume = open(&root).unwrap();
        assert_eq!((snapshot(&volume, "s")[0], content(&*volume.attach().unwrap())[0]), (1, 2));
    }
}

#[test]
fn a_volume_is_open_once_and_left_overs_are_removed() {
    let (root, volume) = create(4);
    assert_eq!(open(&root).unwrap_err().to_string(), "volume v is open in another process");
    let again = Volume::create(root.path(), "v", 4096, HostClock::real());
    assert_eq!(again.unwrap_err().to_string(), "there is a volume v already");
    drop(volume);
    let again = Volume::create(root.path(), "v", 4096, HostClock::real());
    assert_eq!(again.unwrap_err().to_string(), "there is a volume v already");

    let directory = root.path().join("v");
    let strays = [data_name(9), map_name(9), "volume.json.new".to_owned()].map(|name| directory.join(name));
    let kept = directory.join("notes.txt");
    for file in strays.iter().chain([&kept]) {
        fs::write(file, "x").unwrap();
    }
    let volume = open(&root).unwrap();
    assert!(strays.iter().all(|file| !file.exists()));
    assert!(kept.exists(), "not ours");
    assert_eq!(Volume::names(root.path()).unwrap(), ["v"]);
    let device = volume.attach().unwrap();
    assert_eq!(volume.describe().clients, 1);
    drop(device);
    assert_eq!(volume.describe().clients, 0);
}

#[test]
fn a_restore_replaces_the_live_volume_and_keeps_what_it_replaced() {
    let (root, volume) = create(4);
    let write = |fill: u8| done(volume.attach().unwrap().write(0, &[fill; 4096], false));
    write(1);
    take(&volume, "a");
    write(2);
    take(&volume, "b");
    write(3);
    let id = uuid::Uuid::from_u128(7);
    volume.prepare_restore("a", "restoring a", false).unwrap().switch(Some("replaced"), id).unwrap();
    let live = |volume: &Arc<Volume>| content(&*volume.attach().unwrap())[0];
    assert_eq!(live(&volume), 1);
    write(4);
    assert_eq!(["a", "b", "replaced"].map(|name| snapshot(&volume, name)[0]), [1, 2, 3]);
    assert_eq!(volume.restored(), Some(id));
    // Forth again, and the state that is not kept is gone with its layers.
    restore(&volume, "replaced", None);
    assert_eq!(live(&volume), 3);
    settle(&volume);
    assert_eq!(volume.describe().layers, 4, "base, b, the replaced state, the head");
    drop(volume);
    let volume = open(&root).unwrap();
    assert_eq!(live(&volume), 3);
    for name in ["b", "a", "replaced"] {
        volume.delete_snapshot(name).unwrap();
        settle(&volume);
        assert_eq!(live(&volume), 3);
    }
    take(&volume, "last");
    settle(&volume);
    assert_eq!((live(&volume), volume.describe().layers), (3, 2));
}

#[test]
fn a_volume_in_use_is_restored_only_if_its_clients_may_be_disconnected() {
    let (_root, volume) = create(4);
    take(&volume, "a");
    let client = volume.attach().unwrap();
    let told = volume.prepare_restore("a", "restoring a", false).unwrap_err().to_string();
    assert!(told.starts_with("volume v has 1 clients connected"), "{told}");
    done(client.write(0, &[1], false));
    assert!(matches!(volume.prepare_restore("x", "", true), Err(VolumeError::NoSnapshot { .. })));

    let (sender, receiver) = std::sync::mpsc::channel();
    client.on_disconnect(Box::new(move || sender.send(()).unwrap()));
    let leaving = std::thread::spawn(move || {
        receiver.recv().unwrap();
        drop(client);
    });
    let prepared = volume.prepare_restore("a", "restoring a", true).unwrap();
    leaving.join().unwrap();
    assert!(volume.attach().is_none(), "nobody comes in while it is being restored");
    assert!(matches!(volume.delete_snapshot("a"), Err(VolumeError::Busy { .. })));
    assert!(matches!(volume.prepare("taking b"), Err(VolumeError::Busy { .. })));
    drop(prepared);
    assert_eq!(content(&*volume.attach().unwrap())[0], 1, "given up, it is as it was");
    restore(&volume, "a", None);
    assert_eq!(content(&*volume.attach().unwrap())[0], 0);
}

#[test]
fn bad_names_sizes_and_ranges_are_refused() {
    let (root, volume) = create(4);
    for name in ["", ".", "..", "a/b", "a@b", "-x", &"x".repeat(65)] {
        let created = Volume::create(root.path(), name, 4096, HostClock::real());
        assert!(matches!(created, Err(VolumeError::Name { .. })), "{name:?}");
    }
    for size in [0, 1, 4095, 4097] {
        let created = Volume::create(root.path(), "w", size, HostClock::real());
        assert!(matches!(created, Err(VolumeError::Size { .. })));
    }
    assert!(matches!(Volume::open(root.path(), "w", HostClock::real()), Err(VolumeError::Missing { .. })));
    let device = volume.attach().unwrap();
    for offset in [4 * BLOCK - 1, 4 * BLOCK, u64::MAX] {
        assert_eq!(device.write(offset, &[1, 2], false).result, Err(DeviceError::Invalid));
        assert_eq!(device.read(offset, &mut [0; 2]).result, Err(DeviceError::Invalid));
        assert_eq!(device.trim(offset, 2, false).result, Err(DeviceError::Invalid));
        assert_eq!(device.write_zeroes(offset, u64::MAX, true, false).result, Err(DeviceError::Invalid));
    }
    done(device.write(4 * BLOCK, &[], false));
}

#[test]
fn trimming_gives_space_back() {
    let (_root, volume) = create(256);
    let device = volume.attach().unwrap();
    for name in [None, Some("s")] {
        if let Some(name) = name {
            take(&volume, name);
        }
        let before = volume.describe().allocated;
        done(device.write(0, &vec![1; 1 << 20], true));
        assert!(volume.describe().allocated >= before + (1 << 20));
        done(device.trim(0, 1 << 20, true));
        assert!(volume.describe().allocated < before + (1 << 20));
        assert!(content(&*device).iter().all(|&byte| byte == 0));
    }
}
