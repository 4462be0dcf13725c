//! One world: what there is, where everybody finds it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use snapshot::messages::RequestedMode;
use snapshot::simulation::{Mutation, drive, mutate};
use timesync::random::Random;

use super::faults::{Fault, When};
use super::fibers::{Fibers, Pace, Process};
use super::history::History;
use super::hosts::HostState;
use super::server::Server;
use super::wire::Network;

/// When a world begins, on the server's timeline.
pub const BEGINNING: i64 = 3_000_000_000;

/// What is drawn for a world before it begins.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Hosts.
    pub hosts: usize,
    /// Clients.
    pub clients: usize,
    /// Exchanges in a burst.
    pub burst: u32,
    /// The hosts' limit for any stretch, in ns.
    pub max_stretch: i64,
    /// From the order to a cut to its T, in ns, at least and at most.
    pub lead: (f64, f64),
    /// The mode of all attempts; none: any.
    pub mode: Option<RequestedMode>,
    /// How likely a request is a flush.
    pub flushes: f64,
    /// How likely it asks about ranges,
    pub questions: f64,
    /// and how likely a write is to the client's unit.
    pub units: f64,
    /// From one of a client's requests to its next, in ns in the mean, while no cut is near.
    pub leisure_ns: f64,
    /// No daemon is away for longer than this, in ns.
    pub longest_absence: i64,
    /// Shared blocks of each volume that are in use.
    pub shared_blocks: u64,
    /// Whether anything goes wrong.
    pub faulty: bool,
    /// The control network.
    pub network: Network,
    /// How threads run.
    pub pace: Pace,
}

/// A world.
pub struct World {
    /// Its threads.
    pub fibers: Rc<Fibers>,
    /// What was drawn.
    pub setting: Setting,
    /// Its hosts.
    pub hosts: Vec<RefCell<HostState>>,
    /// Its servers: the second one is there in some worlds.
    pub servers: Vec<RefCell<Option<Server>>>,
    /// What the clients did.
    pub history: RefCell<History>,
    /// What the clients know: for each, the latest write of each.
    pub knowledge: RefCell<Vec<Vec<u32>>>,
    /// When hosts cut, as ordered, and a little around it: clients are busy then.
    pub busy: RefCell<Vec<Range<i64>>>,
    /// Clients stop when this is set.
    pub stopping: Cell<bool>,
    /// Nothing goes wrong any more.
    pub calm: Cell<bool>,
    /// Control messages so far,
    messages: Cell<u64>,
    /// and those of each step.
    orders: RefCell<BTreeMap<&'static str, u64>>,
    /// Faults that have not happened yet.
    pub due: RefCell<Vec<(When, Fault)>>,
    /// The story, one line each.
    pub trace: RefCell<Vec<String>>,
    /// Daemons that were killed.
    pub graveyard: RefCell<Vec<super::hosts::Daemon>>,
    /// Servers that were killed.
    pub dead_servers: RefCell<Vec<Server>>,
    /// Processes that are stopped for a while.
    pub stopped: RefCell<Vec<Process>>,
    /// Snapshots that were certified.
    pub certified: Cell<u64>,
    /// And that were not.
    pub refused: Cell<u64>,
    /// Snapshots that were checked: by which server, and their names.
    pub checked: RefCell<BTreeSet<(usize, String)>>,
    /// Other operators who wait for a snapshot.
    pub operators: Cell<usize>,
    /// All hosts are going away: they have nothing of any attempt.
    pub over: Cell<bool>,
    /// Clients that have stopped.
    pub clients_gone: Cell<usize>,
    /// What was wrong.
    pub violations: RefCell<Vec<String>>,
    next_process: Cell<Process>,
    ids: RefCell<BTreeMap<String, usize>>,
    tracing: bool,
}

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// The world that this thread simulates.
///
/// # Panics
/// When it simulates none.
pub fn world() -> Rc<World> {
    WORLD.with(|world| world.borrow().clone()).unwrap()
}

/// Makes `world` this thread's, with a mistake or none, for as long as `act` runs.
pub fn within<T>(world: &Rc<World>, mutation: Option<Mutation>, act: impl FnOnce() -> T) -> T {
    WORLD.with(|current| *current.borrow_mut() = Some(Rc::clone(world)));
    drive(Some(Rc::<Fibers>::clone(&world.fibers)));
    mutate(mutation);
    let result = act();
    mutate(None);
    drive(None);
    WORLD.with(|current| *current.borrow_mut() = None);
    result
}

impl World {
    /// A world without anybody in it.
    pub fn new(setting: Setting, hosts: Vec<HostState>, random: Random, tracing: bool) -> Rc<Self> {
        let (clients, count) = (setting.clients, hosts.len());
        Rc::new(World {
            fibers: Fibers::new(BEGINNING, random, setting.pace),
            setting,
            hosts: hosts.into_iter().map(RefCell::new).collect(),
            servers: vec![RefCell::new(None), RefCell::new(None)],
            history: RefCell::new(History::new(clients, count)),
            knowledge: RefCell::new(vec![vec![0; clients]; clients]),
            busy: RefCell::default(),
            stopping: Cell::new(false),
            calm: Cell::new(false),
            messages: Cell::new(0),
            orders: RefCell::default(),
            due: RefCell::default(),
            trace: RefCell::default(),
            graveyard: RefCell::default(),
            dead_servers: RefCell::default(),
            stopped: RefCell::default(),
            certified: Cell::new(0),
            refused: Cell::new(0),
            checked: RefCell::default(),
            operators: Cell::new(0),
            over: Cell::new(false),
            clients_gone: Cell::new(0),
            violations: RefCell::default(),
            next_process: Cell::new(1),
            ids: RefCell::default(),
            tracing,
        })
    }

    /// A process that there was not before.
    pub fn new_process(&self) -> Process {
        let process = self.next_process.get();
        self.next_process.set(process + 1);
        process
    }

    /// Counts a control message: of all, and of its step.
    pub fn count(&self, step: &'static str) -> (u64, u64) {
        self.messages.set(self.messages.get() + 1);
        let mut orders = self.orders.borrow_mut();
        let nth = orders.entry(step).or_default();
        *nth += 1;
        (self.messages.get(), *nth)
    }

    /// Draws from the seed.
    pub fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        self.fibers.random(draw)
    }

    /// Adds a line to the story.
    pub fn note(&self, line: impl FnOnce() -> String) {
        if self.tracing {
            let line = self.without_ids(&line());
            let line = format!("{:>14.6} ms  {line}", (self.fibers.now() - BEGINNING) as f64 / 1e6);
            self.trace.borrow_mut().push(line);
        }
    }

    /// Ids differ from run to run; the story calls them by the order in which it mentions them.
    fn without_ids(&self, line: &str) -> String {
        let mut ids = self.ids.borrow_mut();
        let is_id = |text: &str| text.len() == 36 && text.bytes().filter(|&byte| byte == b'-').count() == 4;
        let word = |word: &str| {
            if !is_id(word) {
                return word.to_owned();
            }
            let known = ids.len();
            format!("#{}", ids.entry(word.to_owned()).or_insert(known))
        };
        let mut word = word;
        line.split_inclusive(|c: char| !c.is_ascii_hexdigit() && c != '-')
            .map(|part| match part.char_indices().next_back() {
                Some((end, last)) if !last.is_ascii_hexdigit() && last != '-' => {
                    format!("{}{last}", word(&part[..end]))
                }
                _ => word(part),
            })
            .collect()
    }

    /// Something is wrong.
    pub fn violation(&self, what: String) {
        self.note(|| format!("VIOLATION: {what}"));
        self.violations.borrow_mut().push(what);
    }

    /// A host's name.
    pub fn name(host: usize) -> String {
        format!("host{host:03}")
    }

    /// Which host it is the name of.
    pub fn index(name: &str) -> Option<usize> {
        name.strip_prefix("host")?.parse().ok()
    }
}
