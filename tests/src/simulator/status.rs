//! Answers about ranges: holes, and what has changed since a snapshot. What they must not hide, and of which writes they
//! tell: an answer that tells of a held write waits with it (R3).

use std::ops::{ControlFlow, Range};

use snapshot::device::{Device, Outcome};

use super::history::{BLOCK, CLIENTS, Fate, History, SECTOR, SHARED, Write, unit};
use super::hosts;
use super::world::{World, world};

/// Runs of sectors, each with what was asked about it.
pub type Runs = Vec<(Range<u64>, bool)>;

/// The holes of a range of sectors, or what has changed in it since a snapshot. None if there is no such snapshot.
pub fn runs(device: &dyn Device, sectors: &Range<u64>, since: Option<&str>) -> Option<(Outcome, Runs)> {
    let mut runs = Vec::new();
    let mut visit = |run: Range<u64>, flag| {
        runs.push((run.start / SECTOR..run.end / SECTOR, flag));
        ControlFlow::Continue(())
    };
    let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
    let outcome = match since {
        None => device.holes(bytes, &mut visit),
        Some(snapshot) => device.changes_since(snapshot)?.within(bytes, &mut visit),
    };
    Some((outcome, runs))
}

/// Asks, and gives the writes of which the answer tells.
pub fn ask(
    host: usize,
    device: &dyn Device,
    sectors: Range<u64>,
    since: Option<&str>,
) -> (Outcome, Vec<usize>) {
    let world = world();
    let seen = since.map(|snapshot| {
        let images = &world.hosts[host].borrow().images;
        let image = images.iter().find(|(name, _)| name == snapshot);
        image.map_or(Vec::new(), |(_, image)| image.clone())
    });
    // What was acknowledged before the device looked.
    let before: Vec<Option<usize>> = {
        let history = world.history.borrow();
        sectors.clone().map(|sector| history.last_done(host, sector).map(|(place, _)| place)).collect()
    };
    let Some((outcome, runs)) = runs(device, &sectors, since) else {
        return (Outcome::now(Ok(())), Vec::new());
    };
    // While the volume may be being put back, nobody knows what still stands.
    if outcome.result.is_err() || hosts::is_switching(host) {
        return (outcome, Vec::new());
    }
    let last = |sector: u64| before[(sector - sectors.start) as usize];
    let history = world.history.borrow();
    let mut told = Vec::new();
    for (run, flag) in runs {
        match &seen {
            None if flag => told.extend(zeros_in(&history, host, &run, last)),
            None => {}
            Some(image) if image.is_empty() => {}
            Some(image) if flag => told.extend(changes_in(&history, host, &run, image)),
            Some(image) => must_be_as_before(&history, host, &run, image, last),
        }
    }
    drop(history);
    (outcome, told)
}

/// The second block of a unit that is a hole was made zero after what was there before, if that was data.
fn zeros_in(
    history: &History,
    host: usize,
    run: &Range<u64>,
    last: impl Fn(u64) -> Option<usize>,
) -> Vec<usize> {
    let zeros = |client: u64| {
        let unit = unit(client as usize);
        let block = unit.start + BLOCK..unit.end;
        if run.start > block.start || run.end < block.end {
            return None;
        }
        let base = &history.writes[last(block.start)?];
        let made = |write: &Write| {
            write.zeros
                && write.number > base.number
                && write.sectors.start <= block.start
                && write.sectors.end >= block.end
        };
        let first = history.of_sector(host, block.start).find(|(_, write)| made(write));
        first.filter(|_| !base.zeros).map(|(place, _)| place)
    };
    (0..CLIENTS).filter_map(zeros).collect()
}

/// A block of a unit that has changed since a snapshot shows that the first write to it since then was done. Where a
/// crash or a restore has taken writes away, nobody can tell.
fn changes_in(history: &History, host: usize, run: &Range<u64>, image: &[u8]) -> Vec<usize> {
    if world().hosts[host].borrow().died_at != 0 {
        return Vec::new();
    }
    let versions = history.versions(host, 0, image, true);
    let change = |block: u64| {
        let mut first: Option<usize> = None;
        for sector in block..block + BLOCK {
            let shown = versions[sector as usize].filter(|shown| shown.least == shown.most)?;
            if history.of_sector(host, sector).any(|(_, write)| write.fate == Fate::Lost) {
                return None;
            }
            let next = history.next_of_sector(host, sector, shown.least);
            first = first.into_iter().chain(next.map(|(place, _)| place)).min();
        }
        first
    };
    let units = SHARED.max(run.start.next_multiple_of(BLOCK))..run.end;
    units.step_by(BLOCK as usize).filter(|block| block + BLOCK <= run.end).filter_map(change).collect()
}

/// Blocks that are said to be as in a snapshot have no write that was acknowledged since.
fn must_be_as_before(
    history: &History,
    host: usize,
    run: &Range<u64>,
    image: &[u8],
    last: impl Fn(u64) -> Option<usize>,
) {
    let versions = history.versions(host, 0, image, true);
    for sector in run.clone() {
        let (Some(shown), Some(place)) = (versions[sector as usize], last(sector)) else { continue };
        let write = &history.writes[place];
        if write.fate == Fate::Done && shown.includes(write.number) == Some(false) {
            world().violation(format!(
                "{} says that sector {sector} has not changed since a snapshot, which has no write {}:{}",
                World::name(host),
                write.client,
                write.number
            ));
        }
    }
}
