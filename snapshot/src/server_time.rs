//! The server's time on its way to the hosts that publish their bound. See [`timesync::publish`] for what it is good for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use timesync::clock::Clocks;
use timesync::publish::{PublisherThread, ServerTime, WallRate};
use timesync::source::SkewSource;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::{JsonBody, Refusal};
use crate::remote::RemoteHost;

const EVERY: Duration = Duration::from_secs(1);
/// A host that does not publish says so by having no such page; it may be configured otherwise one day.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// The page of a host that publishes: `POST /v1/server-time`.
pub fn routes(publisher: Arc<PublisherThread>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(hear)).with_state(publisher)
}

#[utoipa::path(post, path = "/v1/server-time")]
async fn hear(
    State(publisher): State<Arc<PublisherThread>>,
    JsonBody(statement): JsonBody<ServerTime>,
) -> Result<Json<()>, Refusal> {
    publisher.hear(statement).map(Json).map_err(|why| Refusal::new(409, why.to_string()))
}

/// Tells `host` the server's time about once a second, if it wants to know. Ends only where this machine's clocks cannot
/// be watched.
///
/// # Errors
/// The system's.
pub async fn keep_telling(source: Arc<dyn SkewSource>, host: RemoteHost) -> io::Result<()> {
    let (mut clocks, mut measured, mut known) = (Clocks::new()?, WallRate::default(), None);
    loop {
        tokio::time::sleep(EVERY).await;
        let reading = clocks.read();
        // When the wall clock was just set, hosts must hear of it at once; setting it leaves its rate as it was.
        known = measured.measure(&reading).or(known);
        // Nothing is told of a host that cannot be bounded: what was told before ends by itself.
        let (Some(rate), Ok(observation)) = (known, source.observe(host.name())) else { continue };
        let statement = ServerTime::of(&observation, source.incarnation(), &reading, rate);
        let Ok(statement) = statement else { continue };
        if let Err(error) = host.tell_time(&statement).await {
            if error.status() == Some(404) {
                tokio::time::sleep(ASK_AGAIN).await;
            } else {
                tracing::debug!(host = host.name(), %error, "the host does not take the time");
            }
        }
    }
}
