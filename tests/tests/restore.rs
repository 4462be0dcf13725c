//! `coeval snapshot restore` and `coeval volume check`, as people use them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::process::Command;

use coeval_cli::cluster::{Cluster, Host};
use harness::tools::{ask, command, finish, one_host, refusal_of, run, run_eventually, stop, stop_all};
use harness::{coeval, eventually};
use nix::sys::signal::Signal;
use snapshot::nbd::{Client, Endpoint};

const BLOCK: usize = 4096;

fn open(host: &Host, export: &str) -> Client {
    let endpoint = Endpoint::Unix(host.nbd_socket.clone());
    // The volume is let go a moment after its last client.
    eventually(|| Client::connect(&endpoint, export))
}

fn first_byte(host: &Host, export: &str) -> u8 {
    let mut content = [0; BLOCK];
    open(host, export).read(0, &mut content).unwrap();
    content[0]
}

fn fill(host: &Host, byte: u8) {
    for volume in ["data", "log"] {
        open(host, volume).write(0, &[byte; BLOCK], false).unwrap();
    }
}

fn volume_path(cluster: &Cluster, volume: &str) -> PathBuf {
    cluster.hosts[0].nbd_socket.with_file_name("a").join(volume)
}

#[test]
fn a_group_goes_back_to_a_snapshot_and_forth_again() {
    let mut cluster = one_host(&[]);
    for volume in ["a/data", "a/log"] {
        ask(&cluster, &["volume", "create", volume, "1MiB"]);
    }
    fill(&cluster.hosts[0], 1);
    assert_eq!(ask(&cluster, &["snapshot", "create", "one"])["verdict"], "consistent");
    fill(&cluster.hosts[0], 2);

    // A client is a reason to refuse, and nothing has changed then.
    let mut client = open(&cluster.hosts[0], "log");
    let sentence = refusal_of(command(&cluster).args(["snapshot", "restore", "one"]));
    assert!(sentence.contains("volume log has 1 clients connected") && sentence.contains("--disconnect"));
    assert_eq!((first_byte(&cluster.hosts[0], "data"), first_byte(&cluster.hosts[0], "log")), (2, 2));

    // Unless it may be disconnected: it notices, and whoever comes now sees the snapshot.
    let restored = ask(&cluster, &["snapshot", "restore", "one", "--disconnect"]);
    assert!(client.write(0, &[9; BLOCK], false).is_err(), "its volume is another now");
    let kept = restored["kept"].as_str().unwrap().to_owned();
    for volume in ["data", "log"] {
        assert_eq!(first_byte(&cluster.hosts[0], volume), 1);
        assert_eq!(first_byte(&cluster.hosts[0], &format!("{volume}@{kept}")), 2);
        assert_eq!(first_byte(&cluster.hosts[0], &format!("{volume}@one")), 1);
    }
    let listed = ask(&cluster, &["snapshot", "list"]);
    let states: Vec<_> =
        listed.as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(
        states,
        ["complete", "inconsistent"],
        "nothing proves that what was replaced is of one instant"
    );

    // It is durable, and what comes after it lies on the restored state.
    fill(&cluster.hosts[0], 3);
    for volume in ["data", "log"] {
        open(&cluster.hosts[0], volume).write(BLOCK as u64, &[3; BLOCK], true).unwrap();
    }
    cluster.hosts[0].daemon.signal(Signal::SIGKILL).unwrap();
    eventually(|| cluster.hosts[0].daemon.try_wait().unwrap().ok_or("it is not dead yet"));
    cluster.restart_host(0).unwrap();
    assert_eq!(first_byte(&cluster.hosts[0], "data"), 3);
    assert_eq!(ask(&cluster, &["snapshot", "create", "three"])["verdict"], "consistent");

    // Forth again, without keeping anything.
    let restored = ask(&cluster, &["snapshot", "restore", &kept, "--discard-current"]);
    assert!(restored["kept"].is_null());
    assert_eq!((first_byte(&cluster.hosts[0], "data"), first_byte(&cluster.hosts[0], "data@three")), (2, 3));
    for snapshot in ["one", &kept, "three"] {
        // That its last client has left is noticed a moment later.
        run_eventually(command(&cluster).args(["snapshot", "delete", snapshot]));
    }
    assert_eq!((first_byte(&cluster.hosts[0], "data"), first_byte(&cluster.hosts[0], "log")), (2, 2));
    let sentence = refusal_of(command(&cluster).args(["snapshot", "restore", "one"]));
    assert!(sentence.contains("no snapshot one"), "{sentence}");

    // Off-line, its files are what they should be; and only then are they looked at.
    let path = volume_path(&cluster, "data");
    let check = || {
        let mut command = Command::new(coeval());
        command.args(["volume", "check"]).arg(&path);
        command
    };
    assert!(refusal_of(&mut check()).contains("open in another process"));
    stop(&mut cluster.hosts[0].daemon);
    assert!(run(&mut check()).contains("the volume is sound"));
    let manifest = path.join("volume.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replacen("1048576", "2097152", 1)).unwrap();
    let found = finish(&mut check());
    let printed = String::from_utf8_lossy(&found.stdout);
    assert_eq!(found.status.code(), Some(1));
    assert!(printed.contains("DAMAGE: volume.json at byte 0: its checksum does not fit"), "{printed}");
    std::fs::write(&manifest, text).unwrap();
    cluster.restart_host(0).unwrap();
    stop_all(cluster);
}
