//! The control plane's end on a host: a thin HTTP shell around its cut manager.

mod extents;
mod records;
mod space;
mod volumes;

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::host::{HostError, HostService};
use crate::http::{JsonBody, Parameters, Refusal, Segments};
use crate::orders::{
    ArmOrder, Armed, AttemptId, ContentDigest, CreateVolume, HostDescription, PrepareOrder, ReleaseOrder,
    RestoreOrder, RestorePrepared, RestoreSwitched, Sealed, Struck, VolumeDescription,
};
use crate::sync::task;

/// A release order for a thousand hosts takes 40 kB.
const BODY_LIMIT: usize = 256 * 1024;

/// Cut here and now, by nobody's clock: only to show what that does. `POST /v1/cuts/{attempt}/uncoordinated`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UncoordinatedOrder {
    /// The volumes to cut.
    pub volumes: Vec<String>,
    /// The snapshot's name.
    pub name: String,
}

type Host = State<Arc<HostService>>;
type Answer<T> = Result<Json<T>, Refusal>;

impl From<HostError> for Refusal {
    fn from(error: HostError) -> Self {
        Refusal::new(error.status(), error.to_string())
    }
}

/// The routes of a host. With `simulation`, it also takes the demo's uncoordinated cuts.
pub fn routes(host: Arc<HostService>, simulation: bool) -> OpenApiRouter {
    let mut routes = OpenApiRouter::new()
        .routes(routes!(describe))
        .routes(routes!(ping))
        .routes(routes!(prepare))
        .routes(routes!(arm))
        .routes(routes!(strike))
        .routes(routes!(release))
        .routes(routes!(seal))
        .routes(routes!(abort))
        .routes(routes!(prepare_restore))
        .routes(routes!(switch_restore))
        .routes(routes!(give_up_restore))
        .routes(routes!(volumes, create_volume))
        .routes(routes!(delete_snapshot, has_snapshot))
        .routes(routes!(digest))
        .merge(volumes::routes())
        .merge(extents::routes())
        .merge(space::routes());
    if simulation {
        routes = routes.routes(routes!(uncoordinated));
    }
    routes.layer(DefaultBodyLimit::max(BODY_LIMIT)).merge(records::routes()).with_state(host)
}

/// Serves a host's routes, and beside them the document that names them all: their paths and methods. What they take and
/// give is between one version's server and its hosts, and in [`crate::orders`].
pub fn router(routes: OpenApiRouter) -> Router {
    let (router, document) = routes.routes(routes!(document)).split_for_parts();
    let document = Document(document.to_json().unwrap_or_default().into());
    router.layer(Extension(document))
}

#[derive(Clone)]
struct Document(Arc<str>);

#[utoipa::path(get, path = "/v1/openapi.json")]
async fn document(Extension(Document(text)): Extension<Document>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text.to_string()).into_response()
}

/// Runs what may wait for storage or for a stretch's end away from the threads that answer.
async fn blocking<T: Send + 'static>(
    host: Arc<HostService>,
    work: impl FnOnce(&Arc<HostService>) -> Result<T, HostError> + Send + 'static,
) -> Answer<T> {
    match task::spawn_blocking(move || work(&host)).await {
        Ok(result) => Ok(Json(result?)),
        Err(panic) => Err(Refusal::new(500, format!("the host failed at this order: {panic}"))),
    }
}

#[utoipa::path(get, path = "/v1/ping")]
async fn ping() -> Json<()> {
    Json(())
}

#[utoipa::path(get, path = "/v1/host")]
async fn describe(State(host): Host) -> Answer<HostDescription> {
    blocking(host, |host| Ok(host.describe())).await
}

#[utoipa::path(post, path = "/v1/cuts/{attempt}/prepare")]
async fn prepare(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<PrepareOrder>,
) -> Answer<()> {
    blocking(host, move |host| host.prepare(attempt, &order)).await
}

#[utoipa::path(post, path = "/v1/cuts/{attempt}/arm")]
async fn arm(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<ArmOrder>,
) -> Answer<Armed> {
    blocking(host, move |host| host.arm(attempt, order)).await
}

/// On this very thread: all hosts' writers wait from the first strike to the last release, and a strike or a release
/// takes less time than handing it to another thread would.
#[utoipa::path(post, path = "/v1/cuts/{attempt}/strike")]
async fn strike(State(host): Host, Segments(attempt): Segments<AttemptId>) -> Answer<Struck> {
    Ok(Json(host.strike(attempt)?))
}

/// On this very thread, as [`strike`].
#[utoipa::path(post, path = "/v1/cuts/{attempt}/release")]
async fn release(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<ReleaseOrder>,
) -> Answer<()> {
    Ok(Json(host.release(attempt, &order)?))
}

#[utoipa::path(post, path = "/v1/cuts/{attempt}/seal")]
async fn seal(State(host): Host, Segments(attempt): Segments<AttemptId>) -> Answer<Sealed> {
    blocking(host, move |host| host.seal(attempt)).await
}

#[utoipa::path(post, path = "/v1/cuts/{attempt}/abort")]
async fn abort(State(host): Host, Segments(attempt): Segments<AttemptId>) -> Answer<()> {
    blocking(host, move |host| host.abort(attempt)).await
}

#[utoipa::path(post, path = "/v1/restores/{restore}/prepare")]
async fn prepare_restore(
    State(host): Host,
    Segments(restore): Segments<Uuid>,
    JsonBody(order): JsonBody<RestoreOrder>,
) -> Answer<RestorePrepared> {
    blocking(host, move |host| host.prepare_restore(restore, &order)).await
}

#[utoipa::path(post, path = "/v1/restores/{restore}/switch")]
async fn switch_restore(
    State(host): Host,
    Segments(restore): Segments<Uuid>,
    JsonBody(order): JsonBody<RestoreOrder>,
) -> Answer<RestoreSwitched> {
    blocking(host, move |host| host.switch_restore(restore, &order)).await
}

#[utoipa::path(post, path = "/v1/restores/{restore}/give-up")]
async fn give_up_restore(State(host): Host, Segments(restore): Segments<Uuid>) -> Answer<bool> {
    blocking(host, move |host| Ok(host.give_up_restore(restore))).await
}

#[utoipa::path(post, path = "/v1/cuts/{attempt}/uncoordinated")]
async fn uncoordinated(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<UncoordinatedOrder>,
) -> Answer<()> {
    blocking(host, move |host| host.uncoordinated(attempt, &order.volumes, &order.name)).await
}

#[utoipa::path(get, path = "/v1/volumes")]
async fn volumes(State(host): Host) -> Answer<Vec<VolumeDescription>> {
    blocking(host, |host| Ok(host.describe().volumes)).await
}

#[utoipa::path(post, path = "/v1/volumes")]
async fn create_volume(
    State(host): Host,
    JsonBody(order): JsonBody<CreateVolume>,
) -> Answer<VolumeDescription> {
    blocking(host, move |host| host.create_volume(&order)).await
}

#[utoipa::path(delete, path = "/v1/volumes/{volume}/snapshots/{snapshot}")]
async fn delete_snapshot(
    State(host): Host,
    Segments((volume, snapshot)): Segments<(String, String)>,
) -> Answer<()> {
    blocking(host, move |host| host.delete_snapshot(&volume, &snapshot)).await
}

#[utoipa::path(get, path = "/v1/volumes/{volume}/snapshots/{snapshot}")]
async fn has_snapshot(
    State(host): Host,
    Segments((volume, snapshot)): Segments<(String, String)>,
) -> Answer<bool> {
    blocking(host, move |host| host.has_snapshot(&volume, &snapshot)).await
}

#[derive(Deserialize)]
struct DigestQuery {
    /// 1: ranges that have not changed since the last digest are not read.
    #[serde(default)]
    changes: u8,
}

#[utoipa::path(get, path = "/v1/volumes/{volume}/snapshots/{snapshot}/digest")]
async fn digest(
    State(host): Host,
    Segments((volume, snapshot)): Segments<(String, String)>,
    Parameters(DigestQuery { changes }): Parameters<DigestQuery>,
) -> Answer<ContentDigest> {
    blocking(host, move |host| host.digest(&volume, &snapshot, changes != 0)).await
}

#[cfg(test)]
mod tests;
