//! The control plane's end on a host: a thin HTTP shell around its cut manager.

mod extents;
mod records;
mod space;
mod volumes;

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::host::{HostError, HostService};
use crate::http::{JsonBody, Refusal, Segments};
use crate::orders::{
    ArmOrder, Armed, AttemptId, ContentDigest, CreateVolume, HostDescription, PrepareOrder, ReleaseOrder,
    RestoreOrder, RestorePrepared, Sealed, Struck, VolumeDescription,
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
pub fn router(host: Arc<HostService>, simulation: bool) -> Router {
    let mut router = Router::new()
        .route("/v1/host", get(describe))
        .route("/v1/ping", get(ping))
        .route("/v1/cuts/{attempt}/prepare", post(prepare))
        .route("/v1/cuts/{attempt}/arm", post(arm))
        .route("/v1/cuts/{attempt}/strike", post(strike))
        .route("/v1/cuts/{attempt}/release", post(release))
        .route("/v1/cuts/{attempt}/seal", post(seal))
        .route("/v1/cuts/{attempt}/abort", post(abort))
        .route("/v1/restores/{restore}/prepare", post(prepare_restore))
        .route("/v1/restores/{restore}/switch", post(switch_restore))
        .route("/v1/restores/{restore}/give-up", post(give_up_restore))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/{volume}/snapshots/{snapshot}", delete(delete_snapshot).get(has_snapshot))
        .route("/v1/volumes/{volume}/snapshots/{snapshot}/digest", get(digest))
        .merge(volumes::routes())
        .merge(extents::router())
        .merge(space::router());
    if simulation {
        router = router.route("/v1/cuts/{attempt}/uncoordinated", post(uncoordinated));
    }
    router.layer(DefaultBodyLimit::max(BODY_LIMIT)).merge(records::router()).with_state(host)
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

async fn ping() -> Json<()> {
    Json(())
}

async fn describe(State(host): Host) -> Answer<HostDescription> {
    blocking(host, |host| Ok(host.describe())).await
}

async fn prepare(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<PrepareOrder>,
) -> Answer<()> {
    blocking(host, move |host| host.prepare(attempt, &order)).await
}

async fn arm(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<ArmOrder>,
) -> Answer<Armed> {
    blocking(host, move |host| host.arm(attempt, order)).await
}

/// On this very thread: all hosts' writers wait from the first strike to the last release, and a strike or a release
/// takes less time than handing it to another thread would.
async fn strike(State(host): Host, Segments(attempt): Segments<AttemptId>) -> Answer<Struck> {
    Ok(Json(host.strike(attempt)?))
}

/// On this very thread, as [`strike`].
async fn release(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<ReleaseOrder>,
) -> Answer<()> {
    Ok(Json(host.release(attempt, &order)?))
}

async fn seal(State(host): Host, Segments(attempt): Segments<AttemptId>) -> Answer<Sealed> {
    blocking(host, move |host| host.seal(attempt)).await
}

async fn abort(State(host): Host, Segments(attempt): Segments<AttemptId>) -> Answer<()> {
    blocking(host, move |host| host.abort(attempt)).await
}

async fn prepare_restore(
    State(host): Host,
    Segments(restore): Segments<Uuid>,
    JsonBody(order): JsonBody<RestoreOrder>,
) -> Answer<RestorePrepared> {
    blocking(host, move |host| host.prepare_restore(restore, &order)).await
}

async fn switch_restore(
    State(host): Host,
    Segments(restore): Segments<Uuid>,
    JsonBody(order): JsonBody<RestoreOrder>,
) -> Answer<()> {
    blocking(host, move |host| host.switch_restore(restore, &order)).await
}

async fn give_up_restore(State(host): Host, Segments(restore): Segments<Uuid>) -> Answer<bool> {
    blocking(host, move |host| Ok(host.give_up_restore(restore))).await
}

async fn uncoordinated(
    State(host): Host,
    Segments(attempt): Segments<AttemptId>,
    JsonBody(order): JsonBody<UncoordinatedOrder>,
) -> Answer<()> {
    blocking(host, move |host| host.uncoordinated(attempt, &order.volumes, &order.name)).await
}

async fn volumes(State(host): Host) -> Answer<Vec<VolumeDescription>> {
    blocking(host, |host| Ok(host.describe().volumes)).await
}

async fn create_volume(
    State(host): Host,
    JsonBody(order): JsonBody<CreateVolume>,
) -> Answer<VolumeDescription> {
    blocking(host, move |host| host.create_volume(&order)).await
}

async fn delete_snapshot(
    State(host): Host,
    Segments((volume, snapshot)): Segments<(String, String)>,
) -> Answer<()> {
    blocking(host, move |host| host.delete_snapshot(&volume, &snapshot)).await
}

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

async fn digest(
    State(host): Host,
    Segments((volume, snapshot)): Segments<(String, String)>,
    query: Result<Query<DigestQuery>, QueryRejection>,
) -> Answer<ContentDigest> {
    let Query(DigestQuery { changes }) =
        query.map_err(|rejection| Refusal::new(rejection.status().as_u16(), rejection.body_text()))?;
    blocking(host, move |host| host.digest(&volume, &snapshot, changes != 0)).await
}

#[cfg(test)]
mod tests;
