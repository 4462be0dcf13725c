//! A snapshot's extents, line by line: there may be many.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::mpsc::{Receiver, channel};

use crate::host::HostService;
use crate::http::{Refusal, Segments};
use crate::volume::SnapshotExtents;

/// Bytes of lines that are sent at a time.
const CHUNK: usize = 64 << 10;

#[derive(Deserialize)]
struct Since {
    since: Option<String>,
}

pub(super) fn router() -> Router<Arc<HostService>> {
    Router::new().route("/v1/volumes/{volume}/snapshots/{snapshot}/extents", get(extents))
}

async fn extents(
    State(host): State<Arc<HostService>>,
    Segments((volume, snapshot)): Segments<(String, String)>,
    query: Result<Query<Since>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(Since { since }) =
        query.map_err(|rejection| Refusal::new(rejection.status().as_u16(), rejection.body_text()))?;
    let extents = host.extents(&volume, &snapshot, since.as_deref())?;
    let (sender, receiver) = channel::<std::io::Result<Bytes>>(4);
    // The file system is asked for holes, which may wait for a disk.
    tokio::task::spawn_blocking(move || {
        let mut send = |chunk| sender.blocking_send(chunk).is_ok();
        if let Err(why) = write_lines(&extents, &mut send) {
            // Ends the answer short of its end, which whoever reads it notices.
            send(Err(why));
        }
    });
    let lines = unfold(receiver, async |mut receiver: Receiver<_>| Some((receiver.recv().await?, receiver)));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

/// Until the end, or until nobody reads them any more.
fn write_lines(
    extents: &SnapshotExtents,
    send: &mut impl FnMut(std::io::Result<Bytes>) -> bool,
) -> std::io::Result<()> {
    let mut chunk = Vec::new();
    for extent in extents.within(0..extents.size()) {
        serde_json::to_writer(&mut chunk, &extent)?;
        chunk.push(b'\n');
        if chunk.len() >= CHUNK && !send(Ok(std::mem::take(&mut chunk).into())) {
            return Ok(());
        }
    }
    send(Ok(chunk.into()));
    Ok(())
}
