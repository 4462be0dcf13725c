//! `volume.json`: what belongs to a volume.
//!
//! # Order of writes
//!
//! The new text is written to `volume.json.new` and synced, renamed over `volume.json`, and the directory is synced.
//! Files are created and synced *before* the manifest that lists them is written, and removed *after* one is durable
//! that does not. Files that are not listed are thus left-overs, and opening a volume removes them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use tracing::info;
use uuid::Uuid;

use super::layer::{BASE, Layer, data_name, map_name};
use super::storage::Directory;
use super::unfinished::MARKER;
use super::unflushed::log_name;
use super::{BLOCK, VolumeError, at_path};
use crate::orders::Quota;

const VERSION: u64 = 2;
pub(super) const FILE: &str = "volume.json";
const NEW_FILE: &str = "volume.json.new";

/// What a volume consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub id: Uuid,
    /// In bytes.
    pub size: u64,
    /// Each layer, and the one that it stands on: one with a smaller id; the base stands on none.
    pub layers: BTreeMap<u32, Option<u32>>,
    /// The layer that takes requests: the live volume is this one and those below it.
    pub head: u32,
    /// By name.
    pub snapshots: BTreeMap<String, Boundary>,
    /// The last restore that was done, so that an order for it that is repeated changes nothing.
    pub restored: Option<Uuid>,
    /// The sizes of layers that are not of the volume's size, because it was resized since: in bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sizes: BTreeMap<u32, u64>,
    /// What its snapshots may hold. Left out where there is none: that is how it was before there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
}

/// A snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Boundary {
    /// The layer at whose upper boundary it was taken: its content is that of this layer and those below it.
    pub layer: u32,
    /// Rises with each name that is given.
    pub number: u64,
    /// The attempt that named it. Durable with the name, so that the attempt can be undone after a restart too.
    pub attempt: Uuid,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u64,
    /// Of `volume` in compact JSON, fields in the order of [`Manifest`].
    crc32c: u32,
    volume: Manifest,
}

/// What volumes were before they could be restored: one chain, its last layer the head, and no checksum.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Version1 {
    #[serde(rename = "version")]
    _version: u64,
    id: Uuid,
    size: u64,
    layers: Vec<u32>,
    snapshots: BTreeMap<String, BoundaryVersion1>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BoundaryVersion1 {
    layer: u32,
    attempt: Uuid,
}

impl From<BoundaryVersion1> for Boundary {
    fn from(old: BoundaryVersion1) -> Self {
        // The layers of one chain are as old as they are high.
        Boundary { layer: old.layer, number: old.layer.into(), attempt: old.attempt }
    }
}

impl From<Version1> for Manifest {
    fn from(old: Version1) -> Self {
        let below = std::iter::once(None).chain(old.layers.iter().copied().map(Some));
        Manifest {
            id: old.id,
            size: old.size,
            layers: old.layers.iter().copied().zip(below).collect(),
            head: old.layers.last().copied().unwrap_or(BASE),
            snapshots: old.snapshots.into_iter().map(|(name, old)| (name, old.into())).collect(),
            restored: None,
            sizes: BTreeMap::new(),
            quota: None,
        }
    }
}

impl Manifest {
    /// A new volume that consists of its base.
    pub(super) fn new(size: u64) -> Self {
        Manifest {
            id: Uuid::new_v4(),
            size,
            layers: BTreeMap::from([(BASE, None)]),
            head: BASE,
            snapshots: BTreeMap::new(),
            restored: None,
            sizes: BTreeMap::new(),
            quota: None,
        }
    }

    /// Whether a directory holds a volume.
    pub(super) fn exists(directory: &Directory) -> bool {
        directory.has(FILE)
    }

    /// Reads and checks it.
    pub(super) fn read(directory: &Directory) -> Result<Self, VolumeError> {
        let text = directory.read(FILE)?;
        Manifest::parse(&text).map_err(|why| {
            let file = directory.path().join(FILE);
            match later_version(&text) {
                Some(version) => VolumeError::Later { file, version, read: VERSION },
                None => VolumeError::Corrupt { file, offset: 0, why },
            }
        })
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let said = |error: serde_json::Error| error.to_string();
        let value: serde_json::Value = serde_json::from_slice(text).map_err(said)?;
        let manifest = match value["version"].as_u64() {
            Some(1) => serde_json::from_value::<Version1>(value).map_err(said)?.into(),
            Some(VERSION) => {
                let Stored { crc32c, volume, .. } = serde_json::from_value(value).map_err(said)?;
                if crc32c != volume.checksum().map_err(said)? {
                    return Err("its checksum does not fit".to_owned());
                }
                volume
            }
            Some(other) => return Err(format!("its version is {other}, this program reads up to {VERSION}")),
            None => return Err("it has no version".to_owned()),
        };
        if !manifest.is_sound() {
            return Err("its layers, snapshots or size contradict each other".to_owned());
        }
        Ok(manifest)
    }

    fn checksum(&self) -> serde_json::Result<u32> {
        Ok(crc32c::crc32c(&serde_json::to_vec(self)?))
    }

    fn is_sound(&self) -> bool {
        let stands = |(&layer, below): (&u32, &Option<u32>)| match below {
            None => layer == BASE,
            Some(below) => *below < layer && self.layers.contains_key(below),
        };
        // A snapshot is not the head: what still takes writes has no name.
        let named =
            |boundary: &Boundary| boundary.layer != self.head && self.layers.contains_key(&boundary.layer);
        self.layers.iter().all(stands)
            && self.layers.contains_key(&self.head)
            && self.snapshots.values().all(named)
            && self.size.is_multiple_of(BLOCK)
            && !self.sizes.contains_key(&self.head)
            && self
                .sizes
                .iter()
                .all(|(layer, size)| self.layers.contains_key(layer) && size.is_multiple_of(BLOCK))
    }

    /// A layer and those that it stands on, the base first.
    pub(super) fn path(&self, layer: u32) -> Vec<u32> {
        let mut path: Vec<u32> =
            std::iter::successors(Some(layer), |layer| self.layers.get(layer).copied().flatten()).collect();
        path.reverse();
        path
    }

    /// The size of a layer, in bytes.
    pub(super) fn size_of(&self, layer: u32) -> u64 {
        self.sizes.get(&layer).copied().unwrap_or(self.size)
    }

    pub(super) fn set_layer_size(&mut self, layer: u32, size: u64) {
        if size == self.size {
            self.sizes.remove(&layer);
        } else {
            self.sizes.insert(layer, size);
        }
    }

    /// Gives the volume another size, for a layer that is yet to be put on top. All layers keep theirs.
    pub(super) fn resize(&mut self, size: u64) {
        let sizes: Vec<_> = self.layers.keys().map(|&layer| (layer, self.size_of(layer))).collect();
        self.size = size;
        sizes.into_iter().for_each(|(layer, size)| self.set_layer_size(layer, size));
    }

    /// A layer and those below it, the base first.
    pub(super) fn chain(&self, layers: &BTreeMap<u32, Arc<Layer>>, top: u32) -> Vec<Arc<Layer>> {
        self.path(top).iter().filter_map(|id| layers.get(id).cloned()).collect()
    }

    /// The layers that stand on one.
    pub(super) fn standing_on(&self, layer: u32) -> Vec<u32> {
        self.layers.iter().filter(|(_, below)| **below == Some(layer)).map(|(id, _)| *id).collect()
    }

    /// Replaces the manifest in `directory`, durably.
    pub(super) fn write(&self, directory: &Directory) -> Result<(), VolumeError> {
        let file = directory.create(NEW_FILE, 0)?;
        let write = || {
            let stored = Stored { version: VERSION, crc32c: self.checksum()?, volume: self.clone() };
            file.write(0, &serde_json::to_vec_pretty(&stored)?)?;
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

    /// The files that are ours and that the volume does not consist of.
    pub(super) fn strays(&self, directory: &Directory) -> Result<Vec<String>, VolumeError> {
        let listed: Vec<String> = self
            .layers
            .keys()
            .flat_map(|&layer| [data_name(layer), map_name(layer), log_name(layer)])
            .collect();
        let mut names = directory.names()?;
        names.retain(|name| is_ours(name) && !listed.contains(name));
        Ok(names)
    }

    /// The snapshots, oldest first.
    pub(super) fn snapshots_by_age(&self) -> Vec<String> {
        let mut snapshots: Vec<_> =
            self.snapshots.iter().map(|(name, boundary)| (boundary.number, name)).collect();
        snapshots.sort();
        snapshots.into_iter().map(|(_, name)| name.clone()).collect()
    }

    /// Names the upper boundary of a layer.
    pub(super) fn name(&mut self, name: &str, layer: u32, attempt: Uuid) {
        let number = self.snapshots.values().map(|boundary| boundary.number + 1).max().unwrap_or(0);
        self.snapshots.insert(name.to_owned(), Boundary { layer, number, attempt });
    }

    /// Whether the upper boundary of a layer is a snapshot.
    pub(super) fn is_named(&self, layer: u32) -> bool {
        self.snapshots.values().any(|boundary| boundary.layer == layer)
    }
}

/// Whether a file's name is one that a layer, a half-written manifest or an unfinished volume's marker has.
pub(super) fn is_ours(name: &str) -> bool {
    let numbered = |stem: &str| stem.len() == 6 && stem.bytes().all(|byte| byte.is_ascii_digit());
    let layer = name
        .rsplit_once('.')
        .is_some_and(|(stem, extension)| numbered(stem) && ["raw", "dat", "map", "log"].contains(&extension));
    layer || name == NEW_FILE || name == MARKER
}

/// The version of a manifest, if it is one that is not known yet.
fn later_version(text: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(text).ok()?;
    value["version"].as_u64().filter(|version| *version > VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(manifest: &Manifest) -> String {
        let (version, crc32c, volume) = (VERSION, manifest.checksum().unwrap(), manifest.clone());
        serde_json::to_string(&Stored { version, crc32c, volume }).unwrap()
    }

    fn manifest(layers: &[(u32, Option<u32>)], head: u32, named: u32) -> Manifest {
        let boundary = Boundary { layer: named, number: 0, attempt: Uuid::nil() };
        Manifest {
            layers: layers.iter().copied().collect(),
            head,
            snapshots: BTreeMap::from([("s".to_owned(), boundary)]),
            ..Manifest::new(4096)
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let good = manifest(&[(0, None), (2, Some(0)), (3, Some(0))], 3, 2);
        let text = stored(&good);
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), good);
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(Manifest::parse(&bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn volumes_of_the_first_version_are_read() {
        let text = r#"{"version":1,"id":"00000000-0000-0000-0000-000000000000","size":8192,"layers":[0,2,5],
            "snapshots":{"s":{"layer":2,"attempt":"00000000-0000-0000-0000-000000000000"}}}"#;
        let read = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!((read.head, read.path(5), read.path(2)), (5, vec![0, 2, 5], vec![0, 2]));
        assert_eq!((read.standing_on(0), read.snapshots_by_age()), (vec![2], vec!["s".to_owned()]));
        let newer = text.replace("\"version\":1", "\"version\":3");
        assert_eq!(
            Manifest::parse(newer.as_bytes()).unwrap_err(),
            "its version is 3, this program reads up to 2"
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for wrong in [
            manifest(&[(0, None), (1, Some(0))], 1, 1),
            manifest(&[(0, None), (1, Some(0))], 2, 0),
            manifest(&[(0, None), (1, Some(0))], 1, 3),
            manifest(&[(0, None), (1, None)], 1, 0),
            manifest(&[(0, None), (1, Some(1))], 1, 0),
            manifest(&[(0, None), (1, Some(2)), (2, Some(0))], 1, 0),
            Manifest { size: 5000, ..manifest(&[(0, None), (1, Some(0))], 1, 0) },
        ] {
            let why = Manifest::parse(stored(&wrong).as_bytes()).unwrap_err();
            assert!(why.contains("contradict"), "{wrong:?}: {why}");
        }
    }
}
