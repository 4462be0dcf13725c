//! What the host keeps of snapshots for the coordinator.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::{get, post};

use super::{Answer, Host, blocking};
use crate::host::HostService;
use crate::http::{JsonBody, Segments};
use crate::orders::{AttemptId, CommitOrder};

/// The certificate of ten thousand hosts, with its evidence.
const RECORD_LIMIT: usize = 32 * 1024 * 1024;

pub(super) fn router() -> Router<Arc<HostService>> {
    Router::new()
        .route("/v1/cuts/{attempt}/commit", post(commit))
        .route("/v1/records", get(list))
        .route("/v1/records/{attempt}", get(show).post(replace))
        .layer(DefaultBodyLimit::max(RECORD_LIMIT))
}

async fn commit(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<CommitOrder>,
) -> Answer<()> {
    blocking(host, move |host| host.commit(attempt, &order)).await
}

async fn list(State(host): Host) -> Answer<Vec<AttemptId>> {
    blocking(host, |host| host.records()).await
}

async fn show(State(host): Host, Segments(attempt): Segments<AttemptId>) -> Answer<serde_json::Value> {
    blocking(host, move |host| host.record(attempt)).await
}

async fn replace(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(record): JsonBody<serde_json::Value>,
) -> Answer<()> {
    blocking(host, move |host| host.replace_record(attempt, &record)).await
}
