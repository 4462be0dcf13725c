//! A host as the coordinator sees it: the typed client of [`crate::agent`].

mod records;
mod volumes;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use reqwest::Url;
use timesync::authentication::SessionKey;
use timesync::publish::ServerTime;
use uuid::Uuid;

use crate::agent::UncoordinatedOrder;
use crate::groups::Labels;
use crate::hooks::host::{BeforeOrder, HookReport};
use crate::http::{Connector, ControlClient, ControlError, HttpError, Lines};
use crate::orders::{
    ArmOrder, Armed, AttemptId, ContentDigest, CreateVolume, HostDescription, PrepareOrder, Quota,
    RestoreOrder, RestorePrepared, RestoreSwitched, Sealed, Struck, VolumeDescription, VolumeUsage,
};

/// Where a host's control plane is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostEndpoint {
    /// The host's name, the same as in its own configuration and in time exchanges.
    pub name: String,
    /// Its control URL, such as `https://host-a:7411`.
    pub control: String,
    /// Labels that all its volumes have.
    pub labels: Labels,
}

/// How long a host may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For what waits for no disk.
    pub step: Duration,
    /// For what waits for syncs: a busy disk takes seconds for one. For a seal, beyond T + V.
    pub seal: Duration,
    /// For work that reads or merges whole volumes.
    pub bulk: Duration,
}

impl Default for Limits {
    /// 5 s, 30 s and an hour.
    fn default() -> Self {
        Limits {
            step: Duration::from_secs(5),
            seal: Duration::from_secs(30),
            bulk: Duration::from_secs(3600),
        }
    }
}

/// One host.
#[derive(Clone, Debug)]
pub struct RemoteHost {
    name: String,
    labels: Labels,
    client: ControlClient,
    limits: Limits,
}

#[expect(clippy::missing_errors_doc, reason = "each fails as ControlError says")]
impl RemoteHost {
    /// A client for `endpoint`.
    pub fn new(connector: &Connector, endpoint: &HostEndpoint, limits: Limits) -> Result<Self, HttpError> {
        let client = connector.connect(&format!("host {}", endpoint.name), &endpoint.control)?;
        Ok(RemoteHost { name: endpoint.name.clone(), labels: endpoint.labels.clone(), client, limits })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Labels that all its volumes have.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    fn cut(&self, attempt: AttemptId, step: &str) -> Url {
        self.client.page(&["v1", "cuts", &attempt.to_string(), step])
    }

    /// Who it is and what it has.
    pub async fn describe(&self) -> Result<HostDescription, ControlError> {
        self.client.get(self.client.page(&["v1", "host"]), self.limits.step).await
    }

    /// Hands out the key that its time exchanges with this server are authenticated with. It may be repeated.
    pub async fn hand_time_key(&self, key: &SessionKey) -> Result<(), ControlError> {
        self.client.post(self.client.page(&["v1", "time-key"]), key, self.limits.step).await
    }

    /// Nothing but the round trip.
    pub async fn ping(&self) -> Result<(), ControlError> {
        self.client.get(self.client.page(&["v1", "ping"]), self.limits.step).await
    }

    /// Makes the next layers.
    pub async fn prepare(&self, attempt: AttemptId, order: &PrepareOrder) -> Result<(), ControlError> {
        self.client.post(self.cut(attempt, "prepare"), order, self.limits.seal).await
    }

    /// Gets ready to cut.
    pub async fn arm(&self, attempt: AttemptId, order: &ArmOrder) -> Result<Armed, ControlError> {
        self.client.post(self.cut(attempt, "arm"), order, self.limits.step).await
    }

    /// Barrier mode: cuts now. `limit`: after the host's own `max_stretch` an answer is worth nothing.
    pub async fn strike(&self, attempt: AttemptId, limit: Duration) -> Result<Struck, ControlError> {
        self.client.post_bytes(self.cut(attempt, "strike"), Bytes::new(), limit).await
    }

    /// Barrier mode: everybody has cut. `order` is a `ReleaseOrder` in JSON.
    pub async fn release(&self, attempt: AttemptId, order: Bytes) -> Result<(), ControlError> {
        self.client.post_bytes(self.cut(attempt, "release"), order, self.limits.step).await
    }

    /// Answers once the stretch is over and the cut is durable. `until_release`: how long that is away.
    pub async fn seal(&self, attempt: AttemptId, until_release: Duration) -> Result<Sealed, ControlError> {
        let limit = self.limits.seal.saturating_add(until_release);
        self.client.post_bytes(self.cut(attempt, "seal"), Bytes::new(), limit).await
    }

    /// Drops the attempt and any name it was given. It may be repeated.
    pub async fn abort(&self, attempt: AttemptId) -> Result<(), ControlError> {
        self.client.post_bytes(self.cut(attempt, "abort"), Bytes::new(), self.limits.seal).await
    }

    /// Names the sealed state. `order` is a `CommitOrder` in JSON, made beforehand: its record can be long.
    pub async fn commit(&self, attempt: AttemptId, order: Bytes) -> Result<(), ControlError> {
        self.client.post_bytes(self.cut(attempt, "commit"), order, self.limits.seal).await
    }

    /// Cuts now, by nobody's clock.
    pub async fn uncoordinated(
        &self,
        attempt: AttemptId,
        order: &UncoordinatedOrder,
    ) -> Result<(), ControlError> {
        self.client.post(self.cut(attempt, "uncoordinated"), order, self.limits.seal).await
    }

    /// Tells it what the server's clock reads when its own does.
    pub async fn tell_time(&self, statement: &ServerTime) -> Result<(), ControlError> {
        self.client.post(self.client.page(&["v1", "server-time"]), statement, self.limits.step).await
    }

    fn hooks(&self, snapshot: Uuid, rest: &[&str]) -> Url {
        let snapshot = snapshot.to_string();
        self.client.page(&[&["v1", "hooks", snapshot.as_str()][..], rest].concat())
    }

    /// Runs its hook before a snapshot. `limit`: how long that may take.
    pub async fn begin_hooks(
        &self,
        snapshot: Uuid,
        order: &BeforeOrder,
        limit: Duration,
    ) -> Result<HookReport, ControlError> {
        self.client.post(self.hooks(snapshot, &["before"]), order, self.limits.step + limit).await
    }

    /// Whether what that hook did still holds.
    pub async fn hooks_hold(&self, snapshot: Uuid) -> Result<bool, ControlError> {
        self.client.get(self.hooks(snapshot, &[]), self.limits.step).await
    }

    /// Runs its hook after a snapshot, and says what became of it. It may be repeated.
    pub async fn end_hooks(&self, snapshot: Uuid, limit: Duration) -> Result<HookReport, ControlError> {
        let page = self.hooks(snapshot, &["after"]);
        self.client.post_bytes(page, Bytes::new(), self.limits.step + limit).await
    }

    fn restore(&self, restore: Uuid, step: &str) -> Url {
        self.client.page(&["v1", "restores", &restore.to_string(), step])
    }

    /// Lets no client in any more, and does what can fail.
    pub async fn prepare_restore(
        &self,
        restore: Uuid,
        order: &RestoreOrder,
    ) -> Result<RestorePrepared, ControlError> {
        self.client.post(self.restore(restore, "prepare"), order, self.limits.seal).await
    }

    /// Puts the volumes back. It may be repeated.
    pub async fn switch_restore(
        &self,
        restore: Uuid,
        order: &RestoreOrder,
    ) -> Result<RestoreSwitched, ControlError> {
        self.client.post(self.restore(restore, "switch"), order, self.limits.seal).await
    }

    /// Gives up what was prepared. A host that hears nothing does so by itself.
    pub async fn give_up_restore(&self, restore: Uuid) -> Result<bool, ControlError> {
        self.client.post_bytes(self.restore(restore, "give-up"), Bytes::new(), self.limits.step).await
    }

    /// Creates a volume.
    pub async fn create_volume(&self, order: &CreateVolume) -> Result<VolumeDescription, ControlError> {
        self.client.post(self.client.page(&["v1", "volumes"]), order, self.limits.seal).await
    }

    /// Deletes a snapshot of a volume; an absent one is deleted already.
    pub async fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), ControlError> {
        let page = self.client.page(&["v1", "volumes", volume, "snapshots", snapshot]);
        self.client.delete(page, self.limits.bulk).await
    }

    /// Whether the storage outside Coeval that keeps a volume has this snapshot of it.
    pub async fn has_snapshot(&self, volume: &str, snapshot: &str) -> Result<bool, ControlError> {
        let page = self.client.page(&["v1", "volumes", volume, "snapshots", snapshot]);
        self.client.get(page, self.limits.seal).await
    }

    /// A snapshot's extents, one a line; with `since`, those that may differ from that snapshot.
    pub async fn extents(
        &self,
        volume: &str,
        snapshot: &str,
        since: Option<&str>,
    ) -> Result<Lines, ControlError> {
        let mut page = self.client.page(&["v1", "volumes", volume, "snapshots", snapshot, "extents"]);
        if let Some(since) = since {
            page.query_pairs_mut().append_pair("since", since);
        }
        self.client.get_lines(page, self.limits.bulk).await
    }

    /// What the snapshots of each volume take. Looks at all maps.
    pub async fn usage(&self) -> Result<BTreeMap<String, VolumeUsage>, ControlError> {
        self.client.get(self.client.page(&["v1", "usage"]), self.limits.seal).await
    }

    /// Limits what a volume's snapshots may hold.
    pub async fn set_quota(&self, volume: &str, quota: Option<Quota>) -> Result<(), ControlError> {
        self.client
            .post(self.client.page(&["v1", "volumes", volume, "quota"]), &quota, self.limits.seal)
            .await
    }

    /// The digest of a snapshot's content; with `changes`, without reading what has not changed since the last one.
    pub async fn digest(
        &self,
        volume: &str,
        snapshot: &str,
        changes: bool,
    ) -> Result<ContentDigest, ControlError> {
        let mut page = self.client.page(&["v1", "volumes", volume, "snapshots", snapshot, "digest"]);
        if changes {
            page.set_query(Some("changes=1"));
        }
        self.client.get(page, self.limits.bulk).await
    }
}
