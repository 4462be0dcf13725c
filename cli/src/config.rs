//! The daemons' configuration files (TOML).

mod backends;
pub mod hooks;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use snapshot::follow_ups::FollowUp;
use snapshot::groups::is_label;
use snapshot::http::TlsFiles;
use snapshot::nbd::Endpoint;
use timesync::bound::{Assumptions, AsymmetryBudget};
use timesync::hardware::Timestamps;
use timesync::net_sync::Mechanism;
use timesync::server;
use timesync::time::Nanos;
use timesync::wire::EVENT_PORT;

pub use backends::{BackendConfig, CommandConfig};
use hooks::{GroupHookConfig, HooksConfig};

use crate::units::{deserialize_duration, deserialize_size, deserialize_some_duration, deserialize_span};

/// Where `coeval server` listens, and where its clients look for it, unless told otherwise.
const SERVER_PORT: u16 = 7420;
/// Where `coeval host` listens for the coordinator, unless told otherwise.
const HOST_PORT: u16 = 7421;
/// NBD's own port.
const NBD_PORT: u16 = 10809;

/// `coeval server`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Where the API listens. Default 127.0.0.1:7420.
    pub listen: SocketAddr,
    /// The directory of the catalogue. Default /var/lib/coeval/server.
    pub state: PathBuf,
    /// Plain HTTP beyond loopback: anybody on the network can then read and order everything. Default false.
    pub insecure: bool,
    /// How the log is written: `text` or `json`. Default text.
    pub log_format: LogFormat,
    /// How time is exchanged with all hosts.
    pub time: TimeConfig,
    /// How cuts are planned.
    pub cut: CutConfig,
    /// HTTPS, for the API and towards the hosts.
    pub tls: Option<TlsFiles>,
    /// The hosts.
    #[serde(rename = "host")]
    pub hosts: Vec<HostEntry>,
    /// Commands that are run after each finished snapshot.
    #[serde(rename = "follow_up")]
    pub follow_ups: Vec<FollowUpEntry>,
    /// What runs on the server before and after snapshots.
    #[serde(rename = "hook")]
    pub hooks: Vec<GroupHookConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            listen: loopback(SERVER_PORT),
            state: PathBuf::from("/var/lib/coeval/server"),
            insecure: false,
            log_format: LogFormat::default(),
            time: TimeConfig::default(),
            cut: CutConfig::default(),
            tls: None,
            hosts: Vec::new(),
            follow_ups: Vec::new(),
            hooks: Vec::new(),
        }
    }
}

/// `[time]`: how time is exchanged with all hosts.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimeConfig {
    /// The UDP port that event messages come from. Default 319; stock PTP responders answer to no other. At any other
    /// port, one socket serves event and general messages. 0: the system chooses.
    pub port: u16,
    /// Which timestamps are used: "auto", the network card's where it has any, else the kernel's; or "software", the
    /// kernel's only, and no card is touched. Cards' only at port 319. Default "auto".
    pub timestamps: Timestamps,
    /// PTP domain, 0 ..= 255. Default 0.
    pub domain: u8,
    /// Pairs of exchanges a second with each host, 1 ..= 1000. Default 8.
    pub pairs_per_second: u32,
    /// Exchanges that a bound is computed from, 8 ..= 65536. Default 512.
    pub window: usize,
    /// Exchanges in a burst, before planning and after a cut, 1 ..= 256. Default 32.
    pub burst: u32,
}

impl Default for TimeConfig {
    fn default() -> Self {
        TimeConfig {
            port: EVENT_PORT,
            timestamps: Timestamps::Auto,
            domain: 0,
            pairs_per_second: 8,
            window: 512,
            burst: 32,
        }
    }
}

/// `[cut]`: how cuts are planned.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CutConfig {
    /// How far ahead T is set. Default 50ms.
    #[serde(deserialize_with = "deserialize_duration")]
    pub lead: Nanos,
    /// Timed attempts before giving up, or before a barrier in `auto` mode; 1 ..= 20. Default 3.
    pub attempts: u32,
}

impl Default for CutConfig {
    fn default() -> Self {
        CutConfig { lead: Nanos::from_millis(50), attempts: 3 }
    }
}

/// `[[host]]`: one host, as the server sees it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostEntry {
    /// Its name, in all reports and orders.
    pub name: String,
    /// Where it answers time exchanges: `ADDRESS:PORT`.
    pub time: SocketAddr,
    /// The URL of its `coeval host`. A host without one only appears in skew reports.
    pub control: Option<String>,
    /// Labels that all its volumes have, by which saved groups select them. Default: none.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// A plain PTP responder, without `coeval host`. Default false.
    #[serde(default)]
    pub agentless: bool,
    /// How it is asked: `peer-delay`, or `net-sync` for a stock ptp4l that measures end to end and has hybrid_e2e and
    /// net_sync_monitor set. Default `peer-delay`.
    #[serde(default)]
    pub mechanism: Mechanism,
    /// A file with the key that time exchanges are authenticated with, as linuxptp's `sa_file`: for stock PTP daemons, and
    /// where there is no [tls]. Default: a key for this run, handed out over the control plane, where that is HTTPS; none
    /// elsewhere.
    #[serde(default)]
    pub time_key: Option<PathBuf>,
    /// A known minimum of the delay from server to host; a named assumption of the hard bound. Default 0.
    #[serde(default, deserialize_with = "deserialize_duration")]
    pub min_forward: Nanos,
    /// A known minimum of the delay from host to server; a named assumption of the hard bound. Default 0.
    #[serde(default, deserialize_with = "deserialize_duration")]
    pub min_backward: Nanos,
    /// Believe the packets' correctionFields: the path's transparent clocks are one-step ones and tell the truth; a named
    /// assumption of the hard bound. No key protects these fields. Default false.
    #[serde(default)]
    pub trust_correction: bool,
    /// The largest difference between the two directions' usual delays. Default: the smallest round trip.
    #[serde(default, deserialize_with = "deserialize_some_duration")]
    pub asymmetry: Option<Nanos>,
    /// The largest rate of its clock relative to the server's, in ppm, 1 ..= 10000. Default 200.
    #[serde(default = "default_rate_ppm")]
    pub rate_ppm: u32,
}

/// `[[follow_up]]`: a command that is run after each finished snapshot, by this server and as its user. It learns of the snapshot
/// by COEVAL_SNAPSHOT, COEVAL_SNAPSHOT_ID, COEVAL_VOLUMES, COEVAL_GROUP and COEVAL_SCHEDULE in its environment; the snapshot
/// is not deleted while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FollowUpEntry {
    /// The program, by its absolute path, and its arguments.
    pub command: Vec<String>,
    /// Only after snapshots of this saved group. Default: after all.
    #[serde(default)]
    pub group: Option<String>,
    /// It is ended, with all that it started, after this time. 1s ..= 7d. Default 1h.
    #[serde(default = "default_deadline", deserialize_with = "deserialize_span")]
    pub deadline: Nanos,
}

fn default_deadline() -> Nanos {
    Nanos::from_millis(3_600_000)
}

fn default_rate_ppm() -> u32 {
    200
}

/// `coeval host`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostConfig {
    /// Its name. Default: the machine's host name.
    pub name: String,
    /// Where the coordinator reaches it. Default 127.0.0.1:7421.
    pub listen: SocketAddr,
    /// Where it answers time exchanges. Default 0.0.0.0:319.
    pub time: SocketAddr,
    /// Which timestamps are used: "auto", the network card's where it has any, else the kernel's; or "software", the
    /// kernel's only, and no card is touched. Cards' only at port 319. Default "auto".
    pub timestamps: Timestamps,
    /// PTP domain, 0 ..= 255. Default 0.
    pub domain: u8,
    /// A file with the key that time exchanges must be authenticated with, as linuxptp's `sa_file`. Default: none but those
    /// that servers hand out over the control plane, where that is HTTPS. With any key, others are not answered.
    pub time_key: Option<PathBuf>,
    /// Where its NBD server listens: `unix:///PATH`, `tls://ADDRESS:PORT`, where clients must begin TLS and present a
    /// certificate of [tls]'s CA, or `tcp://ADDRESS:PORT`, which is refused beyond loopback unless `insecure` is set.
    /// Default `tcp://127.0.0.1:10809`.
    #[serde(deserialize_with = "endpoints")]
    pub nbd: Vec<Endpoint>,
    /// The directory that holds a directory for each volume. Default /var/lib/coeval/volumes.
    pub volumes: PathBuf,
    /// The directories on this host, with those below them, that images may be imported from. Whoever may write there
    /// can have their images served. Default: none.
    pub import_from: Vec<PathBuf>,
    /// No cut holds a reply back for longer, whatever the server orders; 1us ..= 10s. Default 100ms.
    #[serde(deserialize_with = "deserialize_duration")]
    pub max_stretch: Nanos,
    /// Background work on a volume (merging layers, digests) reads no more than this in a second, for each volume; at least
    /// 1MiB. Default 256MiB.
    #[serde(deserialize_with = "deserialize_size")]
    pub merge_rate: u64,
    /// Volumes outside Coeval, which are paused for a snapshot. Default: none.
    #[serde(rename = "backend")]
    pub backends: Vec<BackendConfig>,
    /// How other programs on this host learn of its bound. Default: not at all.
    pub publish: PublishConfig,
    /// What runs on this host before and after snapshots that its volumes are in. Default: nothing.
    pub hooks: HooksConfig,
    /// Plain HTTP (where there is no [tls]) and plain NBD beyond loopback: anybody on the network can then give orders,
    /// and read and write the volumes. Default false.
    pub insecure: bool,
    /// How the log is written: `text` or `json`. Default text.
    pub log_format: LogFormat,
    /// HTTPS towards the server, and NBD by `tls://`.
    pub tls: Option<TlsFiles>,
}

/// How a daemon writes its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A line of JSON for programs.
    Json,
}

/// `[publish]`: how other programs on a host learn how far its `CLOCK_REALTIME` is from the server's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PublishConfig {
    /// A shared-memory segment for ClockBound's client libraries, which look for it at /var/run/clockbound/shm0.
    pub clockbound: Option<PathBuf>,
    /// The socket of chronyd's `refclock SOCK`, by which chronyd steers this host's clock to the server's.
    pub chrony_sock: Option<PathBuf>,
    /// Neither this host's CLOCK_REALTIME nor the server's is steered away from its present rate by more; a named
    /// assumption of what is published. 1 ..= 10000, in ppm. Default 10.
    pub max_drift_ppm: u32,
}

impl Default for PublishConfig {
    fn default() -> Self {
        PublishConfig { clockbound: None, chrony_sock: None, max_drift_ppm: 10 }
    }
}

impl Default for HostConfig {
    fn default() -> Self {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
        HostConfig {
            name: name.unwrap_or_else(|_| "localhost".to_owned()),
            listen: loopback(HOST_PORT),
            time: SocketAddr::from((Ipv4Addr::UNSPECIFIED, EVENT_PORT)),
            timestamps: Timestamps::Auto,
            domain: 0,
            time_key: None,
            nbd: vec![Endpoint::Tcp(loopback(NBD_PORT))],
            volumes: PathBuf::from("/var/lib/coeval/volumes"),
            import_from: Vec::new(),
            max_stretch: Nanos::from_millis(100),
            merge_rate: 256 << 20,
            backends: Vec::new(),
            publish: PublishConfig::default(),
            hooks: HooksConfig::default(),
            insecure: false,
            log_format: LogFormat::default(),
            tls: None,
        }
    }
}

fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Endpoint>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect()
}

/// Why a configuration is refused. Each is one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// A key that does not exist, or a value that does not fit.
    #[error("{}:{line}: {what}", .path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// Values that do not go together.
    #[error("{0}")]
    Invalid(String),
}

/// Reads a configuration file.
///
/// # Errors
/// [`ConfigError`], with the line and the nearest valid key.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
    parse(&text, path)
}

/// Reads a configuration from `text`; `path` is what errors call it.
///
/// # Errors
/// [`ConfigError::Line`].
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        ConfigError::Line { path: path.to_owned(), line, what: explain(error.message()) }
    })
}

/// Says what an unknown key was probably meant to be; other messages pass unchanged.
fn explain(message: &str) -> String {
    // serde: unknown field `lisen`, expected one of `listen`, `state`
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = message.starts_with("unknown field").then(|| quoted.next()).flatten();
    let Some(unknown) = unknown else { return message.replace('\n', " ") };
    match quoted.min_by_key(|valid| edit_distance(unknown, valid)) {
        Some(nearest) => format!("there is no key `{unknown}` here; did you mean `{nearest}`?"),
        None => format!("there is no key `{unknown}` here"),
    }
}

/// Levenshtein's distance: insertions, deletions and replacements that lead from `a` to `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

impl ServerConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first thing that is wrong, in one sentence.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_tls("server", self.listen, self.insecure, self.tls.as_ref())?;
        in_range("time.burst", self.time.burst, 1, 256)?;
        in_range("cut.attempts", self.cut.attempts, 1, 20)?;
        in_range("cut.lead (in ns)", self.cut.lead.get(), 1_000_000, 10_000_000_000)?;
        let time = self.time_server(false).check();
        time.map_err(|error| ConfigError::Invalid(error.to_string()))?;
        for follow_up in &self.follow_ups {
            if !follow_up.command.first().is_some_and(|program| Path::new(program).is_absolute()) {
                let what = "follow_up.command: give the program's absolute path first, then its arguments";
                return Err(ConfigError::Invalid(what.to_owned()));
            }
        }
        hooks::check_all(&self.hooks)?;
        for host in &self.hosts {
            let mut words = host.labels.iter().flat_map(|(key, value)| [key, value]);
            if let Some(wrong) = words.find(|word| !is_label(word)) {
                let what = format!(
                    "host {}: `{wrong}` cannot be part of a label; use letters, digits, `-`, `_` and `.`",
                    host.name
                );
                return Err(ConfigError::Invalid(what));
            }
            in_range("host.rate_ppm", host.rate_ppm, 1, 10_000)?;
            match &host.control {
                None if !host.agentless => {
                    let what = format!(
                        "host {} has no `control`; give the URL of its `coeval host`, or set agentless = true",
                        host.name
                    );
                    return Err(ConfigError::Invalid(what));
                }
                _ if !host.agentless && host.mechanism == Mechanism::NetSync => {
                    let what = format!(
                        "host {}: mechanism net-sync is for stock daemons; `coeval host` speaks peer-delay",
                        host.name
                    );
                    return Err(ConfigError::Invalid(what));
                }
                Some(url) if !(url.starts_with("https://") || url.starts_with("http://")) => {
                    let what =
                        format!("host {}: control = \"{url}\" is no http:// or https:// URL", host.name);
                    return Err(ConfigError::Invalid(what));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl ServerConfig {
    /// The commands after finished snapshots.
    pub fn follow_ups(&self) -> Vec<FollowUp> {
        let follow_up = |FollowUpEntry { command, group, deadline }: FollowUpEntry| FollowUp {
            command,
            group,
            deadline: deadline.to_std(),
        };
        self.follow_ups.iter().cloned().map(follow_up).collect()
    }

    /// What the time-sync server is told.
    pub fn time_server(&self, simulation: bool) -> server::ServerConfig {
        let host = |host: &HostEntry| server::HostConfig {
            name: host.name.clone(),
            address: host.time,
            assumptions: Assumptions {
                rate_ppb: host.rate_ppm.saturating_mul(1_000),
                min_forward: host.min_forward,
                min_backward: host.min_backward,
                trust_correction: host.trust_correction,
                ..Assumptions::default()
            },
            asymmetry: host.asymmetry.map_or(AsymmetryBudget::SmallestRoundTrip, AsymmetryBudget::Configured),
            mechanism: host.mechanism,
            // See `keys::assign`.
            key: None,
        };
        server::ServerConfig {
            hosts: self.hosts.iter().map(host).collect(),
            event_port: self.time.port,
            timestamps: self.time.timestamps,
            domain: self.time.domain,
            pairs_per_second: self.time.pairs_per_second,
            window: self.time.window,
            burst: self.time.burst,
            allow_simulated: simulation,
            ..server::ServerConfig::default()
        }
    }
}

impl HostConfig {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first thing that is wrong, in one sentence.
    pub fn check(&self) -> Result<(), ConfigError> {
        check_tls("host", self.listen, self.insecure, self.tls.as_ref())?;
        in_range("merge_rate (in bytes)", self.merge_rate, 1 << 20, 1 << 40)?;
        for endpoint in &self.nbd {
            let what = match endpoint {
                Endpoint::Tcp(address) if !self.insecure && !address.ip().is_loopback() => format!(
                    "nbd = \"{endpoint}\" is plain NBD beyond loopback; write tls://{address}, or set insecure = true"
                ),
                Endpoint::Tls(_) if self.tls.is_none() => {
                    format!("nbd = \"{endpoint}\" needs [tls]; give cert, key and ca there")
                }
                _ => continue,
            };
            return Err(ConfigError::Invalid(what));
        }
        in_range("max_stretch (in ns)", self.max_stretch.get(), 1_000, 10_000_000_000)?;
        if let Some(relative) = self.import_from.iter().find(|directory| !directory.is_absolute()) {
            let what = format!("import_from: {} is no absolute path", relative.display());
            return Err(ConfigError::Invalid(what));
        }
        in_range("publish.max_drift_ppm", self.publish.max_drift_ppm, 1, 10_000)?;
        self.externals()?;
        self.hooks.check()?;
        Ok(())
    }
}

fn check_tls(
    who: &str,
    listen: SocketAddr,
    insecure: bool,
    tls: Option<&TlsFiles>,
) -> Result<(), ConfigError> {
    if tls.is_some() || insecure || listen.ip().is_loopback() {
        return Ok(());
    }
    Err(ConfigError::Invalid(format!(
        "the {who} listens on {listen}, beyond loopback, and has no [tls]; \
         give cert, key and ca there, or set insecure = true"
    )))
}

fn in_range<T: PartialOrd + std::fmt::Display>(
    key: &str,
    value: T,
    min: T,
    max: T,
) -> Result<(), ConfigError> {
    if value < min || value > max {
        return Err(ConfigError::Invalid(format!("{key} = {value} is not between {min} and {max}")));
    }
    Ok(())
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> Result<ServerConfig, String> {
        let config: ServerConfig = parse(text, Path::new("s.toml")).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        assert_eq!(server("").unwrap(), ServerConfig::default());
    }

    #[test]
    fn a_whole_server_file() {
        let config = server(
            r#"
            listen = "0.0.0.0:7420"
            state = "/tmp/s"
            [time]
            port = 319
            timestamps = "software"
            pairs_per_second = 4
            [cut]
            lead = "20ms"
            [tls]
            cert = "c.pem"
            key = "k.pem"
            ca = "ca.pem"
            [[host]]
            name = "a"
            time = "10.0.0.1:319"
            control = "https://10.0.0.1:7421"
            min_forward = "1.5us"
            asymmetry = "300ns"
            [[host]]
            name = "clock"
            time = "10.0.0.9:319"
            agentless = true
            "#,
        )
        .unwrap();
        assert_eq!(config.cut.lead, Nanos::from_millis(20));
        assert_eq!(config.time_server(false).timestamps, Timestamps::Software);
        assert_eq!(config.hosts[0].min_forward, Nanos::new(1_500));
        assert_eq!(config.hosts[0].asymmetry, Some(Nanos::new(300)));
        assert_eq!(config.hosts[1].asymmetry, None);
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line_and_the_nearest_valid_key() {
        for (text, sentence) in [
            ("lisen = \"127.0.0.1:1\"", "s.toml:1: there is no key `lisen` here; did you mean `listen`?"),
            (
                "\n[time]\npairs_a_second = 3",
                "s.toml:3: there is no key `pairs_a_second` here; did you mean `pairs_per_second`?",
            ),
            ("[[hosts]]\nname = \"a\"", "s.toml:1: there is no key `hosts` here; did you mean `host`?"),
        ] {
            assert_eq!(server(text).unwrap_err(), sentence);
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_its_line() {
        for (text, line) in [
            ("[cut]\nlead = \"50\"", "s.toml:2: `50` is not a duration"),
            ("\n\nlisten = 5", "s.toml:3: "),
            ("[cut", "s.toml:1: "),
        ] {
            let error = server(text).unwrap_err();
            assert!(error.starts_with(line) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn plain_http_beyond_loopback_must_be_asked_for() {
        assert!(server("listen = \"0.0.0.0:1\"").unwrap_err().contains("insecure = true"));
        assert!(server("listen = \"0.0.0.0:1\"\ninsecure = true").is_ok());
        assert!(server("listen = \"[::1]:1\"").is_ok());
    }

    #[test]
    fn hosts_need_distinct_names_and_a_way_to_be_reached() {
        let entry = "[[host]]\nname = \"a\"\ntime = \"1.1.1.1:319\"\nagentless = true\n";
        assert!(server(entry).is_ok());
        assert!(server(&format!("{entry}{entry}")).is_err());
        assert!(server("[[host]]\nname = \"a\"\ntime = \"1.1.1.1:319\"").unwrap_err().contains("control"));
    }

    #[test]
    fn host_files() {
        let config: HostConfig = parse("max_stretch = \"20ms\"", Path::new("h")).unwrap();
        assert_eq!(config.timestamps, Timestamps::Auto);
        assert_eq!(config.max_stretch, Nanos::from_millis(20));
        assert!(config.check().is_ok());
        assert_eq!(config.publish, PublishConfig::default());
        let config: HostConfig = parse("[publish]\nclockbound = \"/run/x\"", Path::new("h")).unwrap();
        assert_eq!((config.publish.clockbound, config.publish.max_drift_ppm), (Some("/run/x".into()), 10));
        let config: HostConfig = parse("[publish]\nmax_drift_ppm = 0", Path::new("h")).unwrap();
        assert!(config.check().unwrap_err().to_string().contains("publish.max_drift_ppm"));
        let check = |text: &str| parse::<HostConfig>(text, Path::new("h")).unwrap().check();
        let plain = "nbd = [\"tcp://10.0.0.1:1\"]";
        assert!(check(plain).unwrap_err().to_string().contains("write tls://10.0.0.1:1"));
        assert!(check(&format!("insecure = true\n{plain}")).is_ok());
        let secured = "nbd = [\"tls://10.0.0.1:1\"]";
        assert!(check(secured).unwrap_err().to_string().contains("needs [tls]"));
        let files = "tls = { cert = \"c\", key = \"k\", ca = \"a\" }";
        assert!(check(&format!("{secured}\n{files}")).is_ok());
        assert!(check(&format!("{plain}\n{files}")).is_err(), "certificates do not make TCP secure");
        let error = parse::<HostConfig>("nbd = [\"udp://x\"]", Path::new("h.toml")).unwrap_err().to_string();
        assert!(error.starts_with("h.toml:1: ") && error.contains("udp://x"), "{error}");
    }
}

#[cfg(test)]
mod packaged;
