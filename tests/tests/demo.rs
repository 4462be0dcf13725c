//! `coeval demo --json` keeps its promises, in the shape that it promises.

use std::process::Command;

use harness::coeval;
use harness::fleet::json_of;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Report {
    hosts: Vec<Host>,
    timed: Phase,
    barrier: Phase,
    lopsided: Lopsided,
    controls: Vec<Control>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    host: String,
    true_offset_ns: i64,
    offset_ns: i64,
    hard_ns: i64,
    covered: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Phase {
    snapshots: u64,
    consistent: u64,
    violations: u64,
    v_ns: Option<i64>,
    margin_ns_min: Option<i64>,
    stretch_ns: Stretch,
    write_ns: Writes,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stretch {
    p50: u64,
    p99: u64,
    max: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Writes {
    p50_quiet: u64,
    p99_quiet: u64,
    p50_during: u64,
    p99_during: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lopsided {
    added_ns: i64,
    timed: Phase,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Control {
    name: String,
    snapshots: u64,
    violations: u64,
    called_consistent: u64,
}

#[test]
fn certified_snapshots_are_consistent_and_every_control_is_caught() {
    // Its exit status is checked too: it is not 0 where any promise was broken.
    let report: Report = json_of(Command::new(coeval()).args(["demo", "--json"]));

    assert_eq!(report.hosts.len(), 3);
    for host in &report.hosts {
        let within = (host.offset_ns - host.true_offset_ns).abs() <= host.hard_ns;
        assert!(host.covered && within && !host.host.is_empty(), "{host:?}");
    }
    let furthest_apart = report.hosts.iter().map(|host| host.true_offset_ns);
    let (least, most) = (furthest_apart.clone().min().unwrap(), furthest_apart.max().unwrap());
    assert!(most - least > 10_000_000, "the clocks differ by tens of milliseconds: {:?}", report.hosts);

    assert_eq!((report.timed.snapshots, report.barrier.snapshots), (50, 20));
    assert_eq!(report.lopsided.added_ns, 2_000_000);
    for phase in [&report.timed, &report.barrier, &report.lopsided.timed] {
        assert!(phase.consistent > 0 && phase.consistent <= phase.snapshots, "{phase:?}");
        assert_eq!(phase.violations, 0, "{phase:?}");
        let Stretch { p50, p99, max } = phase.stretch_ns;
        assert!(p50 <= p99 && p99 <= max, "{phase:?}");
        let Writes { p50_quiet, p99_quiet, p50_during, p99_during } = phase.write_ns;
        assert!(0 < p50_quiet && p50_quiet <= p99_quiet, "{phase:?}");
        assert!(0 < p50_during && p50_during <= p99_during, "{phase:?}");
    }
    for phase in [&report.timed, &report.lopsided.timed] {
        assert!(phase.v_ns.is_some() && phase.margin_ns_min.is_some_and(|margin| margin > 0), "{phase:?}");
    }
    assert_eq!((report.barrier.v_ns, report.barrier.margin_ns_min), (None, None));

    let names: Vec<&str> = report.controls.iter().map(|control| control.name.as_str()).collect();
    assert_eq!(names, ["uncoordinated", "untranslated", "zero_stretch"]);
    for control in &report.controls {
        assert!(control.snapshots > 0 && control.violations > 0, "not caught by the checker: {control:?}");
        assert_eq!(control.called_consistent, 0, "not caught by the certificate: {control:?}");
    }
}
