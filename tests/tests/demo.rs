//! `coeval demo` as a user runs it.

use std::process::Command;

use harness::coeval;
use serde_json::Value;

#[test]
fn the_demonstration_keeps_its_promises() {
    let output = Command::new(coeval()).args(["demo", "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(output.status.success(), "{}\n{report:#}", String::from_utf8_lossy(&output.stderr));
    assert!(report["hosts"].as_array().unwrap().iter().all(|host| host["covered"] == true));
    for (phase, taken) in
        [(&report["timed"], 50), (&report["barrier"], 20), (&report["lopsided"]["timed"], 20)]
    {
        assert_eq!((&phase["snapshots"], &phase["violations"]), (&taken.into(), &0.into()), "{report:#}");
        assert!(phase["consistent"].as_u64().unwrap() > 0, "{report:#}");
    }
    let controls = report["controls"].as_array().unwrap();
    assert_eq!(controls.len(), 3);
    for control in controls {
        assert!(control["violations"].as_u64().unwrap() > 0, "{control}");
        assert_eq!(control["called_consistent"], 0, "{control}");
    }
}
