//! What snapshots take on a host, and what they may.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Host, blocking};
use crate::host::HostService;
use crate::http::{JsonBody, Segments};
use crate::orders::{Quota, VolumeUsage};

pub(super) fn routes() -> OpenApiRouter<Arc<HostService>> {
    OpenApiRouter::new().routes(routes!(usage)).routes(routes!(set_quota))
}

#[utoipa::path(get, path = "/v1/usage")]
async fn usage(State(host): Host) -> Answer<BTreeMap<String, VolumeUsage>> {
    blocking(host, |host| Ok(host.usage())).await
}

#[utoipa::path(post, path = "/v1/volumes/{volume}/quota")]
async fn set_quota(
    State(host): Host,
    Segments(volume): Segments<String>,
    JsonBody(quota): JsonBody<Option<Quota>>,
) -> Answer<()> {
    blocking(host, move |host| host.set_quota(&volume, quota)).await
}
