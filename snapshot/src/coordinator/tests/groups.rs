//! Saved groups, and commands after finished snapshots.

use std::time::Duration;

use super::*;
use crate::follow_ups::FollowUp;
use crate::groups::{Group, Which};
use crate::schedule::{Retention, Schedule, ScheduleState};

fn of(host: &str) -> Member {
    Member { host: host.to_owned(), volume: "data".to_owned() }
}

fn of_group(name: &str, group: &str) -> CreateRequest {
    CreateRequest { group_name: Some(group.to_owned()), ..named(name, RequestedMode::Timed) }
}

fn selecting(name: &str, selector: &str) -> Group {
    Group { name: name.to_owned(), volumes: Which::Selector(selector.parse().unwrap()) }
}

async fn label(coordinator: &Coordinator, host: &str, key: &str, value: Option<&str>) {
    let change = [(key.to_owned(), value.map(str::to_owned))].into();
    coordinator.label_volume(of(host), change).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_is_of_what_the_group_means_when_it_is_taken() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let status = coordinator.add_group(selecting("shop", "app=shop")).await.unwrap();
    assert_eq!(status.members, []);
    let error = coordinator.create(of_group("s0", "shop"), |_| {}).await.unwrap_err();
    assert!(error.status() == 422 && error.to_string().contains("has no member now"), "{error}");

    label(&coordinator, "a", "app", Some("shop")).await;
    label(&coordinator, "c", "app", Some("shop")).await;
    assert_eq!(coordinator.group("shop").await.unwrap().members, [of("a"), of("c")]);
    let manifest = coordinator.create(of_group("s1", "shop"), |_| {}).await.unwrap();
    assert_eq!(manifest.group, [of("a"), of("c")]);

    label(&coordinator, "a", "app", None).await;
    let manifest = coordinator.create(of_group("s2", "shop"), |_| {}).await.unwrap();
    assert_eq!(manifest.group, [of("c")]);

    // By the hosts' labels, and the volumes' over them: the fake hosts have their own name.
    coordinator.add_group(selecting("letters", "letter!=c")).await.unwrap();
    assert_eq!(coordinator.group("letters").await.unwrap().members, [of("a"), of("b")]);
    label(&coordinator, "a", "letter", Some("c")).await;
    assert_eq!(coordinator.group("letters").await.unwrap().members, [of("b")]);
}

#[tokio::test]
async fn groups_and_labels_outlive_the_server_and_names_are_taken_once() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    label(&coordinator, "a", "app", Some("shop")).await;
    coordinator.add_group(selecting("shop", "app=shop")).await.unwrap();
    assert_eq!(coordinator.add_group(selecting("shop", "app")).await.unwrap_err().status(), 409);
    stop(coordinator).await;
    let coordinator = fleet.coordinator(|_| {});
    assert_eq!(coordinator.groups().await.unwrap(), [selecting("shop", "app=shop")]);
    assert_eq!(coordinator.group("shop").await.unwrap().members, [of("a")]);
    let volumes = coordinator.volumes().await.unwrap();
    assert_eq!(volumes[0].labels["data"].get("app").map(String::as_str), Some("shop"));
    coordinator.remove_group("shop").await.unwrap();
    assert_eq!(coordinator.group("shop").await.unwrap_err().status(), 404);
    let list = Group { name: "odd".to_owned(), volumes: Which::List(vec![of("z")]) };
    assert_eq!(coordinator.add_group(list).await.unwrap_err().status(), 404, "no such host");
    let wrong = [("a b".to_owned(), Some("x".to_owned()))].into();
    assert_eq!(coordinator.label_volume(of("a"), wrong).await.unwrap_err().status(), 422);
}

#[tokio::test]
async fn a_schedule_whose_group_lacks_a_member_is_degraded_and_takes_nothing_less() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let list = Group { name: "shop".to_owned(), volumes: Which::List(vec![of("a"), of("b")]) };
    coordinator.add_group(list).await.unwrap();
    let schedule = Schedule {
        name: "often".to_owned(),
        cron: "* * * * *".parse().unwrap(),
        request: of_group("ignored", "shop"),
        keep: Retention::default(),
    };
    let status = coordinator.add_schedule(schedule.clone()).await.unwrap();
    assert_eq!((status.state, status.missing.len()), (ScheduleState::Good, 0));
    let error = coordinator.remove_group("shop").await.unwrap_err();
    assert!(
        error.status() == 409 && error.to_string().contains("schedule often takes group shop"),
        "{error}"
    );

    fleet.hosts[1].refuses("describe", 500, u32::MAX);
    let status = coordinator.schedules().await.unwrap().remove(0);
    assert_eq!(status.state, ScheduleState::Degraded);
    assert!(status.missing[0].to_string().starts_with("b/data: "), "{:?}", status.missing);
    let due = "2026-11-22T03:00:00Z".parse().unwrap();
    coordinator.take_scheduled(schedule.clone(), due).await;
    let status = coordinator.schedules().await.unwrap().remove(0);
    let problem = status.last.unwrap().problem.unwrap();
    assert!(problem.starts_with("group shop is not whole"), "{problem}");
    assert!(fleet.all_clean());

    fleet.hosts[1].refuses("describe", 500, 0);
    let status = coordinator.schedules().await.unwrap().remove(0);
    assert_eq!(status.state, ScheduleState::Failed, "until the next one is there");
    coordinator.take_scheduled(schedule.clone(), due).await;
    assert_eq!(coordinator.schedules().await.unwrap().remove(0).state, ScheduleState::Good);
    let unknown = Schedule { name: "other".to_owned(), request: of_group("ignored", "none"), ..schedule };
    assert_eq!(coordinator.add_schedule(unknown).await.unwrap_err().status(), 404);
}

#[tokio::test]
async fn follow_ups_run_after_their_groups_snapshots_and_their_outcome_is_told() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let list = Group { name: "shop".to_owned(), volumes: Which::List(vec![of("a"), of("b")]) };
    coordinator.add_group(list).await.unwrap();
    let gate = fleet.directory.path().join("gate");
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.01; done; echo $COEVAL_SNAPSHOT of $COEVAL_VOLUMES; exit 2",
        gate.display()
    );
    let follow_up = |group: Option<&str>, script: &str| FollowUp {
        group: group.map(str::to_owned),
        command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        deadline: Duration::from_secs(600),
    };
    coordinator.set_follow_ups(vec![
        follow_up(Some("shop"), &script),
        follow_up(None, "true"),
        follow_up(Some("other"), "exit 9"),
    ]);
    coordinator.create(of_group("s1", "shop"), |_| {}).await.unwrap();

    // Whatever is exported is not deleted, by a retention rule no more than by hand.
    let error = coordinator.delete("s1").await.unwrap_err();
    assert!(error.status() == 409 && error.to_string().contains("worked on by a follow-up"), "{error}");
    std::fs::write(&gate, "").unwrap();
    let told = async || {
        let story = coordinator.show("s1", false).await.unwrap().story;
        story.into_iter().filter(|entry| entry.step == Step::FollowUp).map(|it| it.detail).collect::<Vec<_>>()
    };
    eventually(async || told().await.len() == 4).await;
    assert_eq!(
        told().await,
        [
            "/bin/sh: begun",
            "/bin/sh: it failed with status 2; it said: s1 of a/data b/data",
            "/bin/sh: begun",
            "/bin/sh: it did its work",
        ]
    );
    eventually(async || coordinator.delete("s1").await.is_ok()).await;
}

#[tokio::test]
async fn retention_leaves_what_is_being_cloned() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let keep = Retention { last: 1, ..Retention::default() };
    let request = named("ignored", RequestedMode::Timed);
    let cron = "* * * * *".parse().unwrap();
    let schedule = Schedule { name: "often".to_owned(), cron, request, keep };
    let minute = |minute: u32| format!("2026-11-22T03:{minute:02}:00Z").parse().unwrap();
    coordinator.take_scheduled(schedule.clone(), minute(0)).await;
    let first = coordinator.list().await.unwrap().remove(0);
    // What a clone holds for as long as it takes.
    let claim = coordinator.claims.claim(first.id, "cloned").unwrap();
    coordinator.take_scheduled(schedule.clone(), minute(1)).await;
    let left = coordinator.list().await.unwrap();
    assert_eq!((left.len(), left[0].id, left[0].state), (2, first.id, SnapshotState::Complete));
    drop(claim);
    coordinator.take_scheduled(schedule, minute(2)).await;
    assert_eq!(coordinator.list().await.unwrap().len(), 1);
}
