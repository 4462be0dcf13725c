//! `coeval skew`

mod past;
mod plot;
mod recording;
mod screen;
mod table;
mod watch;

use std::path::Path;

use snapshot::client::ServerClient;
use timesync::history::{FINE_SPAN, Track};
use timesync::report::Report;

use super::{Failure, Finding, connect, print, print_json};
use crate::args::SkewArgs;

/// Shows how far the hosts' clocks are from the server's and from each other; good if every host has a bound.
///
/// # Errors
/// When the server does not answer, knows no such host, or a file cannot be read or written.
pub async fn run(args: &SkewArgs) -> Result<Finding, Failure> {
    if let Some(file) = &args.replay {
        return recording::replay(args, file);
    }
    let client = connect(&args.remote)?;
    if let Some(file) = &args.record {
        return recording::record(&client, args, file).await;
    }
    let report = fetch(&client, &args.hosts).await?;
    if args.watch {
        watch::run(&client, &args.hosts).await?;
        return Ok(Finding::Good);
    }
    if args.plot.is_none() && args.history.is_none() {
        return show(args, &report);
    }
    let span = args.history.unwrap_or(FINE_SPAN);
    let mut tracks = Vec::new();
    for host in drawn(args, &report) {
        tracks.extend(client.skew_history(span, Some(&host)).await?);
    }
    match &args.plot {
        Some(file) => {
            write_plot(file, &tracks)?;
            if args.remote.json {
                return show(args, &report);
            }
            print(&plotted(file, &tracks, report.hosts.len()))?;
        }
        None if args.remote.json => print_json(&tracks)?,
        None => print(&past::describe(&tracks, span))?,
    }
    Ok(finding(&report))
}

/// Prints a report.
fn show(args: &SkewArgs, report: &Report) -> Result<Finding, Failure> {
    if args.remote.json {
        print_json(report)?;
    } else {
        print(&table::describe(report))?;
    }
    Ok(finding(report))
}

/// Bad where a host has no bound: a script that waits for one need not read the table.
fn finding(report: &Report) -> Finding {
    if report.hosts.iter().all(|row| row.hard_ns.is_some()) { Finding::Good } else { Finding::Bad }
}

/// The report, on these hosts only if there are any.
async fn fetch(client: &ServerClient, hosts: &[String]) -> Result<Report, Failure> {
    let report = serde_json::from_value(client.skew().await?)?;
    only(report, hosts)
}

fn only(mut report: Report, hosts: &[String]) -> Result<Report, Failure> {
    if hosts.is_empty() {
        return Ok(report);
    }
    if let Some(unknown) = hosts.iter().find(|name| report.hosts.iter().all(|row| row.host != **name)) {
        let known: Vec<&str> = report.hosts.iter().take(10).map(|row| row.host.as_str()).collect();
        return Err(format!("no host is called {unknown}; there are {}", known.join(", ")).into());
    }
    report.hosts.retain(|row| hosts.contains(&row.host));
    report.pairs.retain(|pair| hosts.contains(&pair.a) && hosts.contains(&pair.b));
    report.pair_count = report.pairs.len() as u64;
    Ok(report)
}

/// Whose history is fetched: for a plot no more than fit, those with no bound and the widest ones first.
fn drawn(args: &SkewArgs, report: &Report) -> Vec<String> {
    let mut rows: Vec<_> = report.hosts.iter().collect();
    if args.plot.is_some() && rows.len() > plot::MOST_HOSTS {
        rows.sort_by_key(|row| std::cmp::Reverse(row.hard_ns.unwrap_or(i64::MAX)));
        rows.truncate(plot::MOST_HOSTS);
    }
    rows.into_iter().map(|row| row.host.clone()).collect()
}

fn write_plot(file: &Path, tracks: &[Track]) -> Result<(), Failure> {
    let image = plot::draw(tracks)?;
    std::fs::write(file, image).map_err(|why| format!("cannot write {}: {why}", file.display()).into())
}

fn plotted(file: &Path, tracks: &[Track], hosts: usize) -> String {
    let points: usize = tracks.iter().map(|track| track.points.len()).sum();
    let which = match hosts {
        all if all == tracks.len() => String::new(),
        all => format!(", the widest of {all} (choose others with --host)"),
    };
    let noun = if tracks.len() == 1 { "host" } else { "hosts" };
    format!("{}: {} {noun}{which}, {points} points", file.display(), tracks.len())
}
