//! The host's side of a cut: arms volumes, ends the stretch by its own clock, seals, and names or drops the result.
//!
//! Fail-open: each attempt has a *keeper*, a thread that exists before the first volume is armed. It ends the stretch at
//! T + V (barrier: T + `max_stretch`) by the host's clock alone, and drops the attempt when nobody asks for it any more.
//! It waits for no message and takes no lock on its way to the release but the cut's own.

mod attempt;
mod exports;
mod external;
#[cfg(feature = "simulation")]
mod inherited;
mod pausing;
mod records;
mod restore;
#[cfg(test)]
mod tests;
mod turns;
mod volumes;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError};

use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::time::Nanos;

use crate::backend::{BackendError, record};
use crate::certificate::Mode;
use crate::cut::{Cause, Cut, Timing};
use crate::hooks::HookLimits;
use crate::metrics::HostMetrics;
use crate::mutation::mutated;
use crate::orders::{
    ArmOrder, ArmTiming, Armed, AttemptId, CommitOrder, ContentDigest, CreateVolume, HostDescription,
    PrepareOrder, Quota, ReleaseOrder, Sealed, Struck, VolumeDescription, VolumeUsage,
};
use crate::sync::{Mutex, MutexGuard, RwLock, thread};
use crate::volume::{Directory, Records, SnapshotExtents, Volume, VolumeError};
use attempt::Attempt;
use exports::Unserved;
pub use external::ExternalVolume;
use pausing::PausingCut;

/// A T further ahead than this is refused: nothing that long-lived should wait armed.
const MAX_LEAD: Nanos = Nanos::from_millis(10_000);

/// How long a snapshot that is to be deleted waits for its last reader to be gone.
const LEAVING_PATIENCE: Nanos = Nanos::from_millis(500);

/// How many ended attempts are remembered, so that a late order for one of them is refused.
const REMEMBERED: usize = 1024;

/// What a host is told at start.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Its name, as the server's configuration has it.
    pub name: String,
    /// The directory that holds a directory per volume.
    pub volumes: PathBuf,
    /// No completion is held longer than this after T. Default 100 ms.
    pub max_stretch: Nanos,
    /// The directories that images may be imported from. Default: none.
    pub import_from: Vec<PathBuf>,
    /// What each volume's background work (merging layers, digests) may read, in bytes per second. Default 256 MiB.
    pub merge_rate: u64,
}

/// A host's volumes and the cuts on them.
pub struct HostService {
    options: HostOptions,
    incarnation: Incarnation,
    clock: HostClock,
    volumes: RwLock<BTreeMap<String, Result<Arc<Volume>, Unserved>>>,
    /// Those outside Coeval.
    externals: OnceLock<BTreeMap<String, Arc<external::External>>>,
    attempts: Mutex<Attempts>,
    restores: Mutex<restore::Restores>,
    /// Locked while a record is put and its attempt named.
    records: Mutex<Records>,
    imports: volumes::Imports,
    metrics: HostMetrics,
    nbd: OnceLock<Vec<String>>,
    hooks: OnceLock<HookLimits>,
    /// The volume directory,
    root: Directory,
    /// and the lock on it; none on a simulated disk.
    _lock: Option<File>,
}

#[derive(Default)]
struct Attempts {
    current: HashMap<AttemptId, Arc<Attempt>>,
    /// Attempts that are over or were called off before their order came, oldest first.
    ended: VecDeque<AttemptId>,
}

/// Why a host did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The order names another run of the daemon.
    #[error("the order is for another run of this host's daemon; it has restarted since")]
    Restarted,
    /// No such volume.
    #[error("host {host} has no volume {volume}; `coeval volume list` shows what there is")]
    NoVolume {
        /// The host's name.
        host: String,
        /// The volume's name.
        volume: String,
    },
    /// The volume exists but could not be opened.
    #[error("volume {volume} is not served: {why}")]
    Unusable {
        /// The volume's name.
        volume: String,
        /// What opening it said.
        why: String,
    },
    /// The order makes no sense here.
    #[error("{0}")]
    Refused(String),
    /// The attempt is unknown, or over.
    #[error("there is no such attempt on this host any more")]
    Gone,
    /// The attempt did not get this far.
    #[error("{0}")]
    Failed(String),
    /// The volume said no.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A volume outside Coeval does something else now.
    #[error("{0}")]
    Busy(String),
    /// What keeps a volume outside Coeval said no.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl HostError {
    /// The HTTP status that says the same.
    pub fn status(&self) -> u16 {
        match self {
            HostError::NoVolume { .. } => 404,
            // Its own status: the coordinator may make room.
            HostError::Volume(VolumeError::QuotaFull { .. }) => 507,
            HostError::Volume(_) | HostError::Busy(_) => 409,
            HostError::Restarted | HostError::Gone => 410,
            HostError::Refused(_) => 422,
            HostError::Unusable { .. } | HostError::Failed(_) | HostError::Backend(_) => 500,
        }
    }
}

impl HostService {
    /// Opens every volume under the directory, which is created if need be.
    ///
    /// A volume that cannot be opened is reported in the log and refused by name; the others are served.
    ///
    /// # Errors
    /// When the directory cannot be used at all, or another service uses it.
    pub fn open(
        options: HostOptions,
        incarnation: Incarnation,
        clock: HostClock,
    ) -> Result<Arc<Self>, HostError> {
        let root = options.volumes.clone();
        std::fs::create_dir_all(&root).map_err(|error| {
            HostError::Failed(format!("cannot create the volume directory {}: {error}", root.display()))
        })?;
        let lock = lock_root(&root)?;
        // Before anything else, which might wait for just that. What cannot be resumed keeps nobody from starting.
        if let Err(why) = record::lift_all(&root, incarnation.boot) {
            tracing::error!(%why, "a volume outside Coeval may still be paused");
        }
        HostService::open_in(Directory::on_disk(&root), Some(lock), options, incarnation, clock)
    }

    pub(crate) fn open_in(
        root: Directory,
        lock: Option<File>,
        options: HostOptions,
        incarnation: Incarnation,
        clock: HostClock,
    ) -> Result<Arc<Self>, HostError> {
        Volume::remove_left_overs(&root)?;
        let mut volumes = BTreeMap::new();
        for name in Volume::names_in(&root)? {
            let volume = Volume::open_in(&root, &name, clock.clone()).map_err(|error| {
                let unserved = Unserved::new(&root, &name, &error);
                tracing::error!(volume = name, "{}", unserved.why);
                unserved
            });
            if let Ok(volume) = &volume {
                volume.set_merge_rate(options.merge_rate);
            }
            volumes.insert(name, volume);
        }
        let records = Mutex::new(Records::beside(&root));
        Ok(Arc::new(HostService {
            options,
            incarnation,
            clock,
            volumes: RwLock::new(volumes),
            externals: OnceLock::new(),
            attempts: Mutex::default(),
            restores: Mutex::default(),
            records,
            imports: volumes::Imports::default(),
            metrics: HostMetrics::default(),
            nbd: OnceLock::new(),
            hooks: OnceLock::new(),
            root,
            _lock: lock,
        }))
    }

    /// What it was told at start.
    pub fn options(&self) -> &HostOptions {
        &self.options
    }

    /// What it counts.
    pub fn metrics(&self) -> &HostMetrics {
        &self.metrics
    }

    /// Says where the NBD server listens, once it does.
    pub fn set_nbd_endpoints(&self, endpoints: Vec<String>) {
        // A second call would mean a second NBD server for the same volumes; the first one's addresses stay.
        let _ = self.nbd.set(endpoints);
    }

    /// Says that there are hooks, and how long they may take.
    pub fn set_hooks(&self, limits: HookLimits) {
        // As above.
        let _ = self.hooks.set(limits);
    }

    /// How many attempts are under way here.
    #[cfg(feature = "simulation")]
    pub fn attempts_under_way(&self) -> usize {
        self.attempts().current.len()
    }

    /// The last restore that was done to a volume.
    #[cfg(feature = "simulation")]
    pub fn restored(&self, volume: &str) -> Option<uuid::Uuid> {
        self.volume(volume).ok()?.restored()
    }

    /// What a volume shows, whoever is let in.
    #[cfg(feature = "simulation")]
    pub fn content(&self, volume: &str) -> Option<Vec<u8>> {
        self.volume(volume).ok()?.content()
    }

    /// Who this host is and what it has.
    pub fn describe(&self) -> HostDescription {
        let mut volumes: Vec<_> = self.usable().iter().map(|volume| volume.describe()).collect();
        let mut unserved = self.unserved();
        let (externals, silent) = self.describe_externals();
        volumes.extend(externals);
        unserved.extend(silent);
        HostDescription {
            name: self.options.name.clone(),
            host: self.incarnation,
            max_stretch: self.options.max_stretch,
            volumes,
            unserved,
            importing: self.imports.under_way(),
            nbd: self.nbd.get().cloned().unwrap_or_default(),
            hooks: self.hooks.get().copied(),
        }
    }

    /// Makes the volumes' next layers for a cut, and has those outside Coeval get ready. Blocks for their file work, which has no deadline: T is chosen after it.
    ///
    /// # Errors
    /// When the order is for another run of the daemon, or a volume is unknown or busy. Nothing is left of it then.
    pub fn prepare(self: &Arc<Self>, id: AttemptId, order: &PrepareOrder) -> Result<(), HostError> {
        if order.host != self.incarnation {
            return Err(HostError::Restarted);
        }
        let names: BTreeSet<&String> = order.volumes.iter().collect();
        if names.is_empty() || names.len() != order.volumes.len() {
            return Err(HostError::Refused("a cut needs at least one volume, each named once".to_owned()));
        }
        // In the order of their names, so that two attempts meet at the first volume they share.
        let (externals, own): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| self.external(name).is_some());
        let volumes = own.into_iter().map(|name| self.volume(name)).collect::<Result<Vec<_>, _>>()?;
        let what = format!("snapshot attempt {id}");
        let cuts =
            volumes.iter().map(|volume| volume.prepare(&what)).collect::<Result<Vec<_>, VolumeError>>()?;
        let externals = externals.into_iter().filter_map(|name| self.external(name));
        let pausing = externals
            .map(|volume| PausingCut::prepare(volume, &order.name, id, &self.clock))
            .collect::<Result<Vec<_>, HostError>>()?;
        if order.volumes.len() > 1 && !pausing.iter().all(|cut| cut.pauses()) {
            return Err(HostError::Refused(
                "a volume that is not paused has no instant in common with others: take its snapshot alone"
                    .to_owned(),
            ));
        }
        let attempt = Arc::new(Attempt::new(id, order, cuts, pausing, self.clock.clone()));
        self.enlist(id, &attempt)?;
        self.spawn_keeper(id, &attempt)
    }

    /// Arms the prepared volumes.
    ///
    /// # Errors
    /// [`HostError::Gone`] for an attempt that was not prepared, or not by this server, or is armed already: nothing
    /// changes then. Or when the order arrives too late for its T, names a T too far ahead, or a V not below
    /// `max_stretch`: the attempt is over then, and nothing is left armed.
    pub fn arm(&self, id: AttemptId, order: ArmOrder) -> Result<Armed, HostError> {
        if order.host != self.incarnation {
            return Err(HostError::Restarted);
        }
        let attempt = self.current(id)?;
        if attempt.server() != order.server {
            return Err(HostError::Gone);
        }
        let _span = attempt.span().entered();
        let cut = self.check_timing(order.timing).map(|timing| {
            let mode = if matches!(timing, Timing::Barrier) { Mode::Barrier } else { Mode::Timed };
            (mode, Arc::new(Cut::new(timing, self.options.max_stretch)))
        });
        Ok(Armed { host: self.incarnation, armed_at: attempt.arm(order.timing, cut)? })
    }

    /// Barrier mode: cuts now, on all the attempt's volumes at one reading, and holds later completions.
    ///
    /// # Errors
    /// [`HostError::Gone`], or when the attempt is a timed one.
    pub fn strike(&self, id: AttemptId) -> Result<Struck, HostError> {
        let nonce = self.current(id)?.strike()?;
        Ok(Struck { host: self.incarnation, nonce })
    }

    /// Barrier mode: everybody has cut; sends what was held.
    ///
    /// # Errors
    /// [`HostError::Gone`], or when the order does not carry this host's nonce: then somebody else's cut is meant.
    pub fn release(&self, id: AttemptId, order: &ReleaseOrder) -> Result<(), HostError> {
        self.current(id)?.release(&order.nonces)
    }

    /// Waits until the cut is over and its layers are durable, and reports what the clock read.
    ///
    /// # Errors
    /// [`HostError::Gone`], or what kept the layers from being sealed.
    pub fn seal(&self, id: AttemptId) -> Result<Sealed, HostError> {
        #[cfg(feature = "simulation")]
        if let Some(sealed) = self.inherited(id) {
            return Ok(sealed);
        }
        let sealed = self.current(id)?.wait_sealed(self.incarnation);
        self.metrics.cut(sealed.as_ref().ok().map(|sealed| &sealed.readings));
        sealed
    }

    /// Names the sealed state on every volume.
    ///
    /// # Errors
    /// When the attempt is over or void, or a volume cannot store the name; no volume keeps it then.
    pub fn commit(&self, id: AttemptId, order: &CommitOrder) -> Result<(), HostError> {
        #[cfg(feature = "simulation")]
        if self.inherited(id).is_some() {
            return self.commit_inherited(id, &order.name);
        }
        let attempt = self.current(id)?;
        let _span = attempt.span().entered();
        let outcome = {
            // Until the names are given: whoever tidies up meanwhile would take the record for one of nothing.
            let mut kept = self.kept();
            attempt.commit(&order.name, || match &order.record {
                Some(record) => Ok(kept.put(id, record.to_string().as_bytes())?),
                None => Ok(()),
            })
        };
        if matches!(outcome, Err(HostError::Gone)) {
            // An order that comes twice finds the attempt over while the first one still carries it out: what that names
            // is not this one's to drop.
            self.tidy_records();
            return outcome;
        }
        self.end(id);
        match &outcome {
            Ok(()) => tracing::info!(name = order.name, "the snapshot is named"),
            Err(why) => tracing::warn!(name = order.name, %why, "the snapshot is not named"),
        }
        if outcome.is_err() {
            // Some volumes may have taken the name before one could not.
            if let Err(left) = self.drop_names(id) {
                tracing::error!("the name {} stays on a volume: {left}", order.name);
            }
        }
        outcome
    }

    /// Calls an attempt off, whatever became of it: held completions leave at once, the layers stay as part of the
    /// volumes, and a name given by a commit is dropped. A later order for the same attempt is refused. Idempotent.
    ///
    /// # Errors
    /// When a volume cannot drop the name.
    pub fn abort(&self, id: AttemptId) -> Result<(), HostError> {
        let current = self.attempts().current.get(&id).cloned();
        let _span = current.as_ref().map(|attempt| attempt.span().entered());
        if let Some(attempt) = current {
            tracing::info!("the attempt is called off");
            attempt.call_off();
        }
        self.end(id);
        self.drop_names(id)
    }

    /// Cuts the volumes here and now, held back by nothing and coordinated with nobody. The demo's control: snapshots
    /// taken this way on several hosts are torn.
    ///
    /// # Errors
    /// As [`HostService::prepare`], [`HostService::arm`] and [`HostService::commit`].
    pub fn uncoordinated(
        self: &Arc<Self>,
        id: AttemptId,
        volumes: &[String],
        name: &str,
    ) -> Result<(), HostError> {
        let (host, server) = (self.incarnation, self.incarnation);
        let order =
            PrepareOrder { host, server, volumes: volumes.to_vec(), name: name.to_owned(), snapshot: None };
        self.prepare(id, &order)?;
        self.arm(id, ArmOrder { host, server, timing: ArmTiming::Barrier })?;
        let nonce = self.strike(id)?.nonce;
        self.release(id, &ReleaseOrder { nonces: vec![nonce] })?;
        self.seal(id)?;
        self.commit(id, &CommitOrder { name: name.to_owned(), record: None })
    }

    /// Creates a volume of zeros.
    ///
    /// # Errors
    /// When the name is taken or not allowed, or the size does not fit.
    pub fn create_volume(&self, order: &CreateVolume) -> Result<VolumeDescription, HostError> {
        self.refuse_if_known(&order.name)?;
        // Without the lock: cuts and new clients of other volumes do not wait for its syncs. Of two at once with one
        // name, the directory's own lock lets one through.
        let volume = Volume::create_in(&self.root, &order.name, order.size, self.clock.clone())?;
        Ok(self.serve(volume))
    }

    /// Deletes a snapshot of one volume; one that is not there counts as deleted.
    ///
    /// # Errors
    /// When it is in use, or the volume is busy.
    pub fn delete_snapshot(&self, volume: &str, snapshot: &str) -> Result<(), HostError> {
        if let Some(external) = self.external(volume) {
            external.delete(snapshot)?;
            self.tidy_records();
            return Ok(());
        }
        let volume = self.volume(volume)?;
        if !volume.describe().snapshots.iter().any(|name| name == snapshot) {
            return Ok(());
        }
        // A client that has just left is noticed by its connection's thread a moment later.
        let patience_ends = self.clock.now() + LEAVING_PATIENCE;
        loop {
            match volume.delete_snapshot(snapshot) {
                Err(VolumeError::SnapshotInUse { .. }) if self.clock.now() < patience_ends => {
                    thread::sleep(std::time::Duration::from_millis(5));
                }
                result => {
                    result?;
                    self.tidy_records();
                    return Ok(());
                }
            }
        }
    }

    /// Whether a snapshot of a volume exists; for a volume outside Coeval, what its storage says.
    ///
    /// # Errors
    /// When there is no such volume, or its storage does not say.
    pub fn has_snapshot(&self, volume: &str, snapshot: &str) -> Result<bool, HostError> {
        match self.external(volume) {
            Some(external) => external.has(snapshot),
            None => Ok(self.volume(volume)?.describe().snapshots.iter().any(|name| name == snapshot)),
        }
    }

    /// The digest of a snapshot's logical content. Reads all of it; or, with `changes`, only ranges that have changed
    /// since the last digest, at the pace of background work.
    ///
    /// # Errors
    /// When there is no such snapshot, or it cannot be read.
    pub fn digest(&self, volume: &str, snapshot: &str, changes: bool) -> Result<ContentDigest, HostError> {
        let volume = self.volume(volume)?;
        let digest = if changes { volume.digest_of_changes(snapshot) } else { volume.digest(snapshot) }?;
        Ok(ContentDigest { blake3: digest.to_hex().to_string() })
    }

    /// What the snapshots of each volume take, by its name.
    pub fn usage(&self) -> BTreeMap<String, VolumeUsage> {
        self.usable().iter().map(|volume| (volume.name().to_owned(), volume.usage())).collect()
    }

    /// Limits what a volume's snapshots may hold.
    ///
    /// # Errors
    /// When there is no such volume, or it cannot be stored.
    pub fn set_quota(&self, volume: &str, quota: Option<Quota>) -> Result<(), HostError> {
        Ok(self.volume(volume)?.set_quota(quota)?)
    }

    /// A snapshot's extents; with `since`, those that may differ from that snapshot.
    ///
    /// # Errors
    /// When one of the snapshots does not exist.
    pub fn extents(
        &self,
        volume: &str,
        snapshot: &str,
        since: Option<&str>,
    ) -> Result<SnapshotExtents, HostError> {
        Ok(self.volume(volume)?.extents(snapshot, since)?)
    }

    fn check_timing(&self, timing: ArmTiming) -> Result<Timing, HostError> {
        let ArmTiming::Timed { at, stretch } = timing else { return Ok(Timing::Barrier) };
        let lead = at - self.clock.now();
        if lead <= Nanos::ZERO && !mutated!(LateOrder) {
            return Err(HostError::Refused(format!("the order came {} after its own T", -lead)));
        }
        if lead > MAX_LEAD {
            return Err(HostError::Refused(format!("T is {lead} ahead; at most {MAX_LEAD} are accepted")));
        }
        if stretch < Nanos::ZERO || stretch >= self.options.max_stretch {
            return Err(HostError::Refused(format!(
                "a stretch of {stretch} is not below this host's max_stretch of {}",
                self.options.max_stretch
            )));
        }
        Ok(Timing::Timed { at, stretch })
    }

    fn spawn_keeper(self: &Arc<Self>, id: AttemptId, attempt: &Arc<Attempt>) -> Result<(), HostError> {
        let (service, kept) = (Arc::downgrade(self), Arc::clone(attempt));
        let keeper = thread::spawn("keeper".to_owned(), move || {
            let _span = kept.span().entered();
            kept.end_stretch_in_time();
            #[cfg(feature = "simulation")]
            if let Some(service) = service.upgrade() {
                service.note_evidence(id, &kept);
            }
            kept.keep();
            kept.tidy();
            if let Some(service) = service.upgrade() {
                service.end(id);
            }
        });
        match keeper {
            Ok(keeper) => {
                attempt.set_keeper(keeper.thread().clone());
                Ok(())
            }
            Err(error) => {
                attempt.call_off();
                self.end(id);
                Err(HostError::Failed(format!("cannot start a thread for the cut: {error}")))
            }
        }
    }

    fn enlist(&self, id: AttemptId, attempt: &Arc<Attempt>) -> Result<(), HostError> {
        let mut attempts = self.attempts();
        if attempts.current.contains_key(&id) || attempts.ended.contains(&id) {
            return Err(HostError::Gone);
        }
        attempts.current.insert(id, Arc::clone(attempt));
        Ok(())
    }

    /// Moves an attempt to the ended ones. Also one never seen: an order for it may still be on its way.
    fn end(&self, id: AttemptId) {
        let mut attempts = self.attempts();
        attempts.current.remove(&id);
        if !attempts.ended.contains(&id) {
            attempts.ended.push_back(id);
        }
        if attempts.ended.len() > REMEMBERED {
            attempts.ended.pop_front();
        }
    }

    /// Drops the names that an attempt gave, in this run of the daemon or an earlier one.
    fn drop_names(&self, id: AttemptId) -> Result<(), HostError> {
        for volume in self.usable() {
            if let Some(name) = volume.named_by(id) {
                volume.delete_snapshot(&name)?;
            }
        }
        self.drop_external_snapshots(id)?;
        self.tidy_records();
        Ok(())
    }

    fn current(&self, id: AttemptId) -> Result<Arc<Attempt>, HostError> {
        self.attempts().current.get(&id).cloned().ok_or(HostError::Gone)
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        // Each change under the lock is one insertion or removal; a panic cannot leave it half done.
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn volume(&self, name: &str) -> Result<Arc<Volume>, HostError> {
        self.refuse_external(name)?;
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        match volumes.get(name) {
            Some(Ok(volume)) => Ok(Arc::clone(volume)),
            Some(Err(unserved)) => {
                Err(HostError::Unusable { volume: name.to_owned(), why: unserved.why.clone() })
            }
            None => Err(HostError::NoVolume { host: self.options.name.clone(), volume: name.to_owned() }),
        }
    }

    fn unserved(&self) -> BTreeMap<String, String> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        let why_not = |(name, volume): (&String, &Result<_, Unserved>)| {
            Some((name.clone(), volume.as_ref().err()?.why.clone()))
        };
        volumes.iter().filter_map(why_not).collect()
    }

    fn usable(&self) -> Vec<Arc<Volume>> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.values().filter_map(|volume| volume.as_ref().ok().cloned()).collect()
    }
}

/// Two services in one directory would each miss what the other creates.
fn lock_root(root: &Path) -> Result<File, HostError> {
    // No volume can have that name.
    let path = root.join(".lock");
    let failed =
        |error| HostError::Failed(format!("cannot use the volume directory {}: {error}", root.display()));
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(HostError::Failed(format!(
            "another host daemon uses the volume directory {}; stop it or choose another directory",
            root.display()
        ))),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

impl Drop for HostService {
    fn drop(&mut self) {
        // Nothing stays held by a service that goes away in order; one that crashes takes its connections with it.
        for attempt in self.attempts().current.values() {
            attempt.end_stretch_now(Cause::Abort);
        }
    }
}
