//! What only the dashboard needs: who is asking, and answers that are no larger than what a page can show.

mod chart;
mod picture;

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use timesync::clock::wall_now;
use timesync::time::Nanos;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub use chart::{Chart, HostChart};
pub use picture::{CutPicture, HostCut, HostPicture, Shown, StoryLine};

use super::skew::span;
use super::{Answer, Server};
use crate::certificate::Mode;
use crate::coordinator::Coordinator;
use crate::history::{HistoryError, Keeper};
use crate::http::{Parameters, Refusal, Segments, whoami_routes};
use crate::messages::{Snapshot, SnapshotState, Verdict};

/// A page shows no more than these.
const NEWEST: u32 = 100;
/// A chart has no more slots.
const MOST_POINTS: u16 = 1_000;

pub(super) fn routes() -> OpenApiRouter<Arc<Coordinator>> {
    OpenApiRouter::new().routes(routes!(newest_snapshots)).routes(routes!(picture)).merge(whoami_routes())
}

/// What is drawn of the clocks.
pub(super) fn clocks(history: Arc<Keeper>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(chart)).with_state(history)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ChartQuery {
    /// The last so many ms; up to a week.
    #[param(minimum = 0, maximum = 604_800_000)]
    span_ms: i64,
    /// In so many slots at most.
    #[param(minimum = 1, maximum = 1_000)]
    points: u16,
    /// This host; otherwise all.
    host: Option<String>,
}

/// One host's history, or all hosts', in `points` slots at most.
#[utoipa::path(get, path = "/api/v1/dashboard/history", tag = "dashboard", params(ChartQuery),
    responses((status = 200, description = "The worst of each slot", body = Chart)))]
async fn chart(
    State(history): State<Arc<Keeper>>,
    Parameters(query): Parameters<ChartQuery>,
) -> Answer<Chart> {
    let span = span(query.span_ms)?;
    if !(1..=MOST_POINTS).contains(&query.points) {
        return Err(Refusal::new(400, format!("a chart has between 1 and {MOST_POINTS} points")));
    }
    let chart = move || {
        let axis = chart::Axis::over(wall_now(), span, query.points);
        let tracks = history.tracks(span, query.host.as_deref())?;
        Ok::<_, HistoryError>(Chart::of(&tracks, axis))
    };
    match tokio::task::spawn_blocking(chart).await {
        Ok(Ok(chart)) => Ok(Json(chart)),
        Ok(Err(error @ HistoryError::Unknown(_))) => Err(Refusal::new(404, error.to_string())),
        Ok(Err(error)) => Err(Refusal::new(500, error.to_string())),
        Err(panic) => Err(Refusal::new(500, format!("the history failed: {panic}"))),
    }
}

/// The newest snapshots. `GET /api/v1/dashboard/snapshots`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Newest {
    /// How many there are.
    pub total: u64,
    /// The newest hundred, newest first.
    pub snapshots: Vec<Brief>,
}

/// A snapshot in a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Brief {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Where it is in its life.
    pub state: SnapshotState,
    /// Why it failed.
    pub why: Option<String>,
    /// When it was asked for: UTC, RFC 3339.
    pub created: String,
    /// The schedule that took it.
    pub schedule: Option<String>,
    /// How the hosts agreed on the instant; null without a certificate.
    pub mode: Option<Mode>,
    /// What the certificate says; null without one.
    pub verdict: Option<Verdict>,
    /// By how much the cut is consistent; null in barrier mode.
    pub margin_ns: Option<Nanos>,
    /// V; null in barrier mode.
    pub v_ns: Option<Nanos>,
    /// Attempts it took; 0 without a certificate.
    pub attempts: u32,
    /// Hosts that took part.
    pub hosts: usize,
    /// Volumes that it has.
    pub volumes: usize,
    /// Replies that were held back, on all hosts.
    pub held: u64,
    /// The longest of them, in ns.
    pub stretch_max_ns: u64,
}

impl Brief {
    fn of(snapshot: &Snapshot) -> Self {
        let manifest = snapshot.manifest.as_ref();
        let hosts = manifest.map_or(&[][..], |manifest| &manifest.hosts);
        Brief {
            id: snapshot.id,
            name: snapshot.name.clone(),
            state: snapshot.state,
            why: snapshot.why.clone(),
            created: snapshot.created.clone(),
            schedule: snapshot.schedule.clone(),
            mode: manifest.and_then(|manifest| manifest.mode),
            verdict: manifest.map(|manifest| manifest.verdict),
            margin_ns: manifest.and_then(|manifest| manifest.margin_ns),
            v_ns: manifest.and_then(|manifest| manifest.v_ns),
            attempts: manifest.map_or(0, |manifest| manifest.attempts),
            hosts: hosts.len(),
            volumes: manifest.map_or(0, |manifest| manifest.group.len()),
            held: hosts.iter().map(|host| host.held).sum(),
            stretch_max_ns: hosts.iter().map(|host| host.stretch_ns.max).max().unwrap_or(0),
        }
    }
}

/// The newest snapshots, a line each.
#[utoipa::path(get, path = "/api/v1/dashboard/snapshots", tag = "dashboard",
    responses((status = 200, description = "The newest hundred", body = Newest)))]
async fn newest_snapshots(State(coordinator): Server) -> Answer<Newest> {
    let (newest, total) = coordinator.newest(NEWEST).await?;
    Ok(Json(Newest { total, snapshots: newest.iter().map(Brief::of).collect() }))
}

/// One snapshot as it is drawn.
#[utoipa::path(get, path = "/api/v1/dashboard/snapshots/{key}", tag = "dashboard",
    params(("key" = String, Path, description = "Its id or name")),
    responses((status = 200, description = "The snapshot", body = Shown)))]
async fn picture(State(coordinator): Server, Segments(key): Segments<String>) -> Answer<Shown> {
    Ok(Json(Shown::of(&coordinator.show(&key, false).await?)))
}
