//! What an export needs to know: for operators only, as it is the way to all data.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream::unfold;

use crate::coordinator::Coordinator;
use crate::http::{JsonBody, Lines, Refusal, Segments};
use crate::messages::{ExportRequest, ExportSource};

pub(super) fn router() -> Router<Arc<Coordinator>> {
    Router::new()
        .route("/api/v1/snapshots/{key}/export", post(export))
        .route("/api/v1/snapshots/{key}/extents", post(extents))
}

async fn export(
    State(coordinator): State<Arc<Coordinator>>,
    Segments(key): Segments<String>,
    JsonBody(request): JsonBody<ExportRequest>,
) -> Result<Json<ExportSource>, Refusal> {
    Ok(Json(coordinator.export_source(&key, &request).await?))
}

/// Passes the host's answer on as it comes.
async fn extents(
    State(coordinator): State<Arc<Coordinator>>,
    Segments(key): Segments<String>,
    JsonBody(request): JsonBody<ExportRequest>,
) -> Result<Response, Refusal> {
    let lines = coordinator.extents(&key, &request).await?;
    let bytes = unfold(lines, async |mut lines: Lines| Some((lines.chunk().await.transpose()?, lines)));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(bytes)).into_response())
}
