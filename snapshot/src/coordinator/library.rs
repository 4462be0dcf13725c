//! Looking after the snapshots that there are: show, verify, digests, and what a crash left behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span};

use super::{Coordinator, CoordinatorError};
use crate::certificate::certify;
use crate::groups::{Labels, effective};
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
    /// Takes up what the last server left: aborts that hosts are still owed, restores and deletions that were begun,
    /// digests that were not computed. All go on in the background.
    pub async fn recover(self: &Arc<Self>) -> Result<(), CoordinatorError> {
        for (attempt, name) in self.with_catalogue(|catalogue| catalogue.owed()).await? {
            let snapshot = self.with_catalogue(move |catalogue| catalogue.snapshot_of(attempt)).await?;
            let _span = tracing::info_span!("recover", snapshot).entered();
            match self.hosts.get(&name) {
                Some(host) => self.undo.until_answered(attempt, Arc::clone(host), Duration::ZERO),
                None => tracing::warn!(
                    %attempt, host = name,
                    "an attempt could not be undone on a host that is no longer configured; configure it again to do so"
                ),
            }
        }
        self.recover_hooks().await?;
        self.recover_restores().await?;
        self.recover_deletions().await?;
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

    /// How many snapshots there are in each state, by its name in the API.
    pub async fn states(&self) -> Result<Vec<(String, u64)>, CoordinatorError> {
        self.with_catalogue(|catalogue| catalogue.states()).await
    }

    /// The newest `limit` snapshots, newest first, and how many there are.
    pub async fn newest(&self, limit: u32) -> Result<(Vec<Snapshot>, u64), CoordinatorError> {
        self.with_catalogue(move |catalogue| catalogue.newest(limit)).await
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
        let volumes = join_all(own_volumes(&manifest).map(|(member, stored)| {
            let (name, progress) = (&manifest.name, &progress);
            async move {
                let (now, problem) = match self.digest(&member, name, false).await {
                    Ok(digest) => (Some(digest), None),
                    Err(why) => (None, Some(why.to_string())),
                };
                progress(Progress::from(format!("{member} is read")));
                DigestCheck { member, stored, now, problem }
            }
        }))
        .await;
        let externals = join_all(externals(&manifest).map(|member| self.look_for(member, &manifest.name)));
        let (volumes, externals) = (volumes, externals.await);
        let same = |check: &DigestCheck| {
            check.now.is_some() && (check.stored.is_none() || check.stored == check.now)
        };
        let there = |check: &DigestCheck| check.problem.is_none();
        let intact = volumes.iter().all(same) && externals.iter().all(there);
        let volumes = volumes.into_iter().chain(externals).collect();
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

    /// A volume outside Coeval has no digest; whether its snapshot is still there can be told.
    async fn look_for(&self, member: Member, snapshot: &str) -> DigestCheck {
        let found = async {
            let there = self.host(&member.host)?.has_snapshot(&member.volume, snapshot).await?;
            Ok::<_, CoordinatorError>(there)
        };
        let problem = match found.await {
            Ok(true) => None,
            Ok(false) => Some("its storage has no such snapshot any more".to_owned()),
            Err(why) => Some(why.to_string()),
        };
        DigestCheck { member, stored: None, now: None, problem }
    }

    /// Every host's volumes. A host that does not answer is listed with the reason.
    pub async fn volumes(&self) -> Result<Vec<HostVolumes>, CoordinatorError> {
        let own = self.with_catalogue(|catalogue| catalogue.labels()).await?;
        let answers = join_all(self.hosts.values().map(|host| host.describe())).await;
        let none = Labels::new();
        let labels = |host: &str, volume: &str| {
            let member = Member { host: host.to_owned(), volume: volume.to_owned() };
            let hosts = self.hosts.get(host).map_or(&none, |host| host.labels());
            let labels = effective(hosts, own.get(&member).unwrap_or(&none));
            (!labels.is_empty()).then_some((member.volume, labels))
        };
        let listed = self.hosts.keys().cloned().zip(answers).map(|(host, answer)| match answer {
            Ok(HostDescription { volumes, unserved, importing, nbd, .. }) => {
                let names = volumes.iter().map(|volume| &volume.name).chain(unserved.keys());
                let labels = names.filter_map(|name| labels(&host, name)).collect();
                HostVolumes { host, volumes, unserved, importing, labels, nbd, problem: None }
            }
            Err(why) => HostVolumes {
                host,
                volumes: Vec::new(),
                unserved: BTreeMap::new(),
                importing: BTreeMap::new(),
                labels: BTreeMap::new(),
                nbd: Vec::new(),
                problem: Some(why.to_string()),
            },
        });
        Ok(listed.collect())
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
        if !self.options.digests || own_volumes(&manifest).all(|(_, stored)| stored.is_some()) {
            return;
        }
        let coordinator = Arc::clone(self);
        let span = tracing::info_span!("digests", snapshot = %manifest.id);
        let reading = async move {
            // Reading whole volumes right after a cut would be felt by the writers that the cut spared.
            task::sleep(AFTER_CUT).await;
            let _one_at_a_time = coordinator.digesting.lock().await;
            for (member, _) in own_volumes(&manifest).filter(|(_, stored)| stored.is_none()) {
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
            if let Err(why) = coordinator.hand_records(&manifest).await {
                tracing::warn!(%why, "its hosts do not keep its digests");
            }
        };
        task::spawn(reading.instrument(span));
    }

    /// Gives every host of a complete snapshot what it keeps of it, the digests among it.
    async fn hand_records(&self, manifest: &Manifest) -> Result<(), CoordinatorError> {
        let id = manifest.id;
        let (attempt, record) = self
            .with_catalogue(move |catalogue| Ok((catalogue.attempt_of(id)?, catalogue.record(id)?)))
            .await?;
        // One that is being deleted needs none.
        let Some(attempt) = attempt.filter(|_| record.complete) else { return Ok(()) };
        for host in &manifest.hosts {
            self.host(&host.host)?.replace_record(attempt, &record.part_of(&host.host)).await?;
        }
        Ok(())
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

/// Those of them that are Coeval's own: they have digests.
fn own_volumes(manifest: &Manifest) -> impl Iterator<Item = (Member, Option<String>)> {
    volumes(manifest).filter(|(member, _)| !is_external(manifest, member))
}

fn externals(manifest: &Manifest) -> impl Iterator<Item = Member> {
    volumes(manifest).map(|(member, _)| member).filter(|member| is_external(manifest, member))
}

fn is_external(manifest: &Manifest, member: &Member) -> bool {
    let host = manifest.hosts.iter().filter(|host| host.host == member.host);
    let mut volumes = host.flat_map(|host| &host.volumes);
    volumes.any(|volume| volume.name == member.volume && volume.external.is_some())
}
