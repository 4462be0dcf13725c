//! Looking after the snapshots that there are: show, verify, delete, digests, and what a crash left behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span};

use super::{Coordinator, CoordinatorError};
use crate::certificate::certify;
use crate::messages::{
    CreateVolumeOn, DigestCheck, HostVolumes, Manifest, Member, Progress, Snapshot, SnapshotDetails,
    SnapshotState, Verdict, VerifyReport,
};
use crate::orders::{CreateVolume, HostDescription, VolumeDescription};
use crate::sync::task;

/// How long digests wait after a snapshot is complete.
const AFTER_CUT: Duration = Duration::from_millis(250);

#[expect(clippy::missing_errors_doc, reason = "each fails as CoordinatorError says")]
impl Coordinator {
    /// Takes up what the last server left: aborts that hosts are still owed, digests that were not computed. Both go
    /// on in the background.
    pub async fn recover(self: &Arc<Self>) -> Result<(), CoordinatorError> {
        for (attempt, name) in self.with_catalogue(|catalogue| catalogue.owed()).await? {
            let snapshot = self.with_catalogue(move |catalogue| catalogue.snapshot_of(attempt)).await?;
            let _span = tracing::info_span!("recover", snapshot).entered();
            match self.hosts.get(&name) {
                Some(host) => self.undo.until_answered(attempt, Arc::clone(host)),
                None => tracing::warn!(
                    %attempt, host = name,
                    "an attempt could not be undone on a host that is no longer configured; configure it again to do so"
                ),
            }
        }
        self.recover_restores().await?;
        for snapshot in self.with_catalogue(|catalogue| catalogue.list()).await? {
            if let (SnapshotState::Complete, Some(manifest)) = (snapshot.state, snapshot.manifest) {
                self.digest_later(manifest);
            }
        }
        Ok(())
    }

    /// All snapshots, oldest first.
    pub async fn list(&self) -> Result<Vec<Snapshot>, CoordinatorError> {
        self.with_catalogue(|catalogue| catalogue.list()).await
    }

    /// One snapshot, by id or name.
    pub async fn show(&self, key: &str, with_evidence: bool) -> Result<SnapshotDetails, CoordinatorError> {
        let key = key.to_owned();
        self.with_catalogue(move |catalogue| {
            let snapshot = catalogue.find(&key)?;
            let story = catalogue.story(snapshot.id)?;
            let evidence = if with_evidence { catalogue.evidence(snapshot.id)? } else { None };
            Ok(SnapshotDetails { snapshot, story, evidence })
        })
        .await
    }

    /// Computes a snapshot's verdict and digests again. `progress` hears of every volume.
    #[tracing::instrument(name = "verify", skip_all, fields(snapshot = Empty))]
    pub async fn verify(
        &self,
        key: &str,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<VerifyReport, CoordinatorError> {
        let SnapshotDetails { snapshot, evidence, .. } = self.show(key, true).await?;
        Span::current().record("snapshot", display(snapshot.id));
        let standing = matches!(snapshot.state, SnapshotState::Complete | SnapshotState::Inconsistent);
        let Some(manifest) = snapshot.manifest.filter(|_| standing) else {
            return Err(CoordinatorError::Request(format!(
                "snapshot {} does not stand, so there is nothing to verify; show it to see why",
                snapshot.name
            )));
        };
        let (verdict, refusal, margin_ns) = match evidence.as_ref().map(certify) {
            Some(Ok(certificate)) => (Verdict::Consistent, None, certificate.margin),
            Some(Err(refusal)) => (Verdict::Inconsistent, Some(refusal.to_string()), None),
            None => (Verdict::Inconsistent, Some("there is no evidence".to_owned()), None),
        };
        progress(Progress::from(format!("reading {} volumes", manifest.group.len())));
        let volumes = join_all(volumes(&manifest).map(|(member, stored)| {
            let (name, progress) = (&manifest.name, &progress);
            async move {
                let (now, problem) = match self.digest(&member, name, false).await {
                    Ok(digest) => (Some(digest), None),
                    Err(why) => (None, Some(why.to_string())),
                };
                progress(Progress::from(format!("{}/{} is read", member.host, member.volume)));
                DigestCheck { member, stored, now, problem }
            }
        }))
        .await;
        let same = |check: &DigestCheck| {
            check.now.is_some() && (check.stored.is_none() || check.stored == check.now)
        };
        let intact = volumes.iter().all(same);
        Ok(VerifyReport {
            id: manifest.id,
            name: manifest.name,
            verdict,
            refusal,
            margin_ns,
            intact,
            volumes,
        })
    }

    /// Deletes a snapshot on every host, then forgets it. Where a host fails, the row stays as `deleting`.
    #[tracing::instrument(name = "delete", skip_all, fields(snapshot = Empty))]
    pub async fn delete(&self, key: &str) -> Result<(), CoordinatorError> {
        let found = self.show(key, false).await?.snapshot;
        Span::current().record("snapshot", display(found.id));
        if self.is_being_restored(found.id).await? {
            return Err(CoordinatorError::Conflict(format!(
                "snapshot {} is being restored; delete it when that is done on every host",
                found.name
            )));
        }
        // Before anything is deleted anywhere: what one host cannot delete should not be gone on the others.
        if let Some(manifest) = found.manifest.filter(|_| found.state != SnapshotState::Failed) {
            self.refuse_if_in_use(&manifest).await?;
        }
        let key = found.id.to_string();
        let snapshot = self.with_catalogue(move |catalogue| catalogue.deleting(&key)).await?;
        // A failed snapshot is on no host, and its name may belong to another by now.
        if let Some(manifest) = snapshot.manifest.filter(|_| snapshot.state != SnapshotState::Failed) {
            let deletions = join_all(volumes(&manifest).map(|(member, _)| {
                let name = &manifest.name;
                async move { Ok(self.host(&member.host)?.delete_snapshot(&member.volume, name).await?) }
            }));
            deletions.await.into_iter().collect::<Result<Vec<()>, CoordinatorError>>()?;
        }
        self.with_catalogue(move |catalogue| catalogue.remove(snapshot.id)).await
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

    /// Every host's volumes. A host that does not answer is listed with the reason.
    pub async fn volumes(&self) -> Vec<HostVolumes> {
        let answers = join_all(self.hosts.values().map(|host| host.describe())).await;
        let listed = self.hosts.keys().cloned().zip(answers).map(|(host, answer)| match answer {
            Ok(HostDescription { volumes, unserved, importing, nbd, .. }) => {
                HostVolumes { host, volumes, unserved, importing, nbd, problem: None }
            }
            Err(why) => HostVolumes {
                host,
                volumes: Vec::new(),
                unserved: BTreeMap::new(),
                importing: BTreeMap::new(),
                nbd: Vec::new(),
                problem: Some(why.to_string()),
            },
        });
        listed.collect()
    }

    /// Creates a volume on a host.
    pub async fn create_volume(
        &self,
        request: CreateVolumeOn,
    ) -> Result<VolumeDescription, CoordinatorError> {
        let order = CreateVolume { name: request.name, size: request.size };
        Ok(self.host(&request.host)?.create_volume(&order).await?)
    }

    /// Computes and stores the digests that a snapshot lacks, in the background.
    pub(super) fn digest_later(self: &Arc<Self>, manifest: Manifest) {
        if !self.options.digests || volumes(&manifest).all(|(_, stored)| stored.is_some()) {
            return;
        }
        let coordinator = Arc::clone(self);
        let span = tracing::info_span!("digests", snapshot = %manifest.id);
        let reading = async move {
            // Reading whole volumes right after a cut would be felt by the writers that the cut spared.
            task::sleep(AFTER_CUT).await;
            let _one_at_a_time = coordinator.digesting.lock().await;
            for (member, _) in volumes(&manifest).filter(|(_, stored)| stored.is_none()) {
                let result = async {
                    let digest = coordinator.digest(&member, &manifest.name, true).await?;
                    let (id, member) = (manifest.id, member.clone());
                    coordinator
                        .with_catalogue(move |catalogue| {
                            catalogue.set_digest(id, &member.host, &member.volume, &digest)
                        })
                        .await
                };
                if let Err(why) = result.await {
                    tracing::warn!(host = member.host, volume = member.volume, %why, "no digest");
                }
            }
        };
        task::spawn(reading.instrument(span));
    }

    async fn digest(
        &self,
        member: &Member,
        snapshot: &str,
        changes: bool,
    ) -> Result<String, CoordinatorError> {
        Ok(self.host(&member.host)?.digest(&member.volume, snapshot, changes).await?.blake3)
    }
}

/// A snapshot's volumes with their stored digests.
pub(super) fn volumes(manifest: &Manifest) -> impl Iterator<Item = (Member, Option<String>)> {
    manifest.hosts.iter().flat_map(|host| {
        host.volumes.iter().map(|volume| {
            (Member { host: host.host.clone(), volume: volume.name.clone() }, volume.digest.clone())
        })
    })
}
