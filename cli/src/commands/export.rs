//! `coeval snapshot export`

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use snapshot::client::ServerClient;
use snapshot::export::{self, Exported, Format, Order};
use snapshot::http::TlsFiles;
use snapshot::messages::{ExportRequest, ExportSource, Member};
use snapshot::nbd::{Client, ClientError, Endpoint};
use timesync::identity::{BootId, Incarnation};

use super::{Failure, connect, print, print_json, until_interrupted};
use crate::args::{ExportArgs, ExportFormat};
use crate::progress::ProgressLine;
use crate::units::format_size;

/// One volume's file.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    member: Member,
    file: PathBuf,
    /// Bytes that were read; the others are zero or unchanged.
    read: u64,
    /// Whether the content was checked against the snapshot's digest.
    checked: bool,
}

/// One volume to export.
#[derive(Debug)]
struct Part {
    member: Member,
    file: PathBuf,
    backing: Option<PathBuf>,
}

/// Copies the volumes of a snapshot to files.
///
/// # Errors
/// When there is none of that name, its host's NBD server cannot be reached, or a file cannot be made. No file has its
/// name then that is not whole.
pub async fn run(args: &ExportArgs) -> Result<(), Failure> {
    if args.since.is_some() && args.format == ExportFormat::Raw {
        return Err("a raw image cannot be incremental; use --format qcow2".into());
    }
    let server = connect(&args.remote)?;
    let parts = parts(&server, args).await?;
    let mut reports = Vec::new();
    for part in parts {
        let Exported { read, checked } = until_interrupted(export(&server, args, &part)).await?;
        let Part { member, file, .. } = part;
        if !args.remote.json {
            let digest = if checked { ", digest checked" } else { "" };
            let read = format_size(read);
            print(&format!("{member}: {}, {read} read{digest}", file.display()))?;
        }
        reports.push(Report { member, file, read, checked });
    }
    if args.remote.json { print_json(&reports) } else { Ok(()) }
}

/// The volumes and their files. Makes the directories of a group's.
async fn parts(server: &ServerClient, args: &ExportArgs) -> Result<Vec<Part>, Failure> {
    if let Some(member) = &args.volume {
        let (file, backing) = (args.file.clone(), args.backing.clone());
        return Ok(vec![Part { member: member.clone(), file, backing }]);
    }
    let snapshot = server.show(&args.snapshot, false).await?.snapshot;
    let manifest = snapshot.manifest.ok_or_else(|| format!("snapshot {} is not complete", snapshot.name))?;
    let mut parts = Vec::new();
    for member in manifest.group {
        let place = |root: &Path, extension: &str| {
            root.join(&member.host).join(format!("{}.{extension}", member.volume))
        };
        let file = place(&args.file, args.format.extension());
        // What an incremental export builds on may be of either format.
        let backing = args.backing.as_ref().map(|root| {
            let either = ["qcow2", "raw"].map(|extension| place(root, extension));
            let [first, second] = either;
            if second.exists() && !first.exists() { second } else { first }
        });
        std::fs::create_dir_all(args.file.join(&member.host))
            .map_err(|error| format!("cannot create {}: {error}", args.file.join(&member.host).display()))?;
        parts.push(Part { member, file, backing });
    }
    Ok(parts)
}

async fn export(server: &ServerClient, args: &ExportArgs, part: &Part) -> Result<Exported, Failure> {
    let request = ExportRequest { volume: part.member.clone(), since: args.since.clone() };
    let source = server.export_source(&args.snapshot, &request).await?;
    // First: from here on the snapshot cannot be deleted.
    let mut client = open(&part.member.host, &source, args.remote.tls().as_ref())?;
    let extents = server.extents(&args.snapshot, &request).await?;
    let (file, backing) = (part.file.clone(), part.backing.clone());
    let format = match args.format {
        ExportFormat::Raw => Format::Raw,
        ExportFormat::Qcow2 => Format::Qcow2,
    };
    let name = format!("{}/{}", part.member.host, part.member.volume);
    // A thread of its own, so that an interrupt is heard; and none of the runtime's, which would wait for its end. What
    // it leaves then is written over by the next export.
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("export".to_owned()).spawn(move || {
        let (line, size) = (ProgressLine::new(), client.size());
        let digest = source.digest.as_deref();
        let order = Order { extents: &extents, digest, file: &file, format, backing: backing.as_deref() };
        let result = export::export(&mut client, &order, |done| {
            line.show(&format!("{name}: {} of {}", format_size(done), format_size(size)));
        });
        drop(line);
        // Nobody listens any more only where the program ends.
        let _ = sender.send(result);
    })?;
    Ok(receiver.await??)
}

/// A read that takes longer has nobody who answers it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens the snapshot at the first of the host's endpoints that answers.
fn open(host: &str, source: &ExportSource, tls: Option<&TlsFiles>) -> Result<Client, Failure> {
    let here = Incarnation::of_this_process()?.boot;
    let mut why = Vec::new();
    for uri in &source.nbd {
        let Some(endpoint) = endpoint(uri).filter(|endpoint| is_reachable(endpoint, here, source.boot))
        else {
            why.push(format!("{uri} can be reached on that host only"));
            continue;
        };
        match Client::connect_with(&endpoint, &source.export, tls) {
            Ok(mut client) => {
                client.set_timeout(Some(PATIENCE))?;
                return Ok(client);
            }
            Err(error @ (ClientError::Io(_) | ClientError::NoCertificate)) => {
                why.push(format!("{uri}: {error}"));
            }
            Err(other) => return Err(other.into()),
        }
    }
    let why = if why.is_empty() { "it has no endpoint".to_owned() } else { why.join("; ") };
    Err(format!(
        "the NBD server of host {host} cannot be reached from here ({why}): run the export on that host, or let its \
         `nbd` listen where this machine reaches it"
    )
    .into())
}

/// A socket file or a loopback address of this machine may belong to another host's daemon, with volumes of the same
/// name.
fn is_reachable(endpoint: &Endpoint, here: BootId, host: BootId) -> bool {
    let is_local = match endpoint {
        Endpoint::Unix(_) => true,
        Endpoint::Tcp(address) | Endpoint::Tls(address) => {
            address.ip().is_loopback() || address.ip().is_unspecified()
        }
    };
    !is_local || here == host
}

/// An endpoint from its NBD URI without an export's name, as hosts describe theirs.
fn endpoint(uri: &str) -> Option<Endpoint> {
    if let Some(address) = uri.strip_prefix("nbds://") {
        return address.parse().ok().map(Endpoint::Tls);
    }
    match uri.strip_prefix("nbd://") {
        Some(address) => address.parse().ok().map(Endpoint::Tcp),
        None => Some(Endpoint::Unix(uri.strip_prefix("nbd+unix:///?socket=")?.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_to_another_machine_is_not_taken_for_this_ones() {
        let boot = |id: u8| -> BootId {
            serde_json::from_str(&format!("\"00000000-0000-0000-0000-00000000000{id}\"")).unwrap()
        };
        let (here, there) = (boot(1), boot(2));
        for (uri, reachable_from_there) in [
            ("nbd://10.0.0.1:10809", true),
            ("nbds://10.0.0.1:10809", true),
            ("nbds://127.0.0.1:10809", false),
            ("nbd://127.0.0.1:10809", false),
            ("nbd+unix:///?socket=/run/n", false),
        ] {
            let endpoint = endpoint(uri).unwrap();
            assert!(is_reachable(&endpoint, here, here));
            assert_eq!(is_reachable(&endpoint, here, there), reachable_from_there, "{uri}");
        }
        assert_eq!(endpoint("nbds://no-address"), None);
    }
}
