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

/// Sectors of the blocks that are shared between clients; the others are written whole.
const SHARED: u64 = 40;
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
    let (clock, ready) = (hosts::clock(host), world.fibers.now());
    let waiting = Arc::clone(connection);
    let send = move || {
        let world = super::world::world();
        let now = world.fibers.now();
        let mut history = world.history.borrow_mut();
        history.longest_hold = history.longest_hold.max(now - ready);
        drop(history);
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
    let near = world.cuts_at.borrow().iter().map(|at| at - now).filter(|left| *left > -400_000).min();
    let pause = world.random(|random| match near {
        Some(left) if left < 300_000 => random.exponential(6_000.0) as i64,
        Some(left) => (random.exponential(2_500_000.0) as i64).min(left - 250_000).max(1_000),
        None => random.exponential(2_500_000.0) as i64,
    });
    world.fibers.sleep_for(pause);
}

fn ask(client: usize, host: usize, connection: &Arc<Connection>) {
    let world = world();
    let request = {
        let knows = world.knowledge.borrow()[client].clone();
        let clients = world.setting.clients as u64;
        let chosen = world.random(|random| (random.unit(), random.bits(), random.bits()));
        let (dice, place, more) = chosen;
        if dice < 0.60 {
            let (first, count) = if more % 5 == 0 {
                let blocks = (SECTORS - SHARED) / BLOCK;
                let own = (place % blocks / clients) * clients + client as u64;
                if own < blocks { (SHARED + own * BLOCK, BLOCK) } else { (client as u64, 1) }
            } else {
                (place % (SHARED / clients) * clients + client as u64, 1)
            };
            let apart = if more % 11 == 0 { world.random(|random| random.nanos(20_000, 200_000)) } else { 0 };
            Request::Write { client, host, first, count, fua: more % 13 == 0, apart, knows }
        } else if dice < 0.93 {
            let count = if more % 3 == 0 { BLOCK } else { 1 };
            Request::Read { first: place % (SECTORS - count + 1), count }
        } else {
            Request::Flush
        }
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
    learn(client, host, answer);
    if world.random(|random| random.chance(0.5)) {
        tell(client);
    }
}

fn learn(client: usize, host: usize, answer: Option<Answer>) {
    let world = world();
    let mut history = world.history.borrow_mut();
    match answer {
        Some(Answer::Done { place, result: Ok(()) }) => {
            let write = &mut history.writes[place];
            if write.fate == Fate::Unknown {
                write.fate = Fate::Done;
            }
            let number = write.number;
            world.knowledge.borrow_mut()[client][client] = number;
        }
        Some(Answer::Data(Ok(data))) => {
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
        Some(Answer::Flushed { began, result: Ok(()) }) => history.flushed(host, began),
        _ => {}
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
