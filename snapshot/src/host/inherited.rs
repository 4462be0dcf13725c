//! The mistake that a restarted daemon's evidence counts ([`Mutation::RestartedEvidence`]): what a run's clock read is
//! noted on its disk as soon as the stretch is over, and the next run reports that as its own and names what it finds
//! below the head. In the product nothing of an attempt outlives the process, so there is no evidence to be refused.
//!
//! [`Mutation::RestartedEvidence`]: crate::mutation::Mutation::RestartedEvidence

use std::cell::RefCell;
use std::collections::HashMap;

use super::attempt::Attempt;
use super::{HostError, HostService};
use crate::mutation::mutated;
use crate::orders::{AttemptId, Sealed};

thread_local! {
    /// What stands on the disks: by attempt and by who is the host.
    static NOTES: RefCell<HashMap<(AttemptId, String), Sealed>> = RefCell::default();
}

impl HostService {
    /// Notes what the clock read in an attempt.
    pub(super) fn note_evidence(&self, id: AttemptId, attempt: &Attempt) {
        if mutated!(RestartedEvidence)
            && let Some(sealed) = attempt.evidence(self.incarnation)
        {
            NOTES.with_borrow_mut(|notes| notes.insert((id, self.options.name.clone()), sealed));
        }
    }

    /// What an earlier run of this daemon noted.
    pub(super) fn inherited(&self, id: AttemptId) -> Option<Sealed> {
        if !mutated!(RestartedEvidence) {
            return None;
        }
        let key = (id, self.options.name.clone());
        let mut sealed = NOTES.with_borrow(|notes| notes.get(&key).cloned())?;
        let before = std::mem::replace(&mut sealed.host, self.incarnation);
        (before != self.incarnation).then_some(sealed)
    }

    /// Names the state below the head of every volume.
    pub(super) fn commit_inherited(&self, id: AttemptId, name: &str) -> Result<(), HostError> {
        self.usable().iter().try_for_each(|volume| Ok(volume.name_below_head(name, id)?))
    }
}
