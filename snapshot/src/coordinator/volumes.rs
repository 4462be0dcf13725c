//! Volumes as wholes: clones of a group, sizes, images, and the end of them.

use futures_util::future::join_all;

use super::library::volumes;
use super::{Coordinator, CoordinatorError};
use crate::messages::volumes::{CloneReport, CloneRequest, ClonedVolume};
use crate::messages::{Manifest, Member, SnapshotState};
use crate::orders::VolumeDescription;
use crate::orders::volumes::{CloneOrder, ImportOrder, ResizeOrder};

#[expect(clippy::missing_errors_doc, reason = "each fails as CoordinatorError says")]
impl Coordinator {
    /// Makes new volumes with the content of a snapshot, each on the host of the volume that it is made from. All of
    /// them or none, unless a host stops answering; run it as a task of its own.
    pub async fn clone_snapshot(
        &self,
        key: &str,
        request: CloneRequest,
    ) -> Result<CloneReport, CoordinatorError> {
        let snapshot = self.show(key, false).await?.snapshot;
        // Before it is looked whether it stands: from here on it is not deleted.
        let _claim = self.claims.claim(snapshot.id, "cloned")?;
        let snapshot = self.show(&snapshot.id.to_string(), false).await?.snapshot;
        let standing = matches!(snapshot.state, SnapshotState::Complete | SnapshotState::Inconsistent);
        let Some(manifest) = snapshot.manifest.filter(|_| standing) else {
            return Err(CoordinatorError::Request(format!(
                "snapshot {} does not stand, so it cannot be cloned; show it to see why",
                snapshot.name
            )));
        };
        let clones = clones(&manifest, request)?;
        let order = |name: &str| CloneOrder { snapshot: manifest.name.clone(), name: name.to_owned() };
        let made = join_all(clones.iter().map(|ClonedVolume { from, to }| async move {
            self.host(&from.host)?.clone_volume(&from.volume, &order(&to.volume)).await?;
            Ok::<_, CoordinatorError>(())
        }))
        .await;
        if let Some(at) = made.iter().position(Result::is_err) {
            // Only those of which it is known that they were made now: another volume may have the name.
            let done = clones.iter().zip(&made).filter(|(_, made)| made.is_ok());
            for left in join_all(done.map(|(clone, _)| self.delete_one(&clone.to, false))).await {
                if let Err(why) = left {
                    tracing::warn!(snapshot = %manifest.id, %why, "a clone stays, although others were not made");
                }
            }
            made.into_iter().nth(at).transpose()?;
        }
        Ok(CloneReport { snapshot: manifest.name, volumes: clones })
    }

    /// Gives a volume another size.
    pub async fn resize_volume(
        &self,
        volume: &Member,
        order: ResizeOrder,
    ) -> Result<VolumeDescription, CoordinatorError> {
        Ok(self.host(&volume.host)?.resize_volume(&volume.volume, &order).await?)
    }

    /// Makes an image on a host a volume there.
    pub async fn import_volume(
        &self,
        volume: &Member,
        order: ImportOrder,
    ) -> Result<VolumeDescription, CoordinatorError> {
        Ok(self.host(&volume.host)?.import_volume(&volume.volume, &order).await?)
    }

    /// Deletes a volume. Snapshots that it is part of are a reason to refuse, or are deleted before, as wholes: without
    /// one of its volumes a snapshot is none any more.
    pub async fn delete_volume(
        self: &std::sync::Arc<Self>,
        volume: &Member,
        with_snapshots: bool,
    ) -> Result<(), CoordinatorError> {
        let description = self.host(&volume.host)?.describe().await?;
        let found = description.volumes.iter().find(|found| found.name == volume.volume);
        // Before anything is deleted. Those who come later are found by the host.
        if let Some(clients) = found.map(|found| found.clients).filter(|clients| *clients > 0) {
            return Err(CoordinatorError::Conflict(format!(
                "volume {volume} has {clients} clients connected: disconnect them first"
            )));
        }
        let member = volume.clone();
        self.with_catalogue(move |catalogue| catalogue.refuse_if_being_restored(&[member])).await?;
        let snapshots = self.list().await?;
        let part_of = snapshots.into_iter().filter(|snapshot| {
            let group = snapshot.manifest.as_ref().map(|manifest| &manifest.group);
            snapshot.state != SnapshotState::Failed && group.is_some_and(|group| group.contains(volume))
        });
        let part_of: Vec<_> = part_of.collect();
        if !part_of.is_empty() && !with_snapshots {
            let names: Vec<_> = part_of.iter().map(|snapshot| snapshot.name.as_str()).collect();
            return Err(CoordinatorError::Conflict(format!(
                "volume {volume} is part of snapshots ({}): delete them first, or use --with-snapshots to delete them too, \
                 on all their hosts",
                names.join(", ")
            )));
        }
        for snapshot in part_of {
            self.delete(&snapshot.id.to_string()).await?;
        }
        self.delete_one(volume, with_snapshots).await?;
        let gone = volume.clone();
        self.with_catalogue(move |catalogue| catalogue.forget_labels(&gone)).await
    }

    async fn delete_one(&self, volume: &Member, with_snapshots: bool) -> Result<(), CoordinatorError> {
        Ok(self.host(&volume.host)?.delete_volume(&volume.volume, with_snapshots).await?)
    }
}

/// What is to be made of what.
fn clones(manifest: &Manifest, request: CloneRequest) -> Result<Vec<ClonedVolume>, CoordinatorError> {
    let named = |from: Member, name: String| ClonedVolume {
        to: Member { host: from.host.clone(), volume: name },
        from,
    };
    let mut members = volumes(manifest).map(|(member, _)| member);
    match request {
        CloneRequest::Group { suffix } if suffix.is_empty() => Err(CoordinatorError::Request(
            "a clone needs another name than its volume; give a suffix".to_owned(),
        )),
        CloneRequest::Group { suffix } => Ok(members
            .map(|from| {
                let name = format!("{}{suffix}", from.volume);
                named(from, name)
            })
            .collect()),
        CloneRequest::One { volume, name } => match members.find(|member| *member == volume) {
            Some(from) => Ok(vec![named(from, name)]),
            None => Err(CoordinatorError::Unknown(format!(
                "volume {volume} is not part of snapshot {}; show it to see what is",
                manifest.name
            ))),
        },
    }
}
