//! Clients: each writes its own sectors, reads everybody's, and tells others what it has done. What it knows goes with
//! each write, so that an image shows whether a write is there without one that it may depend on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use snapshot::cut::Cut;
use snapshot::device::{Device, Exports, Outcome};
use snapshot::simulation::{Driver, set_reading_at_head};
use timesync::time::Nanos;

use super::history::{BLOCK, Fate, SECTOR, SECTORS, SHARED, UNIT, content, unit};
use super::hosts::{self, VOLUME};
use super::status;
use super::world::{World, world};

/// What a client asks of a host.
#[derive(Debug)]
enum Request {
    Change(Change),
    Read {
        first: u64,
        count: u64,
    },
    /// Which runs are holes; or with the name of a snapshot, which have changed since.
    Status {
        first: u64,
        count: u64,
        since: Option<String>,
    },
    Flush,
}

/// A write of the history; `apart`: its data comes so long after its head.
#[derive(Debug)]
struct Change {
    client: usize,
    host: usize,
    first: u64,
    count: u64,
    what: What,
    fua: bool,
    apart: i64,
    knows: Vec<u32>,
}

/// How a sector is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Data,
    Trim,
    Zeroes { may_punch: bool },
    FastZeroes,
}

impl Request {
    /// Its name as a kind of work.
    fn name(&self) -> &'static str {
        match self {
            Request::Change(_) => "write",
            Request::Read { .. } => "read",
            Request::Status { .. } => "status",
            Request::Flush => "flush",
        }
    }
}

#[derive(Debug)]
enum Answer {
    Done {
        place: usize,
        result: Result<(), snapshot::device::DeviceError>,
    },
    Data(Result<Vec<u8>, snapshot::device::DeviceError>),
    /// The writes that an answer about ranges tells of.
    Told(Vec<usize>),
    Flushed {
        began: i64,
        result: Result<(), snapshot::device::DeviceError>,
    },
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
            Request::Change(change) => {
                let (offset, length) = (change.first * SECTOR, change.count * SECTOR);
                let (what, fua) = (change.what, change.fua);
                let place = receive(change);
                let outcome = match what {
                    What::Data => {
                        let data = {
                            let history = world.history.borrow();
                            let write = &history.writes[place];
                            content(write.client, write.number).repeat((length / SECTOR) as usize)
                        };
                        device.write(offset, &data, fua)
                    }
                    What::Trim => device.trim(offset, length, fua),
                    What::Zeroes { may_punch } => device.write_zeroes(offset, length, may_punch, fua),
                    What::FastZeroes => device.write_zeroes_fast(offset, length, true, fua),
                };
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
                let sent = move || note_revealed(host, first, &buffer, held);
                reply(host, connection, outcome.hold, sent, Answer::Data(result));
            }
            Request::Status { first, count, since } => {
                let (outcome, told) = status::ask(host, device, first..first + count, since.as_deref());
                let (held, shown) = (hold_of(&outcome), told.clone());
                let sent = move || note_told(host, &shown, held);
                reply(host, connection, outcome.hold, sent, Answer::Told(told));
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
fn receive(change: Change) -> usize {
    let world = world();
    let Change { client, host, first, count, what, fua, apart, mut knows } = change;
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
    let zeros = what != What::Data;
    let place = world.history.borrow_mut().issue(client, host, first..first + count, zeros, knows, fua);
    world.history.borrow_mut().writes[place].received = Some(world.fibers.now());
    place
}

fn hold_of(outcome: &Outcome) -> Option<i64> {
    outcome.hold.as_ref().and_then(|cut| cut.at()).map(timesync::time::Time::as_nanos)
}

/// What a reader's answer showed.
fn note_revealed(host: usize, first: u64, data: &[u8], held: Option<i64>) {
    let shown: Vec<usize> = {
        let world = world();
        let history = world.history.borrow();
        let versions = history.versions(host, first, data, false);
        versions.into_iter().flatten().filter_map(|shown| history.place(shown.client, shown.least)).collect()
    };
    note_told(host, &shown, held);
}

/// The writes of which an answer told.
fn note_told(host: usize, places: &[usize], held: Option<i64>) {
    let world = world();
    let now = world.fibers.now();
    let told = places.iter().map(|&place| (host, place, held, now));
    world.history.borrow_mut().revealed.extend(told);
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
    // While people wait for everything to settle, there is no need to hurry.
    let leisure = if world.calm.get() { 2e7 } else { world.setting.leisure_ns };
    let pause = world.random(|random| match next {
        Some(time) if time.start <= now => {
            random.exponential(6_000_f64.max((time.end - time.start) as f64 / 80.0)) as i64
        }
        Some(time) => (random.exponential(leisure) as i64).min(time.start + 50_000 - now),
        None => random.exponential(leisure) as i64,
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
                learn_read(client, host, asked.first, &data);
            }
        }
        Some(Answer::Told(places)) => places.into_iter().for_each(|place| learn(client, place)),
        Some(Answer::Flushed { began, result: Ok(()) }) => world.history.borrow_mut().flushed(host, began),
        _ => {}
    }
    if world.random(|random| random.chance(0.5)) {
        tell(client);
    }
}

fn draw(client: usize, host: usize) -> Request {
    let world = world();
    let shared = world.setting.shared_blocks * BLOCK;
    let (flushes, questions) = (world.setting.flushes, world.setting.questions);
    let (flush, question, dice, place, more) = world.random(|random| {
        (random.chance(flushes), random.chance(questions), random.unit(), random.bits(), random.bits())
    });
    if flush {
        return Request::Flush;
    }
    if question {
        return draw_question(host, place, more);
    }
    if dice < 0.7 {
        return Request::Change(draw_change(client, host, place, more));
    }
    let count = if more.is_multiple_of(3) { BLOCK } else { 1 };
    // Mostly where others write.
    let within = if more % 7 < 5 { shared } else { SECTORS };
    Request::Read { first: place % (within - count + 1), count }
}

/// About some blocks, mostly in the units.
fn draw_question(host: usize, place: u64, more: u64) -> Request {
    let since = {
        let world = world();
        let images = &world.hosts[host].borrow().images;
        let nth = (more >> 8) as usize % (images.len() + 1);
        images.get(nth).map(|(name, _)| name.clone())
    };
    let first =
        if more.is_multiple_of(5) { place % SHARED } else { SHARED + place % (SECTORS - SHARED) } / BLOCK;
    let count = (1 + more % 4).min(SECTORS / BLOCK - first);
    Request::Status { first: first * BLOCK, count: count * BLOCK, since }
}

fn draw_change(client: usize, host: usize, place: u64, more: u64) -> Change {
    let world = world();
    let (clients, shared) = (world.setting.clients as u64, world.setting.shared_blocks * BLOCK);
    let knows = world.knowledge.borrow()[client].clone();
    let fua = more.is_multiple_of(13);
    if world.random(|random| random.chance(world.setting.units)) {
        let unit = unit(client);
        let (first, count, what) = draw_zeros(client, host, place, more)
            .map_or((0, UNIT, What::Data), |(part, what)| (part.start, part.end - part.start, what));
        return Change { client, host, first: unit.start + first, count, what, fua, apart: 0, knows };
    }
    let first = place % (shared / clients) * clients + client as u64;
    let apart =
        if more.is_multiple_of(11) { world.random(|random| random.nanos(20_000, 200_000)) } else { 0 };
    Change { client, host, first, count: 1, what: What::Data, fua, apart, knows }
}

/// Which part of its unit a client makes zero, and how. None while the unit is not whole for certain.
fn draw_zeros(client: usize, host: usize, place: u64, more: u64) -> Option<(std::ops::Range<u64>, What)> {
    let world = world();
    let history = world.history.borrow();
    let (_, last) = history.last_of_unit(client, host)?;
    if last.zeros || last.fate != Fate::Done || hosts::is_switching(host) {
        return None;
    }
    let what = match (more >> 8) % 5 {
        0 | 1 => What::Trim,
        2 => What::Zeroes { may_punch: true },
        3 => What::Zeroes { may_punch: false },
        _ => What::FastZeroes,
    };
    let (first, end) = (1 + place % (UNIT - 1), 1 + (place >> 8) % (UNIT - 1));
    let part = match (more >> 16) % 3 {
        // A whole block, which becomes a hole; or any part.
        0 => BLOCK..UNIT,
        1 if what != What::FastZeroes => first..UNIT,
        _ if what != What::FastZeroes => first.min(end)..first.max(end) + 1,
        _ => BLOCK..UNIT,
    };
    Some((part, what))
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
        let first = sectors.start;
        let least = |sector| history.last_done(host, sector).map(|(place, _)| place);
        // Meanwhile nobody knows what still stands.
        let sectors = if hosts::is_switching(host) { sectors.start..sectors.start } else { sectors };
        Asked { host, first, least: sectors.map(least).collect() }
    }

    fn check(&self, data: &[u8]) {
        let world = world();
        let history = world.history.borrow();
        let shown = history.versions(self.host, self.first, data, false);
        for ((at, least), shown) in self.least.iter().enumerate().zip(shown) {
            let Some(write) = least.map(|place| &history.writes[place]) else { continue };
            let lacks = shown.is_some_and(|shown| shown.includes(write.number) == Some(false));
            if write.fate == Fate::Done && lacks && !hosts::is_switching(self.host) {
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

fn learn_read(client: usize, host: usize, first: u64, data: &[u8]) {
    let world = world();
    let places: Vec<usize> = {
        let history = world.history.borrow();
        let versions = history.versions(host, first, data, false);
        if versions.contains(&None) {
            world.violation(format!("a read of {} shows a torn sector", World::name(host)));
        }
        versions.into_iter().flatten().filter_map(|shown| history.place(shown.client, shown.least)).collect()
    };
    places.into_iter().for_each(|place| learn(client, place));
}

/// A client hears of a write, and of all that it may depend on.
fn learn(client: usize, place: usize) {
    let world = world();
    let history = world.history.borrow();
    let write = &history.writes[place];
    let known = &mut world.knowledge.borrow_mut()[client];
    merge(known, &write.knows);
    known[write.client] = known[write.client].max(write.number);
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
