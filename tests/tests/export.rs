//! `coeval snapshot export`, quotas and usage, as people use them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use coeval_cli::cluster::{Cluster, Host};
use harness::eventually;
use harness::tools::{ask, command, one_host, refusal_of, run, stop_all};
use snapshot::nbd::{Client, Endpoint};

const BLOCK: u64 = 4096;

fn open(host: &Host, export: &str) -> Client {
    eventually(|| Client::connect(&Endpoint::Unix(host.nbd_socket.clone()), export))
}

fn write(cluster: &Cluster, volume: &str, blocks: std::ops::Range<u64>, byte: u8) {
    let data = vec![byte; ((blocks.end - blocks.start) * BLOCK) as usize];
    open(&cluster.hosts[0], volume).write(blocks.start * BLOCK, &data, false).unwrap();
}

fn content(cluster: &Cluster, export: &str) -> Vec<u8> {
    let mut client = open(&cluster.hosts[0], export);
    let mut content = vec![0; client.size() as usize];
    client.read(0, &mut content).unwrap();
    content
}

/// What a guest sees in an image.
fn restored(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("restored");
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(image).arg(&raw));
    std::fs::read(raw).unwrap()
}

fn usage(cluster: &Cluster) -> serde_json::Value {
    ask(cluster, &["volume", "list"])[0]["volumes"][0]["usage"].clone()
}

#[test]
fn a_group_is_backed_up_in_full_and_by_increments() {
    let cluster = one_host(&[]);
    for volume in ["a/data", "a/log"] {
        ask(&cluster, &["volume", "create", volume, "9MiB"]);
    }
    let backup = tempfile::tempdir().unwrap();
    let place = |name: &str| backup.path().join(name);
    let path = |name: &str| place(name).to_str().unwrap().to_owned();
    write(&cluster, "data", 0..300, 1);
    write(&cluster, "log", 7..8, 2);
    ask(&cluster, &["snapshot", "create", "one"]);
    write(&cluster, "data", 100..101, 3);
    ask(&cluster, &["snapshot", "create", "two"]);
    write(&cluster, "log", 2000..2100, 4);
    open(&cluster.hosts[0], "data").trim(0, 200 * BLOCK as u32, false).unwrap();
    ask(&cluster, &["snapshot", "create", "three"]);
    // Full exports are checked against the digest, once it is there.
    eventually(|| {
        let shown = ask(&cluster, &["snapshot", "show", "one"]);
        let volumes = shown["manifest"]["hosts"][0]["volumes"].as_array().unwrap().clone();
        if volumes.iter().all(|volume| volume["digest"].is_string()) {
            Ok(())
        } else {
            Err(shown.to_string())
        }
    });
    let full = ask(&cluster, &["snapshot", "export", "one", &path("1")]);
    assert!(full.as_array().unwrap().iter().all(|part| part["checked"] == true), "{full}");
    let increment = |name: &str, since: &str, to: &str, backing: &str| {
        let (to, backing) = (path(to), path(backing));
        ask(&cluster, &["snapshot", "export", name, &to, "--since", since, "--backing", &backing])
    };
    let more = increment("two", "one", "2", "1");
    assert_eq!((&more[0]["read"], &more[1]["read"]), (&serde_json::json!(65536), &serde_json::json!(0)));
    increment("three", "two", "3", "2");
    for (directory, snapshot) in [("1", "one"), ("2", "two"), ("3", "three")] {
        for volume in ["data", "log"] {
            let image = place(directory).join(format!("a/{volume}.qcow2"));
            run(Command::new("qemu-img").args(["check", "-q"]).arg(&image));
            assert!(restored(&image) == content(&cluster, &format!("{volume}@{snapshot}")), "{image:?}");
        }
    }
    // Moved together, they still find each other.
    let moved = tempfile::tempdir().unwrap();
    for name in ["1", "2", "3"] {
        std::fs::rename(place(name), moved.path().join(name)).unwrap();
    }
    assert!(restored(&moved.path().join("3/a/log.qcow2")) == content(&cluster, "log@three"));

    // One volume, raw; and what is refused.
    let raw = path("data.raw");
    let one = ["snapshot", "export", "three", &raw, "--volume", "a/data", "--format", "raw"];
    ask(&cluster, &one);
    assert!(std::fs::read(&raw).unwrap() == content(&cluster, "data@three"));
    assert!(refusal_of(command(&cluster).args(one)).contains("exists; choose another name"));
    let none = refusal_of(command(&cluster).args(["snapshot", "export", "four", "x"]));
    assert!(none.contains("no snapshot four"), "{none}");
    let none = refusal_of(command(&cluster).args(["snapshot", "export", "one", "x", "--volume", "a/other"]));
    assert!(none.contains("has no volume a/other"), "{none}");
    stop_all(cluster);
}

#[test]
fn a_quota_refuses_or_makes_room_and_usage_is_shown() {
    let cluster = one_host(&[]);
    ask(&cluster, &["volume", "create", "a/data", "9MiB"]);
    write(&cluster, "data", 0..100, 1);
    let made_up = ask(&cluster, &["snapshot", "create"])["name"].as_str().unwrap().to_owned();
    write(&cluster, "data", 0..100, 2);
    ask(&cluster, &["snapshot", "create", "mine"]);
    write(&cluster, "data", 0..50, 3);

    let shown = ask(&cluster, &["snapshot", "show", "mine"]);
    let part = &shown["usage"][0];
    assert_eq!((part["host"].as_str(), part["referenced"].as_u64()), (Some("a"), Some(100 * BLOCK)));
    assert_eq!(part["exclusive"].as_u64(), Some(50 * BLOCK));
    assert_eq!(usage(&cluster)["held"].as_u64(), Some(150 * BLOCK));

    ask(&cluster, &["volume", "quota", "a/data", "600KiB"]);
    assert_eq!(usage(&cluster)["level"], "full");
    let listed = run(command(&cluster).args(["volume", "list"]));
    assert!(listed.contains("a/data: the snapshots' quota is used up"), "{listed}");
    let refused = refusal_of(command(&cluster).args(["snapshot", "create", "more"]));
    assert!(refused.contains("hold 614400 bytes, and its quota is 614400"), "{refused}");
    write(&cluster, "data", 0..1, 4);

    // The one that nobody named goes, and the one that somebody named stays.
    ask(&cluster, &["volume", "quota", "a/data", "600KiB", "--when-full", "drop-oldest-unnamed"]);
    assert_eq!(ask(&cluster, &["snapshot", "create", "more"])["verdict"], "consistent");
    let gone = refusal_of(command(&cluster).args(["snapshot", "show", &made_up]));
    assert!(gone.contains("no snapshot"), "{gone}");
    ask(&cluster, &["snapshot", "show", "mine"]);
    write(&cluster, "data", 0..100, 5);
    let refused = refusal_of(command(&cluster).args(["snapshot", "create", "again"]));
    assert!(refused.contains("its quota is 614400"), "only named ones are left: {refused}");
    ask(&cluster, &["volume", "quota", "a/data", "none"]);
    ask(&cluster, &["snapshot", "create", "again"]);
    stop_all(cluster);
}
