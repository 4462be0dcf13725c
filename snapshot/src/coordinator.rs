//! The coordinator: takes a snapshot of volumes on many hosts, or leaves nothing behind.
//!
//! One snapshot is one or more attempts. Each attempt is planned, armed, sealed and judged anew; one that fails or is
//! refused is undone on every host before the next begins. Discarding loses nothing: a host drops the attempt's name
//! and keeps its data.

mod attempt;
mod claims;
mod delete;
mod export;
mod follow_ups;
mod groups;
mod hooks;
mod library;
mod manifest;
mod pauses;
pub mod plan;
mod rebuild;
mod rehearsal;
mod requests;
mod restore;
mod scheduler;
mod space;
mod undo;
mod volumes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use timesync::source::SkewSource;
use timesync::time::Nanos;
use tracing::field::display;
use uuid::Uuid;

use crate::catalogue::{Catalogue, CatalogueError};
use crate::certificate::Mode;
use crate::follow_ups::FollowUp;
use crate::http::{Connector, ControlError, HttpError};
use crate::messages::{CreateRequest, Manifest, Member, Progress, RequestedMode, RequestedPolicy};
use crate::metrics::SnapshotCounts;
use crate::operations::Operations;
use crate::remote::{HostEndpoint, Limits, RemoteHost};
use crate::sync::task;
use crate::volume::is_name;
use attempt::{Attempt, Stop};
use claims::Claims;
pub use hooks::GroupHook;
pub use rebuild::{Rebuilt, rebuild};
pub use restore::RestorePlan;
use undo::Undo;

/// How the coordinator behaves where a request does not say.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How far ahead of planning T lies.
    pub lead: Nanos,
    /// Attempts in each mode.
    pub attempts: u32,
    /// Whether simulated clocks and the demo's controls are allowed.
    pub simulation: bool,
    /// Whether to compute the digests of a snapshot's volumes once it is complete.
    pub digests: bool,
    /// How long hosts may take.
    pub limits: Limits,
}

impl Default for Options {
    /// 50 ms, three attempts, no simulation, digests.
    fn default() -> Self {
        Options {
            lead: Nanos::from_millis(50),
            attempts: 3,
            simulation: false,
            digests: true,
            limits: Limits::default(),
        }
    }
}

/// Why there is no snapshot, or no answer about one. Each is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// The request makes no sense.
    #[error("{0}")]
    Request(String),
    /// A host or volume that nobody knows.
    #[error("{0}")]
    Unknown(String),
    /// Something of the same name is there already.
    #[error("{0}")]
    Conflict(String),
    /// A saved group lacks a member.
    #[error("{0}")]
    Incomplete(String),
    /// A host failed, refused or did not answer.
    #[error(transparent)]
    Host(#[from] ControlError),
    /// The catalogue failed.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// No attempt was certified.
    #[error("no consistent snapshot in {attempts} attempts: {why}")]
    Refused {
        /// How many there were.
        attempts: u32,
        /// Why the last one was refused.
        why: String,
    },
    /// A hook before the snapshot did not do its work.
    #[error("{0}")]
    Hook(String),
    /// A restore was decided and is not done on every host.
    #[error("{0} is not restored everywhere yet; the server goes on until it is. Not yet on {1}")]
    Unfinished(String, String),
    /// A deletion was begun and is not done on every host.
    #[error("{0} is not deleted everywhere yet; the server goes on until it is. Not yet because: {1}")]
    Undeleted(String, String),
    /// A thread of this server died.
    #[error("the server failed at this: {0}")]
    Internal(String),
}

impl CoordinatorError {
    /// The HTTP status that says it.
    pub fn status(&self) -> u16 {
        match self {
            CoordinatorError::Request(_) => 422,
            CoordinatorError::Unknown(_)
            | CoordinatorError::Catalogue(
                CatalogueError::NoSuch(_)
                | CatalogueError::NoSuchSchedule(_)
                | CatalogueError::NoSuchGroup(_),
            ) => 404,
            CoordinatorError::Conflict(_)
            | CoordinatorError::Catalogue(
                CatalogueError::NameTaken(_)
                | CatalogueError::ScheduleExists(_)
                | CatalogueError::GroupExists(_)
                | CatalogueError::BeingRestored(_)
                | CatalogueError::Busy { .. },
            ) => 409,
            CoordinatorError::Catalogue(_) | CoordinatorError::Internal(_) => 500,
            CoordinatorError::Host(error) => error.status().unwrap_or(502),
            CoordinatorError::Unfinished(..) | CoordinatorError::Undeleted(..) => 502,
            CoordinatorError::Hook(_) => 424,
            // Nothing is wrong with the server: as clocks and hosts are now, no cut was proved, or there can be none.
            CoordinatorError::Incomplete(_) | CoordinatorError::Refused { .. } => 409,
        }
    }
}

/// Takes snapshots and looks after them.
#[derive(Debug)]
pub struct Coordinator {
    source: Source,
    hosts: BTreeMap<String, Arc<RemoteHost>>,
    catalogue: Arc<Catalogue>,
    undo: Undo,
    options: Options,
    hooks: OnceLock<Vec<GroupHook>>,
    operations: Operations,
    counts: SnapshotCounts,
    /// Digests are computed one at a time: they read whole volumes.
    digesting: tokio::sync::Mutex<()>,
    /// Snapshots that somebody works on.
    claims: Arc<Claims>,
    follow_ups: OnceLock<Vec<FollowUp>>,
    /// Follow-ups run one at a time.
    following_up: tokio::sync::Mutex<()>,
    /// Wakes the one who takes scheduled snapshots: there is another schedule, or one less.
    rescheduled: tokio::sync::Notify,
}

/// Only so that whoever has one can be `Debug`.
#[derive(Clone)]
struct Source(Arc<dyn SkewSource>);

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SkewSource")
    }
}

/// One snapshot on its way: the request with all its blanks filled in.
struct Job {
    id: Uuid,
    name: String,
    group: Vec<Member>,
    request: CreateRequest,
    lead: Nanos,
    attempts: u32,
    /// Whether the hooks before it were begun.
    hooks_begun: AtomicBool,
}

impl Coordinator {
    /// A coordinator of `hosts`. Call [`Coordinator::recover`] next.
    ///
    /// # Errors
    /// [`HttpError`] where a host's control URL is unusable.
    pub fn new(
        source: Arc<dyn SkewSource>,
        hosts: &[HostEndpoint],
        catalogue: Arc<Catalogue>,
        connector: &Connector,
        options: Options,
    ) -> Result<Arc<Self>, HttpError> {
        let hosts = hosts
            .iter()
            .map(|host| Ok((host.name.clone(), Arc::new(RemoteHost::new(connector, host, options.limits)?))))
            .collect::<Result<_, HttpError>>()?;
        Ok(Arc::new(Coordinator {
            undo: Undo::new(Arc::clone(&catalogue), Arc::clone(&source)),
            source: Source(source),
            hosts,
            catalogue,
            options,
            hooks: OnceLock::new(),
            operations: Operations::default(),
            counts: SnapshotCounts::default(),
            digesting: tokio::sync::Mutex::new(()),
            claims: Arc::default(),
            follow_ups: OnceLock::new(),
            following_up: tokio::sync::Mutex::new(()),
            rescheduled: tokio::sync::Notify::new(),
        }))
    }

    /// Takes a snapshot. `progress` hears of every step. To the end it goes only if this future is polled to its end,
    /// so run it as a task of its own; whatever is cut short is undone at the next start of the server.
    ///
    /// # Errors
    /// [`CoordinatorError`]; then nothing is left of the snapshot, or will be once every host answers again.
    pub async fn create(
        self: &Arc<Self>,
        request: CreateRequest,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Manifest, CoordinatorError> {
        self.create_for(Uuid::now_v7(), None, request, progress).await
    }

    /// The same, under an id that was chosen before.
    ///
    /// # Errors
    /// As [`Coordinator::create`].
    pub async fn create_as(
        self: &Arc<Self>,
        id: Uuid,
        request: CreateRequest,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Manifest, CoordinatorError> {
        self.create_for(id, None, request, progress).await
    }

    /// What became of the snapshots that it took.
    pub fn counts(&self) -> &SnapshotCounts {
        &self.counts
    }

    /// The long work that this server does.
    pub fn operations(&self) -> &Operations {
        &self.operations
    }

    /// The same, for a schedule.
    #[tracing::instrument(name = "snapshot", skip_all, fields(snapshot = %id))]
    async fn create_for(
        self: &Arc<Self>,
        id: Uuid,
        schedule: Option<String>,
        request: CreateRequest,
        progress: impl Fn(Progress) + Send + Sync,
    ) -> Result<Manifest, CoordinatorError> {
        let job = Arc::new(self.prepare(id, request).await?);
        let (name, owner) = (job.name.clone(), schedule.clone());
        self.with_catalogue(move |catalogue| catalogue.begin(id, &name, owner.as_deref())).await?;
        let mut taken = self.take(&job, &progress).await;
        // A volume's snapshots hold as much as they may.
        if taken.as_ref().is_err_and(|error| error.status() == 507) && self.make_room(&job.group).await {
            taken = self.take(&job, &progress).await;
        }
        if job.hooks_begun.load(Ordering::Relaxed) {
            progress(Progress::from("running the hooks after it".to_owned()));
            self.end_hooks(id).await;
        }
        self.counts.ended(&taken);
        match taken {
            Ok(manifest) => {
                let (margin, attempts) = (manifest.margin_ns.map(display), manifest.attempts);
                tracing::info!(name = manifest.name, margin, attempts, "the snapshot is taken");
                self.digest_later(manifest.clone());
                self.follow_up_later(&manifest, job.request.group_name.clone(), schedule);
                Ok(manifest)
            }
            Err(error) => {
                let why = error.to_string();
                tracing::warn!(why, "there is no snapshot");
                if let Err(unnoted) = self.with_catalogue(move |catalogue| catalogue.fail(id, &why)).await {
                    // The row stays unfinished, and the next start rolls it back.
                    tracing::warn!(why = %unnoted, "the snapshot's failure was not noted");
                }
                Err(error)
            }
        }
    }

    /// Fills in the request's blanks.
    async fn prepare(&self, id: Uuid, request: CreateRequest) -> Result<Job, CoordinatorError> {
        let invalid = |why: &str| Err(CoordinatorError::Request(why.to_owned()));
        let name = match &request.name {
            Some(name) if !is_name(name) => {
                return invalid(&format!(
                    "`{name}` cannot be a snapshot's name: it has up to 64 letters, digits, `-`, `_` or `.`, the first \
                     a letter or digit"
                ));
            }
            Some(name) => name.clone(),
            None => space::generated_name(id),
        };
        let lead = request.lead_ns.unwrap_or(self.options.lead);
        if !(Nanos::from_millis(1)..=Nanos::from_millis(10_000)).contains(&lead) {
            return invalid("the lead is between 1 ms and 10 s");
        }
        let attempts = request.attempts.unwrap_or(self.options.attempts);
        if !(1..=100).contains(&attempts) {
            return invalid("there are between 1 and 100 attempts");
        }
        if let RequestedPolicy::Statistical { group_confidence, .. } = request.policy
            && !(group_confidence > 0.0 && group_confidence < 1.0)
        {
            return invalid("a confidence lies between 0 and 1");
        }
        if request.control.is_some() && !self.options.simulation {
            return invalid("only a server started with --simulation takes snapshots wrongly on purpose");
        }
        if request.control.is_some() && request.mode != RequestedMode::Timed {
            return invalid("the controls are timed snapshots; ask for mode timed");
        }
        self.check_hooks(&request.hooks)?;
        let group = match &request.group_name {
            None => self.resolve(&request.group).await?,
            Some(_) if !request.group.is_empty() => {
                return invalid("name a saved group or list volumes, not both");
            }
            Some(name) => self.whole_group(name).await?,
        };
        Ok(Job { id, name, group, request, lead, attempts, hooks_begun: AtomicBool::new(false) })
    }

    /// The group's volumes, sorted, each once; all volumes of all hosts where it names none.
    async fn resolve(&self, group: &[Member]) -> Result<Vec<Member>, CoordinatorError> {
        let members: BTreeSet<Member> = if group.is_empty() {
            let mut all = BTreeSet::new();
            for description in attempt::describe(self.hosts.values().cloned().collect()).await? {
                let host = description.name;
                let served = description.volumes.into_iter().map(|volume| volume.name);
                // One that cannot be served is a member too: the attempt then says so, and does not leave it out.
                let names = served.chain(description.unserved.into_keys());
                all.extend(names.map(|volume| Member { host: host.clone(), volume }));
            }
            all
        } else {
            group.iter().cloned().collect()
        };
        if members.is_empty() {
            return Err(CoordinatorError::Request(
                "no host has a volume; create one with `coeval volume create`".to_owned(),
            ));
        }
        Ok(members.into_iter().collect())
    }

    async fn take(
        self: &Arc<Self>,
        job: &Arc<Job>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Manifest, CoordinatorError> {
        let modes: &[Mode] = match job.request.mode {
            RequestedMode::Timed => &[Mode::Timed],
            RequestedMode::Barrier => &[Mode::Barrier],
            RequestedMode::Auto => &[Mode::Timed, Mode::Barrier],
        };
        let (mut number, mut last) = (0, String::new());
        for &mode in modes {
            for _ in 0..job.attempts {
                number += 1;
                self.counts.attempted(mode);
                let attempt = Attempt::new(self, job, number, mode, progress).await?;
                if !job.hooks_begun.load(Ordering::Relaxed) {
                    self.begin_hooks(&attempt).await?;
                }
                match attempt.run().await {
                    Ok(manifest) => return Ok(manifest),
                    Err(Stop::Failed(error)) => return Err(error),
                    Err(Stop::Refused(why)) => last = why,
                    Err(Stop::Unplannable(why)) => {
                        last = why;
                        break;
                    }
                }
            }
        }
        Err(CoordinatorError::Refused { attempts: number, why: last })
    }

    /// Runs `work` on the catalogue where blocking is allowed: every change is synced to disk.
    async fn with_catalogue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Catalogue) -> Result<T, CatalogueError> + Send + 'static,
    ) -> Result<T, CoordinatorError> {
        let catalogue = Arc::clone(&self.catalogue);
        match task::spawn_blocking(move || work(&catalogue)).await {
            Ok(result) => Ok(result?),
            Err(panic) => Err(CoordinatorError::Internal(panic.to_string())),
        }
    }

    fn host(&self, name: &str) -> Result<&Arc<RemoteHost>, CoordinatorError> {
        self.hosts.get(name).ok_or_else(|| {
            CoordinatorError::Unknown(format!(
                "no host is called {name}; the server's configuration lists the hosts"
            ))
        })
    }
}

#[cfg(test)]
mod tests;
