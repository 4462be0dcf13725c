//! What the coordinator gives the host to keep of each snapshot (see [`crate::record`]).

use std::sync::PoisonError;

use super::{HostError, HostService};
use crate::orders::AttemptId;
use crate::sync::MutexGuard;
use crate::volume::Records;

impl HostService {
    /// The attempts of whose snapshots a record is kept here, oldest first.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn records(&self) -> Result<Vec<AttemptId>, HostError> {
        Ok(self.kept().list()?)
    }

    /// A record, as it was handed out.
    ///
    /// # Errors
    /// [`HostError::Gone`] where there is none, or when it cannot be read.
    pub fn record(&self, attempt: AttemptId) -> Result<serde_json::Value, HostError> {
        let text = self.kept().get(attempt)?.ok_or(HostError::Gone)?;
        serde_json::from_slice(&text).map_err(|why| {
            HostError::Failed(format!("the record of attempt {attempt} does not parse: {why}"))
        })
    }

    /// Replaces a record that is kept.
    ///
    /// # Errors
    /// [`HostError::Gone`] where no snapshot of the attempt stands here, or when it cannot be stored.
    pub fn replace_record(&self, attempt: AttemptId, record: &serde_json::Value) -> Result<(), HostError> {
        let mut kept = self.kept();
        if !self.has_name_of(attempt) {
            return Err(HostError::Gone);
        }
        Ok(kept.put(attempt, record.to_string().as_bytes())?)
    }

    /// Removes the records of snapshots that stand on no volume any more. One of an attempt that is just being named is
    /// kept: it is put and named under the same lock.
    pub(super) fn tidy_records(&self) {
        // What cannot be opened may hold any name.
        if !self.unserved().is_empty() {
            return;
        }
        let kept = self.kept();
        let removed = kept.list().and_then(|attempts| {
            attempts.into_iter().filter(|id| !self.has_name_of(*id)).try_for_each(|id| kept.remove(id))
        });
        if let Err(why) = removed {
            tracing::warn!(%why, "the record of a snapshot that is gone stays until the next start");
        }
    }

    /// Whether something on this host has the name that an attempt gave.
    fn has_name_of(&self, attempt: AttemptId) -> bool {
        self.usable().iter().any(|volume| volume.named_by(attempt).is_some())
            || self.has_external_snapshot_of(attempt)
    }

    pub(super) fn kept(&self) -> MutexGuard<'_, Records> {
        // It holds no more than a path.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
