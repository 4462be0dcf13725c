//! Volumes outside Coeval, as the host serves them: what each is, its snapshots, and what is not done with it.

use std::collections::BTreeMap;
use std::sync::Arc;

use timesync::identity::BootId;
use timesync::time::Nanos;
use uuid::Uuid;

use super::restore::Standing;
use super::turns::{Turn, Turns};
use super::{HostError, HostService};
use crate::backend::record::{Entry, Record};
use crate::backend::watchdog::WatchdogProgram;
use crate::backend::{Backend, BackendError};
use crate::orders::{AttemptId, ExternalDescription, VolumeDescription};
use crate::volume::{VolumeError, is_name};

/// A volume outside Coeval, as the configuration has it.
#[derive(Clone, Debug)]
pub struct ExternalVolume {
    /// Its name, by the rule for volume names.
    pub name: String,
    /// What keeps it.
    pub backend: Arc<dyn Backend>,
    /// It is resumed so long after a pause began, whatever happens.
    pub deadline: Nanos,
}

/// Such a volume at work.
#[derive(Debug)]
pub(super) struct External {
    pub(super) name: String,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) deadline: Nanos,
    pub(super) record: Record,
    pub(super) boot: BootId,
    pub(super) watchdog: WatchdogProgram,
    turns: Arc<Turns>,
}

impl External {
    pub(super) fn claim(&self, what: &str) -> Result<Turn, HostError> {
        let busy = |with| HostError::Busy(format!("volume {} is busy ({with}): try again later", self.name));
        self.turns.take(what).map_err(busy)
    }

    /// Removes what came to nothing and was not removed then. To be called with the volume claimed.
    pub(super) fn discard_left_overs(&self) -> Result<(), BackendError> {
        for entry in self.record.snapshots().iter().filter(|entry| !entry.committed) {
            self.backend.discard(&entry.name)?;
            self.record.forget(&entry.name)?;
        }
        Ok(())
    }

    fn describe(&self) -> Result<VolumeDescription, BackendError> {
        let description = self.backend.describe()?;
        let entries = self.record.snapshots().into_iter().filter(|entry| entry.committed);
        Ok(VolumeDescription {
            name: self.name.clone(),
            size: description.size,
            snapshots: entries.map(|entry| entry.name).collect(),
            in_use: Vec::new(),
            layers: 0,
            allocated: description.used,
            clients: 0,
            external: Some(ExternalDescription {
                backend: description.kind.to_owned(),
                pauses: description.pauses,
                deadline_ns: self.deadline,
                last_pausing_ns: self.record.last_pausing(),
            }),
        })
    }

    /// Deletes a snapshot that is Coeval's.
    pub(super) fn delete(self: &Arc<Self>, snapshot: &str) -> Result<(), HostError> {
        if !self.record.snapshots().iter().any(|entry| entry.name == snapshot) {
            return Ok(());
        }
        let _claim = self.claim(&format!("deleting {snapshot}"))?;
        self.backend.delete(snapshot)?;
        Ok(self.record.forget(snapshot)?)
    }

    /// Whether a snapshot that is Coeval's is still there.
    pub(super) fn has(&self, snapshot: &str) -> Result<bool, HostError> {
        let ours = |entry: &Entry| entry.committed && entry.name == snapshot;
        Ok(self.record.snapshots().iter().any(ours)
            && self.backend.list()?.iter().any(|name| name == snapshot))
    }

    pub(super) fn refuse_restore(&self, snapshot: &str, keep: Option<&str>) -> Result<(), HostError> {
        if keep.is_some() {
            return Err(HostError::Refused(format!(
                "volume {} is restored by its own storage, which keeps nothing of what is replaced: take a snapshot first if \
                 you want to, and restore with --discard-current",
                self.name
            )));
        }
        if !self.has(snapshot)? {
            return Err(HostError::Refused(format!(
                "volume {} has no snapshot {snapshot} any more",
                self.name
            )));
        }
        Ok(())
    }

    /// Restores the volume, if `standing` says from its last restore that it is to be. What it said.
    pub(super) fn restore(
        self: &Arc<Self>,
        snapshot: &str,
        restore: Uuid,
        standing: impl Fn(Option<Uuid>) -> Standing,
    ) -> Result<Standing, HostError> {
        let _claim = self.claim(&format!("restoring {snapshot}"))?;
        let standing = standing(self.record.restored());
        if standing == Standing::Due {
            self.backend.restore(snapshot)?;
            self.record.set_restored(restore)?;
        }
        Ok(standing)
    }
}

impl HostService {
    /// Serves these volumes outside Coeval too. To be called once, before orders are taken. Discards what earlier runs
    /// left.
    ///
    /// # Errors
    /// When a name is taken or not allowed, or a record of a volume cannot be read.
    pub fn serve_externals(
        &self,
        volumes: Vec<ExternalVolume>,
        watchdog: &WatchdogProgram,
    ) -> Result<(), HostError> {
        let mut externals = BTreeMap::new();
        for ExternalVolume { name, backend, deadline } in volumes {
            if !is_name(&name) {
                return Err(VolumeError::Name { name }.into());
            }
            self.refuse_if_known(&name)?;
            let external = Arc::new(External {
                record: Record::open(&self.options.volumes, &name)?,
                name: name.clone(),
                backend,
                deadline,
                boot: self.incarnation.boot,
                watchdog: watchdog.clone(),
                turns: Arc::default(),
            });
            if let Err(why) = external.discard_left_overs() {
                // The next snapshot tries again.
                tracing::error!(volume = name, %why, "something is left of a snapshot that came to nothing");
            }
            if externals.insert(name.clone(), external).is_some() {
                return Err(VolumeError::Exists { name }.into());
            }
        }
        self.externals
            .set(externals)
            .map_err(|_| HostError::Failed("the volumes are served already".to_owned()))?;
        // Not before: a record may be of a snapshot of these volumes alone.
        self.tidy_records();
        Ok(())
    }

    /// Whether a snapshot that an attempt made stands on one of them.
    pub(super) fn has_external_snapshot_of(&self, attempt: AttemptId) -> bool {
        let made = |entry: &Entry| entry.committed && entry.attempt == attempt;
        self.all_external().any(|external| external.record.snapshots().iter().any(made))
    }

    pub(super) fn external(&self, name: &str) -> Option<&Arc<External>> {
        self.externals.get()?.get(name)
    }

    fn all_external(&self) -> impl Iterator<Item = &Arc<External>> {
        self.externals.get().into_iter().flat_map(BTreeMap::values)
    }

    /// What they are, and why some cannot say.
    pub(super) fn describe_externals(&self) -> (Vec<VolumeDescription>, BTreeMap<String, String>) {
        let (mut described, mut silent) = (Vec::new(), BTreeMap::new());
        for external in self.all_external() {
            match external.describe() {
                Ok(description) => described.push(description),
                Err(why) => {
                    silent.insert(external.name.clone(), why.to_string());
                }
            }
        }
        (described, silent)
    }

    /// Deletes what an attempt made, in this run of the daemon or an earlier one.
    pub(super) fn drop_external_snapshots(&self, id: AttemptId) -> Result<(), HostError> {
        for external in self.all_external() {
            for entry in external.record.snapshots().iter().filter(|entry| entry.attempt == id) {
                if entry.committed {
                    external.delete(&entry.name)?;
                } else {
                    let _claim = external.claim("discarding an attempt")?;
                    external.discard_left_overs()?;
                }
            }
        }
        Ok(())
    }

    /// For what is not done with volumes outside Coeval.
    pub(super) fn refuse_external(&self, name: &str) -> Result<(), HostError> {
        match self.external(name) {
            None => Ok(()),
            Some(_) => Err(HostError::Refused(format!(
                "volume {name} is kept outside Coeval: here its snapshots are taken, listed, restored and deleted; for \
                 anything else use the tools of its storage"
            ))),
        }
    }
}
