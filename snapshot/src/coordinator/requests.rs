//! Requests that may be repeated: what was answered to each stands in the catalogue, under the key that its caller chose.

use uuid::Uuid;

use super::{Coordinator, CoordinatorError};
use crate::catalogue::{CatalogueError, StoredRequest};
use crate::messages::SnapshotState;
use crate::messages::operations::OperationEvent;
use crate::orders::Problem;

#[expect(clippy::missing_errors_doc, reason = "each fails as CoordinatorError says")]
impl Coordinator {
    /// Stores a request for a snapshot under its key, or finds the one that stands there.
    pub async fn claim(&self, key: &str, digest: &str, id: Uuid) -> Result<StoredRequest, CoordinatorError> {
        let (key, digest) = (key.to_owned(), digest.to_owned());
        self.with_catalogue(move |catalogue| catalogue.claim(&key, &digest, id)).await
    }

    /// What became of a request that is not under way in this run of the server. None: nothing yet, nothing was begun
    /// for it.
    pub async fn remembered(
        &self,
        stored: StoredRequest,
    ) -> Result<Option<OperationEvent>, CoordinatorError> {
        if stored.answer.is_some() {
            return Ok(stored.answer);
        }
        // An earlier run of the server ended before it could note the answer.
        let snapshot = match self.show(&stored.snapshot.to_string(), false).await {
            Ok(details) => details.snapshot,
            Err(CoordinatorError::Catalogue(CatalogueError::NoSuch(_))) => return Ok(None),
            Err(error) => return Err(error),
        };
        let stands = !matches!(snapshot.state, SnapshotState::Failed);
        Ok(Some(match (stands, snapshot.manifest) {
            (true, Some(manifest)) => {
                OperationEvent::Result(serde_json::to_value(manifest).map_err(CatalogueError::from)?)
            }
            _ => OperationEvent::Problem(Problem {
                status: 500,
                title: "Internal Server Error".to_owned(),
                detail: snapshot.why.unwrap_or_else(|| "there is no snapshot".to_owned()),
            }),
        }))
    }

    /// Notes what came of a request.
    pub async fn note_answer(&self, key: String, answer: OperationEvent) {
        if let Err(why) = self.with_catalogue(move |catalogue| catalogue.note_answer(&key, &answer)).await {
            tracing::warn!(%why, "what was answered to a request was not stored under its key");
        }
    }
}
