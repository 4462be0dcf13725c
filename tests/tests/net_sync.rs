//! A machine that runs nothing of ours, only Debian's `ptp4l` that measures end to end, is asked as a NetSync monitor.

use coeval_cli::cluster::ServerReady;
use harness::namespaces::Network;
use harness::ptp4l::{Ptp4l, assert_covers_zero};
use harness::tools::{finish, run, skew, start, stop};
use harness::{coeval, eventually};
use serde_json::Value;

#[test]
fn a_stock_ptp4l_that_measures_end_to_end_is_probed_and_appears_in_the_skew_report() {
    let network = Network::new(2).unwrap();
    let [here, there] = &network.hosts[..] else { unreachable!("two were made") };
    let directory = tempfile::tempdir().unwrap();
    let mut ptp4l = Ptp4l::start(there, directory.path(), &["-E", "--hybrid_e2e=1", "--net_sync_monitor=1"]);
    let target = there.address.to_string();
    let probe = |more: &[&str]| {
        let mut command = here.command(coeval());
        command.args(["probe", &target, "--interval", "20ms"]).args(more);
        command
    };
    eventually(|| {
        assert!(ptp4l.0.try_wait().unwrap().is_none(), "ptp4l ended");
        let answered = finish(&mut probe(&["--net-sync", "--count", "1"])).status.success();
        answered.then_some(()).ok_or("not so yet: ptp4l answers")
    });
    // It does not know peer delay.
    assert_eq!(finish(&mut probe(&["--count", "1"])).status.code(), Some(1));
    let printed = run(&mut probe(&["--net-sync", "--count", "20", "--json"]));
    let lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answer = lines[..20].iter().find_map(|line| line["exchange"]["answer"].as_object()).unwrap();
    assert_eq!((&answer["sent"], &answer["received"]), (&"software".into(), &"software".into()));
    assert_covers_zero(&lines[20]["summary"]["offset_ns"], &lines[20]["summary"]["hard_ns"]);

    let config = format!(
        "listen = \"127.0.0.1:0\"\nstate = {:?}\n\
         [[host]]\nname = \"stock\"\ntime = \"{target}:319\"\nagentless = true\nmechanism = \"net-sync\"\n",
        directory.path().join("server"),
    );
    let mut server = start(here.command(coeval()), "server", directory.path(), &config);
    let ServerReady { api } = server.ready().unwrap();
    let row = eventually(|| {
        let report = skew(here.command(coeval()).env("COEVAL_SERVER", &api));
        let row = report["hosts"][0].clone();
        (row["state"] == "agentless" && row["exchanges"].as_u64() >= Some(20))
            .then_some(row)
            .ok_or("not so yet: the report shows it")
    });
    assert_covers_zero(&row["offset_ns"], &row["hard_ns"]);
    assert_eq!(row["timestamps"], "software");
    stop(&mut server);
}
