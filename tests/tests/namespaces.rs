//! Three hosts and a server, each in a network namespace, with the real binary, real UDP and the real clock.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::Output;
use std::time::Duration;

use coeval_cli::workload::{Export, Workload, check_exports};
use harness::Fleet;
use serde_json::Value;
use snapshot::nbd::Endpoint;

const NAMES: [&str; 3] = ["a", "b", "c"];
const TOKENS: usize = 6;

fn output(fleet: &Fleet, arguments: &[&str]) -> Output {
    fleet.command().args(arguments).args(["--json", "--insecure"]).output().unwrap()
}

fn run(fleet: &Fleet, arguments: &[&str]) -> Value {
    let output = output(fleet, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The skew report, once every host is bounded.
fn settled(fleet: &Fleet) -> Value {
    for _ in 0..300 {
        let skew = run(fleet, &["skew"]);
        if skew["hosts"].as_array().unwrap().iter().all(|host| host["state"] == "ok") {
            return skew;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("not every clock could be bounded: {}", fleet.cluster.server.log().unwrap());
}

fn exports(fleet: &Fleet, name: &str) -> Vec<Export> {
    let export = |host: &coeval_cli::cluster::Host| Export {
        endpoint: Endpoint::Unix(host.nbd_socket.clone()),
        name: name.to_owned(),
    };
    fleet.cluster.hosts.iter().map(export).collect()
}

#[test]
fn certified_snapshots_under_load_are_consistent_cuts() {
    let fleet = Fleet::start(&NAMES, &[], &[]).unwrap();
    for name in NAMES {
        run(&fleet, &["volume", "create", &format!("{name}/data"), "16MiB"]);
    }
    let skew = settled(&fleet);
    for row in skew["hosts"].as_array().unwrap().iter().chain(skew["pairs"].as_array().unwrap()) {
        let (offset, hard) = (row["offset_ns"].as_i64().unwrap(), row["hard_ns"].as_i64().unwrap());
        assert!(offset.abs() <= hard, "one kernel's clock is not off from itself: {row}");
    }

    let workload = Workload::start(&exports(&fleet, "data"), TOKENS, Duration::from_micros(200)).unwrap();
    for (mode, count) in [("timed", 10), ("barrier", 5)] {
        for number in 0..count {
            let name = format!("{mode}-{number}");
            let manifest = run(&fleet, &["snapshot", "create", &name, "--mode", mode, "--attempts", "10"]);
            assert_eq!(manifest["verdict"], "consistent", "{manifest}");
            assert_eq!(manifest["margin_ns"].is_null(), mode == "barrier", "{manifest}");
            assert_eq!(check_exports(&exports(&fleet, &format!("data@{name}")), TOKENS).unwrap(), []);
        }
    }
    assert!(!workload.has_failed());
    workload.stop().unwrap();

    let verified = run(&fleet, &["snapshot", "verify", "timed-3"]);
    assert_eq!((&verified["verdict"], &verified["intact"]), (&"consistent".into(), &true.into()));
    let listed = run(&fleet, &["snapshot", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 15);
    for number in 0..5 {
        run(&fleet, &["snapshot", "delete", &format!("barrier-{number}")]);
        run(&fleet, &["snapshot", "delete", &format!("timed-{number}")]);
    }
    assert_eq!(check_exports(&exports(&fleet, "data@timed-7"), TOKENS).unwrap(), []);
    assert_eq!(check_exports(&exports(&fleet, "data"), TOKENS).unwrap(), [], "nothing acknowledged was lost");
    assert!(!output(&fleet, &["snapshot", "show", "timed-0"]).status.success(), "it is deleted");
}

#[test]
fn a_simulated_clock_is_refused_by_a_server_that_was_not_told_of_it() {
    let fleet = Fleet::start(&["a"], &["--simulate-clock", "offset=5ms"], &[]).unwrap();
    run(&fleet, &["volume", "create", "a/data", "16MiB"]);
    let refused = output(&fleet, &["snapshot", "create", "--mode", "timed"]);
    assert!(!refused.status.success());
    let sentence = String::from_utf8_lossy(&refused.stderr);
    assert!(sentence.contains("simulated clock") && sentence.trim().lines().count() == 1, "{sentence}");
    assert_eq!(run(&fleet, &["skew"])["hosts"][0]["state"], "simulated");
}
