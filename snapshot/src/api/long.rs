//! How long work is answered: when it is done, at once with where to look, or with its events as they come.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{Content, HeaderBuilder, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{Answer, Server};
use crate::coordinator::{Coordinator, CoordinatorError};
use crate::http::{Refusal, Segments};
use crate::messages::operations::{Operation, OperationEvent, OperationKind};
use crate::operations::Running;

const EVENT_STREAM: &str = "text/event-stream";

/// How whoever asks for long work wants to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Respond {
    /// When it is done.
    Wait,
    /// At once: `Prefer: respond-async` (RFC 7240).
    Later,
    /// With its events as they come: `Accept: text/event-stream`.
    Stream,
}

impl<S: Send + Sync> FromRequestParts<S> for Respond {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let says = |name: header::HeaderName, word: &str| {
            let values = parts.headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
            let mut words = values.flat_map(|value| value.split([',', ';']));
            words.any(|found| found.trim().eq_ignore_ascii_case(word))
        };
        Ok(if says(header::ACCEPT, EVENT_STREAM) {
            Respond::Stream
        } else if says(header::HeaderName::from_static("prefer"), "respond-async") {
            Respond::Later
        } else {
            Respond::Wait
        })
    }
}

impl IntoParams for Respond {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let description = "`respond-async`: answer at once with 202 and where the operation is. With `Accept: \
                           text/event-stream` instead, the answer is the operation's events as they come.";
        let parameter = ParameterBuilder::new()
            .name("Prefer")
            .parameter_in(ParameterIn::Header)
            .required(Required::False)
            .description(Some(description))
            .schema(Some(String::schema()))
            .build();
        vec![parameter]
    }
}

/// For a route's annotation: it is answered at once where that is preferred.
pub(super) struct Accepted;

impl IntoResponses for Accepted {
    fn responses() -> std::collections::BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name("Operation"))));
        let location = HeaderBuilder::new()
            .description(Some("Where the operation is: /api/v1/operations/{id}"))
            .schema(Some(String::schema()))
            .build();
        let response = ResponseBuilder::new()
            .description("Under way, as it was preferred")
            .content("application/json", content)
            .header("Location", location)
            .build();
        [("202".to_owned(), RefOr::T(response))].into()
    }
}

/// One event of a stream, as its lines say.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it only describes")]
pub(super) struct ServerSentEvent {
    /// Its number, from 0.
    id: String,
    /// `progress`, `result` or `problem`.
    event: String,
    /// JSON: a `Progress`, what the request answers with when it is waited for, or a `Problem`.
    data: String,
}

/// Does long work, and answers as it is wanted.
pub(super) async fn run<T, F>(
    coordinator: Arc<Coordinator>,
    respond: Respond,
    (kind, target): (OperationKind, String),
    work: impl FnOnce(Arc<Coordinator>, Arc<Running>) -> F,
) -> Result<Response, Refusal>
where
    T: Serialize,
    F: Future<Output = Result<T, CoordinatorError>> + Send + 'static,
{
    let working = |running| {
        let work = work(Arc::clone(&coordinator), running);
        async move { work.await.map_err(|error| Refusal::from(error).into_problem()) }
    };
    let running = coordinator.operations().start(Uuid::now_v7(), kind, target, working);
    answer(running, respond, StatusCode::OK).await
}

/// Answers with an operation. `done` is the status of its result.
pub(super) async fn answer(
    running: Arc<Running>,
    respond: Respond,
    done: StatusCode,
) -> Result<Response, Refusal> {
    let location = [(header::LOCATION, format!("/api/v1/operations/{}", running.id()))];
    Ok(match respond {
        Respond::Wait => (done, Json(running.outcome().await?)).into_response(),
        Respond::Later => (StatusCode::ACCEPTED, location, Json(running.describe())).into_response(),
        Respond::Stream => (location, events(running, 0)).into_response(),
    })
}

fn events(running: Arc<Running>, from: usize) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let stream = running.follow(from).map(|(number, event)| {
        let blank = Event::default().id(number.to_string());
        match event {
            OperationEvent::Progress(progress) => blank.event("progress").json_data(progress),
            OperationEvent::Result(result) => blank.event("result").json_data(result),
            OperationEvent::Problem(problem) => blank.event("problem").json_data(problem),
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}

pub(super) fn routes() -> OpenApiRouter<Arc<Coordinator>> {
    OpenApiRouter::new()
        .routes(routes!(list_operations))
        .routes(routes!(show_operation))
        .routes(routes!(operation_events))
}

/// Long work that is under way or was: of this run of the server, the newest first.
#[utoipa::path(get, path = "/api/v1/operations", tag = "operations",
    responses((status = 200, description = "The operations", body = Vec<Operation>)))]
async fn list_operations(State(coordinator): Server) -> Json<Vec<Operation>> {
    Json(coordinator.operations().list())
}

/// One operation: how far it is, and what came of it.
#[utoipa::path(get, path = "/api/v1/operations/{id}", tag = "operations",
    params(("id" = Uuid, Path, description = "As the 202 gave it")),
    responses((status = 200, description = "The operation", body = Operation)))]
async fn show_operation(State(coordinator): Server, Segments(id): Segments<Uuid>) -> Answer<Operation> {
    Ok(Json(find(&coordinator, id)?.describe()))
}

/// An operation's events: those there were, then those to come. The last one is called `result` or `problem`.
#[utoipa::path(get, path = "/api/v1/operations/{id}/events", tag = "operations",
    params(
        ("id" = Uuid, Path, description = "As the 202 gave it"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The last event that was seen: it goes on after it"),
    ),
    responses((status = 200, description = "Server-sent events `progress`, `result`, `problem`, each with JSON",
        content_type = "text/event-stream", body = ServerSentEvent)))]
async fn operation_events(
    State(coordinator): Server,
    Segments(id): Segments<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let from = match headers.get("last-event-id") {
        None => 0,
        Some(last) => {
            let last = last.to_str().ok().and_then(|last| last.parse::<i64>().ok());
            last.and_then(|last| usize::try_from(last).ok())
                .ok_or_else(|| Refusal::new(400, "Last-Event-ID is not the number of an event"))?
                .saturating_add(1)
        }
    };
    Ok(events(find(&coordinator, id)?, from).into_response())
}

fn find(coordinator: &Coordinator, id: Uuid) -> Result<Arc<Running>, Refusal> {
    coordinator.operations().find(id).ok_or_else(|| {
        let sentence = format!(
            "there is no operation {id} (any more): the server forgets them when it starts again, and old ones; look at \
             what it was about"
        );
        Refusal::new(404, sentence)
    })
}
