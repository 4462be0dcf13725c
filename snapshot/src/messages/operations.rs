//! Long work on the server, as its API shows it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Progress;
use crate::orders::Problem;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Takes a snapshot; its id is the snapshot's.
    CreateSnapshot,
    /// Computes a snapshot's verdict and digests again.
    VerifySnapshot,
    /// Puts a snapshot's volumes back to it.
    RestoreSnapshot,
    /// Makes new volumes of a snapshot.
    CloneSnapshot,
    /// Deletes a snapshot on its hosts.
    DeleteSnapshot,
    /// Gives a volume another size.
    ResizeVolume,
    /// Makes an image a volume.
    ImportVolume,
    /// Deletes a volume.
    DeleteVolume,
}

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OperationState {
    /// Under way.
    Running,
    /// Done: there is a result.
    Succeeded,
    /// Over without a result: there is a problem.
    Failed,
}

/// Long work. `GET /api/v1/operations/{id}`; its events follow at `/api/v1/operations/{id}/events`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id.
    pub id: Uuid,
    /// What it does.
    pub kind: OperationKind,
    /// To what: a snapshot as it was named in the request, or `host/volume`.
    pub target: String,
    /// Where it is.
    pub state: OperationState,
    /// When it began.
    pub began: DateTime<Utc>,
    /// Events so far.
    pub events: usize,
    /// The last thing that it told.
    pub progress: Option<Progress>,
    /// What came of it: what the same request answers with when it is waited for.
    pub result: Option<Value>,
    /// Why nothing came of it.
    pub problem: Option<Problem>,
}

/// One event of an operation. The last one is its result or a problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationEvent {
    /// It goes on.
    Progress(Progress),
    /// It is done.
    Result(Value),
    /// It failed.
    Problem(Problem),
}

impl OperationEvent {
    /// Whether it is the last one.
    pub fn is_end(&self) -> bool {
        !matches!(self, OperationEvent::Progress(_))
    }
}
