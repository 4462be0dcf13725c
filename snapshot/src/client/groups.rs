//! Labels and saved groups.

use super::{SOON, ServerClient};
use crate::groups::{Group, GroupStatus, LabelChange, Labels};
use crate::http::ControlError;
use crate::messages::Member;

#[expect(clippy::missing_errors_doc, reason = "each fails as ControlError says")]
impl ServerClient {
    /// All groups, by name.
    pub async fn groups(&self) -> Result<Vec<Group>, ControlError> {
        self.client.get(self.client.page(&["api", "v1", "groups"]), SOON).await
    }

    /// A group and what it means now.
    pub async fn group(&self, name: &str) -> Result<GroupStatus, ControlError> {
        self.client.get(self.client.page(&["api", "v1", "groups", name]), SOON).await
    }

    /// Stores a group.
    pub async fn add_group(&self, group: &Group) -> Result<GroupStatus, ControlError> {
        self.client.post(self.client.page(&["api", "v1", "groups"]), group, SOON).await
    }

    /// Forgets a group.
    pub async fn remove_group(&self, name: &str) -> Result<(), ControlError> {
        self.client.delete(self.client.page(&["api", "v1", "groups", name]), SOON).await
    }

    /// Changes a volume's labels.
    pub async fn label_volume(&self, volume: &Member, change: &LabelChange) -> Result<Labels, ControlError> {
        let page = self.client.page(&["api", "v1", "volumes", &volume.host, &volume.volume, "labels"]);
        self.client.post(page, change, SOON).await
    }
}
