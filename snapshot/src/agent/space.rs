//! What snapshots take on a host, and what they may.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};

use super::{Answer, Host, blocking};
use crate::host::HostService;
use crate::http::{JsonBody, Segments};
use crate::orders::{Quota, VolumeUsage};

pub(super) fn router() -> Router<Arc<HostService>> {
    Router::new().route("/v1/usage", get(usage)).route("/v1/volumes/{volume}/quota", post(set_quota))
}

async fn usage(State(host): Host) -> Answer<BTreeMap<String, VolumeUsage>> {
    blocking(host, |host| Ok(host.usage())).await
}

async fn set_quota(
    State(host): Host,
    Segments(volume): Segments<String>,
    JsonBody(quota): JsonBody<Option<Quota>>,
) -> Answer<()> {
    blocking(host, move |host| host.set_quota(&volume, quota)).await
}
