//! Disks that are corrupt or full: what is affected says so, everything else goes on, and nothing is lost.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use coeval_cli::cluster::Host;
use harness::eventually;
use harness::tools::{ask, command, finish, one_host, refusal_of, run, stop, stop_all};
use snapshot::nbd::{Client, ClientError, Endpoint, ErrorCode};

const BLOCK: usize = 4096;

fn open(host: &Host, export: &str) -> Result<Client, ClientError> {
    Client::connect(&Endpoint::Unix(host.nbd_socket.clone()), export)
}

fn byte(client: &mut Client, block: usize) -> u8 {
    let mut content = [0; BLOCK];
    client.read((block * BLOCK) as u64, &mut content).unwrap();
    assert_eq!(content, [content[0]; BLOCK], "a block that was written whole");
    content[0]
}

#[test]
fn a_corrupt_map_is_named_and_harms_no_other_volume() {
    let mut cluster = one_host(&[]);
    for volume in ["a/data", "a/other"] {
        ask(&cluster, &["volume", "create", volume, "1MiB"]);
    }
    for snapshot in ["first", "second"] {
        for volume in ["data", "other"] {
            let mut client = open(&cluster.hosts[0], volume).unwrap();
            client.write(0, &[snapshot.as_bytes()[0]; BLOCK], true).unwrap();
        }
        assert_eq!(ask(&cluster, &["snapshot", "create", snapshot])["verdict"], "consistent");
    }

    eventually(|| {
        let shown = ask(&cluster, &["snapshot", "show", "second"]);
        let volumes = shown["manifest"]["hosts"][0]["volumes"].as_array().unwrap();
        let digests = volumes.iter().all(|volume| volume["digest"].is_string());
        digests.then_some(()).ok_or("not so yet: the digests are stored")
    });
    stop(&mut cluster.hosts[0].daemon);
    let map = cluster.hosts[0].nbd_socket.with_file_name("a").join("data/000001.map");
    let file = File::options().read(true).write(true).open(&map).unwrap();
    for slot in [0, BLOCK as u64] {
        let mut byte = [0];
        file.read_exact_at(&mut byte, slot + 100).unwrap();
        file.write_all_at(&[byte[0] ^ 0x55], slot + 100).unwrap();
    }
    let before = std::fs::read(&map).unwrap();
    // A plain file among the volumes is nobody's business.
    std::fs::write(cluster.hosts[0].nbd_socket.with_file_name("a").join("notes"), "mine").unwrap();
    cluster.restart_host(0).unwrap();

    let told = format!("{} is corrupt at byte 0", map.display());
    let log = cluster.hosts[0].daemon.log().unwrap();
    assert_eq!(log.matches(&told).count(), 1, "{log}");
    // What is certain can be rescued, such as the snapshot below the damage. Nobody guesses the rest, or changes it.
    assert_eq!(byte(&mut open(&cluster.hosts[0], "data@first").unwrap(), 0), b'f');
    for export in ["data", "data@second"] {
        let mut client = open(&cluster.hosts[0], export).unwrap();
        let read = client.read(0, &mut [0; BLOCK]);
        assert!(matches!(read, Err(ClientError::Refused(_))), "{export}: {read:?}");
        let write = client.write(0, &[9; BLOCK], true);
        assert!(matches!(write, Err(ClientError::Refused(_))), "{export}: {write:?}");
    }
    let mut other = open(&cluster.hosts[0], "other").unwrap();
    other.write(0, &[9; BLOCK], true).unwrap();
    assert_eq!(
        (byte(&mut other, 0), byte(&mut open(&cluster.hosts[0], "other@first").unwrap(), 0)),
        (9, b'f')
    );

    // Every order that concerns it is refused with the reason, one for all volumes too: none is left out in silence.
    for arguments in [
        &["snapshot", "create", "--volume", "a/data"][..],
        &["snapshot", "create"],
        &["snapshot", "delete", "first"],
        &["volume", "create", "a/data", "1MiB"],
    ] {
        let sentence = refusal_of(command(&cluster).args(arguments));
        assert!(sentence.contains("data"), "{arguments:?}: {sentence}");
        assert!(sentence.contains(&told) || arguments[0] == "volume", "{arguments:?}: {sentence}");
    }
    let listed = run(command(&cluster).args(["volume", "list"]));
    assert!(listed.contains(&told) && listed.contains("a/other"), "{listed}");
    let verified = finish(command(&cluster).args(["snapshot", "verify", "second"]));
    let printed = String::from_utf8_lossy(&verified.stdout);
    assert_eq!(verified.status.code(), Some(1), "{printed}");
    assert!(printed.contains(&told) && printed.contains("a/other: reads as it did"), "{printed}");
    assert_eq!(ask(&cluster, &["snapshot", "create", "--volume", "a/other"])["verdict"], "consistent");
    assert_eq!(std::fs::read(&map).unwrap(), before, "nobody touches what is there to be rescued");

    // Put right, it is served again with all it had, until the deletion that was asked for is done.
    stop(&mut cluster.hosts[0].daemon);
    for slot in [0, BLOCK as u64] {
        file.write_all_at(&[before[slot as usize + 100] ^ 0x55], slot + 100).unwrap();
    }
    cluster.restart_host(0).unwrap();
    for export in ["data", "data@second"] {
        assert_eq!(byte(&mut open(&cluster.hosts[0], export).unwrap(), 0), b's', "{export}");
    }
    eventually(|| match open(&cluster.hosts[0], "data@first") {
        Err(ClientError::NoSuchExport(_)) => Ok(()),
        other => Err(format!("the deletion goes on by itself: {:?}", other.map(drop))),
    });
    assert_eq!(ask(&cluster, &["snapshot", "create", "all"])["group"].as_array().unwrap().len(), 2);
    stop_all(cluster);
}

/// A small file system in memory.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path) -> Self {
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"]).arg(at));
        Mounted(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Lazily: a daemon may still be on its way out.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn a_full_disk_fails_writes_and_loses_nothing() {
    let small = tempfile::tempdir().unwrap();
    let mounted = Mounted::new(small.path());
    let volumes = small.path().join("volumes");
    let cluster = one_host(&["--volumes", volumes.to_str().unwrap()]);
    let host = &cluster.hosts[0];
    ask(&cluster, &["volume", "create", "a/data", "32MiB"]);
    let mut client = open(host, "data").unwrap();
    for block in 0..64 {
        client.write((block * BLOCK) as u64, &[1; BLOCK], false).unwrap();
    }
    client.flush().unwrap();
    assert_eq!(ask(&cluster, &["snapshot", "create", "s"])["verdict"], "consistent");

    // With its digest the host's record of it is whole, and is not written again when there is no room.
    eventually(|| {
        let mut records = std::fs::read_dir(volumes.join(".records")).unwrap();
        let whole = records.any(|record| {
            let text = std::fs::read_to_string(record.unwrap().path()).unwrap_or_default();
            text.contains("\"complete\":true")
        });
        whole.then_some(()).ok_or("not so yet: the host has the whole record")
    });
    let ballast = small.path().join("ballast");
    std::fs::write(&ballast, vec![0; 4 << 20]).unwrap();
    let full = (0..8192).find_map(|block| {
        let result = client.write((block * BLOCK) as u64, &[2; BLOCK], false);
        result.err().map(|error| (block, error))
    });
    let (full, error) = full.unwrap();
    assert!(matches!(error, ClientError::Refused(ErrorCode::NoSpace)), "{error}");
    assert!(full > 64, "there was some room");
    // The connection and what is there go on, also in place.
    assert_eq!((byte(&mut client, 0), byte(&mut client, full - 1), byte(&mut client, full)), (2, 2, 0));
    client.write(0, &[3; BLOCK], false).unwrap();
    assert_eq!(byte(&mut open(host, "data@s").unwrap(), 63), 1);
    let sentence = refusal_of(command(&cluster).args(["snapshot", "create", "no-room"]));
    assert!(sentence.contains("No space left"), "{sentence}");
    let sentence = refusal_of(command(&cluster).args(["volume", "create", "a/more", "1MiB"]));
    assert!(sentence.contains("No space left"), "{sentence}");

    std::fs::remove_file(ballast).unwrap();
    client.write((full * BLOCK) as u64, &[4; BLOCK], false).unwrap();
    client.flush().unwrap();
    assert_eq!(ask(&cluster, &["snapshot", "create", "no-room"])["verdict"], "consistent");
    ask(&cluster, &["volume", "create", "a/more", "1MiB"]);
    client.write(0, &[5; BLOCK], true).unwrap();
    for (export, block, expected) in [
        ("data@s", 0, 1),
        ("data@s", full, 0),
        ("data@no-room", 0, 3),
        ("data@no-room", full - 1, 2),
        ("data@no-room", full, 4),
        ("data", 0, 5),
    ] {
        assert_eq!(byte(&mut open(host, export).unwrap(), block), expected, "{export}, block {block}");
    }
    for snapshot in ["s", "no-room"] {
        let report = ask(&cluster, &["snapshot", "verify", snapshot]);
        assert_eq!((&report["verdict"], &report["intact"]), (&"consistent".into(), &true.into()), "{report}");
    }
    let listed = ask(&cluster, &["snapshot", "list"]);
    let states: Vec<&str> =
        listed.as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["complete", "failed", "complete"]);
    drop(client);
    stop_all(cluster);
    drop(mounted);
}
