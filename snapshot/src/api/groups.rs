//! Labels and saved groups.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};

use super::{Answer, Server};
use crate::coordinator::Coordinator;
use crate::groups::{Group, GroupStatus, LabelChange, Labels};
use crate::http::{JsonBody, Segments};
use crate::messages::Member;

pub(super) fn router() -> Router<Arc<Coordinator>> {
    Router::new()
        .route("/api/v1/groups", get(groups).post(add))
        .route("/api/v1/groups/{name}", get(show).delete(remove))
        .route("/api/v1/volumes/{host}/{volume}/labels", post(label))
}

async fn groups(State(coordinator): Server) -> Answer<Vec<Group>> {
    Ok(Json(coordinator.groups().await?))
}

async fn add(State(coordinator): Server, JsonBody(group): JsonBody<Group>) -> Answer<GroupStatus> {
    Ok(Json(coordinator.add_group(group).await?))
}

async fn show(State(coordinator): Server, Segments(name): Segments<String>) -> Answer<GroupStatus> {
    Ok(Json(coordinator.group(&name).await?))
}

async fn remove(State(coordinator): Server, Segments(name): Segments<String>) -> Answer<()> {
    Ok(Json(coordinator.remove_group(&name).await?))
}

async fn label(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    JsonBody(change): JsonBody<LabelChange>,
) -> Answer<Labels> {
    Ok(Json(coordinator.label_volume(Member { host, volume }, change).await?))
}
