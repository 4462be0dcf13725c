//! A host's volumes as wholes, as the coordinator sees them.

use super::RemoteHost;
use crate::http::ControlError;
use crate::orders::VolumeDescription;
use crate::orders::volumes::{CloneOrder, ImportOrder, ResizeOrder};

#[expect(clippy::missing_errors_doc, reason = "each fails as ControlError says")]
impl RemoteHost {
    /// Makes a new volume with the content of a snapshot of `volume`.
    pub async fn clone_volume(
        &self,
        volume: &str,
        order: &CloneOrder,
    ) -> Result<VolumeDescription, ControlError> {
        let page = self.client.page(&["v1", "volumes", volume, "clone"]);
        self.client.post(page, order, self.limits.seal).await
    }

    /// Gives a volume another size.
    pub async fn resize_volume(
        &self,
        volume: &str,
        order: &ResizeOrder,
    ) -> Result<VolumeDescription, ControlError> {
        let page = self.client.page(&["v1", "volumes", volume, "resize"]);
        self.client.post(page, order, self.limits.seal).await
    }

    /// Makes an image on the host a volume.
    pub async fn import_volume(
        &self,
        volume: &str,
        order: &ImportOrder,
    ) -> Result<VolumeDescription, ControlError> {
        let page = self.client.page(&["v1", "volumes", volume, "import"]);
        self.client.post(page, order, self.limits.bulk).await
    }

    /// Deletes a volume.
    pub async fn delete_volume(&self, volume: &str, with_snapshots: bool) -> Result<(), ControlError> {
        let mut page = self.client.page(&["v1", "volumes", volume]);
        page.set_query(with_snapshots.then_some("with_snapshots=true"));
        self.client.delete(page, self.limits.bulk).await
    }
}
