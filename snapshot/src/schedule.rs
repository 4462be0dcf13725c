//! When the next snapshot of a schedule is due, and which of its snapshots may go. No clock and no I/O.

mod retention;

pub use retention::Retention;

use std::str::FromStr;

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::groups::Missing;
use crate::messages::CreateRequest;

/// A snapshot that is due is still taken when the server comes to it this late, in seconds; after that it was missed.
const GRACE: i64 = 60;

/// A schedule never looks further back than this many due times when the server was off: more are not counted.
const COUNTED: u64 = 10_000;

/// Snapshots of a group, again and again. `POST /api/v1/schedules`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Schedule {
    /// Its name, by the rule for snapshot names, with up to 40 letters; its snapshots are called `NAME-` and the time.
    pub name: String,
    /// When: minute, hour, day of the month, month, day of the week, in UTC (`crontab(5)`).
    #[schema(value_type = String, example = "0 3 * * *")]
    pub cron: CronTime,
    /// What to take and how; its `name` is not used.
    pub request: CreateRequest,
    /// Which of its snapshots to keep.
    pub keep: Retention,
}

/// A cron pattern that parses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CronTime(Cron);

impl FromStr for CronTime {
    type Err = String;

    fn from_str(pattern: &str) -> Result<Self, String> {
        // Five fields: a schedule by the second would be one snapshot on top of the other.
        let parser = CronParser::builder().seconds(Seconds::Disallowed).build();
        let cron = parser.parse(pattern).map_err(|why| {
            format!("`{pattern}` is no cron pattern ({why}); `0 3 * * *` is every day at 03:00 UTC")
        })?;
        let never = cron.find_next_occurrence(&DateTime::<Utc>::UNIX_EPOCH, false).is_err();
        if never { Err(format!("`{pattern}` never comes")) } else { Ok(CronTime(cron)) }
    }
}

impl TryFrom<String> for CronTime {
    type Error = String;

    fn try_from(pattern: String) -> Result<Self, String> {
        pattern.parse()
    }
}

impl From<CronTime> for String {
    fn from(time: CronTime) -> String {
        time.0.pattern.to_string()
    }
}

impl CronTime {
    /// The first due time after `instant`; none if there is none any more.
    pub fn next_after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.0.find_next_occurrence(&instant, false).ok()
    }

    /// What to do at `now`, when everything up to `handled` has been dealt with.
    pub fn due(&self, handled: DateTime<Utc>, now: DateTime<Utc>) -> Due {
        let mut due = Due { handled, missed: 0, take: None };
        while let Some(next) = self.next_after(due.handled).filter(|next| *next <= now) {
            // Only the last one can still be in time.
            due.missed += u64::from(due.take.is_some());
            due.take = (now - next).num_seconds().le(&GRACE).then_some(next);
            due.missed += u64::from(due.take.is_none());
            due.handled = next;
            if due.missed >= COUNTED {
                return Due { handled: now, missed: due.missed, take: None };
            }
        }
        due
    }
}

/// What a schedule has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Everything up to here has been dealt with once this is done.
    pub handled: DateTime<Utc>,
    /// Due times that passed without a snapshot.
    pub missed: u64,
    /// The due time to take a snapshot for.
    pub take: Option<DateTime<Utc>>,
}

/// A schedule and how it does. `GET /api/v1/schedules`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleStatus {
    /// What it is.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// When its next snapshot is due.
    pub next: Option<DateTime<Utc>>,
    /// Due times that passed without a snapshot: the server was off, or the one before was still being taken.
    pub missed: u64,
    /// How the last one went.
    pub last: Option<Outcome>,
    /// How it does.
    pub state: ScheduleState,
    /// What the next snapshot would lack if it were taken now.
    pub missing: Vec<Missing>,
}

/// How a schedule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleState {
    /// Its last snapshot is there, and the next one can be taken.
    Good,
    /// A member is missing: while it is, no snapshot is taken.
    Degraded,
    /// All members are there, but the last snapshot is not, or an old one could not be deleted.
    Failed,
}

/// How one snapshot of a schedule went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// When it was due.
    pub due: DateTime<Utc>,
    /// The snapshot's name.
    pub snapshot: String,
    /// Why there is none, or why an old one could not be deleted; null when all went well.
    pub problem: Option<String>,
}

/// The name of the snapshot that is due at `due`.
pub fn snapshot_name(schedule: &str, due: DateTime<Utc>) -> String {
    format!("{schedule}-{}", due.format("%Y%m%dT%H%MZ"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn utc(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    fn cron(pattern: &str) -> CronTime {
        pattern.parse().unwrap()
    }

    #[test]
    fn a_due_snapshot_is_taken_once_and_late_ones_are_missed() {
        let hourly = cron("0 * * * *");
        let handled = utc("2026-11-22T03:00:00Z");
        let at = |now: &str| hourly.due(handled, utc(now));
        let four = utc("2026-11-22T04:00:00Z");
        assert_eq!(at("2026-11-22T03:59:59Z"), Due { handled, missed: 0, take: None });
        for in_time in ["2026-11-22T04:00:00Z", "2026-11-22T04:01:00Z"] {
            assert_eq!(at(in_time), Due { handled: four, missed: 0, take: Some(four) }, "{in_time}");
        }
        assert_eq!(at("2026-11-22T04:01:01Z"), Due { handled: four, missed: 1, take: None });
        let seven = utc("2026-11-22T07:00:00Z");
        let after_a_stop = Due { handled: seven, missed: 3, take: Some(seven) };
        assert_eq!(at("2026-11-22T07:00:10Z"), after_a_stop, "04:00 to 06:00 were missed");
    }

    #[test]
    fn a_long_stop_is_counted_up_to_a_limit() {
        let every_minute = cron("* * * * *");
        let now = utc("2026-11-22T00:00:30Z");
        let due = every_minute.due(utc("2016-01-01T00:00:00Z"), now);
        assert_eq!(due, Due { handled: now, missed: COUNTED, take: None });
    }

    #[test]
    fn a_clock_that_was_set_back_takes_nothing_twice() {
        let hourly = cron("0 * * * *");
        let handled = utc("2026-11-22T04:00:00Z");
        assert_eq!(hourly.due(handled, utc("2026-11-22T03:30:00Z")), Due { handled, missed: 0, take: None });
    }

    #[test]
    fn patterns_that_are_none_are_refused_in_a_sentence() {
        for wrong in ["", "daily", "60 * * * *", "* * * *", "0 0 3 * * *", "0 0 30 2 *"] {
            assert!(wrong.parse::<CronTime>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_snapshot_is_called_after_when_it_was_due() {
        assert_eq!(snapshot_name("nightly", utc("2026-11-22T03:00:00Z")), "nightly-20261122T0300Z");
    }

    proptest! {
        #[test]
        fn every_due_time_is_either_taken_or_counted(
            step in 1_i64..59, start in 0_i64..1_000_000, waits in prop::collection::vec(0_i64..4_000, 1..40),
        ) {
            let time = cron(&format!("*/{step} * * * *"));
            let begin = DateTime::from_timestamp(start, 0).unwrap();
            let (mut handled, mut now, mut taken, mut missed) = (begin, begin, 0_u64, 0_u64);
            for wait in waits {
                now += chrono::Duration::seconds(wait);
                let due = time.due(handled, now);
                if let Some(at) = due.take {
                    prop_assert!(at > handled && at <= now && (now - at).num_seconds() <= GRACE);
                    taken += 1;
                }
                missed += due.missed;
                handled = due.handled;
            }
            let mut all = 0;
            let mut at = begin;
            while let Some(next) = time.next_after(at).filter(|next| *next <= now) {
                (at, all) = (next, all + 1);
            }
            prop_assert_eq!(taken + missed, all);
        }
    }
}
