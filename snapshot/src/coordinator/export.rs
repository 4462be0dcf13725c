//! Where an export of a snapshot is read from, and what it holds.

use std::sync::Arc;

use super::library::volumes;
use super::{Coordinator, CoordinatorError};
use crate::http::Lines;
use crate::messages::{ExportRequest, ExportSource, Manifest, Member, SnapshotState};
use crate::remote::RemoteHost;

#[expect(clippy::missing_errors_doc, reason = "each fails as CoordinatorError says")]
impl Coordinator {
    /// Where a volume of a snapshot is read.
    pub async fn export_source(
        &self,
        key: &str,
        request: &ExportRequest,
    ) -> Result<ExportSource, CoordinatorError> {
        let (host, manifest, since) = self.find_member(key, request).await?;
        let description = host.describe().await?;
        let Member { volume, .. } = &request.volume;
        let digest = volumes(&manifest).find(|(member, _)| *member == request.volume);
        Ok(ExportSource {
            snapshot: manifest.name.clone(),
            since,
            export: format!("{volume}@{}", manifest.name),
            nbd: description.nbd,
            boot: description.host.boot,
            digest: digest.and_then(|(_, digest)| digest),
        })
    }

    /// Its extents, as the host sends them.
    pub async fn extents(&self, key: &str, request: &ExportRequest) -> Result<Lines, CoordinatorError> {
        let (host, manifest, since) = self.find_member(key, request).await?;
        Ok(host.extents(&request.volume.volume, &manifest.name, since.as_deref()).await?)
    }

    /// The host, the snapshot, and the name of the older one.
    async fn find_member(
        &self,
        key: &str,
        request: &ExportRequest,
    ) -> Result<(&Arc<RemoteHost>, Manifest, Option<String>), CoordinatorError> {
        let newer = self.find_with(key, &request.volume).await?;
        let older = match &request.since {
            None => None,
            Some(key) => Some(self.find_with(key, &request.volume).await?.name),
        };
        Ok((self.host(&request.volume.host)?, newer, older))
    }

    async fn find_with(&self, key: &str, member: &Member) -> Result<Manifest, CoordinatorError> {
        let snapshot = self.show(key, false).await?.snapshot;
        let is_there = matches!(snapshot.state, SnapshotState::Complete | SnapshotState::Inconsistent);
        let manifest = snapshot.manifest.filter(|_| is_there).ok_or_else(|| {
            CoordinatorError::Conflict(format!(
                "snapshot {} cannot be exported: it is not complete; `coeval snapshot show` tells why",
                snapshot.name
            ))
        })?;
        if volumes(&manifest).all(|(other, _)| other != *member) {
            return Err(CoordinatorError::Unknown(format!(
                "snapshot {} has no volume {member}",
                manifest.name
            )));
        }
        Ok(manifest)
    }
}
