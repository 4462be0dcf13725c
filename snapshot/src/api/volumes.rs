//! The API of volumes. What changes one as a whole is long work: it goes on to its end if the caller goes away.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::long::{self, Accepted, Respond};
use super::{Answer, Server};
use crate::coordinator::Coordinator;
use crate::http::{JsonBody, Parameters, Refusal, Segments};
use crate::messages::operations::OperationKind;
use crate::messages::{CreateVolumeOn, HostVolumes, Member};
use crate::orders::VolumeDescription;
use crate::orders::volumes::{ImportOrder, ResizeOrder};

pub(super) fn routes() -> OpenApiRouter<Arc<Coordinator>> {
    OpenApiRouter::new()
        .routes(routes!(list_volumes, create_volume))
        .routes(routes!(delete_volume))
        .routes(routes!(resize_volume))
        .routes(routes!(import_volume))
}

/// Every host's volumes. A host that does not answer is listed with the reason.
#[utoipa::path(get, path = "/api/v1/volumes", tag = "volumes",
    responses((status = 200, description = "The hosts and their volumes", body = Vec<HostVolumes>)))]
async fn list_volumes(State(coordinator): Server) -> Answer<Vec<HostVolumes>> {
    Ok(Json(coordinator.volumes().await?))
}

/// Creates a volume on a host.
#[utoipa::path(post, path = "/api/v1/volumes", tag = "volumes", request_body = CreateVolumeOn,
    responses((status = 200, description = "It is made", body = VolumeDescription)))]
async fn create_volume(
    State(coordinator): Server,
    JsonBody(request): JsonBody<CreateVolumeOn>,
) -> Answer<VolumeDescription> {
    Ok(Json(coordinator.create_volume(request).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct DeleteQuery {
    /// Whether the snapshots that it is part of are deleted too, as wholes; otherwise they are a reason to refuse.
    #[serde(default)]
    #[param(required = false)]
    with_snapshots: bool,
}

/// Deletes a volume.
#[utoipa::path(delete, path = "/api/v1/volumes/{host}/{volume}", tag = "volumes",
    params(
        ("host" = String, Path, description = "The host"),
        ("volume" = String, Path, description = "The volume's name on it"),
        DeleteQuery,
        Respond,
    ),
    responses((status = 200, description = "It is gone"), Accepted))]
async fn delete_volume(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    Parameters(query): Parameters<DeleteQuery>,
    respond: Respond,
) -> Result<Response, Refusal> {
    let (what, member) = what(OperationKind::DeleteVolume, host, volume);
    long::run(coordinator, respond, what, |coordinator, _| async move {
        coordinator.delete_volume(&member, query.with_snapshots).await
    })
    .await
}

/// Gives a volume another size.
#[utoipa::path(post, path = "/api/v1/volumes/{host}/{volume}/resize", tag = "volumes",
    params(
        ("host" = String, Path, description = "The host"),
        ("volume" = String, Path, description = "The volume's name on it"),
        Respond,
    ),
    request_body = ResizeOrder,
    responses((status = 200, description = "The volume as it is now", body = VolumeDescription), Accepted))]
async fn resize_volume(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    respond: Respond,
    JsonBody(order): JsonBody<ResizeOrder>,
) -> Result<Response, Refusal> {
    let (what, member) = what(OperationKind::ResizeVolume, host, volume);
    long::run(coordinator, respond, what, |coordinator, _| async move {
        coordinator.resize_volume(&member, order).await
    })
    .await
}

/// Makes an image on a host a volume there. `GET /api/v1/volumes` says how far it is.
#[utoipa::path(post, path = "/api/v1/volumes/{host}/{volume}/import", tag = "volumes",
    params(
        ("host" = String, Path, description = "The host"),
        ("volume" = String, Path, description = "The new volume's name"),
        Respond,
    ),
    request_body = ImportOrder,
    responses((status = 200, description = "The volume", body = VolumeDescription), Accepted))]
async fn import_volume(
    State(coordinator): Server,
    Segments((host, volume)): Segments<(String, String)>,
    respond: Respond,
    JsonBody(order): JsonBody<ImportOrder>,
) -> Result<Response, Refusal> {
    let (what, member) = what(OperationKind::ImportVolume, host, volume);
    long::run(coordinator, respond, what, |coordinator, _| async move {
        coordinator.import_volume(&member, order).await
    })
    .await
}

fn what(kind: OperationKind, host: String, volume: String) -> ((OperationKind, String), Member) {
    ((kind, format!("{host}/{volume}")), Member { host, volume })
}
