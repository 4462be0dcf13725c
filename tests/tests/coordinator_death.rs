//! `kill -9` of the coordinator at every step of a snapshot: I/O goes on, nothing is left behind, and what was not
//! certified is not called consistent.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::time::Duration;

use coeval_cli::cluster::{Cluster, Host, Place};
use coeval_cli::workload::{Export, Workload, check_exports};
use harness::coeval;
use snapshot::client::ServerClient;
use snapshot::http::Connector;
use snapshot::messages::{
    CreateRequest, CreateVolumeOn, Progress, RequestedMode, SnapshotState, Step, Verdict,
};
use snapshot::nbd::{Client, Endpoint};

const HOSTS: [&str; 3] = ["a", "b", "c"];
const TOKENS: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);

fn client(cluster: &Cluster) -> ServerClient {
    ServerClient::new(&Connector::new(None, false).unwrap(), &cluster.api).unwrap()
}

fn exports(cluster: &Cluster, name: &str) -> Vec<Export> {
    let export =
        |host: &Host| Export { endpoint: Endpoint::Unix(host.nbd_socket.clone()), name: name.to_owned() };
    cluster.hosts.iter().map(export).collect()
}

/// On how many hosts the snapshot has its name.
fn holders(cluster: &Cluster, name: &str) -> usize {
    let export = format!("data@{name}");
    let holds =
        |host: &&Host| Client::list(&Endpoint::Unix(host.nbd_socket.clone())).unwrap().contains(&export);
    cluster.hosts.iter().filter(holds).count()
}

/// Waits until `is_so`, for a minute.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1200 {
        if is_so() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("waited in vain: {what}");
}

/// Takes a snapshot, with patience: after a restart the server must bound the clocks anew.
async fn take(cluster: &Cluster, name: &str) {
    let order = CreateRequest { name: Some(name.to_owned()), attempts: Some(20), ..CreateRequest::default() };
    let manifest = client(cluster).create(&order, |_| {}).await.unwrap();
    assert_eq!(manifest.verdict, Verdict::Consistent);
}

async fn die_at(cluster: &mut Cluster, workload: &Workload, mode: RequestedMode, step: Step) {
    let name = format!("{mode:?}-{step:?}");
    let order =
        CreateRequest { name: Some(name.clone()), mode, attempts: Some(100), ..CreateRequest::default() };
    let mut killed = false;
    let kill = |progress: &Progress| {
        if progress.step == step {
            killed = true;
            cluster.kill_server();
        }
    };
    let taken = client(cluster).create(&order, kill).await;
    assert!(killed, "{name}: it never came to this step: {taken:?}");
    let before = workload.writes();
    until("writes after the coordinator's death", || workload.writes() > before + 500).await;
    cluster.restart_server().unwrap();

    let found = client(cluster).list().await.unwrap().into_iter().find(|snapshot| snapshot.name == name);
    let complete = found.is_some_and(|snapshot| snapshot.state == SnapshotState::Complete);
    assert!(complete || taken.is_err(), "{name}: a snapshot was promised and is gone");
    if complete {
        assert_eq!(check_exports(&exports(cluster, &format!("data@{name}")), TOKENS).unwrap(), []);
    } else {
        until(&format!("{name}: nothing is left"), || holders(cluster, &name) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_coordinator_may_die_at_any_step() {
    let hosts = HOSTS.map(|name| (name, Place::loopback(&[])));
    let mut cluster =
        Cluster::start(coeval(), &hosts, &Place::loopback(&[]), |_, address| Ok(address)).unwrap();
    for host in HOSTS {
        let order = CreateVolumeOn { host: host.to_owned(), name: "data".to_owned(), size: 16 << 20 };
        client(&cluster).create_volume(&order).await.unwrap();
    }
    let workload = Workload::start(&exports(&cluster, "data"), TOKENS, Duration::from_micros(500)).unwrap();
    let timed =
        [Step::Describe, Step::Measure, Step::Plan, Step::Arm, Step::Seal, Step::Certify, Step::Commit];
    // The release follows the strike without a word in between: writers wait meanwhile.
    let barrier = [Step::Arm, Step::Strike, Step::Seal, Step::Certify, Step::Commit];
    for step in timed {
        // Bounded clocks first: unplanned attempts would end before the step.
        take(&cluster, &format!("before-{step:?}")).await;
        die_at(&mut cluster, &workload, RequestedMode::Timed, step).await;
    }
    for step in barrier {
        die_at(&mut cluster, &workload, RequestedMode::Barrier, step).await;
    }
    take(&cluster, "afterwards").await;
    assert!(!workload.has_failed());
    workload.stop().unwrap();
    assert_eq!(
        check_exports(&exports(&cluster, "data"), TOKENS).unwrap(),
        [],
        "nothing acknowledged was lost"
    );
}
