//! The API of schedules.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Server};
use crate::coordinator::Coordinator;
use crate::http::{JsonBody, Segments};
use crate::schedule::{Schedule, ScheduleStatus};

pub(super) fn routes() -> OpenApiRouter<Arc<Coordinator>> {
    OpenApiRouter::new().routes(routes!(list_schedules, add_schedule)).routes(routes!(remove_schedule))
}

/// All schedules, by name, and how they do.
#[utoipa::path(get, path = "/api/v1/schedules", tag = "schedules",
    responses((status = 200, description = "The schedules", body = Vec<ScheduleStatus>)))]
async fn list_schedules(State(coordinator): Server) -> Answer<Vec<ScheduleStatus>> {
    Ok(Json(coordinator.schedules().await?))
}

/// Stores a schedule.
#[utoipa::path(post, path = "/api/v1/schedules", tag = "schedules", request_body = Schedule,
    responses((status = 200, description = "It is stored", body = ScheduleStatus)))]
async fn add_schedule(
    State(coordinator): Server,
    JsonBody(schedule): JsonBody<Schedule>,
) -> Answer<ScheduleStatus> {
    Ok(Json(coordinator.add_schedule(schedule).await?))
}

/// Forgets a schedule; its snapshots stay.
#[utoipa::path(delete, path = "/api/v1/schedules/{name}", tag = "schedules",
    params(("name" = String, Path, description = "The schedule's name")),
    responses((status = 200, description = "It is forgotten")))]
async fn remove_schedule(State(coordinator): Server, Segments(name): Segments<String>) -> Answer<()> {
    Ok(Json(coordinator.remove_schedule(&name).await?))
}
