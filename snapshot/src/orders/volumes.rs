//! Orders about volumes as wholes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Make a new volume with the content of a snapshot. `POST /v1/volumes/{volume}/clone`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloneOrder {
    /// The volume's snapshot.
    pub snapshot: String,
    /// The new volume's name.
    pub name: String,
}

/// Give a volume another size. `POST /v1/volumes/{volume}/resize` and
/// `POST /api/v1/volumes/{host}/{volume}/resize`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeOrder {
    /// In bytes; a multiple of 4096.
    pub size: u64,
    /// Whether it may be smaller than now; what lies beyond is gone then.
    #[serde(default)]
    pub shrink: bool,
}

/// Make an image on the host a volume. `POST /v1/volumes/{volume}/import` and
/// `POST /api/v1/volumes/{host}/{volume}/import` (answers when it is there)
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportOrder {
    /// Absolute, on the host, in one of the directories that its configuration allows.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// What it is, in `qemu-img`'s words; none: raw.
    #[serde(default)]
    pub format: Option<String>,
    /// Take the file over instead of copying it; only a raw one.
    #[serde(default)]
    pub in_place: bool,
}
