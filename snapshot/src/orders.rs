//! What the coordinator orders and what a host answers: the JSON between them.

pub mod volumes;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use timesync::identity::Incarnation;
use timesync::time::{Host, Nanos, Time};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::certificate::Mode;
use crate::cut::Readings;
use crate::hooks::HookLimits;

/// One attempt at one snapshot (UUID v7, so that ids sort by time). A retry is a new attempt with a new id.
pub type AttemptId = Uuid;

/// Make the next layers: all that waits for a disk, before T is chosen. `POST /v1/cuts/{attempt}/prepare`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrepareOrder {
    /// Whom the order is for; a daemon that restarted refuses it.
    pub host: Incarnation,
    /// Who gives it.
    pub server: Incarnation,
    /// The volumes that take part.
    pub volumes: Vec<String>,
    /// What the snapshot will be called, if it comes to one: storage outside Coeval names it as it takes it.
    pub name: String,
    /// The snapshot that the attempt is for: for the host's log.
    #[serde(default)]
    pub snapshot: Option<Uuid>,
}

/// Cut at T and stretch V, or get ready for a barrier. `POST /v1/cuts/{attempt}/arm`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArmOrder {
    /// Whom the order is for; a daemon that restarted refuses it.
    pub host: Incarnation,
    /// Who gives it, the same as prepared it.
    pub server: Incarnation,
    /// When to cut.
    pub timing: ArmTiming,
}

/// When to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArmTiming {
    /// At T_i, holding completions until T_i + V.
    Timed {
        /// T_i, in this host's own clock.
        at: Time<Host>,
        /// V.
        stretch: Nanos,
    },
    /// When told to.
    Barrier,
}

/// The host is armed: no thread can classify by the unarmed state any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// Who armed.
    pub host: Incarnation,
    /// The reading at which arming was complete; below T.
    pub armed_at: Time<Host>,
}

/// Barrier mode: the host has cut. `POST /v1/cuts/{attempt}/strike`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Struck {
    /// Who cut.
    pub host: Incarnation,
    /// Drawn after the cut's reading.
    pub nonce: Uuid,
}

/// Barrier mode: everybody has cut. `POST /v1/cuts/{attempt}/release`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseOrder {
    /// Every host's nonce; a host releases by barrier only if its own is among them.
    pub nonces: Vec<Uuid>,
}

/// Every volume's layer is sealed and durable. `POST /v1/cuts/{attempt}/seal` (answers once it is so)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// Who sealed.
    pub host: Incarnation,
    /// The order it was done for came from this server.
    pub server: Incarnation,
    /// How it cut.
    pub mode: Mode,
    /// What its clock read.
    pub readings: Readings,
    /// Barrier mode: its nonce.
    pub nonce: Option<Uuid>,
    /// Of its volumes, those that are kept outside Coeval.
    #[serde(default)]
    pub externals: Vec<ExternalPart>,
}

/// What a volume outside Coeval did in a cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExternalPart {
    /// Its name.
    pub volume: String,
    /// The kind of its backend.
    pub backend: String,
    /// How long it was paused; none for a backend that has no pause.
    pub pause: Option<PauseTimes>,
}

/// How long a pause took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PauseTimes {
    /// P of this volume: the reading after it was confirmed.
    #[schema(value_type = i64)]
    pub p_ns: Time<Host>,
    /// Until then.
    pub pausing_ns: Nanos,
    /// From then on, what the snapshot itself took.
    pub cutting_ns: Nanos,
    /// From its beginning, when writes may have begun to wait, to the resume.
    pub paused_ns: Nanos,
}

/// Name the sealed state. `POST /v1/cuts/{attempt}/commit`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitOrder {
    /// The snapshot's name, as in the export `volume@name`.
    pub name: String,
    /// What the host keeps of the snapshot for as long as it stands here: a [`crate::record::Record`].
    #[serde(default)]
    pub record: Option<serde_json::Value>,
}

/// Put volumes back to a snapshot. `POST /v1/restores/{restore}/prepare`, then `POST /v1/restores/{restore}/switch`,
/// which may be repeated; or `POST /v1/restores/{restore}/give-up`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreOrder {
    /// The volumes.
    pub volumes: Vec<String>,
    /// The snapshot that they all have.
    pub snapshot: String,
    /// The name under which the state that is replaced is kept; none: it is dropped.
    pub keep: Option<String>,
    /// Whether clients that are connected are disconnected; otherwise they are a reason to refuse.
    pub disconnect: bool,
    /// In an order to switch: what [`RestorePrepared::restored`] was. A volume of which that is not true any more has
    /// been restored by somebody else since, and stays as it is: an order can be late by any time.
    #[serde(default)]
    pub over: Option<BTreeMap<String, Uuid>>,
}

/// No client is let in any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestorePrepared {
    /// Who prepared.
    pub host: Incarnation,
    /// The last restore that was done to each volume, where there was one.
    pub restored: BTreeMap<String, Uuid>,
}

/// The volumes are restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreSwitched {
    /// But for these, which another restore has reached since they were prepared. They are as it left them.
    pub overtaken: Vec<String>,
}

/// Who a host is and what it has. `GET /v1/host`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDescription {
    /// Its configured name.
    pub name: String,
    /// This run of it.
    pub host: Incarnation,
    /// Its limit for any stretch.
    pub max_stretch: Nanos,
    /// Its volumes.
    pub volumes: Vec<VolumeDescription>,
    /// The volumes that it has and cannot serve, each with the reason.
    pub unserved: BTreeMap<String, String>,
    /// The volumes that images are being copied to, and how many hundredths are done.
    #[serde(default)]
    pub importing: BTreeMap<String, u8>,
    /// Where its NBD server listens (`nbd://…` and `nbd+unix:///…` without the export name).
    pub nbd: Vec<String>,
    /// How long its hooks may take; null: it has none.
    #[serde(default)]
    pub hooks: Option<HookLimits>,
}

/// A volume. `GET /v1/volumes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeDescription {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<String>,
    /// Those of its snapshots that somebody reads now.
    pub in_use: Vec<String>,
    /// Its layers, the base and those of snapshots beside the live volume included.
    pub layers: usize,
    /// Bytes allocated on disk.
    pub allocated: u64,
    /// Attached NBD clients.
    pub clients: usize,
    /// For a volume outside Coeval, what keeps it; null for Coeval's own.
    #[serde(default)]
    pub external: Option<ExternalDescription>,
}

/// What keeps a volume outside Coeval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExternalDescription {
    /// The kind of backend.
    pub backend: String,
    /// Whether its I/O is paused for a snapshot: without, it is never certified across hosts.
    pub pauses: bool,
    /// It is resumed so long after a pause began, whatever happens.
    pub deadline_ns: Nanos,
    /// How long it last took until a pause was confirmed.
    pub last_pausing_ns: Option<Nanos>,
}

/// Create a volume. `POST /v1/volumes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Letters, digits, `-`, `_` and `.`; at most 64 of them, the first a letter or digit.
    pub name: String,
    /// In bytes; a multiple of 4096.
    pub size: u64,
}

/// The digest of a snapshot's content. `GET /v1/volumes/{volume}/snapshots/{snapshot}/digest`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentDigest {
    /// BLAKE3 over the digests of the volume's ranges, in hex.
    pub blake3: String,
}

/// What a volume's snapshots may hold. `POST /v1/volumes/{volume}/quota` (null: no limit)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// In bytes: as [`VolumeUsage::held`].
    pub bytes: u64,
    /// From this percentage of it on there are warnings; 1 ..= 100.
    pub warn_percent: u8,
    /// What becomes of the next snapshot when they hold as much.
    pub when_full: WhenFull,
}

/// What becomes of the next snapshot when the others hold as much as they may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// It is refused.
    Refuse,
    /// The oldest ones that nobody named are deleted, until it fits; if that is not enough, it is refused.
    DropOldestUnnamed,
}

impl Quota {
    /// How `held` bytes compare with it.
    pub fn level(&self, held: u64) -> QuotaLevel {
        if held >= self.bytes {
            QuotaLevel::Full
        } else if u128::from(held) * 100 >= u128::from(self.bytes) * u128::from(self.warn_percent) {
            QuotaLevel::Warning
        } else {
            QuotaLevel::Good
        }
    }
}

/// How much of a quota is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum QuotaLevel {
    /// Below the warning level, or there is no quota.
    Good,
    /// At the warning level.
    Warning,
    /// All of it.
    Full,
}

/// What a volume's snapshots take. `GET /v1/usage` answers with each volume's, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeUsage {
    /// By name.
    pub snapshots: BTreeMap<String, SnapshotUsage>,
    /// Bytes of data that the live volume reads.
    pub live: u64,
    /// Bytes of data that only snapshots read, each counted once.
    pub held: u64,
    /// What they may hold.
    pub quota: Option<Quota>,
    /// How much of it they do.
    pub level: QuotaLevel,
    /// How far the merge of layers is that is under way, in percent.
    pub merging: Option<u8>,
}

/// What a snapshot of a volume takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotUsage {
    /// Bytes of data that it reads.
    pub referenced: u64,
    /// Those that nothing else reads: deleting it gives them back.
    pub exclusive: u64,
}

/// A run of a snapshot's bytes that are alike. `GET /v1/volumes/{volume}/snapshots/{snapshot}/extents` answers with one a
/// line, in order and without gaps; `?since=SNAPSHOT` asks what changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// In bytes; above 0.
    pub length: u64,
    /// What it holds.
    pub state: ExtentState,
}

/// What a run of a snapshot's bytes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExtentState {
    /// It may hold anything.
    Data,
    /// It reads as zeros and takes no space.
    Zero,
    /// It reads as in the older snapshot. What did change may read as it did before, too.
    Unchanged,
}

/// Why a request failed: problem+json (RFC 9457) with a sentence in `detail`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// The HTTP status again.
    pub status: u16,
    /// A short name of the kind of problem.
    pub title: String,
    /// One sentence that says what to do.
    pub detail: String,
}
