//! `coeval schedule`

use chrono::{DateTime, Utc};
use snapshot::schedule::{Retention, Schedule, ScheduleState, ScheduleStatus};

use super::snapshot::request;
use super::{Failure, Finding, connect, print, print_json, word};
use crate::args::{Remote, ScheduleArgs, ScheduleNameArgs};
use crate::table::Table;

/// Begins a schedule.
///
/// # Errors
/// When the server refuses it.
pub async fn create(args: ScheduleArgs) -> Result<(), Failure> {
    let ScheduleArgs { name, cron, cut, keep_last, keep_hourly, keep_daily, keep_weekly, remote } = args;
    let keep = Retention { last: keep_last, hourly: keep_hourly, daily: keep_daily, weekly: keep_weekly };
    let schedule = Schedule { name, cron, request: request(cut), keep };
    let status = connect(&remote)?.add_schedule(&schedule).await?;
    if remote.json {
        return print_json(&status);
    }
    print(&format!("{}: the first snapshot is due {}", schedule.name, when(status.next)))
}

/// Lists schedules.
///
/// # Errors
/// When the server does not answer.
pub async fn list(remote: &Remote) -> Result<Finding, Failure> {
    let schedules = connect(remote)?.schedules().await?;
    // For whoever watches over it from a script.
    let finding = if schedules.iter().all(is_well) { Finding::Good } else { Finding::Bad };
    if remote.json {
        print_json(&schedules)?;
        return Ok(finding);
    }
    let mut table = Table::new(&["name", "when (UTC)", "keeps", "next", "missed", "state", "last"]);
    for status in &schedules {
        table.row(vec![
            status.schedule.name.clone(),
            String::from(status.schedule.cron.clone()),
            kept(status.schedule.keep),
            when(status.next),
            status.missed.to_string(),
            word(&status.state),
            match &status.last {
                None => "-".to_owned(),
                Some(last) if last.problem.is_some() => format!("FAILED {}", when(Some(last.due))),
                Some(last) => when(Some(last.due)),
            },
        ]);
    }
    let mut text = table.to_string();
    for status in schedules.iter().filter(|status| !is_well(status)) {
        for missing in &status.missing {
            text += &format!("\n{}: MISSING {missing}", status.schedule.name);
        }
        if let Some(problem) = status.last.as_ref().and_then(|last| last.problem.as_deref()) {
            text += &format!("\n{}: {problem}", status.schedule.name);
        }
    }
    print(&text)?;
    Ok(finding)
}

/// Ends a schedule.
///
/// # Errors
/// When there is none of that name.
pub async fn delete(args: &ScheduleNameArgs) -> Result<(), Failure> {
    connect(&args.remote)?.remove_schedule(&args.schedule).await?;
    if args.remote.json {
        return print_json(&serde_json::json!({ "deleted": args.schedule }));
    }
    print(&format!("ended {}; its snapshots stay", args.schedule))
}

fn is_well(status: &ScheduleStatus) -> bool {
    status.state == ScheduleState::Good
}

fn kept(keep: Retention) -> String {
    let rules =
        [(keep.last, "last"), (keep.hourly, "hourly"), (keep.daily, "daily"), (keep.weekly, "weekly")];
    let rules: Vec<String> =
        rules.iter().filter(|(count, _)| *count > 0).map(|(count, rule)| format!("{count} {rule}")).collect();
    if rules.is_empty() { "all".to_owned() } else { rules.join(", ") }
}

fn when(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "never".to_owned(), |at| at.format("%Y-%m-%d %H:%M").to_string())
}
