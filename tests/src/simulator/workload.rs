//! Clients: each writes its own sectors, reads everybody's, and tells others what it has done. What it knows goes with
//! each write, so that an image shows whether a write is there without one that it may depend on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use snapshot::cut::Cut;
use snapshot::device::{Device, Exports, Outcome};
use snapshot::simulation::{Driver, set_reading_at_head};
use timesync::time::Nanos;

use super::history::{Fate, SECTOR, SECTORS, content, writer};
use super::hosts::{self, VOLUME};
use super::world::{World, world};

/// Blocks that are shared between clients; the others are written whole.
pub const SHARED_BLOCKS: u64 = 5;
const SHARED: u64 = SHARED_BLOCKS * BLOCK;
/// Sectors of a block.
const BLOCK: u64 = 8;

/// What a client asks of a host.
#[derive(Debug)]
enum Request {
    /// A write of the history; `apart`: its data comes so long after its head.
    Write {
        client: usize,
        host: usize,
        first: u64,
        count: u64,
        fua: bool,
        apart: i64,
        knows: Vec<u32>,
    },
    Read {
        first: u64,
        count: u64,
    },
    Flush,
}

impl Request {
    /// Its name as a kind of work.
    fn name(&self) -> &'static str {
        match self {
            Request::Write { .. } => "write",
            Request::Read { .. } => "read",
            Request::Flush => "flush",
        }
    }
}

#[derive(Debug)]
enum Answer {
    Done { place: usize, result: Result<(), snapshot::device::DeviceError> },
    Data(Result<Vec<u8>, snapshot::device::DeviceError>),
    Flushed { began: i64, result: Result<(), snapshot::device::DeviceError> },
}

#[derive(Debug, Default)]
struct Line {
    requests: VecDeque<Request>,
    answer: Option<Answer>,
    broken: bool,
}

/// A client's connection to a host.
#[derive(Debug, Default)]
pub struct Connection {
    line: Mutex<Line>,
}

impl Connection {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// The daemon died, or sends the client away.
    pub fn break_off(&self) {
        self.line().broken = true;
        let world = world();
        world.fibers.wake(self.key());
        world.fibers.wake(self.key() + 1);
    }
}

fn way(mean: f64) -> i64 {
    world().random(|random| 4_000 + random.exponential(mean) as i64)
}

/// Connects a client to a host, if its daemon runs and lets it in.
fn connect(host: usize) -> Option<Arc<Connection>> {
    let world = world();
    let connection = Arc::new(Connection::default());
    let (process, service) = {
        let mut state = world.hosts[host].borrow_mut();
        let daemon = state.daemon.as_mut()?;
        daemon.connections.push(Arc::clone(&connection));
        (daemon.process, Arc::clone(&daemon.service))
    };
    let served = Arc::clone(&connection);
    let serve = move || {
        if let Some(device) = service.open(VOLUME) {
            let leaving = Arc::downgrade(&served);
            device.on_disconnect(Box::new(move || {
                if let Some(connection) = leaving.upgrade() {
                    connection.break_off();
                }
            }));
            drop(service);
            self::serve(host, &served, &*device);
        }
        served.break_off();
    };
    world.fibers.start(process, "connection", Box::new(serve));
    Some(connection)
}

/// A connection's thread on the host: executes requests one after the other, as `nbd::connection` does.
fn serve(host: usize, connection: &Arc<Connection>, device: &dyn Device) {
    let world = world();
    loop {
        let request = {
            let mut line = connection.line();
            if line.broken {
                return;
            }
            line.requests.pop_front()
        };
        let Some(request) = request else {
            world.fibers.wait(connection.key(), None);
            continue;
        };
        world.fibers.begin(request.name());
        match request {
            Request::Write { client, host, first, count, fua, apart, knows } => {
                let place = receive(client, host, first..first + count, fua, apart, knows);
                let data: Vec<u8> = {
                    let number = world.history.borrow().writes[place].number;
                    (0..count).flat_map(|_| content(client, number)).collect()
                };
                let outcome = device.write(first * SECTOR, &data, fua);
                let held = hold_of(&outcome);
                {
                    let mut history = world.history.borrow_mut();
                    let write = &mut history.writes[place];
                    write.returned = Some(world.fibers.now());
                    write.held_by = held;
                }
                let result = outcome.result;
                let sent = move || {
                    // An error says nothing of what is there.
                    if result.is_ok() {
                        let world = super::world::world();
                        world.history.borrow_mut().writes[place].sent = Some(world.fibers.now());
                    }
                };
                reply(host, connection, outcome.hold, sent, Answer::Done { place, result });
            }
            Request::Read { first, count } => {
                let mut buffer = vec![0; (count * SECTOR) as usize];
                let outcome = device.read(first * SECTOR, &mut buffer);
                let held = hold_of(&outcome);
                let result = outcome.result.map(|()| buffer.clone());
                let sent = move || note_revealed(host, &buffer, held);
                reply(host, connection, outcome.hold, sent, Answer::Data(result));
            }
            Request::Flush => {
                let began = world.fibers.now();
                let outcome = device.flush();
                let result = outcome.result;
                reply(host, connection, outcome.hold, || {}, Answer::Flushed { began, result });
            }
        }
    }
}

/// A write comes: its head, and its data after it.
fn receive(
    client: usize,
    host: usize,
    sectors: std::ops::Range<u64>,
    fua: bool,
    apart: i64,
    knows: Vec<u32>,
) -> usize {
    let world = world();
    let mut knows = knows;
    if apart > 0 {
        let at_head = hosts::clock(host).now();
        world.fibers.sleep_for(apart);
        // The client composed the data while it was under way, with all that it had heard.
        knows.clone_from(&world.knowledge.borrow()[client]);
        set_reading_at_head(Some(at_head));
    } else {
        set_reading_at_head(None);
    }
    world.fibers.begin("write");
    let place = world.history.borrow_mut().issue(client, host, sectors, knows, fua);
    world.history.borrow_mut().writes[place].received = Some(world.fibers.now());
    place
}

fn hold_of(outcome: &Outcome) -> Option<i64> {
    outcome.hold.as_ref().and_then(|cut| cut.at()).map(timesync::time::Time::as_nanos)
}

/// What a reader's answer showed.
fn note_revealed(host: usize, data: &[u8], held: Option<i64>) {
    let world = world();
    let now = world.fibers.now();
    let mut history = world.history.borrow_mut();
    for sector in data.chunks_exact(SECTOR as usize) {
        if let Some((client, number)) = writer(sector)
            && let Some(place) = history.place(client, number)
        {
            history.revealed.push((host, place, held, now));
        }
    }
}

/// Sends an answer, or holds it: what `nbd::connection` does with an outcome.
fn reply(
    host: usize,
    connection: &Arc<Connection>,
    hold: Option<Arc<Cut>>,
    sent: impl FnOnce() + Send + 'static,
    answer: Answer,
) {
    let world = world();
    world.fibers.begin("reply");
    let clock = hosts::clock(host);
    let (ready, kept) = (world.fibers.now(), world.fibers.kept());
    let waiting = Arc::clone(connection);
    let send = move || {
        let world = super::world::world();
        super::check::hold(host, world.fibers.now() - ready, world.fibers.kept().since(kept));
        sent();
        let delay = way(8_000.0);
        world.fibers.after(delay, move || {
            let mut line = waiting.line();
            if !line.broken {
                line.answer = Some(answer);
            }
            drop(line);
            super::world::world().fibers.wake(waiting.key() + 1);
        });
    };
    let Some(cut) = hold else { return send() };
    let ready_at = clock.now();
    if cut.may_release(ready_at) {
        return send();
    }
    if let Err(send) = cut.hold(ready_at, Box::new(send)) {
        return send();
    }
    // Some connections are asleep when the stretch ends; whoever is awake ends it for all.
    if world.random(|random| random.chance(0.5)) {
        return;
    }
    while let Some(due) = cut.release_due() {
        let now = clock.now();
        if cut.may_release(now) {
            return;
        }
        let left = (due - now - Nanos::from_micros(20)).to_std();
        world.fibers.sleep(left.max(Duration::from_nanos(300)));
    }
}

/// A client's life.
pub fn live(client: usize) {
    let world = world();
    let mut lines: Vec<Option<Arc<Connection>>> = vec![None; world.hosts.len()];
    while !world.stopping.get() {
        think();
        let host = world.random(|random| random.below(lines.len()));
        let gone = lines[host].as_ref().is_none_or(|line| line.line().broken);
        if gone {
            lines[host] = connect(host);
        }
        let Some(connection) = lines[host].clone() else { continue };
        ask(client, host, &connection);
    }
    for line in lines.into_iter().flatten() {
        line.break_off();
    }
}

/// Between two requests: busy around a cut, lazy otherwise.
fn think() {
    let world = world();
    let now = world.fibers.now();
    let next = {
        let mut busy = world.busy.borrow_mut();
        busy.retain(|time| time.end > now);
        busy.iter().min_by_key(|time| time.start).cloned()
    };
    let pause = world.random(|random| match next {
        Some(time) if time.start <= now => {
            random.exponential(6_000_f64.max((time.end - time.start) as f64 / 80.0)) as i64
        }
        Some(time) => (random.exponential(2_500_000.0) as i64).min(time.start + 50_000 - now),
        None => random.exponential(2_500_000.0) as i64,
    });
    world.fibers.sleep_for(pause);
}

fn ask(client: usize, host: usize, connection: &Arc<Connection>) {
    let world = world();
    let request = draw(client, host);
    let asked = match &request {
        Request::Read { first, count } => Some(Asked::about(host, *first..first + count)),
        _ => None,
    };
    world.fibers.sleep_for(way(8_000.0));
    connection.line().requests.push_back(request);
    world.fibers.wake(connection.key());
    let answer = loop {
        let mut line = connection.line();
        if let Some(answer) = line.answer.take() {
            break Some(answer);
        }
        if line.broken {
            break None;
        }
        drop(line);
        world.fibers.wait(connection.key() + 1, None);
    };
    match answer {
        Some(Answer::Done { place, result: Ok(()) }) => learn_done(client, place),
        Some(Answer::Data(Ok(data))) => {
            if let Some(asked) = asked {
                asked.check(&data);
            }
            learn_read(client, host, &data);
        }
        Some(Answer::Flushed { began, result: Ok(()) }) => world.history.borrow_mut().flushed(host, began),
        _ => {}
    }
    if world.random(|random| random.chance(0.5)) {
        tell(client);
    }
}

fn draw(client: usize, host: usize) -> Request {
    let world = world();
    let clients = world.setting.clients as u64;
    let shared = world.setting.shared_blocks * BLOCK;
    let (dice, place, more) = world.random(|random| (random.unit(), random.bits(), random.bits()));
    if dice < 0.60 {
        let knows = world.knowledge.borrow()[client].clone();
        let (first, count) = if more % 5 == 0 {
            let blocks = (SECTORS - SHARED) / BLOCK;
            let own = (place % blocks / clients) * clients + client as u64;
            if own < blocks { (SHARED + own * BLOCK, BLOCK) } else { (client as u64, 1) }
        } else {
            (place % (shared / clients) * clients + client as u64, 1)
        };
        let apart = if more % 11 == 0 { world.random(|random| random.nanos(20_000, 200_000)) } else { 0 };
        Request::Write { client, host, first, count, fua: more % 13 == 0, apart, knows }
    } else if dice < 0.93 {
        let count = if more % 3 == 0 { BLOCK } else { 1 };
        // Mostly where others write.
        let within = if more % 7 < 5 { shared } else { SECTORS };
        Request::Read { first: place % (within - count + 1), count }
    } else {
        Request::Flush
    }
}

/// What a read has to show at least.
struct Asked {
    host: usize,
    first: u64,
    /// For each sector, the last write that was acknowledged before.
    least: Vec<Option<usize>>,
}

impl Asked {
    fn about(host: usize, sectors: std::ops::Range<u64>) -> Self {
        let world = world();
        let history = world.history.borrow();
        let least = |sector| history.last_done(host, sector).map(|(place, _)| place);
        // Meanwhile nobody knows what still stands.
        let sectors = if world.restoring.get() { sectors.start..sectors.start } else { sectors };
        Asked { host, first: sectors.start, least: sectors.map(least).collect() }
    }

    fn check(&self, data: &[u8]) {
        let world = world();
        let history = world.history.borrow();
        for ((at, least), shown) in self.least.iter().enumerate().zip(data.chunks_exact(SECTOR as usize)) {
            let Some(write) = least.map(|place| &history.writes[place]) else { continue };
            let shows = writer(shown).map_or(u32::MAX, |(_, number)| number);
            if write.fate == Fate::Done && shows < write.number && !world.restoring.get() {
                world.violation(format!(
                    "a read of {} shows sector {} without write {}:{}, which was acknowledged before it was asked",
                    World::name(self.host),
                    self.first + at as u64,
                    write.client,
                    write.number,
                ));
            }
        }
    }
}

fn learn_done(client: usize, place: usize) {
    let world = world();
    let mut history = world.history.borrow_mut();
    let write = &mut history.writes[place];
    write.acknowledged = true;
    if write.fate == Fate::Unknown {
        write.fate = Fate::Done;
    }
    world.knowledge.borrow_mut()[client][client] = write.number;
}

fn learn_read(client: usize, host: usize, data: &[u8]) {
    let world = world();
    let history = world.history.borrow();
    for sector in data.chunks_exact(SECTOR as usize) {
        match writer(sector) {
            None => world.violation(format!("a read of {} shows a torn sector", World::name(host))),
            Some((of, number)) => {
                let Some(write) = history.of(of, number) else { continue };
                let mut knowledge = world.knowledge.borrow_mut();
                merge(&mut knowledge[client], &write.knows);
                knowledge[client][of] = knowledge[client][of].max(number);
            }
        }
    }
}

fn merge(known: &mut [u32], more: &[u32]) {
    known.iter_mut().zip(more).for_each(|(known, more)| *known = (*known).max(*more));
}

/// Tells somebody all that this client knows, over a network of its own.
fn tell(client: usize) {
    let world = world();
    let knows = world.knowledge.borrow()[client].clone();
    let whom = world.random(|random| random.below(knows.len()));
    let delay = way(5_000.0);
    world.fibers.after(delay, move || {
        merge(&mut super::world::world().knowledge.borrow_mut()[whom], &knows);
    });
}
