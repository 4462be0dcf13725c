use timesync::bound::Assumptions;
use timesync::exchange::StampClass;
use timesync::report::{Asymmetry, RoundTrips};
use timesync::server::State;
use timesync::time::Time;

use super::*;

fn row(host: &str) -> HostRow {
    HostRow {
        timeline_ns: None,
        host: host.to_owned(),
        address: "10.0.0.11:319".parse().unwrap(),
        offset_ns: Some(35_000_123),
        hard_ns: Some(1_311),
        statistical_ns: Some(480),
        confidence: Some(0.999),
        basis: Some(Basis::Samples),
        asymmetry: Some(Asymmetry { ns: 500, source: AsymmetrySource::Configured }),
        assumptions: Assumptions::default(),
        rtt_ns: Some(RoundTrips { min: 2_570, p50: 2_815, p99: 41_000 }),
        drift_ppb: Some(40_012.3),
        timestamps: Some(StampClass::Software),
        exchanges: 48_211,
        lost: 7,
        at_ns: Some(Time::from_nanos(1)),
        age_ms: Some(41),
        state: State::Ok,
        why: None,
    }
}

fn unbounded(host: &str, state: State, why: &str) -> HostRow {
    HostRow {
        offset_ns: None,
        hard_ns: None,
        statistical_ns: None,
        confidence: None,
        basis: None,
        asymmetry: None,
        rtt_ns: None,
        drift_ppb: None,
        timestamps: None,
        exchanges: 0,
        age_ms: None,
        state,
        why: Some(why.to_owned()),
        ..row(host)
    }
}

/// A host, a machine without our module, one that fell silent and one that never was.
pub fn report() -> Report {
    let stock = HostRow {
        offset_ns: Some(-812),
        hard_ns: Some(60_020),
        statistical_ns: Some(60_020),
        confidence: Some(1.0),
        basis: Some(Basis::DefaultBudget),
        asymmetry: Some(Asymmetry { ns: 120_040, source: AsymmetrySource::Default }),
        assumptions: Assumptions { rate_ppb: 1_200_000, wander_ppb_per_s: None, ..Assumptions::default() },
        drift_ppb: Some(-140.0),
        state: State::Agentless,
        ..row("stock")
    };
    let pair = |a: &str, b: &str, offset_ns, hard_ns, statistical_ns| PairRow {
        a: a.to_owned(),
        b: b.to_owned(),
        offset_ns,
        hard_ns,
        statistical_ns,
    };
    let silent = "has not answered at 10.0.0.12:319 for 12 s; look whether the machine and its `coeval host` still run";
    let never = "has never answered at 10.0.0.14:319; start `coeval host` there, and let UDP to that port and back through \
                 the firewalls";
    Report {
        hosts: vec![
            row("db1"),
            stock,
            unbounded("db2", State::Silent, silent),
            unbounded("backup-target-2", State::Silent, never),
        ],
        pairs: vec![
            pair("db1", "stock", Some(35_000_935), Some(61_331), Some(60_500)),
            pair("db1", "db2", None, None, None),
        ],
        pair_count: 6,
    }
}

fn assert_fits(text: &str) {
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "wider than {WIDTH} columns:\n{text}");
}

#[test]
fn a_report_as_people_see_it() {
    let expected = "\
CLOCK_REALTIME of each host less the server's

host                offset   hard ±  stat. ±      rtt      drift     class    loss    age      state
db1            +35.0001 ms  1.32 µs   480 ns  2.82 µs  +40.0 ppm  software  <0.1 %  41 ms         ok
stock              -812 ns  60.1 µs   = hard  2.82 µs  -0.14 ppm  software  <0.1 %  41 ms  agentless
db2                      -        -        -        -          -         -   100 %      -     silent
back…target-2            -        -        -        -          -         -   100 %      -     silent

Without a bound:
  db2 has not answered at 10.0.0.12:319 for 12 s; look whether the machine and its `coeval host`
      still run.
  backup-target-2 has never answered at 10.0.0.14:319; start `coeval host` there, and let UDP to
      that port and back through the firewalls.

Hosts against each other

pair             offset   hard ±  stat. ±
db1 - stock  +35.001 ms  61.4 µs  60.5 µs

No two of these bounded clocks are more than 35.1 ms apart (db1 - stock).
hard: true whatever the network does, under each host's `assumptions` (--json).
stat.: true with a confidence of 99.9 % for each host, if the usual delays of its two ways differ by
    no more than 500 ns (as configured).
stat. = hard without an asymmetry budget (`asymmetry` in [[host]]): nothing is left to chance, so no
    confidence is given.
";
    let text = describe(&report());
    assert_fits(&text);
    assert_eq!(text, expected);
}

#[test]
fn hosts_alike_share_their_assumptions_and_a_confidence_of_one_is_never_printed() {
    let mut report = report();
    report.hosts.remove(0);
    report.hosts.push(HostRow { assumptions: report.hosts[0].assumptions, ..row("db1") });
    report.pairs.clear();
    let text = describe(&report);
    assert!(text.contains("if clocks run within 1200 ppm of the server's.\n"), "{text}");
    report.hosts.retain(|row| row.host == "stock");
    let text = describe(&report);
    assert!(!text.contains("100 %") && !text.contains("confidence of"), "{text}");
    let strange = [Basis::TooFewSamples, Basis::BudgetContradicted].map(|basis| HostRow {
        basis: Some(basis),
        statistical_ns: Some(1_311),
        ..row("db1")
    });
    let text = describe(&Report { hosts: strange.to_vec(), ..Report::default() });
    assert!(text.contains("change by at most 100 ppb a second.\n"), "{text}");
    assert!(text.contains("= hard for 1 of the hosts: too few samples"), "{text}");
    assert!(text.contains("= hard for db1: its samples contradict its asymmetry budget"), "{text}");
    assert_fits(&text);
}

#[test]
fn the_widest_cells_and_many_hosts_fit() {
    let wide = |number: usize| HostRow {
        host: format!("database-in-a-far-away-region-{number:04}"),
        offset_ns: Some(-31_536_000_000_000_123),
        hard_ns: Some(999_000),
        statistical_ns: Some(999_000),
        drift_ppb: Some(-200_000.0),
        timestamps: Some(StampClass::Userspace),
        rtt_ns: Some(RoundTrips { min: 1, p50: 999_000, p99: 1_000_000 }),
        age_ms: Some(6_000_000_000),
        state: State::Agentless,
        ..row("")
    };
    let mut hosts: Vec<HostRow> = (0..100).map(wide).collect();
    hosts.extend(
        (0..30).map(|number| unbounded(&format!("gone-{number}"), State::Silent, "has never answered")),
    );
    let text = describe(&Report { hosts, ..Report::default() });
    assert_fits(&text);
    assert!(text.contains("42  -31536000.00 s") && text.contains("  and 20 more\n"), "{text}");
}
