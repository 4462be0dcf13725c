//! What snapshots take, and what they may.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::{Answer, Server};
use crate::coordinator::Coordinator;
use crate::http::{JsonBody, Segments};
use crate::messages::{Member, Usage};
use crate::orders::Quota;

pub(super) fn router() -> Router<Arc<Coordinator>> {
    Router::new()
        .route("/api/v1/usage", get(usage))
        .route("/api/v1/volumes/{host}/{volume}/quota", post(set_quota))
}

async fn usage(State(coordinator): Server) -> Answer<Usage> {
    Ok(Json(coordinator.usage().await))
}

async fn set_quota(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    JsonBody(quota): JsonBody<Option<Quota>>,
) -> Answer<()> {
    Ok(Json(coordinator.set_quota(&Member { host, volume }, quota).await?))
}
