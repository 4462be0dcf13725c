//! The server's API: a thin HTTP shell around the coordinator, and the time-sync server's report beside it.

pub mod dashboard;
mod export;
mod groups;
pub mod skew;
mod space;
mod volumes;

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::coordinator::{Coordinator, CoordinatorError};
use crate::http::{JsonBody, Refusal, Segments};
use crate::messages::{
    CreateEvent, CreateRequest, CreateVolumeOn, Forecast, HostVolumes, RestoreReport, RestoreRequest,
    Snapshot, SnapshotDetails, VerifyReport,
};
use crate::orders::VolumeDescription;
use crate::schedule::{Schedule, ScheduleStatus};

/// A request that names ten thousand volumes takes a megabyte.
const BODY_LIMIT: usize = 1024 * 1024;

/// Gives the time-sync server's report.
pub type Report = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

type Answer<T> = Result<Json<T>, Refusal>;
type Server = State<Arc<Coordinator>>;

impl From<CoordinatorError> for Refusal {
    fn from(error: CoordinatorError) -> Self {
        Refusal::new(error.status(), error.to_string())
    }
}

/// The routes of the server.
pub fn router(coordinator: Arc<Coordinator>, report: Report) -> Router {
    Router::new()
        .route("/api/v1/snapshots", get(list).post(create))
        .route("/api/v1/rehearsals", post(rehearse))
        .route("/api/v1/snapshots/{key}", get(show).delete(delete))
        .route("/api/v1/snapshots/{key}/verify", post(verify))
        .route("/api/v1/snapshots/{key}/restore", post(restore))
        .route("/api/v1/volumes", get(volumes).post(create_volume))
        .route("/api/v1/schedules", get(schedules).post(add_schedule))
        .route("/api/v1/schedules/{name}", axum::routing::delete(remove_schedule))
        .merge(volumes::routes())
        .merge(groups::router())
        .merge(export::router())
        .merge(space::router())
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(coordinator)
        .route("/api/v1/skew", get(async move || report_skew(report).await))
}

/// Works out every host's bounds: away from the thread that answers.
async fn report_skew(report: Report) -> Answer<serde_json::Value> {
    match tokio::task::spawn_blocking(move || report()).await {
        Ok(report) => Ok(Json(report)),
        Err(panic) => Err(Refusal::new(500, format!("the report failed: {panic}"))),
    }
}

/// Answers line by line. The snapshot is a task of its own: it goes on to its end if the caller goes away.
async fn create(State(coordinator): Server, JsonBody(request): JsonBody<CreateRequest>) -> Response {
    let (sender, receiver) = unbounded_channel();
    tokio::spawn(async move {
        // A send fails only if nobody listens any more.
        let progress = |progress| drop(sender.send(CreateEvent::Progress(progress)));
        let end = match coordinator.create(request, progress).await {
            Ok(manifest) => CreateEvent::Manifest(Box::new(manifest)),
            Err(error) => CreateEvent::Problem(Refusal::from(error).into_problem()),
        };
        drop(sender.send(end));
    });
    let lines = unfold(receiver, async |mut receiver: UnboundedReceiver<CreateEvent>| {
        let event = receiver.recv().await?;
        let line = serde_json::to_vec(&event).map(|mut line| {
            line.push(b'\n');
            Bytes::from(line)
        });
        Some((line, receiver))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

/// A task of its own: it goes on to its end if the caller goes away.
async fn rehearse(
    State(coordinator): Server,
    JsonBody(request): JsonBody<CreateRequest>,
) -> Answer<Forecast> {
    match tokio::spawn(async move { coordinator.rehearse(request).await }).await {
        Ok(result) => Ok(Json(result?)),
        Err(panic) => Err(Refusal::new(500, format!("the rehearsal failed: {panic}"))),
    }
}

async fn list(State(coordinator): Server) -> Answer<Vec<Snapshot>> {
    Ok(Json(coordinator.list().await?))
}

#[derive(Deserialize)]
struct ShowQuery {
    #[serde(default)]
    evidence: u8,
}

async fn show(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    query: Result<Query<ShowQuery>, QueryRejection>,
) -> Answer<SnapshotDetails> {
    let Query(query) =
        query.map_err(|rejection| Refusal::new(rejection.status().as_u16(), rejection.body_text()))?;
    Ok(Json(coordinator.show(&key, query.evidence != 0).await?))
}

async fn verify(State(coordinator): Server, Segments(key): Segments<String>) -> Answer<VerifyReport> {
    Ok(Json(coordinator.verify(&key).await?))
}

/// A task of its own: it goes on to its end if the caller goes away.
async fn restore(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    JsonBody(request): JsonBody<RestoreRequest>,
) -> Answer<RestoreReport> {
    match tokio::spawn(async move { coordinator.restore(&key, request).await }).await {
        Ok(result) => Ok(Json(result?)),
        Err(panic) => Err(Refusal::new(500, format!("the restore failed: {panic}"))),
    }
}

async fn delete(State(coordinator): Server, Segments(key): Segments<String>) -> Answer<()> {
    Ok(Json(coordinator.delete(&key).await?))
}

async fn volumes(State(coordinator): Server) -> Answer<Vec<HostVolumes>> {
    Ok(Json(coordinator.volumes().await?))
}

async fn create_volume(
    State(coordinator): Server,
    JsonBody(request): JsonBody<CreateVolumeOn>,
) -> Answer<VolumeDescription> {
    Ok(Json(coordinator.create_volume(request).await?))
}

async fn schedules(State(coordinator): Server) -> Answer<Vec<ScheduleStatus>> {
    Ok(Json(coordinator.schedules().await?))
}

async fn add_schedule(
    State(coordinator): Server,
    JsonBody(schedule): JsonBody<Schedule>,
) -> Answer<ScheduleStatus> {
    Ok(Json(coordinator.add_schedule(schedule).await?))
}

async fn remove_schedule(State(coordinator): Server, Segments(name): Segments<String>) -> Answer<()> {
    Ok(Json(coordinator.remove_schedule(&name).await?))
}
