//! The routes of a host's volumes as wholes.

use std::sync::Arc;

use axum::extract::State;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Host, blocking};
use crate::host::HostService;
use crate::http::{JsonBody, Parameters, Segments};
use crate::orders::VolumeDescription;
use crate::orders::volumes::{CloneOrder, ImportOrder, ResizeOrder};

pub(super) fn routes() -> OpenApiRouter<Arc<HostService>> {
    OpenApiRouter::new()
        .routes(routes!(delete_volume))
        .routes(routes!(clone_volume))
        .routes(routes!(resize_volume))
        .routes(routes!(import_volume))
}

#[derive(Deserialize)]
struct DeleteQuery {
    #[serde(default)]
    with_snapshots: bool,
}

#[utoipa::path(delete, path = "/v1/volumes/{volume}")]
async fn delete_volume(
    State(host): Host,
    Segments(volume): Segments<String>,
    Parameters(query): Parameters<DeleteQuery>,
) -> Answer<()> {
    blocking(host, move |host| host.delete_volume(&volume, query.with_snapshots)).await
}

#[utoipa::path(post, path = "/v1/volumes/{volume}/clone")]
async fn clone_volume(
    State(host): Host,
    Segments(volume): Segments<String>,
    JsonBody(order): JsonBody<CloneOrder>,
) -> Answer<VolumeDescription> {
    blocking(host, move |host| host.clone_volume(&volume, &order)).await
}

#[utoipa::path(post, path = "/v1/volumes/{volume}/resize")]
async fn resize_volume(
    State(host): Host,
    Segments(volume): Segments<String>,
    JsonBody(order): JsonBody<ResizeOrder>,
) -> Answer<VolumeDescription> {
    blocking(host, move |host| host.resize_volume(&volume, order)).await
}

#[utoipa::path(post, path = "/v1/volumes/{volume}/import")]
async fn import_volume(
    State(host): Host,
    Segments(volume): Segments<String>,
    JsonBody(order): JsonBody<ImportOrder>,
) -> Answer<VolumeDescription> {
    blocking(host, move |host| host.import_volume(&volume, &order)).await
}
