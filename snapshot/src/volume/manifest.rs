//! `volume.json`: what belongs to a volume.
//!
//! # Order of writes
//!
//! The new text is written to `volume.json.new` and synced, renamed over `volume.json`, and the directory is synced.
//! Files are created and synced *before* the manifest that lists them is written, and removed *after* one is durable
//! that does not. Files that are not listed are thus left-overs, and opening a volume removes them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tracing::info;
use uuid::Uuid;

use super::layer::{BASE, data_name, map_name};
use super::storage::Directory;
use super::{BLOCK, VolumeError, at_path};

const VERSION: u32 = 1;
const FILE: &str = "volume.json";
const NEW_FILE: &str = "volume.json.new";

/// What a volume consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// Of this format.
    pub version: u32,
    pub id: Uuid,
    /// In bytes.
    pub size: u64,
    /// Bottom to top; ids rise.
    pub layers: Vec<u32>,
    /// By name.
    pub snapshots: BTreeMap<String, Boundary>,
}

/// A snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Boundary {
    /// The layer at whose upper boundary it was taken: its content is that of the layers up to it.
    pub layer: u32,
    /// The attempt that named it. Durable with the name, so that the attempt can be undone after a restart too.
    pub attempt: Uuid,
}

impl Manifest {
    /// A new volume that consists of its base.
    pub(super) fn new(size: u64) -> Self {
        Manifest {
            version: VERSION,
            id: Uuid::new_v4(),
            size,
            layers: vec![BASE],
            snapshots: BTreeMap::new(),
        }
    }

    /// Whether a directory holds a volume.
    pub(super) fn exists(directory: &Directory) -> bool {
        directory.has(FILE)
    }

    /// Reads and checks it.
    pub(super) fn read(directory: &Directory) -> Result<Self, VolumeError> {
        let text = directory.read(FILE)?;
        let corrupt =
            |why: String| VolumeError::Corrupt { file: directory.path().join(FILE), offset: 0, why };
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        if manifest.version != VERSION {
            return Err(corrupt(format!(
                "its version is {}, this program reads {VERSION}",
                manifest.version
            )));
        }
        let rising = manifest.layers.is_sorted_by(|a, b| a < b) && manifest.layers.first() == Some(&BASE);
        // A snapshot is below the head: what still takes writes has no name.
        let below_head = &manifest.layers[..manifest.layers.len().saturating_sub(1)];
        let named = manifest.snapshots.values().all(|boundary| below_head.contains(&boundary.layer));
        if !rising || !named || !manifest.size.is_multiple_of(BLOCK) {
            return Err(corrupt("its layers, snapshots or size contradict each other".to_owned()));
        }
        Ok(manifest)
    }

    /// Replaces the manifest in `directory`, durably.
    pub(super) fn write(&self, directory: &Directory) -> Result<(), VolumeError> {
        let file = directory.create(NEW_FILE, 0)?;
        let write = || {
            file.write(0, &serde_json::to_vec_pretty(self)?)?;
            file.sync_data()
        };
        write().map_err(at_path(&directory.path().join(NEW_FILE)))?;
        directory.rename(NEW_FILE, FILE)?;
        directory.sync()
    }

    /// Removes what structural changes that did not end left behind.
    pub(super) fn remove_strays(&self, directory: &Directory) -> Result<(), VolumeError> {
        for name in self.strays(directory)? {
            info!(file = %directory.path().join(&name).display(), "removing what a change that did not end left behind");
            directory.remove(&name)?;
        }
        Ok(())
    }

    /// The files that are ours and that nothing stands on.
    fn strays(&self, directory: &Directory) -> Result<Vec<String>, VolumeError> {
        let listed: Vec<String> =
            self.layers.iter().flat_map(|&layer| [data_name(layer), map_name(layer)]).collect();
        let mut names = directory.names()?;
        names.retain(|name| is_ours(name) && !listed.contains(name));
        Ok(names)
    }

    /// The snapshots, oldest first.
    pub(super) fn snapshots_by_age(&self) -> Vec<String> {
        let mut snapshots: Vec<_> =
            self.snapshots.iter().map(|(name, boundary)| (boundary.layer, name)).collect();
        snapshots.sort();
        snapshots.into_iter().map(|(_, name)| name.clone()).collect()
    }

    /// Whether the upper boundary of a layer is a snapshot.
    pub(super) fn is_named(&self, layer: u32) -> bool {
        self.snapshots.values().any(|boundary| boundary.layer == layer)
    }
}

/// Whether a file's name is one that a layer or a half-written manifest has.
fn is_ours(name: &str) -> bool {
    let numbered = |stem: &str| stem.len() == 6 && stem.bytes().all(|byte| byte.is_ascii_digit());
    let layer = name
        .rsplit_once('.')
        .is_some_and(|(stem, extension)| numbered(stem) && ["raw", "dat", "map"].contains(&extension));
    layer || name == NEW_FILE
}
