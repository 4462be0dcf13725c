//! What the demonstration found: as JSON, as tables, and as a verdict.

use std::fmt;

use serde::Serialize;
use snapshot::cut::Stretch;
use timesync::time::Nanos;

use crate::table::Table;
use crate::units::{format_offset, format_unsigned};

/// Everything the demonstration found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How far the clocks are from the server's, and how far the bound says they may be.
    pub hosts: Vec<HostReport>,
    /// Timed snapshots on the straight network.
    pub timed: Phase,
    /// Barrier snapshots on the straight network.
    pub barrier: Phase,
    /// Timed snapshots on the lopsided network.
    pub lopsided: Lopsided,
    /// What must fail.
    pub controls: Vec<Control>,
}

/// One host's clock.
#[derive(Clone, Debug, Serialize)]
pub struct HostReport {
    /// Its name.
    pub host: String,
    /// What its simulated clock deviates by.
    pub true_offset_ns: i64,
    /// What was measured.
    pub offset_ns: i64,
    /// The hard bound, as a half-width around `offset_ns`.
    pub hard_ns: i64,
    /// Whether the truth lies inside.
    pub covered: bool,
}

/// A series of snapshots under load.
#[derive(Clone, Debug, Serialize)]
pub struct Phase {
    /// How many were taken.
    pub snapshots: usize,
    /// How many were certified.
    pub consistent: usize,
    /// Violations that the checker found in certified ones.
    pub violations: usize,
    /// The median of V; none in barrier mode.
    pub v_ns: Option<i64>,
    /// The least margin; none in barrier mode.
    pub margin_ns_min: Option<i64>,
    /// How long replies were held: the median of the hosts' medians, the 99th percentile of their 99th percentiles,
    /// the largest of their largest.
    pub stretch_ns: Stretch,
    /// The workload's writes.
    pub write_ns: WriteLatencies,
}

/// How long the workload's writes took, with no snapshot under way and with one.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct WriteLatencies {
    /// Median with none.
    pub p50_quiet: u64,
    /// 99th percentile with none.
    pub p99_quiet: u64,
    /// Median with one.
    pub p50_during: u64,
    /// 99th percentile with one.
    pub p99_during: u64,
}

/// Snapshots on a network that delays two hosts' packets in opposite directions.
#[derive(Clone, Debug, Serialize)]
pub struct Lopsided {
    /// By how much, one way.
    pub added_ns: i64,
    /// The snapshots.
    pub timed: Phase,
}

/// Snapshots that lack something which consistency needs.
#[derive(Clone, Debug, Serialize)]
pub struct Control {
    /// `uncoordinated`, `untranslated` or `zero_stretch`.
    pub name: &'static str,
    /// How many were taken.
    pub snapshots: usize,
    /// Violations that the checker found in them.
    pub violations: usize,
    /// How many were certified and torn.
    pub called_consistent: usize,
}

impl Control {
    fn lacks(&self) -> &'static str {
        match self.name {
            "uncoordinated" => "each host cuts when it likes",
            "untranslated" => "T is not translated into the hosts' clocks",
            _ => "V = 0 on the lopsided network",
        }
    }
}

impl Report {
    fn phases(&self) -> [(&'static str, &'static str, &Phase); 3] {
        [
            ("straight", "timed", &self.timed),
            ("straight", "barrier", &self.barrier),
            ("lopsided", "timed", &self.lopsided.timed),
        ]
    }

    /// What went wrong, a sentence each; empty if Coeval kept its promises and the controls failed as they must.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        for host in self.hosts.iter().filter(|host| !host.covered) {
            failures.push(format!("the true offset of host {} lies outside its hard bound", host.host));
        }
        for (network, mode, phase) in self.phases() {
            if phase.violations > 0 {
                let violations = phase.violations;
                failures.push(format!(
                    "{network} network, {mode}: certified snapshots show {violations} violations"
                ));
            }
            if phase.consistent == 0 {
                failures.push(format!("{network} network, {mode}: not one snapshot was certified"));
            }
        }
        for control in &self.controls {
            if control.violations == 0 {
                failures.push(format!(
                    "control {}: the checker found nothing, so it proves nothing",
                    control.name
                ));
            }
            if control.called_consistent > 0 {
                failures.push(format!("control {}: torn cuts were called consistent", control.name));
            }
        }
        failures
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Clocks, against the server's")?;
        let mut table = Table::new(&["host", "true offset", "measured", "hard bound", "truth inside"]);
        for host in &self.hosts {
            table.row(vec![
                host.host.clone(),
                format_offset(host.true_offset_ns),
                format_offset(host.offset_ns),
                format!("± {}", Nanos::new(host.hard_ns)),
                yes(host.covered),
            ]);
        }
        writeln!(f, "{table}")?;

        writeln!(f, "Snapshots under load, each opened through NBD and checked")?;
        let headings =
            ["network, mode", "taken", "certified", "torn", "V", "least margin", "held p50", "p99", "max"];
        let mut table = Table::new(&headings);
        for (network, mode, phase) in self.phases() {
            let mut row = vec![
                format!("{network}, {mode}"),
                phase.snapshots.to_string(),
                phase.consistent.to_string(),
                phase.violations.to_string(),
                nanos_or_dash(phase.v_ns),
                nanos_or_dash(phase.margin_ns_min),
            ];
            let Stretch { p50, p99, max } = phase.stretch_ns;
            row.extend(
                [p50, p99, max].map(|held| if max == 0 { "none".to_owned() } else { format_unsigned(held) }),
            );
            table.row(row);
        }
        writeln!(f, "{table}")?;

        writeln!(f, "What the writers felt")?;
        let mut table =
            Table::new(&["network, mode", "no snapshot: p50", "p99", "during a snapshot: p50", "p99"]);
        for (network, mode, phase) in self.phases() {
            let WriteLatencies { p50_quiet, p99_quiet, p50_during, p99_during } = phase.write_ns;
            let mut row = vec![format!("{network}, {mode}")];
            row.extend([p50_quiet, p99_quiet, p50_during, p99_during].map(format_unsigned));
            table.row(row);
        }
        writeln!(f, "{table}")?;

        writeln!(f, "Controls, which must fail")?;
        let mut table = Table::new(&["control", "taken", "violations", "torn, certified", "caught"]);
        for control in &self.controls {
            table.row(vec![
                format!("{}: {}", control.name, control.lacks()),
                control.snapshots.to_string(),
                control.violations.to_string(),
                control.called_consistent.to_string(),
                yes(control.violations > 0 && control.called_consistent == 0),
            ]);
        }
        writeln!(f, "{table}")?;

        let failures = self.failures();
        if failures.is_empty() {
            let certified: usize = self.phases().iter().map(|(.., phase)| phase.consistent).sum();
            return writeln!(
                f,
                "All {certified} certified snapshots are consistent cuts. All {} controls were caught,\n\
                 by the checker and by the certificate.",
                self.controls.len()
            );
        }
        writeln!(f, "FAILED:")?;
        failures.iter().try_for_each(|failure| writeln!(f, "  {failure}"))
    }
}

fn nanos_or_dash(nanos: Option<i64>) -> String {
    nanos.map_or_else(|| "-".to_owned(), |nanos| Nanos::new(nanos).to_string())
}

fn yes(is_so: bool) -> String {
    if is_so { "yes" } else { "NO" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        let phase = Phase {
            snapshots: 50,
            consistent: 50,
            violations: 0,
            v_ns: Some(2_010_000),
            margin_ns_min: Some(1_998_000),
            stretch_ns: Stretch { p50: 123_400, p99: 123_400, max: 123_400 },
            write_ns: WriteLatencies {
                p50_quiet: 212_300,
                p99_quiet: 212_300,
                p50_during: 212_300,
                p99_during: 212_300,
            },
        };
        let control = |name| Control { name, snapshots: 10, violations: 123, called_consistent: 0 };
        Report {
            hosts: vec![HostReport {
                host: "alpha".to_owned(),
                true_offset_ns: -37_000_123,
                offset_ns: -37_000_100,
                hard_ns: 900,
                covered: true,
            }],
            timed: phase.clone(),
            barrier: Phase { v_ns: None, margin_ns_min: None, ..phase.clone() },
            lopsided: Lopsided { added_ns: 2_000_000, timed: phase },
            controls: ["uncoordinated", "untranslated", "zero_stretch"].map(control).to_vec(),
        }
    }

    #[test]
    fn the_tables_fit_a_terminal() {
        let text = good().to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        assert!(text.contains("-37.000123 ms"), "{text}");
        assert!(!text.contains("FAILED"), "{text}");
    }

    #[test]
    fn every_broken_promise_fails() {
        type Break = fn(&mut Report);
        let breaks: [Break; 6] = [
            |report| report.hosts[0].covered = false,
            |report| report.timed.violations = 1,
            |report| report.barrier.consistent = 0,
            |report| report.lopsided.timed.violations = 1,
            |report| report.controls[1].violations = 0,
            |report| report.controls[2].called_consistent = 1,
        ];
        assert_eq!(good().failures(), [""; 0]);
        for broken in breaks {
            let mut report = good();
            broken(&mut report);
            assert_eq!(report.failures().len(), 1);
        }
    }
}
