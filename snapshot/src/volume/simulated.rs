//! A host's disk that the simulator can crash, and a host on it.

use std::path::Path;
use std::sync::Arc;

use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::random::Random;

use super::memory::{Fate, Memory};
use super::{Directory, Volume, chain};
use crate::host::{HostError, HostOptions, HostService};

/// A disk in memory.
#[derive(Clone, Debug, Default)]
pub struct SimulatedDisk(Memory);

impl SimulatedDisk {
    /// A host's service on this disk.
    ///
    /// # Errors
    /// As [`HostService::open`].
    pub fn host(
        &self,
        options: HostOptions,
        incarnation: Incarnation,
        clock: HostClock,
    ) -> Result<Arc<HostService>, HostError> {
        let root = Directory::new(Arc::new(self.0.clone()), Path::new("/"));
        HostService::open_in(root, None, options, incarnation, clock)
    }

    /// What the next process finds when the one on this disk is killed. That one goes on alone on the old disk.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        SimulatedDisk(self.0.after_kill())
    }

    /// What is found after the machine lost its power: each operation that was not synced is kept with a probability of
    /// so many eighths, sector by sector.
    #[must_use]
    pub fn after_power_loss(&self, random: Random, kept: u64) -> Self {
        let mut fate = Fate::Drawn { random, kept, torn: true };
        SimulatedDisk(Memory::after(self.0.state().crash(&mut fate)))
    }

    /// One of the next operations fails for want of space.
    pub fn fail_after(&self, operations: usize) {
        self.0.fail_after(operations);
    }
}

impl Volume {
    /// What it shows, whoever is let in.
    pub fn content(&self) -> Option<Vec<u8>> {
        let mut content = vec![0; self.core.size() as usize];
        chain::read(&self.core.chain(), 0, &mut content).ok()?;
        Some(content)
    }
}
