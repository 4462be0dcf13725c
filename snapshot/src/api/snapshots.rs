//! The API of snapshots.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::long::{self, Accepted, Respond, ServerSentEvent};
use super::{Answer, Server};
use crate::coordinator::Coordinator;
use crate::http::{JsonBody, Parameters, Refusal, Segments};
use crate::messages::operations::{OperationEvent, OperationKind};
use crate::messages::volumes::{CloneReport, CloneRequest};
use crate::messages::{
    CreateRequest, Forecast, Manifest, RestoreReport, RestoreRequest, Snapshot, SnapshotDetails, VerifyReport,
};
use crate::operations::Running;

/// Letters of an idempotency key.
const LONGEST_KEY: usize = 255;

pub(super) fn routes() -> OpenApiRouter<Arc<Coordinator>> {
    OpenApiRouter::new()
        .routes(routes!(list_snapshots, create_snapshot))
        .routes(routes!(rehearse_snapshot))
        .routes(routes!(show_snapshot, delete_snapshot))
        .routes(routes!(verify_snapshot))
        .routes(routes!(restore_snapshot))
        .routes(routes!(clone_snapshot))
}

/// All snapshots, oldest first.
#[utoipa::path(get, path = "/api/v1/snapshots", tag = "snapshots",
    responses((status = 200, description = "The snapshots", body = Vec<Snapshot>)))]
async fn list_snapshots(State(coordinator): Server) -> Answer<Vec<Snapshot>> {
    Ok(Json(coordinator.list().await?))
}

/// The header `Idempotency-Key`, where there is one.
struct IdempotencyKey(Option<String>);

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let Some(value) = parts.headers.get("idempotency-key") else { return Ok(IdempotencyKey(None)) };
        let key = value.to_str().ok().filter(|key| (1..=LONGEST_KEY).contains(&key.len()));
        let key = key.ok_or_else(|| {
            Refusal::new(400, format!("an Idempotency-Key has 1 to {LONGEST_KEY} visible ASCII letters"))
        })?;
        Ok(IdempotencyKey(Some(key.to_owned())))
    }
}

/// Takes a snapshot. The operation's id is the snapshot's.
///
/// With an `Idempotency-Key`, a request that is repeated (within a week of its answer, and whether the server was
/// restarted since or not) takes no second snapshot: it is answered as the first was, or will be.
#[utoipa::path(post, path = "/api/v1/snapshots", tag = "snapshots",
    params(
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, description = "Of the caller's \
            choice, such as a UUID, for one request"),
        Respond,
    ),
    request_body = CreateRequest,
    responses(
        (status = 201, description = "It is taken, and certified", body = Manifest),
        (status = 200, description = "With `Accept: text/event-stream`: the operation's events",
            content_type = "text/event-stream", body = ServerSentEvent),
        Accepted,
    ))]
async fn create_snapshot(
    State(coordinator): Server,
    IdempotencyKey(key): IdempotencyKey,
    respond: Respond,
    JsonBody(request): JsonBody<CreateRequest>,
) -> Result<Response, Refusal> {
    let target = request.name.clone().unwrap_or_default();
    let id = Uuid::now_v7();
    let Some(key) = key else {
        return long::answer(start(&coordinator, id, target, None, request), respond, StatusCode::CREATED)
            .await;
    };
    // What was read of it, so that spaces and the order of members do not count.
    let text = serde_json::to_vec(&request).map_err(|why| Refusal::new(500, why.to_string()))?;
    let digest = blake3::hash(&text).to_hex().to_string();
    let stored = coordinator.claim(&key, &digest, id).await?;
    if stored.request != digest {
        let sentence =
            "this Idempotency-Key was used for another request; choose a new key for a new request";
        return Err(Refusal::new(422, sentence));
    }
    let id = stored.snapshot;
    let running = match coordinator.operations().find(id) {
        Some(running) => running,
        None => match coordinator.remembered(stored).await? {
            Some(end) => coordinator.operations().recall(id, OperationKind::CreateSnapshot, target, end),
            None => start(&coordinator, id, target, Some(key), request),
        },
    };
    long::answer(running, respond, StatusCode::CREATED).await
}

fn start(
    coordinator: &Arc<Coordinator>,
    id: Uuid,
    target: String,
    key: Option<String>,
    request: CreateRequest,
) -> Arc<Running> {
    coordinator.operations().start(id, OperationKind::CreateSnapshot, target, |running| {
        let coordinator = Arc::clone(coordinator);
        async move {
            let taken = coordinator.create_as(id, request, |progress| running.tell(progress)).await;
            let taken = taken.map_err(|error| Refusal::from(error).into_problem());
            if let Some(key) = key {
                let answer = match &taken {
                    Ok(manifest) => serde_json::to_value(manifest).map(OperationEvent::Result),
                    Err(problem) => Ok(OperationEvent::Problem(problem.clone())),
                };
                // Without it, a repeated request finds what became of the snapshot by its id.
                match answer {
                    Ok(answer) => coordinator.note_answer(key, answer).await,
                    Err(why) => {
                        tracing::warn!(snapshot = %id, %why, "the answer was not stored under its key")
                    }
                }
            }
            taken
        }
    })
}

/// Everything but the cut: what a snapshot would be like.
#[utoipa::path(post, path = "/api/v1/rehearsals", tag = "snapshots", request_body = CreateRequest,
    responses((status = 200, description = "What it would be like", body = Forecast)))]
async fn rehearse_snapshot(
    State(coordinator): Server,
    JsonBody(request): JsonBody<CreateRequest>,
) -> Answer<Forecast> {
    // A task of its own: it goes on to its end if the caller goes away.
    match tokio::spawn(async move { coordinator.rehearse(request).await }).await {
        Ok(result) => Ok(Json(result?)),
        Err(panic) => Err(Refusal::new(500, format!("the rehearsal failed: {panic}"))),
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ShowQuery {
    /// 1: with the evidence that the certificate was computed from.
    #[serde(default)]
    #[param(required = false)]
    evidence: u8,
}

/// One snapshot: its manifest, its story and, if asked for, its evidence.
#[utoipa::path(get, path = "/api/v1/snapshots/{key}", tag = "snapshots",
    params(("key" = String, Path, description = "Its id or name"), ShowQuery),
    responses((status = 200, description = "The snapshot", body = SnapshotDetails)))]
async fn show_snapshot(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    Parameters(query): Parameters<ShowQuery>,
) -> Answer<SnapshotDetails> {
    Ok(Json(coordinator.show(&key, query.evidence != 0).await?))
}

/// Computes a snapshot's verdict and digests again.
#[utoipa::path(post, path = "/api/v1/snapshots/{key}/verify", tag = "snapshots",
    params(("key" = String, Path, description = "Its id or name"), Respond),
    responses((status = 200, description = "What it is now", body = VerifyReport), Accepted))]
async fn verify_snapshot(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    respond: Respond,
) -> Result<Response, Refusal> {
    let what = (OperationKind::VerifySnapshot, key.clone());
    long::run(coordinator, respond, what, |coordinator, running| async move {
        coordinator.verify(&key, |progress| running.tell(progress)).await
    })
    .await
}

/// Puts a snapshot's volumes back to it, all or none.
#[utoipa::path(post, path = "/api/v1/snapshots/{key}/restore", tag = "snapshots",
    params(("key" = String, Path, description = "Its id or name"), Respond),
    request_body = RestoreRequest,
    responses((status = 200, description = "What was restored", body = RestoreReport), Accepted))]
async fn restore_snapshot(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    respond: Respond,
    JsonBody(request): JsonBody<RestoreRequest>,
) -> Result<Response, Refusal> {
    let what = (OperationKind::RestoreSnapshot, key.clone());
    long::run(
        coordinator,
        respond,
        what,
        |coordinator, _| async move { coordinator.restore(&key, request).await },
    )
    .await
}

/// Makes new volumes with the content of a snapshot.
#[utoipa::path(post, path = "/api/v1/snapshots/{key}/clone", tag = "snapshots",
    params(("key" = String, Path, description = "Its id or name"), Respond),
    request_body = CloneRequest,
    responses((status = 200, description = "What was cloned", body = CloneReport), Accepted))]
async fn clone_snapshot(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    respond: Respond,
    JsonBody(request): JsonBody<CloneRequest>,
) -> Result<Response, Refusal> {
    let what = (OperationKind::CloneSnapshot, key.clone());
    long::run(coordinator, respond, what, |coordinator, _| async move {
        coordinator.clone_snapshot(&key, request).await
    })
    .await
}

/// Deletes a snapshot on every host.
#[utoipa::path(delete, path = "/api/v1/snapshots/{key}", tag = "snapshots",
    params(("key" = String, Path, description = "Its id or name"), Respond),
    responses((status = 200, description = "It is gone"), Accepted))]
async fn delete_snapshot(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    respond: Respond,
) -> Result<Response, Refusal> {
    let what = (OperationKind::DeleteSnapshot, key.clone());
    long::run(coordinator, respond, what, |coordinator, _| async move { coordinator.delete(&key).await })
        .await
}
