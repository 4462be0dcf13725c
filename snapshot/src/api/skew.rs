//! The pages about the clocks: the report, its history, and recordings of exchanges.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::{Deserialize, Serialize};
use timesync::history::{COARSE_SPAN, Track};
use timesync::recording::RecordError;
use timesync::report::Report;
use timesync::server::TimeServer;
use timesync::time::Nanos;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Answer, dashboard};
use crate::history::{HistoryError, Keeper};
use crate::http::{JsonBody, Parameters, Refusal};

/// Lines that may wait for the network.
const LINES: usize = 1024;

/// What is to be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecordRequest {
    /// These hosts; none: all.
    pub hosts: Vec<String>,
    /// For so long, in ms; 0 ..= a week.
    #[schema(minimum = 0, maximum = 604_800_000)]
    pub duration_ms: i64,
}

#[derive(Clone)]
struct Pages {
    time: Arc<TimeServer>,
    history: Arc<Keeper>,
}

/// The routes about the clocks.
pub fn routes(time: Arc<TimeServer>, history: Arc<Keeper>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(skew))
        .routes(routes!(skew_history))
        .routes(routes!(record_skew))
        .with_state(Pages { time, history: Arc::clone(&history) })
        .merge(dashboard::clocks(history))
}

/// What is known of all hosts' clocks.
#[utoipa::path(get, path = "/api/v1/skew", tag = "clocks",
    responses((status = 200, description = "The report", body = Report)))]
async fn skew(State(pages): State<Pages>) -> Answer<Report> {
    // Works out every host's bounds: away from the thread that answers.
    match tokio::task::spawn_blocking(move || pages.time.report()).await {
        Ok(report) => Ok(Json(report)),
        Err(panic) => Err(Refusal::new(500, format!("the report failed: {panic}"))),
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct HistoryQuery {
    /// The last so many ms; up to a week.
    #[param(minimum = 0, maximum = 604_800_000)]
    span_ms: i64,
    /// This host; otherwise all.
    host: Option<String>,
}

/// The bounds of one host, or of all, over time.
#[utoipa::path(get, path = "/api/v1/skew/history", tag = "clocks", params(HistoryQuery),
    responses((status = 200, description = "A track of each host", body = Vec<Track>)))]
async fn skew_history(
    State(pages): State<Pages>,
    Parameters(query): Parameters<HistoryQuery>,
) -> Answer<Vec<Track>> {
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

/// Records exchanges, line by line, until the time is over or nobody listens any more. A last line `problem` says why it
/// ended early.
#[utoipa::path(post, path = "/api/v1/skew/recording", tag = "clocks", request_body = RecordRequest,
    responses((status = 200, description = "The recording, as it is made", content_type = "application/x-ndjson",
        body = String)))]
async fn record_skew(
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
