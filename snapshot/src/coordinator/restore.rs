//! Restore: the volumes of a snapshot go back to it together.
//!
//! 1. Every host *prepares*: it lets no client in any more and does all that can fail for want of room. A failure here
//!    gives the restore up everywhere.
//! 2. The decision is stored in the catalogue. From here on the restore goes forward, over restarts of hosts and of this
//!    server too, and volumes that have not switched are neither restored otherwise nor snapshotted: that is asked of the
//!    catalogue once they are prepared for the other purpose, when no restore of them can be decided any more.
//! 3. Every host *switches*. One that does not answer is asked again until it has; the caller is told.
//!
//! Nobody sees a volume of the old state beside one of the new: from 1 on, a host lets clients in only after its own
//! switch, unless it is left alone for a minute. Then the rest of the group is still switched, when the host is found
//! again, and the volumes that clients have opened meanwhile are told as being in use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use timesync::bound::Policy;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::library::volumes;
use super::pauses::Pauses;
use super::{Coordinator, CoordinatorError};
use crate::messages::{
    Assumed, HostResult, Manifest, Member, PolicyName, RestoreReport, RestoreRequest, SnapshotState, Verdict,
};
use crate::orders::{RestoreOrder, RestorePrepared, RestoreSwitched};
use crate::remote::RemoteHost;
use crate::sync::task;

/// Between two tries that the caller waits for.
const PAUSE: Duration = Duration::from_millis(500);
/// How often a switch is tried before the caller is told that it goes on in the background.
const TRIES: usize = 3;

/// A restore on its way, as the catalogue has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestorePlan {
    /// Its own id; the one of the snapshot that it makes of the replaced state, too.
    pub id: Uuid,
    /// The snapshot that is restored.
    pub snapshot: Uuid,
    /// What each host is to do.
    pub orders: BTreeMap<String, RestoreOrder>,
    /// The snapshot that the replaced state becomes.
    pub kept: Option<Manifest>,
    /// The hosts that are known to have switched.
    #[serde(default)]
    pub done: BTreeSet<String>,
}

/// What came of asking hosts to switch.
#[derive(Debug, Default)]
struct Switched {
    /// The hosts that have.
    done: BTreeSet<String>,
    /// The volumes that somebody else has restored meanwhile.
    overtaken: Vec<Member>,
    /// Which hosts have not switched, and why.
    unfinished: Vec<String>,
}

impl RestorePlan {
    /// The volumes that may have still to be restored.
    pub fn left(&self) -> Vec<Member> {
        let mut members = Vec::new();
        for (host, order) in self.orders_left() {
            let member = |volume: &String| Member { host: host.clone(), volume: volume.clone() };
            members.extend(order.volumes.iter().map(member));
        }
        members
    }

    fn orders_left(&self) -> impl Iterator<Item = (&String, &RestoreOrder)> {
        self.orders.iter().filter(|(host, _)| !self.done.contains(*host))
    }
}

impl Coordinator {
    /// Puts every volume of a snapshot back to it, in O(1), all or none as far as hosts can be reached. To its end it
    /// goes only if this future is polled to its end, so run it as a task of its own; what was decided when it is cut
    /// short is done at the next start of the server.
    ///
    /// # Errors
    /// [`CoordinatorError`]: nothing has changed then, but for [`CoordinatorError::Unfinished`].
    #[tracing::instrument(name = "restore", skip_all, fields(snapshot = Empty))]
    pub async fn restore(
        self: &Arc<Self>,
        key: &str,
        request: RestoreRequest,
    ) -> Result<RestoreReport, CoordinatorError> {
        let snapshot = self.show(key, false).await?.snapshot;
        Span::current().record("snapshot", display(snapshot.id));
        let standing = matches!(snapshot.state, SnapshotState::Complete | SnapshotState::Inconsistent);
        let Some(manifest) = snapshot.manifest.filter(|_| standing) else {
            return Err(CoordinatorError::Request(format!(
                "snapshot {} does not stand, so it cannot be restored; show it to see why",
                snapshot.name
            )));
        };
        let id = Uuid::now_v7();
        let digits = id.simple().to_string();
        let keep =
            (!request.discard_current).then(|| format!("replaced-{}-{}", &digits[..12], &digits[28..]));
        let mut plan = RestorePlan {
            id,
            snapshot: snapshot.id,
            orders: orders(&manifest, &request, &keep),
            kept: None,
            done: BTreeSet::new(),
        };
        let hosts = plan.orders.keys().map(|name| self.host(name).cloned()).collect::<Result<Vec<_>, _>>()?;

        let stored = plan.clone();
        self.with_catalogue(move |catalogue| catalogue.begin_restore(&stored)).await?;
        let decided = async {
            let prepared = self.prepare_everywhere(&plan, &hosts).await?;
            for (host, order) in &mut plan.orders {
                order.over = prepared.get(host).map(|prepared| prepared.restored.clone());
            }
            plan.kept = keep.map(|name| kept_manifest(&plan, &manifest, name, &prepared));
            let stored = plan.clone();
            self.with_catalogue(move |catalogue| catalogue.decide_restore(&stored)).await
        };
        if let Err(error) = decided.await {
            join_all(hosts.iter().map(|host| host.give_up_restore(id))).await;
            self.with_catalogue(move |catalogue| catalogue.forget_restore(id)).await?;
            return Err(error);
        }

        let Switched { done, overtaken, unfinished } = self.switch_everywhere(&plan, TRIES).await;
        if !unfinished.is_empty() {
            self.note_switched(&mut plan, done).await;
            self.finish_later(plan);
            return Err(CoordinatorError::Unfinished(manifest.name, unfinished.join("; ")));
        }
        let report = RestoreReport {
            id,
            snapshot: manifest.name,
            kept: plan.kept.as_ref().map(|kept| kept.name.clone()),
            volumes: manifest.group,
        };
        self.with_catalogue(move |catalogue| catalogue.finish_restore(&plan)).await?;
        if let Some(volume) = overtaken.first() {
            return Err(CoordinatorError::Conflict(format!(
                "volume {volume} was restored by somebody else at the same time, and is as that restore left it; look at \
                 the volumes of {} and restore again what you want",
                report.snapshot
            )));
        }
        Ok(report)
    }

    /// Takes up the restores that were decided when the last server died.
    pub(super) async fn recover_restores(self: &Arc<Self>) -> Result<(), CoordinatorError> {
        for plan in self.with_catalogue(|catalogue| catalogue.decided_restores()).await? {
            tracing::warn!(snapshot = %plan.snapshot, restore = %plan.id, "the server stopped during this restore; it is being completed");
            self.finish_later(plan);
        }
        Ok(())
    }

    /// Whether a restore of this snapshot has still to be completed somewhere.
    pub(super) async fn is_being_restored(&self, snapshot: Uuid) -> Result<bool, CoordinatorError> {
        let plans = self.with_catalogue(|catalogue| catalogue.decided_restores()).await?;
        Ok(plans.iter().any(|plan| plan.snapshot == snapshot))
    }

    async fn prepare_everywhere(
        &self,
        plan: &RestorePlan,
        hosts: &[Arc<RemoteHost>],
    ) -> Result<BTreeMap<String, RestorePrepared>, CoordinatorError> {
        let prepare = |host: &Arc<RemoteHost>| {
            let (host, order) = (Arc::clone(host), plan.orders[host.name()].clone());
            async move {
                let prepared = host.prepare_restore(plan.id, &order).await?;
                Ok((host.name().to_owned(), prepared))
            }
        };
        // All have answered before any failure counts: whoever is still at it would not hear of it.
        join_all(hosts.iter().map(prepare)).await.into_iter().collect()
    }

    /// Has every host switch of which it is not known that it has.
    async fn switch_everywhere(&self, plan: &RestorePlan, tries: usize) -> Switched {
        let switch = async |name: &String, order: &RestoreOrder| {
            let mut last = Ok(RestoreSwitched::default());
            for attempt in 0..tries {
                if attempt > 0 {
                    task::sleep(PAUSE).await;
                }
                let Ok(host) = self.host(name) else {
                    tracing::warn!(host = name, "not configured any more, so its volumes are not restored");
                    break;
                };
                last = host.switch_restore(plan.id, order).await;
                if last.is_ok() {
                    break;
                }
            }
            last
        };
        let answers = join_all(plan.orders_left().map(|(name, order)| switch(name, order))).await;
        let mut all = Switched::default();
        for ((host, _), answer) in plan.orders_left().zip(answers) {
            match answer {
                Ok(switched) => {
                    all.done.insert(host.clone());
                    let volume = |volume| Member { host: host.clone(), volume };
                    all.overtaken.extend(switched.overtaken.into_iter().map(volume));
                }
                Err(why) => all.unfinished.push(format!("{host}: {why}")),
            }
        }
        all
    }

    /// From here on, these hosts' volumes are free again. Unnoted, the next start asks them once more.
    async fn note_switched(&self, plan: &mut RestorePlan, done: BTreeSet<String>) {
        if done.is_empty() {
            return;
        }
        plan.done.extend(done);
        let stored = plan.clone();
        let noting = self.with_catalogue(move |catalogue| catalogue.go_on_with_restore(&stored));
        if let Err(why) = noting.await {
            tracing::warn!(restore = %plan.id, %why, "which hosts are restored is not noted");
        }
    }

    /// Goes on until every host has switched.
    fn finish_later(self: &Arc<Self>, mut plan: RestorePlan) {
        let coordinator = Arc::clone(self);
        let span = tracing::info_span!("restore", snapshot = %plan.snapshot);
        let finishing = async move {
            let mut pauses = Pauses::new();
            loop {
                let Switched { done, overtaken, unfinished } = coordinator.switch_everywhere(&plan, 1).await;
                for volume in overtaken {
                    tracing::warn!(restore = %plan.id, %volume, "restored by somebody else meanwhile");
                }
                if unfinished.is_empty() {
                    break;
                }
                for why in unfinished {
                    tracing::warn!(restore = %plan.id, why, "not restored yet");
                }
                coordinator.note_switched(&mut plan, done).await;
                pauses.pass().await;
            }
            let id = plan.id;
            match coordinator.with_catalogue(move |catalogue| catalogue.finish_restore(&plan)).await {
                Ok(()) => tracing::info!(restore = %id, "restored on every host"),
                // The next start finds it decided and repeats the orders, which changes nothing any more.
                Err(why) => tracing::warn!(restore = %id, %why, "restored on every host, and not noted"),
            }
        };
        task::spawn(finishing.instrument(span));
    }
}

fn orders(
    manifest: &Manifest,
    request: &RestoreRequest,
    keep: &Option<String>,
) -> BTreeMap<String, RestoreOrder> {
    let mut by_host: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (Member { host, volume }, _) in volumes(manifest) {
        by_host.entry(host).or_default().insert(volume);
    }
    let order = |volumes: BTreeSet<String>| RestoreOrder {
        volumes: volumes.into_iter().collect(),
        snapshot: manifest.name.clone(),
        keep: keep.clone(),
        disconnect: request.disconnect,
        over: None,
    };
    by_host.into_iter().map(|(host, volumes)| (host, order(volumes))).collect()
}

/// What a restore replaced, as a snapshot. Nobody was connected to any of its volumes, but nobody has proved that it is
/// of one instant either.
fn kept_manifest(
    plan: &RestorePlan,
    restored: &Manifest,
    name: String,
    prepared: &BTreeMap<String, RestorePrepared>,
) -> Manifest {
    let host = |(host, prepared): (&String, &RestorePrepared)| {
        HostResult::blank(host.clone(), prepared.host, &plan.orders[host].volumes)
    };
    Manifest {
        id: plan.id,
        name,
        group: restored.group.clone(),
        mode: None,
        verdict: Verdict::Inconsistent,
        refusal: Some(format!("it was not cut: it is what restoring {} replaced", restored.name)),
        margin_ns: None,
        v_ns: None,
        t_ns: None,
        control_round_trip_ns: None,
        attempts: 0,
        policy: PolicyName::Hard,
        group_confidence: None,
        hosts: prepared.iter().map(host).collect(),
        assumptions: Assumed { policy: Policy::Hard, simulated: false, clocks: Vec::new() },
    }
}
