//! One snapshot as the dashboard draws it. Instants are told as distances from T: a browser's numbers hold 53 bits, and
//! a server that has been up for a hundred days needs more.

use serde::{Deserialize, Serialize};
use timesync::exchange::StampClass;
use timesync::time::{Nanos, Server, Time};
use utoipa::ToSchema;

use super::Brief;
use crate::cut::{Cause, Stretch};
use crate::messages::{HostResult, Manifest, PolicyName, SnapshotDetails, Step, StoryEntry, VolumeResult};

/// One snapshot. `GET /api/v1/dashboard/snapshots/{id or name}`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Shown {
    /// What the list says of it.
    #[serde(flatten)]
    pub brief: Brief,
    /// Why the certificate says no.
    pub refusal: Option<String>,
    /// Which bound sized V; null without a certificate.
    pub policy: Option<PolicyName>,
    /// How sure the certificate is; null under the hard policy.
    pub group_confidence: Option<f64>,
    /// Barrier mode: the median round trip of a control message to the slowest host.
    pub control_round_trip_ns: Option<Nanos>,
    /// Whether the server accepted simulated clocks.
    pub simulated: bool,
    /// The cut on the server's time axis; null in barrier mode.
    pub cut: Option<CutPicture>,
    /// What each host did.
    pub per_host: Vec<HostPicture>,
    /// What happened, in order.
    pub story: Vec<StoryLine>,
}

/// A timed cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CutPicture {
    /// V.
    pub v_ns: Nanos,
    /// The hosts.
    pub hosts: Vec<HostCut>,
}

/// One host's readings on the server's timeline, in ns after T.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostCut {
    /// Its name.
    pub host: String,
    /// P happened no later.
    pub p_ns: Nanos,
    /// Q happened no earlier.
    pub q_ns: Nanos,
}

/// What one host did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostPicture {
    /// Its name.
    pub host: String,
    /// Half-width of the bound at P; null in barrier mode.
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

/// One event of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoryLine {
    /// After the first event.
    pub after_ns: Nanos,
    /// In which attempt, from 1.
    pub attempt: usize,
    /// What.
    pub step: Step,
    /// Which host; null where it concerns all.
    pub host: Option<String>,
    /// In words; empty where an answer only gives what stands elsewhere.
    pub detail: String,
}

impl Shown {
    pub(super) fn of(details: &SnapshotDetails) -> Self {
        let manifest = details.snapshot.manifest.as_ref();
        Shown {
            brief: Brief::of(&details.snapshot),
            refusal: manifest.and_then(|manifest| manifest.refusal.clone()),
            policy: manifest.map(|manifest| manifest.policy),
            group_confidence: manifest.and_then(|manifest| manifest.group_confidence),
            control_round_trip_ns: manifest.and_then(|manifest| manifest.control_round_trip_ns),
            simulated: manifest.is_some_and(|manifest| manifest.assumptions.simulated),
            cut: manifest.and_then(CutPicture::of),
            per_host: manifest.iter().flat_map(|manifest| &manifest.hosts).map(HostPicture::of).collect(),
            story: story(&details.story),
        }
    }
}

impl CutPicture {
    fn of(manifest: &Manifest) -> Option<Self> {
        let (t, v_ns): (Time<Server>, Nanos) = (manifest.t_ns?, manifest.v_ns?);
        let of = |host: &HostResult| {
            let (p_ns, q_ns) = (host.p_latest_ns? - t, host.q_earliest_ns? - t);
            Some(HostCut { host: host.host.clone(), p_ns, q_ns })
        };
        Some(CutPicture { v_ns, hosts: manifest.hosts.iter().map(of).collect::<Option<_>>()? })
    }
}

impl HostPicture {
    fn of(host: &HostResult) -> Self {
        HostPicture {
            host: host.host.clone(),
            error_ns: host.error_ns,
            held: host.held,
            stretch_ns: host.stretch_ns,
            released_by: host.released_by,
            timestamps: host.timestamps,
            volumes: host.volumes.clone(),
        }
    }
}

fn story(entries: &[StoryEntry]) -> Vec<StoryLine> {
    let mut attempts = Vec::new();
    let began = entries.first().map(|entry| entry.at_ns);
    let line = |entry: &StoryEntry| {
        if attempts.last() != Some(&entry.attempt) {
            attempts.push(entry.attempt);
        }
        StoryLine {
            after_ns: began.map_or(Nanos::ZERO, |began| entry.at_ns - began),
            attempt: attempts.len(),
            step: entry.step,
            host: entry.host.clone(),
            detail: retell(&entry.detail),
        }
    };
    entries.iter().map(line).collect()
}

/// A detail is a sentence, or an answer in JSON, of which only what stands nowhere else is of interest.
fn retell(detail: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(detail) {
        Err(_) => detail.to_owned(),
        Ok(answer) => answer["readings"]["q"].as_i64().map_or_else(String::new, |q| {
            let after = q - answer["readings"]["at"].as_i64().unwrap_or(q);
            format!("released {} after its T", Nanos::new(after))
        }),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_story_is_told_from_its_beginning_and_by_attempts() {
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let entry = |attempt, at: i64, step, detail: &str| StoryEntry {
            attempt,
            at_ns: Time::from_nanos(at),
            step,
            host: None,
            detail: detail.to_owned(),
        };
        let sealed = r#"{"readings":{"at":9000000000000001,"q":9000000000002001}}"#;
        let told = story(&[
            entry(first, 9_007_199_254_740_993, Step::Describe, "3 hosts"),
            entry(first, 9_007_199_254_740_995, Step::Abort, "{}"),
            entry(second, 9_007_199_254_741_993, Step::Seal, sealed),
        ]);
        let lines: Vec<_> =
            told.iter().map(|line| (line.after_ns.get(), line.attempt, line.detail.as_str())).collect();
        assert_eq!(lines, [(0, 1, "3 hosts"), (2, 1, ""), (1_000, 2, "released 2.00 µs after its T")]);
    }
}
