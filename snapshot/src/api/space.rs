//! What snapshots take, and what they may.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Server};
use crate::coordinator::Coordinator;
use crate::http::{JsonBody, Segments};
use crate::messages::Member;
use crate::orders::{Quota, VolumeUsage};

pub(super) fn routes() -> OpenApiRouter<Arc<Coordinator>> {
    OpenApiRouter::new().routes(routes!(usage)).routes(routes!(set_quota))
}

/// What the snapshots of each volume take: by host and volume, of the hosts that answer.
#[utoipa::path(get, path = "/api/v1/usage", tag = "volumes",
    responses((status = 200, description = "By host and volume", body = BTreeMap<String, BTreeMap<String, VolumeUsage>>)))]
async fn usage(State(coordinator): Server) -> Answer<BTreeMap<String, BTreeMap<String, VolumeUsage>>> {
    Ok(Json(coordinator.usage().await))
}

/// Limits what a volume's snapshots may hold; `null`: no limit.
#[utoipa::path(post, path = "/api/v1/volumes/{host}/{volume}/quota", tag = "volumes",
    params(
        ("host" = String, Path, description = "The host"),
        ("volume" = String, Path, description = "The volume's name on it"),
    ),
    request_body = Option<Quota>,
    responses((status = 200, description = "It is set")))]
async fn set_quota(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    JsonBody(quota): JsonBody<Option<Quota>>,
) -> Answer<()> {
    Ok(Json(coordinator.set_quota(&Member { host, volume }, quota).await?))
}
