use tempfile::TempDir;
use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::time::{Host as HostTimeline, Nanos, Time};
use uuid::Uuid;

use super::*;
use crate::certificate::Mode;
use crate::cut::Cause;
use crate::host::HostOptions;
use crate::http::{Admits, Connector, ControlError, Listener, StopHandle};
use crate::orders::ArmTiming;
use crate::orders::CommitOrder;
use crate::remote::{HostEndpoint, Limits, RemoteHost};
use crate::simulated::incarnation;

/// A real host with one volume, and the coordinator's view of it.
struct Rig {
    _directory: TempDir,
    incarnation: Incarnation,
    server: Incarnation,
    remote: RemoteHost,
}

impl Rig {
    async fn new(simulation: bool) -> Self {
        let directory = TempDir::new().unwrap();
        let incarnation = incarnation();
        let options = HostOptions {
            name: "a".to_owned(),
            volumes: directory.path().to_owned(),
            max_stretch: Nanos::from_millis(5_000),
            import_from: Vec::new(),
            merge_rate: 1 << 30,
        };
        let host = HostService::open(options, incarnation, HostClock::real()).unwrap();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None, false).unwrap();
        let endpoint =
            HostEndpoint { name: "a".to_owned(), control: listener.url(), ..HostEndpoint::default() };
        tokio::spawn(listener.serve(router(routes(host, simulation)), Admits::TheServer, StopHandle::new()));
        let connector = Connector::new(None, false).unwrap();
        let remote = RemoteHost::new(&connector, &endpoint, Limits::default()).unwrap();
        remote.create_volume(&CreateVolume { name: "data".to_owned(), size: 1 << 20 }).await.unwrap();
        Rig { _directory: directory, incarnation, server: crate::simulated::incarnation(), remote }
    }

    async fn prepare(&self, attempt: AttemptId) -> Result<(), ControlError> {
        let (host, server) = (self.incarnation, self.server);
        let volumes = vec!["data".to_owned()];
        let name = "first".to_owned();
        self.remote.prepare(attempt, &PrepareOrder { host, server, volumes, name, snapshot: None }).await
    }

    /// Arms what was prepared. T is chosen after the preparation, whose file work a slow disk makes long.
    async fn arm(&self, attempt: AttemptId, timing: ArmTiming) -> Result<Armed, ControlError> {
        let (host, server) = (self.incarnation, self.server);
        self.remote.arm(attempt, &ArmOrder { host, server, timing }).await
    }

    async fn snapshots(&self) -> Vec<String> {
        self.remote.describe().await.unwrap().volumes[0].snapshots.clone()
    }
}

fn soon() -> Time<HostTimeline> {
    HostClock::real().now() + Nanos::from_millis(500)
}

fn status<T: std::fmt::Debug>(answer: Result<T, ControlError>) -> Option<u16> {
    answer.unwrap_err().status()
}

#[tokio::test]
async fn a_timed_cut_goes_through_every_step() {
    let rig = Rig::new(false).await;
    let attempt = Uuid::now_v7();
    rig.prepare(attempt).await.unwrap();
    let (at, stretch) = (soon(), Nanos::from_micros(50));
    let armed = rig.arm(attempt, ArmTiming::Timed { at, stretch }).await.unwrap();
    assert!(armed.host == rig.incarnation && armed.armed_at < at);
    let sealed = rig.remote.seal(attempt, std::time::Duration::ZERO).await.unwrap();
    assert_eq!((sealed.host, sealed.server, sealed.mode), (rig.incarnation, rig.server, Mode::Timed));
    assert_eq!(sealed.readings.released_by, Cause::Time);
    assert!(sealed.readings.p < at && sealed.readings.q >= at + stretch);
    assert!(rig.snapshots().await.is_empty(), "not named yet");
    let order = CommitOrder { name: "s1".to_owned(), record: None };
    rig.remote.commit(attempt, serde_json::to_vec(&order).unwrap().into()).await.unwrap();
    assert_eq!(rig.snapshots().await, ["s1"]);

    let digest = rig.remote.digest("data", "s1", true).await.unwrap();
    assert_eq!(rig.remote.digest("data", "s1", false).await.unwrap(), digest);
    rig.remote.delete_snapshot("data", "s1").await.unwrap();
    rig.remote.delete_snapshot("data", "s1").await.unwrap();
    assert!(rig.snapshots().await.is_empty());
    assert!(rig.remote.digest("data", "s1", false).await.is_err());
}

#[tokio::test]
async fn a_barrier_cut_is_released_by_a_message_that_carries_its_nonce() {
    let rig = Rig::new(false).await;
    let attempt = Uuid::now_v7();
    rig.prepare(attempt).await.unwrap();
    rig.arm(attempt, ArmTiming::Barrier).await.unwrap();
    let struck = rig.remote.strike(attempt, std::time::Duration::from_secs(5)).await.unwrap();
    let release = |nonces| serde_json::to_vec(&ReleaseOrder { nonces }).unwrap();
    assert_eq!(status(rig.remote.release(attempt, release(vec![Uuid::new_v4()]).into()).await), Some(422));
    rig.remote.release(attempt, release(vec![Uuid::new_v4(), struck.nonce]).into()).await.unwrap();
    let sealed = rig.remote.seal(attempt, std::time::Duration::ZERO).await.unwrap();
    assert_eq!((sealed.nonce, sealed.readings.released_by), (Some(struck.nonce), Cause::Barrier));
}

#[tokio::test]
async fn an_abort_undoes_a_commit_and_refuses_what_comes_later() {
    let rig = Rig::new(false).await;
    let attempt = Uuid::now_v7();
    rig.prepare(attempt).await.unwrap();
    rig.arm(attempt, ArmTiming::Timed { at: soon(), stretch: Nanos::ZERO }).await.unwrap();
    rig.remote.seal(attempt, std::time::Duration::ZERO).await.unwrap();
    let order = CommitOrder { name: "s1".to_owned(), record: None };
    rig.remote.commit(attempt, serde_json::to_vec(&order).unwrap().into()).await.unwrap();
    for _ in 0..2 {
        rig.remote.abort(attempt).await.unwrap();
        assert!(rig.snapshots().await.is_empty());
    }
    assert_eq!(status(rig.remote.seal(attempt, std::time::Duration::ZERO).await), Some(410));
    // An abort may overtake its own attempt's order on another connection.
    let overtaken = Uuid::now_v7();
    rig.remote.abort(overtaken).await.unwrap();
    assert_eq!(status(rig.prepare(overtaken).await), Some(410));
}

#[tokio::test]
async fn orders_that_cannot_be_followed_are_refused_with_a_sentence() {
    let rig = Rig::new(false).await;
    let late = ArmTiming::Timed { at: Time::from_nanos(1), stretch: Nanos::ZERO };
    let attempt = Uuid::now_v7();
    rig.prepare(attempt).await.unwrap();
    assert_eq!(status(rig.arm(attempt, late).await), Some(422));
    let (host, server) = (rig.incarnation, rig.server);
    let (volumes, name) = (vec!["none".to_owned()], "first".to_owned());
    let elsewhere = PrepareOrder { host, server, volumes, name, snapshot: None };
    assert_eq!(status(rig.remote.prepare(Uuid::now_v7(), &elsewhere).await), Some(404));
    let unprepared = ArmOrder { host, server, timing: ArmTiming::Barrier };
    assert_eq!(status(rig.remote.arm(Uuid::now_v7(), &unprepared).await), Some(410));
    let first = Uuid::now_v7();
    rig.prepare(first).await.unwrap();
    rig.arm(first, ArmTiming::Barrier).await.unwrap();
    let second = rig.prepare(Uuid::now_v7()).await.unwrap_err();
    assert_eq!(second.status(), Some(409), "one structural operation per volume: {second}");
    assert!(second.to_string().contains(&first.to_string()), "{second}");
}

#[tokio::test]
async fn only_a_host_in_simulation_cuts_without_coordination() {
    let order = UncoordinatedOrder { volumes: vec!["data".to_owned()], name: "s1".to_owned() };
    let sober = Rig::new(false).await;
    assert_eq!(status(sober.remote.uncoordinated(Uuid::now_v7(), &order).await), Some(404));
    let simulated = Rig::new(true).await;
    simulated.remote.uncoordinated(Uuid::now_v7(), &order).await.unwrap();
    assert_eq!(simulated.snapshots().await, ["s1"]);
}
