//! A volume of which a map's page is lost, for whoever rescues it: read-only. What is certain is read as ever; where
//! nobody knows which layer counts, a read fails. Nothing of it is changed, not even what opening a volume puts right.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::layer::Layer;
use super::manifest::Manifest;
use super::request::SnapshotDevice;
use super::storage::Directory;
use super::{VolumeError, check_name};
use crate::device::Device;

/// A damaged volume that can be read in part.
#[derive(Debug)]
pub(crate) struct Damaged {
    manifest: Manifest,
    layers: BTreeMap<u32, Arc<Layer>>,
}

impl Damaged {
    /// Opens what is there of the volume `name` in `root`. Its files must not be changed while this lives.
    ///
    /// # Errors
    /// If more is lost than pages of maps: the manifest, a file, or a part of one.
    pub(crate) fn open_in(root: &Directory, name: &str) -> Result<Self, VolumeError> {
        check_name(name)?;
        let directory = root.child(name);
        let manifest = Manifest::read(&directory)?;
        let open = |&id: &u32| Ok((id, Layer::open_damaged(&directory, id, manifest.size_of(id))?));
        let layers = manifest.layers.keys().map(open).collect::<Result<_, VolumeError>>()?;
        Ok(Damaged { manifest, layers })
    }

    /// Its snapshots, oldest first.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        self.manifest.snapshots_by_age()
    }

    /// A snapshot, or without a name the live volume. None if there is no such snapshot.
    pub(crate) fn device(&self, snapshot: Option<&str>) -> Option<Arc<dyn Device>> {
        let top = match snapshot {
            None => self.manifest.head,
            Some(name) => self.manifest.snapshots.get(name)?.layer,
        };
        let size = if snapshot.is_none() { self.manifest.size } else { self.manifest.size_of(top) };
        Some(Arc::new(SnapshotDevice { layers: self.manifest.chain(&self.layers, top), size, pin: None }))
    }
}
