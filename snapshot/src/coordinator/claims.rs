//! Snapshots that somebody works on: they are not deleted meanwhile.
//!
//! What reads a snapshot through NBD is known to its host, which refuses the deletion. This is for work that the server
//! itself does or waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use super::CoordinatorError;

/// Who works on which snapshot, and which ones are on their way out.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// What is done with them, as often as it is.
    held: BTreeMap<Uuid, Vec<&'static str>>,
    leaving: BTreeSet<Uuid>,
}

/// The snapshot is not deleted while this is there.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Arc<Claims>,
    id: Uuid,
    what: &'static str,
}

/// Nobody begins to work on the snapshot while this is there.
#[derive(Debug)]
pub(super) struct Leaving {
    claims: Arc<Claims>,
    id: Uuid,
}

impl Claims {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a snapshot from being deleted; it is being `what`.
    ///
    /// # Errors
    /// When it is being deleted.
    pub(super) fn claim(self: &Arc<Self>, id: Uuid, what: &'static str) -> Result<Claim, CoordinatorError> {
        let mut state = self.state();
        if state.leaving.contains(&id) {
            return Err(CoordinatorError::Conflict(format!(
                "the snapshot cannot be {what}: it is being deleted"
            )));
        }
        state.held.entry(id).or_default().push(what);
        Ok(Claim { claims: Arc::clone(self), id, what })
    }

    /// Begins to delete a snapshot.
    ///
    /// # Errors
    /// When somebody works on it.
    pub(super) fn leave(self: &Arc<Self>, id: Uuid, name: &str) -> Result<Leaving, CoordinatorError> {
        let mut state = self.state();
        if let Some(what) = state.held.get(&id).and_then(|held| held.first()) {
            return Err(CoordinatorError::Conflict(format!(
                "snapshot {name} is in use: it is being {what}; delete it when that is done"
            )));
        }
        if !state.leaving.insert(id) {
            return Err(CoordinatorError::Conflict(format!("snapshot {name} is being deleted already")));
        }
        Ok(Leaving { claims: Arc::clone(self), id })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.claims.state();
        if let Some(held) = state.held.get_mut(&self.id) {
            if let Some(at) = held.iter().position(|what| *what == self.what) {
                held.swap_remove(at);
            }
            if held.is_empty() {
                state.held.remove(&self.id);
            }
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.claims.state().leaving.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_claimed_stays_and_what_leaves_is_not_claimed() {
        let claims = Arc::<Claims>::default();
        let id = Uuid::nil();
        let (first, second) = (claims.claim(id, "cloned").unwrap(), claims.claim(id, "exported").unwrap());
        drop(first);
        let error = claims.leave(id, "s1").unwrap_err().to_string();
        assert_eq!(error, "snapshot s1 is in use: it is being exported; delete it when that is done");
        drop(second);
        let leaving = claims.leave(id, "s1").unwrap();
        assert!(claims.leave(id, "s1").is_err() && claims.claim(id, "cloned").is_err());
        drop(leaving);
        claims.claim(id, "cloned").unwrap();
    }
}
