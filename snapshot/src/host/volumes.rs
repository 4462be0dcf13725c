//! The host's volumes as wholes: clones, sizes, images, and the end of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, PoisonError};

use super::{HostError, HostService};
use crate::orders::VolumeDescription;
use crate::orders::volumes::{CloneOrder, ImportOrder, ResizeOrder};
use crate::sync::Mutex;
use crate::volume::{Image, Volume, VolumeError};

/// How far each import under way is, in hundredths.
#[derive(Debug, Default)]
pub(super) struct Imports(Mutex<BTreeMap<String, Arc<AtomicU8>>>);

/// One import under way.
struct Import<'a> {
    imports: &'a Imports,
    name: &'a str,
    done: Arc<AtomicU8>,
}

impl Imports {
    /// None if there is one under that name already.
    fn begin<'a>(&'a self, name: &'a str) -> Option<Import<'a>> {
        let mut imports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if imports.contains_key(name) {
            return None;
        }
        let done = Arc::default();
        imports.insert(name.to_owned(), Arc::clone(&done));
        Some(Import { imports: self, name, done })
    }

    /// Those under way, by the volume's name, and how many hundredths of each are done.
    pub(super) fn under_way(&self) -> BTreeMap<String, u8> {
        let imports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        imports.iter().map(|(name, done)| (name.clone(), done.load(Ordering::Relaxed))).collect()
    }
}

impl Drop for Import<'_> {
    fn drop(&mut self) {
        self.imports.0.lock().unwrap_or_else(PoisonError::into_inner).remove(self.name);
    }
}

impl HostService {
    /// Makes a new volume with the content of a snapshot of another one.
    ///
    /// # Errors
    /// When there is no such volume or snapshot, or the new name is taken or not allowed.
    pub fn clone_volume(&self, volume: &str, order: &CloneOrder) -> Result<VolumeDescription, HostError> {
        self.refuse_if_known(&order.name)?;
        let clone = self.volume(volume)?.clone_snapshot(&order.snapshot, &order.name)?;
        tracing::info!(volume, snapshot = order.snapshot, clone = order.name, "cloned");
        Ok(self.serve(clone))
    }

    /// Gives a volume another size.
    ///
    /// # Errors
    /// When there is no such volume, it is busy, or would lose data that nobody allowed it to lose.
    pub fn resize_volume(&self, volume: &str, order: ResizeOrder) -> Result<VolumeDescription, HostError> {
        let resized = self.volume(volume)?;
        resized.resize(order.size, order.shrink)?;
        tracing::info!(volume, size = order.size, "resized");
        Ok(resized.describe())
    }

    /// Deletes a volume, and its snapshots if the order says so.
    ///
    /// # Errors
    /// When there is no such volume, it is busy, clients are connected, or it has snapshots.
    pub fn delete_volume(&self, volume: &str, with_snapshots: bool) -> Result<(), HostError> {
        self.volume(volume)?.delete(with_snapshots)?;
        self.volumes.write().unwrap_or_else(PoisonError::into_inner).remove(volume);
        tracing::info!(volume, "deleted");
        self.tidy_records();
        // Others may have shared layers with it.
        self.usable().iter().for_each(|other| other.tidy());
        Ok(())
    }

    /// Makes an image on this host a volume. Returns when it is one: where it is copied, that takes its time, and
    /// [`HostService::describe`] says how far it is.
    ///
    /// # Errors
    /// When the name is taken or not allowed, or the image cannot be read or must not be.
    pub fn import_volume(&self, volume: &str, order: &ImportOrder) -> Result<VolumeDescription, HostError> {
        self.refuse_if_known(volume)?;
        let import = self.imports.begin(volume);
        let import = import.ok_or_else(|| VolumeError::Exists { name: volume.to_owned() })?;
        let image = Image::open(&order.path, &self.options.import_from)?;
        let (root, clock) = (&self.options.volumes, self.clock.clone());
        let imported = if order.in_place {
            if order.format.as_deref().is_some_and(|format| format != "raw") {
                return Err(HostError::Refused("only a raw image is taken over as it is".to_owned()));
            }
            Volume::take_over(root, volume, &image, clock)?
        } else {
            let progress = |hundredths| import.done.store(hundredths, Ordering::Relaxed);
            Volume::create_from(root, volume, &image, order.format.as_deref(), clock, &progress)?
        };
        tracing::info!(volume, image = %order.path.display(), "imported");
        Ok(self.serve(imported))
    }

    pub(super) fn refuse_if_known(&self, volume: &str) -> Result<(), HostError> {
        let known = self.volumes.read().unwrap_or_else(PoisonError::into_inner).contains_key(volume);
        if known || self.external(volume).is_some() {
            Err(VolumeError::Exists { name: volume.to_owned() }.into())
        } else {
            Ok(())
        }
    }

    /// Takes a new volume among the others.
    pub(super) fn serve(&self, volume: Arc<Volume>) -> VolumeDescription {
        volume.set_merge_rate(self.options.merge_rate);
        let description = volume.describe();
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        volumes.insert(description.name.clone(), Ok(volume));
        description
    }
}
