//! The command line's grammar.

pub mod doctor;
pub mod groups;
pub mod volumes;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use snapshot::http::TlsFiles;
use snapshot::messages::{Member, RequestedMode};
use snapshot::nbd::Endpoint;
use snapshot::orders::WhenFull;
use snapshot::schedule::CronTime;
use timesync::time::Nanos;

use crate::config::LogFormat;
use crate::units;

/// Snapshots of volumes on many hosts as of one instant, without stopping their I/O, and with a proof.
#[derive(Debug, Parser)]
#[command(name = "coeval", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show everything on this machine: a server, three hosts whose clocks really differ, snapshots under load
    Demo(DemoArgs),
    /// Run the time-sync server and coordinator
    Server(ServerArgs),
    /// Run a host: answer time exchanges, serve volumes over NBD, cut them
    Host(HostArgs),
    /// Pause a volume for a host, and resume it whatever happens to the host's daemon, which starts this
    #[command(hide = true)]
    Watchdog(WatchdogArgs),
    /// Exchange timestamps with PTP responders, like ping
    Probe(ProbeArgs),
    /// Show how far the hosts' clocks are from the server's and from each other
    Skew(SkewArgs),
    /// Take snapshots and look after them
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Look after volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Give sets of volumes a name
    #[command(subcommand)]
    Group(groups::GroupCommand),
    /// Take snapshots again and again, and keep some of them
    #[command(subcommand)]
    Schedule(ScheduleCommand),
    /// Make the certificates that daemons and people show each other
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Look at this machine or the fleet, and say what to do about what is not as it should be
    Doctor(doctor::DoctorArgs),
    /// Print the script that completes commands in a shell
    Completions(doctor::CompletionsArgs),
    /// Write man pages
    #[command(hide = true)]
    Man(doctor::ManArgs),
}

/// `coeval schedule …`
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// Begin a schedule
    Create(Box<ScheduleArgs>),
    /// List schedules: when the next snapshot is due, and how the last one went
    List(Remote),
    /// End a schedule; its snapshots stay
    Delete(ScheduleNameArgs),
}

/// `coeval schedule create`
#[derive(Debug, Args)]
pub struct ScheduleArgs {
    /// Its name; its snapshots are called NAME-YYYYMMDDTHHMMZ
    pub name: String,
    /// When, in UTC: minute, hour, day of the month, month, day of the week, as in a crontab
    #[arg(long, value_name = "PATTERN")]
    pub cron: CronTime,
    /// What to take and how.
    #[command(flatten)]
    pub cut: CutArgs,
    /// Keep the newest so many. Without any --keep option, all are kept
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub keep_last: u32,
    /// Keep the newest of each of the last so many hours that have one
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub keep_hourly: u32,
    /// Keep the newest of each of the last so many days that have one
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub keep_daily: u32,
    /// Keep the newest of each of the last so many weeks that have one
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub keep_weekly: u32,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval schedule delete`
#[derive(Debug, Args)]
pub struct ScheduleNameArgs {
    /// The schedule's name
    pub schedule: String,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval pki …`
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make the fleet's certificate authority
    Init(PkiInitArgs),
    /// Issue a certificate to a server, a host or a person, and print its [tls] section
    Issue(PkiIssueArgs),
}

/// `coeval pki init`
#[derive(Debug, Args)]
pub struct PkiInitArgs {
    /// Where the authority keeps its key and what it issues
    #[arg(long, default_value = "pki", value_name = "DIRECTORY")]
    pub dir: PathBuf,
}

/// `coeval pki issue`
#[derive(Debug, Args)]
pub struct PkiIssueArgs {
    /// Where the authority is
    #[arg(long, default_value = "pki", value_name = "DIRECTORY")]
    pub dir: PathBuf,
    /// For whom.
    #[command(flatten)]
    pub who: PkiWho,
    /// An IP address or host name under which the server or host is connected to; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub address: Vec<String>,
    /// For how many days it is valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
}

/// Whom a certificate is for.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct PkiWho {
    /// The server: gives orders to hosts
    #[arg(long, value_name = "NAME")]
    pub server: Option<String>,
    /// A host: takes orders
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
    /// A person or program that takes and deletes snapshots
    #[arg(long, value_name = "NAME")]
    pub operator: Option<String>,
    /// A person or program that only reads
    #[arg(long, value_name = "NAME")]
    pub viewer: Option<String>,
}

/// How to reach the server.
#[derive(Clone, Debug, Args)]
pub struct Remote {
    /// The server's URL
    #[arg(long, env = "COEVAL_SERVER", default_value = "http://127.0.0.1:7420", value_name = "URL")]
    pub server: String,
    /// This client's certificate (PEM), for a server with TLS
    #[arg(long, env = "COEVAL_CERT", value_name = "FILE", requires = "key", requires = "ca")]
    pub cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, env = "COEVAL_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// The authority that signed the server's certificate (PEM)
    #[arg(long, env = "COEVAL_CA", value_name = "FILE", requires = "cert")]
    pub ca: Option<PathBuf>,
    /// Allow plain HTTP beyond loopback
    #[arg(long)]
    pub insecure: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl Remote {
    /// The certificates, if there are any.
    pub fn tls(&self) -> Option<TlsFiles> {
        let (cert, key, ca) = (self.cert.clone()?, self.key.clone()?, self.ca.clone()?);
        Some(TlsFiles { cert, key, ca })
    }
}

/// `coeval demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What both daemons know.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    pub check: bool,
    /// Allow plain HTTP beyond loopback
    #[arg(long)]
    pub insecure: bool,
    /// How to write the log
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// End when the parent process does
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

/// `coeval server`
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// What both daemons know.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// Where the API listens
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// The UDP port that time exchanges come from
    #[arg(long, value_name = "PORT")]
    pub time_port: Option<u16>,
    /// The directory of the catalogue
    #[arg(long, value_name = "DIRECTORY")]
    pub state: Option<PathBuf>,
    /// Make the lost catalogue again from the certificates that the hosts keep, and exit
    #[arg(long, conflicts_with = "check")]
    pub rebuild_catalogue: bool,
    /// Accept hosts with simulated clocks, and orders to take snapshots wrongly
    #[arg(long, hide = true)]
    pub simulation: bool,
}

/// `coeval host`
#[derive(Debug, Args)]
pub struct HostArgs {
    /// What both daemons know.
    #[command(flatten)]
    pub daemon: DaemonArgs,
    /// The host's name, as in the server's configuration
    #[arg(long)]
    pub name: Option<String>,
    /// Where the coordinator reaches this host
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where time exchanges are answered
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub time: Option<SocketAddr>,
    /// Where the NBD server listens (may be repeated)
    #[arg(long, value_name = "unix:///PATH|tls://ADDRESS:PORT|tcp://ADDRESS:PORT")]
    pub nbd: Vec<Endpoint>,
    /// The directory that holds the volumes
    #[arg(long, value_name = "DIRECTORY")]
    pub volumes: Option<PathBuf>,
    /// A directory that images may be imported from (may be repeated)
    #[arg(long, value_name = "DIRECTORY")]
    pub import_from: Vec<PathBuf>,
    /// No cut holds a reply back for longer
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub max_stretch: Option<Nanos>,
    /// Read a clock that is wrong in this way
    #[arg(long, hide = true, value_name = "SPEC")]
    pub simulate_clock: Option<String>,
}

/// `coeval watchdog`
#[derive(Debug, Args)]
pub struct WatchdogArgs {
    /// Read the daemon's clock, which is wrong in this way
    #[arg(long, value_name = "SPEC")]
    pub simulate_clock: Option<String>,
}

/// `coeval probe`
#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// What to probe: ADDRESS or ADDRESS:PORT
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Exchanges with each target; without it, until interrupted
    #[arg(short, long)]
    pub count: Option<u32>,
    /// Time between exchanges
    #[arg(short, long, default_value = "1s", value_parser = units::duration)]
    pub interval: Nanos,
    /// PTP domain
    #[arg(long, default_value_t = 0)]
    pub domain: u8,
    /// Ask as a NetSync monitor: for a stock ptp4l that measures end to end and has hybrid_e2e and net_sync_monitor set
    #[arg(long)]
    pub net_sync: bool,
    /// A key file (linuxptp's sa_file), for responders that want authenticated requests
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
    /// The UDP port to ask from: stock PTP daemons answer to 319 only; 0 is any, for those who may not use that
    #[arg(long, default_value_t = timesync::wire::EVENT_PORT)]
    pub port: u16,
    /// Use the kernel's timestamps, even where the network card has better ones
    #[arg(long)]
    pub software: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coeval skew`
#[derive(Debug, Args)]
#[command(after_help = "Ends with status 1 where a host has no bound.")]
pub struct SkewArgs {
    /// Only this host (may be repeated)
    #[arg(long = "host", value_name = "NAME")]
    pub hosts: Vec<String>,
    /// Show it live; q quits
    #[arg(long, conflicts_with_all = ["json", "plot", "history", "record", "replay"])]
    pub watch: bool,
    /// Draw offsets and bounds over time, and the round trips, as an SVG image
    #[arg(long, value_name = "FILE.svg", conflicts_with = "record")]
    pub plot: Option<PathBuf>,
    /// How far back, up to 7d; alone, prints what the bounds were in that time. For --plot 1h by default
    #[arg(long, value_name = "SPAN", value_parser = units::span, conflicts_with_all = ["record", "replay"])]
    pub history: Option<Nanos>,
    /// Record raw exchanges and bounds, for --replay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "replay"])]
    pub record: Option<PathBuf>,
    /// How long to record; Ctrl-C ends it earlier
    #[arg(long = "for", value_name = "SPAN", value_parser = units::span, default_value = "10s", requires = "record")]
    pub duration: Nanos,
    /// Compute a recording's bounds again and compare them, without any server
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval snapshot`
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot of a group of volumes
    Create(CreateArgs),
    /// List snapshots
    List(Remote),
    /// Show a snapshot and its certificate
    Show(NamedArgs),
    /// Compute a snapshot's verdict and digests again
    Verify(NamedArgs),
    /// Put the volumes of a snapshot back to it, on all its hosts
    Restore(RestoreArgs),
    /// Copy the volumes of a snapshot to files
    Export(ExportArgs),
    /// Delete a snapshot on all its hosts
    Delete(NamedArgs),
    /// Make new volumes with the content of a snapshot
    Clone(volumes::CloneArgs),
}

/// `coeval snapshot create`
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The snapshot's name; without it the server makes one up
    pub name: Option<String>,
    /// Do everything but the cut, and say what it would be like
    #[arg(long)]
    pub dry_run: bool,
    /// What to take and how.
    #[command(flatten)]
    pub cut: CutArgs,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// What to take and how: for one snapshot or for a schedule.
#[derive(Debug, Args)]
pub struct CutArgs {
    /// A volume of the group (may be repeated); without any, all volumes of all hosts
    #[arg(long = "volume", value_name = "HOST/VOLUME", value_parser = member)]
    pub group: Vec<Member>,
    /// A saved group (`coeval group`): what it means when the snapshot is taken
    #[arg(long = "group", value_name = "NAME", conflicts_with = "group")]
    pub group_name: Option<String>,
    /// By clocks, by messages, or by clocks first
    #[arg(long, value_enum, default_value_t = ModeArg::Auto)]
    pub mode: ModeArg,
    /// Size V by the statistical bound, at this confidence for the whole group (such as 0.999)
    #[arg(long, value_name = "CONFIDENCE", value_parser = confidence)]
    pub statistical: Option<f64>,
    /// How far ahead the cut is set
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    pub lead: Option<Nanos>,
    /// Attempts before giving up
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub attempts: Option<u32>,
    /// A hook of the server's configuration that is to run before and after (may be repeated)
    #[arg(long = "hook", value_name = "NAME")]
    pub hooks: Vec<String>,
}

/// How to take a snapshot.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    /// By clocks only
    Timed,
    /// By messages only
    Barrier,
    /// By clocks; by messages where that fails
    Auto,
}

impl From<ModeArg> for RequestedMode {
    fn from(mode: ModeArg) -> Self {
        match mode {
            ModeArg::Timed => RequestedMode::Timed,
            ModeArg::Barrier => RequestedMode::Barrier,
            ModeArg::Auto => RequestedMode::Auto,
        }
    }
}

/// A command about one snapshot.
#[derive(Debug, Args)]
pub struct NamedArgs {
    /// The snapshot's name or id
    pub snapshot: String,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval snapshot restore`
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The snapshot's name or id
    pub snapshot: String,
    /// Drop the present state of the volumes, which is otherwise kept as a snapshot of its own
    #[arg(long)]
    pub discard_current: bool,
    /// Disconnect the volumes' clients, which are otherwise a reason to refuse
    #[arg(long)]
    pub disconnect: bool,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval snapshot export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The snapshot's name or id
    pub snapshot: String,
    /// The file to make; without --volume a directory: it gets a file HOST/VOLUME.FORMAT for each volume
    pub file: PathBuf,
    /// Only this volume of the snapshot
    #[arg(long, value_name = "HOST/VOLUME", value_parser = member)]
    pub volume: Option<Member>,
    /// The kind of file
    #[arg(long, value_enum, default_value_t = ExportFormat::Qcow2)]
    pub format: ExportFormat,
    /// Only what may differ from this older snapshot, as a qcow2 image on top of its export
    #[arg(long, value_name = "SNAPSHOT", requires = "backing")]
    pub since: Option<String>,
    /// The export of the older snapshot, file or directory as this one; it is looked for in the same relative place
    #[arg(long, value_name = "FILE", requires = "since")]
    pub backing: Option<PathBuf>,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// The kind of file that an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// The plain content, a sparse file
    Raw,
    /// QEMU's format
    Qcow2,
}

impl ExportFormat {
    /// A file's extension.
    pub fn extension(self) -> &'static str {
        match self {
            ExportFormat::Raw => "raw",
            ExportFormat::Qcow2 => "qcow2",
        }
    }
}

/// `coeval volume`
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Create a volume on a host
    Create(CreateVolumeArgs),
    /// List volumes
    List(Remote),
    /// Set or remove a volume's labels, by which groups select it
    Label(groups::LabelArgs),
    /// Make a raw image on a host a volume, without copying it
    Import(volumes::ImportArgs),
    /// Give a volume another size
    Resize(volumes::ResizeArgs),
    /// Delete a volume
    Delete(volumes::DeleteVolumeArgs),
    /// Limit what the snapshots of a volume may hold
    Quota(QuotaArgs),
    /// Check the files of a volume that no host has open; fails if data is lost or in doubt
    Check(CheckArgs),
}

/// `coeval volume quota`
#[derive(Debug, Args)]
pub struct QuotaArgs {
    /// The volume
    #[arg(value_name = "HOST/VOLUME", value_parser = member)]
    pub volume: Member,
    /// What its snapshots may hold beside the live volume, such as 10GiB; or `none`
    #[arg(value_name = "SIZE|none", value_parser = size_or_none)]
    pub size: SizeOrNone,
    /// From this part of it on, warn
    #[arg(long, value_name = "PERCENT", value_parser = percent, default_value = "80%")]
    pub warn: u8,
    /// What becomes of the next snapshot when they hold as much
    #[arg(long, value_enum, default_value_t = WhenFullArg::Refuse)]
    pub when_full: WhenFullArg,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// A size, or no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeOrNone(pub Option<u64>);

/// What becomes of the next snapshot when the others hold as much as they may.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum WhenFullArg {
    /// It is refused
    Refuse,
    /// The oldest ones that a schedule took or that nobody named are deleted first
    DropOldestUnnamed,
}

impl From<WhenFullArg> for WhenFull {
    fn from(policy: WhenFullArg) -> Self {
        match policy {
            WhenFullArg::Refuse => WhenFull::Refuse,
            WhenFullArg::DropOldestUnnamed => WhenFull::DropOldestUnnamed,
        }
    }
}

fn size_or_none(text: &str) -> Result<SizeOrNone, String> {
    if text == "none" { Ok(SizeOrNone(None)) } else { units::size(text).map(|size| SizeOrNone(Some(size))) }
}

fn percent(text: &str) -> Result<u8, String> {
    match text.strip_suffix('%').unwrap_or(text).parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err(format!("`{text}` is not between 1% and 100%")),
    }
}

/// `coeval volume check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The volume's directory, such as /var/lib/coeval/volumes/data
    #[arg(value_name = "DIRECTORY/VOLUME")]
    pub volume: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `coeval volume create`
#[derive(Debug, Args)]
pub struct CreateVolumeArgs {
    /// Where, and its name
    #[arg(value_name = "HOST/VOLUME", value_parser = member)]
    pub volume: Member,
    /// Its size, such as 10GiB; a multiple of 4096 bytes
    #[arg(value_parser = units::size, required_unless_present = "from")]
    pub size: Option<u64>,
    /// What it holds.
    #[command(flatten)]
    pub source: volumes::SourceArgs,
    /// A label, by which groups select it (may be repeated)
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = groups::label)]
    pub labels: Vec<(String, String)>,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

pub(crate) fn member(text: &str) -> Result<Member, String> {
    match text.split_once('/') {
        Some((host, volume)) if !host.is_empty() && !volume.is_empty() => {
            Ok(Member { host: host.to_owned(), volume: volume.to_owned() })
        }
        _ => Err(format!("`{text}` is no volume; write HOST/VOLUME, such as `db1/data`")),
    }
}

fn confidence(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(confidence) if confidence > 0.0 && confidence < 1.0 => Ok(confidence),
        _ => Err(format!("`{text}` is not between 0 and 1; write a confidence such as 0.999")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn members_and_confidences() {
        let data = Member { host: "db1".to_owned(), volume: "data".to_owned() };
        assert_eq!(member("db1/data"), Ok(data));
        for text in ["db1", "/data", "db1/", ""] {
            assert!(member(text).is_err());
        }
        assert_eq!(confidence("0.999"), Ok(0.999));
        for text in ["1", "0", "99.9%", "nan"] {
            assert!(confidence(text).is_err());
        }
    }

    #[test]
    fn quotas() {
        assert_eq!(size_or_none("none"), Ok(SizeOrNone(None)));
        assert_eq!(size_or_none("1GiB"), Ok(SizeOrNone(Some(1 << 30))));
        assert!(size_or_none("nothing").is_err());
        assert_eq!((percent("80%"), percent("5")), (Ok(80), Ok(5)));
        assert!(percent("0%").is_err() && percent("101").is_err());
    }
}
