//! One host's cuts on real volumes: what is refused, what is released when nobody speaks, what is undone.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;

use snapshot::certificate::Mode;
use snapshot::cut::Cause;
use snapshot::device::{Device, Exports};
use snapshot::host::{HostError, HostOptions, HostService};
use snapshot::orders::{
    ArmOrder, ArmTiming, Armed, AttemptId, CommitOrder, CreateVolume, PrepareOrder, ReleaseOrder,
    RestoreOrder,
};
use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::time::{Host, Nanos, Time};
use uuid::Uuid;

const SIZE: u64 = 1 << 20;

struct Fixture {
    service: Arc<HostService>,
    identity: Incarnation,
    clock: HostClock,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn with_max_stretch(max_stretch: Nanos) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let identity = Incarnation::of_this_process().unwrap();
        let clock = HostClock::real();
        let options = HostOptions {
            name: "a".to_owned(),
            volumes: directory.path().join("volumes"),
            max_stretch,
            import_from: Vec::new(),
            merge_rate: 1 << 30,
        };
        let service = HostService::open(options, identity, clock.clone()).unwrap();
        for name in ["data", "log"] {
            service.create_volume(&CreateVolume { name: name.to_owned(), size: SIZE }).unwrap();
        }
        Fixture { service, identity, clock, _directory: directory }
    }

    /// Ends the service and opens its volumes anew.
    fn restart(&mut self) {
        let options = self.service.options().clone();
        let holder = std::mem::replace(&mut self.service, Self::new().service);
        // The keepers of ended attempts may still be on their way out.
        while Arc::strong_count(&holder) > 1 {
            std::thread::yield_now();
        }
        drop(holder);
        self.service = HostService::open(options, self.identity, self.clock.clone()).unwrap();
    }

    fn new() -> Self {
        Self::with_max_stretch(Nanos::from_millis(60_000))
    }

    fn prepare(&self, attempt: AttemptId, volumes: &[&str]) -> Result<(), HostError> {
        let volumes = volumes.iter().map(|&name| name.to_owned()).collect();
        let name = "first".to_owned();
        let order =
            PrepareOrder { host: self.identity, server: self.identity, volumes, name, snapshot: None };
        self.service.prepare(attempt, &order)
    }

    /// Prepares and arms. T is chosen after the preparation, whose file work a slow disk makes long.
    fn arm(&self, attempt: AttemptId, order: impl FnOnce(&Self) -> ArmOrder) -> Result<Armed, HostError> {
        self.prepare(attempt, &["data"])?;
        self.service.arm(attempt, order(self))
    }

    fn order(&self, timing: ArmTiming) -> ArmOrder {
        ArmOrder { host: self.identity, server: self.identity, timing }
    }

    fn timed(&self, lead: Nanos, stretch: Nanos) -> ArmOrder {
        self.order(ArmTiming::Timed { at: self.clock.now() + lead, stretch })
    }

    fn device(&self, export: &str) -> Arc<dyn Device> {
        self.service.open(export).unwrap_or_else(|| panic!("no export {export}"))
    }

    fn read(&self, export: &str) -> u8 {
        let mut byte = [0];
        let outcome = self.device(export).read(0, &mut byte);
        outcome.result.unwrap();
        byte[0]
    }

    /// Writes a block and says when its reply was allowed to leave.
    fn write_in_background(&self, value: u8) -> mpsc::Receiver<Time<Host>> {
        let (sender, answered) = mpsc::channel();
        let outcome = self.device("data").write(0, &[value; 4096], false);
        outcome.result.unwrap();
        let clock = self.clock.clone();
        match outcome.hold {
            None => sender.send(clock.now()).unwrap(),
            Some(cut) => {
                let send = Box::new(move || sender.send(clock.now()).unwrap());
                if let Err(send) = cut.hold(self.clock.now(), send) {
                    send();
                }
            }
        }
        answered
    }
}

fn id() -> AttemptId {
    Uuid::now_v7()
}

fn soon(host: &Fixture) -> ArmOrder {
    host.timed(Nanos::from_millis(300), Nanos::from_micros(50))
}

fn commit(name: &str) -> CommitOrder {
    CommitOrder { name: name.to_owned(), record: None }
}

#[test]
fn a_timed_cut_separates_what_lies_before_and_after() {
    let host = Fixture::new();
    let attempt = id();
    host.write_in_background(1).recv().unwrap();
    let armed = host.arm(attempt, soon).unwrap();
    let sealed = host.service.seal(attempt).unwrap();
    host.write_in_background(2).recv().unwrap();
    host.service.commit(attempt, &commit("first")).unwrap();

    assert_eq!((sealed.mode, sealed.readings.released_by), (Mode::Timed, Cause::Time));
    assert!(armed.armed_at <= sealed.readings.p && sealed.readings.p < sealed.readings.at);
    assert!(sealed.readings.q >= sealed.readings.at + Nanos::from_micros(50));
    assert_eq!((host.read("data@first"), host.read("data")), (1, 2));
    assert_eq!(host.service.list(), ["data", "data@first", "log"]);
}

#[test]
fn an_order_that_cannot_be_kept_is_refused_and_leaves_nothing() {
    let host = Fixture::with_max_stretch(Nanos::from_millis(100));
    let stretch = Nanos::from_micros(50);
    let other_run = Incarnation { process: timesync::identity::ProcessId(Uuid::new_v4()), ..host.identity };
    for (run, lead, stretch, sentence) in [
        (host.identity, Nanos::from_micros(-1), stretch, "after its own T"),
        (host.identity, Nanos::from_millis(60_000), stretch, "ahead"),
        (host.identity, Nanos::from_millis(5_000), Nanos::from_millis(100), "max_stretch"),
        (other_run, Nanos::from_millis(5_000), stretch, "restarted"),
    ] {
        let order = |host: &Fixture| ArmOrder { host: run, ..host.timed(lead, stretch) };
        let error = host.arm(id(), order).unwrap_err().to_string();
        assert!(error.contains(sentence), "{error:?} should say {sentence:?}");
    }
    let layers =
        |service: &HostService| service.describe().volumes.iter().map(|v| v.layers).collect::<Vec<_>>();
    assert_eq!(layers(&host.service), [1, 1]);
}

#[test]
fn when_nobody_speaks_the_host_releases_by_itself() {
    let host = Fixture::with_max_stretch(Nanos::from_millis(50));
    let attempt = id();
    host.arm(attempt, |host| host.order(ArmTiming::Barrier)).unwrap();
    host.service.strike(attempt).unwrap();
    let answered = host.write_in_background(7);
    // No release, no abort: the coordinator is dead.
    answered.recv().expect("the reply leaves by the host's own clock");
    let sealed = host.service.seal(attempt).unwrap();
    assert_eq!(sealed.readings.released_by, Cause::Timeout);
    assert!(matches!(host.service.commit(attempt, &commit("void")), Err(HostError::Gone)), "a void attempt");
    assert_eq!(host.read("data"), 7, "and nothing is lost");
}

#[test]
fn a_barrier_holds_until_everybodys_nonce_is_there() {
    let host = Fixture::new();
    let attempt = id();
    host.write_in_background(1).recv().unwrap();
    host.arm(attempt, |host| host.order(ArmTiming::Barrier)).unwrap();
    let nonce = host.service.strike(attempt).unwrap().nonce;
    let answered = host.write_in_background(2);
    let foreign = ReleaseOrder { nonces: vec![Uuid::new_v4()] };
    assert!(host.service.release(attempt, &foreign).is_err(), "a release that does not know of this cut");
    assert!(answered.try_recv().is_err(), "still held");
    host.service.release(attempt, &ReleaseOrder { nonces: vec![Uuid::new_v4(), nonce] }).unwrap();
    answered.recv().unwrap();
    let sealed = host.service.seal(attempt).unwrap();
    assert_eq!((sealed.readings.released_by, sealed.nonce), (Cause::Barrier, Some(nonce)));
    assert_eq!(sealed.readings.held, 1);
    host.service.commit(attempt, &commit("b")).unwrap();
    assert_eq!((host.read("data@b"), host.read("data")), (1, 2));
}

#[test]
fn an_abort_lets_go_at_once_and_loses_nothing() {
    let host = Fixture::new();
    let attempt = id();
    host.arm(attempt, |host| host.order(ArmTiming::Barrier)).unwrap();
    host.service.strike(attempt).unwrap();
    let answered = host.write_in_background(9);
    host.service.abort(attempt).unwrap();
    answered.recv().unwrap();
    assert_eq!(host.read("data"), 9);
    assert!(matches!(host.service.seal(attempt), Err(HostError::Gone)));
    host.service.abort(attempt).expect("idempotent");
    assert_eq!(host.service.list(), ["data", "log"]);
    host.arm(id(), soon).expect("the volume is free again");
}

#[test]
fn an_order_that_arrives_after_its_abort_is_refused() {
    let host = Fixture::new();
    let attempt = id();
    host.service.abort(attempt).unwrap();
    assert!(matches!(host.arm(attempt, soon), Err(HostError::Gone)));
}

#[test]
fn an_abort_after_the_commit_drops_the_name() {
    let host = Fixture::new();
    let attempt = id();
    host.arm(attempt, soon).unwrap();
    host.service.seal(attempt).unwrap();
    host.service.commit(attempt, &commit("gone")).unwrap();
    host.service.abort(attempt).unwrap();
    assert_eq!(host.service.list(), ["data", "log"]);
}

#[test]
fn an_abort_after_a_restart_drops_the_name_too() {
    let mut host = Fixture::new();
    let (kept, undone) = (id(), id());
    for (attempt, name) in [(kept, "kept"), (undone, "undone")] {
        host.arm(attempt, soon).unwrap();
        host.service.seal(attempt).unwrap();
        host.service.commit(attempt, &commit(name)).unwrap();
    }
    host.restart();
    host.service.abort(undone).unwrap();
    assert_eq!(host.service.list(), ["data", "data@kept", "log"]);
}

#[test]
fn two_cuts_on_one_volume_do_not_overlap() {
    let host = Fixture::new();
    let first = id();
    host.arm(first, soon).unwrap();
    let refused = host.arm(id(), soon).unwrap_err().to_string();
    assert!(refused.contains("busy") && refused.contains(&first.to_string()), "{refused}");
    host.service.seal(first).unwrap();
    host.service.commit(first, &commit("one")).unwrap();
}

#[test]
fn the_same_order_twice_cuts_once() {
    let host = Fixture::new();
    let attempt = id();
    host.arm(attempt, soon).unwrap();
    assert!(matches!(host.prepare(attempt, &["log"]), Err(HostError::Gone)));
    assert!(host.service.arm(attempt, soon(&host)).is_err());
    host.service.seal(attempt).unwrap();
    host.service.commit(attempt, &commit("once")).unwrap();
    assert_eq!(host.service.list(), ["data", "data@once", "log"]);
}

#[test]
fn an_order_to_commit_that_comes_twice_drops_nothing() {
    let fixture = Fixture::new();
    for round in 0..10 {
        let (attempt, name) = (Uuid::now_v7(), format!("s{round}"));
        fixture.prepare(attempt, &["data", "log"]).unwrap();
        fixture.service.arm(attempt, fixture.order(ArmTiming::Barrier)).unwrap();
        let nonces = vec![fixture.service.strike(attempt).unwrap().nonce];
        fixture.service.release(attempt, &ReleaseOrder { nonces }).unwrap();
        fixture.service.seal(attempt).unwrap();
        let order = CommitOrder { name: name.clone(), record: None };
        let done = std::thread::scope(|scope| {
            let commits = [(); 4].map(|()| scope.spawn(|| fixture.service.commit(attempt, &order)));
            commits.into_iter().map(|commit| commit.join().unwrap()).filter(Result::is_ok).count()
        });
        assert_eq!(done, 1, "one of them does it");
        for volume in ["data", "log"] {
            assert!(fixture.service.open(&format!("{volume}@{name}")).is_some(), "{volume}@{name} is there");
        }
    }
}

fn back_to_first(over: Option<BTreeMap<String, Uuid>>) -> RestoreOrder {
    let volumes = vec!["data".to_owned()];
    RestoreOrder { volumes, snapshot: "first".to_owned(), keep: None, disconnect: false, over }
}

#[test]
fn an_order_to_restore_that_comes_late_or_twice_changes_nothing() {
    let mut host = Fixture::new();
    let attempt = id();
    host.write_in_background(1).recv().unwrap();
    host.arm(attempt, soon).unwrap();
    host.service.seal(attempt).unwrap();
    host.service.commit(attempt, &commit("first")).unwrap();

    let (early, later) = (id(), id());
    let prepared = host.service.prepare_restore(early, &back_to_first(None)).unwrap();
    let order = back_to_first(Some(prepared.restored));
    // The daemon forgets what was prepared. The decision stands.
    host.restart();
    let restore = |host: &Fixture, id, order: &RestoreOrder| host.service.switch_restore(id, order).unwrap();
    for _ in 0..2 {
        assert!(restore(&host, early, &order).overtaken.is_empty());
        host.write_in_background(2).recv().unwrap();
    }
    assert_eq!(host.read("data"), 2, "only the first one of the two did anything");

    let prepared = host.service.prepare_restore(later, &back_to_first(None)).unwrap();
    assert_eq!(prepared.restored, BTreeMap::from([("data".to_owned(), early)]));
    let next = back_to_first(Some(prepared.restored));
    assert!(restore(&host, later, &next).overtaken.is_empty());
    assert_eq!(host.read("data"), 1);
    host.write_in_background(3).recv().unwrap();
    assert_eq!(restore(&host, early, &order).overtaken, ["data"], "another restore came after it");
    assert!(restore(&host, later, &next).overtaken.is_empty());
    // Nor what was decided before the later one, and never came.
    assert_eq!(restore(&host, id(), &order).overtaken, ["data"]);
    assert_eq!(host.read("data"), 3);
}
