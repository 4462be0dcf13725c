//! The API of volumes as wholes. What changes something is a task of its own: it goes on to its end if the caller goes
//! away.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::routing::{delete, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::{Answer, Server};
use crate::coordinator::{Coordinator, CoordinatorError};
use crate::http::{JsonBody, Refusal, Segments};
use crate::messages::Member;
use crate::messages::volumes::{CloneReport, CloneRequest};
use crate::orders::VolumeDescription;
use crate::orders::volumes::{ImportOrder, ResizeOrder};

pub(super) fn routes() -> Router<Arc<Coordinator>> {
    Router::new()
        .route("/api/v1/snapshots/{key}/clone", post(clone_snapshot))
        .route("/api/v1/volumes/{host}/{volume}", delete(delete_volume))
        .route("/api/v1/volumes/{host}/{volume}/resize", post(resize_volume))
        .route("/api/v1/volumes/{host}/{volume}/import", post(import_volume))
}

async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, CoordinatorError>> + Send + 'static,
) -> Answer<T> {
    match tokio::spawn(work).await {
        Ok(result) => Ok(Json(result?)),
        Err(panic) => Err(Refusal::new(500, format!("the server failed at this: {panic}"))),
    }
}

async fn clone_snapshot(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    JsonBody(request): JsonBody<CloneRequest>,
) -> Answer<CloneReport> {
    to_its_end(async move { coordinator.clone_snapshot(&key, request).await }).await
}

#[derive(Deserialize)]
struct DeleteQuery {
    #[serde(default)]
    with_snapshots: bool,
}

async fn delete_volume(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    Query(query): Query<DeleteQuery>,
) -> Answer<()> {
    let member = Member { host, volume };
    to_its_end(async move { coordinator.delete_volume(&member, query.with_snapshots).await }).await
}

async fn resize_volume(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    JsonBody(order): JsonBody<ResizeOrder>,
) -> Answer<VolumeDescription> {
    let member = Member { host, volume };
    to_its_end(async move { coordinator.resize_volume(&member, order).await }).await
}

async fn import_volume(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    JsonBody(order): JsonBody<ImportOrder>,
) -> Answer<VolumeDescription> {
    let member = Member { host, volume };
    to_its_end(async move { coordinator.import_volume(&member, order).await }).await
}
