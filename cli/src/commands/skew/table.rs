//! The report as text, at most 100 columns wide.

use timesync::bound::{AsymmetrySource, Basis};
use timesync::report::{HostRow, PairRow, Report};

use crate::commands::word;
use crate::table::Table;
use crate::units::{format_offset_within, format_short};

/// What a table is as wide as, at most.
pub const WIDTH: usize = 100;
/// Pairs that are shown.
const PAIRS: usize = 5;
/// Hosts without a bound that are explained.
const EXPLAINED: usize = 10;

/// The headings of [`cells`].
pub const HEADINGS: [&str; 10] =
    ["host", "offset", "hard ±", "stat. ±", "rtt", "drift", "class", "loss", "age", "state"];

/// One host's line.
pub fn cells(row: &HostRow) -> [String; 10] {
    let HostRow { hard_ns, rtt_ns, drift_ppb, timestamps, age_ms, state, .. } = row;
    let offset = row.offset_ns.zip(*hard_ns);
    [
        row.host.clone(),
        offset.map_or_else(dash, |(offset, hard)| format_offset_within(offset, hard)),
        half_width(*hard_ns),
        match row.basis {
            None | Some(Basis::Samples) => half_width(row.statistical_ns),
            Some(_) => "= hard".to_owned(),
        },
        rtt_ns.map_or_else(dash, |trips| half_width(i64::try_from(trips.p50).ok())),
        drift_ppb.map_or_else(dash, drift),
        timestamps.as_ref().map_or_else(dash, word),
        loss(row),
        age_ms.map_or_else(dash, age),
        word(state),
    ]
}

/// The whole report.
pub fn describe(report: &Report) -> String {
    let mut text = format!("CLOCK_REALTIME of each host less the server's\n\n{}", hosts(report));
    let unbounded: Vec<&HostRow> = report.hosts.iter().filter(|row| row.hard_ns.is_none()).collect();
    if !unbounded.is_empty() {
        text += "\nWithout a bound:\n";
        for row in unbounded.iter().take(EXPLAINED) {
            let why = row.why.as_deref().unwrap_or("is not bounded");
            text += &wrap(&format!("{} {why}.", row.host), "  ");
        }
        if unbounded.len() > EXPLAINED {
            text += &format!("  and {} more\n", unbounded.len() - EXPLAINED);
        }
    }
    text += &pairs(report);
    text += "\n";
    for sentence in explanations(report) {
        text += &wrap(&sentence, "");
    }
    text
}

fn hosts(report: &Report) -> Table {
    let rows: Vec<[String; 10]> = report.hosts.iter().map(cells).collect();
    let length = |text: &str| text.chars().count();
    let widest = |column: usize| {
        let cells = rows.iter().map(|row| length(&row[column]));
        cells.chain([length(HEADINGS[column])]).max().unwrap_or(0)
    };
    let others: usize = (1..HEADINGS.len()).map(|column| 2 + widest(column)).sum();
    let room = WIDTH.saturating_sub(others).max(7);
    let mut table = Table::new(&HEADINGS);
    for mut row in rows {
        row[0] = shorten(&row[0], room);
        table.row(row.to_vec());
    }
    table
}

/// The ends of a name that is too long: names of one fleet mostly differ there.
fn shorten(name: &str, room: usize) -> String {
    let characters: Vec<char> = name.chars().collect();
    if characters.len() <= room {
        return name.to_owned();
    }
    let tail = (room - 1) * 2 / 3;
    let head = room - 1 - tail;
    characters[..head].iter().chain(['…'].iter()).chain(&characters[characters.len() - tail..]).collect()
}

fn pairs(report: &Report) -> String {
    let shown: Vec<&PairRow> =
        report.pairs.iter().filter(|pair| pair.hard_ns.is_some()).take(PAIRS).collect();
    if shown.is_empty() {
        return String::new();
    }
    let hosts = report.hosts.iter().filter(|row| row.hard_ns.is_some()).count();
    let title = match hosts * (hosts - 1) / 2 {
        all if all == shown.len() => "Hosts against each other".to_owned(),
        all => format!("Hosts against each other: the {} widest of {all} pairs", shown.len()),
    };
    let mut table = Table::new(&["pair", "offset", "hard ±", "stat. ±"]);
    for pair in shown {
        let offset = pair.offset_ns.zip(pair.hard_ns);
        let same = pair.statistical_ns == pair.hard_ns;
        table.row(vec![
            format!("{} - {}", shorten(&pair.a, 30), shorten(&pair.b, 30)),
            offset.map_or_else(dash, |(offset, hard)| format_offset_within(offset, hard)),
            half_width(pair.hard_ns),
            if same { "= hard".to_owned() } else { half_width(pair.statistical_ns) },
        ]);
    }
    format!("\n{title}\n\n{table}")
}

/// What the numbers mean, and what they assume.
fn explanations(report: &Report) -> Vec<String> {
    let mut sentences: Vec<String> = farthest(report).into_iter().collect();
    let bounded: Vec<&HostRow> = report.hosts.iter().filter(|row| row.hard_ns.is_some()).collect();
    let Some(first) = bounded.first() else { return sentences };
    let same = bounded.iter().all(|row| row.assumptions == first.assumptions);
    sentences.push(if same {
        let wander = first.assumptions.wander_ppb_per_s;
        let wander = wander.map_or_else(String::new, |ppb| format!(", their rates change by at most {ppb} ppb a second"));
        let known = first.assumptions.min_forward.get() + first.assumptions.min_backward.get();
        let known = if known > 0 { ", no packet is faster than configured" } else { "" };
        let ppm = first.assumptions.rate_ppb / 1_000;
        format!("hard: true whatever the network does, if clocks run within {ppm} ppm of the server's{wander}{known}.")
    } else {
        "hard: true whatever the network does, under each host's `assumptions` (--json).".to_owned()
    });
    let with = |basis: Basis| bounded.iter().copied().filter(move |row| row.basis == Some(basis));
    let samples: Vec<&HostRow> = with(Basis::Samples).collect();
    if let Some(first) = samples.first() {
        let alike = |row: &&HostRow| (row.confidence, row.asymmetry) == (first.confidence, first.asymmetry);
        let (confidence, budget) = match (first.confidence, first.asymmetry) {
            (Some(confidence), Some(budget)) if samples.iter().all(alike) => {
                let source = match budget.source {
                    AsymmetrySource::Configured => "as configured",
                    AsymmetrySource::Default => "by default",
                };
                (percent(confidence), format!("{} ({source})", format_short(budget.ns)))
            }
            _ => ("its own confidence (--json)".to_owned(), "its budget".to_owned()),
        };
        sentences.push(format!(
            "stat.: true with a confidence of {confidence} for each host, if the usual delays of its two ways differ by no \
             more than {budget}."
        ));
    }
    let few = with(Basis::TooFewSamples).count();
    if few > 0 {
        sentences
            .push(format!("stat. = hard for {few} of the hosts: too few samples near the last exchange."));
    }
    for row in with(Basis::BudgetContradicted).take(EXPLAINED) {
        sentences.push(format!(
            "stat. = hard for {}: its samples contradict its asymmetry budget; raise `asymmetry` or look for a lopsided path.",
            row.host
        ));
    }
    if with(Basis::DefaultBudget).next().is_some() {
        sentences.push(
            "stat. = hard without an asymmetry budget (`asymmetry` in [[host]]): nothing is left to chance, so no confidence \
             is given."
                .to_owned(),
        );
    }
    sentences
}

/// The two bounded clocks that may be farthest apart, without looking at all pairs: the greatest upper limit against the
/// least lower one, of another host.
fn farthest(report: &Report) -> Option<String> {
    let limits: Vec<(&str, i64, i64)> = report
        .hosts
        .iter()
        .filter_map(|row| {
            let (offset, hard) = (row.offset_ns?, row.hard_ns?);
            Some((row.host.as_str(), offset.saturating_sub(hard), offset.saturating_add(hard)))
        })
        .collect();
    let (mut low, mut high) = (limits.clone(), limits);
    low.sort_by_key(|(_, lo, _)| *lo);
    high.sort_by_key(|(_, _, hi)| std::cmp::Reverse(*hi));
    let candidates = high.iter().take(2).flat_map(|a| low.iter().take(2).map(move |b| (a, b)));
    let apart =
        candidates.filter(|(a, b)| a.0 != b.0).map(|(a, b)| (a.2.saturating_sub(b.1), a.0, b.0)).max()?;
    let (distance, ahead, behind) = apart;
    let which = if low.len() == report.hosts.len() { "" } else { "bounded " };
    Some(format!(
        "No two of these {which}clocks are more than {} apart ({ahead} - {behind}).",
        format_short(distance)
    ))
}

/// A share of one in percent, with the digits that it has.
fn percent(share: f64) -> String {
    let text = format!("{:.6}", share * 100.0);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A half-width, a round trip.
pub fn half_width(nanos: Option<i64>) -> String {
    nanos.map_or_else(dash, format_short)
}

fn drift(ppb: f64) -> String {
    match ppb.abs() / 1e3 {
        ppm if ppm < 9.995 => format!("{:+.2} ppm", ppb / 1e3),
        ppm if ppm < 99.95 => format!("{:+.1} ppm", ppb / 1e3),
        _ => format!("{:+.0} ppm", ppb / 1e3),
    }
}

/// Of all exchanges, those of which anything was lost.
fn loss(row: &HostRow) -> String {
    if row.exchanges + row.lost == 0 {
        return dash();
    }
    match row.lost as f64 / (row.exchanges + row.lost) as f64 * 100.0 {
        none if none <= 0.0 => "0 %".to_owned(),
        little if little < 0.1 => "<0.1 %".to_owned(),
        some if some < 9.95 => format!("{some:.1} %"),
        much => format!("{much:.0} %"),
    }
}

fn age(ms: i64) -> String {
    match ms.max(0) / 1_000 {
        0 => format!("{} ms", ms.max(0)),
        seconds @ 1..100 => format!("{seconds} s"),
        seconds @ 100..6_000 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3_600),
    }
}

fn dash() -> String {
    "-".to_owned()
}

/// Words in lines that are not too long, of which all but the first are indented further.
fn wrap(text: &str, indent: &str) -> String {
    let mut lines = vec![indent.to_owned()];
    for word in text.split(' ') {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        match lines.last_mut() {
            Some(last) if line + 1 + word.chars().count() <= WIDTH => {
                if last.trim_start().is_empty() {
                    *last += word
                } else {
                    *last += &format!(" {word}")
                }
            }
            _ => lines.push(format!("{indent}    {word}")),
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
pub(super) mod tests;
