//! What the server's API takes and gives about volumes as wholes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Member;

/// Make new volumes with the content of a snapshot. `POST /api/v1/snapshots/{id or name}/clone`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CloneRequest {
    /// Each of its volumes, all or none.
    Group {
        /// What is put after a volume's name to make the clone's.
        suffix: String,
    },
    /// One of its volumes.
    One {
        /// Which.
        volume: Member,
        /// The clone's name; it lies on the same host.
        name: String,
    },
}

/// A clone and what it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClonedVolume {
    /// The snapshot's volume.
    pub from: Member,
    /// The new volume.
    pub to: Member,
}

/// What was cloned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CloneReport {
    /// The snapshot's name.
    pub snapshot: String,
    /// The new volumes.
    pub volumes: Vec<ClonedVolume>,
}
