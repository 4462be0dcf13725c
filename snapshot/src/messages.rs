//! What the server's API takes and gives: shared by the server, the command line and the catalogue.

pub mod operations;
pub mod volumes;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use timesync::bound::{Assumptions, AsymmetryBudget, Policy};
use timesync::exchange::StampClass;
use timesync::identity::{BootId, Incarnation};
use timesync::time::{Host, Nanos, Server, Time};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::certificate::{Evidence, Mode};
use crate::cut::{Cause, Stretch};
use crate::groups::Labels;
use crate::orders::{AttemptId, ExternalPart, VolumeDescription, VolumeUsage};

/// One volume of a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The host's name.
    pub host: String,
    /// The volume's name on it.
    pub volume: String,
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host, self.volume)
    }
}

/// How to take a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RequestedMode {
    /// By clocks only.
    Timed,
    /// By messages only.
    Barrier,
    /// By clocks; by messages after the timed attempts are used up, or where the bound is too wide.
    #[default]
    Auto,
}

/// Which bound sizes V.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum RequestedPolicy {
    /// Only the named assumptions.
    #[default]
    Hard,
    /// Narrower, at a confidence.
    Statistical {
        /// For the whole snapshot; above 0 and below 1.
        group_confidence: f64,
        /// The asymmetry allowed for.
        budget: AsymmetryBudget,
    },
}

/// A snapshot taken wrongly on purpose, to see that the certificate refuses it. Only on a server in simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Each host cuts when it is told, one after the other, and holds nothing.
    Uncoordinated,
    /// T reaches every host as the same number, not translated into its clock.
    Untranslated,
    /// V = 0.
    ZeroStretch,
}

/// Take a snapshot. `POST /api/v1/snapshots`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CreateRequest {
    /// Its name, by the rule for volume names; none: the server makes one up.
    pub name: Option<String>,
    /// The volumes; empty, and without `group_name`: all volumes of all hosts.
    pub group: Vec<Member>,
    /// A saved group instead: what it means when the snapshot is taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_name: Option<String>,
    /// How.
    pub mode: RequestedMode,
    /// By which bound.
    pub policy: RequestedPolicy,
    /// How far ahead of the order T lies, 1 ms ..= 10 s (hosts take no more); none: the server's default.
    pub lead_ns: Option<Nanos>,
    /// Attempts in each mode, 1 ..= 100; none: the server's default.
    pub attempts: Option<u32>,
    /// Hooks of the server's configuration that are to run, beside those that always do for these volumes.
    pub hooks: Vec<String>,
    /// Do it wrongly.
    pub control: Option<Control>,
}

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Ask the hosts who they are and what they have.
    Describe,
    /// Make the volumes' next layers.
    Prepare,
    /// Exchange timestamps.
    Measure,
    /// Choose T and V.
    Plan,
    /// Give the orders.
    Arm,
    /// Barrier mode: cut everywhere.
    Strike,
    /// Barrier mode: end the stretch everywhere.
    Release,
    /// Wait until the cut is durable everywhere.
    Seal,
    /// Judge the evidence.
    Certify,
    /// Name the snapshot on every host.
    Commit,
    /// Undo the attempt on every host.
    Abort,
    /// The hooks before the snapshot.
    Before,
    /// The hooks after the snapshot.
    After,
    /// Run a command of the server's configuration, after the snapshot is complete.
    FollowUp,
}

/// What is happening, as it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// In words.
    pub detail: String,
    /// Of a snapshot that is being taken: where in which attempt.
    pub attempt: Option<AttemptProgress>,
}

/// How far the taking of a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptProgress {
    /// Which attempt, from 1.
    pub number: u32,
    /// In which mode.
    pub mode: Mode,
    /// What.
    pub step: Step,
}

impl From<String> for Progress {
    fn from(detail: String) -> Self {
        Progress { detail, attempt: None }
    }
}

/// What the certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The evidence proves the cut consistent.
    Consistent,
    /// It does not. Only a control is kept like this.
    Inconsistent,
}

/// A snapshot: what was cut, when, and what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Manifest {
    /// The snapshot's id.
    pub id: Uuid,
    /// Its name: the exports are `volume@name`.
    pub name: String,
    /// The volumes.
    pub group: Vec<Member>,
    /// How the hosts agreed on the instant; null for an uncoordinated control.
    pub mode: Option<Mode>,
    /// What the certificate says.
    pub verdict: Verdict,
    /// Why it says no.
    pub refusal: Option<String>,
    /// By how much the cut is consistent; null in barrier mode.
    pub margin_ns: Option<Nanos>,
    /// V; null in barrier mode.
    pub v_ns: Option<Nanos>,
    /// T on the server's timeline; null in barrier mode.
    #[schema(value_type = Option<i64>)]
    pub t_ns: Option<Time<Server>>,
    /// Barrier mode: the median round trip of a control message to the slowest host.
    pub control_round_trip_ns: Option<Nanos>,
    /// Attempts it took, the last one included.
    pub attempts: u32,
    /// Which bound sized V: `hard` or `statistical`.
    pub policy: PolicyName,
    /// How sure the certificate is, all hosts and attempts together; null under the hard policy.
    pub group_confidence: Option<f64>,
    /// What each host did.
    pub hosts: Vec<HostResult>,
    /// What the certificate rests on.
    pub assumptions: Assumed,
}

/// The name of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyName {
    /// Only the named assumptions.
    Hard,
    /// At a confidence.
    Statistical,
}

/// What a snapshot would be like. `POST /api/v1/rehearsals` with a [`CreateRequest`]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Forecast {
    /// The volumes.
    pub group: Vec<Member>,
    /// How the hosts would agree on the instant.
    pub mode: Mode,
    /// Mode `auto`: why it would not be by clocks.
    pub why_not_timed: Option<String>,
    /// V; null in barrier mode.
    pub v_ns: Option<Nanos>,
    /// By how much the cut would be consistent; null in barrier mode and for a single host.
    pub margin_ns: Option<Nanos>,
    /// For how long a reply may be held: V, or in barrier mode about two control round trips.
    pub stretch_ns: Nanos,
    /// The median round trip of a control message to the slowest host.
    pub control_round_trip_ns: Nanos,
    /// How far ahead T would lie.
    pub lead_ns: Nanos,
    /// The hosts.
    pub hosts: Vec<HostForecast>,
}

/// One host's part in a [`Forecast`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostForecast {
    /// Its name.
    pub host: String,
    /// Half-width of the bound at T; null in barrier mode.
    pub error_ns: Option<Nanos>,
    /// The class of the timestamps behind the bound; null in barrier mode.
    pub timestamps: Option<StampClass>,
    /// No reply of it is held for longer.
    pub max_stretch_ns: Nanos,
    /// Its volumes.
    pub volumes: Vec<String>,
}

/// What one host did. Readings are null for an uncoordinated control.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct HostResult {
    /// Its name.
    pub host: String,
    /// The run of it that took part.
    pub incarnation: Incarnation,
    /// T_i, in its own clock.
    #[schema(value_type = Option<i64>)]
    pub at_ns: Option<Time<Host>>,
    /// P_i, in its own clock.
    #[schema(value_type = Option<i64>)]
    pub p_ns: Option<Time<Host>>,
    /// Q_i, in its own clock.
    #[schema(value_type = Option<i64>)]
    pub q_ns: Option<Time<Host>>,
    /// P_i happened no later than this, on the server's timeline; null in barrier mode.
    #[schema(value_type = Option<i64>)]
    pub p_latest_ns: Option<Time<Server>>,
    /// Q_i happened no earlier than this, on the server's timeline; null in barrier mode.
    #[schema(value_type = Option<i64>)]
    pub q_earliest_ns: Option<Time<Server>>,
    /// Half-width of the bound at P_i; null in barrier mode.
    pub error_ns: Option<Nanos>,
    /// Replies that were held back.
    pub held: u64,
    /// For how long.
    pub stretch_ns: Stretch,
    /// What ended the stretch.
    pub released_by: Option<Cause>,
    /// The class of the timestamps behind the bound; null in barrier mode.
    pub timestamps: Option<StampClass>,
    /// Its volumes.
    pub volumes: Vec<VolumeResult>,
}

impl HostResult {
    /// A host's part before anything was cut.
    pub fn blank(host: String, incarnation: Incarnation, volumes: &[String]) -> Self {
        HostResult {
            host,
            incarnation,
            at_ns: None,
            p_ns: None,
            q_ns: None,
            p_latest_ns: None,
            q_earliest_ns: None,
            error_ns: None,
            held: 0,
            stretch_ns: Stretch::default(),
            released_by: None,
            timestamps: None,
            volumes: volumes
                .iter()
                .map(|name| VolumeResult { name: name.clone(), digest: None, external: None })
                .collect(),
        }
    }
}

/// One volume of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VolumeResult {
    /// Its name.
    pub name: String,
    /// BLAKE3 of the snapshot's content, in hex; null until it is computed.
    pub digest: Option<String>,
    /// For a volume outside Coeval, what keeps it and how long it was paused. It has no digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalPart>,
}

/// What a certificate rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Assumed {
    /// Which bound counted, with the confidence of each single one.
    pub policy: Policy,
    /// Whether the server accepts simulated clocks.
    pub simulated: bool,
    /// Each host's clock assumptions; empty in barrier mode, which assumes nothing of clocks.
    pub clocks: Vec<ClockAssumptions>,
}

/// What was assumed of one host's clock and path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClockAssumptions {
    /// The host.
    pub host: String,
    /// Rate, wander and least delays.
    #[serde(flatten)]
    pub assumptions: Assumptions,
}

/// Where a snapshot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// Being taken. Found at start-up, it is rolled back.
    Planning,
    /// Certified and being named on the hosts. Found at start-up, it is rolled back.
    Committing,
    /// Certified, and named on every host.
    Complete,
    /// A control, or what a restore replaced: kept although nothing certifies it.
    Inconsistent,
    /// Undone. Nothing of it is left but this row.
    Failed,
    /// Being deleted; delete it again to finish that.
    Deleting,
}

/// A row of the catalogue. `GET /api/v1/snapshots`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: SnapshotState,
    /// Why it failed.
    pub why: Option<String>,
    /// When it was asked for: UTC, RFC 3339.
    pub created: String,
    /// What it is, once it was certified.
    pub manifest: Option<Manifest>,
    /// The schedule that took it.
    pub schedule: Option<String>,
}

/// Everything about a snapshot. `GET /api/v1/snapshots/{id or name}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SnapshotDetails {
    /// The row.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// What happened in each attempt.
    pub story: Vec<StoryEntry>,
    /// What the certificate was computed from; only with `?evidence=1`.
    #[schema(value_type = Option<Object>)]
    pub evidence: Option<Evidence>,
}

/// One event of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoryEntry {
    /// The attempt.
    #[schema(value_type = Uuid)]
    pub attempt: AttemptId,
    /// When, by the server's clock.
    #[schema(value_type = i64)]
    pub at_ns: Time<Server>,
    /// What.
    pub step: Step,
    /// Which host; null where it concerns all.
    pub host: Option<String>,
    /// The readings, or why not.
    pub detail: String,
}

/// Is it still what it was? `POST /api/v1/snapshots/{id or name}/verify`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct VerifyReport {
    /// The snapshot's id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// What the stored evidence proves, computed again.
    pub verdict: Verdict,
    /// Why it proves nothing.
    pub refusal: Option<String>,
    /// The margin, computed again.
    pub margin_ns: Option<Nanos>,
    /// Whether every volume reads as it did when its digest was taken. False where one differs or cannot be read.
    pub intact: bool,
    /// Each volume's digest.
    pub volumes: Vec<DigestCheck>,
}

/// One volume's digest, then and now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DigestCheck {
    /// The volume.
    #[serde(flatten)]
    pub member: Member,
    /// As stored; null if it was not computed yet.
    pub stored: Option<String>,
    /// As computed now.
    pub now: Option<String>,
    /// Why it could not be computed now.
    pub problem: Option<String>,
}

/// Put a snapshot's volumes back to it. `POST /api/v1/snapshots/{id or name}/restore`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RestoreRequest {
    /// Drop the state that is replaced, which is otherwise kept as a snapshot.
    pub discard_current: bool,
    /// Disconnect the clients of the volumes, which are otherwise a reason to refuse.
    pub disconnect: bool,
}

/// What the snapshots of each volume take: by host and volume, of the hosts that answer. `GET /api/v1/usage`
pub type Usage = BTreeMap<String, BTreeMap<String, VolumeUsage>>;

/// Export a volume of a snapshot. `POST /api/v1/snapshots/{id or name}/export` tells where it is read, and
/// `POST /api/v1/snapshots/{id or name}/extents` what it holds: an [`crate::orders::Extent`] a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// The volume.
    pub volume: Member,
    /// An older snapshot of the volume, by id or name: only what may differ from it.
    #[serde(default)]
    pub since: Option<String>,
}

/// Where a volume of a snapshot is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExportSource {
    /// The snapshot's name.
    pub snapshot: String,
    /// The older snapshot's name.
    pub since: Option<String>,
    /// The NBD export.
    pub export: String,
    /// Where the host's NBD server listens.
    pub nbd: Vec<String>,
    /// The host's boot: its socket files and loopback addresses mean something on that machine only.
    pub boot: BootId,
    /// BLAKE3 of the snapshot's content, in hex; null until it is computed.
    pub digest: Option<String>,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestoreReport {
    /// The restore's id.
    pub id: Uuid,
    /// The snapshot's name.
    pub snapshot: String,
    /// The snapshot that the replaced state became.
    pub kept: Option<String>,
    /// The volumes.
    pub volumes: Vec<Member>,
}

/// A host's volumes. `GET /api/v1/volumes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostVolumes {
    /// The host.
    pub host: String,
    /// Its volumes; empty where it does not answer.
    pub volumes: Vec<VolumeDescription>,
    /// The volumes that it has and cannot serve, each with the reason.
    pub unserved: BTreeMap<String, String>,
    /// The volumes that images are being copied to, and how many hundredths are done.
    #[serde(default)]
    pub importing: BTreeMap<String, u8>,
    /// The volumes' labels, their host's among them. Left out: a volume without any.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, BTreeMap<String, String>>)]
    pub labels: BTreeMap<String, Labels>,
    /// Where its NBD server listens.
    pub nbd: Vec<String>,
    /// Why it does not answer.
    pub problem: Option<String>,
}

/// Create a volume on a host. `POST /api/v1/volumes`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVolumeOn {
    /// The host.
    pub host: String,
    /// The volume's name.
    pub name: String,
    /// In bytes; a multiple of 4096.
    pub size: u64,
}
