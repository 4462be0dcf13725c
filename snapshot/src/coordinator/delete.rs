//! Deleting a snapshot: on every host, however long that takes, and only then in the catalogue.
//!
//! The row says `deleting` from before the first host is asked until after the last one has answered. While it is there
//! its name is taken, so what is repeated cannot hit a later snapshot of the same name. That needs one try at a time for
//! each snapshot ([`Claims::leave`]): a second one might still be asking hosts when the first has removed the row.
//!
//! [`Claims::leave`]: super::claims::Claims::leave

use std::sync::Arc;

use futures_util::future::join_all;
use tracing::Span;
use tracing::field::{Empty, display};
use uuid::Uuid;

use super::library::volumes;
use super::pauses::Pauses;
use super::{Coordinator, CoordinatorError};
use crate::catalogue::CatalogueError;
use crate::messages::{Manifest, Snapshot, SnapshotState};
use crate::orders::VolumeDescription;
use crate::sync::task;

impl Coordinator {
    /// Deletes a snapshot on every host, then forgets it. Where a host fails, the row stays as `deleting` and the server
    /// goes on in the background.
    ///
    /// # Errors
    /// [`CoordinatorError`]: of what refuses the deletion nothing has changed, after [`CoordinatorError::Undeleted`] it
    /// will be done.
    #[tracing::instrument(name = "delete", skip_all, fields(snapshot = Empty))]
    pub async fn delete(self: &Arc<Self>, key: &str) -> Result<(), CoordinatorError> {
        let found = self.show(key, false).await?.snapshot;
        Span::current().record("snapshot", display(found.id));
        if self.is_being_restored(found.id).await? {
            return Err(CoordinatorError::Conflict(format!(
                "snapshot {} is being restored; delete it when that is done on every host",
                found.name
            )));
        }
        let (id, name) = (found.id, found.name);
        let leaving = self.claims.leave(id, &name)?;
        // Before anything is deleted anywhere: what one host cannot delete should not be gone on the others.
        let begun = found.state == SnapshotState::Deleting && found.why.is_none();
        if let Some(manifest) = &found.manifest
            && found.state != SnapshotState::Failed
            && !begun
        {
            self.refuse_if_in_use(manifest).await?;
        }
        let deleted = self.delete_everywhere(id).await;
        drop(leaving);
        match deleted {
            Err(CoordinatorError::Host(why)) => {
                self.delete_later(id, name.clone());
                Err(CoordinatorError::Undeleted(name, why.to_string()))
            }
            result => result,
        }
    }

    /// Takes up the deletions that were begun before the last server died. One with a reason is a doubtful snapshot of a
    /// catalogue that was made again: nobody has asked for its deletion yet.
    pub(super) async fn recover_deletions(self: &Arc<Self>) -> Result<(), CoordinatorError> {
        for Snapshot { id, name, state, why, .. } in self.list().await? {
            if state == SnapshotState::Deleting && why.is_none() {
                self.delete_later(id, name);
            }
        }
        Ok(())
    }

    async fn delete_everywhere(&self, id: Uuid) -> Result<(), CoordinatorError> {
        let snapshot = self.with_catalogue(move |catalogue| catalogue.deleting(&id.to_string())).await?;
        // A failed snapshot is on no host, and its name may belong to another by now.
        if let Some(manifest) = snapshot.manifest.filter(|_| snapshot.state != SnapshotState::Failed) {
            let deletions = join_all(volumes(&manifest).map(|(member, _)| {
                let name = &manifest.name;
                async move { Ok(self.host(&member.host)?.delete_snapshot(&member.volume, name).await?) }
            }));
            deletions.await.into_iter().collect::<Result<Vec<()>, CoordinatorError>>()?;
        }
        self.with_catalogue(move |catalogue| catalogue.remove(id)).await
    }

    /// Goes on until every host has deleted its part.
    fn delete_later(self: &Arc<Self>, id: Uuid, name: String) {
        let coordinator = Arc::clone(self);
        task::spawn(async move {
            let mut pauses = Pauses::new();
            loop {
                pauses.pass().await;
                // Otherwise somebody else tries at this moment.
                if let Ok(_leaving) = coordinator.claims.leave(id, &name) {
                    match coordinator.delete_everywhere(id).await {
                        Ok(()) => return tracing::info!(snapshot = %id, "deleted on every host"),
                        // Somebody asked for it again, and it was done then.
                        Err(CoordinatorError::Catalogue(CatalogueError::NoSuch(_))) => return,
                        Err(why) => tracing::warn!(snapshot = %id, %why, "not deleted everywhere yet"),
                    }
                }
            }
        });
    }

    /// A host that does not answer refuses its deletion itself, or forgets who read.
    async fn refuse_if_in_use(&self, manifest: &Manifest) -> Result<(), CoordinatorError> {
        let name = &manifest.name;
        let users = join_all(manifest.hosts.iter().map(|part| async move {
            let description = self.host(&part.host).ok()?.describe().await.ok()?;
            let reads = |volume: &&VolumeDescription| {
                part.volumes.iter().any(|member| member.name == volume.name) && volume.in_use.contains(name)
            };
            let volume = description.volumes.iter().find(reads)?;
            Some(format!(
                "snapshot {name} is in use: somebody reads {}@{name} on host {}; disconnect first",
                volume.name, part.host
            ))
        }));
        match users.await.into_iter().flatten().next() {
            Some(sentence) => Err(CoordinatorError::Conflict(sentence)),
            None => Ok(()),
        }
    }
}
