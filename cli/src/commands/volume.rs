//! `coeval volume`

use snapshot::messages::CreateVolumeOn;
use snapshot::orders::volumes::ImportOrder;
use snapshot::volume::{CheckReport, Volume};

use super::{Failure, Finding, connect, print, print_json};
use crate::args::{CheckArgs, CreateVolumeArgs, Remote};
use crate::table::Table;
use crate::units;

/// Creates a volume on a host.
///
/// # Errors
/// When the server or the host refuses.
pub async fn create(args: &CreateVolumeArgs) -> Result<(), Failure> {
    let CreateVolumeArgs { volume, size, source, remote } = args;
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
    let hosts = connect(remote)?.volumes().await?;
    if remote.json {
        return print_json(&hosts);
    }
    let mut table = Table::new(&["volume", "size", "on disk", "layers", "snapshots", "clients"]);
    for host in &hosts {
        for volume in &host.volumes {
            table.row(vec![
                format!("{}/{}", host.host, volume.name),
                units::format_size(volume.size),
                units::format_size(volume.allocated),
                volume.layers.to_string(),
                volume.snapshots.len().to_string(),
                volume.clients.to_string(),
            ]);
        }
    }
    let mut text = format!("{table}\n");
    for host in &hosts {
        text += &match &host.problem {
            Some(problem) => format!("host {}: {problem}\n", host.host),
            None => format!("host {}: NBD at {}\n", host.host, host.nbd.join(", ")),
        };
        for (volume, done) in &host.importing {
            text += &format!("host {}: an image is being copied to volume {volume}: {done} %\n", host.host);
        }
        for (volume, why) in &host.unserved {
            text += &format!("host {}: volume {volume} is not served: {why}\n", host.host);
        }
    }
    print(&text)
}
