//! The host's side of a restore: volumes are prepared, and then switched together.
//!
//! An order to switch carries all that is needed and may be repeated: what was prepared may be gone, with the daemon or
//! because nobody came back to it, and is then prepared again. So a coordinator that has decided can always go on.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::{HostError, HostService};
use crate::orders::{RestoreOrder, RestorePrepared};
use crate::sync::{MutexGuard, thread};
use crate::volume::VolumeRestore;

/// A prepared restore that nobody switches is given up after this long, and clients are let in again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The volumes that are prepared, by name, for each restore.
pub(super) type Restores = BTreeMap<Uuid, BTreeMap<String, VolumeRestore>>;

impl HostService {
    /// Lets no client into the volumes any more and does all that can fail for want of room. Nothing is restored yet.
    /// Clients that are there are disconnected if the order says so.
    ///
    /// # Errors
    /// When a volume or the snapshot is unknown, a volume is busy or has clients. Nothing is left of it then.
    pub fn prepare_restore(
        self: &Arc<Self>,
        id: Uuid,
        order: &RestoreOrder,
    ) -> Result<RestorePrepared, HostError> {
        let mut prepared = BTreeMap::new();
        for volume in &order.volumes {
            if let Some(external) = self.external(volume) {
                external.refuse_restore(&order.snapshot, order.keep.as_deref())?;
                continue;
            }
            prepared.insert(volume.clone(), self.prepare_one(volume, order)?);
        }
        self.restores().insert(id, prepared);
        let service = Arc::downgrade(self);
        let keeper = thread::spawn("restore".to_owned(), move || {
            thread::sleep(PATIENCE);
            if let Some(service) = service.upgrade()
                && service.give_up_restore(id)
            {
                tracing::warn!(%id, "nobody went on with this restore; it is given up");
            }
        });
        if let Err(error) = keeper {
            self.give_up_restore(id);
            return Err(HostError::Failed(format!("cannot start a thread for the restore: {error}")));
        }
        Ok(RestorePrepared { host: self.incarnation })
    }

    /// Puts the snapshot in the place of every volume of the order. Volumes that were switched already stay as they
    /// are; clients may have written to them since.
    ///
    /// # Errors
    /// When a volume cannot be switched. Others may have been; the order is to be repeated.
    pub fn switch_restore(self: &Arc<Self>, id: Uuid, order: &RestoreOrder) -> Result<(), HostError> {
        let mut prepared = self.restores().remove(&id).unwrap_or_default();
        for name in &order.volumes {
            if let Some(external) = self.external(name) {
                if external.record.restored() != Some(id) {
                    external.restore(&order.snapshot, id)?;
                    tracing::info!(volume = name, snapshot = order.snapshot, "restored");
                }
                continue;
            }
            if self.volume(name)?.restored() == Some(id) {
                continue;
            }
            let volume = match prepared.remove(name) {
                Some(volume) => volume,
                None => self.prepare_one(name, order)?,
            };
            volume.switch(order.keep.as_deref(), id)?;
            tracing::info!(volume = name, snapshot = order.snapshot, "restored");
        }
        Ok(())
    }

    /// Gives a restore up that has not been switched. False if there is none.
    pub fn give_up_restore(&self, id: Uuid) -> bool {
        // Not under the lock: it waits for the file system.
        let prepared = self.restores().remove(&id);
        prepared.is_some()
    }

    fn prepare_one(&self, volume: &str, order: &RestoreOrder) -> Result<VolumeRestore, HostError> {
        let what = format!("restoring {}", order.snapshot);
        Ok(self.volume(volume)?.prepare_restore(&order.snapshot, &what, order.disconnect)?)
    }

    fn restores(&self) -> MutexGuard<'_, Restores> {
        // Each change under the lock is one insertion or removal.
        self.restores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
