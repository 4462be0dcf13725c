//! `kill -9` of the coordinator, or of a host, at every step of a snapshot: I/O goes on, nothing is left behind, and
//! nothing is called consistent that is not.
#![expect(clippy::expect_used, reason = "a panic is how a test's helpers fail")]

use std::thread;

use coeval_cli::workload::Workload;
use harness::acknowledged::Acknowledged;
use harness::eventually;
use harness::fleet::{Fleet, VOLUME, assert_writes_go_on, kill};
use nix::sys::signal::Signal;
use snapshot::http::ControlError;
use snapshot::messages::{
    AttemptProgress, CreateRequest, Manifest, Progress, RequestedMode, SnapshotState, Step, Verdict,
};

/// Every snapshot has this name, so that what is left of one is in the way of the next.
const NAME: &str = "again";

const TIMED: [Step; 9] = [
    Step::Describe,
    Step::Prepare,
    Step::Measure,
    Step::Plan,
    Step::Arm,
    Step::Seal,
    Step::Measure,
    Step::Certify,
    Step::Commit,
];

/// Between the strike and the release nothing is reported, as writers wait there.
const BARRIER: [Step; 8] = [
    Step::Describe,
    Step::Prepare,
    Step::Measure,
    Step::Arm,
    Step::Strike,
    Step::Seal,
    Step::Certify,
    Step::Commit,
];

#[test]
fn the_coordinator_dies_at_any_step_of_a_timed_snapshot() {
    let mut fleet = Fleet::of_three();
    let workload = fleet.start_workload(&fleet.cluster.hosts);
    assert_eq!(take(&fleet, RequestedMode::Timed, 3), TIMED);
    for number in 0..TIMED.len() {
        kill_coordinator(&mut fleet, &workload, RequestedMode::Timed, number);
    }
    workload.stop().expect("no write failed");
}

#[test]
fn the_coordinator_dies_at_any_step_of_a_barrier_snapshot() {
    let mut fleet = Fleet::of_three();
    let workload = fleet.start_workload(&fleet.cluster.hosts);
    assert_eq!(take(&fleet, RequestedMode::Barrier, 3), BARRIER);
    // More strikes: each death falls somewhere between them and the releases, or a little later.
    let strikes = BARRIER.iter().position(|step| *step == Step::Strike).into_iter().cycle().take(4);
    for number in (0..BARRIER.len()).chain(strikes) {
        kill_coordinator(&mut fleet, &workload, RequestedMode::Barrier, number);
    }
    workload.stop().expect("no write failed");
}

fn kill_coordinator(fleet: &mut Fleet, workload: &Workload, mode: RequestedMode, number: usize) {
    // How it ends for the client is the server's last word or a broken connection.
    let _ = create(fleet, mode, |at, _, _| {
        if at == number {
            kill(&fleet.cluster.server);
        }
    });
    kill(&fleet.cluster.server);
    assert_writes_go_on(workload);
    fleet.cluster.restart_server().expect("the server starts on the same state");
    settle_last(fleet, 3);
    fleet.wait_for_bounds();
    take(fleet, mode, 3);
    assert_writes_go_on(workload);
}

#[test]
fn a_host_dies_at_any_step_of_a_snapshot() {
    let mut fleet = Fleet::of_three();
    let workload = fleet.start_workload(&fleet.cluster.hosts[..2]);
    let timed = (0..TIMED.len()).map(|step| (RequestedMode::Timed, step));
    let barrier = (0..BARRIER.len()).map(|step| (RequestedMode::Barrier, step));
    for (mode, number) in timed.chain(barrier) {
        let dying = &fleet.cluster.hosts[2];
        let client = fleet.open(&fleet.exports(&fleet.cluster.hosts, None)[2]);
        let writer = thread::spawn(move || {
            let mut acknowledged = Acknowledged::default();
            acknowledged.write_on(client);
            acknowledged
        });
        let _ = create(&fleet, mode, |at, _, _| {
            if at == number {
                kill(&dying.daemon);
            }
        });
        kill(&dying.daemon);
        let acknowledged = writer.join().expect("the writer only stops");
        assert_writes_go_on(&workload);
        fleet.cluster.restart_host(2).expect("the host starts on the same volumes");

        let mut client = fleet.open(&fleet.exports(&fleet.cluster.hosts, None)[2]);
        acknowledged.assert_held_by(&mut client);
        settle_last(&fleet, 2);
        fleet.wait_for_bounds();
        take(&fleet, mode, 2);
    }
    workload.stop().expect("no write failed");
}

#[test]
fn a_host_that_restarts_before_the_abort_drops_the_name_all_the_same() {
    let mut fleet = Fleet::of_three();
    let died = (0..10).any(|_| die_in_the_middle_of_naming(&mut fleet));
    assert!(died, "each snapshot was complete, or there was none");
    fleet.wait_until_nothing_is_left();
}

/// Takes a snapshot, kills the coordinator and the first host when that one has named it, and starts both again. False
/// where the snapshot is complete all the same, or was not taken; nothing is left of it then.
fn die_in_the_middle_of_naming(fleet: &mut Fleet) -> bool {
    let workload = fleet.start_workload(&fleet.cluster.hosts);
    let named = [VOLUME.to_owned(), format!("{VOLUME}@{NAME}")];
    let running: &Fleet = fleet;
    let (first, last) = (&running.cluster.hosts[0], &running.cluster.hosts[2]);
    let is_named = thread::scope(|scope| {
        // While the last host does not hear of the name, the snapshot is not complete. On a busy machine it may hear of
        // it before it is stopped.
        let creating = scope.spawn(|| {
            create(running, RequestedMode::Timed, |_, step, detail| {
                if step == Step::Certify && detail.starts_with("consistent") {
                    last.daemon.signal(Signal::SIGSTOP).expect("it runs");
                }
            })
        });
        let is_named = eventually(|| {
            let is_over = creating.is_finished();
            let listed = running.list_exports(first);
            let is_named = listed == named;
            if is_named || is_over { Ok(is_named) } else { Err(format!("the first host has {listed:?}")) }
        });
        kill(&running.cluster.server);
        kill(&first.daemon);
        // How it ends for the client is the server's last word or a broken connection.
        let _ = creating.join().expect("no panic");
        is_named
    });
    last.daemon.signal(Signal::SIGCONT).expect("it runs");
    drop(workload);
    fleet.cluster.restart_host(0).expect("the host starts on the same volumes");
    if is_named {
        assert_eq!(fleet.list_exports(&fleet.cluster.hosts[0]), named, "the name is durable");
    }
    fleet.cluster.restart_server().expect("the server starts on the same state");
    if is_named && fleet.rows(NAME).pop().expect("a row").state == SnapshotState::Failed {
        return true;
    }
    settle_last(fleet, 3);
    fleet.wait_for_bounds();
    false
}

/// Asks for a snapshot; `heard` is told each step, its number in its attempt, from 0, and what is said of it.
fn create(
    fleet: &Fleet,
    mode: RequestedMode,
    mut heard: impl FnMut(usize, Step, &str) + Send,
) -> Result<Manifest, ControlError> {
    // On a busy machine an order comes too late now and then.
    let order =
        CreateRequest { name: Some(NAME.to_owned()), mode, attempts: Some(10), ..CreateRequest::default() };
    let mut number = 0;
    fleet.api(async |api| {
        let progress = |progress: &Progress| {
            let Some(AttemptProgress { step, .. }) = progress.attempt else { return };
            number = if step == Step::Describe { 0 } else { number + 1 };
            heard(number, step, &progress.detail);
        };
        api.create(&order, progress).await
    })
}

/// Takes a snapshot, checks that it is a consistent cut on the first so many hosts, which the workload runs on, and
/// deletes it. Gives the steps of its last attempt.
fn take(fleet: &Fleet, mode: RequestedMode, hosts: usize) -> Vec<Step> {
    let mut steps = Vec::new();
    // A host that was started anew is not known well at once, and the refusal says to try again.
    let manifest = eventually(|| {
        create(fleet, mode, |number, step, _| {
            steps.truncate(number);
            steps.push(step);
        })
    });
    assert_eq!(manifest.verdict, Verdict::Consistent);
    fleet.assert_consistent(&fleet.cluster.hosts[..hosts], NAME);
    fleet.delete(NAME);
    fleet.wait_until_nothing_is_left();
    steps
}

/// The last snapshot has failed or stands; if it stands it is what it claims to be, and if not, nothing is left of it.
fn settle_last(fleet: &Fleet, hosts: usize) {
    let last = fleet.rows(NAME).pop().expect("a snapshot is in the catalogue before anything is done for it");
    match last.state {
        SnapshotState::Failed => {}
        SnapshotState::Complete => {
            fleet.assert_consistent(&fleet.cluster.hosts[..hosts], NAME);
            fleet.delete(NAME);
        }
        _ => panic!("{last:?} is neither failed nor complete"),
    }
    fleet.wait_until_nothing_is_left();
}
