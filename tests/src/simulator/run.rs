//! One seed from its beginning to its end.

use std::rc::Rc;
use std::sync::Arc;

use snapshot::coordinator::Coordinator;
use snapshot::messages::{
    CreateRequest, Manifest, RequestedMode, RequestedPolicy, RestoreRequest, SnapshotState, Verdict,
};
use snapshot::orders::CreateVolume;
use snapshot::simulation::{Driver, Mutation, SimulatedDisk};
use timesync::bound::Assumptions;
use timesync::random::Random;
use timesync::server::{HostConfig, Record};
use timesync::time::Nanos;

use super::aims::Aim;
use super::fibers::{Machine, Pace, Until, WorstPlace};
use super::history::{BLOCK, SECTOR, SECTORS, SHARED};
use super::hosts::{self, HostState, VOLUME};
use super::wire::Network;
use super::world::{BEGINNING, Setting, World, within, world};
use super::{check, faults, server, wire, workload};
use crate::clocks::clock::{Change, Shape};
use crate::clocks::host::{Break, Host as Timing};
use crate::clocks::network::Way;
use crate::clocks::scenario::{SERVER_DISCIPLINE, Scenario, Tell};

/// How long the hosts' clocks are worked out for, in seconds.
const SECONDS: i64 = 300;

/// What came of a seed.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What was wrong.
    pub violations: Vec<String>,
    /// The story, if it was asked for.
    pub trace: Vec<String>,
    /// Snapshots that were certified.
    pub certified: u64,
    /// And those that were not.
    pub refused: u64,
    /// Requests of clients.
    pub writes: u64,
    /// Points at which a thread might have slept.
    pub steps: u64,
    /// The virtual time that passed, in ns.
    pub virtual_ns: i64,
}

/// Where a thread may sleep: a kind of work, how often it is the worst, and how many points it has, about.
const PLACES: [(&str, usize, usize); 14] = [
    ("write", 7, 8),
    ("read", 3, 6),
    ("status", 1, 6),
    ("flush", 1, 12),
    ("reply", 1, 6),
    ("keep", 2, 24),
    ("prepare", 1, 24),
    ("arm", 6, 12),
    ("strike", 1, 8),
    ("release", 1, 6),
    ("seal", 1, 6),
    ("commit", 1, 20),
    ("abort", 1, 20),
    ("create", 1, 30),
];

fn worst_place(random: &mut Random) -> WorstPlace {
    let all = PLACES.iter().flat_map(|place| std::iter::repeat_n(place, place.1));
    let total: usize = PLACES.iter().map(|(_, often, _)| often).sum();
    let (work, points) = all.clone().nth(random.below(total)).map_or(("", 1), |place| (place.0, place.2));
    // About as long as a stretch, as a lead, or as a whole attempt.
    let (least, most) = [(5e3, 2e6), (2e6, 3e7), (3e7, 2e8_f64)][random.below(3)];
    let long = Until::Long(least * (most / least).powf(random.unit()));
    WorstPlace {
        work,
        point: random.below(points) as u32,
        chance: random.between(0.05, 0.8),
        until: [long, long, Until::Stretch, Until::Sealing(5e7)][random.below(4)],
    }
}

/// Between two bounds, as likely in each of its octaves.
fn spread(random: &mut Random, (least, most): (f64, f64)) -> f64 {
    least * (most / least).powf(random.unit())
}

fn setting(hosts: Option<usize>, random: &mut Random) -> Setting {
    let few = 2 + [0, 0, 1, 1, 1, 2, 3][random.below(7)];
    let many = if random.chance(0.01) { 6 + random.below(20) } else { few };
    let hosts = hosts.unwrap_or(many);
    let faulty = random.chance(0.6);
    let rough = random.chance(0.8);
    let slow_step = rough && random.chance(0.5);
    let place = worst_place(random);
    Setting {
        hosts,
        clients: 2 + random.below(3),
        burst: [8, 10, 12, 20][random.below(4)],
        max_stretch: spread(random, (3e6, 39e6)) as i64,
        lead: if random.chance(0.8) { (1e6, 1.2e7) } else { (1.2e7, 1.2e8) },
        mode: None,
        flushes: if random.chance(0.8) { 0.07 } else { random.between(0.05, 0.3) },
        questions: 0.1,
        units: 0.25,
        leisure_ns: if random.chance(0.9) { 2.5e6 } else { spread(random, (3e5, 2.5e6)) },
        longest_absence: 400_000_000,
        shared_blocks: [1, 1, 2, SHARED / BLOCK][random.below(4)],
        faulty,
        network: Network {
            delay_ns: random.between(20_000.0, 300_000.0),
            stray: if rough { random.between(0.0, 0.08) } else { 0.0 },
            longest_ns: random.between(2e6, 6e7),
            slowest: slow_step
                .then(|| (wire::STEPS[random.below(wire::STEPS.len())], random.between(0.1, 0.6))),
            loss: if faulty && rough { random.between(0.0, 0.01) } else { 0.0 },
            repeated: if rough { random.between(0.0, 0.1) } else { 0.0 },
        },
        pace: Pace {
            sleepiness: if rough { 0.02 * random.unit() * random.unit() } else { 0.0 },
            longest_ns: random.between(5e4, 8e6),
            worst: (rough && random.chance(0.7)).then_some(place),
            disk_ns: random.between(5_000.0, 400_000.0),
        },
    }
}

fn host(index: usize, setting: &Setting, breaking: Option<Break>, random: &mut Random) -> HostState {
    let least = spread(random, (2_000.0, 60_000.0));
    let lopsided = random.between(1.0, 20.0);
    let (forward, backward) = if index.is_multiple_of(2) { (lopsided, 1.0) } else { (1.0, lopsided) };
    let scenario = Scenario {
        name: "simulator",
        assumptions: Assumptions::default(),
        shape: Shape { rate_ppb: 200_000.0, wander_ppb_per_s: 80.0, extreme: random.chance(0.3) },
        forward: Way::steady(least * forward, 500.0),
        backward: Way::steady(least * backward, 500.0),
        discipline: SERVER_DISCIPLINE,
        wake_ns: 4_000.0,
        loss: if setting.faulty { 0.01 } else { 0.0 },
        duplicated: 0.01,
        pairs_per_second: 2,
        // Two bursts and what is between them; each host is sent the exchanges of all with every snapshot.
        window: if setting.hosts > 25 { 24 } else { 48 },
        agentless: false,
        lying_correction: false,
        card: None,
        breaks: None,
    };
    let config = HostConfig::new(World::name(index), ([127, 0, 0, 1], 319).into());
    let record = Record::new(config, scenario.window, true);
    HostState {
        timing: Timing::new(&scenario, record, breaking, SECONDS, random),
        disk: SimulatedDisk::default(),
        daemon: None,
        cut_off: (0, 0),
        machine: Machine {
            // What a time daemon may slew the clock of the timers by.
            slow_ppb: random.nanos(-500_000, 500_000),
            slow_disk: if random.chance(0.1) { random.between(5.0, 50.0) } else { 1.0 },
        },
        under_way: Vec::new(),
        died_at: 0,
        off_until: 0,
        forgetful: false,
        fragile: false,
        starting: false,
        ailing: false,
        images: Vec::new(),
        switching: Vec::new(),
        restored: None,
    }
}

/// A clock that breaks its assumption, while the first attempt is under way: by more than any round trip here.
fn breaking(random: &mut Random) -> Break {
    let at = BEGINNING + 120_000_000 + random.nanos(0, 60_000_000);
    let (change, tell) = match random.below(3) {
        0 => (Change::Step(random.between(5e6, 4e7)), Tell::Stamps),
        1 => (Change::Stop(random.nanos(4_000_000, 400_000_000)), Tell::Suspend),
        _ => (Change::Boot(random.nanos(20_000_000, 400_000_000)), Tell::Boot),
    };
    Break { at, change, tell }
}

/// A request for a snapshot of everything.
pub fn request(name: &str, random: &mut Random, calm: bool) -> CreateRequest {
    let Setting { mode, lead, .. } = world().setting;
    let mode = match random.below(10) {
        _ if calm => RequestedMode::Auto,
        dice => mode.unwrap_or(match dice {
            0 | 1 => RequestedMode::Barrier,
            2 => RequestedMode::Auto,
            _ => RequestedMode::Timed,
        }),
    };
    let lead = if calm { 20_000_000 } else { spread(random, lead) as i64 };
    CreateRequest {
        name: Some(name.to_owned()),
        group: Vec::new(),
        mode,
        policy: RequestedPolicy::Hard,
        lead_ns: Some(Nanos::new(lead)),
        attempts: Some(2),
        ..CreateRequest::default()
    }
}

/// What is asked of a run beyond its seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// So many hosts.
    pub hosts: Option<usize>,
    /// A world that is aimed at this.
    pub aim: Option<Aim>,
    /// A mistake built in.
    pub mutation: Option<Mutation>,
    /// The story.
    pub tracing: bool,
}

/// Runs a seed.
pub fn run(seed: u64, wanted: Wanted) -> Report {
    let Wanted { hosts, mutation, tracing, .. } = wanted;
    let mut random = Random(seed ^ 0x0073_696d_756c_6174);
    let mut setting = setting(hosts, &mut random);
    let drawn = random.chance(0.33).then(|| Aim::ALL[random.below(Aim::ALL.len())]);
    let aim = wanted.aim.or(drawn);
    if let Some(aim) = aim {
        aim.bend(&mut setting, &mut random);
    }
    let breaks = setting.faulty && (aim == Some(Aim::Clocks) || random.chance(0.35));
    let broken = breaks.then(|| random.below(setting.hosts));
    let states: Vec<HostState> = (0..setting.hosts)
        .map(|index| {
            let breaking = (broken == Some(index)).then(|| breaking(&mut random));
            host(index, &setting, breaking, &mut random)
        })
        .collect();
    let aimed = aim.map_or(Vec::new(), |aim| aim.faults(setting.hosts, &mut random));
    let mixed = setting.faulty && (aimed.is_empty() || random.chance(0.3));
    let others = if mixed { faults::draw(setting.hosts, &mut random) } else { Vec::new() };
    let planned = [aimed, others].concat();
    let world = World::new(setting, states, random.split(), tracing);
    *world.due.borrow_mut() = planned;
    let mut report = within(&world, mutation, || {
        let process = world.new_process();
        world.fibers.start(process, "operator", Box::new(operate));
        let left = world.fibers.run(BEGINNING + 600_000_000_000);
        if !left.is_empty() {
            world.violation(format!("threads wait for ever: {}", left.join(", ")));
        }
        Report { seed, ..Report::default() }
    });
    report.violations = world.violations.take();
    report.trace = world.trace.take();
    report.certified = world.certified.get();
    report.refused = world.refused.get();
    report.writes = world.history.borrow().writes.len() as u64;
    report.steps = world.fibers.steps.get();
    report.virtual_ns = world.fibers.now() - BEGINNING;
    report
}

/// What the people do who run the fleet.
fn operate() {
    let world = world();
    let count = world.hosts.len();
    set_up();
    let process = world.new_process();
    for client in 0..world.setting.clients {
        let live = move || {
            workload::live(client);
            let world = super::world::world();
            world.clients_gone.set(world.clients_gone.get() + 1);
        };
        world.fibers.start(process, "client", Box::new(live));
    }
    plan_breaks();
    world.fibers.sleep_for(first_at() - world.fibers.now());
    let snapshots = world.random(|random| 2 + random.below(2));
    for number in 0..snapshots {
        let name = format!("s{number}");
        let request = request(&name, &mut world.random(Random::split), false);
        if let Some(true) = take(0, &name, request) {
            // Some are deleted, so that layers are merged while clients write and others are taken.
            if number > 0 && world.random(|random| random.chance(0.4)) {
                delete("s0");
            }
            if world.random(|random| random.chance(0.2)) {
                restore(0);
            }
        }
        world.fibers.sleep_for(world.random(|random| random.nanos(0, 30_000_000)));
    }
    world.note(|| "the faults end".to_owned());
    faults::end();
    recover();
    if world.random(|random| random.chance(0.3)) && restore(0) {
        world.fibers.sleep_for(2_000_000);
        let request = request("after", &mut world.random(Random::split), true);
        take(0, "after", request);
    }
    (0..world.servers.len()).for_each(check::snapshots);
    world.stopping.set(true);
    while world.clients_gone.get() < world.setting.clients {
        world.fibers.sleep_for(1_000_000);
    }
    // Merging and those who have left take a moment.
    world.fibers.sleep_for(700_000_000);
    for host in 0..count {
        check::live(host, true);
        check::images_stand(host);
        check::status(host);
        check::nothing_left(host);
    }
    shut_down();
}

/// When the first snapshot is taken: where a clock is to break its assumption, so that it does so on the way.
fn first_at() -> i64 {
    let world = world();
    let breaks =
        world.hosts.iter().filter_map(|host| host.borrow().timing.breaking()).map(|planned| planned.at);
    let early = BEGINNING + 95_000_000;
    breaks
        .min()
        .map_or(early, |at| (at - world.random(|random| random.nanos(5_000_000, 40_000_000))).max(early))
}

fn set_up() {
    let world = world();
    for host in 0..world.hosts.len() {
        hosts::start(host);
    }
    server::start(0, 0, None);
    while (0..world.hosts.len()).any(|host| !hosts::is_up(host)) {
        world.fibers.sleep_for(100_000);
    }
    for host in 0..world.hosts.len() {
        let Some((process, service)) = hosts::daemon(host) else { continue };
        let create = move || {
            let order = CreateVolume { name: VOLUME.to_owned(), size: SECTORS * SECTOR };
            if let Err(why) = service.create_volume(&order) {
                super::world::world().violation(format!("no volume: {why}"));
            }
        };
        let thread = world.fibers.start(process, "create", Box::new(create));
        world.fibers.join(thread);
    }
    // The server has known the hosts for a while.
    for host in 0..world.hosts.len() {
        let now = world.fibers.now();
        world.hosts[host].borrow_mut().timing.advance(now);
        world.hosts[host].borrow_mut().timing.begin_burst(now, 16);
    }
    world.fibers.sleep_for((BEGINNING + 80_000_000 - world.fibers.now()).max(30_000_000));
    for host in 0..world.hosts.len() {
        let now = world.fibers.now();
        world.hosts[host].borrow_mut().timing.advance(now);
    }
}

/// A machine that sleeps does nothing meanwhile; one that boots has lost its power.
fn plan_breaks() {
    let world = world();
    for host in 0..world.hosts.len() {
        let Some(planned) = world.hosts[host].borrow().timing.breaking() else { continue };
        let wait = planned.at - world.fibers.now();
        match planned.change {
            Change::Stop(long) => world.fibers.after(wait, move || {
                let world = super::world::world();
                world.note(|| format!("{} is suspended", World::name(host)));
                if let Some((process, _)) = hosts::daemon(host) {
                    faults::stop(process, long);
                }
            }),
            Change::Boot(long) => world.fibers.after(wait, move || {
                let world = super::world::world();
                world.note(|| format!("{} loses its power", World::name(host)));
                let back = long + 1_000_000;
                world.hosts[host].borrow_mut().off_until = world.fibers.now() + back;
                faults::lose_power(host, back);
            }),
            Change::Step(_) => world.fibers.after(wait, move || {
                super::world::world().note(|| format!("the clock of {} jumps", World::name(host)));
            }),
            _ => {}
        }
    }
}

/// Takes a snapshot, and checks it. Whether there is one; none if the server died.
pub fn take(index: usize, name: &str, request: CreateRequest) -> Option<bool> {
    let world = world();
    let mode = request.mode;
    let result = server::create(index, request);
    // Whatever came of it, nothing that was acknowledged is gone.
    (0..world.hosts.len()).for_each(|host| check::live(host, false));
    match &result {
        Some(Ok(Manifest { verdict: Verdict::Consistent, margin_ns, v_ns, .. })) => {
            world.note(|| format!("{name} ({mode:?}) is consistent by {margin_ns:?}, V = {v_ns:?}"));
            world.certified.set(world.certified.get() + 1);
            check::snapshot(index, name);
            Some(true)
        }
        Some(Ok(_)) => {
            world.violation(format!("{name} was kept without being consistent"));
            Some(false)
        }
        Some(Err(why)) => {
            world.note(|| format!("{name} ({mode:?}): {why}"));
            world.refused.set(world.refused.get() + 1);
            Some(false)
        }
        None => None,
    }
}

fn delete(name: &str) {
    let world = world();
    for host in &world.hosts {
        host.borrow_mut().images.retain(|(of, _)| of != name);
    }
    let of = name.to_owned();
    let done = server::ask(0, async move |coordinator: Arc<Coordinator>| coordinator.delete(&of).await);
    world.note(|| match done {
        None => format!("the server died while {name} was to be deleted"),
        Some(Err(why)) => format!("{name} is not deleted: {why}"),
        Some(Ok(())) => format!("{name} is deleted"),
    });
}

/// Snapshots succeed again, and nobody is owed an abort any more.
fn recover() {
    let world = world();
    let begin = world.fibers.now();
    let mut succeeded = false;
    for number in 0..30 {
        world.fibers.sleep_for(if number == 0 { 100_000_000 } else { 4_000_000_000 });
        let name = format!("final{number}");
        let request = request(&name, &mut world.random(Random::split), true);
        if take(0, &name, request) == Some(true) {
            succeeded = true;
            break;
        }
    }
    if !succeeded {
        world.violation("no snapshot succeeds though nothing is wrong any more".to_owned());
    }
    // An undisturbed server has nothing to wait for but its own retries.
    let patience = begin + 140_000_000_000;
    loop {
        let owed = world.servers[0]
            .borrow()
            .as_ref()
            .map_or(0, |server| server.catalogue.owed().map_or(usize::MAX, |owed| owed.len()));
        let restores = world.servers[0].borrow().as_ref().map_or(0, |server| {
            server.catalogue.decided_restores().map_or(usize::MAX, |restores| restores.len())
        });
        let deletions = world.servers[0].borrow().as_ref().map_or(0, |server| {
            let rows = server.catalogue.list().unwrap_or_default();
            rows.iter().filter(|row| row.state == SnapshotState::Deleting).count()
        });
        let operators = world.operators.get();
        let under_way: usize = (0..world.hosts.len())
            .filter_map(hosts::daemon)
            .map(|(_, service)| service.attempts_under_way())
            .sum();
        if owed == 0 && restores == 0 && deletions == 0 && under_way == 0 && operators == 0 {
            break;
        }
        if world.fibers.now() > patience {
            world.violation(format!(
                "{owed} aborts are owed, {restores} restores and {deletions} deletions are not done, {under_way} attempts are under way, {operators} other operators wait"
            ));
            break;
        }
        world.fibers.sleep_for(500_000_000);
    }
}

/// Puts all volumes back to the last snapshot, under the clients' hands. Whether that was done. What it did is checked
/// where a host has carried the order out, or is found to have.
fn restore(index: usize) -> bool {
    let world = world();
    let known = |(name, _): &&(String, Vec<u8>)| world.checked.borrow().contains(&(index, name.clone()));
    let last = world.hosts[0].borrow().images.iter().rfind(known).map(|(name, _)| name.clone());
    let has =
        |name: &String| world.hosts.iter().all(|host| host.borrow().images.iter().any(|(of, _)| of == name));
    let Some(name) = last.filter(has) else { return false };
    world.note(|| format!("{name} is to be restored"));
    let discard_current = world.random(|random| random.chance(0.5));
    let request = RestoreRequest { discard_current, disconnect: true };
    let of = name.clone();
    let restore = async move |coordinator: Arc<Coordinator>| coordinator.restore(&of, request).await;
    let result = server::ask(index, restore);
    world.note(|| match &result {
        None => format!("the server died while {name} was to be restored"),
        Some(Err(why)) => format!("{name} is not restored: {why}"),
        Some(Ok(_)) => format!("{name} is restored"),
    });
    if let Some(Err(why)) = &result
        && world.calm.get()
    {
        world.violation(format!("{name} cannot be restored: {why}"));
    }
    matches!(result, Some(Ok(_)))
}

/// Everybody leaves; what still waits then waits for ever.
fn shut_down() {
    let world = world();
    world.over.set(true);
    world.fibers.thaw_all();
    for host in &world.hosts {
        if let Some(daemon) = host.borrow_mut().daemon.take() {
            bury(daemon);
        }
    }
    world.graveyard.take().into_iter().for_each(bury);
    let servers: Vec<_> = world.servers.iter().filter_map(|server| server.borrow_mut().take()).collect();
    drop(servers);
    world.dead_servers.take();
}

/// Lets go of a daemon, on a thread of its own.
fn bury(daemon: hosts::Daemon) {
    let world = Rc::clone(&world());
    for connection in &daemon.connections {
        connection.break_off();
    }
    let process = daemon.process;
    world.fibers.start(process, "end", Box::new(move || drop(daemon)));
}
