//! The server's API, as the command line uses it.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use snapshot::http::{Connector, ControlClient, ControlError, HttpError, TlsFiles};
use snapshot::messages::{
    CreateEvent, CreateRequest, CreateVolumeOn, HostVolumes, Manifest, Progress, Snapshot, SnapshotDetails,
    VerifyReport,
};
use snapshot::orders::VolumeDescription;
use timesync::report::SkewReport;

/// For what the server knows by heart.
const QUICK: Duration = Duration::from_secs(30);
/// For a snapshot: attempts, seals and retries.
const SNAPSHOT: Duration = Duration::from_secs(600);
/// For work that reads or merges whole volumes.
const BULK: Duration = Duration::from_secs(3600);

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Api {
    client: ControlClient,
}

/// Why a call failed. Each is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The server's address or the certificates are of no use.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The server did not answer, or said no.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No snapshot was taken.
    #[error("no snapshot: {0}")]
    NoSnapshot(String),
}

#[expect(clippy::missing_errors_doc, reason = "each fails as ApiError says")]
impl Api {
    /// A client for the server at `url`. Plain HTTP beyond loopback only if `insecure`.
    pub fn new(url: &str, tls: Option<&TlsFiles>, insecure: bool) -> Result<Api, ApiError> {
        Ok(Api { client: Connector::new(tls, insecure)?.connect("the server", url)? })
    }

    /// The skew of all hosts.
    pub async fn skew(&self) -> Result<SkewReport, ApiError> {
        self.get(&["skew"], QUICK).await
    }

    /// All hosts' volumes.
    pub async fn volumes(&self) -> Result<Vec<HostVolumes>, ApiError> {
        self.get(&["volumes"], QUICK).await
    }

    /// Creates a volume.
    pub async fn create_volume(&self, order: &CreateVolumeOn) -> Result<VolumeDescription, ApiError> {
        self.post(&["volumes"], order, QUICK).await
    }

    /// Takes a snapshot; `progress` hears what happens.
    pub async fn create_snapshot(
        &self,
        order: &CreateRequest,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Manifest, ApiError> {
        let page = self.client.page(&["api", "v1", "snapshots"]);
        let mut lines = self.client.post_for_lines(page, order, SNAPSHOT).await?;
        while let Some(event) = lines.next().await? {
            match event {
                CreateEvent::Progress(step) => progress(&step),
                CreateEvent::Manifest(manifest) => return Ok(*manifest),
                CreateEvent::Problem(problem) => return Err(ApiError::NoSnapshot(problem.detail)),
            }
        }
        Err(ApiError::NoSnapshot("the server ended its answer too early; see its log".to_owned()))
    }

    /// All snapshots.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, ApiError> {
        self.get(&["snapshots"], QUICK).await
    }

    /// One snapshot, by name or id.
    pub async fn snapshot(&self, name: &str) -> Result<SnapshotDetails, ApiError> {
        self.get(&["snapshots", name], QUICK).await
    }

    /// Checks a snapshot again.
    pub async fn verify_snapshot(&self, name: &str) -> Result<VerifyReport, ApiError> {
        self.post(&["snapshots", name, "verify"], &(), BULK).await
    }

    /// Deletes a snapshot.
    pub async fn delete_snapshot(&self, name: &str) -> Result<(), ApiError> {
        Ok(self.client.delete(self.page(&["snapshots", name]), BULK).await?)
    }
}

impl Api {
    fn page(&self, segments: &[&str]) -> reqwest::Url {
        self.client.page(&[&["api", "v1"], segments].concat())
    }

    async fn get<T: DeserializeOwned>(&self, page: &[&str], limit: Duration) -> Result<T, ApiError> {
        Ok(self.client.get(self.page(page), limit).await?)
    }

    async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        page: &[&str],
        body: &B,
        limit: Duration,
    ) -> Result<T, ApiError> {
        Ok(self.client.post(self.page(page), body, limit).await?)
    }
}
