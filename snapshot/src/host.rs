//! The host's cut manager (placeholder: every operation says that there is none).

use std::fmt;

use timesync::identity::Incarnation;
use timesync::time::Nanos;

use crate::orders::{
    ArmOrder, Armed, AttemptId, CommitOrder, ContentDigest, CreateVolume, HostDescription, ReleaseOrder,
    Sealed, Struck, VolumeDescription,
};

/// The volumes of one host and the cuts on them.
pub struct HostService {
    name: String,
    incarnation: Incarnation,
}

impl fmt::Debug for HostService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostService").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Why a host refused.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Nothing is there yet.
    #[error("this host has no cut manager")]
    Absent,
}

impl HostError {
    /// The HTTP status that says it.
    pub fn status(&self) -> u16 {
        500
    }
}

#[expect(missing_docs, clippy::missing_errors_doc, reason = "a placeholder")]
impl HostService {
    pub fn new(name: String, incarnation: Incarnation) -> Self {
        HostService { name, incarnation }
    }
    pub fn describe(&self) -> HostDescription {
        HostDescription {
            name: self.name.clone(),
            host: self.incarnation,
            max_stretch: Nanos::from_millis(100),
            volumes: Vec::new(),
            nbd: Vec::new(),
        }
    }
    pub fn arm(&self, _attempt: AttemptId, _order: ArmOrder) -> Result<Armed, HostError> {
        Err(HostError::Absent)
    }
    pub fn strike(&self, _attempt: AttemptId) -> Result<Struck, HostError> {
        Err(HostError::Absent)
    }
    pub fn release(&self, _attempt: AttemptId, _order: &ReleaseOrder) -> Result<(), HostError> {
        Err(HostError::Absent)
    }
    pub fn seal(&self, _attempt: AttemptId) -> Result<Sealed, HostError> {
        Err(HostError::Absent)
    }
    pub fn abort(&self, _attempt: AttemptId) -> Result<(), HostError> {
        Err(HostError::Absent)
    }
    pub fn commit(&self, _attempt: AttemptId, _order: &CommitOrder) -> Result<(), HostError> {
        Err(HostError::Absent)
    }
    pub fn create_volume(&self, _order: &CreateVolume) -> Result<VolumeDescription, HostError> {
        Err(HostError::Absent)
    }
    pub fn delete_snapshot(&self, _volume: &str, _snapshot: &str) -> Result<(), HostError> {
        Err(HostError::Absent)
    }
    pub fn digest(&self, _volume: &str, _snapshot: &str) -> Result<ContentDigest, HostError> {
        Err(HostError::Absent)
    }
    pub fn uncoordinated(
        &self,
        _attempt: AttemptId,
        _volumes: &[String],
        _name: &str,
    ) -> Result<(), HostError> {
        Err(HostError::Absent)
    }
}
