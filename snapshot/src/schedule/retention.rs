//! Which snapshots of a schedule may go.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;
/// The epoch was a Thursday; weeks begin on Monday.
const MONDAY: i64 = 3 * DAY;

/// How many snapshots to keep. Each rule keeps its own, and a snapshot goes when no rule keeps it. With no rule at all
/// everything is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// The newest so many.
    pub last: u32,
    /// The newest of each of the last so many hours that have one (UTC).
    pub hourly: u32,
    /// The newest of each of the last so many days that have one (UTC).
    pub daily: u32,
    /// The newest of each of the last so many weeks that have one (UTC, from Monday).
    pub weekly: u32,
}

impl Retention {
    /// Those of `snapshots` that no rule keeps.
    pub fn expired<T: Clone + Ord>(&self, snapshots: &[(DateTime<Utc>, T)]) -> Vec<T> {
        let Retention { last, hourly, daily, weekly } = *self;
        if [last, hourly, daily, weekly].iter().all(|count| *count == 0) {
            return Vec::new();
        }
        let mut newest_first: Vec<_> = snapshots.iter().collect();
        newest_first.sort_by(|a, b| b.cmp(a));
        let mut kept: BTreeSet<&T> = newest_first.iter().take(count(last)).map(|(_, it)| it).collect();
        for (rule, length, origin) in [(hourly, HOUR, 0), (daily, DAY, 0), (weekly, WEEK, MONDAY)] {
            let period = |at: &DateTime<Utc>| (at.timestamp() + origin).div_euclid(length);
            let newest_of_each = newest_first.chunk_by(|(a, _), (b, _)| period(a) == period(b));
            kept.extend(newest_of_each.take(count(rule)).map(|chunk| &chunk[0].1));
        }
        newest_first.iter().map(|(_, it)| it).filter(|it| !kept.contains(it)).cloned().collect()
    }
}

fn count(rule: u32) -> usize {
    usize::try_from(rule).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> (DateTime<Utc>, String) {
        (text.parse().unwrap(), text.to_owned())
    }

    #[test]
    fn each_rule_keeps_its_own() {
        let snapshots = [
            "2026-11-15T23:00:00Z", // a Sunday: the week before
            "2026-11-16T00:00:00Z", // Monday
            "2026-11-21T03:00:00Z",
            "2026-11-22T03:00:00Z",
            "2026-11-22T04:00:00Z",
            "2026-11-22T04:30:00Z",
        ]
        .map(at);
        let expired = |keep: Retention| {
            let mut gone = keep.expired(&snapshots);
            gone.sort();
            gone
        };
        let but = |kept: &[usize]| -> Vec<String> {
            let all = snapshots.iter().enumerate().filter(|(index, _)| !kept.contains(index));
            all.map(|(_, (_, name))| name.clone()).collect()
        };
        let none = Retention::default();
        assert_eq!(expired(none), Vec::<String>::new(), "no rule");
        assert_eq!(expired(Retention { last: 2, ..none }), but(&[4, 5]));
        assert_eq!(expired(Retention { hourly: 2, ..none }), but(&[3, 5]));
        assert_eq!(expired(Retention { daily: 3, ..none }), but(&[1, 2, 5]));
        assert_eq!(expired(Retention { weekly: 2, ..none }), but(&[0, 5]));
        assert_eq!(expired(Retention { last: 1, hourly: 2, weekly: 9, ..none }), but(&[0, 3, 5]));
    }

    proptest! {
        #[test]
        fn the_newest_is_always_kept_and_rules_never_keep_less_together(
            times in prop::collection::btree_set(0_i64..5_000_000, 1..60),
            rules in [0_u32..5, 0..5, 0..5, 0..5], extra in 0_usize..4,
        ) {
            let snapshots: Vec<_> =
                times.iter().map(|&at| (DateTime::from_timestamp(at, 0).unwrap(), at)).collect();
            let keep = |[last, hourly, daily, weekly]: [u32; 4]| Retention { last, hourly, daily, weekly };
            let gone = keep(rules).expired(&snapshots);
            prop_assert!(!gone.contains(times.last().unwrap()));
            let mut more = rules;
            more[extra] += 1;
            let with_more = keep(more).expired(&snapshots);
            if rules != [0; 4] {
                prop_assert!(with_more.iter().all(|it| gone.contains(it)));
            }
            // What is kept stays so when the others have gone: retention can run again and again.
            let left: Vec<_> = snapshots.iter().filter(|(_, it)| !gone.contains(it)).copied().collect();
            prop_assert!(keep(rules).expired(&left).is_empty());
        }
    }
}
