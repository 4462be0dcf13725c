//! A snapshot's extents, line by line: there may be many.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::sync::mpsc::{Receiver, channel};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::host::HostService;
use crate::http::{Parameters, Refusal, Segments};
use crate::volume::SnapshotExtents;

/// Bytes of lines that are sent at a time.
const CHUNK: usize = 64 << 10;

#[derive(Deserialize)]
struct Since {
    since: Option<String>,
}

pub(super) fn routes() -> OpenApiRouter<Arc<HostService>> {
    OpenApiRouter::new().routes(routes!(extents))
}

#[utoipa::path(get, path = "/v1/volumes/{volume}/snapshots/{snapshot}/extents")]
async fn extents(
    State(host): State<Arc<HostService>>,
    Segments((volume, snapshot)): Segments<(String, String)>,
    Parameters(Since { since }): Parameters<Since>,
) -> Result<Response, Refusal> {
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
