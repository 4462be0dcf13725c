//! What the bounds were, as text.

use timesync::history::{Point, Track};
use timesync::time::Nanos;

use super::table::half_width;
use crate::table::Table;
use crate::units::format_offset_within;

/// One line for each host: the offsets' range, the bounds' usual and worst widths, and when there was none.
pub fn describe(tracks: &[Track], span: Nanos) -> String {
    let mut table = Table::new(&[
        "host",
        "points",
        "offset from",
        "to",
        "hard ± p50",
        "worst",
        "stat. ± p50",
        "worst",
        "trip max",
        "lost",
        "no bound",
    ]);
    for track in tracks {
        let numbers = |of: fn(&Point) -> Option<i64>| {
            let mut numbers: Vec<i64> = track.points.iter().filter_map(of).collect();
            numbers.sort_unstable();
            numbers
        };
        let (offsets, hard) = (numbers(|point| point.offset_ns), numbers(|point| point.hard_ns));
        let statistical = numbers(|point| point.statistical_ns);
        let median = |sorted: &[i64]| sorted.get(sorted.len() / 2).copied();
        let known = median(&hard).unwrap_or(1);
        let offset = |offset: Option<&i64>| {
            offset.map_or("-".to_owned(), |offset| format_offset_within(*offset, known))
        };
        let trip = track.points.iter().filter_map(|point| point.rtt_max_ns).max();
        table.row(vec![
            track.host.clone(),
            track.points.len().to_string(),
            offset(offsets.first()),
            offset(offsets.last()),
            half_width(median(&hard)),
            half_width(hard.last().copied()),
            half_width(median(&statistical)),
            half_width(statistical.last().copied()),
            half_width(trip.and_then(|trip| i64::try_from(trip).ok())),
            track.points.iter().map(|point| point.lost).sum::<u64>().to_string(),
            (track.points.len() - hard.len()).to_string(),
        ]);
    }
    let minutes = span.get() / 60_000_000_000;
    let back = if minutes < 120 { format!("{minutes} min") } else { format!("{} h", minutes / 60) };
    let mut text = format!("The last {back}\n\n{table}");
    if tracks.iter().all(|track| track.points.is_empty()) {
        text += "\nNo points yet: the server keeps one every ten seconds, and one every ten minutes for seven days.";
    } else {
        text += "\n`no bound` counts points. A point of ten minutes holds the worst of its time. --plot draws them all.";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spike_and_an_outage_are_seen() {
        let point = |at: i64, hard_ns: Option<i64>| Point {
            at_ms: at * 10_000,
            offset_ns: hard_ns.map(|_| 35_000_000 + at),
            hard_ns,
            statistical_ns: hard_ns.map(|hard| hard / 2),
            rtt_min_ns: Some(2_000),
            rtt_max_ns: Some(9_000),
            exchanges: 160,
            lost: 1,
        };
        let points =
            vec![point(1, Some(1_300)), point(2, Some(1_300)), point(3, Some(2_000_000)), point(4, None)];
        let tracks = [
            Track { host: "db1".to_owned(), points, round_trips: Vec::new() },
            Track { host: "db2".to_owned(), ..Track::default() },
        ];
        let text = describe(&tracks, Nanos::from_millis(3_600_000));
        let expected = "\
The last 60 min

host  points  offset from           to  hard ± p50    worst  stat. ± p50    worst  trip max  lost  no bound
db1        4  +35.0000 ms  +35.0000 ms     1.30 µs  2.00 ms       650 ns  1.00 ms   9.00 µs     4         1
db2        0            -            -           -        -            -        -         -     0         0
";
        assert!(text.starts_with(expected), "{text}");
        assert!(describe(&tracks[1..], Nanos::from_millis(3_600_000)).contains("No points yet"));
    }
}
