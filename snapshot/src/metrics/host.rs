//! A host's metrics: its volumes, its NBD clients, and its part in cuts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use timesync::time::Nanos;

use super::{Durations, Labels, Page};
use crate::cut::{Cause, Readings};
use crate::host::HostService;
use crate::http::{Refusal, TlsFiles};
use crate::nbd::Traffic;

/// What a host counts of the cuts that it took part in.
#[derive(Debug, Default)]
pub struct HostMetrics {
    /// By cause of release, in the order of [`CAUSES`].
    cuts: [AtomicU64; 4],
    failed: AtomicU64,
    held: AtomicU64,
    stretches: Durations,
}

const CAUSES: [(Cause, &str); 4] = [
    (Cause::Time, "time"),
    (Cause::Barrier, "barrier"),
    (Cause::Timeout, "timeout"),
    (Cause::Abort, "abort"),
];

impl HostMetrics {
    /// Counts a cut that was asked for its evidence; none: it had none.
    pub fn cut(&self, readings: Option<&Readings>) {
        let Some(readings) = readings else {
            self.failed.fetch_add(1, Relaxed);
            return;
        };
        for (count, (cause, _)) in self.cuts.iter().zip(CAUSES) {
            if cause == readings.released_by {
                count.fetch_add(1, Relaxed);
            }
        }
        self.held.fetch_add(readings.held, Relaxed);
        self.stretches.add(Nanos::new(i64::try_from(readings.stretch_ns.max).unwrap_or(i64::MAX)));
    }
}

#[derive(Clone)]
struct Sources {
    host: Arc<HostService>,
    traffic: Arc<Traffic>,
    tls: Option<TlsFiles>,
}

/// `GET /metrics` of a host.
pub fn router(host: Arc<HostService>, traffic: Arc<Traffic>, tls: Option<TlsFiles>) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state(Sources { host, traffic, tls })
}

async fn scrape(State(Sources { host, traffic, tls }): State<Sources>) -> Result<Page, Refusal> {
    Page::gather(tls, move |page| {
        volumes(page, &host);
        cuts(page, host.metrics());
        nbd(page, &traffic);
    })
    .await
}

#[expect(clippy::cast_precision_loss, reason = "sizes for a chart")]
fn volumes(page: &mut Page, host: &HostService) {
    let description = host.describe();
    let usage = host.usage();
    let label = |volume: &str| -> Labels { vec![("volume", volume.to_owned())] };
    let volumes = || description.volumes.iter().map(|volume| (label(&volume.name), volume));
    let usage = || usage.iter().map(|(name, usage)| (label(name), usage));
    page.gauge(
        "coeval_volume_size_bytes",
        "The volume's size, as its clients see it",
        volumes().map(|(label, volume)| (label, volume.size as f64)),
    );
    page.gauge(
        "coeval_volume_allocated_bytes",
        "What the volume and its snapshots take on disk",
        volumes().map(|(label, volume)| (label, volume.allocated as f64)),
    );
    page.gauge(
        "coeval_volume_live_bytes",
        "Data that the live volume reads",
        usage().map(|(label, usage)| (label, usage.live as f64)),
    );
    page.gauge(
        "coeval_volume_held_bytes",
        "Data that only the volume's snapshots read",
        usage().map(|(label, usage)| (label, usage.held as f64)),
    );
    page.gauge(
        "coeval_volume_quota_bytes",
        "What the volume's snapshots may hold, where there is a quota",
        usage().filter_map(|(label, usage)| Some((label, usage.quota?.bytes as f64))),
    );
    page.gauge(
        "coeval_volume_layers",
        "The volume's layers, its base among them",
        volumes().map(|(label, volume)| (label, volume.layers as f64)),
    );
    page.gauge(
        "coeval_volume_snapshots",
        "The volume's snapshots",
        volumes().map(|(label, volume)| (label, volume.snapshots.len() as f64)),
    );
    page.gauge(
        "coeval_volume_clients",
        "NBD clients that have the volume open",
        volumes().map(|(label, volume)| (label, volume.clients as f64)),
    );
    page.gauge(
        "coeval_volume_unserved",
        "1, for a volume that the host has and cannot serve; its log says why",
        description.unserved.keys().map(|name| (label(name), 1.0)),
    );
    let room = nix::sys::statvfs::statvfs(&host.options().volumes).ok();
    page.gauge(
        "coeval_volumes_free_bytes",
        "Room on the file system of the volumes",
        room.map(|room| (Labels::new(), room.blocks_available() as f64 * room.fragment_size() as f64)),
    );
}

fn cuts(page: &mut Page, metrics: &HostMetrics) {
    page.counter(
        "coeval_cuts",
        "Cuts of which this host gave its evidence, by what ended the stretch",
        metrics
            .cuts
            .iter()
            .zip(CAUSES)
            .map(|(count, (_, word))| (vec![("released_by", word.to_owned())], count.load(Relaxed))),
    );
    page.counter(
        "coeval_cuts_failed",
        "Cuts of which this host had no evidence to give",
        [(Labels::new(), metrics.failed.load(Relaxed))],
    );
    page.counter(
        "coeval_held_replies",
        "Replies that were held back for cuts",
        [(Labels::new(), metrics.held.load(Relaxed))],
    );
    page.durations(
        "coeval_cut_stretch_seconds",
        "The longest that a reply was held back, of each cut",
        [(Labels::new(), &metrics.stretches)],
    );
}

fn nbd(page: &mut Page, traffic: &Traffic) {
    let commands = traffic.commands();
    let label = |word: &str| -> Labels { vec![("command", word.to_owned())] };
    page.counter(
        "coeval_nbd_requests",
        "Requests that were executed, by command",
        commands.iter().map(|it| (label(it.name), it.requests)),
    );
    page.counter(
        "coeval_nbd_errors",
        "Requests that ended in an error, by command",
        commands.iter().map(|it| (label(it.name), it.errors)),
    );
    page.counter(
        "coeval_nbd_bytes",
        "Bytes that requests were about, by command",
        commands.iter().map(|it| (label(it.name), it.bytes)),
    );
    page.durations(
        "coeval_nbd_request_duration_seconds",
        "From taking a request up to its reply, without the time that a cut held it back",
        commands.iter().map(|it| (label(it.name), &it.durations)),
    );
    #[expect(clippy::cast_precision_loss, reason = "a thousand at most")]
    let connections = traffic.connections() as f64;
    page.gauge("coeval_nbd_connections", "NBD connections", [(Labels::new(), connections)]);
}
