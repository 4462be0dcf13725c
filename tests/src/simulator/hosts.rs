//! A host: its clock, its disk and its daemon, which may die and come again.

use std::sync::Arc;

use axum::Router;
use snapshot::agent;
use snapshot::host::{HostOptions, HostService};
use snapshot::simulation::SimulatedDisk;
use timesync::clock::HostClock;
use timesync::server::Record;
use timesync::time::{Host as HostTimeline, Nanos, Time};
use uuid::Uuid;

use super::faults;
use super::fibers::{Machine, Process};
use super::wire::Reply;
use super::workload::Connection;
use super::world::{World, world};
use crate::clocks::host::Host as Timing;

/// A host.
pub struct HostState {
    /// Its clock and network, and the server's record of them.
    pub timing: Timing<Record>,
    /// What survives its daemon.
    pub disk: SimulatedDisk,
    /// The daemon, while it runs.
    pub daemon: Option<Daemon>,
    /// Control messages do not reach it, or not come back, until then.
    pub cut_off: (i64, i64),
    /// What it runs on.
    pub machine: Machine,
    /// Requests that its daemon is to answer.
    pub under_way: Vec<Reply>,
    /// When its last daemon died.
    pub died_at: i64,
    /// Until when its machine has no power.
    pub off_until: i64,
    /// Whether its daemon has died, and nobody has looked yet what it forgot:
    pub forgetful: bool,
    /// what was not flushed, if the machine lost its power or the disk was full; else nothing that was answered.
    pub fragile: bool,
    /// Whether its daemon is about to run.
    pub starting: bool,
    /// Whether its disk has failed.
    pub ailing: bool,
    /// Images of its snapshots as they were first seen.
    pub images: Vec<(String, Vec<u8>)>,
    /// Orders to put the volume back that are being carried out: the restore, the snapshot, and when the order came.
    pub switching: Vec<(Uuid, String, i64)>,
    /// The last restore that was seen to be done.
    pub restored: Option<Uuid>,
}

/// A host's daemon.
pub struct Daemon {
    /// Its threads.
    pub process: Process,
    /// The product's own.
    pub service: Arc<HostService>,
    /// The product's own, too.
    pub router: Router,
    /// Who is connected.
    pub connections: Vec<Arc<Connection>>,
}

/// What a host's clock reads now; the thread may lose its processor before and after.
fn read(host: usize) -> Time<HostTimeline> {
    let world = world();
    snapshot::simulation::Driver::pause(&*world.fibers);
    let reading = world.hosts[host].borrow().timing.clock.read(world.fibers.now());
    snapshot::simulation::Driver::pause(&*world.fibers);
    Time::from_nanos(reading)
}

/// A host's clock as its daemon reads it.
pub fn clock(host: usize) -> HostClock {
    HostClock::driven(move || read(host))
}

/// The volume's name on every host.
pub const VOLUME: &str = "v";

/// Starts a host's daemon on its disk. To be called on a simulated thread.
pub fn start(host: usize) {
    let world = world();
    if world.fibers.now() < world.hosts[host].borrow().off_until {
        // Whatever its daemon was to be started anew for before it lost its power.
        return;
    }
    if is_up(host) || std::mem::replace(&mut world.hosts[host].borrow_mut().starting, true) {
        return;
    }
    let process = world.new_process();
    let (disk, incarnation) = {
        let mut state = world.hosts[host].borrow_mut();
        state.timing.down = false;
        let now = world.fibers.now();
        world.fibers.set_machine(process, state.machine);
        (state.disk.clone(), state.timing.incarnation(now))
    };
    let options = HostOptions {
        name: World::name(host),
        volumes: "/".into(),
        max_stretch: Nanos::new(world.setting.max_stretch),
        import_from: Vec::new(),
        merge_rate: 1 << 30,
    };
    // On a thread of its own process, so that the volumes' threads are its own too.
    let starting = move || {
        let world = super::world::world();
        match disk.host(options, incarnation, clock(host)) {
            Ok(service) => {
                world.note(|| format!("{} runs", World::name(host)));
                if std::mem::take(&mut world.hosts[host].borrow_mut().forgetful) {
                    super::check::after_crash(host, &service);
                }
                let router = agent::router(agent::routes(Arc::clone(&service), false));
                let daemon = Daemon { process, service, router, connections: Vec::new() };
                world.hosts[host].borrow_mut().daemon = Some(daemon);
            }
            Err(why) => world.violation(format!("{} does not start: {why}", World::name(host))),
        }
        let is_off = {
            let mut state = world.hosts[host].borrow_mut();
            state.starting = false;
            world.fibers.now() < state.off_until
        };
        if is_off {
            // The power went while it started.
            faults::cut_power(host);
        }
    };
    world.fibers.start(process, "start", Box::new(starting));
}

/// Whether the volume may be being put back: nobody knows then what still stands.
pub fn is_switching(host: usize) -> bool {
    !world().hosts[host].borrow().switching.is_empty()
}

/// Checks a restore, if one has been done that was not there before.
pub fn note_restored(host: usize, service: &HostService) {
    let world = world();
    let done = service.restored(VOLUME);
    let order = {
        let mut state = world.hosts[host].borrow_mut();
        if done.is_none() || done == state.restored {
            return;
        }
        state.restored = done;
        state.switching.iter().find(|(id, ..)| Some(*id) == done).cloned()
    };
    let live = world.fibers.quietly(|| service.content(VOLUME));
    if let (Some((_, name, began)), Some(live)) = (order, live) {
        world.note(|| format!("{} is put back to {name}", World::name(host)));
        super::check::restored(host, &name, began, &live);
    }
}

/// The daemon, if one runs.
pub fn daemon(host: usize) -> Option<(Process, Arc<HostService>)> {
    let world = world();
    let state = world.hosts[host].borrow();
    state.daemon.as_ref().map(|daemon| (daemon.process, Arc::clone(&daemon.service)))
}

/// Whether a daemon runs.
pub fn is_up(host: usize) -> bool {
    world().hosts[host].borrow().daemon.is_some()
}

/// Takes a daemon's life; its disk is what `find` says of the old one.
pub fn kill(host: usize, find: impl FnOnce(&SimulatedDisk) -> SimulatedDisk) {
    let world = world();
    let Some(daemon) = world.hosts[host].borrow_mut().daemon.take() else { return };
    world.fibers.kill(daemon.process);
    for connection in &daemon.connections {
        connection.break_off();
    }
    let mut state = world.hosts[host].borrow_mut();
    state.timing.down = true;
    state.timing.restarts += 1;
    state.died_at = world.fibers.now();
    state.forgetful = true;
    state.disk = find(&state.disk);
    drop(state);
    // Its threads never run again, but what they hold is let go of at the end.
    world.graveyard.borrow_mut().push(daemon);
}
