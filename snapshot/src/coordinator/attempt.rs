//! One attempt: prepare, plan, arm, seal, judge, and name the result on every host or undo it on every host.
//!
//! A host whose answer is still out may yet carry out what it was asked. So every step waits until each host has
//! answered or used up its time before anything else, an abort too, is sent.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use futures_util::future::join_all;
use serde::Serialize;
use timesync::bound::{Policy, WindowError};
use timesync::identity::Incarnation;
use timesync::source::Observation;
use timesync::time::{Nanos, Server, Time};
use uuid::Uuid;

use super::hooks::first_let_go;
use super::plan::{Candidate, NoPlan, Plan, confidence_of_each, plan};
use super::{Coordinator, CoordinatorError, Job};
use crate::agent::UncoordinatedOrder;
use crate::catalogue::Catalogue;
use crate::certificate::{Certificate, Evidence, HostEvidence, Mode, Observed, certify};
use crate::hooks::HookLimits;
use crate::http::ControlError;
use crate::messages::{
    AttemptProgress, Control, Manifest, Progress, RequestedPolicy, SnapshotState, Step, StoryEntry, Verdict,
};
use crate::mutation::mutated;
use crate::orders::{
    ArmOrder, ArmTiming, AttemptId, CommitOrder, ExternalDescription, ExternalPart, HostDescription,
    PrepareOrder, ReleaseOrder, Sealed,
};
use crate::remote::RemoteHost;
use crate::sync::task;

/// Pings per host before a barrier; the median of an odd number is one of them.
const PINGS: usize = 5;

/// The lead of a repeated attempt does not grow beyond this.
const LONGEST_LEAD: Nanos = Nanos::from_millis(1_000);

/// Why an attempt ended without a snapshot.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    /// Another attempt may do better.
    #[error("{0}")]
    Refused(String),
    /// No timed attempt can do better; messages might.
    #[error("{0}")]
    Unplannable(String),
    /// No attempt can.
    #[error(transparent)]
    Failed(#[from] CoordinatorError),
}

impl From<ControlError> for Stop {
    /// 422: an order that came too late, or was meant for the host's previous run. 410: the host restarted since it
    /// was armed. A new attempt asks anew.
    fn from(error: ControlError) -> Self {
        match error.status() {
            Some(410 | 422) => Stop::Refused(error.to_string()),
            _ => Stop::Failed(error.into()),
        }
    }
}

pub(super) struct Participant {
    pub(super) remote: Arc<RemoteHost>,
    pub(super) incarnation: Incarnation,
    pub(super) max_stretch: Nanos,
    /// How long its slowest volume last took to pause.
    pub(super) pausing: Nanos,
    pub(super) volumes: Vec<String>,
    pub(super) hooks: Option<HookLimits>,
}

/// A cut that every host has sealed.
pub(super) struct Taken {
    pub(super) evidence: Evidence,
    pub(super) timed: Option<(Plan, Vec<Observation>)>,
    pub(super) round_trip: Option<Nanos>,
    /// Of each host, its volumes outside Coeval.
    pub(super) externals: Vec<Vec<ExternalPart>>,
}

pub(super) struct Attempt<'a> {
    pub(super) coordinator: &'a Coordinator,
    pub(super) job: &'a Job,
    id: AttemptId,
    pub(super) number: u32,
    pub(super) mode: Mode,
    pub(super) participants: Vec<Participant>,
    progress: &'a (dyn Fn(Progress) + Send + Sync),
    story: Mutex<Vec<StoryEntry>>,
    /// How long an order to all hosts takes, the quickest that there was.
    reach: Mutex<Option<Nanos>>,
}

/// Who the hosts are and what they have.
pub(super) async fn describe(hosts: Vec<Arc<RemoteHost>>) -> Result<Vec<HostDescription>, CoordinatorError> {
    let answers = join_all(hosts.iter().map(|host| host.describe())).await;
    let mut descriptions = Vec::new();
    for (host, answer) in hosts.into_iter().zip(answers) {
        let description = answer?;
        if description.name != host.name() {
            return Err(CoordinatorError::Unknown(format!(
                "the control URL of host {} leads to host {}; correct the server's configuration",
                host.name(),
                description.name
            )));
        }
        descriptions.push(description);
    }
    Ok(descriptions)
}

impl<'a> Attempt<'a> {
    /// Asks the group's hosts who they are now, and whether they have the volumes.
    pub(super) async fn new(
        coordinator: &'a Coordinator,
        job: &'a Job,
        number: u32,
        mode: Mode,
        progress: &'a (dyn Fn(Progress) + Send + Sync),
    ) -> Result<Self, CoordinatorError> {
        let mut attempt = Attempt {
            coordinator,
            job,
            id: Uuid::now_v7(),
            number,
            mode,
            participants: Vec::new(),
            progress,
            story: Mutex::default(),
            reach: Mutex::default(),
        };
        attempt.report(Step::Describe, "asking the hosts".to_owned());
        let mut remotes: Vec<Arc<RemoteHost>> = Vec::new();
        // The group is sorted, so a host's members stand together.
        for group in job.group.chunk_by(|a, b| a.host == b.host) {
            remotes.push(Arc::clone(coordinator.host(&group[0].host)?));
        }
        if let Err(error) = attempt.enlist(remotes).await {
            attempt.note(Step::Describe, None, error.to_string());
            attempt.tell().await;
            return Err(error);
        }
        Ok(attempt)
    }

    async fn enlist(&mut self, remotes: Vec<Arc<RemoteHost>>) -> Result<(), CoordinatorError> {
        let job = self.job;
        let asked = self.coordinator.source.0.now();
        let descriptions = describe(remotes.clone()).await?;
        self.reached_since(asked);
        let groups = job.group.chunk_by(|a, b| a.host == b.host);
        for ((remote, description), group) in remotes.into_iter().zip(descriptions).zip(groups) {
            let volumes: Vec<String> = group.iter().map(|member| member.volume.clone()).collect();
            let mut pausing = Nanos::ZERO;
            for name in &volumes {
                let host = remote.name();
                match description.volumes.iter().find(|volume| volume.name == *name) {
                    None => {
                        let why = match description.unserved.get(name) {
                            Some(why) => format!("host {host} does not serve volume {name}: {why}"),
                            None => format!("host {host} has no volume {name}"),
                        };
                        return Err(CoordinatorError::Unknown(why));
                    }
                    Some(volume) if volume.snapshots.contains(&job.name) => {
                        return Err(CoordinatorError::Conflict(format!(
                            "volume {name} of host {host} has a snapshot called {} that is not in this server's \
                             catalogue; choose another name",
                            job.name
                        )));
                    }
                    Some(volume) => match &volume.external {
                        Some(ExternalDescription { pauses: false, .. }) if job.group.len() > 1 => {
                            return Err(CoordinatorError::Request(format!(
                                "volume {name} of host {host} is not paused for a snapshot, so it has no instant in common \
                                 with others; take its snapshot alone, or configure a pause for it"
                            )));
                        }
                        Some(ExternalDescription { last_pausing_ns: Some(last), .. }) => {
                            pausing = pausing.max(*last);
                        }
                        _ => {}
                    },
                }
            }
            self.participants.push(Participant {
                remote,
                incarnation: description.host,
                max_stretch: description.max_stretch,
                pausing,
                volumes,
                hooks: description.hooks,
            });
        }
        Ok(())
    }

    /// Goes through with it. Without a snapshot, the attempt is undone when this returns, or will be once every host
    /// answers again.
    pub(super) async fn run(self) -> Result<Manifest, Stop> {
        self.begin().await?;
        let result = self.take_and_keep().await;
        if let Err(stop) = &result {
            self.note(Step::Abort, None, stop.to_string());
            self.report(Step::Abort, format!("undoing the attempt: {stop}"));
            // What each host answers to the abort comes after it.
            self.tell().await;
            self.undo().await;
        }
        self.tell().await;
        result
    }

    /// Stores what the story has come to. A server that dies tells no more than this.
    async fn tell(&self) {
        let story = std::mem::take(&mut *self.story.lock().unwrap_or_else(PoisonError::into_inner));
        let (snapshot, id) = (self.job.id, self.id);
        if let Err(why) =
            self.coordinator.with_catalogue(move |catalogue| catalogue.tell(snapshot, &story)).await
        {
            tracing::warn!(attempt = %id, %why, "the attempt's story was not stored");
        }
    }

    /// From now on its hosts are owed an abort.
    pub(super) async fn begin(&self) -> Result<(), CoordinatorError> {
        let (snapshot, id, hosts) = (self.job.id, self.id, self.names());
        self.coordinator.with_catalogue(move |catalogue| catalogue.begin_attempt(snapshot, id, &hosts)).await
    }

    /// On every host, or later on those that do not answer.
    pub(super) async fn undo(&self) {
        let remotes: Vec<_> = self.participants.iter().map(|host| Arc::clone(&host.remote)).collect();
        for (host, why) in self.coordinator.undo.everywhere(self.id, &remotes).await {
            self.note(Step::Abort, Some(&host), format!("{why}; it is asked again until it answers"));
        }
    }

    async fn take_and_keep(&self) -> Result<Manifest, Stop> {
        if self.job.request.control == Some(Control::Uncoordinated) {
            return self.uncoordinated().await;
        }
        let taken = match self.mode {
            Mode::Timed => self.timed().await?,
            Mode::Barrier => self.barrier().await?,
        };
        let verdict = certify(&taken.evidence);
        let words = match &verdict {
            Ok(Certificate { margin: Some(margin), .. }) => format!("consistent by {margin}"),
            Ok(Certificate { margin: None, .. }) => "consistent".to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        self.note(Step::Certify, None, words.clone());
        self.report(Step::Certify, words);
        if let Err(refusal) = &verdict
            && self.job.request.control.is_none()
        {
            return Err(Stop::Refused(refusal.to_string()));
        }
        if let Some(host) = first_let_go(self.job.id, &self.participants).await? {
            return Err(Stop::Failed(CoordinatorError::Hook(format!(
                "host {host} has restarted or lost patience, and ended what its hook before the snapshot began"
            ))));
        }
        let manifest = self.manifest(&taken, verdict);
        self.keep(manifest, taken.evidence).await
    }

    /// Cuts at T on every host, by its own clock.
    async fn timed(&self) -> Result<Taken, Stop> {
        let source = &self.coordinator.source.0;
        let server_before = source.incarnation();
        // A disk may take its time: what waits for one is done before T is chosen.
        self.prepare(server_before).await?;
        self.tell().await;
        let (plan, planned) = self.foresee().await?;
        let policy = self.policy();
        let words = format!("T in {}, V = {}", self.lead(), plan.stretch);
        self.note(Step::Plan, None, words.clone());
        self.report(Step::Plan, words);
        for ((host, at), error) in self.participants.iter().zip(&plan.at).zip(&plan.errors) {
            let words = format!("T is {} on its clock, known within ± {error}", at.as_nanos());
            self.note(Step::Plan, Some(host.remote.name()), words);
        }
        let timings = plan.at.iter().map(|&at| ArmTiming::Timed { at, stretch: plan.stretch }).collect();
        self.arm(server_before, timings).await?;
        self.tell().await;
        let sealed = self.seal(server_before, self.lead() + plan.stretch).await?;
        // Every host has read its Q by now, so these exchanges lie after it, as those of the plan lie before P.
        self.report(Step::Measure, "exchanging timestamps again".to_owned());
        let remeasured = if mutated!(NotRemeasured) {
            planned.clone()
        } else {
            self.measure().await.map_err(|why| Stop::Refused(why.to_string()))?
        };
        let hosts = self.participants.iter().zip(&sealed).zip(planned.iter().zip(&remeasured));
        let hosts = hosts.map(|((host, sealed), (planned, remeasured))| HostEvidence {
            host: host.remote.name().to_owned(),
            ordered: host.incarnation,
            reported: sealed.host,
            readings: sealed.readings,
            nonce: None,
            observed: Some(Observed::of(planned, remeasured)),
        });
        let evidence = Evidence {
            mode: Mode::Timed,
            policy,
            server_before,
            server_after: source.incarnation(),
            released_nonces: Vec::new(),
            hosts: hosts.collect(),
        };
        let externals = sealed.into_iter().map(|sealed| sealed.externals).collect();
        Ok(Taken { evidence, timed: Some((plan, remeasured)), round_trip: None, externals })
    }

    /// The plan by fresh exchanges, and what was known of each host.
    pub(super) async fn foresee(&self) -> Result<(Plan, Vec<Observation>), Stop> {
        self.report(Step::Measure, "exchanging timestamps".to_owned());
        let planned = self.measure().await.map_err(|why| match why {
            Unmeasured::Restarted(why) => Stop::Refused(why),
            Unmeasured::Unobserved(why) => Stop::Unplannable(why),
            Unmeasured::Internal(why) => Stop::Failed(CoordinatorError::Internal(why)),
        })?;
        Ok((self.plan(&planned, &self.policy())?, planned))
    }

    /// Far enough ahead for an order to reach all hosts: where nobody asked for another one, at least twice as long as that
    /// took, since a hundred hosts take longer than three. With room for twice the time that the slowest volume last took
    /// to pause. And twice as far with each further attempt: on a busy machine an order may arrive after its own T.
    pub(super) fn lead(&self) -> Nanos {
        let reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(Nanos::ZERO);
        let least = if self.job.request.lead_ns.is_none() { reach + reach } else { Nanos::ZERO };
        let lead = self.job.lead.max(least.min(LONGEST_LEAD));
        let doublings = self.number.saturating_sub(1).min(16);
        let pausing = self.participants.iter().map(|host| host.pausing).max().unwrap_or(Nanos::ZERO);
        let first = lead + pausing + pausing;
        Nanos::new(first.get() << doublings).min(LONGEST_LEAD.max(self.job.lead))
    }

    /// All hosts have answered an order that was given at that time. The quickest counts: one opened the connections, the
    /// other one had to wait for disks.
    fn reached_since(&self, asked: Time<Server>) {
        let took = self.coordinator.source.0.now() - asked;
        let mut reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        *reach = Some(reach.map_or(took, |quickest| quickest.min(took)));
    }

    fn plan(&self, observations: &[Observation], policy: &Policy) -> Result<Plan, Stop> {
        let candidates: Vec<_> = self
            .participants
            .iter()
            .zip(observations)
            .map(|(host, observation)| Candidate {
                bound: |at| observation.window.bound(at, policy),
                rate_ppb: observation.window.assumptions().rate_ppb,
                max_stretch: host.max_stretch,
            })
            .collect();
        let name = |index: usize| self.participants[index].remote.name();
        match plan(self.coordinator.source.0.now(), self.lead(), &candidates) {
            Ok(plan) => Ok(match self.job.request.control {
                Some(control) => plan.spoiled(control),
                None => plan,
            }),
            // The prober starts over after a broken assumption, so the next attempt measures a sound window.
            Err(NoPlan::Unbounded(index, why @ WindowError::Broken)) => {
                Err(Stop::Refused(format!("no bound for host {}: {why}", name(index))))
            }
            Err(NoPlan::Unbounded(index, why)) => {
                Err(Stop::Unplannable(format!("no bound for host {}: {why}", name(index))))
            }
            Err(NoPlan::TooWide { host, stretch }) => Err(Stop::Unplannable(format!(
                "the clocks are too uncertain for a timed cut: V would be {stretch}, and host {} stretches by less \
                 than {}; use mode barrier, or bring the round trip down",
                name(host),
                self.participants[host].max_stretch
            ))),
        }
    }

    /// Cuts on every host by message.
    async fn barrier(&self) -> Result<Taken, Stop> {
        let server_before = self.coordinator.source.0.incarnation();
        self.prepare(server_before).await?;
        self.report(Step::Measure, "measuring the control round trip".to_owned());
        let round_trip = self.round_trip().await?;
        self.note(Step::Measure, None, format!("a control round trip takes {round_trip}"));
        self.tell().await;
        self.arm(server_before, vec![ArmTiming::Barrier; self.participants.len()]).await?;
        self.report(Step::Strike, "cutting by message".to_owned());
        // From here to the release, writers wait. All orders leave at once on connections that the pings opened, and
        // nothing else is done in between.
        let limit =
            self.participants.iter().map(|host| host.max_stretch).min().unwrap_or(Nanos::ZERO).to_std();
        // The mistake would not show if the coordinator gave up in time.
        let limit = if mutated!(TimeoutCertified) { self.coordinator.options.limits.step } else { limit };
        let id = self.id;
        let strike = |_, host: Arc<RemoteHost>| async move { host.strike(id, limit).await };
        let struck = self.everywhere(Step::Strike, strike).await?;
        let nonces: Vec<Uuid> = struck.iter().map(|struck| struck.nonce).collect();
        let order = Bytes::from(json(&ReleaseOrder { nonces: nonces.clone() }));
        let release = |_, host: Arc<RemoteHost>| {
            let order = order.clone();
            async move { host.release(id, order).await }
        };
        self.everywhere(Step::Release, release).await?;
        let sealed = self.seal(server_before, Nanos::ZERO).await?;
        let hosts = self.participants.iter().zip(&sealed).map(|(host, sealed)| HostEvidence {
            host: host.remote.name().to_owned(),
            ordered: host.incarnation,
            reported: sealed.host,
            readings: sealed.readings,
            nonce: sealed.nonce,
            observed: None,
        });
        let evidence = Evidence {
            mode: Mode::Barrier,
            // No clock is asked, so no bound counts.
            policy: Policy::Hard,
            server_before,
            server_after: self.coordinator.source.0.incarnation(),
            released_nonces: nonces,
            hosts: hosts.collect(),
        };
        let externals = sealed.into_iter().map(|sealed| sealed.externals).collect();
        Ok(Taken { evidence, timed: None, round_trip: Some(round_trip), externals })
    }

    /// Lets each host cut when it is told, one after the other: what people do who have no coordinator.
    async fn uncoordinated(&self) -> Result<Manifest, Stop> {
        let manifest = Manifest {
            mode: None,
            verdict: Verdict::Inconsistent,
            refusal: Some("the hosts were not coordinated".to_owned()),
            ..self.blank_manifest()
        };
        let stored = manifest.clone();
        self.coordinator.with_catalogue(move |catalogue| catalogue.committing(&stored, None)).await?;
        for host in &self.participants {
            let order = UncoordinatedOrder { volumes: host.volumes.clone(), name: self.job.name.clone() };
            host.remote.uncoordinated(self.id, &order).await?;
        }
        self.finish(SnapshotState::Inconsistent).await?;
        Ok(manifest)
    }

    pub(super) async fn prepare(&self, server: Incarnation) -> Result<(), Stop> {
        self.report(Step::Prepare, "making the next layers".to_owned());
        let id = self.id;
        let order = |index: usize, host: Arc<RemoteHost>| {
            let Participant { incarnation, volumes, .. } = &self.participants[index];
            let order = PrepareOrder {
                host: *incarnation,
                server,
                volumes: volumes.clone(),
                name: self.job.name.clone(),
                snapshot: Some(self.job.id),
            };
            async move { host.prepare(id, &order).await }
        };
        let asked = self.coordinator.source.0.now();
        self.everywhere(Step::Prepare, order).await?;
        self.reached_since(asked);
        // Now: prepared volumes are not restored any more (see the restore's own argument).
        let group = self.job.group.clone();
        let clear = move |catalogue: &Catalogue| catalogue.refuse_if_being_restored(&group);
        Ok(self.coordinator.with_catalogue(clear).await?)
    }

    async fn arm(&self, server: Incarnation, timings: Vec<ArmTiming>) -> Result<(), Stop> {
        self.report(Step::Arm, format!("arming {} hosts", self.participants.len()));
        let id = self.id;
        let order = |index: usize, host: Arc<RemoteHost>| {
            let host_run = self.participants[index].incarnation;
            let order = ArmOrder { host: host_run, server, timing: timings[index] };
            async move { host.arm(id, &order).await }
        };
        self.everywhere(Step::Arm, order).await.map(|_| ())
    }

    async fn seal(&self, server: Incarnation, until_release: Nanos) -> Result<Vec<Sealed>, Stop> {
        self.report(Step::Seal, "waiting until the cut is durable".to_owned());
        let (id, until_release) = (self.id, until_release.to_std());
        let order = |_, host: Arc<RemoteHost>| async move {
            let sealed = host.seal(id, until_release).await;
            #[cfg(feature = "simulation")]
            if mutated!(RestartedEvidence) && sealed.is_err() {
                return ask_the_next_run(&host, id).await;
            }
            sealed
        };
        let sealed = self.everywhere(Step::Seal, order).await?;
        for (host, sealed) in self.participants.iter().zip(&sealed) {
            if sealed.server != server || sealed.mode != self.mode {
                let name = host.remote.name();
                return Err(Stop::Refused(format!("host {name} sealed another order than this server's")));
            }
        }
        Ok(sealed)
    }

    /// Stores the verdict, then names the cut on every host.
    async fn keep(&self, manifest: Manifest, evidence: Evidence) -> Result<Manifest, Stop> {
        let stored = manifest.clone();
        let name = self.job.name.clone();
        let hosts: Vec<_> = self.participants.iter().map(|host| host.remote.name().to_owned()).collect();
        let orders: Vec<Bytes> = self
            .coordinator
            .with_catalogue(move |catalogue| {
                catalogue.committing(&stored, Some(&evidence))?;
                let whole = catalogue.record(stored.id)?;
                let order = |host: &String| {
                    let record = Some(serde_json::to_value(whole.part_of(host))?);
                    Ok(Bytes::from(json(&CommitOrder { name: name.clone(), record })))
                };
                hosts.iter().map(order).collect()
            })
            .await?;
        self.report(Step::Commit, "naming the snapshot on every host".to_owned());
        let commit = |index: usize, host: Arc<RemoteHost>| {
            let (id, order) = (self.id, orders[index].clone());
            async move { host.commit(id, order).await }
        };
        self.everywhere(Step::Commit, commit).await?;
        self.finish(match manifest.verdict {
            Verdict::Consistent => SnapshotState::Complete,
            Verdict::Inconsistent => SnapshotState::Inconsistent,
        })
        .await?;
        Ok(manifest)
    }

    async fn finish(&self, state: SnapshotState) -> Result<(), Stop> {
        let (snapshot, id) = (self.job.id, self.id);
        Ok(self.coordinator.with_catalogue(move |catalogue| catalogue.finish(snapshot, id, state)).await?)
    }

    /// Sends one order to all hosts at once, and waits for all. The first host that did not do it names the error.
    async fn everywhere<T: Serialize, F: Future<Output = Result<T, ControlError>>>(
        &self,
        step: Step,
        order: impl Fn(usize, Arc<RemoteHost>) -> F,
    ) -> Result<Vec<T>, Stop> {
        let hosts = self.participants.iter().enumerate();
        let answers = join_all(hosts.map(|(index, host)| order(index, Arc::clone(&host.remote)))).await;
        for (host, answer) in self.participants.iter().zip(&answers) {
            let detail = match answer {
                Ok(answer) => json(answer),
                Err(why) => why.to_string(),
            };
            self.note(step, Some(host.remote.name()), detail);
        }
        Ok(answers.into_iter().collect::<Result<_, _>>()?)
    }

    /// A burst of exchanges with every host, and what is known of each after it.
    async fn measure(&self) -> Result<Vec<Observation>, Unmeasured> {
        let (source, names) = (Arc::clone(&self.coordinator.source.0), self.names());
        task::spawn_blocking(move || source.burst(&names))
            .await
            .map_err(|panic| Unmeasured::Internal(panic.to_string()))?;
        let observe = |host: &Participant| {
            let name = host.remote.name();
            let observation = self
                .coordinator
                .source
                .0
                .observe(name)
                .map_err(|why| Unmeasured::Unobserved(why.to_string()))?;
            if observation.incarnation != host.incarnation && !mutated!(RestartedEvidence) {
                return Err(Unmeasured::Restarted(format!(
                    "host {name}'s exchanges come from another run of it than the one that takes orders"
                )));
            }
            Ok(observation)
        };
        self.participants.iter().map(observe).collect()
    }

    /// The median round trip of a control message to the slowest host.
    pub(super) async fn round_trip(&self) -> Result<Nanos, Stop> {
        let medians = join_all(self.participants.iter().map(|host| {
            let (host, source) = (Arc::clone(&host.remote), Arc::clone(&self.coordinator.source.0));
            async move {
                // The first one may have to open the connection.
                host.ping().await?;
                let mut times = [Nanos::ZERO; PINGS];
                for time in &mut times {
                    let sent = source.now();
                    host.ping().await?;
                    *time = source.now() - sent;
                }
                times.sort_unstable();
                Ok::<_, ControlError>(times[PINGS / 2])
            }
        }))
        .await;
        let medians = medians.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(medians.into_iter().max().unwrap_or(Nanos::ZERO))
    }

    fn policy(&self) -> Policy {
        match self.job.request.policy {
            RequestedPolicy::Hard => Policy::Hard,
            RequestedPolicy::Statistical { group_confidence, budget } => Policy::Statistical {
                confidence: confidence_of_each(group_confidence, self.participants.len(), self.job.attempts),
                budget,
            },
        }
    }

    fn names(&self) -> Vec<String> {
        self.participants.iter().map(|host| host.remote.name().to_owned()).collect()
    }

    pub(super) fn report(&self, step: Step, detail: String) {
        let attempt = AttemptProgress { number: self.number, mode: self.mode, step };
        (self.progress)(Progress { detail, attempt: Some(attempt) });
    }

    fn note(&self, step: Step, host: Option<&str>, detail: String) {
        let at_ns = self.coordinator.source.0.now();
        let entry = StoryEntry { attempt: self.id, at_ns, step, host: host.map(str::to_owned), detail };
        self.story.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    }
}

/// The mistake that a daemon's next run is believed to have seen what the last one saw.
#[cfg(feature = "simulation")]
async fn ask_the_next_run(host: &RemoteHost, attempt: AttemptId) -> Result<Sealed, ControlError> {
    for _ in 0..50 {
        task::sleep(std::time::Duration::from_millis(4)).await;
        match host.seal(attempt, std::time::Duration::ZERO).await {
            Err(ControlError::Unreachable { .. }) => {}
            answer => return answer,
        }
    }
    host.seal(attempt, std::time::Duration::ZERO).await
}

/// Why the hosts' clocks are not known.
#[derive(Debug, thiserror::Error)]
enum Unmeasured {
    #[error("{0}")]
    Unobserved(String),
    #[error("{0}")]
    Restarted(String),
    #[error("the exchanges failed: {0}")]
    Internal(String),
}

#[expect(
    clippy::expect_used,
    reason = "the control plane's own types have string keys and no fallible serialiser"
)]
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a plain struct serialises")
}
