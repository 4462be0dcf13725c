//! The host's side of a restore: volumes are prepared, and then switched together.
//!
//! An order to switch carries all that is needed and may be repeated: what was prepared may be gone, with the daemon or
//! because nobody came back to it, and is then prepared again. So a coordinator that has decided can always go on.
//!
//! An order that was carried out, or overtaken by another restore, changes nothing, however late it comes. Both are told
//! from the last restore that the volume knows of: each order to switch names the one that it follows (a comparison and
//! a swap), and ids are never used again. This is looked at while the volume is prepared: nobody else can restore it
//! then.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::{HostError, HostService};
use crate::orders::{RestoreOrder, RestorePrepared, RestoreSwitched};
use crate::sync::{MutexGuard, thread};
use crate::volume::VolumeRestore;

/// A prepared restore that nobody switches is given up after this long, and clients are let in again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The volumes that are prepared, by name, for each restore.
pub(super) type Restores = BTreeMap<Uuid, BTreeMap<String, VolumeRestore>>;

/// What an order to switch a volume means by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is to be carried out.
    Due,
    /// It was carried out.
    Done,
    /// Another restore came between its being prepared and it.
    Overtaken,
}

fn standing(last: Option<Uuid>, id: Uuid, volume: &str, order: &RestoreOrder) -> Standing {
    match &order.over {
        _ if last == Some(id) => Standing::Done,
        Some(over) if over.get(volume) != last.as_ref() => Standing::Overtaken,
        _ => Standing::Due,
    }
}

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
        let (mut prepared, mut restored) = (BTreeMap::new(), BTreeMap::new());
        for name in &order.volumes {
            let last = if let Some(external) = self.external(name) {
                external.refuse_restore(&order.snapshot, order.keep.as_deref())?;
                external.record.restored()
            } else {
                let volume = self.prepare_one(name, order)?;
                let last = volume.restored();
                prepared.insert(name.clone(), volume);
                last
            };
            restored.extend(last.map(|last| (name.clone(), last)));
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
        Ok(RestorePrepared { host: self.incarnation, restored })
    }

    /// Puts the snapshot in the place of every volume of the order. Volumes that were switched already, or by another
    /// restore, stay as they are; clients may have written to them since.
    ///
    /// # Errors
    /// When a volume cannot be switched. Others may have been; the order is to be repeated.
    pub fn switch_restore(
        self: &Arc<Self>,
        id: Uuid,
        order: &RestoreOrder,
    ) -> Result<RestoreSwitched, HostError> {
        let mut prepared = self.restores().remove(&id).unwrap_or_default();
        let mut switched = RestoreSwitched::default();
        for name in &order.volumes {
            match self.switch_one(id, name, order, prepared.remove(name))? {
                Standing::Due => tracing::info!(volume = name, snapshot = order.snapshot, "restored"),
                Standing::Done => {}
                Standing::Overtaken => {
                    tracing::warn!(volume = name, restore = %id, "another restore was faster; the volume stays as that left it");
                    switched.overtaken.push(name.clone());
                }
            }
        }
        Ok(switched)
    }

    /// Gives a restore up that has not been switched. False if there is none.
    pub fn give_up_restore(&self, id: Uuid) -> bool {
        // Not under the lock: it waits for the file system.
        let prepared = self.restores().remove(&id);
        prepared.is_some()
    }

    fn switch_one(
        self: &Arc<Self>,
        id: Uuid,
        name: &str,
        order: &RestoreOrder,
        prepared: Option<VolumeRestore>,
    ) -> Result<Standing, HostError> {
        let standing = |last| standing(last, id, name, order);
        if let Some(external) = self.external(name) {
            return external.restore(&order.snapshot, id, standing);
        }
        // Before it is prepared, which sends clients away.
        let before = standing(self.volume(name)?.restored());
        if before != Standing::Due {
            return Ok(before);
        }
        let volume = match prepared {
            Some(volume) => volume,
            None => self.prepare_one(name, order)?,
        };
        // Again: the same order may have come twice, and the other one been faster.
        let now = standing(volume.restored());
        if now == Standing::Due {
            volume.switch(order.keep.as_deref(), id)?;
        }
        Ok(now)
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
