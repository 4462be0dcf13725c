//! `coeval volume`

use snapshot::messages::{CreateVolumeOn, HostVolumes};
use snapshot::orders::volumes::ImportOrder;
use snapshot::orders::{Quota, QuotaLevel, VolumeUsage};
use snapshot::volume::{CheckReport, Volume};

use super::{Failure, Finding, connect, print, print_json};
use crate::args::{CheckArgs, CreateVolumeArgs, QuotaArgs, Remote};
use crate::table::Table;
use crate::units;

/// Creates a volume on a host.
///
/// # Errors
/// When the server or the host refuses.
pub async fn create(args: &CreateVolumeArgs) -> Result<(), Failure> {
    let CreateVolumeArgs { volume, size, source, labels, remote } = args;
    let client = connect(remote)?;
    let created = if let Some(path) = &source.from {
        let order = ImportOrder { path: path.clone(), format: source.format.clone(), in_place: false };
        super::life::copy(&client, volume, &order).await?
    } else {
        // The grammar wants one of them.
        let size = size.ok_or("give a size, or --from an image")?;
        let order = CreateVolumeOn { host: volume.host.clone(), name: volume.volume.clone(), size };
        client.create_volume(&order).await?
    };
    if !labels.is_empty() {
        let change = labels.iter().cloned().map(|(key, value)| (key, Some(value))).collect();
        client.label_volume(volume, &change).await.map_err(|why| {
            format!(
                "the volume is there, but without its labels (set them with `coeval volume label`): {why}"
            )
        })?;
    }
    if remote.json {
        return print_json(&created);
    }
    print(&format!("created {}/{}, {}", volume.host, created.name, units::format_size(created.size)))
}

/// Checks a volume's files.
///
/// # Errors
/// When there is no such volume, or a host has it open.
pub fn check(args: &CheckArgs) -> Result<Finding, Failure> {
    let path = std::path::absolute(&args.volume)?;
    let (Some(root), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(format!("{} is no volume's directory", path.display()).into());
    };
    let report = Volume::check(root, name)?;
    if args.json {
        print_json(&report)?;
    } else {
        let CheckReport { layers, snapshots, read, findings } = &report;
        let read = units::format_size(*read);
        let mut text = format!("{name}: {layers} layers, {snapshots} snapshots, {read} of data read\n");
        for found in findings {
            let weight = if found.damage { "DAMAGE" } else { "note" };
            text += &format!("{weight}: {} at byte {}: {}\n", found.file, found.offset, found.what);
        }
        text += if report.is_damaged() { "the volume is damaged" } else { "the volume is sound" };
        print(&text)?;
    }
    Ok(if report.is_damaged() { Finding::Bad } else { Finding::Good })
}

/// Lists all hosts' volumes, and where to find them.
///
/// # Errors
/// When the server refuses.
pub async fn list(remote: &Remote) -> Result<(), Failure> {
    let server = connect(remote)?;
    let (hosts, usage) = (server.volumes().await?, server.usage().await?);
    let usage_of = |host: &str, volume: &str| usage.get(host)?.get(volume);
    if remote.json {
        return print_json(&with_usage(&hosts, usage_of)?);
    }
    let headings =
        ["volume", "size", "on disk", "layers", "snapshots", "they hold", "quota", "clients", "kept by"];
    let mut table = Table::new(&headings);
    let mut notes = String::new();
    for host in &hosts {
        for volume in &host.volumes {
            let usage = usage_of(&host.host, &volume.name);
            notes += &usage.map_or_else(String::new, |usage| remarks(&host.host, &volume.name, usage));
            table.row(vec![
                format!("{}/{}", host.host, volume.name),
                units::format_size(volume.size),
                units::format_size(volume.allocated),
                volume.layers.to_string(),
                volume.snapshots.len().to_string(),
                usage.map_or_else(dash, |usage| units::format_size(usage.held)),
                usage
                    .and_then(|usage| usage.quota)
                    .map_or_else(dash, |quota| units::format_size(quota.bytes)),
                volume.clients.to_string(),
                volume
                    .external
                    .as_ref()
                    .map_or_else(|| "coeval".to_owned(), |external| external.backend.clone()),
            ]);
        }
    }
    let mut text = format!("{table}\n{notes}");
    for host in &hosts {
        text += &match &host.problem {
            Some(problem) => format!("host {}: {problem}\n", host.host),
            None => format!("host {}: NBD at {}\n", host.host, host.nbd.join(", ")),
        };
        for (volume, done) in &host.importing {
            text += &format!("host {}: an image is being copied to volume {volume}: {done} %\n", host.host);
        }
        for (volume, labels) in &host.labels {
            text += &format!("{}/{volume}: {}\n", host.host, super::group::written(labels));
        }
        for (volume, why) in &host.unserved {
            text += &format!("host {}: volume {volume} is not served: {why}\n", host.host);
        }
    }
    print(&text)
}

/// Limits what a volume's snapshots may hold.
///
/// # Errors
/// When there is no such volume, or the host does not do it.
pub async fn quota(args: &QuotaArgs) -> Result<(), Failure> {
    let QuotaArgs { volume, size, warn, when_full, remote } = args;
    let quota = size.0.map(|bytes| Quota { bytes, warn_percent: *warn, when_full: (*when_full).into() });
    connect(remote)?.set_quota(volume, quota).await?;
    if remote.json {
        return print_json(&quota);
    }
    let limit = quota.map_or_else(|| "no limit".to_owned(), |quota| units::format_size(quota.bytes));
    print(&format!("snapshots of {volume} may hold: {limit}"))
}

/// What people should know about a volume beside the figures.
fn remarks(host: &str, volume: &str, usage: &VolumeUsage) -> String {
    let mut text = String::new();
    match usage.level {
        QuotaLevel::Good => {}
        QuotaLevel::Warning => {
            text += &format!("WARNING: {host}/{volume}: the snapshots' quota is nearly used up\n");
        }
        QuotaLevel::Full => {
            text += &format!("WARNING: {host}/{volume}: the snapshots' quota is used up\n");
        }
    }
    if let Some(percent) = usage.merging {
        text += &format!("{host}/{volume}: merging {percent} %\n");
    }
    text
}

/// The hosts' volumes in JSON, each with its `usage`, null where its host does not tell.
fn with_usage<'a>(
    hosts: &[HostVolumes],
    usage_of: impl Fn(&str, &str) -> Option<&'a VolumeUsage>,
) -> Result<serde_json::Value, serde_json::Error> {
    let mut value = serde_json::to_value(hosts)?;
    for host in value.as_array_mut().into_iter().flatten() {
        let name = host["host"].as_str().unwrap_or_default().to_owned();
        for volume in host["volumes"].as_array_mut().into_iter().flatten() {
            let usage = volume["name"].as_str().and_then(|volume| usage_of(&name, volume));
            volume["usage"] = serde_json::to_value(usage)?;
        }
    }
    Ok(value)
}

fn dash() -> String {
    "-".to_owned()
}
