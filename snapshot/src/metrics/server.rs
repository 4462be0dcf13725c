//! The server's metrics: the clocks, and the snapshots.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde::Serialize;
use timesync::report::{HostRow, Report};
use timesync::server::TimeServer;
use timesync::source::SkewSource;

use super::{Durations, Labels, Page, seconds};
use crate::certificate::Mode;
use crate::coordinator::{Coordinator, CoordinatorError};
use crate::http::{Refusal, TlsFiles};
use crate::messages::operations::OperationState;
use crate::messages::{Manifest, Verdict};

/// What became of the snapshots that this run of the server took.
#[derive(Debug, Default)]
pub struct SnapshotCounts {
    consistent: AtomicU64,
    inconsistent: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    timed_attempts: AtomicU64,
    barrier_attempts: AtomicU64,
    held: AtomicU64,
    margins: Durations,
    stretches: Durations,
}

impl SnapshotCounts {
    /// Counts an attempt.
    pub fn attempted(&self, mode: Mode) {
        match mode {
            Mode::Timed => &self.timed_attempts,
            Mode::Barrier => &self.barrier_attempts,
        }
        .fetch_add(1, Relaxed);
    }

    /// Counts a snapshot that was begun.
    pub fn ended(&self, outcome: &Result<Manifest, CoordinatorError>) {
        match outcome {
            Ok(manifest) => {
                match manifest.verdict {
                    Verdict::Consistent => &self.consistent,
                    Verdict::Inconsistent => &self.inconsistent,
                }
                .fetch_add(1, Relaxed);
                if let Some(margin) = manifest.margin_ns {
                    self.margins.add(margin);
                }
                for host in &manifest.hosts {
                    self.held.fetch_add(host.held, Relaxed);
                    let longest = i64::try_from(host.stretch_ns.max).unwrap_or(i64::MAX);
                    self.stretches.add(timesync::time::Nanos::new(longest));
                }
            }
            Err(CoordinatorError::Refused { .. }) => drop(self.refused.fetch_add(1, Relaxed)),
            Err(_) => drop(self.failed.fetch_add(1, Relaxed)),
        }
    }
}

#[derive(Clone)]
struct Sources {
    coordinator: Arc<Coordinator>,
    time: Arc<TimeServer>,
    tls: Option<TlsFiles>,
}

/// `GET /metrics` of the server.
pub fn router(coordinator: Arc<Coordinator>, time: Arc<TimeServer>, tls: Option<TlsFiles>) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state(Sources { coordinator, time, tls })
}

async fn scrape(State(Sources { coordinator, time, tls }): State<Sources>) -> Result<Page, Refusal> {
    // Works out every host's bounds.
    let mut page = Page::gather(tls, move |page| clocks(page, &time.report(), &*time)).await?;
    snapshots(&mut page, &coordinator).await?;
    Ok(page)
}

fn clocks(page: &mut Page, report: &Report, source: &dyn SkewSource) {
    let rows = &report.hosts;
    let label = |host: &HostRow| -> Labels { vec![("host", host.host.clone())] };
    let nanos = |of: fn(&HostRow) -> Option<i64>| {
        rows.iter().filter_map(move |row| Some((label(row), seconds(of(row)?))))
    };
    page.gauge(
        "coeval_clock_offset_seconds",
        "CLOCK_REALTIME of the host less the server's: the middle of the hard bound",
        nanos(|row| row.offset_ns),
    );
    page.gauge(
        "coeval_clock_hard_bound_seconds",
        "Half-width of the hard bound around the offset",
        nanos(|row| row.hard_ns),
    );
    page.gauge(
        "coeval_clock_statistical_bound_seconds",
        "Half-width of the statistical bound around the offset",
        nanos(|row| row.statistical_ns),
    );
    page.gauge(
        "coeval_clock_timeline_bound_seconds",
        "Half-width of the hard bound on the timelines that cuts are planned on: what sizes V",
        nanos(|row| row.timeline_ns),
    );
    page.gauge(
        "coeval_clock_drift_ppb",
        "Rate of the host's timeline against the server's, in parts per billion",
        rows.iter().filter_map(|row| Some((label(row), row.drift_ppb?))),
    );
    #[expect(clippy::cast_precision_loss, reason = "nanoseconds of a round trip")]
    page.gauge(
        "coeval_clock_round_trip_seconds",
        "Round trips between the stamping points since the host's timeline last changed",
        rows.iter().filter_map(|row| Some((row, row.rtt_ns?))).flat_map(|(row, trips)| {
            let of = |statistic: &str, nanos: u64| {
                (vec![("host", row.host.clone()), ("statistic", statistic.to_owned())], nanos as f64 / 1e9)
            };
            [of("min", trips.min), of("p50", trips.p50), of("p99", trips.p99)]
        }),
    );
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of an age")]
    page.gauge(
        "coeval_clock_age_seconds",
        "Time since the host's last exchange",
        rows.iter().filter_map(|row| Some((label(row), row.age_ms? as f64 / 1e3))),
    );
    page.counter(
        "coeval_clock_exchanges",
        "Exchanges that gave at least a half",
        rows.iter().map(|row| (label(row), row.exchanges)),
    );
    page.counter(
        "coeval_clock_exchanges_lost",
        "Exchanges of which anything was lost",
        rows.iter().map(|row| (label(row), row.lost)),
    );
    page.gauge(
        "coeval_clock_state",
        "1, for the state that the host's clock is in",
        rows.iter().map(|row| (vec![("host", row.host.clone()), ("state", word(&row.state))], 1.0)),
    );
    page.gauge(
        "coeval_clock_timestamps",
        "1, for the worse class of timestamps on either end",
        rows.iter().filter_map(|row| {
            Some((vec![("host", row.host.clone()), ("class", word(&row.timestamps?))], 1.0))
        }),
    );
    let observed = rows.iter().filter_map(|row| Some((row, source.observe(&row.host).ok()?)));
    let observed: Vec<_> = observed.map(|(row, seen)| (row, seen.suspends, seen.resets)).collect();
    page.counter(
        "coeval_clock_disruptions",
        "How often the host said that its machine was suspended or moved",
        observed.iter().map(|(row, suspends, _)| (label(row), u64::from(*suspends))),
    );
    page.counter(
        "coeval_clock_resets",
        "How often all exchanges with the host were thrown away, because its timeline changed or an assumption broke",
        observed.iter().map(|(row, _, resets)| (label(row), *resets)),
    );
    let worst = |of: fn(&timesync::report::PairRow) -> Option<i64>| {
        let widest = report.pairs.iter().filter_map(move |pair| Some((of(pair)?, pair)));
        widest
            .max_by_key(|(width, _)| *width)
            .map(|(width, pair)| (vec![("a", pair.a.clone()), ("b", pair.b.clone())], seconds(width)))
    };
    page.gauge(
        "coeval_clock_worst_pair_hard_bound_seconds",
        "Half-width of the hard bound between the two hosts that it is widest between",
        worst(|pair| pair.hard_ns),
    );
    page.gauge(
        "coeval_clock_worst_pair_statistical_bound_seconds",
        "Half-width of the statistical bound between the two hosts that it is widest between",
        worst(|pair| pair.statistical_ns),
    );
}

async fn snapshots(page: &mut Page, coordinator: &Coordinator) -> Result<(), CoordinatorError> {
    let counts = coordinator.counts();
    let read = |name, word: &str, count: &AtomicU64| (vec![(name, word.to_owned())], count.load(Relaxed));
    page.counter(
        "coeval_snapshots",
        "Snapshots that this run of the server took, by outcome: refused is one that no attempt certified",
        [
            read("outcome", "consistent", &counts.consistent),
            read("outcome", "inconsistent", &counts.inconsistent),
            read("outcome", "refused", &counts.refused),
            read("outcome", "failed", &counts.failed),
        ],
    );
    page.counter(
        "coeval_snapshot_attempts",
        "Attempts at snapshots, by mode",
        [read("mode", "timed", &counts.timed_attempts), read("mode", "barrier", &counts.barrier_attempts)],
    );
    page.counter(
        "coeval_snapshot_held_replies",
        "Replies that hosts held back for snapshots",
        [(Labels::new(), counts.held.load(Relaxed))],
    );
    page.durations(
        "coeval_snapshot_margin_seconds",
        "By how much timed snapshots were consistent",
        [(Labels::new(), &counts.margins)],
    );
    page.durations(
        "coeval_snapshot_stretch_seconds",
        "The longest that a host held a reply back for a snapshot, of each host",
        [(Labels::new(), &counts.stretches)],
    );
    #[expect(clippy::cast_precision_loss, reason = "2^53 snapshots are more than there will be")]
    page.gauge(
        "coeval_catalogue_snapshots",
        "Snapshots in the catalogue, by state",
        coordinator.states().await?.into_iter().map(|(state, count)| (vec![("state", state)], count as f64)),
    );
    let running = coordinator.operations().list();
    let running = running.iter().filter(|operation| operation.state == OperationState::Running).count();
    #[expect(clippy::cast_precision_loss, reason = "a few hundred at most")]
    page.gauge("coeval_operations", "Long work that is under way", [(Labels::new(), running as f64)]);
    let schedules = coordinator.stored_schedules().await?;
    let name = |schedule: &str| vec![("schedule", schedule.to_owned())];
    page.counter(
        "coeval_schedule_missed",
        "Times that passed without the snapshot that was due",
        schedules.iter().map(|it| (name(&it.schedule.name), it.missed)),
    );
    page.gauge(
        "coeval_schedule_failed",
        "1 where the schedule's last snapshot did not go as it should, else 0",
        schedules.iter().filter_map(|it| {
            let problem = it.last.as_ref()?.problem.is_some();
            Some((name(&it.schedule.name), f64::from(u8::from(problem))))
        }),
    );
    Ok(())
}

/// A word of the API, as in its JSON.
fn word(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
}
