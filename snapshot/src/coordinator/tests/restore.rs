//! Restores: all hosts or none, and forward once it is decided.

use super::*;
use crate::messages::RestoreRequest;
use crate::orders::RestoreOrder;
use fake::near;

async fn with_snapshot() -> (Fleet, Arc<Coordinator>) {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|options| options.digests = false);
    coordinator.create(timed(), |_| {}).await.unwrap();
    (fleet, coordinator)
}

async fn names(coordinator: &Coordinator) -> Vec<String> {
    coordinator.list().await.unwrap().into_iter().map(|snapshot| snapshot.name).collect()
}

#[tokio::test]
async fn every_host_prepares_before_any_switches_and_the_replaced_state_is_a_snapshot() {
    let (fleet, coordinator) = with_snapshot().await;
    let report = coordinator.restore("s1", RestoreRequest::default()).await.unwrap();
    assert_eq!((fleet.asked("prepare restore"), fleet.asked("switch")), (vec![1; 3], vec![1; 3]));
    assert_eq!((report.snapshot.as_str(), report.volumes.len()), ("s1", 3));
    let kept = report.kept.unwrap();
    let shown = coordinator.show(&kept, true).await.unwrap();
    assert_eq!(shown.snapshot.state, SnapshotState::Inconsistent, "nothing certifies it");
    let refusal = shown.snapshot.manifest.unwrap().refusal.unwrap();
    assert_eq!(refusal, "it was not cut: it is what restoring s1 replaced");
    // It is a snapshot like any other.
    coordinator.restore(&kept, RestoreRequest { discard_current: true, disconnect: true }).await.unwrap();
    coordinator.delete(&kept).await.unwrap();
    assert_eq!(names(&coordinator).await, ["s1"]);
    assert!(fleet.hosts.iter().all(|host| host.names() == ["s1"]));
}

#[tokio::test]
async fn one_host_that_cannot_prepare_keeps_all_as_they_are() {
    let (fleet, coordinator) = with_snapshot().await;
    fleet.hosts[1].refuses("prepare restore", 409, 1);
    let error = coordinator.restore("s1", RestoreRequest::default()).await.unwrap_err();
    assert_eq!(error.status(), 409);
    assert!(error.to_string().contains("scripted to refuse prepare restore"), "{error}");
    assert_eq!((fleet.asked("give up"), fleet.asked("switch")), (vec![1; 3], vec![0; 3]));
    assert_eq!(names(&coordinator).await, ["s1"]);
    assert!(coordinator.catalogue.decided_restores().unwrap().is_empty());
    assert_eq!(coordinator.restore("nobody", RestoreRequest::default()).await.unwrap_err().status(), 404);
}

#[tokio::test]
async fn once_decided_a_restore_goes_forward() {
    let (fleet, coordinator) = with_snapshot().await;
    fleet.hosts[2].refuses("switch", 500, u32::MAX);
    let error = coordinator.restore("s1", RestoreRequest::default()).await.unwrap_err();
    let told = error.to_string();
    assert!(told.contains("Not yet on c: ") && told.contains("scripted to refuse switch"), "{told}");
    assert_eq!(coordinator.delete("s1").await.unwrap_err().status(), 409, "it is still needed");
    fleet.hosts[2].refuses("switch", 500, 0);
    eventually(async || names(&coordinator).await.len() == 2).await;
    assert_eq!(fleet.asked("give up"), [0; 3]);
    assert_eq!(fleet.hosts[2].names().len(), 2);
    coordinator.delete("s1").await.unwrap();
}

#[tokio::test]
async fn a_volume_that_is_still_to_be_restored_is_neither_snapshotted_nor_restored_otherwise() {
    let (fleet, coordinator) = with_snapshot().await;
    fleet.hosts[2].refuses("switch", 500, u32::MAX);
    coordinator.restore("s1", RestoreRequest::default()).await.unwrap_err();
    let told = coordinator.create(CreateRequest { name: None, ..timed() }, |_| {}).await.unwrap_err();
    assert_eq!((told.status(), fleet.asked("arm")), (409, vec![1; 3]), "{told}");
    assert!(told.to_string().starts_with("volume c/data is still to be restored: "), "{told}");
    let told = coordinator.restore("s1", RestoreRequest::default()).await.unwrap_err();
    assert_eq!((told.status(), fleet.asked("give up")), (409, vec![1; 3]), "{told}");
    let data = |host: &str| Member { host: host.to_owned(), volume: "data".to_owned() };
    assert_eq!(coordinator.delete_volume(&data("c"), true).await.unwrap_err().status(), 409);
    let others = CreateRequest { name: None, group: vec![data("a"), data("b")], ..timed() };
    coordinator.create(others, |_| {}).await.unwrap();

    fleet.hosts[2].refuses("switch", 500, 0);
    eventually(async || coordinator.catalogue.decided_restores().unwrap().is_empty()).await;
    coordinator.create(CreateRequest { name: None, ..timed() }, |_| {}).await.unwrap();
    coordinator.restore("s1", RestoreRequest::default()).await.unwrap();
}

#[tokio::test]
async fn a_server_that_died_after_deciding_goes_on_and_one_that_died_before_does_not() {
    let (fleet, coordinator) = with_snapshot().await;
    let snapshot = coordinator.show("s1", false).await.unwrap().snapshot.id;
    let order = RestoreOrder {
        volumes: vec!["data".to_owned()],
        snapshot: "s1".to_owned(),
        keep: None,
        disconnect: false,
        over: None,
    };
    let orders: BTreeMap<_, _> = ["a", "b"].map(|host| (host.to_owned(), order.clone())).into();
    let plan = || RestorePlan {
        id: Uuid::now_v7(),
        snapshot,
        orders: orders.clone(),
        kept: None,
        done: BTreeSet::new(),
    };
    let (decided, undecided) = (plan(), plan());
    for plan in [&decided, &undecided] {
        coordinator.catalogue.begin_restore(plan).unwrap();
    }
    coordinator.catalogue.decide_restore(&decided).unwrap();
    stop(coordinator).await;

    let coordinator = fleet.coordinator(|_| {});
    coordinator.recover().await.unwrap();
    eventually(async || coordinator.catalogue.decided_restores().unwrap().is_empty()).await;
    assert_eq!(fleet.asked("switch"), [1, 1, 0], "one of the two, where it was to be done");
}
