//! The pauses between tries at what has to be done on a host sooner or later: each twice as long as the last one.

use std::time::Duration;

use crate::sync::task;

/// The first one.
pub(super) const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// The next pause.
#[derive(Debug)]
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) fn new() -> Self {
        Pauses(FIRST)
    }

    /// Waits.
    pub(super) async fn pass(&mut self) {
        task::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST);
    }
}
