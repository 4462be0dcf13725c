//! What a host keeps of a snapshot beside its data: the catalogue's row and its own part of the evidence, so that a
//! catalogue that was lost can be made again from the hosts. To the host itself it is a text.
//!
//! Its own part: with everybody's, hosts together would keep and be sent the square of it.

use serde::{Deserialize, Serialize};

use crate::certificate::Evidence;
use crate::messages::Snapshot;

/// The version that this program writes, and the newest that it reads. Those of version 1 held everybody's evidence.
pub const VERSION: u32 = 2;

/// A snapshot as the catalogue had it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// Whether every host had taken the name when this was written. Handed out before that, and again after it.
    pub complete: bool,
    /// The catalogue's row.
    pub snapshot: Snapshot,
    /// What the certificate was computed from; as a host keeps it, with that host's part only.
    pub evidence: Option<Evidence>,
}

impl Record {
    /// What a host keeps of it.
    pub fn part_of(&self, host: &str) -> Record {
        let evidence = self.evidence.as_ref().map(|whole| {
            let own = whole.hosts.iter().filter(|part| part.host == host);
            whole.with_hosts(own.cloned().collect())
        });
        Record { version: self.version, complete: self.complete, snapshot: self.snapshot.clone(), evidence }
    }
}
