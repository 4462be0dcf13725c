//! What Prometheus scrapes, read by its own strict parser, and what the docs make of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::tools::{command, run, two_hosts_with_volumes};
use harness::{eventually, python};
use serde_json::Value;
use snapshot::nbd::{Client, Endpoint};

/// Reads OpenMetrics on stdin, and prints each sample as JSON: name, labels, value. Fails where it is not to the letter.
const PARSE: &str = "
import json, sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
families = list(parse(sys.stdin.read()))
print(json.dumps({f.name: {'type': f.type, 'help': f.documentation,
    'samples': [[s.name, s.labels, s.value] for s in f.samples]} for f in families}))
";

fn scrape(url: &str) -> Value {
    // Without a client of our own: as Prometheus would.
    let get = "import sys, urllib.request as r; sys.stdout.write(r.urlopen(sys.argv[1]).read().decode())";
    let text =
        run(Command::new(python::programs().join("python")).args(["-c", get]).arg(format!("{url}/metrics")));
    let mut parser = Command::new(python::programs().join("python"));
    let mut parser = parser.args(["-c", PARSE]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    parser.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "the parser refuses this:\n{text}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The value of a sample with these labels.
fn value(scraped: &Value, sample: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let samples =
        scraped.as_object().unwrap().values().flat_map(|family| family["samples"].as_array().unwrap());
    let is_it = |it: &&Value| it[0] == sample && labels.iter().all(|(name, wanted)| it[1][*name] == *wanted);
    samples.clone().find(is_it).and_then(|it| it[2].as_f64())
}

/// Every word that may be a metric's name in a file of the docs.
fn words(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("coeval_")).map(str::to_owned).collect()
}

#[test]
fn metrics_are_to_the_letter_and_tell_what_happened() {
    let cluster = two_hosts_with_volumes(&[]);
    // On a busy machine an order comes too late now and then.
    run(command(&cluster).args(["snapshot", "create", "first", "--mode", "timed", "--attempts", "10"]));
    run(command(&cluster).args(["schedule", "create", "yearly", "--cron", "0 0 1 1 *"]));
    let mut client = Client::connect(&Endpoint::Unix(cluster.hosts[0].nbd_socket.clone()), "data").unwrap();
    client.write(0, &[7; 4096], false).unwrap();
    client.flush().unwrap();
    let mut content = [0; 4096];
    client.read(0, &mut content).unwrap();
    assert_eq!(content, [7; 4096]);

    let server = scrape(&cluster.api);
    let near = |name, host, wanted: f64| {
        let found = value(&server, name, &[("host", host)]).unwrap();
        assert!((found - wanted).abs() < 1e-3, "{name} of {host} is {found}");
    };
    near("coeval_clock_offset_seconds", "a", 0.035);
    near("coeval_clock_offset_seconds", "b", -0.002);
    near("coeval_clock_hard_bound_seconds", "a", 0.0);
    assert!(value(&server, "coeval_clock_exchanges_total", &[("host", "b")]).unwrap() > 0.0);
    assert_eq!(value(&server, "coeval_clock_state", &[("host", "a"), ("state", "ok")]), Some(1.0));
    assert!(
        value(&server, "coeval_clock_worst_pair_hard_bound_seconds", &[("a", "a"), ("b", "b")]).is_some()
    );
    assert_eq!(value(&server, "coeval_snapshots_total", &[("outcome", "consistent")]), Some(1.0));
    assert_eq!(value(&server, "coeval_snapshot_margin_seconds_count", &[]), Some(1.0));
    assert!(value(&server, "coeval_snapshot_attempts_total", &[("mode", "timed")]).unwrap() >= 1.0);
    assert_eq!(value(&server, "coeval_schedule_missed_total", &[("schedule", "yearly")]), Some(0.0));

    let host = scrape(&cluster.hosts[0].ready.control);
    for command in ["read", "write", "flush"] {
        let labels = [("command", command)];
        assert_eq!(value(&host, "coeval_nbd_requests_total", &labels), Some(1.0), "{command}");
        assert_eq!(
            value(&host, "coeval_nbd_request_duration_seconds_count", &labels),
            Some(1.0),
            "{command}"
        );
        assert_eq!(value(&host, "coeval_nbd_errors_total", &labels), Some(0.0), "{command}");
    }
    assert_eq!(value(&host, "coeval_nbd_bytes_total", &[("command", "write")]), Some(4096.0));
    assert_eq!(value(&host, "coeval_nbd_connections", &[]), Some(1.0));
    assert_eq!(value(&host, "coeval_volume_size_bytes", &[("volume", "data")]), Some(1048576.0));
    assert!(value(&host, "coeval_cuts_total", &[("released_by", "time")]).unwrap() >= 1.0);
    assert!(value(&host, "coeval_volumes_free_bytes", &[]).unwrap() > 0.0);
    // What a connection has counted stays when it is gone.
    drop(client);
    eventually(|| {
        let host = scrape(&cluster.hosts[0].ready.control);
        let writes = value(&host, "coeval_nbd_requests_total", &[("command", "write")]);
        assert_eq!(writes, Some(1.0));
        let open = value(&host, "coeval_nbd_connections", &[]);
        if open == Some(0.0) { Ok(()) } else { Err(format!("still open: {open:?}")) }
    });

    // The docs name what there is, and nothing else.
    let mut there = BTreeSet::new();
    let mut samples = BTreeSet::new();
    for (name, family) in server.as_object().unwrap().iter().chain(host.as_object().unwrap()) {
        assert!(!family["help"].as_str().unwrap().is_empty(), "{name} is not explained");
        let suffixes: &[&str] = match family["type"].as_str().unwrap() {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        samples.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
        there.insert(if suffixes == ["_total"] { format!("{name}_total") } else { name.clone() });
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let read = |file: &str| std::fs::read_to_string(docs.join(file)).unwrap();
    assert_eq!(words(&read("metrics.md")), there, "docs/metrics.md and the daemons differ");
    for file in ["alerts.yml", "grafana.json"] {
        let named = words(&read(file));
        assert!(!named.is_empty());
        let unknown: Vec<_> = named.difference(&samples).collect();
        assert!(unknown.is_empty(), "{file} names what there is not: {unknown:?}");
    }
    // Every metric is on the dashboard or in an alert, but for those that only explain others.
    let used: BTreeSet<String> =
        words(&read("alerts.yml")).union(&words(&read("grafana.json"))).cloned().collect();
    let base = |sample: &str| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| sample.strip_suffix(end))
            .unwrap_or(sample)
            .to_owned()
    };
    let used: BTreeSet<String> = used.iter().map(|sample| base(sample)).collect();
    let unused: Vec<_> =
        there.iter().filter(|name| !used.contains(*name) && !used.contains(&base(name))).collect();
    assert!(unused.is_empty(), "neither on the dashboard nor in an alert: {unused:?}");

    let yaml = "import sys, json, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let alerts =
        run(Command::new(python::programs().join("python")).args(["-c", yaml]).arg(docs.join("alerts.yml")));
    let alerts: Value = serde_json::from_str(&alerts).unwrap();
    for rule in
        alerts["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap())
    {
        assert!(rule["alert"].is_string() && rule["expr"].is_string(), "{rule}");
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
    }
    let dashboard: Value = serde_json::from_str(&read("grafana.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}
