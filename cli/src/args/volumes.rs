//! The command line's grammar: volumes as wholes.

use std::path::PathBuf;

use clap::Args;
use snapshot::messages::Member;

use super::{Remote, member};
use crate::units;

/// `coeval snapshot clone`
#[derive(Debug, Args)]
#[command(
    after_help = "A clone lies on the host of the volume that it is made from, and shares what both hold alike."
)]
pub struct CloneArgs {
    /// The snapshot's name or id
    pub snapshot: String,
    /// Clone all its volumes; each clone is called as its volume with this after it, such as -test
    #[arg(long, allow_hyphen_values = true, required_unless_present = "volume", conflicts_with = "volume")]
    pub suffix: Option<String>,
    /// Clone only this volume
    #[arg(long, value_name = "HOST/VOLUME", value_parser = member, requires = "name")]
    pub volume: Option<Member>,
    /// The name of the one clone
    #[arg(long = "as", value_name = "NEW", requires = "volume")]
    pub name: Option<String>,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval volume delete`
#[derive(Debug, Args)]
pub struct DeleteVolumeArgs {
    /// Which
    #[arg(value_name = "HOST/VOLUME", value_parser = member)]
    pub volume: Member,
    /// Delete the snapshots that it is part of, too, on all their hosts; otherwise they are a reason to refuse
    #[arg(long)]
    pub with_snapshots: bool,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval volume resize`
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// Which
    #[arg(value_name = "HOST/VOLUME", value_parser = member)]
    pub volume: Member,
    /// Its new size, such as 20GiB; a multiple of 4096 bytes
    #[arg(value_parser = units::size)]
    pub size: u64,
    /// Allow a smaller size: what lies beyond it is gone, but for what snapshots hold
    #[arg(long)]
    pub shrink: bool,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval volume import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Where, and its name
    #[arg(value_name = "HOST/VOLUME", value_parser = member)]
    pub volume: Member,
    /// The raw image on that host; it moves into the volume, and nothing else may have it open
    pub path: PathBuf,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// What a new volume holds.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Copy this image on the host, in a directory that the host's `import_from` lists
    #[arg(long, value_name = "PATH", conflicts_with = "size")]
    pub from: Option<PathBuf>,
    /// What the image is: raw, qcow2, qed, vdi, vhdx, vmdk or vpc. Default: raw
    #[arg(long, requires = "from")]
    pub format: Option<String>,
}
