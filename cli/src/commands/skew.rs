//! `coeval skew`

use timesync::report::{HostRow, Report};
use timesync::time::Nanos;

use super::{Failure, connect, print, print_json, word};
use crate::args::SkewArgs;
use crate::table::Table;
use crate::units::{format_offset, format_unsigned};

/// Shows how far the hosts' clocks are from the server's and from each other.
///
/// # Errors
/// When the server does not answer.
pub async fn run(args: &SkewArgs) -> Result<(), Failure> {
    let json = connect(&args.remote)?.skew().await?;
    if args.remote.json {
        return print_json(&json);
    }
    print(&describe(&serde_json::from_value(json)?))
}

fn describe(report: &Report) -> String {
    let headings = [
        "host",
        "offset",
        "hard",
        "statistical",
        "rtt min",
        "p50",
        "drift",
        "stamps",
        "lost",
        "age",
        "state",
    ];
    let mut table = Table::new(&headings);
    for row in &report.hosts {
        let HostRow { rtt_ns, drift_ppb, timestamps, lost, age_ms, state, .. } = row;
        table.row(vec![
            row.host.clone(),
            row.offset_ns.map_or_else(dash, format_offset),
            half_width(row.hard_ns),
            half_width(row.statistical_ns),
            rtt_ns.map_or_else(dash, |trips| format_unsigned(trips.min)),
            rtt_ns.map_or_else(dash, |trips| format_unsigned(trips.p50)),
            drift_ppb.map_or_else(dash, |ppb| format!("{:+.2} ppm", ppb / 1e3)),
            timestamps.as_ref().map_or_else(dash, word),
            lost.to_string(),
            age_ms.map_or_else(dash, |ms| format!("{ms} ms")),
            word(state),
        ]);
    }
    let mut text = format!("CLOCK_REALTIME against the server's\n{table}");
    if !report.pairs.is_empty() {
        let mut table = Table::new(&["pair", "offset", "hard", "statistical"]);
        for pair in &report.pairs {
            table.row(vec![
                format!("{} - {}", pair.a, pair.b),
                pair.offset_ns.map_or_else(dash, format_offset),
                half_width(pair.hard_ns),
                half_width(pair.statistical_ns),
            ]);
        }
        text += &format!("\nHosts against each other\n{table}");
    }
    text += "\nThe hard bound holds whatever the network does.";
    let row = report.hosts.iter().find_map(|row| Some((row.confidence?, row.asymmetry?)));
    if let Some((confidence, asymmetry)) = row {
        text += &format!(
            " The statistical one holds at a confidence of {confidence},\n\
             if the delays of the two directions differ by no more than the asymmetry budget ({}: {}).",
            word(&asymmetry.source),
            Nanos::new(asymmetry.ns),
        );
    }
    text
}

fn half_width(nanos: Option<i64>) -> String {
    nanos.map_or_else(dash, |nanos| format!("± {}", Nanos::new(nanos)))
}

fn dash() -> String {
    "-".to_owned()
}
