//! What can only be seen from inside. The rest stands in `tests/host.rs`.

use super::*;

#[test]
fn an_order_to_commit_that_comes_twice_touches_nothing_the_second_time() {
    let directory = tempfile::tempdir().unwrap();
    let host = Incarnation::of_this_process().unwrap();
    let options = HostOptions {
        name: "a".to_owned(),
        volumes: directory.path().join("volumes"),
        max_stretch: Nanos::from_millis(60_000),
        import_from: Vec::new(),
        merge_rate: 1 << 30,
    };
    let service = HostService::open(options, host, HostClock::real()).unwrap();
    service.create_volume(&CreateVolume { name: "data".to_owned(), size: 1 << 20 }).unwrap();
    let id = AttemptId::from_u128(1);
    let (volumes, name) = (vec!["data".to_owned()], "s".to_owned());
    service.prepare(id, &PrepareOrder { host, server: host, volumes, name, snapshot: None }).unwrap();
    service.arm(id, ArmOrder { host, server: host, timing: ArmTiming::Barrier }).unwrap();
    let nonce = service.strike(id).unwrap().nonce;
    service.release(id, &ReleaseOrder { nonces: vec![nonce] }).unwrap();
    service.seal(id).unwrap();
    // The second one has found the attempt before the first one ends it.
    let found = service.current(id).unwrap();
    service.commit(id, &CommitOrder { name: "s".to_owned(), record: None }).unwrap();
    let again = found.commit("s", || panic!("a record is kept for an attempt that is over"));
    assert!(matches!(again, Err(HostError::Gone)), "{again:?}");
    assert!(service.has_snapshot("data", "s").unwrap());
}
