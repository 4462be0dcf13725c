//! Simulated threads on one real one, in virtual time: the order in which they run, and how long each sleeps at each
//! point, are the seed's alone.
//!
//! Virtual time is the server's timeline. A thread runs from one point of the driver to the next in no time at all; at
//! each point it is away for a while that is drawn: mostly less than a microsecond, sometimes for as long as a thread
//! that lost its processor at the worst place.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::time::Duration;

use generator::{Generator, Gn};
use snapshot::simulation::Driver;
use timesync::random::Random;

/// Words of a thread's stack: 256 KiB, of which the system gives what is touched.
const STACK: usize = 32 * 1024;

/// A process, or a client: what is killed, stopped and resumed as a whole.
pub type Process = usize;

/// A place in the code at which threads sleep: the so many-th point in some kind of work.
#[derive(Clone, Copy, Debug)]
pub struct WorstPlace {
    /// The kind of work: see [`Fibers::begin`].
    pub work: &'static str,
    /// Points that are passed before, since the work began.
    pub point: u32,
    /// How likely a thread sleeps there,
    pub chance: f64,
    /// and until when.
    pub until: Until,
}

/// When a thread that sleeps at the worst place goes on.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many ns at most.
    Long(f64),
    /// Where it is worst: somewhere in the next cut's stretch, or close to its ends. It does not sleep if no cut is known.
    Stretch,
    /// At most so many ns after the next cut's stretch has ended.
    Sealing(f64),
}

/// Nobody sleeps towards a cut that is further ahead than this, in ns.
const FAR: i64 = 400_000_000;

/// How threads run.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How likely a thread loses its processor at a point.
    pub sleepiness: f64,
    /// For how long at most, in ns.
    pub longest_ns: f64,
    /// Where threads lose it besides.
    pub worst: Option<WorstPlace>,
    /// How long a sync of a disk takes in the mean, in ns.
    pub disk_ns: f64,
}

type Code = Generator<'static, (), ()>;

thread_local! {
    /// Threads that are over: the next ones have their stacks.
    static OVER: RefCell<Vec<Code>> = const { RefCell::new(Vec::new()) };
}

/// Unwinds a thread that waits for a lock of a dead process.
struct InVain;

struct Fiber {
    code: Option<Code>,
    name: String,
    process: Process,
    /// Counts its waits, so that what was meant to end an earlier one does not end a later one.
    turn: u64,
    /// How its last wait ended.
    woken: bool,
    /// The process that it looks into from outside.
    looks_into: Option<Process>,
    /// That process has died: what it waits for never comes.
    in_vain: bool,
    unparked: bool,
    parked: bool,
    /// What it does, and the points that it has passed since it began.
    work: &'static str,
    points: u32,
}

enum Event {
    Resume { fiber: u64, turn: u64, woken: bool },
    Call { process: Option<Process>, then: Box<dyn FnOnce()> },
}

struct Inner {
    sequence: u64,
    queue: BTreeMap<(i64, u64), Event>,
    fibers: BTreeMap<u64, Fiber>,
    next: u64,
    waiting: HashMap<usize, Vec<(u64, u64)>>,
    joining: HashMap<u64, usize>,
    random: Random,
    /// And since when.
    frozen: BTreeMap<Process, i64>,
    /// What would have happened in frozen processes.
    stash: Vec<(Process, Event)>,
    machines: HashMap<Process, Machine>,
    /// The stretches that hosts were ordered, on the server's timeline.
    stretches: Vec<(i64, i64)>,
    /// By process.
    kept: Vec<Kept>,
}

impl Inner {
    fn kept(&mut self, process: Process) -> &mut Kept {
        if process >= self.kept.len() {
            self.kept.resize(process + 1, Kept::default());
        }
        &mut self.kept[process]
    }

    /// How long a thread stays away at the worst place; none if it does not.
    fn away(&mut self, now: i64, until: Until) -> Option<i64> {
        if let Until::Long(longest_ns) = until {
            return Some((longest_ns * self.random.between(0.2, 1.0)) as i64);
        }
        self.stretches.retain(|(_, end)| *end > now);
        let &(begin, end) = self.stretches.iter().min_by_key(|(begin, _)| begin)?;
        let at = match until {
            Until::Sealing(longest_ns) => end + (longest_ns * self.random.unit()) as i64,
            _ => begin + ((end - begin) as f64 * self.random.between(-0.1, 1.2)) as i64,
        };
        (at > now && begin < now + FAR).then_some(at - now)
    }
}

/// For how long a process's threads were kept from running, all taken together, in ns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept {
    begun: i64,
    ended: i64,
}

impl Kept {
    /// All that they slept since then, with what had not ended then or has not yet. Whatever waited in the process need
    /// not have waited longer than it should by more than this.
    pub fn since(self, before: Kept) -> i64 {
        self.begun - before.ended
    }
}

/// What a process runs on.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// By how much its timers run slow, in 10⁻⁹.
    pub slow_ppb: i64,
    /// How many times longer than others its disk takes.
    pub slow_disk: f64,
}

/// The simulated threads.
pub struct Fibers {
    inner: RefCell<Inner>,
    now: Cell<i64>,
    current: Cell<u64>,
    pace: Cell<Pace>,
    /// The checker's own steps take no time.
    quiet: Cell<bool>,
    /// Points passed.
    pub steps: Cell<u64>,
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX / 4)
}

impl Fibers {
    /// No threads yet.
    pub fn new(start: i64, random: Random, pace: Pace) -> Rc<Self> {
        let inner = Inner {
            sequence: 0,
            queue: BTreeMap::new(),
            fibers: BTreeMap::new(),
            next: 1,
            waiting: HashMap::new(),
            joining: HashMap::new(),
            random,
            frozen: BTreeMap::new(),
            stash: Vec::new(),
            machines: HashMap::new(),
            stretches: Vec::new(),
            kept: Vec::new(),
        };
        Rc::new(Fibers {
            inner: RefCell::new(inner),
            now: Cell::new(start),
            current: Cell::new(0),
            pace: Cell::new(pace),
            quiet: Cell::new(false),
            steps: Cell::new(0),
        })
    }

    /// The server's time.
    pub fn now(&self) -> i64 {
        self.now.get()
    }

    /// Runs `work` without letting anybody else go first, unless a lock is taken.
    pub fn quietly<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.quiet.replace(true);
        let result = work();
        self.quiet.set(before);
        result
    }

    /// The same, looking into a process from outside; none if it dies while this waits for one of its locks.
    pub fn look<T>(&self, process: Process, look: impl FnOnce() -> T) -> Option<T> {
        let id = self.current.get();
        let looks = |into| {
            if let Some(fiber) = self.inner.borrow_mut().fibers.get_mut(&id) {
                (fiber.looks_into, fiber.in_vain) = (into, false);
            }
        };
        looks(Some(process));
        let seen = self.quietly(|| catch_unwind(AssertUnwindSafe(look)));
        looks(None);
        match seen {
            Ok(seen) => Some(seen),
            Err(why) if why.is::<InVain>() => None,
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Threads do not sleep at bad places any more.
    pub fn calm_down(&self) {
        self.pace.set(Pace { sleepiness: 0.0, worst: None, ..self.pace.get() });
    }

    /// Says what a process runs on.
    pub fn set_machine(&self, process: Process, machine: Machine) {
        self.inner.borrow_mut().machines.insert(process, machine);
    }

    /// A host was ordered to stretch then.
    pub fn expect_stretch(&self, begin: i64, end: i64) {
        self.inner.borrow_mut().stretches.push((begin, end));
    }

    /// This thread begins some work, which a [`WorstPlace`] may name.
    pub fn begin(&self, work: &'static str) {
        if let Some(fiber) = self.inner.borrow_mut().fibers.get_mut(&self.current.get()) {
            (fiber.work, fiber.points) = (work, 0);
        }
    }

    /// For how long the threads of this thread's process were kept from running so far.
    pub fn kept(&self) -> Kept {
        let inner = self.inner.borrow();
        let Some(fiber) = inner.fibers.get(&self.current.get()) else { return Kept::default() };
        inner.kept.get(fiber.process).copied().unwrap_or_default()
    }

    /// Draws from the seed.
    pub fn random<T>(&self, draw: impl FnOnce(&mut Random) -> T) -> T {
        draw(&mut self.inner.borrow_mut().random)
    }

    fn push(&self, inner: &mut Inner, at: i64, event: Event) {
        inner.sequence += 1;
        let key = (at.max(self.now.get()), inner.sequence);
        inner.queue.insert(key, event);
    }

    /// Calls `then` after a time, whatever happens to whom.
    pub fn after(&self, delay: i64, then: impl FnOnce() + 'static) {
        let at = self.now() + delay;
        self.push(&mut self.inner.borrow_mut(), at, Event::Call { process: None, then: Box::new(then) });
    }

    /// Starts a thread in a process.
    pub fn start(&self, process: Process, name: &str, code: Box<dyn FnOnce() + Send>) -> u64 {
        let inner = &mut *self.inner.borrow_mut();
        let id = inner.next;
        inner.next += 1;
        // What a thread has others do for it is the same work.
        let asked_by = inner.fibers.get(&self.current.get()).map_or("", |fiber| fiber.work);
        let work = if name == "keeper" { "keep" } else { asked_by };
        let code = match OVER.with_borrow_mut(Vec::pop) {
            Some(mut over) => {
                over.init_code(code);
                over
            }
            None => Gn::<()>::new_opt(STACK, code),
        };
        let fiber = Fiber {
            code: Some(code),
            name: name.to_owned(),
            process,
            turn: 0,
            woken: false,
            looks_into: None,
            in_vain: false,
            unparked: false,
            parked: false,
            work,
            points: 0,
        };
        inner.fibers.insert(id, fiber);
        let at = self.now() + inner.random.nanos(200, 30_000);
        self.push(inner, at, Event::Resume { fiber: id, turn: 0, woken: false });
        id
    }

    /// Stops all threads of a process where they are.
    pub fn freeze(&self, process: Process) {
        self.inner.borrow_mut().frozen.entry(process).or_insert(self.now.get());
    }

    /// Stops them for ever: nobody waits for what they hold.
    pub fn kill(&self, process: Process) {
        self.freeze(process);
        let inner = &mut *self.inner.borrow_mut();
        let looking = inner.fibers.iter_mut().filter(|(_, fiber)| fiber.looks_into == Some(process));
        let looking: Vec<_> = looking
            .map(|(&fiber, of)| {
                of.in_vain = true;
                Event::Resume { fiber, turn: of.turn, woken: false }
            })
            .collect();
        looking.into_iter().for_each(|event| self.push(inner, self.now.get(), event));
    }

    /// Lets them go on.
    pub fn thaw(&self, process: Process) {
        let inner = &mut *self.inner.borrow_mut();
        if let Some(since) = inner.frozen.remove(&process) {
            let kept = inner.kept(process);
            kept.begun += self.now.get() - since;
            kept.ended += self.now.get() - since;
        }
        for (of, event) in std::mem::take(&mut inner.stash) {
            if of == process {
                self.push(inner, self.now.get(), event);
            } else {
                inner.stash.push((of, event));
            }
        }
    }

    /// Lets all go on, for the end.
    pub fn thaw_all(&self) {
        let frozen: Vec<_> = self.inner.borrow().frozen.keys().copied().collect();
        frozen.into_iter().for_each(|process| self.thaw(process));
    }

    /// Runs until nothing happens any more, or until then. Gives the names of the threads that wait for ever.
    pub fn run(&self, until: i64) -> Vec<String> {
        while self.now() < until {
            let event = {
                let inner = &mut *self.inner.borrow_mut();
                let Some(((at, _), event)) = inner.queue.pop_first() else { break };
                self.now.set(at.max(self.now.get()));
                let process = match &event {
                    Event::Resume { fiber, .. } => inner.fibers.get(fiber).map(|fiber| fiber.process),
                    Event::Call { process, .. } => *process,
                };
                if let Some(process) = process.filter(|process| inner.frozen.contains_key(process)) {
                    inner.stash.push((process, event));
                    continue;
                }
                event
            };
            match event {
                Event::Call { then, .. } => then(),
                Event::Resume { fiber, turn, woken } => self.resume(fiber, turn, woken),
            }
        }
        // What waits for ever cannot be let go of: its locks are held. It failed the seed; its memory is the price.
        let left = std::mem::take(&mut self.inner.borrow_mut().fibers);
        let names = left
            .values()
            .map(|fiber| format!("{} ({:?}) of process {}", fiber.name, fiber.work, fiber.process))
            .collect();
        std::mem::forget(left);
        names
    }

    fn resume(&self, id: u64, turn: u64, woken: bool) {
        let mut code = {
            let inner = &mut *self.inner.borrow_mut();
            let Some(fiber) = inner.fibers.get_mut(&id).filter(|fiber| fiber.turn == turn) else { return };
            fiber.turn += 1;
            fiber.woken = woken;
            let Some(code) = fiber.code.take() else { return };
            code
        };
        self.current.set(id);
        code.resume();
        self.current.set(0);
        if !code.is_done() {
            let inner = &mut *self.inner.borrow_mut();
            if let Some(fiber) = inner.fibers.get_mut(&id) {
                fiber.code = Some(code);
            }
            return;
        }
        OVER.with_borrow_mut(|over| over.push(code));
        let joined = {
            let inner = &mut *self.inner.borrow_mut();
            inner.fibers.remove(&id);
            inner.joining.remove(&id)
        };
        if let Some(key) = joined {
            self.wake(key);
        }
    }

    /// Lets others run until `at`, or until woken. Outside the threads, time cannot pass.
    #[expect(deprecated, reason = "the other form needs a reference that outlives the thread's own code")]
    fn away_until(&self, at: Option<i64>) {
        let id = self.current.get();
        {
            let inner = &mut *self.inner.borrow_mut();
            let Some(turn) = inner.fibers.get(&id).map(|fiber| fiber.turn) else { return };
            if let Some(at) = at {
                self.push(inner, at, Event::Resume { fiber: id, turn, woken: false });
            }
        }
        generator::yield_with(());
    }

    /// Sleeps by the server's time.
    pub fn sleep_for(&self, time: i64) {
        self.away_until(Some(self.now() + time.max(0)));
    }

    fn by_timer(&self, time: Duration) -> i64 {
        let inner = &mut *self.inner.borrow_mut();
        let process = inner.fibers.get(&self.current.get()).map(|fiber| fiber.process);
        let slow = process.and_then(|process| inner.machines.get(&process)).map_or(0, |m| m.slow_ppb);
        let time = nanos(time);
        let slowed = i64::try_from(i128::from(time) * i128::from(slow) / 1_000_000_000).unwrap_or(0);
        time + slowed + inner.random.nanos(50, 4_000)
    }
}

impl Driver for Fibers {
    fn pause(&self) {
        self.steps.set(self.steps.get() + 1);
        if self.quiet.get() || self.current.get() == 0 {
            return;
        }
        let pace = self.pace.get();
        let (process, away, alone) = {
            let inner = &mut *self.inner.borrow_mut();
            let Some(fiber) = inner.fibers.get_mut(&self.current.get()) else { return };
            fiber.points += 1;
            let here = |worst: &WorstPlace| worst.work == fiber.work && worst.point + 1 == fiber.points;
            let (process, worst) = (fiber.process, pace.worst.filter(here));
            let worst = worst.filter(|worst| inner.random.chance(worst.chance));
            let away = worst.and_then(|worst| inner.away(self.now(), worst.until));
            let random = &mut inner.random;
            let away = match away {
                Some(away) => away,
                None if random.chance(pace.sleepiness) => {
                    (2_000.0 * (pace.longest_ns / 2_000.0).powf(random.unit())) as i64
                }
                None => random.nanos(5, 250),
            };
            inner.kept(process).begun += away;
            let at = self.now() + away;
            let alone = inner.queue.first_key_value().is_none_or(|((next, _), _)| *next > at);
            (process, away, alone)
        };
        if alone {
            // Nobody else would run meanwhile.
            self.now.set(self.now() + away);
        } else {
            self.sleep_for(away);
        }
        self.inner.borrow_mut().kept(process).ended += away;
    }

    fn sleep(&self, time: Duration) {
        let at = self.now() + self.by_timer(time);
        self.away_until(Some(at));
    }

    fn wait(&self, key: usize, limit: Option<Duration>) -> bool {
        let id = self.current.get();
        let at = limit.map(|limit| self.now() + self.by_timer(limit));
        let waiter = {
            let inner = &mut *self.inner.borrow_mut();
            let Some(fiber) = inner.fibers.get(&id) else {
                panic!("only a simulated thread can wait");
            };
            let waiter = (id, fiber.turn);
            inner.waiting.entry(key).or_default().push(waiter);
            waiter
        };
        self.away_until(at);
        let inner = &mut *self.inner.borrow_mut();
        let woken = inner.fibers.get(&id).is_some_and(|fiber| fiber.woken);
        if !woken && let Some(waiting) = inner.waiting.get_mut(&key) {
            // Nobody is to find it there when something else has come to lie at this address.
            waiting.retain(|other| *other != waiter);
        }
        if inner.fibers.get(&id).is_some_and(|fiber| fiber.in_vain) {
            resume_unwind(Box::new(InVain));
        }
        woken
    }

    fn wake(&self, key: usize) {
        let inner = &mut *self.inner.borrow_mut();
        for (fiber, turn) in inner.waiting.remove(&key).unwrap_or_default() {
            let at = self.now() + inner.random.nanos(100, 5_000);
            self.push(inner, at, Event::Resume { fiber, turn, woken: true });
        }
    }

    fn spawn(&self, name: &str, work: Box<dyn FnOnce() + Send>) -> u64 {
        let process = self.inner.borrow().fibers.get(&self.current.get()).map_or(0, |fiber| fiber.process);
        self.start(process, name, work)
    }

    fn park(&self, limit: Duration) {
        let id = self.current.get();
        if let Some(fiber) = self.inner.borrow_mut().fibers.get_mut(&id)
            && std::mem::take(&mut fiber.unparked)
        {
            return;
        }
        let at = self.now() + self.by_timer(limit);
        if let Some(fiber) = self.inner.borrow_mut().fibers.get_mut(&id) {
            fiber.parked = true;
        }
        self.away_until(Some(at));
        if let Some(fiber) = self.inner.borrow_mut().fibers.get_mut(&id) {
            (fiber.parked, fiber.unparked) = (false, false);
        }
    }

    fn unpark(&self, thread: u64) {
        let inner = &mut *self.inner.borrow_mut();
        let Some(fiber) = inner.fibers.get_mut(&thread) else { return };
        fiber.unparked = true;
        if !fiber.parked {
            return;
        }
        let turn = fiber.turn;
        let at = self.now() + inner.random.nanos(100, 30_000);
        self.push(inner, at, Event::Resume { fiber: thread, turn, woken: false });
    }

    fn join(&self, thread: u64) {
        // No address is as small as a thread's number.
        let key = usize::try_from(thread).unwrap_or(0);
        let there = {
            let inner = &mut *self.inner.borrow_mut();
            let there = inner.fibers.contains_key(&thread);
            if there {
                inner.joining.insert(thread, key);
            }
            there
        };
        if there {
            self.wait(key, None);
        }
    }

    fn alarm(&self, after: Duration, then: Box<dyn FnOnce() + Send>) {
        let at = self.now() + self.by_timer(after);
        let inner = &mut *self.inner.borrow_mut();
        let process = inner.fibers.get(&self.current.get()).map(|fiber| fiber.process);
        self.push(inner, at, Event::Call { process, then });
    }

    fn disk(&self) {
        if self.quiet.get() || self.current.get() == 0 {
            return;
        }
        let mean = self.pace.get().disk_ns;
        let time = {
            let inner = &mut *self.inner.borrow_mut();
            let process = inner.fibers.get(&self.current.get()).map(|fiber| fiber.process);
            let slow = process.and_then(|process| inner.machines.get(&process)).map_or(1.0, |m| m.slow_disk);
            inner.random.exponential(mean * slow) as i64
        };
        self.sleep_for(time);
    }
}
