//! A fleet whose processes are killed, stopped and cut off at random while snapshots are taken of what tokens write on
//! it, and what has become of the snapshots.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use coeval_cli::cluster::Host;
use coeval_cli::daemon::Daemon;
use coeval_cli::table::Table;
use coeval_cli::workload::{Export, Workload, check_exports};
use nix::sys::signal::Signal;
use snapshot::client::ServerClient;
use snapshot::messages::{CreateRequest, RequestedMode, SnapshotState, Verdict};
use snapshot::nbd::Endpoint;
use timesync::clock::ServerClock;
use timesync::random::Random;

use crate::eventually;
use crate::fleet::{Fleet, VOLUME, assert_writes_go_on, kill};
use crate::tools::stop;

/// Tokens of the workload, and their rest after each write: many small hosts share a machine.
pub(crate) const TOKENS: usize = 8;
const REST: Duration = Duration::from_millis(2);

/// How often a calm fleet's live volumes are looked at.
const CALM_LOOKS: usize = 100;
const CALM: Duration = Duration::from_millis(100);

/// The control gives up after so many looks.
const MOST_LOOKS: usize = 1_000;

/// As many processes are out of order at the same time, at most.
const AT_ONCE: usize = 3;

/// On a machine so busy that no snapshot is certified between the faults, they go on for so many times as long.
const PATIENCE: u32 = 6;

/// What to do to whom.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Hosts with a volume each.
    pub hosts: u8,
    /// What chance follows. The same seed gives the same faults, but not the same run.
    pub seed: u64,
    /// Ends after so many certified snapshots,
    pub snapshots: usize,
    /// or after this time, if one was certified.
    pub time: Duration,
    /// Nothing is put out of order.
    pub calm: bool,
}

/// What happened.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Snapshots asked for while there were faults.
    pub taken: usize,
    /// Those that were certified, as far as whoever asked was told so.
    pub certified: usize,
    /// Those that stand all the same, since the answer was lost and not the snapshot.
    pub unheard: usize,
    /// Certified snapshots that are no consistent cut.
    pub torn: Vec<String>,
    /// Snapshots that failed after the faults had ended, before the first that succeeded.
    pub late: usize,
    /// The control: how many of [`Outcome::looks`] at the live volumes, one after the other, were no consistent cut.
    pub control: usize,
    /// How often the live volumes were looked at.
    pub looks: usize,
    /// `kill -9`: of the server, of hosts.
    pub killed: [usize; 2],
    /// SIGSTOP, and SIGCONT later: of the server, of hosts.
    pub stopped: [usize; 2],
    /// Cables pulled and put in again: of the server, of hosts.
    pub cut: [usize; 2],
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut faults = Table::new(&["faults", "server", "hosts"]);
        for (name, counts) in [
            ("kill -9, and started again", self.killed),
            ("SIGSTOP, and SIGCONT", self.stopped),
            ("cable pulled, and put in", self.cut),
        ] {
            faults.row([name.to_owned()].into_iter().chain(counts.map(|count| count.to_string())).collect());
        }
        let mut snapshots = Table::new(&["timed snapshots meanwhile", ""]);
        for (name, count) in [
            ("taken", self.taken),
            ("certified", self.certified),
            ("stand, though the answer was lost", self.unheard),
            ("certified and torn", self.torn.len()),
            ("failed after the last fault", self.late),
        ] {
            snapshots.row(vec![name.to_owned(), count.to_string()]);
        }
        write!(f, "{faults}\n{snapshots}\n")?;
        writeln!(f, "control: {} of {} looks at the live volumes are torn", self.control, self.looks)
    }
}

#[derive(Clone, Copy)]
enum Fault {
    Kill,
    Stop,
    Cut,
}

/// Carries out a plan. Afterwards every process has ended in good order and no snapshot is left.
///
/// # Panics
/// When something is left waiting or lying about, a write failed, or a daemon does not come back.
pub fn run(plan: &Plan) -> Outcome {
    let names: Vec<String> = (1..=plan.hosts).map(|number| format!("host{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fleet = Fleet::start(&names, &[], &[]).unwrap();
    names.iter().for_each(|name| fleet.create_volume(name));
    fleet.wait_for_bounds();
    let live = exports(&fleet.cluster.hosts, VOLUME);
    let workload = Workload::start_enduring(&live, TOKENS, REST).unwrap();
    assert_writes_go_on(&workload);

    let mut outcome = Outcome::default();
    // A place that its thread can enter while the fleet is changed.
    let (place, client) = (fleet.server_namespace().clone(), fleet.client());
    let (over, certified) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut heard = BTreeSet::from(["calm".to_owned()]);
    std::thread::scope(|scope| {
        let snapshots =
            scope.spawn(|| place.inside(|| take_snapshots(&client, &live, &over, &certified)).unwrap());
        let enough = Enough { plan: *plan, began: ServerClock.now().as_nanos(), certified: &certified };
        {
            let _over = SetOnDrop(&over);
            let mut random = Random(plan.seed);
            while !enough.reached() {
                assert!(!snapshots.is_finished(), "the snapshots' thread met an error");
                if plan.calm {
                    std::thread::sleep(CALM);
                } else {
                    strike(&mut fleet, &mut random, &mut outcome);
                    outcome.looks += 1;
                    outcome.control += usize::from(is_torn(&live));
                }
                assert!(!workload.has_failed(), "a token met an error");
            }
        }
        let meanwhile = snapshots.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (outcome.taken, outcome.certified) = (meanwhile.taken, meanwhile.certified.len());
        outcome.torn = meanwhile.torn;
        heard.extend(meanwhile.certified);
    });

    // Nothing is wrong any more, and nothing stays wrong.
    assert_writes_go_on(&workload);
    fleet.wait_for_bounds();
    eventually(|| take(&fleet, "calm").inspect_err(|_| outcome.late += 1));
    let mut rows = fleet.api(async |api| api.list().await).unwrap();
    // A deletion that a fault interrupted is not undone: the server goes on with it by itself, and may be done before
    // it is asked again.
    rows.retain(|row| !matches!(row.state, SnapshotState::Failed | SnapshotState::Deleting));
    for row in &rows {
        assert_eq!(row.state, SnapshotState::Complete, "{} is neither failed nor complete", row.name);
        outcome.unheard += usize::from(!heard.contains(&row.name));
        if is_torn(&exports(&fleet.cluster.hosts, &format!("{VOLUME}@{}", row.name))) {
            outcome.torn.push(row.name.clone());
        }
    }
    // A look that tears nothing may have been lucky: more of them, until the check is seen to see something.
    let least = if plan.calm { CALM_LOOKS } else { 0 };
    while outcome.looks < least || (outcome.control == 0 && outcome.looks < MOST_LOOKS) {
        outcome.looks += 1;
        outcome.control += usize::from(is_torn(&exports(&fleet.cluster.hosts, VOLUME)));
    }
    let written = workload.writes();
    assert_writes_go_on(&workload);
    workload.stop().unwrap_or_else(|why| panic!("a write was not answered, after {written:?}: {why}"));
    rows.iter().for_each(|row| fleet.delete(&row.name));
    fleet.wait_until_nothing_is_left();
    stop(&mut fleet.cluster.server);
    fleet.cluster.hosts.iter_mut().for_each(|host| stop(&mut host.daemon));
    outcome
}

/// When the faults end.
struct Enough<'a> {
    plan: Plan,
    began: i64,
    certified: &'a AtomicUsize,
}

impl Enough<'_> {
    fn reached(&self) -> bool {
        let elapsed = u64::try_from(ServerClock.now().as_nanos() - self.began).unwrap_or(0);
        let elapsed = Duration::from_nanos(elapsed);
        let certified = self.certified.load(Ordering::Relaxed);
        let least_time = self.plan.time.saturating_mul(if certified > 0 { 1 } else { PATIENCE });
        certified >= self.plan.snapshots || elapsed >= least_time
    }
}

/// Puts some processes out of order, and in order again a little later.
fn strike(fleet: &mut Fleet, random: &mut Random, outcome: &mut Outcome) {
    // Often long enough for a snapshot, which takes its time after a host was started anew.
    rest(random, 1500);
    let everybody = fleet.cluster.hosts.len() + 1;
    // 0 is the server, as in its network.
    let victims: BTreeSet<usize> = (0..=random.below(AT_ONCE)).map(|_| random.below(everybody)).collect();
    let faults: Vec<(usize, Fault)> = victims
        .into_iter()
        .map(|victim| (victim, [Fault::Kill, Fault::Stop, Fault::Cut][random.below(3)]))
        .collect();
    for (victim, fault) in &faults {
        let of = usize::from(*victim > 0);
        match fault {
            Fault::Kill => {
                kill(daemon(fleet, *victim));
                outcome.killed[of] += 1;
            }
            Fault::Stop => {
                daemon(fleet, *victim).signal(Signal::SIGSTOP).unwrap();
                outcome.stopped[of] += 1;
            }
            Fault::Cut => {
                fleet.network.plug(*victim, false).unwrap();
                outcome.cut[of] += 1;
            }
        }
        rest(random, 50);
    }
    rest(random, 600);
    for (victim, fault) in &faults {
        match (fault, victim.checked_sub(1)) {
            (Fault::Kill, None) => fleet.cluster.restart_server().unwrap(),
            (Fault::Kill, Some(host)) => fleet.cluster.restart_host(host).unwrap(),
            (Fault::Stop, _) => daemon(fleet, *victim).signal(Signal::SIGCONT).unwrap(),
            (Fault::Cut, _) => fleet.network.plug(*victim, true).unwrap(),
        }
    }
}

fn daemon(fleet: &Fleet, victim: usize) -> &Daemon {
    victim.checked_sub(1).map_or(&fleet.cluster.server, |host| &fleet.cluster.hosts[host].daemon)
}

/// Up to so many milliseconds, so that faults fall into every step of a snapshot.
fn rest(random: &mut Random, most_ms: usize) {
    std::thread::sleep(Duration::from_micros(random.below(most_ms * 1000) as u64));
}

#[derive(Default)]
struct Snapshots {
    taken: usize,
    certified: BTreeSet<String>,
    torn: Vec<String>,
}

/// Takes one snapshot after the other, and checks those that are certified.
fn take_snapshots(
    client: &ServerClient,
    live: &[Export],
    over: &AtomicBool,
    certified: &AtomicUsize,
) -> Snapshots {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut snapshots = Snapshots::default();
    while !over.load(Ordering::Relaxed) {
        snapshots.taken += 1;
        let name = format!("chaos{}", snapshots.taken);
        let order = CreateRequest {
            name: Some(name.clone()),
            mode: RequestedMode::Timed,
            attempts: Some(2),
            ..CreateRequest::default()
        };
        let Ok(manifest) = runtime.block_on(client.create(&order, |_| {})) else {
            // At once it would only be refused again.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if manifest.verdict != Verdict::Consistent {
            continue;
        }
        certified.fetch_add(1, Ordering::Relaxed);
        snapshots.certified.insert(name.clone());
        let exports: Vec<Export> = live
            .iter()
            .map(|export| Export { name: format!("{}@{name}", export.name), ..export.clone() })
            .collect();
        if is_torn(&exports) {
            snapshots.torn.push(name.clone());
        }
        // What cannot be deleted now is looked at again in the end.
        let _ = runtime.block_on(client.delete(&name));
    }
    snapshots
}

fn take(fleet: &Fleet, name: &str) -> Result<(), String> {
    let order =
        CreateRequest { name: Some(name.to_owned()), mode: RequestedMode::Timed, ..CreateRequest::default() };
    let manifest =
        fleet.api(async |api| api.create(&order, |_| {}).await).map_err(|error| error.to_string())?;
    if manifest.verdict == Verdict::Consistent { Ok(()) } else { Err("it is not certified".to_owned()) }
}

/// Whether these exports are no consistent cut. Hosts that are away are waited for.
fn is_torn(exports: &[Export]) -> bool {
    !eventually(|| check_exports(exports, TOKENS)).is_empty()
}

/// Through the hosts' own sockets: what runs on a host goes on there whatever happens to its network.
pub(crate) fn exports(hosts: &[Host], name: &str) -> Vec<Export> {
    let export =
        |host: &Host| Export { endpoint: Endpoint::Unix(host.nbd_socket.clone()), name: name.to_owned() };
    hosts.iter().map(export).collect()
}

/// So that a thread that waits for it ends also when there is a panic.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
