//! Takes the snapshots that are due, and deletes those that a schedule keeps no longer.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use chrono::{DateTime, Utc};
use timesync::clock;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::groups::View;
use super::{Coordinator, CoordinatorError};
use crate::catalogue::StoredSchedule;
use crate::groups::Group;
use crate::messages::CreateRequest;
use crate::schedule::{Outcome, Retention, Schedule, ScheduleState, ScheduleStatus, snapshot_name};
use crate::volume::is_name;

/// The wall clock may be set: it is looked at this often at least.
const LOOK: Duration = Duration::from_secs(30);

/// With the time behind it, a snapshot's name stays within 64 letters.
const LONGEST_NAME: usize = 40;

#[expect(clippy::missing_errors_doc, reason = "each fails as CoordinatorError says")]
impl Coordinator {
    /// Stores a schedule.
    pub async fn add_schedule(&self, schedule: Schedule) -> Result<ScheduleStatus, CoordinatorError> {
        if schedule.name.len() > LONGEST_NAME || !is_name(&schedule.name) {
            return Err(CoordinatorError::Request(format!(
                "`{}` cannot be a schedule's name: it has up to {LONGEST_NAME} letters, digits, `-`, `_` or `.`, the \
                 first a letter or digit",
                schedule.name
            )));
        }
        if schedule.request.group_name.is_some() && !schedule.request.group.is_empty() {
            return Err(CoordinatorError::Request("name a saved group or list volumes, not both".to_owned()));
        }
        let stored = schedule.clone();
        let now = now();
        self.with_catalogue(move |catalogue| {
            // It must be there; what it means is looked up each time.
            stored.request.group_name.as_deref().map(|name| catalogue.group(name)).transpose()?;
            catalogue.add_schedule(&stored, now)
        })
        .await?;
        self.rescheduled.notify_one();
        let stored = StoredSchedule { schedule, handled: now, missed: 0, last: None };
        Ok(status(stored, &self.view().await?, &self.groups().await?))
    }

    /// Forgets a schedule; its snapshots stay.
    pub async fn remove_schedule(&self, name: &str) -> Result<(), CoordinatorError> {
        let name = name.to_owned();
        self.with_catalogue(move |catalogue| catalogue.remove_schedule(&name)).await
    }

    /// All schedules, by name.
    pub async fn schedules(&self) -> Result<Vec<ScheduleStatus>, CoordinatorError> {
        let schedules = self.with_catalogue(|catalogue| catalogue.schedules()).await?;
        if schedules.is_empty() {
            return Ok(Vec::new());
        }
        let (view, groups) = (self.view().await?, self.groups().await?);
        Ok(schedules.into_iter().map(|stored| status(stored, &view, &groups)).collect())
    }

    /// The same without what a look at the hosts tells: whatever they do, this does not wait for them.
    pub(crate) async fn stored_schedules(&self) -> Result<Vec<StoredSchedule>, CoordinatorError> {
        self.with_catalogue(|catalogue| catalogue.schedules()).await
    }

    /// Takes scheduled snapshots for as long as this coordinator exists.
    pub fn keep_schedules(self: &Arc<Self>) {
        let coordinator = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut running = BTreeMap::new();
            while let Some(pause) = look(&coordinator, &mut running).await {
                let Some(coordinator) = coordinator.upgrade() else { return };
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = coordinator.rescheduled.notified() => {}
                }
            }
        });
    }

    /// Takes one scheduled snapshot, then deletes what the schedule keeps no longer.
    pub(super) async fn take_scheduled(self: &Arc<Self>, schedule: Schedule, due: DateTime<Utc>) {
        let Schedule { name, request, keep, .. } = schedule;
        let id = Uuid::now_v7();
        let snapshot = snapshot_name(&name, due);
        let request = CreateRequest { name: Some(snapshot.clone()), ..request };
        let taken = self.create_for(id, Some(name.clone()), request, |_| {}).await;
        let problem = match taken {
            Err(why) => Some(why.to_string()),
            // What is in use now can go after the next one.
            Ok(_) => self.expire(&name, keep).await.err().map(|why| format!("an old one stays: {why}")),
        };
        if let Some(problem) = &problem {
            tracing::warn!(
                snapshot = %id,
                schedule = name,
                name = snapshot,
                problem,
                "a scheduled snapshot did not go as it should"
            );
        }
        let outcome = Outcome { due, snapshot, problem };
        if let Err(why) = self.with_catalogue(move |catalogue| catalogue.note_outcome(&name, &outcome)).await
        {
            tracing::warn!(%why, "the outcome of a scheduled snapshot was not stored");
        }
    }

    /// Deletes what no rule keeps, oldest first. One that cannot be deleted does not save the others.
    async fn expire(self: &Arc<Self>, schedule: &str, keep: Retention) -> Result<(), CoordinatorError> {
        let schedule = schedule.to_owned();
        let snapshots = self.with_catalogue(move |catalogue| catalogue.snapshots_of(&schedule)).await?;
        let mut result = Ok(());
        for snapshot in keep.expired(&snapshots).iter().rev() {
            result = result.and(self.delete(snapshot).await);
        }
        result
    }
}

/// Starts what is due. Returns how long there is nothing to do, or none if there is no coordinator any more.
async fn look(
    coordinator: &Weak<Coordinator>,
    running: &mut BTreeMap<String, JoinHandle<()>>,
) -> Option<Duration> {
    let coordinator = coordinator.upgrade()?;
    let schedules = match coordinator.with_catalogue(|catalogue| catalogue.schedules()).await {
        Ok(schedules) => schedules,
        Err(why) => {
            tracing::error!(%why, "the schedules cannot be read; no scheduled snapshot is taken");
            return Some(LOOK);
        }
    };
    let now = now();
    let mut pause = LOOK;
    running.retain(|_, snapshot| !snapshot.is_finished());
    for StoredSchedule { schedule, handled, .. } in schedules {
        let mut due = schedule.cron.due(handled, now);
        if due.take.is_some() && running.contains_key(&schedule.name) {
            tracing::warn!(
                schedule = schedule.name,
                "the snapshot before is still being taken; this one is missed"
            );
            (due.missed, due.take) = (due.missed + 1, None);
        }
        if let Some(next) = schedule.cron.next_after(due.handled) {
            pause = pause.min((next - now).to_std().unwrap_or_default());
        }
        if due.handled == handled {
            continue;
        }
        let name = schedule.name.clone();
        let noted =
            coordinator.with_catalogue(move |it| it.handle_schedule(&name, due.handled, due.missed)).await;
        if let Err(why) = noted {
            // Taken all the same, it might be taken again and again.
            tracing::error!(schedule = schedule.name, %why, "a scheduled snapshot is not taken");
            continue;
        }
        if let Some(at) = due.take {
            let (name, coordinator) = (schedule.name.clone(), Arc::clone(&coordinator));
            let snapshot = tokio::spawn(async move { coordinator.take_scheduled(schedule, at).await });
            running.insert(name, snapshot);
        }
    }
    Some(pause)
}

fn status(stored: StoredSchedule, view: &View, groups: &[Group]) -> ScheduleStatus {
    let StoredSchedule { schedule, handled, missed, last } = stored;
    let lacking = view.missing(&schedule.request, groups);
    let state = match &last {
        _ if !lacking.is_empty() => ScheduleState::Degraded,
        Some(Outcome { problem: Some(_), .. }) => ScheduleState::Failed,
        _ => ScheduleState::Good,
    };
    let next = schedule.cron.next_after(handled);
    ScheduleStatus { schedule, next, missed, last, state, missing: lacking }
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_nanos(clock::wall_now().as_nanos())
}
