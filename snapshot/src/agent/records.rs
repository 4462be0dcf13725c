//! What the host keeps of snapshots for the coordinator.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Host, blocking};
use crate::host::HostService;
use crate::http::{JsonBody, Segments};
use crate::orders::{AttemptId, CommitOrder};

/// The certificate of ten thousand hosts, with its evidence.
const RECORD_LIMIT: usize = 32 * 1024 * 1024;

pub(super) fn routes() -> OpenApiRouter<Arc<HostService>> {
    OpenApiRouter::new()
        .routes(routes!(commit))
        .routes(routes!(records))
        .routes(routes!(show_record, replace_record))
        .layer(DefaultBodyLimit::max(RECORD_LIMIT))
}

#[utoipa::path(post, path = "/v1/cuts/{attempt}/commit")]
async fn commit(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<CommitOrder>,
) -> Answer<()> {
    blocking(host, move |host| host.commit(attempt, &order)).await
}

#[utoipa::path(get, path = "/v1/records")]
async fn records(State(host): Host) -> Answer<Vec<AttemptId>> {
    blocking(host, |host| host.records()).await
}

#[utoipa::path(get, path = "/v1/records/{attempt}")]
async fn show_record(State(host): Host, Segments(attempt): Segments<AttemptId>) -> Answer<serde_json::Value> {
    blocking(host, move |host| host.record(attempt)).await
}

#[utoipa::path(post, path = "/v1/records/{attempt}")]
async fn replace_record(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(record): JsonBody<serde_json::Value>,
) -> Answer<()> {
    blocking(host, move |host| host.replace_record(attempt, &record)).await
}
