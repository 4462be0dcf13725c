//! What a host keeps of snapshots.

use super::RemoteHost;
use crate::http::ControlError;
use crate::orders::AttemptId;
use crate::record::Record;

#[expect(clippy::missing_errors_doc, reason = "each fails as ControlError says")]
impl RemoteHost {
    /// Of which attempts' snapshots it keeps a record.
    pub async fn records(&self) -> Result<Vec<AttemptId>, ControlError> {
        self.client.get(self.client.page(&["v1", "records"]), self.limits.seal).await
    }

    /// What it keeps of one.
    pub async fn record(&self, attempt: AttemptId) -> Result<Record, ControlError> {
        let page = self.client.page(&["v1", "records", &attempt.to_string()]);
        self.client.get(page, self.limits.seal).await
    }

    /// Replaces what it keeps of one.
    pub async fn replace_record(&self, attempt: AttemptId, record: &Record) -> Result<(), ControlError> {
        let page = self.client.page(&["v1", "records", &attempt.to_string()]);
        self.client.post(page, record, self.limits.seal).await
    }
}
