//! Session keys for time exchanges: the server draws one for each host at each start and hands it out over the control
//! plane, where both ends have shown a certificate.
//!
//! The server sends nothing without the key and believes nothing without it, from its start on. So it does not matter
//! when the host gets it: until then there is no bound. A host that starts anew has lost it and falls silent; a silent
//! host is handed its key again. A server that starts anew draws new keys, and every host is silent to it at first.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{DefaultBodyLimit, State};
use timesync::authentication::{Keyring, SessionKey};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::{JsonBody, Refusal};
use crate::remote::RemoteHost;

/// A key takes about a hundred octets.
const BODY_LIMIT: usize = 1024;
/// So often a host's silence is looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A host that is out of reach is tried again so much later.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The host's end. Mount it only where clients show certificates: `POST /v1/time-key`
pub fn routes(keyring: Arc<Keyring>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(take)).layer(DefaultBodyLimit::max(BODY_LIMIT)).with_state(keyring)
}

#[utoipa::path(post, path = "/v1/time-key")]
async fn take(
    State(keyring): State<Arc<Keyring>>,
    JsonBody(key): JsonBody<SessionKey>,
) -> Result<Json<()>, Refusal> {
    keyring.add(&key);
    Ok(Json(()))
}

/// The server's end, for one host: hands out `key` whenever `is_unheard` says that the host does not answer time
/// exchanges. Never returns.
pub async fn hand_out(host: RemoteHost, key: SessionKey, is_unheard: impl Fn() -> bool) {
    let mut failing = false;
    loop {
        if !is_unheard() {
            tokio::time::sleep(LOOK_EVERY).await;
            continue;
        }
        match host.hand_time_key(&key).await {
            Ok(()) => {
                failing = false;
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(
                        host = host.name(),
                        "no key for time exchanges could be handed out: {error}"
                    );
                }
                failing = true;
                tokio::time::sleep(RETRY_AFTER).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Admits, Connector, Listener, StopHandle};
    use crate::remote::{HostEndpoint, Limits};

    #[tokio::test]
    async fn a_silent_host_is_handed_its_key() {
        let keyring = Arc::new(Keyring::default());
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None, false).unwrap();
        let endpoint =
            HostEndpoint { name: "a".to_owned(), control: listener.url(), ..HostEndpoint::default() };
        let stop = StopHandle::new();
        let serving = tokio::spawn(listener.serve(
            routes(Arc::clone(&keyring)).into(),
            Admits::TheServer,
            stop.clone(),
        ));
        let connector = Connector::new(None, false).unwrap();
        let host = RemoteHost::new(&connector, &endpoint, Limits::default()).unwrap();
        let unauthenticated = [0; 54];
        assert!(keyring.admit(&unauthenticated).is_ok(), "no key yet");
        let heard = Arc::clone(&keyring);
        let handing = hand_out(host, SessionKey::draw().unwrap(), move || heard.admit(&[0; 54]).is_ok());
        let handed = async {
            while keyring.admit(&unauthenticated).is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = handing => unreachable!("it goes on for ever"),
            () = handed => {}
        }
        stop.shutdown();
        serving.await.unwrap().unwrap();
    }
}
