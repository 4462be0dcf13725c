//! `coeval skew --record` and `--replay`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use snapshot::api::skew::RecordRequest;
use snapshot::client::ServerClient;
use timesync::recording::{ReplayError, Replayed, Sealer};
use timesync::report::Report;
use tokio::signal::unix::{SignalKind, signal};

use super::{finding, only, plotted, table, write_plot};
use crate::args::SkewArgs;
use crate::commands::{Failure, Finding, print, print_json};

/// Writes a recording, which ends well whenever it ends: after its time, or at Ctrl-C.
///
/// # Errors
/// When the server refuses or the file cannot be written. What is there then has no end, and is not replayed.
pub async fn record(client: &ServerClient, args: &SkewArgs, path: &Path) -> Result<Finding, Failure> {
    let cannot = |why: std::io::Error| format!("cannot write {}: {why}", path.display());
    let mut file = BufWriter::new(File::create(path).map_err(cannot)?);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let request = RecordRequest { hosts: args.hosts.clone(), duration_ms: args.duration.get() / 1_000_000 };
    let (mut sealer, mut failed, mut bounds) = (Sealer::default(), None, 0_u64);
    {
        let each = |line: serde_json::Value| {
            bounds += u64::from(line.get("bound").is_some());
            failed = file.write_all(sealer.seal(&line).as_bytes()).err();
            failed.is_none()
        };
        tokio::select! {
            ended = client.skew_recording(&request, each) => ended?,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    if let Some(why) = failed {
        return Err(cannot(why).into());
    }
    file.write_all(sealer.end().as_bytes()).and_then(|()| file.flush()).map_err(cannot)?;
    print(&format!("{}: {bounds} bounds; replay them with `coeval skew --replay`", path.display()))?;
    Ok(if bounds > 0 { Finding::Good } else { Finding::Bad })
}

/// What `--replay --json` prints: the report, and how much was compared.
#[derive(Serialize)]
struct ReplayedReport {
    #[serde(flatten)]
    report: Report,
    replayed: Compared,
}

#[derive(Serialize)]
struct Compared {
    events: u64,
    bounds: u64,
    program: String,
}

/// Replays a recording and shows the report as of its end.
///
/// # Errors
/// When the file is no recording, was changed, or a bound comes out differently; with the line.
pub fn replay(args: &SkewArgs, path: &Path) -> Result<Finding, Failure> {
    let file = File::open(path).map_err(|why| format!("cannot read {}: {why}", path.display()))?;
    let replayed = timesync::recording::replay(BufReader::new(file)).map_err(|error| match error {
        ReplayError::Line { line, what } => format!("{}:{line}: {what}", path.display()),
        other => format!("{}: {other}", path.display()),
    })?;
    let Replayed { report, mut tracks, events, bounds, program } = replayed;
    let report = only(report, &args.hosts)?;
    tracks.retain(|track| report.hosts.iter().any(|row| row.host == track.host));
    let found = finding(&report);
    if let Some(file) = &args.plot {
        write_plot(file, &tracks)?;
    }
    if args.remote.json {
        print_json(&ReplayedReport { report, replayed: Compared { events, bounds, program } })?;
        return Ok(found);
    }
    let mut text = table::describe(&report);
    text += &format!(
        "\nReplayed: {events} events, recorded by {program}. All {bounds} bounds came out as recorded, to the last bit.\n"
    );
    if let Some(file) = &args.plot {
        text += &plotted(file, &tracks, tracks.len());
    }
    print(&text)?;
    Ok(found)
}
