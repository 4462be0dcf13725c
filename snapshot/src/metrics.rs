//! What Prometheus scrapes: the text format of OpenMetrics, put together anew for each scrape.
//!
//! What counts events as they happen counts in [`Durations`] and atomic numbers, without locks; everything else is asked
//! for when somebody scrapes. `docs/metrics.md` lists all of it, and a test compares.

mod host;
mod server;

pub use host::{HostMetrics, router as host_router};
pub use server::{SnapshotCounts, router as server_router};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use timesync::time::Nanos;

use crate::http::{Refusal, TlsFiles};

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets end at 256 ns, twice that, and so on to 17 s; what took longer is only in the count.
const BUCKETS: usize = 27;
const SMALLEST: u32 = 8;

/// How long something took, again and again: a histogram with buckets by powers of two.
#[derive(Debug, Default)]
pub struct Durations {
    /// The last one: beyond all buckets.
    counts: [AtomicU64; BUCKETS + 1],
    nanos: AtomicU64,
}

impl Durations {
    /// Counts one. Less than no time counts as none.
    pub fn add(&self, duration: Nanos) {
        let nanos = u64::try_from(duration.get()).unwrap_or(0);
        // The least k with nanos ≤ 2^k.
        let power = u64::BITS - nanos.saturating_sub(1).leading_zeros();
        let bucket = (power.saturating_sub(SMALLEST) as usize).min(BUCKETS);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
    }

    /// Counts all that `other` has counted.
    pub fn add_all(&self, other: &Durations) {
        for (count, more) in self.counts.iter().zip(&other.counts) {
            count.fetch_add(more.load(Relaxed), Relaxed);
        }
        self.nanos.fetch_add(other.nanos.load(Relaxed), Relaxed);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    fn sample(&self) -> Sample {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        let end =
            |at: usize| if at < BUCKETS { seconds(1 << (SMALLEST as usize + at)) } else { f64::INFINITY };
        Sample::Durations {
            seconds: seconds(i64::try_from(self.nanos.load(Relaxed)).unwrap_or(i64::MAX)),
            count: counts.iter().sum(),
            buckets: counts.into_iter().enumerate().map(|(at, count)| (end(at), count)).collect(),
        }
    }
}

/// A number of nanoseconds in seconds.
#[expect(clippy::cast_precision_loss, reason = "16 digits are enough for a chart")]
fn seconds(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

#[derive(Debug)]
enum Sample {
    Gauge(f64),
    Counter(u64),
    Durations { seconds: f64, count: u64, buckets: Vec<(f64, u64)> },
}

type Labels = Vec<(&'static str, String)>;

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    samples: Vec<(Labels, Sample)>,
}

/// One scrape. A family is listed although nothing is known of it yet.
#[derive(Debug, Default)]
struct Page(Vec<Family>);

impl Page {
    /// What is said of every daemon, and what `fill` adds: off the runtime's threads, as it takes time and reads files.
    async fn gather(
        tls: Option<TlsFiles>,
        fill: impl FnOnce(&mut Page) + Send + 'static,
    ) -> Result<Page, Refusal> {
        let page = tokio::task::spawn_blocking(move || {
            let mut page = Page::default();
            page.daemon(tls.as_ref());
            fill(&mut page);
            page
        });
        page.await.map_err(|panic| Refusal::new(500, format!("the metrics failed: {panic}")))
    }

    /// Values that go up and down, each with its labels.
    fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let samples = values.into_iter().map(|(labels, value)| (labels, Sample::Gauge(value))).collect();
        self.0.push(Family { name, help, kind: MetricType::Gauge, samples });
    }

    /// Numbers that only grow, each with its labels. `name` is without the `_total` that they get.
    fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, u64)>,
    ) {
        let samples = values.into_iter().map(|(labels, value)| (labels, Sample::Counter(value))).collect();
        self.0.push(Family { name, help, kind: MetricType::Counter, samples });
    }

    /// Histograms of durations in seconds, each with its labels.
    fn durations<'a>(
        &mut self,
        name: &'static str,
        help: &'static str,
        values: impl IntoIterator<Item = (Labels, &'a Durations)>,
    ) {
        let samples = values.into_iter().map(|(labels, durations)| (labels, durations.sample())).collect();
        self.0.push(Family { name, help, kind: MetricType::Histogram, samples });
    }

    /// When a daemon's certificates expire, and which version it is.
    fn daemon(&mut self, tls: Option<&TlsFiles>) {
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        self.gauge("coeval_build", "1, for the version that runs", [(version, 1.0)]);
        let ends = tls.map(TlsFiles::expiries).unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "a time of day to the second")]
        self.gauge(
            "coeval_certificate_expiry_timestamp_seconds",
            "When a certificate that this daemon uses expires, in seconds since 1970",
            ends.into_iter().map(|(file, end)| (vec![("file", file.to_owned())], end.timestamp() as f64)),
        );
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        match text::encode(&mut text, &registry) {
            Ok(()) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
            Err(why) => Refusal::new(500, format!("the metrics cannot be written: {why}")).into_response(),
        }
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for Family { name, help, kind, samples } in &self.0 {
            let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
            for (labels, sample) in samples {
                let mut metric = family.encode_family(labels)?;
                match sample {
                    Sample::Gauge(value) => metric.encode_gauge(value)?,
                    Sample::Counter(value) => {
                        metric.encode_counter::<[(&str, &str); 0], _, f64>(value, None)?
                    }
                    Sample::Durations { seconds, count, buckets } => {
                        metric.encode_histogram::<[(&str, &str); 0]>(*seconds, *count, buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_reaches_it() {
        let durations = Durations::default();
        for nanos in [-5, 0, 1, 256, 257, 512, 1 << 34, (1 << 34) + 1, i64::MAX] {
            durations.add(Nanos::new(nanos));
        }
        let Sample::Durations { count, buckets, .. } = durations.sample() else { panic!("it is one") };
        assert_eq!(count, 9);
        let filled: Vec<_> = buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!(filled, [(256e-9, 4), (512e-9, 2), ((1_u64 << 34) as f64 / 1e9, 1), (f64::INFINITY, 2)]);
    }
}
