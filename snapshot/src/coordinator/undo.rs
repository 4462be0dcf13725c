//! Undoing an attempt on every host, however long that takes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use timesync::source::SkewSource;
use tracing::Instrument;

use super::Source;
use super::pauses::{self, Pauses};
use crate::catalogue::Catalogue;
use crate::http::ControlError;
use crate::mutation::mutated;
use crate::orders::AttemptId;
use crate::remote::RemoteHost;
use crate::sync::task;

/// Sends aborts, and remembers in the catalogue which ones were answered.
#[derive(Clone, Debug)]
pub(super) struct Undo {
    catalogue: Arc<Catalogue>,
    source: Source,
}

impl Undo {
    pub(super) fn new(catalogue: Arc<Catalogue>, source: Arc<dyn SkewSource>) -> Self {
        Undo { catalogue, source: Source(source) }
    }

    /// Aborts on all `hosts` at once. Returns when each has answered or failed to; those that failed are asked again
    /// in the background, and are returned with the reason. No I/O waits for this: a host releases by its own clock.
    pub(super) async fn everywhere(
        &self,
        attempt: AttemptId,
        hosts: &[Arc<RemoteHost>],
    ) -> Vec<(String, ControlError)> {
        let hosts = if mutated!(AbortForgetsOne) { &hosts[..hosts.len() - 1] } else { hosts };
        let answers = join_all(hosts.iter().map(|host| self.once(attempt, host))).await;
        let mut unanswered = Vec::new();
        for (host, answer) in hosts.iter().zip(answers) {
            if let Err(why) = answer {
                tracing::warn!(%attempt, host = host.name(), %why, "abort not answered; it will be repeated");
                self.until_answered(attempt, Arc::clone(host), pauses::FIRST);
                unanswered.push((host.name().to_owned(), why));
            }
        }
        unanswered
    }

    /// Aborts on one host after a pause, again and again until it answers, in a task of its own.
    pub(super) fn until_answered(&self, attempt: AttemptId, host: Arc<RemoteHost>, first: Duration) {
        let undo = self.clone();
        let asking = async move {
            if !first.is_zero() {
                task::sleep(first).await;
            }
            let mut pauses = Pauses::new();
            while undo.once(attempt, &host).await.is_err() {
                pauses.pass().await;
            }
            tracing::info!(%attempt, host = host.name(), "attempt undone");
        };
        // Within the snapshot's span, where its lines belong.
        task::spawn(asking.in_current_span());
    }

    async fn once(&self, attempt: AttemptId, host: &Arc<RemoteHost>) -> Result<(), ControlError> {
        match host.abort(attempt).await {
            // A host that knows nothing of the attempt has nothing of it.
            Err(error) if !matches!(error.status(), Some(404 | 410)) => return Err(error),
            _ => {}
        }
        let (catalogue, name, at) =
            (Arc::clone(&self.catalogue), host.name().to_owned(), self.source.0.now());
        let settled = task::spawn_blocking(move || catalogue.settle(attempt, &name, at)).await;
        if let Ok(Err(why)) = settled {
            // The debt stays on the books, so the next start repeats the abort; it may be repeated.
            tracing::warn!(%attempt, host = host.name(), %why, "abort answered but not noted");
        }
        Ok(())
    }
}
