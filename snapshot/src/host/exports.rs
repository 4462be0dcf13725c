//! What the host offers to NBD clients: its volumes and their snapshots; and of a volume that could not be opened, what
//! is certain.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::{HostError, HostService};
use crate::device::{Device, Exports};
use crate::volume::{Damaged, Directory, VolumeError};

/// A volume that could not be opened.
pub(super) struct Unserved {
    /// A sentence.
    pub why: String,
    /// What can be read of it nevertheless.
    damaged: Option<Arc<Damaged>>,
}

impl Unserved {
    pub(super) fn new(root: &Directory, name: &str, error: &VolumeError) -> Self {
        let corrupt = matches!(error, VolumeError::Corrupt { .. });
        let damaged = corrupt.then(|| Damaged::open_in(root, name).ok()).flatten().map(Arc::new);
        let why = match &damaged {
            None => error.to_string(),
            Some(_) => format!("{error}; what is certain can be read from its exports"),
        };
        Unserved { why, damaged }
    }
}

impl HostService {
    /// The volumes that are not served and can be read in part.
    fn damaged(&self) -> BTreeMap<String, Arc<Damaged>> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let damaged = |(name, volume): (&String, &Result<_, Unserved>)| {
            Some((name.clone(), volume.as_ref().err()?.damaged.clone()?))
        };
        volumes.iter().filter_map(damaged).collect()
    }
}

impl Exports for HostService {
    fn list(&self) -> Vec<String> {
        let mut names = Vec::new();
        for description in self.usable().iter().map(|volume| volume.describe()) {
            names.extend(description.snapshots.iter().map(|name| format!("{}@{name}", description.name)));
            names.push(description.name);
        }
        for (volume, damaged) in self.damaged() {
            names.extend(damaged.snapshots().iter().map(|name| format!("{volume}@{name}")));
            names.push(volume);
        }
        names.sort();
        names
    }

    fn describe(&self, name: &str) -> Option<String> {
        let (volume, snapshot) = parts(name);
        let what = match snapshot {
            Some(snapshot) => format!("volume {volume} as it was in snapshot {snapshot}, read-only"),
            None => format!("volume {name} of host {}", self.options.name),
        };
        let is_damaged = self.damaged().contains_key(volume);
        Some(if is_damaged {
            format!("{what}; damaged, so what is certain can be read, no more")
        } else {
            what
        })
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Device>> {
        let (volume, snapshot) = parts(name);
        match (self.volume(volume), snapshot) {
            (Ok(volume), None) => volume.attach(),
            (Ok(volume), Some(snapshot)) => volume.snapshot_device(snapshot).ok(),
            (Err(HostError::Unusable { .. }), _) => self.damaged().get(volume)?.device(snapshot),
            (Err(_), _) => None,
        }
    }
}

/// An export's volume, and its snapshot.
fn parts(export: &str) -> (&str, Option<&str>) {
    export.split_once('@').map_or((export, None), |(volume, snapshot)| (volume, Some(snapshot)))
}
