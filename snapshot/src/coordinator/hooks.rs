//! The hooks around a snapshot: this server's own for its group, and its hosts'.
//!
//! This server's run first and last. Once a snapshot, not once an attempt: an application that was made quiet stays so
//! until there is a snapshot or there is none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use uuid::Uuid;

use super::attempt::{Attempt, Participant};
use super::pauses::Pauses;
use super::{Coordinator, CoordinatorError};
use crate::catalogue::Debt;
use crate::hooks::host::BeforeOrder;
use crate::hooks::{About, Hooks, Moment, run, tell};
use crate::messages::{Member, Step, StoryEntry};
use crate::sync::task;

/// Hooks that run on this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHook {
    /// What requests call it.
    pub name: String,
    /// It runs for every snapshot that has one of these volumes, and for those that name it.
    pub volumes: Vec<Member>,
    /// What runs.
    pub hooks: Hooks,
}

impl Coordinator {
    /// Says which hooks there are on this server, once.
    pub fn set_hooks(&self, hooks: Vec<GroupHook>) {
        // A second call would mean a second configuration; the first one's stay.
        let _ = self.hooks.set(hooks);
    }

    fn own_hooks(&self) -> &[GroupHook] {
        self.hooks.get().map_or(&[], Vec::as_slice)
    }

    /// Whether all that are named are known.
    pub(super) fn check_hooks(&self, named: &[String]) -> Result<(), CoordinatorError> {
        let known = |name: &&String| self.own_hooks().iter().any(|hook| hook.name == **name);
        match named.iter().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => Err(CoordinatorError::Request(format!(
                "no hook is called {name}; the [[hook]] sections of the server's configuration name them"
            ))),
        }
    }

    /// Runs the hooks before a snapshot. Whatever comes of it, [`Coordinator::end_hooks`] is due afterwards.
    pub(super) async fn begin_hooks(&self, attempt: &Attempt<'_>) -> Result<(), CoordinatorError> {
        let job = attempt.job;
        let concerned = |hook: &&GroupHook| {
            job.request.hooks.contains(&hook.name)
                || hook.volumes.iter().any(|volume| job.group.contains(volume))
        };
        let own: Vec<&GroupHook> = self.own_hooks().iter().filter(concerned).collect();
        let participants = attempt.participants.iter();
        let on_hosts: Vec<_> = participants.filter_map(|host| Some((host, host.hooks?))).collect();
        if own.is_empty() && on_hosts.is_empty() {
            return Ok(());
        }
        job.hooks_begun.store(true, Ordering::Relaxed);
        attempt.report(Step::Before, "running the hooks before it".to_owned());
        for hook in own {
            let volumes = job.group.iter().map(Member::to_string).collect();
            let about = About { snapshot: job.id, name: job.name.clone(), volumes };
            let after = hook.hooks.after.clone();
            let debt = Debt::Own { name: hook.name.clone(), after, about: about.clone() };
            let id = job.id;
            self.with_catalogue(move |catalogue| catalogue.owe_hooks(id, &[debt])).await?;
            let Some(before) = hook.hooks.before.clone() else { continue };
            let outcome = task::spawn_blocking(move || run(&before, Moment::Before, &about)).await;
            let outcome = outcome.map_err(|panic| CoordinatorError::Internal(panic.to_string()))?;
            self.tell_of_command(job.id, Step::Before, None, format!("{}: {}", hook.name, tell(&outcome)))
                .await?;
            if let Err(why) = outcome {
                return Err(CoordinatorError::Hook(format!("{}: {why}", hook.name)));
            }
        }
        let debts: Vec<Debt> =
            on_hosts.iter().map(|(host, _)| Debt::Host(host.remote.name().to_owned())).collect();
        let id = job.id;
        self.with_catalogue(move |catalogue| catalogue.owe_hooks(id, &debts)).await?;
        let answers = join_all(on_hosts.iter().map(|(host, limits)| {
            let (name, volumes) = (job.name.clone(), host.volumes.clone());
            let order = BeforeOrder { host: host.incarnation, name, volumes };
            async move { host.remote.begin_hooks(id, &order, limits.before.to_std()).await }
        }))
        .await;
        let mut failed = None;
        for ((host, _), answer) in on_hosts.iter().zip(answers) {
            let detail = match answer {
                Ok(report) => report.detail,
                Err(why) => {
                    let detail = why.to_string();
                    failed = failed.or(Some(CoordinatorError::Host(why)));
                    detail
                }
            };
            self.tell_of_command(id, Step::Before, Some(host.remote.name()), detail).await?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Runs the hooks after a snapshot that are owed: on the hosts at once, then on this server. A host that does not
    /// answer is asked again in the background; by its own patience it has then run its hook itself.
    pub(super) async fn end_hooks(self: &Arc<Self>, snapshot: Uuid) {
        let owed = match self.with_catalogue(move |catalogue| catalogue.hooks_owed(Some(snapshot))).await {
            Ok(owed) => owed,
            Err(why) => {
                tracing::error!(%snapshot, %why, "the hooks after it are not run before the next start");
                return;
            }
        };
        let (on_hosts, own): (Vec<_>, Vec<_>) =
            owed.into_iter().map(|(_, debt)| debt).partition(|debt| matches!(debt, Debt::Host(_)));
        let ended = join_all(on_hosts.iter().map(|debt| self.end_hook(snapshot, debt))).await;
        for (debt, ended) in on_hosts.into_iter().zip(ended) {
            if !ended {
                self.end_hook_later(snapshot, debt);
            }
        }
        for debt in own {
            self.end_hook(snapshot, &debt).await;
        }
    }

    /// Takes up the hooks that the last server left.
    pub(super) async fn recover_hooks(self: &Arc<Self>) -> Result<(), CoordinatorError> {
        for (snapshot, debt) in self.with_catalogue(|catalogue| catalogue.hooks_owed(None)).await? {
            tracing::warn!(%snapshot, ?debt, "a hook after a snapshot is owed since the last start");
            self.end_hook_later(snapshot, debt);
        }
        Ok(())
    }

    fn end_hook_later(self: &Arc<Self>, snapshot: Uuid, debt: Debt) {
        let coordinator = Arc::clone(self);
        task::spawn(async move {
            let mut pauses = Pauses::new();
            while !coordinator.end_hook(snapshot, &debt).await {
                pauses.pass().await;
            }
        });
    }

    /// Whether it is known what became of it.
    async fn end_hook(&self, snapshot: Uuid, debt: &Debt) -> bool {
        let (host, detail) = match debt {
            Debt::Host(name) => {
                let Ok(host) = self.host(name) else {
                    tracing::warn!(%snapshot, host = name, "not configured any more; its hook cannot be ended");
                    return true;
                };
                let limit = match host.describe().await {
                    Ok(description) => {
                        description.hooks.map_or(Duration::ZERO, |limits| limits.after.to_std())
                    }
                    Err(_) => return false,
                };
                match host.end_hooks(snapshot, limit).await {
                    Ok(report) => (Some(name.as_str()), report.detail),
                    Err(why) if matches!(why.status(), Some(404 | 410)) => {
                        (Some(name.as_str()), why.to_string())
                    }
                    Err(why) => {
                        tracing::warn!(%snapshot, %why, "the hook after a snapshot was not ended; asked again later");
                        return false;
                    }
                }
            }
            Debt::Own { name, after: None, .. } => (None, format!("{name}: there is no hook after")),
            Debt::Own { name, after: Some(hook), about } => {
                let (hook, about) = (hook.clone(), about.clone());
                let outcome = task::spawn_blocking(move || run(&hook, Moment::After, &about)).await;
                match outcome {
                    Ok(outcome) => (None, format!("{name}: {}", tell(&outcome))),
                    Err(panic) => (None, format!("{name}: {panic}")),
                }
            }
        };
        let entry = self.hook_entry(snapshot, Step::After, host, detail);
        let debt = debt.clone();
        let settled =
            self.with_catalogue(move |catalogue| catalogue.settle_hook(snapshot, &debt, &entry)).await;
        if let Err(why) = settled {
            // The next start ends it once more.
            tracing::warn!(%snapshot, %why, "a hook has ended and it was not noted");
        }
        true
    }

    /// Of a hook or a follow-up.
    pub(super) async fn tell_of_command(
        &self,
        snapshot: Uuid,
        step: Step,
        host: Option<&str>,
        detail: String,
    ) -> Result<(), CoordinatorError> {
        let entry = self.hook_entry(snapshot, step, host, detail);
        self.with_catalogue(move |catalogue| catalogue.tell(snapshot, &[entry])).await
    }

    /// Such a command belongs to no attempt, so its entry names the snapshot in that place.
    fn hook_entry(&self, snapshot: Uuid, step: Step, host: Option<&str>, detail: String) -> StoryEntry {
        let at_ns = self.source.0.now();
        StoryEntry { attempt: snapshot, at_ns, step, host: host.map(str::to_owned), detail }
    }
}

/// Whether what the hosts' hooks did still holds, by the host that says no.
pub(super) async fn first_let_go(
    snapshot: Uuid,
    participants: &[Participant],
) -> Result<Option<String>, CoordinatorError> {
    let with_hooks = participants.iter().filter(|host| host.hooks.is_some());
    let answers = join_all(with_hooks.map(|host| async move {
        Ok::<_, CoordinatorError>((host.remote.name(), host.remote.hooks_hold(snapshot).await?))
    }))
    .await;
    let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(answers.into_iter().find(|(_, hold)| !hold).map(|(name, _)| name.to_owned()))
}
