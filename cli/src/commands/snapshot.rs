//! `coeval snapshot`

use serde::Serialize;
use snapshot::cut::Readings;
use snapshot::messages::{
    CreateRequest, HostResult, Manifest, Member, Progress, RequestedPolicy, RestoreRequest, SnapshotDetails,
    Usage, Verdict,
};
use snapshot::orders::{AttemptId, PauseTimes, SnapshotUsage};
use timesync::bound::AsymmetryBudget;
use timesync::time::{Nanos, Server, Time};

use super::{Failure, Finding, connect, print, print_json, word};
use crate::args::{CreateArgs, CutArgs, NamedArgs, Remote, RestoreArgs};
use crate::picture::{self, Bar};
use crate::progress::ProgressLine;
use crate::table::Table;
use crate::units::{format_size, format_unsigned};

/// What the flags ask for, without a name.
pub fn request(cut: CutArgs) -> CreateRequest {
    let policy = cut.statistical.map_or(RequestedPolicy::Hard, |group_confidence| {
        RequestedPolicy::Statistical { group_confidence, budget: AsymmetryBudget::SmallestRoundTrip }
    });
    CreateRequest {
        name: None,
        group: cut.group,
        group_name: cut.group_name,
        mode: cut.mode.into(),
        policy,
        lead_ns: cut.lead,
        attempts: cut.attempts,
        hooks: cut.hooks,
        control: None,
    }
}

/// Takes a snapshot.
///
/// # Errors
/// When there is none.
pub async fn create(args: CreateArgs) -> Result<(), Failure> {
    let order = CreateRequest { name: args.name, ..request(args.cut) };
    if args.dry_run {
        return rehearse(&order, &args.remote).await;
    }
    let line = ProgressLine::new();
    let progress = |now: &Progress| {
        let Progress { detail, attempt } = now;
        let place = attempt.map_or_else(String::new, |attempt| {
            format!("attempt {}, {}: {}: ", attempt.number, word(&attempt.mode), word(&attempt.step))
        });
        line.show(&format!("{place}{detail}"));
    };
    let created = connect(&args.remote)?.create(&order, progress).await;
    drop(line);
    let manifest = created?;
    if args.remote.json {
        return print_json(&manifest);
    }
    print(&describe(&manifest))
}

async fn rehearse(order: &CreateRequest, remote: &Remote) -> Result<(), Failure> {
    let forecast = connect(remote)?.rehearse(order).await?;
    if remote.json {
        return print_json(&forecast);
    }
    let mut text = format!("dry run: nothing was cut. It would be {}", word(&forecast.mode));
    match forecast.v_ns {
        Some(v) => text += &format!(", V {v}"),
        None => text += &format!(", replies held for about {}", forecast.stretch_ns),
    }
    if let Some(margin) = forecast.margin_ns {
        text += &format!(", margin {margin}");
    }
    text += &format!("; a control round trip takes {}", forecast.control_round_trip_ns);
    if let Some(why) = &forecast.why_not_timed {
        text += &format!("\nnot timed: {why}");
    }
    text += "\n\n";
    let mut table = Table::new(&["host", "bound", "timestamps", "stretches at most", "volumes"]);
    for host in &forecast.hosts {
        table.row(vec![
            host.host.clone(),
            or_dash(host.error_ns),
            host.timestamps.map_or_else(dash, |class| word(&class)),
            host.max_stretch_ns.to_string(),
            host.volumes.join(" "),
        ]);
    }
    print(&(text + &table.to_string()))
}

/// Lists snapshots.
///
/// # Errors
/// When the server refuses.
pub async fn list(remote: &Remote) -> Result<(), Failure> {
    let snapshots = connect(remote)?.list().await?;
    if remote.json {
        return print_json(&snapshots);
    }
    let mut table = Table::new(&["name", "created", "state", "mode", "volumes", "V", "margin"]);
    for snapshot in &snapshots {
        let manifest = snapshot.manifest.as_ref();
        table.row(vec![
            snapshot.name.clone(),
            snapshot.created.clone(),
            word(&snapshot.state),
            manifest.and_then(|manifest| manifest.mode).map_or_else(dash, |mode| word(&mode)),
            manifest.map_or_else(dash, |manifest| manifest.group.len().to_string()),
            or_dash(manifest.and_then(|manifest| manifest.v_ns)),
            or_dash(manifest.and_then(|manifest| manifest.margin_ns)),
        ]);
    }
    print(&table.to_string())
}

/// Shows a snapshot.
///
/// # Errors
/// When there is none of that name, or the server refuses.
pub async fn show(args: &NamedArgs) -> Result<(), Failure> {
    let server = connect(&args.remote)?;
    let details = server.show(&args.snapshot, false).await?;
    let usage = usage(&server.usage().await?, &details);
    if args.remote.json {
        return print_json(&Shown { details: &details, usage });
    }
    let SnapshotDetails { snapshot, story, .. } = &details;
    let mut text = format!("{}  {}  {}\n", snapshot.name, word(&snapshot.state), snapshot.created);
    if let Some(why) = &snapshot.why {
        text += &format!("{why}\n");
    }
    if let Some(manifest) = &snapshot.manifest {
        text += &format!("\n{}\n", describe(manifest));
    }
    if !usage.is_empty() {
        let mut table = Table::new(&["volume", "reads", "alone"]);
        for part in &usage {
            let member = format!("{}/{}", part.member.host, part.member.volume);
            let SnapshotUsage { referenced, exclusive } = part.usage;
            table.row(vec![member, format_size(referenced), format_size(exclusive)]);
        }
        text += &format!("{table}\n");
    }
    if let Some(began) = story.first().map(|entry| entry.at_ns) {
        text += "What happened\n";
        let mut attempts: Vec<AttemptId> = Vec::new();
        for entry in story {
            // What belongs to no attempt, such as a hook, names the snapshot in its place.
            if entry.attempt != snapshot.id && !attempts.contains(&entry.attempt) {
                attempts.push(entry.attempt);
                text += &format!("  attempt {}\n", attempts.len());
            }
            let who = entry.host.as_deref().unwrap_or("all");
            let after = (entry.at_ns - began).to_string();
            text += &format!("  {after:>10}  {:<9} {who}{}\n", word(&entry.step), retell(&entry.detail));
        }
    }
    print(&text)
}

/// What is shown in JSON.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    details: &'a SnapshotDetails,
    /// Of the volumes whose hosts answer.
    usage: Vec<MemberUsage>,
}

#[derive(Serialize)]
struct MemberUsage {
    #[serde(flatten)]
    member: Member,
    #[serde(flatten)]
    usage: SnapshotUsage,
}

/// What each volume of a snapshot takes.
fn usage(all: &Usage, details: &SnapshotDetails) -> Vec<MemberUsage> {
    let Some(manifest) = &details.snapshot.manifest else { return Vec::new() };
    let of = |member: &Member| {
        let usage = *all.get(&member.host)?.get(&member.volume)?.snapshots.get(&manifest.name)?;
        Some(MemberUsage { member: member.clone(), usage })
    };
    manifest.group.iter().filter_map(of).collect()
}

/// Computes a snapshot's verdict and digests again.
///
/// # Errors
/// When there is none of that name, or the server refuses.
pub async fn verify(args: &NamedArgs) -> Result<Finding, Failure> {
    let report = connect(&args.remote)?.verify(&args.snapshot).await?;
    let good = report.verdict == Verdict::Consistent && report.intact;
    if args.remote.json {
        print_json(&report)?;
    } else {
        let mut text = format!("{}: {}", report.name, word(&report.verdict));
        match (&report.margin_ns, &report.refusal) {
            (_, Some(refusal)) => text += &format!(": {refusal}"),
            (Some(margin), None) => text += &format!(", margin {margin}"),
            (None, None) => {}
        }
        text += "\n";
        for volume in &report.volumes {
            let state = match (&volume.problem, &volume.stored) {
                (Some(problem), _) => problem.clone(),
                (None, None) if volume.now.is_none() => "is there, in its own storage".to_owned(),
                (None, None) => "its digest was not stored yet".to_owned(),
                (None, stored) if *stored == volume.now => "reads as it did".to_owned(),
                _ => "CHANGED".to_owned(),
            };
            text += &format!("  {}/{}: {state}\n", volume.member.host, volume.member.volume);
        }
        print(&text)?;
    }
    Ok(if good { Finding::Good } else { Finding::Bad })
}

/// Puts the volumes of a snapshot back to it.
///
/// # Errors
/// When there is none of that name, clients are connected, or a host does not do it.
pub async fn restore(args: &RestoreArgs) -> Result<(), Failure> {
    let RestoreArgs { snapshot, discard_current, disconnect, remote } = args;
    let order = RestoreRequest { discard_current: *discard_current, disconnect: *disconnect };
    let report = connect(remote)?.restore(snapshot, &order).await?;
    if remote.json {
        return print_json(&report);
    }
    let count = report.volumes.len();
    let mut text =
        format!("restored {}: {count} volume{}", report.snapshot, if count == 1 { "" } else { "s" });
    if let Some(kept) = &report.kept {
        text += &format!("; what they were is snapshot {kept}");
    }
    print(&text)
}

/// Deletes a snapshot.
///
/// # Errors
/// When there is none of that name, or a host does not do it.
pub async fn delete(args: &NamedArgs) -> Result<(), Failure> {
    connect(&args.remote)?.delete(&args.snapshot).await?;
    if args.remote.json {
        return print_json(&serde_json::json!({ "deleted": args.snapshot }));
    }
    print(&format!("deleted {}", args.snapshot))
}

/// A manifest for people.
fn describe(manifest: &Manifest) -> String {
    let mode = manifest.mode.map_or_else(|| "uncoordinated".to_owned(), |mode| word(&mode));
    let mut text = format!("{}: {}, {mode}", manifest.name, word(&manifest.verdict));
    if let Some(v) = manifest.v_ns {
        text += &format!(", V {v}");
    }
    if let Some(margin) = manifest.margin_ns {
        text += &format!(", margin {margin}");
    }
    if manifest.attempts > 1 {
        text += &format!(", {} attempts", manifest.attempts);
    }
    match manifest.group_confidence {
        Some(confidence) => text += &format!(", statistical bound at {confidence} for the group"),
        None => text += ", hard bound",
    }
    if let Some(refusal) = &manifest.refusal {
        text += &format!("\n{refusal}");
    }
    text += "\n\n";
    let headings = ["host", "bound", "held", "p50", "p99", "max", "released by", "volumes"];
    let mut table = Table::new(&headings);
    for host in &manifest.hosts {
        let HostResult { stretch_ns, .. } = host;
        let mut row = vec![host.host.clone(), or_dash(host.error_ns), host.held.to_string()];
        let stretch = [stretch_ns.p50, stretch_ns.p99, stretch_ns.max];
        row.extend(stretch.map(|nanos| if host.held == 0 { dash() } else { format_unsigned(nanos) }));
        row.push(host.released_by.map_or_else(dash, |cause| word(&cause)));
        row.push(host.volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(" "));
        table.row(row);
    }
    text += &table.to_string();
    for host in &manifest.hosts {
        for part in host.volumes.iter().filter_map(|volume| volume.external.as_ref()) {
            let pause = match part.pause {
                Some(PauseTimes { pausing_ns, cutting_ns, paused_ns, .. }) => format!(
                    "paused for {paused_ns}, of which {pausing_ns} to come to rest and {cutting_ns} for the snapshot"
                ),
                None => "not paused".to_owned(),
            };
            text += &format!("\n{}/{} ({}): {pause}", host.host, part.volume, part.backend);
        }
    }
    if let Some(picture) = draw(manifest) {
        text += &format!("\n{picture}");
    }
    text
}

/// What a host or the server did, from the story's detail: a sentence, or an answer in JSON, of which only what is not
/// in the manifest's table is of interest.
fn retell(detail: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(detail) {
        Err(_) => format!(": {detail}"),
        Ok(answer) => serde_json::from_value::<Readings>(answer["readings"].clone()).map_or_else(
            |_| String::new(),
            |Readings { at, p, q, held, released_by, .. }| {
                let (before, after, cause) = (at - p, q - at, word(&released_by));
                format!(": P {before} before its T, Q {after} after it, released by {cause}, {held} held")
            },
        ),
    }
}

/// The picture of a timed cut.
pub fn draw(manifest: &Manifest) -> Option<String> {
    let (t, stretch): (Time<Server>, Nanos) = (manifest.t_ns?, manifest.v_ns?);
    let bar = |host: &HostResult| {
        Some(Bar {
            host: host.host.clone(),
            p_latest: host.p_latest_ns? - t,
            q_earliest: host.q_earliest_ns? - t,
        })
    };
    Some(picture::draw(&manifest.hosts.iter().map(bar).collect::<Option<Vec<_>>>()?, stretch))
}

fn or_dash(nanos: Option<Nanos>) -> String {
    nanos.map_or_else(dash, |nanos| nanos.to_string())
}

fn dash() -> String {
    "-".to_owned()
}
