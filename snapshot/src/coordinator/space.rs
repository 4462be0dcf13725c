//! What snapshots take, what they may, and making room for the next one.
//!
//! A host refuses a cut, before there is a T, if the snapshots of a volume hold as much as they may. A snapshot is a
//! group's: the host does not drop its part by itself. Where the policy says so, the coordinator deletes whole snapshots
//! and tries again.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use uuid::Uuid;

use super::{Coordinator, CoordinatorError};
use crate::messages::{Member, Snapshot, SnapshotState, Usage};
use crate::orders::{Quota, QuotaLevel, WhenFull};

impl Coordinator {
    /// What the snapshots of each volume take, of the hosts that answer.
    pub async fn usage(&self) -> Usage {
        let answers = join_all(self.hosts.values().map(|host| host.usage())).await;
        let told = self.hosts.keys().cloned().zip(answers);
        told.filter_map(|(host, answer)| Some((host, answer.ok()?))).collect()
    }

    /// Limits what a volume's snapshots may hold.
    ///
    /// # Errors
    /// As [`CoordinatorError`] says.
    pub async fn set_quota(&self, volume: &Member, quota: Option<Quota>) -> Result<(), CoordinatorError> {
        if let Some(Quota { warn_percent, .. }) = quota
            && !(1..=100).contains(&warn_percent)
        {
            return Err(CoordinatorError::Request("a warning level lies between 1 and 100 %".to_owned()));
        }
        Ok(self.host(&volume.host)?.set_quota(&volume.volume, quota).await?)
    }

    /// Deletes the oldest snapshots without names of their own, where the policy of a volume of `group` asks for it.
    /// Whether there is room now on all of these volumes.
    pub(super) async fn make_room(self: &std::sync::Arc<Self>, group: &[Member]) -> bool {
        let mut full = full(group, &self.usage().await);
        if full.is_empty() {
            return false;
        }
        let snapshots = match self.list().await {
            Ok(snapshots) => snapshots,
            Err(why) => {
                tracing::error!(%why, "no room can be made");
                return false;
            }
        };
        for snapshot in snapshots.into_iter().filter(may_go) {
            let is_part = |member: &Member| {
                snapshot.manifest.as_ref().is_some_and(|manifest| manifest.group.contains(member))
            };
            if !full.iter().any(is_part) {
                continue;
            }
            match self.delete(&snapshot.id.to_string()).await {
                Ok(()) => {
                    tracing::warn!(snapshot = %snapshot.id, name = snapshot.name, "deleted, to make room within a quota")
                }
                // Somebody reads it; the next one may do.
                Err(why) => {
                    tracing::warn!(snapshot = %snapshot.id, name = snapshot.name, %why, "not deleted to make room")
                }
            }
            full = self::full(group, &self.usage().await);
            if full.is_empty() {
                return true;
            }
        }
        false
    }
}

/// The name of a snapshot that was given none.
pub(super) fn generated_name(id: Uuid) -> String {
    // The id's first 12 digits are the time, its last 4 are random.
    let digits = id.simple().to_string();
    format!("s{}-{}", &digits[..12], &digits[28..])
}

/// Whether nobody chose to have this very snapshot: a schedule took it, or its name is made up. What a restore replaced
/// stays: it may be the only copy.
fn may_go(snapshot: &Snapshot) -> bool {
    snapshot.state == SnapshotState::Complete
        && (snapshot.schedule.is_some() || snapshot.name == generated_name(snapshot.id))
}

/// The volumes for which snapshots may be deleted, and must be.
fn full(group: &[Member], usage: &Usage) -> Vec<Member> {
    let must_drop = |member: &&Member| {
        let volume = usage.get(&member.host).and_then(|volumes: &BTreeMap<_, _>| volumes.get(&member.volume));
        volume.is_some_and(|volume| {
            volume.level == QuotaLevel::Full
                && volume.quota.is_some_and(|quota| quota.when_full == WhenFull::DropOldestUnnamed)
        })
    };
    group.iter().filter(must_drop).cloned().collect()
}
