//! Volumes as earlier versions of this program left them, in `tests/fixtures`: they open with all they hold, or are
//! refused in a sentence, and are then as they were.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// A copy of a fixture that a test may change.
fn copy_of(fixture: &str) -> TempDir {
    let root = TempDir::new().unwrap();
    let volume = root.path().join("v");
    fs::create_dir(&volume).unwrap();
    for file in fs::read_dir(fixtures().join(fixture)).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, volume.join(file.file_name().unwrap())).unwrap();
    }
    root
}

fn files(root: &TempDir) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(root.path().join("v")).unwrap().map(|file| file.unwrap().path());
    let files = files.filter(|file| file.file_name().unwrap() != LOCK);
    files.map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

/// The first byte of each block.
fn blocks(content: &[u8]) -> Vec<u8> {
    content.chunks(BLOCK as usize).map(|block| block[0]).collect()
}

/// What both fixtures hold: see [`write_fixture`].
fn assert_whole(root: &TempDir) {
    let volume = Volume::open(root.path(), "v", HostClock::real()).unwrap();
    assert_eq!(volume.describe().snapshots, ["first", "second"]);
    assert_eq!(blocks(&content(&*volume.snapshot_device("first").unwrap())), [1, 2, 0, 0]);
    assert_eq!(blocks(&content(&*volume.snapshot_device("second").unwrap())), [1, 3, 3, 0]);
    assert_eq!(blocks(&content(&*volume.attach().unwrap())), [1, 3, 4, 5]);
}

#[test]
fn every_earlier_version_opens_with_all_it_holds() {
    for version in ["volume-1", "volume-2"] {
        let root = copy_of(version);
        assert_whole(&root);
        // It is changed as one of this version, and still whole when it is opened again.
        let volume = Volume::open(root.path(), "v", HostClock::real()).unwrap();
        take(&volume, "third");
        volume.delete_snapshot("third").unwrap();
        drop(volume);
        assert_whole(&root);
        assert!(!Volume::check(root.path(), "v").unwrap().is_damaged(), "{version}");
    }
}

#[test]
fn a_later_version_is_refused_in_a_sentence_and_left_alone() {
    let root = copy_of("volume-2");
    let path = root.path().join("v/volume.json");
    let later = fs::read_to_string(&path).unwrap().replacen("\"version\": 2", "\"version\": 3", 1);
    fs::write(&path, later).unwrap();
    let before = files(&root);
    let error = Volume::open(root.path(), "v", HostClock::real()).unwrap_err().to_string();
    assert!(error.contains("has format 3, and this coeval reads up to 2: a later one wrote it"), "{error}");
    assert!(!error.contains('\n'));
    assert_eq!(files(&root), before);
}

/// How `volume-2` was made; `volume-1` has the same layers, and the manifest as version 1 wrote it. Run it with
/// `--ignored` to make the fixture of a new version, after giving it a new name.
#[test]
#[ignore = "writes a fixture"]
fn write_fixture() {
    let (root, volume) = create(4);
    let write =
        |block: u64, fill: u8| done(volume.attach().unwrap().write(block * BLOCK, &[fill; 4096], true));
    write(0, 1);
    write(1, 2);
    take(&volume, "first");
    write(1, 3);
    write(2, 3);
    take(&volume, "second");
    write(2, 4);
    write(3, 5);
    done(volume.attach().unwrap().flush());
    let name = volume.name().to_owned();
    drop(volume);
    let to = fixtures().join("volume-new");
    fs::create_dir_all(&to).unwrap();
    for file in fs::read_dir(root.path().join(name)).unwrap() {
        let file = file.unwrap().path();
        if file.file_name().unwrap() != LOCK {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
}
