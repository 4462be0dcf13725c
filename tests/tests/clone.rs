//! Clones, sizes, images and the deletion of volumes, as people use them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use coeval_cli::cluster::{Cluster, Host};
use harness::eventually;
use harness::tools::{ask, command, one_host, refusal_of, run, run_eventually, stop_all};
use nix::sys::signal::Signal;
use snapshot::nbd::{Client, Endpoint};

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;

fn open(host: &Host, export: &str) -> Client {
    let endpoint = Endpoint::Unix(host.nbd_socket.clone());
    // The volume is let go a moment after its last client.
    eventually(|| Client::connect(&endpoint, export))
}

fn byte_at(host: &Host, export: &str, offset: u64) -> u8 {
    let mut content = [0; BLOCK];
    open(host, export).read(offset, &mut content).unwrap();
    content[0]
}

fn fill(host: &Host, export: &str, offset: u64, byte: u8) {
    open(host, export).write(offset, &[byte; BLOCK], true).unwrap();
}

fn restart(cluster: &mut Cluster) {
    cluster.hosts[0].daemon.signal(Signal::SIGKILL).unwrap();
    eventually(|| cluster.hosts[0].daemon.try_wait().unwrap().ok_or("it is not dead yet"));
    cluster.restart_host(0).unwrap();
}

fn directory_of(cluster: &Cluster, volume: &str) -> PathBuf {
    cluster.hosts[0].nbd_socket.with_file_name("a").join(volume)
}

fn volumes(cluster: &Cluster) -> Vec<String> {
    let listed = ask(cluster, &["volume", "list"]);
    let volumes = listed[0]["volumes"].as_array().unwrap().clone();
    volumes.iter().map(|volume| volume["name"].as_str().unwrap().to_owned()).collect()
}

/// Deletes what the arguments say, as soon as nobody uses it any more: that a client has left is noticed a moment
/// later, and the server reads a new snapshot for its digest.
fn delete(cluster: &Cluster, arguments: &[&str]) {
    run_eventually(command(cluster).args(arguments));
}

#[test]
fn clones_live_and_die_by_themselves() {
    let mut cluster = one_host(&[]);
    for volume in ["a/data", "a/log"] {
        ask(&cluster, &["volume", "create", volume, "1MiB"]);
    }
    for volume in ["data", "log"] {
        fill(&cluster.hosts[0], volume, 0, 1);
    }
    ask(&cluster, &["snapshot", "create", "one"]);
    for volume in ["data", "log"] {
        fill(&cluster.hosts[0], volume, 0, 2);
    }
    ask(&cluster, &["snapshot", "create", "two"]);

    // The whole group; or not at all.
    let cloned = ask(&cluster, &["snapshot", "clone", "one", "--suffix", "-test"]);
    assert_eq!(cloned["volumes"][0]["to"]["volume"], "data-test");
    ask(&cluster, &["snapshot", "clone", "one", "--volume", "a/log", "--as", "log-half"]);
    let sentence = refusal_of(command(&cluster).args(["snapshot", "clone", "one", "--suffix", "-half"]));
    assert!(sentence.contains("there is a volume log-half already"), "{sentence}");
    assert_eq!(volumes(&cluster), ["data", "data-test", "log", "log-half", "log-test"]);

    // Each is a volume of its own, whatever becomes of what it came from.
    for clone in ["data-test", "log-test"] {
        assert_eq!(byte_at(&cluster.hosts[0], clone, 0), 1);
        fill(&cluster.hosts[0], clone, 0, 3);
    }
    delete(&cluster, &["snapshot", "delete", "one"]);
    fill(&cluster.hosts[0], "data", BLOCK as u64, 4);
    delete(&cluster, &["snapshot", "delete", "two"]);
    restart(&mut cluster);
    for (volume, first, second) in [("data", 2, 4), ("data-test", 3, 0), ("log", 2, 0), ("log-half", 1, 0)] {
        let found = [0, BLOCK as u64].map(|offset| byte_at(&cluster.hosts[0], volume, offset));
        assert_eq!(found, [first, second], "{volume}");
    }
    ask(&cluster, &["snapshot", "create", "both", "--volume", "a/data", "--volume", "a/data-test"]);

    // Deleting: not what somebody uses, not what has snapshots; and what is shared stays for the others.
    let client = open(&cluster.hosts[0], "log");
    let sentence = refusal_of(command(&cluster).args(["volume", "delete", "a/log"]));
    assert!(sentence.contains("has 1 clients connected"), "{sentence}");
    drop(client);
    let sentence = refusal_of(command(&cluster).args(["volume", "delete", "a/data"]));
    assert!(sentence.contains("(both)") && sentence.contains("--with-snapshots"), "{sentence}");
    delete(&cluster, &["volume", "delete", "a/data", "--with-snapshots"]);
    delete(&cluster, &["volume", "delete", "a/log"]);
    assert!(!directory_of(&cluster, "data").exists());
    assert_eq!(ask(&cluster, &["snapshot", "list"]).as_array().unwrap().len(), 0);
    assert_eq!(byte_at(&cluster.hosts[0], "data-test", 0), 3);
    let sentence = refusal_of(command(&cluster).args(["volume", "delete", "a/data"]));
    assert!(sentence.contains("has no volume data"), "{sentence}");

    // Alone now, it merges what it shared.
    ask(&cluster, &["snapshot", "create", "again", "--volume", "a/data-test"]);
    delete(&cluster, &["snapshot", "delete", "again"]);
    eventually(|| {
        let listed = ask(&cluster, &["volume", "list"]);
        let layers = listed[0]["volumes"][0]["layers"].as_u64().unwrap();
        if layers <= 2 { Ok(()) } else { Err(format!("{layers} layers")) }
    });
    assert_eq!(byte_at(&cluster.hosts[0], "data-test", 0), 3);
    restart(&mut cluster);
    assert_eq!(volumes(&cluster), ["data-test", "log-half", "log-test"]);
    assert_eq!(byte_at(&cluster.hosts[0], "log-half", 0), 1);
    stop_all(cluster);
}

#[test]
fn a_volume_takes_another_size_and_its_snapshots_keep_theirs() {
    let mut cluster = one_host(&[]);
    ask(&cluster, &["volume", "create", "a/data", "1MiB"]);
    fill(&cluster.hosts[0], "data", MIB - BLOCK as u64, 1);
    let client = open(&cluster.hosts[0], "data");
    ask(&cluster, &["snapshot", "create", "small"]);
    assert_eq!(ask(&cluster, &["volume", "resize", "a/data", "3MiB"])["size"], 3 * MIB);
    assert_eq!(client.size(), MIB);
    drop(client);
    assert_eq!(open(&cluster.hosts[0], "data").size(), 3 * MIB);
    assert_eq!(byte_at(&cluster.hosts[0], "data", MIB - BLOCK as u64), 1);
    fill(&cluster.hosts[0], "data", 2 * MIB, 2);
    ask(&cluster, &["snapshot", "create", "large"]);
    restart(&mut cluster);
    assert_eq!(byte_at(&cluster.hosts[0], "data", 2 * MIB), 2);

    let shrink = ["volume", "resize", "a/data", "2MiB"];
    let sentence = refusal_of(command(&cluster).args(shrink));
    assert!(sentence.contains("--shrink"), "{sentence}");
    let client = open(&cluster.hosts[0], "data");
    let sentence = refusal_of(command(&cluster).args(shrink).arg("--shrink"));
    assert!(sentence.contains("has 1 clients connected"), "{sentence}");
    drop(client);
    run(command(&cluster).args(shrink).arg("--shrink"));
    ask(&cluster, &["volume", "resize", "a/data", "3MiB"]);
    assert_eq!(byte_at(&cluster.hosts[0], "data", 2 * MIB), 0, "what was cut off does not come back");
    assert_eq!(byte_at(&cluster.hosts[0], "data@large", 2 * MIB), 2);
    assert_eq!(open(&cluster.hosts[0], "data@small").size(), MIB);

    for (snapshot, size) in [("small", MIB), ("large", 3 * MIB)] {
        ask(&cluster, &["snapshot", "restore", snapshot, "--discard-current"]);
        assert_eq!(open(&cluster.hosts[0], "data").size(), size);
        run(command(&cluster).args(["snapshot", "verify", "small"]));
    }
    ask(&cluster, &["snapshot", "clone", "small", "--suffix", "2"]);
    assert_eq!(open(&cluster.hosts[0], "data2").size(), MIB);
    assert_eq!(byte_at(&cluster.hosts[0], "data2", MIB - BLOCK as u64), 1);
    stop_all(cluster);
}

fn qemu_img(arguments: &[&str], paths: &[&Path]) {
    run(Command::new("qemu-img").args(arguments).args(paths));
}

#[test]
fn images_become_volumes() {
    let images = tempfile::tempdir().unwrap();
    let at = |name: &str| images.path().join(name);
    let mut cluster = one_host(&["--import-from", images.path().to_str().unwrap()]);
    let mut content = vec![0; 2 * MIB as usize];
    content[BLOCK..2 * BLOCK].fill(7);
    fs::write(at("raw"), &content).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&at("raw"), &at("qcow2")]);
    qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b"], &[&at("raw"), &at("overlay")]);

    let path = |name: &str| at(name).to_str().unwrap().to_owned();
    ask(&cluster, &["volume", "create", "a/copy", "--from", &path("raw")]);
    ask(&cluster, &["volume", "create", "a/converted", "--from", &path("qcow2"), "--format", "qcow2"]);
    for (image, format, why) in [
        (path("qcow2"), None, "looks like qcow2"),
        (path("overlay"), Some("qcow2"), "backing file"),
        (path("raw"), Some("vdi"), "raw"),
        (path("absent"), None, "import_from"),
        ("/etc/passwd".to_owned(), None, "import_from"),
    ] {
        let mut refused = command(&cluster);
        refused.args(["volume", "create", "a/x", "--from", &image]);
        let sentence = refusal_of(refused.args(format.map(|format| ["--format", format]).iter().flatten()));
        assert!(sentence.contains(why), "{image}: {sentence}");
    }
    let image = fs::metadata(at("raw")).unwrap().ino();
    ask(&cluster, &["volume", "import", "a/moved", &path("raw")]);
    assert!(!at("raw").exists());
    let moved = directory_of(&cluster, "moved").join("000000.raw");
    assert_eq!(fs::metadata(moved).unwrap().ino(), image, "not copied");

    restart(&mut cluster);
    assert_eq!(volumes(&cluster), ["converted", "copy", "moved"]);
    for volume in ["copy", "converted", "moved"] {
        let mut found = vec![1; content.len()];
        open(&cluster.hosts[0], volume).read(0, &mut found).unwrap();
        assert!(found == content, "{volume}");
    }
    stop_all(cluster);
}
