//! Three hosts and a server in network namespaces, with the real binary: what `coeval snapshot` and `coeval skew` say
//! is held against a causal workload and against the truth, which is that all hosts share one kernel's clock.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test's helpers fail")]

use harness::eventually;
use harness::fleet::{Fleet, HOSTS, assert_writes_go_on};
use harness::tools::skew;
use serde_json::Value;
use snapshot::certificate::Mode;
use snapshot::cut::Cause;
use snapshot::messages::{Manifest, Snapshot, SnapshotDetails, SnapshotState, Verdict, VerifyReport};
use timesync::exchange::StampClass;
use timesync::report::Report;
use timesync::server::State;
use timesync::time::Nanos;

#[test]
fn every_snapshot_is_consistent_certified_and_intact() {
    let fleet = Fleet::of_three();
    let hosts = &fleet.cluster.hosts;
    let workload = fleet.start_workload(hosts);
    let mut names = Vec::new();
    for (mode, count) in [("timed", 30), ("barrier", 10), ("auto", 5)] {
        for number in 1..=count {
            let name = format!("{mode}-{number}");
            // On a busy machine an order comes too late now and then.
            let arguments = ["snapshot", "create", &name, "--mode", mode, "--attempts", "10"];
            let manifest: Value = fleet.coeval(&arguments);
            assert_has_every_key(&manifest);
            let manifest: Manifest = serde_json::from_value(manifest).unwrap();
            assert_eq!((manifest.name.as_str(), manifest.verdict), (name.as_str(), Verdict::Consistent));
            match manifest.mode.expect("it was coordinated") {
                Mode::Timed => assert_timed(&manifest),
                Mode::Barrier => assert_barrier(&manifest),
            }
            assert!(mode == "auto" || manifest.mode == serde_json::from_value(mode.into()).unwrap());
            fleet.assert_consistent(hosts, &name);
            assert_covers_the_truth(&fleet.coeval(&["skew"]));
            names.push(name);
        }
    }
    assert_writes_go_on(&workload);

    let listed: Vec<Snapshot> = fleet.coeval(&["snapshot", "list"]);
    assert_eq!(listed.iter().map(|row| row.name.clone()).collect::<Vec<_>>(), names);
    assert!(listed.iter().all(|row| row.state == SnapshotState::Complete), "{listed:?}");
    for name in &names {
        assert_shown(&fleet, name);
        let report: VerifyReport = fleet.coeval(&["snapshot", "verify", name]);
        assert!(report.verdict == Verdict::Consistent && report.intact, "{report:?}");
        assert!(report.volumes.len() == 3 && report.volumes.iter().all(|volume| volume.stored.is_some()));
        fleet.assert_consistent(hosts, name);
    }
    for name in &names {
        fleet.delete(name);
    }
    let listed: Vec<Snapshot> = fleet.coeval(&["snapshot", "list"]);
    assert_eq!(listed, []);
    workload.stop().expect("no write failed");
    fleet.wait_until_nothing_is_left();
}

#[test]
fn a_simulated_clock_is_refused_by_a_server_that_was_not_told_of_it() {
    let fleet = Fleet::start(&["a"], &["--simulate-clock", "offset=5ms"], &[]).expect("it needs root");
    fleet.create_volume("a");
    eventually(|| {
        let report: Report = serde_json::from_value(skew(&mut fleet.command())).unwrap();
        let seen = report.hosts[0].state == State::Simulated;
        if seen { Ok(()) } else { Err("not so yet: the server sees through it") }
    });
    let refused = fleet.command().args(["snapshot", "create", "--mode", "timed"]).output().unwrap();
    assert!(!refused.status.success());
    let sentence = String::from_utf8_lossy(&refused.stderr);
    assert!(sentence.contains("simulated clock") && sentence.trim().lines().count() == 1, "{sentence}");
}

/// What the design lists for `snapshot create --json`. Absent and null are two things in JSON.
fn assert_has_every_key(manifest: &Value) {
    let of_snapshot =
        "id name group mode verdict margin_ns v_ns attempts policy group_confidence hosts assumptions";
    let of_host = "host incarnation p_ns q_ns p_latest_ns q_earliest_ns error_ns held stretch_ns released_by \
                   timestamps volumes";
    let assert_keys = |object: &Value, keys: &str| {
        for key in keys.split_whitespace() {
            assert!(object.get(key).is_some(), "no {key} in {object}");
        }
    };
    assert_keys(manifest, of_snapshot);
    let hosts = manifest["hosts"].as_array().expect("hosts is an array");
    assert_eq!(hosts.len(), 3);
    for host in hosts {
        assert_keys(host, of_host);
        assert_keys(&host["stretch_ns"], "p50 p99 max");
    }
}

fn assert_timed(manifest: &Manifest) {
    let (v, margin) = (manifest.v_ns.expect("V"), manifest.margin_ns.expect("a margin"));
    assert_eq!(manifest.assumptions.clocks.len(), 3);
    assert!(!manifest.assumptions.simulated);
    let mut least = None;
    for (number, one) in manifest.hosts.iter().enumerate() {
        assert_eq!((one.released_by, one.timestamps), (Some(Cause::Time), Some(StampClass::Software)));
        let (at, p, q) = (one.at_ns.unwrap(), one.p_ns.unwrap(), one.q_ns.unwrap());
        assert!(p < at && q >= at + v, "{one:?}");
        let (p_latest, q_earliest) = (one.p_latest_ns.unwrap(), one.q_earliest_ns.unwrap());
        // One kernel: the host's readings are also the server's.
        assert!(p.as_nanos() <= p_latest.as_nanos(), "P is outside its bound: {one:?}");
        assert!(q.as_nanos() >= q_earliest.as_nanos(), "Q is outside its bound: {one:?}");
        for (_, other) in manifest.hosts.iter().enumerate().filter(|(other, _)| *other != number) {
            let distance = q_earliest - other.p_latest_ns.unwrap();
            least = Some(least.map_or(distance, |least: Nanos| least.min(distance)));
        }
    }
    assert_eq!(least, Some(margin), "the margin is the least distance from a P to another host's Q");
    assert!(margin > Nanos::ZERO);
}

fn assert_barrier(manifest: &Manifest) {
    assert_eq!((manifest.v_ns, manifest.margin_ns), (None, None));
    for host in &manifest.hosts {
        assert_eq!(host.released_by, Some(Cause::Barrier));
    }
}

fn assert_covers_the_truth(report: &Report) {
    assert_eq!((report.hosts.len(), report.pairs.len()), (3, 3));
    for host in &report.hosts {
        assert_eq!(host.timestamps, Some(StampClass::Software), "{host:?}");
        let (offset, hard) = (host.offset_ns.expect("an offset"), host.hard_ns.expect("a bound"));
        assert!(offset.abs() <= hard, "the true offset is 0: {host:?}");
    }
    for pair in &report.pairs {
        let (offset, hard) = (pair.offset_ns.expect("an offset"), pair.hard_ns.expect("a bound"));
        assert!(offset.abs() <= hard, "the true offset is 0: {pair:?}");
    }
}

/// `show` tells the same as `create` did, what happened on every host, and before long the digests.
fn assert_shown(fleet: &Fleet, name: &str) {
    let details: SnapshotDetails = eventually(|| {
        let details: SnapshotDetails = fleet.coeval(&["snapshot", "show", name]);
        let manifest = details.snapshot.manifest.as_ref().expect("a manifest");
        let mut volumes = manifest.hosts.iter().flat_map(|host| &host.volumes);
        let all = volumes.all(|volume| volume.digest.is_some());
        if all { Ok(details) } else { Err(format!("digests of {name} are missing")) }
    });
    for host in HOSTS {
        assert!(details.story.iter().any(|entry| entry.host.as_deref() == Some(host)), "{details:?}");
    }
}
