//! A stock `ptp4l` (Debian's linuxptp) as the peer: it needs no module to be probed, nor to appear in a skew report.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::process::Command;
use std::time::Duration;

use coeval_cli::daemon::Daemon;
use harness::coeval;
use harness::namespaces::Network;
use serde_json::Value;

/// Kills what it holds when dropped.
struct Process(std::process::Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines(command: &mut Command) -> Vec<Value> {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_stock_ptp4l_is_probed_and_reported() {
    let network = Network::new(2).unwrap();
    let [server, responder] = [&network.hosts[0], &network.hosts[1]];
    let options = ["-4", "-S", "-P", "-i", "eth0", "--free_running=1", "--slaveOnly=1", "-q"];
    let child = responder.command("ptp4l").args(options).spawn().unwrap();
    let _ptp4l = Process(child);
    let address = responder.address.to_string();

    let probe = || {
        lines(server.command(coeval()).args([
            "probe",
            &address,
            "--count",
            "4",
            "--interval",
            "20ms",
            "--json",
        ]))
    };
    let summary = (0..50).find_map(|_| {
        let lines = probe();
        let summary = lines.last()?["summary"].clone();
        (summary["lost"] == 0).then_some(summary)
    });
    let summary = summary.expect("ptp4l answers");
    let (offset, hard) = (summary["offset_ns"].as_i64().unwrap(), summary["hard_ns"].as_i64().unwrap());
    assert!(offset.abs() <= hard, "one kernel's clock is not off from itself: {summary}");

    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("server.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nstate = {:?}\n[[host]]\nname = \"clock\"\ntime = \"{address}:319\"\nagentless = true\n",
        directory.path().join("state")
    );
    std::fs::write(&config, text).unwrap();
    let mut command = server.command(coeval());
    command.args(["server", "--with-parent", "--config"]).arg(&config);
    let daemon = Daemon::start(command, &directory.path().join("log")).unwrap();
    let api = daemon.ready::<Value>().unwrap()["api"].as_str().unwrap().to_owned();
    let skew = || lines(server.command(coeval()).args(["skew", "--json", "--server", &api])).remove(0);
    let row = (0..300).find_map(|_| {
        std::thread::sleep(Duration::from_millis(100));
        let row = skew()["hosts"][0].clone();
        (row["state"] == "agentless").then_some(row)
    });
    let row = row.unwrap_or_else(|| panic!("ptp4l is not reported: {}", daemon.log().unwrap()));
    let (offset, hard) = (row["offset_ns"].as_i64().unwrap(), row["hard_ns"].as_i64().unwrap());
    assert!(offset.abs() <= hard, "one kernel's clock is not off from itself: {row}");
}
