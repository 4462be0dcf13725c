//! `coeval snapshot clone`, and `coeval volume` where it makes, resizes and deletes volumes.

use std::time::Duration;

use snapshot::client::ServerClient;
use snapshot::messages::Member;
use snapshot::messages::volumes::CloneRequest;
use snapshot::orders::VolumeDescription;
use snapshot::orders::volumes::{ImportOrder, ResizeOrder};

use super::{Failure, connect, print, print_json};
use crate::args::volumes::{CloneArgs, DeleteVolumeArgs, ImportArgs, ResizeArgs};
use crate::progress::ProgressLine;
use crate::units;

/// How often the server is asked how far an import is.
const LOOK: Duration = Duration::from_millis(500);

/// Makes new volumes with the content of a snapshot.
///
/// # Errors
/// When there is none of that name, a name is taken, or a host does not do it.
pub async fn clone(args: CloneArgs) -> Result<(), Failure> {
    let request = match (args.volume, args.name, args.suffix) {
        (Some(volume), Some(name), _) => CloneRequest::One { volume, name },
        (_, _, Some(suffix)) => CloneRequest::Group { suffix },
        // The grammar wants one of them.
        _ => return Err("say --suffix, or --volume and --as".into()),
    };
    let report = connect(&args.remote)?.clone_snapshot(&args.snapshot, &request).await?;
    if args.remote.json {
        return print_json(&report);
    }
    let line = |clone: &snapshot::messages::volumes::ClonedVolume| {
        format!(
            "{}/{} is a clone of {}@{}",
            clone.to.host, clone.to.volume, clone.from.volume, report.snapshot
        )
    };
    print(&report.volumes.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Deletes a volume.
///
/// # Errors
/// When there is no such volume, it is in use, or has snapshots.
pub async fn delete(args: &DeleteVolumeArgs) -> Result<(), Failure> {
    let DeleteVolumeArgs { volume, with_snapshots, remote } = args;
    connect(remote)?.delete_volume(volume, *with_snapshots).await?;
    let name = volume.to_string();
    if remote.json {
        return print_json(&serde_json::json!({ "deleted": name }));
    }
    print(&format!("deleted {name}"))
}

/// Gives a volume another size.
///
/// # Errors
/// When there is no such volume, it is busy, or would lose data.
pub async fn resize(args: &ResizeArgs) -> Result<(), Failure> {
    let ResizeArgs { volume, size, shrink, remote } = args;
    let order = ResizeOrder { size: *size, shrink: *shrink };
    let resized = connect(remote)?.resize_volume(volume, &order).await?;
    if remote.json {
        return print_json(&resized);
    }
    let again = if resized.clients > 0 { "; its clients see that when they connect again" } else { "" };
    let size = units::format_size(resized.size);
    print(&format!("{volume} has {size} now{again}"))
}

/// Makes a raw image a volume where it lies.
///
/// # Errors
/// When the host refuses.
pub async fn import(args: ImportArgs) -> Result<(), Failure> {
    let ImportArgs { volume, path, remote } = args;
    let order = ImportOrder { path, format: None, in_place: true };
    let imported = connect(&remote)?.import_volume(&volume, &order).await?;
    if remote.json {
        return print_json(&imported);
    }
    let size = units::format_size(imported.size);
    print(&format!("imported {}/{}, {size}", volume.host, imported.name))
}

/// Has a host copy an image, and shows how far it is.
///
/// # Errors
/// When the host refuses.
pub async fn copy(
    client: &ServerClient,
    volume: &Member,
    order: &ImportOrder,
) -> Result<VolumeDescription, Failure> {
    let line = ProgressLine::new();
    let mut import = std::pin::pin!(client.import_volume(volume, order));
    loop {
        tokio::select! {
            imported = &mut import => return Ok(imported?),
            () = tokio::time::sleep(LOOK) => {}
        }
        // Whether it can be told how far it is or not, it goes on.
        let hosts = client.volumes().await.unwrap_or_default();
        let host = hosts.iter().find(|host| host.host == volume.host);
        if let Some(done) = host.and_then(|host| host.importing.get(&volume.volume)) {
            line.show(&format!("copying {}: {done} %", order.path.display()));
        }
    }
}
