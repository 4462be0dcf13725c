//! `coeval volume`

use snapshot::messages::CreateVolumeOn;

use super::{Failure, connect, print, print_json};
use crate::args::{CreateVolumeArgs, Remote};
use crate::table::Table;
use crate::units;

/// Creates a volume on a host.
///
/// # Errors
/// When the server or the host refuses.
pub async fn create(args: &CreateVolumeArgs) -> Result<(), Failure> {
    let CreateVolumeArgs { volume, size, remote } = args;
    let order = CreateVolumeOn { host: volume.host.clone(), name: volume.volume.clone(), size: *size };
    let created = connect(remote)?.create_volume(&order).await?;
    if remote.json {
        return print_json(&created);
    }
    print(&format!("created {}/{}, {}", volume.host, created.name, units::format_size(created.size)))
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
        for (volume, why) in &host.unserved {
            text += &format!("host {}: volume {volume} is not served: {why}\n", host.host);
        }
    }
    print(&text)
}
