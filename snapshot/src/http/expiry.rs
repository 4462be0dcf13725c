//! Says in time that certificates expire.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use timesync::clock;

use super::TlsFiles;

/// From so many days before on, there are warnings.
const WARN: TimeDelta = TimeDelta::days(30);
const LOOK_EVERY: Duration = Duration::from_secs(24 * 3600);

/// Warns in the log, now and every day, of certificates that expire soon or have. Never returns.
pub async fn warn_of_expiry(files: TlsFiles) {
    loop {
        let now = DateTime::from_timestamp_nanos(clock::wall_now().as_nanos());
        for sentence in warnings(&files, now) {
            tracing::warn!("{sentence}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is to be said at `now`, a sentence each.
pub fn warnings(files: &TlsFiles, now: DateTime<Utc>) -> Vec<String> {
    let soon = files.expiries().into_iter().filter(|(_, end)| *end - now < WARN);
    let sentence = |(name, end): (&str, DateTime<Utc>)| {
        let path = if name == "ca" { &files.ca } else { &files.cert };
        let (day, what) = (end.format("%Y-%m-%d"), if end <= now { "expired" } else { "expires" });
        let path = path.display();
        match name {
            "ca" => format!(
                "the authority's certificate {path} {what} on {day}; make a new authority with `coeval pki init`"
            ),
            _ => format!(
                "the certificate {path} {what} on {day}; issue a new one with `coeval pki issue` and put it and its key in \
                 place, no restart is needed"
            ),
        }
    };
    soon.map(sentence).collect()
}
