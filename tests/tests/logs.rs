//! The daemons' logs as JSON: one snapshot's id finds its lines on all machines.

use harness::tools::{command, run, two_hosts_with_volumes};
use serde_json::Value;

/// The lines of a log, each an object.
fn lines(log: &str) -> Vec<Value> {
    log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"))).collect()
}

fn snapshot_of(line: &Value) -> Option<&str> {
    line["snapshot"].as_str().or(line["span"]["snapshot"].as_str())
}

#[test]
fn every_line_about_a_snapshot_has_its_id_on_every_machine() {
    let cluster = two_hosts_with_volumes(&["--log-format", "json"]);
    let mut ids = Vec::new();
    for name in ["first", "second"] {
        let manifest = run(command(&cluster).args(["snapshot", "create", name, "--json"]));
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        ids.push(manifest["id"].as_str().unwrap().to_owned());
    }
    // Before any of it is told.
    let daemons = cluster.hosts.iter().map(|host| &host.daemon).chain([&cluster.server]);
    for daemon in daemons {
        let lines = lines(&daemon.log().unwrap());
        assert!(
            lines.iter().all(|line| line["message"].is_string() && line["level"].is_string()),
            "{lines:?}"
        );
        for (id, name) in ids.iter().zip(["first", "second"]) {
            let its: Vec<_> = lines.iter().filter(|line| snapshot_of(line) == Some(id)).collect();
            assert!(its.iter().any(|line| line["name"] == name), "{id} is not told of: {lines:?}");
        }
        // Whatever names a snapshot or an attempt has the id.
        let about = |line: &&Value| {
            let message = line["message"].as_str().unwrap();
            message.contains("snapshot") || message.contains("attempt") || !line["attempt"].is_null()
        };
        for line in lines.iter().filter(about) {
            assert!(snapshot_of(line).is_some_and(|id| ids.iter().any(|known| known == id)), "{line}");
        }
    }
}
