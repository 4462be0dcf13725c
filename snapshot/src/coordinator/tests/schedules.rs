//! Scheduled snapshots: taken when due, kept by their rules, and never in the way of what is being read.

use chrono::{Duration, Utc};
use timesync::clock;

use super::*;
use crate::schedule::{Retention, Schedule};

fn every_minute(keep: Retention) -> Schedule {
    let request = named("ignored", RequestedMode::Timed);
    Schedule { name: "often".to_owned(), cron: "* * * * *".parse().unwrap(), request, keep }
}

/// As if the schedule had been handled up to two minutes ago: one due time is past, one is due.
fn two_minutes_ago() -> chrono::DateTime<Utc> {
    chrono::DateTime::from_timestamp_nanos(clock::wall_now().as_nanos()) - Duration::minutes(2)
}

async fn outcome_of(coordinator: &Arc<Coordinator>) -> crate::schedule::Outcome {
    eventually(async || coordinator.schedules().await.unwrap()[0].last.is_some()).await;
    coordinator.schedules().await.unwrap().remove(0).last.unwrap()
}

#[tokio::test]
async fn what_is_due_is_taken_once_and_what_is_past_is_counted() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    coordinator.catalogue.add_schedule(&every_minute(Retention::default()), two_minutes_ago()).unwrap();
    coordinator.keep_schedules();
    let outcome = outcome_of(&coordinator).await;
    assert_eq!(outcome.problem, None);
    let taken = coordinator.show(&outcome.snapshot, false).await.unwrap().snapshot;
    assert_eq!((taken.state, taken.schedule.as_deref()), (SnapshotState::Complete, Some("often")));
    let status = coordinator.schedules().await.unwrap().remove(0);
    assert!(status.missed >= 1 && status.next.unwrap() > outcome.due, "{status:?}");

    // Whoever looks next, after a restart for one, finds it handled.
    coordinator.keep_schedules();
    coordinator.create(timed(), |_| {}).await.unwrap();
    let of_the_schedule = |all: Vec<crate::messages::Snapshot>| {
        all.into_iter().filter(|it| it.schedule.is_some() && it.name == outcome.snapshot).count()
    };
    assert_eq!(of_the_schedule(coordinator.list().await.unwrap()), 1);
}

#[tokio::test]
async fn retention_deletes_the_schedules_own_snapshots_but_none_that_is_read() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    coordinator.create(named("by-hand", RequestedMode::Timed), |_| {}).await.unwrap();
    let keep_one = Retention { last: 1, ..Retention::default() };
    let due = two_minutes_ago();
    for minute in 0..2 {
        coordinator.take_scheduled(every_minute(keep_one), due + Duration::minutes(minute)).await;
    }
    let names = async || {
        let all = coordinator.list().await.unwrap();
        all.into_iter().map(|snapshot| snapshot.name).collect::<Vec<_>>()
    };
    let second = crate::schedule::snapshot_name("often", due + Duration::minutes(1));
    assert_eq!(names().await, ["by-hand", second.as_str()]);

    fleet.hosts[2].script(|script| script.in_use = Some(second.clone()));
    coordinator.take_scheduled(every_minute(keep_one), due + Duration::minutes(2)).await;
    assert!(names().await.contains(&second), "it is read on one host");
    assert!(fleet.hosts.iter().all(|host| host.names().contains(&second)), "so it stays on all of them");
    let error = coordinator.delete(&second).await.unwrap_err();
    assert!(error.status() == 409 && error.to_string().contains("in use"), "{error}");

    fleet.hosts[2].script(|script| script.in_use = None);
    coordinator.take_scheduled(every_minute(keep_one), due + Duration::minutes(3)).await;
    assert!(!names().await.contains(&second), "it goes after the next one");
}

#[tokio::test]
async fn a_member_that_fails_is_told_and_the_next_one_is_taken() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let schedule = every_minute(Retention::default());
    coordinator.add_schedule(schedule.clone()).await.unwrap();
    assert!(coordinator.add_schedule(schedule.clone()).await.is_err(), "the name is taken");
    fleet.hosts[1].refuses("seal", 507, 1);
    let due = two_minutes_ago();
    coordinator.take_scheduled(schedule.clone(), due).await;
    let problem = outcome_of(&coordinator).await.problem.unwrap();
    assert!(problem.contains("host b"), "{problem}");
    coordinator.take_scheduled(schedule, due + Duration::minutes(1)).await;
    assert_eq!(outcome_of(&coordinator).await.problem, None);
    coordinator.remove_schedule("often").await.unwrap();
    assert_eq!(coordinator.remove_schedule("often").await.unwrap_err().status(), 404);
}
