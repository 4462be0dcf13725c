//! The server's API: a thin HTTP shell around the coordinator, and the time-sync server's report beside it.
//!
//! Each page is a file with its handlers, each annotated by `utoipa::path` with its path, parameters and answer, and a
//! function `routes` that mounts them. The document at `/api/v1/openapi.json` is made of those annotations, and so is the
//! router: a route cannot be in one and not in the other. What goes for all of them is added in [`document`]: problems.

pub mod dashboard;
mod export;
mod groups;
mod long;
mod schedules;
pub mod skew;
mod snapshots;
mod space;
mod volumes;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use utoipa::openapi::{Content, Info, OpenApi, Ref, RefOr, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::coordinator::{Coordinator, CoordinatorError};
use crate::http::Refusal;
use crate::messages::operations::Operation;
use crate::orders::Problem;

/// A request that names ten thousand volumes takes a megabyte.
const BODY_LIMIT: usize = 1024 * 1024;

type Answer<T> = Result<Json<T>, Refusal>;
type Server = State<Arc<Coordinator>>;

impl From<CoordinatorError> for Refusal {
    fn from(error: CoordinatorError) -> Self {
        Refusal::new(error.status(), error.to_string())
    }
}

/// The routes of the server, with those about the clocks ([`skew::routes`]), and the document that describes them.
pub fn router(coordinator: Arc<Coordinator>, clocks: OpenApiRouter) -> Router {
    let (router, described) = OpenApiRouter::new()
        .merge(snapshots::routes())
        .merge(long::routes())
        .merge(volumes::routes())
        .merge(groups::routes())
        .merge(export::routes())
        .merge(space::routes())
        .merge(schedules::routes())
        .merge(dashboard::routes())
        .routes(routes!(openapi))
        .with_state(coordinator)
        .merge(clocks)
        .split_for_parts();
    // A document that cannot be turned into JSON would be a mistake in an annotation; a test reads it.
    let document = Document(document(described).to_json().unwrap_or_default().into());
    router.layer(DefaultBodyLimit::max(BODY_LIMIT)).layer(Extension(document))
}

#[derive(Clone)]
struct Document(Arc<str>);

/// This document.
#[utoipa::path(get, path = "/api/v1/openapi.json", tag = "server",
    responses((status = 200, description = "OpenAPI", body = Object)))]
async fn openapi(Extension(Document(text)): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.to_string()).into_response()
}

/// What the annotations of the routes do not say one by one.
fn document(mut described: OpenApi) -> OpenApi {
    described.info = Info::new("Coeval", env!("CARGO_PKG_VERSION"));
    described.info.description = Some(
        "Snapshots of volumes on many hosts as of one instant. Every refusal is a problem (RFC 9457)."
            .to_owned(),
    );
    let schemas = &mut described.components.get_or_insert_default().schemas;
    let mut named = vec![
        (Operation::name().into_owned(), Operation::schema()),
        (Problem::name().into_owned(), Problem::schema()),
    ];
    Operation::schemas(&mut named);
    for (name, schema) in named {
        schemas.entry(name).or_insert(schema);
    }
    let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name("Problem"))));
    let refusal = ResponseBuilder::new()
        .description("A problem: `detail` is a sentence that says what to do")
        .content("application/problem+json", content)
        .build();
    for item in described.paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.delete, &mut item.put, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            operation.responses.responses.insert("default".to_owned(), RefOr::T(refusal.clone()));
        }
    }
    described
}
