//! The pages about the clocks: their history, and recordings of their exchanges. The report itself is in [`super`].

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use timesync::history::{COARSE_SPAN, Track};
use timesync::recording::RecordError;
use timesync::server::TimeServer;
use timesync::time::Nanos;

use crate::history::{HistoryError, Keeper};
use crate::http::{JsonBody, Refusal};

/// Lines that may wait for the network.
const LINES: usize = 1024;

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordRequest {
    /// These hosts; none: all.
    pub hosts: Vec<String>,
    /// For so long, in ms; 0 ..= a week.
    pub duration_ms: i64,
}

#[derive(Clone)]
struct Pages {
    time: Arc<TimeServer>,
    history: Arc<Keeper>,
}

/// The routes about the clocks.
pub fn router(time: Arc<TimeServer>, history: Arc<Keeper>) -> Router {
    Router::new()
        .route("/api/v1/skew/history", get(tracks))
        .route("/api/v1/skew/recording", post(record))
        .with_state(Pages { time, history })
}

#[derive(Deserialize)]
struct HistoryQuery {
    span_ms: i64,
    host: Option<String>,
}

async fn tracks(
    State(pages): State<Pages>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Result<Json<Vec<Track>>, Refusal> {
    let Query(query) =
        query.map_err(|rejection| Refusal::new(rejection.status().as_u16(), rejection.body_text()))?;
    let span = span(query.span_ms)?;
    let tracks = move || pages.history.tracks(span, query.host.as_deref());
    match tokio::task::spawn_blocking(tracks).await {
        Ok(Ok(tracks)) => Ok(Json(tracks)),
        Ok(Err(error @ HistoryError::Unknown(_))) => Err(Refusal::new(404, error.to_string())),
        Ok(Err(error)) => Err(Refusal::new(500, error.to_string())),
        Err(panic) => Err(Refusal::new(500, format!("the history failed: {panic}"))),
    }
}

/// So far back, if the history reaches as far.
pub(super) fn span(ms: i64) -> Result<Nanos, Refusal> {
    let span = Nanos::from_millis(ms);
    if (Nanos::ZERO..=COARSE_SPAN).contains(&span) {
        Ok(span)
    } else {
        Err(Refusal::new(400, format!("{ms} ms is not between 0 and a week")))
    }
}

/// Answers line by line, until the time is over or nobody listens any more. A last line `problem` says why it ended early.
async fn record(
    State(pages): State<Pages>,
    JsonBody(request): JsonBody<RecordRequest>,
) -> Result<Response, Refusal> {
    let duration = span(request.duration_ms)?;
    let (sender, receiver) = tokio::sync::mpsc::channel(LINES);
    tokio::task::spawn_blocking(move || {
        let recorded = pages.time.record(&request.hosts, duration, |line| sender.blocking_send(line).is_ok());
        if let Err(error) = recorded {
            let status = match error {
                RecordError::Unknown(_) => 404,
                RecordError::Busy => 409,
                RecordError::Overflow => 503,
            };
            let problem = Refusal::new(status, error.to_string()).into_problem();
            // It fails only if nobody listens any more.
            drop(sender.blocking_send(serde_json::json!({ "problem": problem })));
        }
    });
    let lines = unfold(receiver, async |mut receiver: tokio::sync::mpsc::Receiver<serde_json::Value>| {
        let line = format!("{}\n", receiver.recv().await?);
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), receiver))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}
