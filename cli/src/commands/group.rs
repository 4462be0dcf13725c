//! `coeval group` and `coeval volume label`

use snapshot::groups::{Group, GroupStatus, LabelChange, Labels, Which};

use super::{Failure, Finding, connect, print, print_json};
use crate::args::Remote;
use crate::args::groups::{CreateGroupArgs, GroupArgs, LabelArgs};
use crate::table::Table;

/// Saves a group, and shows what it means now.
///
/// # Errors
/// When the server refuses it.
pub async fn create(args: CreateGroupArgs) -> Result<(), Failure> {
    let CreateGroupArgs { name, selector, list, remote } = args;
    let volumes = selector.map_or(Which::List(list), Which::Selector);
    let status = connect(&remote)?.add_group(&Group { name, volumes }).await?;
    if remote.json { print_json(&status) } else { print(&describe(&status)) }
}

/// Lists groups.
///
/// # Errors
/// When the server does not answer.
pub async fn list(remote: &Remote) -> Result<(), Failure> {
    let groups = connect(remote)?.groups().await?;
    if remote.json {
        return print_json(&groups);
    }
    let mut table = Table::new(&["group", "volumes"]);
    for group in &groups {
        table.row(vec![group.name.clone(), which(&group.volumes)]);
    }
    print(&table.to_string())
}

/// Shows what a group means now; something missing is a bad finding.
///
/// # Errors
/// When there is no such group.
pub async fn show(args: &GroupArgs) -> Result<Finding, Failure> {
    let status = connect(&args.remote)?.group(&args.group).await?;
    if args.remote.json {
        print_json(&status)?;
    } else {
        print(&describe(&status))?;
    }
    Ok(if status.missing.is_empty() { Finding::Good } else { Finding::Bad })
}

/// Forgets a group.
///
/// # Errors
/// When there is none of that name, or a schedule needs it.
pub async fn delete(args: &GroupArgs) -> Result<(), Failure> {
    connect(&args.remote)?.remove_group(&args.group).await?;
    if args.remote.json {
        return print_json(&serde_json::json!({ "deleted": args.group }));
    }
    print(&format!("forgot group {}; its snapshots stay", args.group))
}

/// Changes a volume's labels.
///
/// # Errors
/// When there is no such volume, or a label that can be none.
pub async fn label(args: LabelArgs) -> Result<(), Failure> {
    let LabelArgs { volume, labels, remote } = args;
    let change: LabelChange = labels.into_iter().collect();
    let labels = connect(&remote)?.label_volume(&volume, &change).await?;
    if remote.json {
        return print_json(&labels);
    }
    print(&format!("{volume}: {}", written(&labels)))
}

/// Labels for people.
pub fn written(labels: &Labels) -> String {
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "no labels".to_owned() } else { labels.join(",") }
}

fn which(volumes: &Which) -> String {
    match volumes {
        Which::Selector(selector) => format!("those with {selector}"),
        Which::List(list) => {
            list.iter().map(|it| format!("{}/{}", it.host, it.volume)).collect::<Vec<_>>().join(" ")
        }
    }
}

fn describe(status: &GroupStatus) -> String {
    let GroupStatus { group, members, missing } = status;
    let mut text = format!("{}: {}\n", group.name, which(&group.volumes));
    for member in members {
        text += &format!("  {member}\n");
    }
    if members.is_empty() {
        text += "  no volume now\n";
    }
    for missing in missing {
        text += &format!("MISSING {missing}\n");
    }
    if !missing.is_empty() {
        text += "no snapshot of it is taken until nothing is missing\n";
    }
    text
}
