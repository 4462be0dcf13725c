//! Who has the live volume open, and how to send them away.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::PoisonError;
use std::time::Duration;

use super::lock;
use crate::device::Disconnect;
use crate::sync::{Condvar, Mutex};

/// A client that has just left is noticed by its connection's thread a moment later.
const LEAVING_PATIENCE: Duration = Duration::from_millis(500);
/// One that is sent away finishes the request that it is at.
const DISCONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// The clients of one volume.
#[derive(Default)]
pub(super) struct Clients {
    door: Mutex<Door>,
    left: Condvar,
}

#[derive(Default)]
struct Door {
    next: u64,
    /// And how to disconnect each, once it has said so.
    present: BTreeMap<u64, Option<Disconnect>>,
    barred: bool,
    /// Whoever is there is on the way out.
    sent_away: bool,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("count", &self.count()).finish()
    }
}

impl Clients {
    pub(super) fn count(&self) -> usize {
        lock(&self.door).present.len()
    }

    /// None while nobody is let in.
    pub(super) fn enter(&self) -> Option<u64> {
        let mut door = lock(&self.door);
        if door.barred {
            return None;
        }
        let number = door.next;
        door.next += 1;
        door.present.insert(number, None);
        Some(number)
    }

    pub(super) fn leave(&self, number: u64) {
        lock(&self.door).present.remove(&number);
        self.left.notify_all();
    }

    /// How to disconnect a client: called at once if it is to go already.
    pub(super) fn on_disconnect(&self, number: u64, disconnect: Disconnect) {
        let mut door = lock(&self.door);
        if door.sent_away {
            disconnect();
        }
        if let Some(client) = door.present.get_mut(&number) {
            *client = Some(disconnect);
        }
    }

    /// Lets nobody in any more, and with `disconnect` sends those away who are there.
    ///
    /// # Errors
    /// How many stayed. New ones are let in again then.
    pub(super) fn bar(&self, disconnect: bool) -> Result<(), usize> {
        let mut door = lock(&self.door);
        (door.barred, door.sent_away) = (true, disconnect);
        if disconnect {
            door.present.values().flatten().for_each(|disconnect| disconnect());
        }
        let patience = if disconnect { DISCONNECT_PATIENCE } else { LEAVING_PATIENCE };
        let waited = self.left.wait_timeout_while(door, patience, |door| !door.present.is_empty());
        let (mut door, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if !door.present.is_empty() {
            (door.barred, door.sent_away) = (false, false);
            return Err(door.present.len());
        }
        Ok(())
    }

    /// Lets clients in again.
    pub(super) fn admit(&self) {
        let mut door = lock(&self.door);
        (door.barred, door.sent_away) = (false, false);
    }
}
