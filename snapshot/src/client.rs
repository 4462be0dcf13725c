//! The typed client of [`crate::api`], for the command line.

mod groups;
mod volumes;

use std::time::Duration;

use timesync::history::Track;
use timesync::time::Nanos;

use crate::api::skew::RecordRequest;
use crate::http::{Connector, ControlClient, ControlError, HttpError};
use crate::messages::{
    CreateRequest, CreateVolumeOn, ExportRequest, ExportSource, Forecast, HostVolumes, Manifest, Member,
    Progress, RestoreReport, RestoreRequest, Snapshot, SnapshotDetails, Usage, VerifyReport,
};
use crate::orders::{Extent, Quota, VolumeDescription};
use crate::schedule::{Schedule, ScheduleStatus};

/// For answers that the server has at hand.
const SOON: Duration = Duration::from_secs(10);
/// For what waits for hosts: attempts, merges, digests of whole volumes.
const LONG: Duration = Duration::from_secs(2 * 3600);

/// Talks to one server.
#[derive(Clone, Debug)]
pub struct ServerClient {
    client: ControlClient,
}

#[expect(clippy::missing_errors_doc, reason = "each fails as ControlError says")]
impl ServerClient {
    /// A client of the server at `url`.
    pub fn new(connector: &Connector, url: &str) -> Result<Self, HttpError> {
        Ok(ServerClient { client: connector.connect("the server", url)? })
    }

    /// Takes a snapshot; `progress` hears of every step. The server goes on if this is cut short.
    pub async fn create(
        &self,
        request: &CreateRequest,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Manifest, ControlError> {
        let page = self.client.page(&["api", "v1", "snapshots"]);
        let mut events = self.client.post_for_events(page, request, LONG).await?;
        while let Some((name, data)) = events.next_event().await? {
            match name.as_str() {
                "progress" => progress(&self.client.parse(&data)?),
                "result" => return self.client.parse(&data),
                "problem" => return Err(self.client.refused(self.client.parse(&data)?)),
                // Of a later version.
                _ => {}
            }
        }
        Err(self
            .client
            .malformed("it ended without a result; `coeval snapshot list` shows what became of it"))
    }

    /// Rehearses a snapshot: everything but the cut.
    pub async fn rehearse(&self, request: &CreateRequest) -> Result<Forecast, ControlError> {
        self.client.post(self.client.page(&["api", "v1", "rehearsals"]), request, LONG).await
    }

    /// All snapshots, oldest first.
    pub async fn list(&self) -> Result<Vec<Snapshot>, ControlError> {
        self.client.get(self.client.page(&["api", "v1", "snapshots"]), SOON).await
    }

    /// One snapshot, by id or name.
    pub async fn show(&self, key: &str, with_evidence: bool) -> Result<SnapshotDetails, ControlError> {
        let mut page = self.client.page(&["api", "v1", "snapshots", key]);
        if with_evidence {
            page.set_query(Some("evidence=1"));
        }
        self.client.get(page, SOON).await
    }

    /// Computes a snapshot's verdict and digests again.
    pub async fn verify(&self, key: &str) -> Result<VerifyReport, ControlError> {
        self.client.post(self.client.page(&["api", "v1", "snapshots", key, "verify"]), &(), LONG).await
    }

    /// Puts a snapshot's volumes back to it. The server goes on if this is cut short.
    pub async fn restore(&self, key: &str, request: &RestoreRequest) -> Result<RestoreReport, ControlError> {
        self.client.post(self.client.page(&["api", "v1", "snapshots", key, "restore"]), request, LONG).await
    }

    /// Where a volume of a snapshot is read.
    pub async fn export_source(
        &self,
        key: &str,
        request: &ExportRequest,
    ) -> Result<ExportSource, ControlError> {
        self.client.post(self.client.page(&["api", "v1", "snapshots", key, "export"]), request, SOON).await
    }

    /// What a volume of a snapshot holds, in order and without gaps.
    pub async fn extents(&self, key: &str, request: &ExportRequest) -> Result<Vec<Extent>, ControlError> {
        let page = self.client.page(&["api", "v1", "snapshots", key, "extents"]);
        let mut lines = self.client.post_for_lines(page, request, LONG).await?;
        let mut extents = Vec::new();
        while let Some(extent) = lines.next().await? {
            extents.push(extent);
        }
        Ok(extents)
    }

    /// Deletes a snapshot on every host.
    pub async fn delete(&self, key: &str) -> Result<(), ControlError> {
        self.client.delete(self.client.page(&["api", "v1", "snapshots", key]), LONG).await
    }

    /// Every host's volumes.
    pub async fn volumes(&self) -> Result<Vec<HostVolumes>, ControlError> {
        self.client.get(self.client.page(&["api", "v1", "volumes"]), SOON).await
    }

    /// What the snapshots of each volume take.
    pub async fn usage(&self) -> Result<Usage, ControlError> {
        self.client.get(self.client.page(&["api", "v1", "usage"]), LONG).await
    }

    /// Limits what the snapshots of a volume may hold; none: no limit.
    pub async fn set_quota(&self, volume: &Member, quota: Option<Quota>) -> Result<(), ControlError> {
        let page = self.client.page(&["api", "v1", "volumes", &volume.host, &volume.volume, "quota"]);
        self.client.post(page, &quota, LONG).await
    }

    /// Creates a volume on a host.
    pub async fn create_volume(&self, request: &CreateVolumeOn) -> Result<VolumeDescription, ControlError> {
        self.client.post(self.client.page(&["api", "v1", "volumes"]), request, LONG).await
    }

    /// All schedules, by name.
    pub async fn schedules(&self) -> Result<Vec<ScheduleStatus>, ControlError> {
        self.client.get(self.client.page(&["api", "v1", "schedules"]), SOON).await
    }

    /// Stores a schedule.
    pub async fn add_schedule(&self, schedule: &Schedule) -> Result<ScheduleStatus, ControlError> {
        self.client.post(self.client.page(&["api", "v1", "schedules"]), schedule, SOON).await
    }

    /// Forgets a schedule.
    pub async fn remove_schedule(&self, name: &str) -> Result<(), ControlError> {
        self.client.delete(self.client.page(&["api", "v1", "schedules", name]), SOON).await
    }

    /// The time-sync server's report.
    pub async fn skew(&self) -> Result<serde_json::Value, ControlError> {
        self.client.get(self.client.page(&["api", "v1", "skew"]), SOON).await
    }

    /// The bounds of one host, or of all, over the last `span`.
    pub async fn skew_history(&self, span: Nanos, host: Option<&str>) -> Result<Vec<Track>, ControlError> {
        let mut page = self.client.page(&["api", "v1", "skew", "history"]);
        page.query_pairs_mut().append_pair("span_ms", &(span.get() / 1_000_000).to_string());
        if let Some(host) = host {
            page.query_pairs_mut().append_pair("host", host);
        }
        self.client.get(page, LONG).await
    }

    /// Records exchanges; `each` gets every line, to be sealed, and says whether to go on.
    pub async fn skew_recording(
        &self,
        request: &RecordRequest,
        mut each: impl FnMut(serde_json::Value) -> bool,
    ) -> Result<(), ControlError> {
        let page = self.client.page(&["api", "v1", "skew", "recording"]);
        let limit = Duration::from_millis(request.duration_ms.unsigned_abs()) + LONG;
        let mut lines = self.client.post_for_lines(page, request, limit).await?;
        while let Some(mut line) = lines.next::<serde_json::Value>().await? {
            if let Some(problem) = line.get_mut("problem") {
                let problem = serde_json::from_value(problem.take());
                return Err(problem.map_or_else(
                    |why| self.client.malformed(&why.to_string()),
                    |problem| self.client.refused(problem),
                ));
            }
            if !each(line) {
                break;
            }
        }
        Ok(())
    }
}
