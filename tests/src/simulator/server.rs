//! A server: the product's coordinator on the product's catalogue, and the time source that it asks.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use snapshot::catalogue::Catalogue;
use snapshot::coordinator::{Coordinator, CoordinatorError, Options};
use snapshot::http::Connector;
use snapshot::messages::{CreateRequest, Manifest};
use snapshot::remote::{HostEndpoint, Limits};
use snapshot::simulation::{Driver, block_on};
use timesync::identity::Incarnation;
use timesync::source::{Observation, SkewSource, Unobserved};
use timesync::time::{Server as ServerTimeline, Time};

use super::fibers::Process;
use super::wire::{FIRST_PORT, Wire};
use super::world::{World, world};
use crate::clocks::host::{at, incarnation};

/// A server that runs.
pub struct Server {
    /// Its threads.
    pub process: Process,
    /// What survives it.
    pub catalogue: Arc<Catalogue>,
    /// The product's own.
    pub coordinator: Arc<Coordinator>,
    /// How often it was started.
    pub run: u128,
}

/// The time-sync server's answers, from exchanges that take virtual time.
struct Source {
    run: u128,
}

impl SkewSource for Source {
    fn now(&self) -> Time<ServerTimeline> {
        let world = world();
        world.fibers.pause();
        at(world.fibers.now())
    }

    fn incarnation(&self) -> Incarnation {
        incarnation(900_000 + self.run)
    }

    fn burst(&self, hosts: &[String]) {
        let world = world();
        let hosts: Vec<usize> = hosts.iter().filter_map(|name| World::index(name)).collect();
        let begin = world.fibers.now();
        for &host in &hosts {
            world.hosts[host].borrow_mut().timing.begin_burst(begin, world.setting.burst);
        }
        let next = |host: &usize| world.hosts[*host].borrow().timing.next_of_burst();
        while let Some(soonest) = hosts.iter().filter_map(next).min() {
            world.fibers.sleep_for(soonest - world.fibers.now());
            let now = world.fibers.now();
            for &host in &hosts {
                world.hosts[host].borrow_mut().timing.advance(now);
            }
        }
    }

    fn observe(&self, host: &str) -> Result<Observation, Unobserved> {
        let world = world();
        let index = World::index(host).ok_or_else(|| Unobserved::Unknown(host.to_owned()))?;
        let now = world.fibers.now();
        let mut state = world.hosts[index].borrow_mut();
        state.timing.advance(now);
        state.timing.estimator.observe(at(now), false)
    }
}

/// Starts one of the servers, on the catalogue that its last run left. On a simulated thread.
pub fn start(index: usize, run: u128, catalogue: Option<Arc<Catalogue>>) {
    static CONNECTOR: LazyLock<Connector> = LazyLock::new(|| Connector::new(None, false).unwrap());
    let world = world();
    let catalogue = match catalogue {
        Some(catalogue) => {
            catalogue.reopen().unwrap();
            catalogue
        }
        None => Arc::new(Catalogue::in_memory().unwrap()),
    };
    let endpoints: Vec<HostEndpoint> = (0..world.hosts.len())
        .map(|host| HostEndpoint {
            name: World::name(host),
            control: format!("http://127.0.0.1:{}", usize::from(FIRST_PORT) + host),
            ..HostEndpoint::default()
        })
        .collect();
    let step = std::time::Duration::from_millis(300);
    let limits = Limits { step, seal: step * 2, bulk: step * 4 };
    let options = Options { digests: false, limits, ..Options::default() };
    let source = Arc::new(Source { run: run + 100_000 * index as u128 });
    let wire = Arc::new(Wire { server: index });
    let coordinator =
        Coordinator::new(source, &endpoints, Arc::clone(&catalogue), &CONNECTOR.over(wire), options).unwrap();
    let process = world.new_process();
    let recovering = Arc::clone(&coordinator);
    let recover = move || {
        if let Err(why) = block_on(recovering.recover()) {
            super::world::world().violation(format!("the server does not recover: {why}"));
        }
    };
    world.fibers.start(process, "recover", Box::new(recover));
    *world.servers[index].borrow_mut() = Some(Server { process, catalogue, coordinator, run });
    world.note(|| format!("server {index} runs"));
}

/// Takes a server's life.
pub fn kill(index: usize) -> Option<Server> {
    let world = world();
    let server = world.servers[index].borrow_mut().take()?;
    world.fibers.freeze(server.process);
    world.note(|| format!("server {index} is killed"));
    Some(server)
}

/// Has a server do something, as its API would. None if it died meanwhile.
pub fn ask<T: Send + 'static, F: Future<Output = T>>(
    index: usize,
    what: impl FnOnce(Arc<Coordinator>) -> F + Send + 'static,
) -> Option<T> {
    let world = world();
    let (process, coordinator) = {
        let server = world.servers[index].borrow();
        let server = server.as_ref()?;
        (server.process, Arc::clone(&server.coordinator))
    };
    let slot = Arc::new(Mutex::new(None));
    let filled = Arc::clone(&slot);
    let work = move || {
        let result = block_on(what(coordinator));
        *filled.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
    };
    world.fibers.start(process, "create", Box::new(work));
    loop {
        world.fibers.sleep_for(1_000_000);
        if let Some(result) = slot.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Some(result);
        }
        let alive = world.servers[index].borrow().as_ref().is_some_and(|server| server.process == process);
        if !alive {
            return None;
        }
    }
}

/// Takes a snapshot. None if the server died meanwhile.
pub fn create(index: usize, request: CreateRequest) -> Option<Result<Manifest, CoordinatorError>> {
    ask(index, async |coordinator: Arc<Coordinator>| coordinator.create(request, |_| {}).await)
}
