//! Volumes as wholes.

use super::{LONG, ServerClient};
use crate::http::ControlError;
use crate::messages::Member;
use crate::messages::volumes::{CloneReport, CloneRequest};
use crate::orders::VolumeDescription;
use crate::orders::volumes::{ImportOrder, ResizeOrder};

#[expect(clippy::missing_errors_doc, reason = "each fails as ControlError says")]
impl ServerClient {
    /// Makes new volumes with the content of a snapshot.
    pub async fn clone_snapshot(
        &self,
        key: &str,
        request: &CloneRequest,
    ) -> Result<CloneReport, ControlError> {
        self.client.post(self.client.page(&["api", "v1", "snapshots", key, "clone"]), request, LONG).await
    }

    /// Deletes a volume.
    pub async fn delete_volume(&self, volume: &Member, with_snapshots: bool) -> Result<(), ControlError> {
        let mut page = self.client.page(&["api", "v1", "volumes", &volume.host, &volume.volume]);
        page.set_query(with_snapshots.then_some("with_snapshots=true"));
        self.client.delete(page, LONG).await
    }

    /// Gives a volume another size.
    pub async fn resize_volume(
        &self,
        volume: &Member,
        order: &ResizeOrder,
    ) -> Result<VolumeDescription, ControlError> {
        let page = self.client.page(&["api", "v1", "volumes", &volume.host, &volume.volume, "resize"]);
        self.client.post(page, order, LONG).await
    }

    /// Makes an image on a host a volume there. [`ServerClient::volumes`] says how far it is.
    pub async fn import_volume(
        &self,
        volume: &Member,
        order: &ImportOrder,
    ) -> Result<VolumeDescription, ControlError> {
        let page = self.client.page(&["api", "v1", "volumes", &volume.host, &volume.volume, "import"]);
        self.client.post(page, order, LONG).await
    }
}
