//! What a host keeps of a snapshot beside its data: the certificate with its evidence, so that a catalogue that was lost
//! can be made again from the hosts. To the host itself it is a text.

use serde::{Deserialize, Serialize};

use crate::certificate::Evidence;
use crate::messages::Snapshot;

/// The version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// A snapshot as the catalogue had it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Whether every host had taken the name when this was written. Handed out before that, and again after it.
    pub complete: bool,
    /// The catalogue's row.
    pub snapshot: Snapshot,
    /// What the certificate was computed from.
    pub evidence: Option<Evidence>,
}
