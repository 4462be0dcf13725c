//! The worst pairs of a fleet, without looking at all of them.
//!
//! The half-width of a pair is the sum of its two hosts'. With the hosts sorted by theirs, widest first, pair (i, j),
//! i < j, is at least as wide as (i, j + 1) and (i + 1, j). So the widest is (0, 1), and the next widest is always a
//! neighbour of one that was taken: a heap of candidates gives the k widest of n hosts in O(n log n + k log k).

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{ALL_PAIRS_OF, HostRow, PairRow, Report, WORST_PAIRS};

/// A host's row, and the half-width of its statistical bound that counts in pairs.
type Row = (HostRow, Option<i64>);

impl Report {
    /// The report that consists of these hosts.
    pub(crate) fn of(rows: Vec<Row>) -> Report {
        let count = |hosts: usize| hosts * hosts.saturating_sub(1) / 2;
        let all = rows.len() <= ALL_PAIRS_OF;
        let mut bounded: Vec<(usize, i64)> =
            rows.iter().enumerate().filter_map(|(number, (row, _))| Some((number, row.hard_ns?))).collect();
        // Stable: among equals the order of the hosts.
        bounded.sort_by_key(|(_, hard)| Reverse(*hard));
        let halves: Vec<i64> = bounded.iter().map(|(_, hard)| *hard).collect();
        let limit = if all { count(bounded.len()) } else { WORST_PAIRS };
        // Whichever of the two is wider, a pair is called by the order of the hosts.
        let hosts = |(i, j): (usize, usize)| (bounded[i].0.min(bounded[j].0), bounded[i].0.max(bounded[j].0));
        let worst = widest(&halves, limit).into_iter().map(hosts);
        let mut pairs: Vec<PairRow> = worst.map(|(a, b)| pair(&rows[a], &rows[b])).collect();
        if all {
            for (i, a) in rows.iter().enumerate() {
                let unbounded = |b: &&Row| a.0.hard_ns.is_none() || b.0.hard_ns.is_none();
                pairs.extend(rows[i + 1..].iter().filter(unbounded).map(|b| pair(a, b)));
            }
        }
        let pair_count = count(rows.len()) as u64;
        Report { hosts: rows.into_iter().map(|(row, _)| row).collect(), pairs, pair_count }
    }
}

fn pair((a, a_half): &Row, (b, b_half): &Row) -> PairRow {
    let sum = |a: Option<i64>, b: Option<i64>| Some(a?.saturating_add(b?));
    PairRow {
        a: a.host.clone(),
        b: b.host.clone(),
        offset_ns: a.offset_ns.zip(b.offset_ns).map(|(a, b)| a.saturating_sub(b)),
        hard_ns: sum(a.hard_ns, b.hard_ns),
        statistical_ns: sum(*a_half, *b_half),
    }
}

/// The `limit` pairs (i, j), i < j, with the largest sums of `halves`, which fall; the largest first.
fn widest(halves: &[i64], limit: usize) -> Vec<(usize, usize)> {
    let mut candidates = BinaryHeap::new();
    let offer = |candidates: &mut BinaryHeap<_>, i: usize, j: usize| {
        if let (true, Some(b)) = (i < j, halves.get(j)) {
            candidates.push((halves[i].saturating_add(*b), Reverse((i, j))));
        }
    };
    offer(&mut candidates, 0, 1);
    let mut pairs = Vec::new();
    while pairs.len() < limit
        && let Some((_, Reverse((i, j)))) = candidates.pop()
    {
        pairs.push((i, j));
        offer(&mut candidates, i, j + 1);
        // Each row (i, …) is entered once, from the row before.
        if j == i + 1 {
            offer(&mut candidates, i + 1, i + 2);
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::row;
    use crate::server::{HostConfig, Record};
    use crate::time::Time;

    fn fleet(halves: &[Option<i64>]) -> Report {
        let rows = halves.iter().enumerate().map(|(number, half)| {
            let config = HostConfig::new(format!("h{number}"), "10.0.0.1:319".parse().unwrap());
            let (mut row, _) = row(&Record::new(config, 64, true), Time::from_nanos(0), 0.999, false);
            (row.hard_ns, row.offset_ns) = (*half, half.map(|half| -half));
            (row, half.map(|half| half / 2))
        });
        Report::of(rows.collect())
    }

    proptest! {
        #[test]
        fn the_widest_come_first(mut halves in prop::collection::vec(0i64..50, 0..40), limit in 0usize..900) {
            halves.sort_unstable_by_key(|half| Reverse(*half));
            let found = widest(&halves, limit);
            let mut all: Vec<i64> = (0..halves.len())
                .flat_map(|j| (0..j).map(move |i| (i, j)))
                .map(|(i, j)| halves[i] + halves[j])
                .collect();
            all.sort_unstable_by_key(|sum| Reverse(*sum));
            all.truncate(limit);
            prop_assert_eq!(found.iter().map(|(i, j)| halves[*i] + halves[*j]).collect::<Vec<_>>(), all);
            let distinct: std::collections::BTreeSet<_> = found.iter().collect();
            prop_assert!(distinct.len() == found.len() && found.iter().all(|(i, j)| i < j));
        }
    }

    #[test]
    fn a_small_fleet_has_all_its_pairs_those_without_a_bound_last() {
        let report = fleet(&[Some(10), None, Some(30), Some(20)]);
        let pairs: Vec<_> =
            report.pairs.iter().map(|pair| (pair.a.as_str(), pair.b.as_str(), pair.hard_ns)).collect();
        let expected = [
            ("h2", "h3", Some(50)),
            ("h0", "h2", Some(40)),
            ("h0", "h3", Some(30)),
            ("h0", "h1", None),
            ("h1", "h2", None),
            ("h1", "h3", None),
        ];
        assert_eq!(pairs, expected);
        assert_eq!((report.pair_count, report.pairs[0].offset_ns), (6, Some(-10)));
        assert_eq!(report.pairs[0].statistical_ns, Some(25));
    }

    #[test]
    fn a_large_fleet_has_its_worst_pairs() {
        let report = fleet(&(0..65).map(|half| (half != 7).then_some(half)).collect::<Vec<_>>());
        assert_eq!((report.pairs.len(), report.pair_count), (64, 65 * 64 / 2));
        assert_eq!((report.pairs[0].a.as_str(), report.pairs[0].b.as_str()), ("h63", "h64"));
        assert!(report.pairs.is_sorted_by_key(|pair| Reverse(pair.hard_ns)));
    }
}
