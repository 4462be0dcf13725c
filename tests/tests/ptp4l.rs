//! A machine that runs nothing of ours, only Debian's `ptp4l`, is probed and appears in the skew report.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use coeval_cli::cluster::ServerReady;
use coeval_cli::daemon::Daemon;
use harness::namespaces::{Namespace, Network};
use harness::ptp4l::{Ptp4l, assert_covers_zero};
use harness::tools::{self, finish, refusal_of, run, start, stop};
use harness::{coeval, eventually};
use serde_json::Value;

fn start_server(place: &Namespace, responder: SocketAddr, directory: &Path) -> (Daemon, String) {
    let config = format!(
        "listen = \"127.0.0.1:0\"\nstate = {:?}\n[[host]]\nname = \"stock\"\ntime = \"{responder}\"\nagentless = true\n",
        directory.join("server"),
    );
    let daemon = start(place.command(coeval()), "server", directory, &config);
    let ready: ServerReady = daemon.ready().unwrap();
    (daemon, ready.api)
}

fn skew(place: &Namespace, api: &str) -> Value {
    let report = tools::skew(place.command(coeval()).env("COEVAL_SERVER", api));
    assert_eq!(report["hosts"].as_array().unwrap().len(), 1);
    report["hosts"][0].clone()
}

#[test]
fn a_stock_ptp4l_is_probed_and_appears_in_the_skew_report() {
    let network = Network::new(2).unwrap();
    let [here, there] = &network.hosts[..] else { unreachable!("two were made") };
    let directory = tempfile::tempdir().unwrap();
    let target = there.address.to_string();
    let probe = |more: &[&str]| {
        let mut command = here.command(coeval());
        command.args(["probe", &target, "--interval", "20ms", "--count"]).args(more);
        command
    };

    let unanswered = finish(&mut probe(&["1"]));
    assert_eq!(unanswered.status.code(), Some(1), "nobody answers yet");
    assert!(String::from_utf8_lossy(&unanswered.stdout).contains("1 exchanges, 1 lost"));

    let mut ptp4l = Ptp4l::start(there, directory.path(), &["-P"]);
    eventually(|| {
        assert!(ptp4l.0.try_wait().unwrap().is_none(), "ptp4l ended");
        finish(&mut probe(&["1"])).status.success().then_some(()).ok_or("not so yet: ptp4l answers")
    });
    let printed = run(&mut probe(&["5"]));
    assert!(printed.lines().filter(|line| line.contains("offset=")).count() >= 3, "{printed}");
    assert!(printed.contains("(hard bound)"), "{printed}");
    let printed = run(&mut probe(&["20", "--json"]));
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 21, "one for each exchange, and a summary");
    assert_eq!(lines[0]["exchange"]["target"], target);
    let answer = lines[..20].iter().find_map(|line| line["exchange"]["answer"].as_object()).unwrap();
    assert_eq!(answer["sent"], "software", "the kernel stamps");
    assert!(answer["responder"].is_null(), "a stock responder does not say how it stamps");
    assert_covers_zero(&lines[20]["summary"]["offset_ns"], &lines[20]["summary"]["hard_ns"]);

    let responder = SocketAddr::new(there.address, 319);
    let (mut server, api) = start_server(here, responder, directory.path());
    let row = eventually(|| {
        let row = skew(here, &api);
        (row["state"] == "agentless" && row["exchanges"].as_u64() >= Some(20))
            .then_some(row)
            .ok_or("not so yet: the report shows it")
    });
    assert_eq!(row["host"], "stock");
    assert_covers_zero(&row["offset_ns"], &row["hard_ns"]);
    assert!(row["statistical_ns"].as_i64() <= row["hard_ns"].as_i64(), "{row}");
    assert!(row["drift_ppb"].as_f64().is_none_or(|ppb| ppb.abs() < 200_000.0), "{row}");
    assert!(row["rtt_ns"]["min"].as_u64().unwrap() <= row["rtt_ns"]["p50"].as_u64().unwrap());
    let table = run(here.command(coeval()).args(["skew", "--server", &api]));
    assert!(table.contains("stock") && table.contains("agentless"), "{table}");

    // It cannot be cut: it has no volumes and no coeval host.
    let create = ["snapshot", "create", "--volume", "stock/data", "--server", &api];
    let sentence = refusal_of(here.command(coeval()).args(create));
    assert!(sentence.contains("stock"), "{sentence}");
    // While the server has the PTP ports, a probe from there says so.
    let sentence = refusal_of(&mut probe(&["1"]));
    assert!(sentence.contains("319") && sentence.contains("choose another port"), "{sentence}");

    drop(ptp4l);
    let row = eventually(|| {
        let row = skew(here, &api);
        (row["state"] == "silent").then_some(row).ok_or("not so yet: its silence is noticed")
    });
    assert!(row["offset_ns"].is_null() && row["hard_ns"].is_null(), "what is not known is not shown: {row}");

    let _ptp4l = Ptp4l::start(there, directory.path(), &["-P"]);
    let row = eventually(|| {
        let row = skew(here, &api);
        (row["state"] == "agentless" && row["hard_ns"].is_i64())
            .then_some(row)
            .ok_or("not so yet: its return is noticed")
    });
    assert_covers_zero(&row["offset_ns"], &row["hard_ns"]);
    stop(&mut server);
}

#[test]
fn a_probe_of_nobody_says_so() {
    for (target, told) in [("no such host", "no such host"), ("127.0.0.1:99999", "127.0.0.1:99999")] {
        let sentence =
            refusal_of(Command::new(coeval()).args(["probe", "--count", "1", "--port", "0", target]));
        assert!(sentence.contains(told), "{sentence}");
    }
}
