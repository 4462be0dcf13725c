//! `coeval demo`: a server and three hosts on this machine, whose clocks differ; snapshots under a causal load, each
//! opened and checked; and controls that must fail.

pub mod report;
mod stage;

use std::time::Duration;

use snapshot::cut::Stretch;
use snapshot::messages::{Control as Spoiled, CreateRequest, Manifest, RequestedMode, Verdict};
use timesync::time::Nanos;

use crate::args::DemoArgs;
use crate::commands::{Failure, Finding, print, print_json, snapshot::draw};
use crate::progress::ProgressLine;
use crate::workload::{Latencies, Period, Workload};
use report::{Control, Lopsided, Phase, Report, WriteLatencies};
use stage::{Network, Stage};

const TIMED: usize = 50;
const BARRIER: usize = 20;
const LOPSIDED: usize = 20;
const CONTROL: usize = 10;

/// Tokens under way at once.
const TOKENS: usize = 8;

/// How long a token rests after each write, so that two processors carry the tokens and the daemons too. Still, several
/// writes fall into every stretch of a few milliseconds.
const PAUSE: Duration = Duration::from_micros(500);

/// A machine that is busy with other things arms its hosts too late now and then.
const ATTEMPTS: u32 = 10;

/// What the lopsided network adds, one way.
const ADDED: Nanos = Nanos::from_millis(2);

/// Larger than any two clocks' difference, so that no host refuses an untranslated T as late.
const LONG_LEAD: Nanos = Nanos::from_millis(250);

/// How long writes are watched before the first snapshot.
const QUIET: Duration = Duration::from_secs(1);

/// Runs the demonstration and prints what it found.
///
/// # Errors
/// When it could not be carried out.
pub async fn run(args: &DemoArgs) -> Result<Finding, Failure> {
    let line = ProgressLine::new();
    line.show("starting a server and three hosts");
    let straight = Stage::start(Network::Straight).await?;
    let timed = series(&straight, &line, "timed snapshots", RequestedMode::Timed, TIMED).await?;
    let barrier = series(&straight, &line, "barrier snapshots", RequestedMode::Barrier, BARRIER).await?;
    let hosts = straight.clocks().await?;
    let mut controls = Vec::new();
    for (name, spoiled) in
        [("uncoordinated", Spoiled::Uncoordinated), ("untranslated", Spoiled::Untranslated)]
    {
        controls.push(control(&straight, &line, name, spoiled).await?);
    }
    drop(straight);

    line.show("starting again, on a lopsided network");
    let lopsided = Stage::start(Network::Lopsided(ADDED)).await?;
    let delayed = series(&lopsided, &line, "timed, lopsided network", RequestedMode::Timed, LOPSIDED).await?;
    controls.push(control(&lopsided, &line, "zero_stretch", Spoiled::ZeroStretch).await?);
    drop(lopsided);
    drop(line);

    let report = Report {
        hosts,
        timed: timed.phase(),
        barrier: barrier.phase(),
        lopsided: Lopsided { added_ns: ADDED.get(), timed: delayed.phase() },
        controls,
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&format!("{}{}\n{report}", INTRODUCTION, picture(&timed, &delayed)))?;
    }
    Ok(if report.failures().is_empty() { Finding::Good } else { Finding::Bad })
}

const INTRODUCTION: &str = "\
One server and three hosts ran on this machine, each a process of its own, with clocks that differ.
Tokens went from volume to volume over NBD: write n, wait for the answer, write n + 1 on another
host. A set of images in which a later write is there and an earlier one is not is a torn cut.
";

/// One cut on the straight network and one on the lopsided one: those that held most replies.
fn picture(timed: &Series, lopsided: &Series) -> String {
    let mut text = String::new();
    for (title, series) in [
        ("One cut on the server's time axis", timed),
        ("One cut on the lopsided network: only V saves it", lopsided),
    ] {
        let held = |manifest: &&Manifest| manifest.hosts.iter().map(|host| host.held).sum::<u64>();
        if let Some(picture) = series.certified.iter().max_by_key(held).and_then(draw) {
            text += &format!("\n{title}\n{picture}");
        }
    }
    text += "
  ━ writes up to P are in the snapshot    ░ replies to later ones are held back until Q
  Every Q comes after every P: no write that is in an image can know of one that is not.
";
    text
}

/// Snapshots under load.
struct Series {
    taken: usize,
    certified: Vec<Manifest>,
    violations: usize,
    latencies: Latencies,
}

async fn series(
    stage: &Stage,
    line: &ProgressLine,
    what: &str,
    mode: RequestedMode,
    count: usize,
) -> Result<Series, Failure> {
    let workload = Workload::start(&stage.exports(None), TOKENS, PAUSE)?;
    line.show(what);
    workload.set_period(Period::Quiet);
    tokio::time::sleep(QUIET).await;
    let mut series =
        Series { taken: 0, certified: Vec::new(), violations: 0, latencies: Latencies::default() };
    for number in 1..=count {
        line.show(&format!("{what}: {number} of {count}"));
        let order = CreateRequest { mode, attempts: Some(ATTEMPTS), ..CreateRequest::default() };
        workload.set_period(Period::Snapshot);
        let created = stage.snapshot(&order).await?;
        workload.set_period(Period::Other);
        series.taken += 1;
        if let Some(manifest) = created {
            let violations = stage.check_and_delete(&manifest, TOKENS).await?;
            if manifest.verdict == Verdict::Consistent {
                series.violations += violations;
                series.certified.push(manifest);
            }
        }
    }
    series.latencies = workload.stop()?;
    Ok(series)
}

/// Snapshots that are taken wrongly on purpose, under load.
async fn control(
    stage: &Stage,
    line: &ProgressLine,
    name: &'static str,
    spoiled: Spoiled,
) -> Result<Control, Failure> {
    let workload = Workload::start(&stage.exports(None), TOKENS, PAUSE)?;
    let mut control = Control { name, snapshots: 0, violations: 0, called_consistent: 0 };
    for number in 1..=CONTROL {
        line.show(&format!("control {name}: {number} of {CONTROL}"));
        let order = CreateRequest {
            mode: RequestedMode::Timed,
            control: Some(spoiled),
            attempts: Some(ATTEMPTS),
            lead_ns: (spoiled == Spoiled::Untranslated).then_some(LONG_LEAD),
            ..CreateRequest::default()
        };
        if let Some(manifest) = stage.snapshot(&order).await? {
            control.snapshots += 1;
            let violations = stage.check_and_delete(&manifest, TOKENS).await?;
            control.violations += violations;
            // A cut that was planned wrongly is consistent, and rightly called so, where every host happened to
            // release late.
            let certified = manifest.verdict == Verdict::Consistent;
            control.called_consistent += usize::from(certified && violations > 0);
        }
    }
    workload.stop()?;
    Ok(control)
}

impl Series {
    fn phase(&self) -> Phase {
        let mut v: Vec<i64> = self.certified.iter().filter_map(|cut| Some(cut.v_ns?.get())).collect();
        v.sort_unstable();
        let each = |part: fn(&Stretch) -> u64| {
            let hosts = self.certified.iter().flat_map(|cut| &cut.hosts).filter(|host| host.held > 0);
            let mut values: Vec<u64> = hosts.map(|host| part(&host.stretch_ns)).collect();
            values.sort_unstable();
            values
        };
        let Latencies { quiet, during } = &self.latencies;
        Phase {
            snapshots: self.taken,
            consistent: self.certified.len(),
            violations: self.violations,
            v_ns: quantile(&v, 50),
            margin_ns_min: self.certified.iter().filter_map(|cut| Some(cut.margin_ns?.get())).min(),
            stretch_ns: Stretch {
                p50: quantile(&each(|stretch| stretch.p50), 50).unwrap_or(0),
                p99: quantile(&each(|stretch| stretch.p99), 99).unwrap_or(0),
                max: quantile(&each(|stretch| stretch.max), 100).unwrap_or(0),
            },
            write_ns: WriteLatencies {
                p50_quiet: quiet.value_at_quantile(0.50),
                p99_quiet: quiet.value_at_quantile(0.99),
                p50_during: during.value_at_quantile(0.50),
                p99_during: during.value_at_quantile(0.99),
            },
        }
    }
}

/// The smallest value that is no less than so many percent of the sorted values.
fn quantile<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles() {
        assert_eq!(quantile::<i64>(&[], 50), None);
        assert_eq!([1, 50, 99, 100].map(|percent| quantile(&[7], percent)), [Some(7); 4]);
        let hundred: Vec<i64> = (1..=100).collect();
        assert_eq!([50, 99, 100].map(|percent| quantile(&hundred, percent)), [Some(50), Some(99), Some(100)]);
    }
}
