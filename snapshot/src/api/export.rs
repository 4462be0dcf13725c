//! What an export needs to know: for operators only, as it is the way to all data.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, Server};
use crate::coordinator::Coordinator;
use crate::http::{JsonBody, Lines, Refusal, Segments};
use crate::messages::{ExportRequest, ExportSource};

pub(super) fn routes() -> OpenApiRouter<Arc<Coordinator>> {
    OpenApiRouter::new().routes(routes!(export_source)).routes(routes!(export_extents))
}

/// Where a volume of a snapshot is read.
#[utoipa::path(post, path = "/api/v1/snapshots/{key}/export", tag = "snapshots",
    params(("key" = String, Path, description = "The snapshot's id or name")),
    request_body = ExportRequest,
    responses((status = 200, description = "Its NBD export, and where", body = ExportSource)))]
async fn export_source(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    JsonBody(request): JsonBody<ExportRequest>,
) -> Answer<ExportSource> {
    Ok(Json(coordinator.export_source(&key, &request).await?))
}

/// What a volume of a snapshot holds, or what changed in it: an `Extent` a line, in order and without gaps.
#[utoipa::path(post, path = "/api/v1/snapshots/{key}/extents", tag = "snapshots",
    params(("key" = String, Path, description = "The snapshot's id or name")),
    request_body = ExportRequest,
    responses((status = 200, description = "Extents, one a line", content_type = "application/x-ndjson",
        body = String)))]
async fn export_extents(
    State(coordinator): Server,
    Segments(key): Segments<String>,
    JsonBody(request): JsonBody<ExportRequest>,
) -> Result<Response, Refusal> {
    // Passes the host's answer on as it comes.
    let lines = coordinator.extents(&key, &request).await?;
    let bytes = unfold(lines, async |mut lines: Lines| Some((lines.chunk().await.transpose()?, lines)));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(bytes)).into_response())
}
