//! Labels and saved groups.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Server};
use crate::coordinator::Coordinator;
use crate::groups::{Group, GroupStatus, LabelChange, Labels};
use crate::http::{JsonBody, Segments};
use crate::messages::Member;

pub(super) fn routes() -> OpenApiRouter<Arc<Coordinator>> {
    OpenApiRouter::new()
        .routes(routes!(list_groups, add_group))
        .routes(routes!(show_group, remove_group))
        .routes(routes!(label_volume))
}

/// All saved groups, by name.
#[utoipa::path(get, path = "/api/v1/groups", tag = "groups",
    responses((status = 200, description = "The groups", body = Vec<Group>)))]
async fn list_groups(State(coordinator): Server) -> Answer<Vec<Group>> {
    Ok(Json(coordinator.groups().await?))
}

/// Saves a group.
#[utoipa::path(post, path = "/api/v1/groups", tag = "groups", request_body = Group,
    responses((status = 200, description = "It is saved", body = GroupStatus)))]
async fn add_group(State(coordinator): Server, JsonBody(group): JsonBody<Group>) -> Answer<GroupStatus> {
    Ok(Json(coordinator.add_group(group).await?))
}

/// A group and what it means now.
#[utoipa::path(get, path = "/api/v1/groups/{name}", tag = "groups",
    params(("name" = String, Path, description = "The group's name")),
    responses((status = 200, description = "The group", body = GroupStatus)))]
async fn show_group(State(coordinator): Server, Segments(name): Segments<String>) -> Answer<GroupStatus> {
    Ok(Json(coordinator.group(&name).await?))
}

/// Forgets a group; its volumes and their snapshots stay.
#[utoipa::path(delete, path = "/api/v1/groups/{name}", tag = "groups",
    params(("name" = String, Path, description = "The group's name")),
    responses((status = 200, description = "It is forgotten")))]
async fn remove_group(State(coordinator): Server, Segments(name): Segments<String>) -> Answer<()> {
    Ok(Json(coordinator.remove_group(&name).await?))
}

/// Changes a volume's labels: sets those that are named, and removes those that are `null`.
#[utoipa::path(post, path = "/api/v1/volumes/{host}/{volume}/labels", tag = "groups",
    params(
        ("host" = String, Path, description = "The host"),
        ("volume" = String, Path, description = "The volume's name on it"),
    ),
    request_body = BTreeMap<String, Option<String>>,
    responses((status = 200, description = "What the volume has now", body = BTreeMap<String, String>)))]
async fn label_volume(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    JsonBody(change): JsonBody<LabelChange>,
) -> Answer<Labels> {
    Ok(Json(coordinator.label_volume(Member { host, volume }, change).await?))
}
