//! The routes of a host's volumes as wholes.

use std::sync::Arc;

use axum::Router;
use axum::extract::Query;
use axum::extract::State;
use axum::routing::{delete, post};
use serde::Deserialize;

use super::{Answer, Host, blocking};
use crate::host::HostService;
use crate::http::{JsonBody, Segments};
use crate::orders::VolumeDescription;
use crate::orders::volumes::{CloneOrder, ImportOrder, ResizeOrder};

pub(super) fn routes() -> Router<Arc<HostService>> {
    Router::new()
        .route("/v1/volumes/{volume}", delete(delete_volume))
        .route("/v1/volumes/{volume}/clone", post(clone_volume))
        .route("/v1/volumes/{volume}/resize", post(resize_volume))
        .route("/v1/volumes/{volume}/import", post(import_volume))
}

#[derive(Deserialize)]
struct DeleteQuery {
    #[serde(default)]
    with_snapshots: bool,
}

async fn delete_volume(
    State(host): Host,
    Segments(volume): Segments<String>,
    Query(query): Query<DeleteQuery>,
) -> Answer<()> {
    blocking(host, move |host| host.delete_volume(&volume, query.with_snapshots)).await
}

async fn clone_volume(
    State(host): Host,
    Segments(volume): Segments<String>,
    JsonBody(order): JsonBody<CloneOrder>,
) -> Answer<VolumeDescription> {
    blocking(host, move |host| host.clone_volume(&volume, &order)).await
}

async fn resize_volume(
    State(host): Host,
    Segments(volume): Segments<String>,
    JsonBody(order): JsonBody<ResizeOrder>,
) -> Answer<VolumeDescription> {
    blocking(host, move |host| host.resize_volume(&volume, order)).await
}

async fn import_volume(
    State(host): Host,
    Segments(volume): Segments<String>,
    JsonBody(order): JsonBody<ImportOrder>,
) -> Answer<VolumeDescription> {
    blocking(host, move |host| host.import_volume(&volume, &order)).await
}
