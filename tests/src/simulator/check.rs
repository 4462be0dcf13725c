//! What must be true, whatever went wrong.

use std::cell::RefCell;
use std::sync::Arc;

use snapshot::certificate::{Certificate, Evidence, HostEvidence, certify};
use snapshot::device::{Device, Exports};
use snapshot::host::HostService;
use snapshot::messages::SnapshotState;
use snapshot::simulation::block_on;

use super::history::{Fate, SECTOR, SECTORS, Version, Write};
use super::hosts::{self, VOLUME};
use super::server::Server;
use super::status;
use super::world::{World, world};
use crate::clocks::clock::Change;

/// What an image shows, by sector.
type Shown = Vec<Version>;

fn read(device: &Arc<dyn Device>) -> Option<Vec<u8>> {
    let mut image = vec![0; (SECTORS * SECTOR) as usize];
    device.read(0, &mut image).result.ok()?;
    Some(image)
}

/// A snapshot's image, or the live volume's (no name).
pub fn image(host: usize, snapshot: Option<&str>) -> Option<Vec<u8>> {
    let world = world();
    let (process, service) = hosts::daemon(host)?;
    let name = snapshot.map_or(VOLUME.to_owned(), |snapshot| format!("{VOLUME}@{snapshot}"));
    world.fibers.look(process, || read(&service.open(&name)?))?
}

fn shown(host: usize, what: &str, image: &[u8]) -> Shown {
    let world = world();
    let history = world.history.borrow();
    let name = World::name(host);
    let version = |(sector, version): (usize, Option<Version>)| {
        let Some(version) = version else {
            world.violation(format!("{what} of {name}: sector {sector} is torn"));
            return Version { client: 0, least: 0, most: 0 };
        };
        let Version { client, least, .. } = version;
        let right = |write: &Write| write.host == host && write.sectors.contains(&(sector as u64));
        if least > 0 && !history.of(client, least).is_some_and(right) {
            world.violation(format!("{what} of {name}: sector {sector} shows {client}:{least}"));
        }
        version
    };
    history.versions(host, 0, image, true).into_iter().enumerate().map(version).collect()
}

/// Whether an image shows a write, or a later one in its place. None if only in parts, or if nobody can tell.
fn includes(shown: &Shown, write: &Write) -> Option<bool> {
    let mut sectors = write.sectors.clone().map(|sector| shown[sector as usize].includes(write.number));
    let first = sectors.next()??;
    sectors.all(|other| other == Some(first)).then_some(first)
}

/// Whether an image shows a write in parts for certain.
fn is_torn(shown: &Shown, write: &Write) -> bool {
    let has = |what| {
        write.sectors.clone().any(|sector| shown[sector as usize].includes(write.number) == Some(what))
    };
    has(true) && has(false)
}

/// A snapshot that was called consistent. If a host is down it is looked at later.
pub fn snapshot(server: usize, name: &str) {
    let world = world();
    let coordinator = world.servers[server].borrow().as_ref().map(|server| Arc::clone(&server.coordinator));
    let Some(coordinator) = coordinator else { return };
    let Ok(details) = block_on(coordinator.show(name, true)) else { return };
    let Some(evidence) = details.evidence else {
        return world.violation(format!("{name} is consistent without evidence"));
    };
    let certificate = match certify(&evidence) {
        Ok(certificate) => certificate,
        Err(why) => return world.violation(format!("{name} is consistent, and its evidence is not: {why}")),
    };
    let mut images = Vec::new();
    for (host, state) in world.hosts.iter().enumerate() {
        match image(host, Some(name)) {
            Some(image) => images.push(image),
            None if state.borrow().daemon.is_none() || state.borrow().ailing => return,
            None => {
                return world
                    .violation(format!("{name} is consistent and not there on {}", World::name(host)));
            }
        }
    }
    world.checked.borrow_mut().insert((server, name.to_owned()));
    let mut all = Vec::new();
    for (host, image) in images.into_iter().enumerate() {
        all.push(shown(host, name, &image));
        world.hosts[host].borrow_mut().images.push((name.to_owned(), image));
    }
    pre_writes(name, &evidence, &all);
    causality(name, &evidence, &all);
    evidence_is_true(name, &evidence, &certificate, &all);
}

/// Every snapshot that a server calls consistent and that was not looked at yet.
pub fn snapshots(server: usize) {
    let world = world();
    let catalogue = world.servers[server].borrow().as_ref().map(|server| Arc::clone(&server.catalogue));
    let Some(rows) = catalogue.and_then(|catalogue| catalogue.list().ok()) else { return };
    for row in rows.iter().filter(|row| row.state == SnapshotState::Complete) {
        let key = (server, row.name.clone());
        if world.checked.borrow().contains(&key) {
            continue;
        }
        snapshot(server, &row.name);
        if !world.checked.borrow().contains(&key) {
            world.violation(format!("snapshot {} is called complete and is not there", row.name));
        }
    }
}

/// Each image is the replay of exactly the writes before its host's cut.
fn pre_writes(name: &str, evidence: &Evidence, images: &[Shown]) {
    let world = world();
    let history = world.history.borrow();
    for write in &history.writes {
        let Some(part) = part(evidence, write) else { continue };
        let at = part.readings.at.as_nanos();
        let clock = |x: i64| reading(write.host, x, part);
        let is = format!("{name}: write {}:{} on {}", write.client, write.number, World::name(write.host));
        let included = includes(&images[write.host], write);
        let before = write.returned.is_some_and(|x| clock(x) < at);
        let after = write.received.is_none_or(|x| clock(x) >= at);
        match included {
            // One that was never answered may have been torn by the crash that took its answer.
            None if write.fate == Fate::Done && is_torn(&images[write.host], write) => {
                world.violation(format!("{is} is there in parts"))
            }
            None => {}
            Some(true) if after => world.violation(format!("{is} came after T and is there")),
            Some(false) if before && stood(write, part) => {
                world.violation(format!("{is} was done before T and is not there"));
            }
            Some(_) => {}
        }
    }
}

fn part<'a>(evidence: &'a Evidence, write: &Write) -> Option<&'a HostEvidence> {
    let name = World::name(write.host);
    evidence.hosts.iter().find(|part| part.host == name)
}

/// Whether a write was acknowledged, and nothing had taken it away when its host cut.
fn stood(write: &Write, part: &HostEvidence) -> bool {
    let still = |x: i64| reading(write.host, x, part) >= part.readings.at.as_nanos();
    write.acknowledged && write.lost_at.is_none_or(still)
}

/// What a host's clock read at `x`; in another boot than the evidence's, before or after anything in that one.
fn reading(host: usize, x: i64, evidence: &HostEvidence) -> i64 {
    let world = world();
    let timing = &world.hosts[host].borrow().timing;
    if timing.incarnation(x).boot == evidence.ordered.boot {
        return timing.clock.read(x);
    }
    let began_later = timing.incarnation(world.fibers.now()).boot == evidence.ordered.boot;
    if began_later { i64::MIN } else { i64::MAX }
}

/// No image has a write without those that it may depend on.
fn causality(name: &str, evidence: &Evidence, images: &[Shown]) {
    let world = world();
    let history = world.history.borrow();
    let mut missing = vec![u32::MAX; world.setting.clients];
    for write in &history.writes {
        let counts = part(evidence, write).is_some_and(|part| stood(write, part));
        if counts && includes(&images[write.host], write) == Some(false) {
            missing[write.client] = missing[write.client].min(write.number);
        }
    }
    for write in history.writes.iter().filter(|write| includes(&images[write.host], write) == Some(true)) {
        if let Some(other) = (0..missing.len()).find(|&other| write.knows[other] >= missing[other]) {
            world.violation(format!(
                "{name} is torn: it has write {}:{} on {}, which knew of {other}:{}, which is missing on {}",
                write.client,
                write.number,
                World::name(write.host),
                missing[other],
                history.of(other, missing[other]).map_or(String::new(), |write| World::name(write.host)),
            ));
            return;
        }
    }
}

/// What the certificate says of the readings is so: no write that is there came after P, and nothing that shows one
/// that is not there left before Q.
fn evidence_is_true(name: &str, evidence: &Evidence, certificate: &Certificate, images: &[Shown]) {
    let world = world();
    let history = world.history.borrow();
    for (part, placed) in evidence.hosts.iter().zip(&certificate.placed) {
        let Some(host) = World::index(&part.host) else { continue };
        let (p_latest, q_earliest) = (placed.p_latest.as_nanos(), placed.q_earliest.as_nanos());
        let counts = |write: &Write| write.fate != Fate::Lost || stood(write, part);
        for write in history.writes.iter().filter(|write| write.host == host && counts(write)) {
            let included = includes(&images[host], write);
            let is = format!("{name}: write {}:{} on {}", write.client, write.number, part.host);
            if included == Some(true) && write.received.is_some_and(|x| x > p_latest + 2) {
                world.violation(format!("{is} is there and came after P"));
            }
            if included == Some(false) && write.sent.is_some_and(|x| x < q_earliest - 2) {
                world.violation(format!("{is} is not there and was answered before Q"));
            }
        }
        for (_, place, _, left) in history.revealed.iter().filter(|(at, ..)| *at == host) {
            let write = &history.writes[*place];
            let hidden = counts(write) && includes(&images[host], write) == Some(false);
            if hidden && *left < q_earliest - 2 {
                let is = format!("{name}: write {}:{} on {}", write.client, write.number, part.host);
                world.violation(format!("{is} is not there and was read before Q"));
            }
        }
    }
}

/// What a crash lost was not durable, and what a daemon's death lost was not answered; the writes that are gone are
/// forgotten.
pub fn after_crash(host: usize, service: &Arc<HostService>) {
    let world = world();
    let device = service.open(VOLUME);
    let image = device.and_then(|device| world.fibers.quietly(|| read(&device)));
    let Some(image) = image else {
        if world.hosts[host].borrow().ailing {
            // The disk failed while the volume was opened: it is served once the daemon is started anew, which is when
            // what was lost shows.
            world.hosts[host].borrow_mut().forgetful = true;
            return;
        }
        let why = service.describe().unserved;
        return world.violation(format!("{} cannot be read after a crash: {why:?}", World::name(host)));
    };
    hosts::note_restored(host, service);
    // Those that were carried out died with the daemon.
    world.hosts[host].borrow_mut().switching.clear();
    let fragile = {
        let mut state = world.hosts[host].borrow_mut();
        let fragile = state.fragile;
        state.fragile = state.ailing;
        fragile
    };
    let shown = shown(host, "the live volume after a crash", &image);
    let mut lost = Vec::new();
    {
        let history = world.history.borrow();
        for sector in 0..SECTORS {
            for (place, write) in history.of_sector(host, sector) {
                if write.number > shown[sector as usize].most && write.fate != Fate::Lost {
                    if (write.durable || !fragile) && write.fate == Fate::Done {
                        let name = World::name(host);
                        let was =
                            if write.durable { "flushed" } else { "answered, and only the daemon died" };
                        world.violation(format!(
                            "{name} lost write {}:{} in a crash, which was {was}",
                            write.client, write.number
                        ));
                    }
                    lost.push(place);
                }
            }
        }
    }
    let at = world.hosts[host].borrow().died_at;
    let mut history = world.history.borrow_mut();
    lost.into_iter().for_each(|place| history.lose(place, at));
}

/// The live volume is the replay of all acknowledged writes. `in_the_end`: it can be read, too.
pub fn live(host: usize, in_the_end: bool) {
    let world = world();
    if hosts::is_switching(host) {
        return;
    }
    let Some(image) = image(host, None) else {
        if in_the_end {
            world.violation(format!("{} cannot be read", World::name(host)));
        }
        return;
    };
    let shown = shown(host, "the live volume", &image);
    let history = world.history.borrow();
    for sector in 0..SECTORS {
        if let Some((_, write)) = history.last_done(host, sector)
            && shown[sector as usize].most < write.number
        {
            world.note(|| format!("sector {sector} shows {:?}, not {write:?}", shown[sector as usize]));
            world.violation(format!(
                "the live volume of {} has lost write {}:{}, which was acknowledged",
                World::name(host),
                write.client,
                write.number
            ));
            return;
        }
    }
}

/// A volume is as in a snapshot again, but for what was written since `began`, when the order for that came. `live`: what it
/// shows.
pub fn restored(host: usize, name: &str, began: i64, live: &[u8]) {
    let world = world();
    let (images, died_at) = {
        let state = world.hosts[host].borrow();
        (state.images.clone(), state.died_at)
    };
    let Some((_, image)) = images.into_iter().find(|(of, _)| of == name) else { return };
    let (then, now) = (shown(host, name, &image), shown(host, "the live volume", live));
    let mut undone = Vec::new();
    {
        let history = world.history.borrow();
        for sector in 0..SECTORS {
            let (then, now) = (then[sector as usize], now[sector as usize]);
            for (place, write) in history.of_sector(host, sector) {
                let is_new = write.received.is_some_and(|x| x > began);
                let number = write.number;
                if number == now.least && then.includes(number) == Some(false) && !is_new {
                    let is = format!("write {}:{number} in sector {sector}", write.client);
                    world.note(|| format!("{then:?} {now:?} {began} {write:?}"));
                    world.violation(format!("{} shows {is} though {name} was restored", World::name(host)));
                }
                // Unanswered, but done: its answer went to a client that was sent away, or its host died meanwhile.
                let was_done = write.fate == Fate::Done
                    || write.returned.is_some()
                    || write.received.is_some_and(|x| x < died_at);
                if number > then.least && number != now.least && was_done && write.fate != Fate::Lost {
                    undone.push(place);
                }
            }
            if now.most < then.least {
                let name_of = World::name(host);
                world.violation(format!(
                    "sector {sector} of {name_of} is older than in {name}, which was restored"
                ));
            }
        }
    }
    let mut history = world.history.borrow_mut();
    undone.into_iter().for_each(|place| history.lose(place, began));
}

/// How long an answer was held back, and by how much its process was kept from running meanwhile, in ns.
pub fn hold(host: usize, held: i64, kept: i64) {
    let world = world();
    if world.over.get() {
        return;
    }
    let state = world.hosts[host].borrow();
    // A clock that stands still ends nothing.
    let stopped = match state.timing.breaking().map(|planned| planned.change) {
        Some(Change::Stop(long)) => long,
        _ => 0,
    };
    let limit = world.setting.max_stretch;
    // Clocks and timers run wrongly by less than a thousandth each, and waking takes a moment.
    if held > limit + limit / 500 + 1_000_000 + kept + stopped {
        world.violation(format!(
            "an answer of {} was held for {held} ns; max_stretch is {limit}, and its threads slept for {kept} ns",
            World::name(host)
        ));
    }
}

/// The images of snapshots are as they were.
pub fn images_stand(host: usize) {
    let world = world();
    let before = world.hosts[host].borrow().images.clone();
    for (name, then) in before {
        match image(host, Some(&name)) {
            Some(now) if now == then => {}
            Some(_) => world.violation(format!("snapshot {name} of {} has changed", World::name(host))),
            None => world.violation(format!("snapshot {name} of {} is gone", World::name(host))),
        }
    }
}

/// What is said of ranges is so: a hole shows zeros, and what has not changed since a snapshot shows the same.
pub fn status(host: usize) {
    let world = world();
    let Some((process, service)) = hosts::daemon(host) else { return };
    let images = world.hosts[host].borrow().images.clone();
    let live = image(host, None).map(|image| (None, image));
    let views = images.iter().map(|(name, image)| (Some(name), image.clone())).chain(live);
    for (view, image) in views {
        let export = view.map_or(VOLUME.to_owned(), |name| format!("{VOLUME}@{name}"));
        let Some(Some(device)) = world.fibers.look(process, || service.open(&export)) else { continue };
        let olds = images.iter().map(|(name, old)| (Some(name), old.clone()));
        for (since, old) in olds.chain([(None, vec![0; image.len()])]) {
            let since = since.map(String::as_str);
            let told = world.fibers.look(process, || status::runs(&*device, &(0..SECTORS), since));
            for (run, flag) in told.flatten().map(|(_, runs)| runs).unwrap_or_default() {
                let bytes = (run.start * SECTOR) as usize..(run.end * SECTOR) as usize;
                // A hole is as nothing was ever written there; a change may be none.
                let same = if since.is_none() { flag } else { !flag };
                if same && image[bytes.clone()] != old[bytes] {
                    let name = World::name(host);
                    world
                        .violation(format!("{export} of {name}: {run:?} is not as in {since:?}, as it says"));
                }
            }
        }
    }
}

/// Nothing is left of attempts that are over.
pub fn nothing_left(host: usize) {
    let world = world();
    let Some((_, service)) = hosts::daemon(host) else { return };
    let name = World::name(host);
    let under_way = service.attempts_under_way();
    if under_way > 0 {
        world.violation(format!("{name} still has {under_way} attempts under way"));
    }
    for volume in service.describe().volumes {
        let (layers, snapshots) = (volume.layers, volume.snapshots.len());
        if layers > 2 * snapshots + 2 {
            world.violation(format!("{name} has {layers} layers for {snapshots} snapshots"));
        }
        for snapshot in volume.snapshots.iter().filter(|snapshot| !is_known(snapshot)) {
            world.violation(format!("{name} has a snapshot {snapshot} that no server knows of"));
        }
        if volume.clients > 0 {
            world.violation(format!("{name} still has {} clients", volume.clients));
        }
    }
}

/// Whether a server has a snapshot of this name, and not as one that came to nothing.
fn is_known(snapshot: &str) -> bool {
    let has = |server: &RefCell<Option<Server>>| {
        let rows =
            server.borrow().as_ref().and_then(|server| server.catalogue.list().ok()).unwrap_or_default();
        rows.iter().any(|row| row.name == snapshot && row.state != SnapshotState::Failed)
    };
    world().servers.iter().any(has)
}
