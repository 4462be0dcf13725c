//! Crashes at every point of a workload, in all the states that the disk may be in then.
//!
//! A workload runs on a file system in memory that records its operations. Then, for each operation, the volume is
//! opened as a crash just before it may have left it, and must keep what was promised by then and nothing else:
//!
//! - it opens, once its creation was answered;
//! - each byte is as the last write left it that was acknowledged as durable, or as a later write had it;
//! - if only the process was killed, as the last write left it that was acknowledged, or as a later one had it;
//! - each snapshot whose name was answered for is there and bit-identical, and one whose deletion was answered for, or
//!   that was never ordered to be named, is not.

mod workloads;

use timesync::random::Random;

use super::super::memory::{Fate, Memory, State};
use super::model::Request;
use super::*;
use crate::volume::storage::Directory;

const BLOCKS: u64 = model::BLOCKS;
const SIZE: usize = (BLOCKS * BLOCK) as usize;
const NEVER: usize = usize::MAX;

/// A change of the live volume. All positions are numbers of operations done by then.
struct Written {
    /// What it changed; a restore changes all.
    range: std::ops::Range<usize>,
    ordered: usize,
    /// It was answered with an error: it is there, or in part, or not, and no flush promises it.
    failed: bool,
    /// From here on it is promised to survive.
    durable: usize,
    /// From here on it is promised to survive the process.
    answered: usize,
}

/// What happened to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The system was reset.
    Crash,
    /// The process was killed; the system goes on, and with it what it holds in memory of the files.
    Kill,
}

/// A snapshot, and the positions between which it may or must be there.
struct Named {
    name: String,
    image: Arc<Vec<u8>>,
    ordered: usize,
    answered: usize,
    delete_ordered: usize,
    delete_answered: usize,
}

/// A clone, and the positions between which it may or must be there.
struct Cloned {
    name: String,
    image: Arc<Vec<u8>>,
    /// After its one durable write, which was answered at this position.
    changed: Arc<Vec<u8>>,
    written: usize,
    ordered: usize,
    answered: usize,
    delete_ordered: usize,
    delete_answered: usize,
}

/// A size that the volume was given.
struct Sized {
    size: usize,
    ordered: usize,
    answered: usize,
}

fn write(block: u64, blocks: u64, fill: u8, fua: bool) -> Request {
    Request::Write { offset: (block * BLOCK) as usize, length: (blocks * BLOCK) as usize, fill, fua }
}

fn part(offset: usize, length: usize, fill: u8, fua: bool) -> Request {
    Request::Write { offset, length, fill, fua }
}

/// What a volume reads as, and zeros up to the largest size.
fn padded(mut content: Vec<u8>) -> Vec<u8> {
    content.resize(SIZE, 0);
    content
}

/// Does a workload and remembers what was promised when.
struct Recorder {
    memory: Memory,
    clock: HostClock,
    volume: Option<Arc<Volume>>,
    created: usize,
    /// The live volume after the first n changes.
    images: Vec<Arc<Vec<u8>>>,
    written: Vec<Written>,
    named: Vec<Named>,
    clones: Vec<Cloned>,
    sizes: Vec<Sized>,
    /// What the first kill broke that broke something.
    broken: Option<String>,
}

fn root(memory: &Memory) -> Directory {
    Directory::new(Arc::new(memory.clone()), std::path::Path::new("/"))
}

impl Recorder {
    fn new() -> Self {
        let (memory, clock) = (Memory::default(), HostClock::real());
        let volume = Volume::create_in(&root(&memory), "v", SIZE as u64, clock.clone()).unwrap();
        Recorder {
            created: memory.position(),
            memory,
            clock,
            volume: Some(volume),
            images: vec![Arc::new(vec![0; SIZE])],
            written: Vec::new(),
            named: Vec::new(),
            clones: Vec::new(),
            sizes: vec![Sized { size: SIZE, ordered: 0, answered: 0 }],
            broken: None,
        }
    }

    fn volume(&self) -> &Arc<Volume> {
        self.volume.as_ref().unwrap()
    }

    fn live(&self) -> Arc<Vec<u8>> {
        Arc::clone(self.images.last().unwrap())
    }

    fn change(&mut self, request: &Request) -> Option<Arc<Cut>> {
        let ordered = self.memory.position();
        let outcome = request.send(&*self.volume().attach().unwrap());
        let failed = outcome.result.is_err();
        assert!(!failed || self.memory.has_failed());
        let answered = if failed { NEVER } else { self.memory.position() };
        let durable = if request.is_durable() { answered } else { NEVER };
        let mut image = self.live().to_vec();
        request.replay(&mut image);
        if failed {
            image = padded(content(&*self.volume().attach().unwrap()));
        }
        self.images.push(Arc::new(image));
        self.written.push(Written { range: request.range(), ordered, failed, durable, answered });
        outcome.hold
    }

    fn flush(&mut self) {
        if self.volume().attach().unwrap().flush().result.is_ok() {
            self.all_durable();
        } else {
            assert!(self.memory.has_failed());
        }
    }

    fn all_durable(&mut self) {
        let now = self.memory.position();
        let answered = self.written.iter_mut().filter(|written| !written.failed);
        answered.for_each(|written| written.durable = written.durable.min(now));
    }

    /// Whether something went well. It may not have, once the disk has failed.
    fn went<T>(&self, result: Result<T, VolumeError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if self.memory.has_failed() => {
                println!("operation {}: {error}", self.memory.position());
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn cut(&mut self, before: &[Request], after: &[Request], commit: bool) {
        let Some(attempt) = self.went(self.volume().prepare("taking a snapshot")) else { return };
        let cut = arm(self.volume(), &attempt);
        let size = self.volume().core.size() as usize;
        let fits = |request: &&Request| request.range().end <= size;
        for request in before.iter().filter(fits) {
            assert!(self.change(request).is_none());
        }
        let image = self.live();
        strike(self.volume(), &attempt, &cut);
        for request in after.iter().filter(fits) {
            assert!(self.change(request).is_some());
        }
        assert!(attempt.wait_drained(&mut || false));
        let sealed = self.went(attempt.seal());
        cut.release(Cause::Barrier, self.clock.now());
        attempt.disarm();
        if !commit || sealed.is_none() {
            return attempt.discard();
        }
        let (name, ordered) = (format!("s{}", self.named.len()), self.memory.position());
        let committed = self.went(attempt.commit(&name, uuid::Uuid::nil()));
        let answered = committed.map_or(NEVER, |()| self.memory.position());
        let (delete_ordered, delete_answered) = (NEVER, NEVER);
        self.named.push(Named { name, image, ordered, answered, delete_ordered, delete_answered });
    }

    /// The snapshots that are surely there.
    fn standing(&self) -> Vec<&Named> {
        let stands = |named: &&Named| named.answered != NEVER && named.delete_ordered == NEVER;
        self.named.iter().filter(stands).collect()
    }

    fn delete(&mut self, which: usize) {
        let mut left = self.standing();
        if left.is_empty() {
            return;
        }
        let name = left.swap_remove(which % left.len()).name.clone();
        let ordered = self.memory.position();
        let done = self.went(self.volume().delete_snapshot(&name));
        let answered = done.map_or(NEVER, |()| self.memory.position());
        let deleted = self.named.iter_mut().find(|named| named.name == name).unwrap();
        (deleted.delete_ordered, deleted.delete_answered) = (ordered, answered);
    }

    fn restore(&mut self, which: usize, keep: bool) {
        let left = self.standing();
        if left.is_empty() {
            return;
        }
        let Named { name, image, .. } = left[which % left.len()];
        let (name, image, replaced) = (name.clone(), Arc::clone(image), self.live());
        let kept = format!("s{}", self.named.len());
        let ordered = self.memory.position();
        let prepared = self.volume().prepare_restore(&name, "restoring", false);
        let switch = |prepared: VolumeRestore| prepared.switch(keep.then_some(&kept), uuid::Uuid::nil());
        let size = snapshot(self.volume(), &name).len();
        let done = self.went(prepared.and_then(switch));
        let failed = done.is_none();
        let answered = if failed { NEVER } else { self.memory.position() };
        self.sizes.push(Sized { size, ordered, answered });
        self.images.push(image);
        self.written.push(Written { range: 0..SIZE, ordered, failed, durable: answered, answered });
        if failed {
            // What may be there for a moment, and what is there.
            self.images.push(Arc::clone(&replaced));
            let (durable, answered) = (NEVER, NEVER);
            self.written.push(Written { range: 0..SIZE, ordered, failed, durable, answered });
        }
        if keep {
            let (delete_ordered, delete_answered) = (NEVER, NEVER);
            self.named.push(Named {
                name: kept,
                image: replaced,
                ordered,
                answered,
                delete_ordered,
                delete_answered,
            });
        }
    }

    fn resize(&mut self, blocks: u64) {
        let size = (blocks * BLOCK) as usize;
        let replaced = self.live();
        let mut image = replaced.to_vec();
        image[size..].fill(0);
        let ordered = self.memory.position();
        let done = self.went(self.volume().resize(size as u64, true));
        let failed = done.is_none();
        let answered = if failed { NEVER } else { self.memory.position() };
        self.sizes.push(Sized { size, ordered, answered });
        self.images.push(Arc::new(image));
        self.written.push(Written { range: size..SIZE, ordered, failed, durable: answered, answered });
        if failed {
            self.images.push(replaced);
            let (durable, answered) = (NEVER, NEVER);
            self.written.push(Written { range: 0..SIZE, ordered, failed, durable, answered });
        }
    }

    fn clone_one(&mut self, which: usize) {
        let left = self.standing();
        if left.is_empty() {
            return;
        }
        let Named { name: source, image, .. } = left[which % left.len()];
        let (name, image) = (format!("c{}", self.clones.len()), Arc::clone(image));
        let ordered = self.memory.position();
        let cloned = self.went(self.volume().clone_snapshot(source, &name));
        let answered = if cloned.is_some() { self.memory.position() } else { NEVER };
        let change = part(100, 50, 99, true);
        let mut changed = image.to_vec();
        change.replay(&mut changed);
        let done = cloned.is_some_and(|clone| change.send(&*clone.attach().unwrap()).result.is_ok());
        let written = if done { self.memory.position() } else { NEVER };
        let (delete_ordered, delete_answered, changed) = (NEVER, NEVER, Arc::new(changed));
        self.clones.push(Cloned {
            name,
            image,
            changed,
            written,
            ordered,
            answered,
            delete_ordered,
            delete_answered,
        });
    }

    fn delete_clone(&mut self, which: usize) {
        let stands = |clone: &&mut Cloned| clone.answered != NEVER && clone.delete_ordered == NEVER;
        let mut left: Vec<_> = self.clones.iter_mut().filter(stands).collect();
        if left.is_empty() {
            return;
        }
        let index = which % left.len();
        let clone = left.swap_remove(index);
        clone.delete_ordered = self.memory.position();
        let opened = Volume::open_in(&root(&self.memory), &clone.name, self.clock.clone());
        match opened.and_then(|volume| volume.delete(false)) {
            Ok(()) => clone.delete_answered = self.memory.position(),
            Err(error) => assert!(self.memory.has_failed(), "{error}"),
        }
        self.volume().wake_merger();
    }

    fn reopen(&mut self) {
        self.volume = None;
        if !self.memory.has_failed() {
            // Closing in good order is a flush.
            self.all_durable();
        }
        self.open();
        self.reread(self.memory.position(), End::Crash).unwrap();
    }

    fn kill(&mut self) {
        self.memory = self.memory.after_kill();
        let position = self.memory.position();
        self.open();
        if let Err(why) = self.reread(position, self.end_of_a_kill()) {
            self.broken.get_or_insert(why);
        }
    }

    /// Where the disk has failed, nothing may have been recorded since: then a kill may cost what a crash does.
    fn end_of_a_kill(&self) -> End {
        if self.memory.has_failed() { End::Crash } else { End::Kill }
    }

    /// Opens the volume; where the disk fails at that, anew.
    fn open(&mut self) {
        let open = || Volume::open_in(&root(&self.memory), "v", self.clock.clone());
        self.volume = Some(self.went(open()).unwrap_or_else(|| open().unwrap()));
    }

    /// What clients find in a volume that was opened anew, and may rely on from the next flush on.
    fn reread(&mut self, position: usize, end: End) -> Result<(), String> {
        let found = padded(content(&*self.volume().attach().unwrap()));
        self.check_live(&found, position, end)?;
        self.check_snapshots(self.volume(), position)?;
        self.images.push(Arc::new(found));
        let (ordered, failed, durable, answered) = (position, false, NEVER, position);
        self.written.push(Written { range: 0..SIZE, ordered, failed, durable, answered });
        Ok(())
    }

    fn settle(&self) {
        let mut tries = 0;
        while self.volume().core.next_tidying().is_some() {
            // A layer whose sync failed, maybe just now, is not merged until the volume is opened anew.
            tries += usize::from(self.memory.has_failed());
            if tries > 100 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    }

    fn apply(&mut self, op: &model::Op) {
        match op {
            model::Op::Change(request) if request.range().end > self.volume().core.size() as usize => {}
            model::Op::Change(request) => drop(self.change(request)),
            model::Op::Flush => self.flush(),
            model::Op::Cut { before, after, commit } => self.cut(before, after, *commit),
            model::Op::Delete(which) => self.delete(*which),
            model::Op::Restore { which, keep } => self.restore(*which, *keep),
            model::Op::Resize(blocks) => self.resize(*blocks),
            model::Op::Clone(which) => self.clone_one(*which),
            model::Op::DeleteClone(which) => self.delete_clone(*which),
            model::Op::Crash => self.settle(),
            model::Op::Reopen => self.reopen(),
            model::Op::Kill => self.kill(),
        }
    }

    /// Whether the live volume may read as `found` after it ended so at `position`.
    fn check_live(&self, found: &[u8], position: usize, end: End) -> Result<(), String> {
        let promised_from = |written: &Written| match end {
            End::Crash => written.durable,
            End::Kill => written.answered,
        };
        let ordered = self.written.iter().take_while(|written| written.ordered < position).count();
        let may_be = &self.images[..=ordered];
        let sectors = found.chunks(512).zip(may_be[ordered].chunks(512)).enumerate();
        for (sector, _) in sectors.filter(|(_, (found, newest))| found != newest) {
            for at in sector * 512..(sector + 1) * 512 {
                let promised = self.written[..ordered]
                    .iter()
                    .rposition(|written| promised_from(written) <= position && written.range.contains(&at));
                let first = promised.map_or(0, |index| index + 1);
                if !may_be[first..].iter().any(|image| image[at] == found[at]) {
                    return Err(format!(
                        "byte {at} is {:#x}: neither change {first} of {ordered} nor a later one wrote that",
                        found[at]
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether the snapshots are as they may be after a crash at `position`.
    fn check_snapshots(&self, volume: &Arc<Volume>, position: usize) -> Result<(), String> {
        let mut found = volume.describe().snapshots;
        for Named { name, image, ordered, answered, delete_ordered, delete_answered } in &self.named {
            let listed = found.iter().position(|found| found == name);
            let must = *answered <= position && position <= *delete_ordered;
            let may = *ordered < position && position < *delete_answered;
            match listed {
                Some(_) if !may && !must => return Err(format!("snapshot {name} has no business here")),
                None if must => return Err(format!("snapshot {name} is missing")),
                Some(index) => {
                    if padded(snapshot(volume, name)) != **image {
                        return Err(format!("snapshot {name} changed"));
                    }
                    found.swap_remove(index);
                }
                None => {}
            }
        }
        if found.is_empty() { Ok(()) } else { Err(format!("snapshots that nobody took: {found:?}")) }
    }

    /// Whether the volume's size may be this after a crash at `position`.
    fn check_size(&self, size: u64, position: usize) -> Result<(), String> {
        let since = self.sizes.iter().rposition(|sized| sized.answered <= position).unwrap_or(0);
        let mut may_be = self.sizes[since..].iter().filter(|sized| sized.ordered <= position);
        if may_be.any(|sized| sized.size as u64 == size) {
            Ok(())
        } else {
            Err(format!("it has {size} bytes, a size that it may not have"))
        }
    }

    /// Whether the clones are as they may be after a crash at `position`.
    fn check_clones(&self, memory: &Memory, position: usize) -> Result<(), String> {
        for clone in &self.clones {
            let Cloned { name, image, changed, written, ordered, answered, .. } = clone;
            let must = *answered <= position && position <= clone.delete_ordered;
            let may = *ordered < position && position < clone.delete_answered;
            let volume = match Volume::open_in(&root(memory), name, self.clock.clone()) {
                Err(VolumeError::Missing { .. }) if must => return Err(format!("clone {name} is missing")),
                Err(VolumeError::Missing { .. }) => continue,
                Err(error) => return Err(error.to_string()),
                Ok(_) if !must && !may => return Err(format!("clone {name} has no business here")),
                Ok(volume) => volume,
            };
            let found = padded(content(&*volume.attach().unwrap()));
            let first = if *written <= position { changed } else { image };
            if found.iter().enumerate().any(|(at, byte)| *byte != first[at] && *byte != changed[at]) {
                return Err(format!("clone {name} changed"));
            }
        }
        Ok(())
    }

    /// Opens what a crash at `position` left. With `thorough`, it is also used, and crashes again while it recovers.
    fn check(&self, crashed: State, position: usize, end: End, thorough: bool) -> Result<(), String> {
        let memory = Memory::after(crashed);
        Volume::remove_left_overs(&root(&memory)).map_err(|error| error.to_string())?;
        let volume = match Volume::open_in(&root(&memory), "v", self.clock.clone()) {
            Ok(volume) => volume,
            Err(VolumeError::Missing { .. }) if position < self.created => {
                // What is left of it is in nobody's way.
                let again = Volume::create_in(&root(&memory), "v", SIZE as u64, self.clock.clone());
                return again.map(drop).map_err(|error| error.to_string());
            }
            Err(error) => return Err(error.to_string()),
        };
        let live = || padded(content(&*volume.attach().unwrap()));
        self.check_size(volume.core.size(), position)?;
        self.check_live(&live(), position, end)?;
        self.check_snapshots(&volume, position)?;
        self.check_clones(&memory, position)?;
        if thorough {
            settle(&volume);
            self.check_live(&live(), position, end)?;
            self.check_snapshots(&volume, position)?;
            self.check_clones(&memory, position)?;
            let (began, log) = memory.recording();
            let mut random = Random(position as u64);
            for _ in 0..3 {
                let mut state = began.clone();
                let done = random.below(log.len() + 1);
                log[..done].iter().for_each(|op| state.apply(op));
                let mut fate =
                    Fate::Drawn { random: Random(random.below(NEVER) as u64), kept: 4, torn: true };
                self.check(state.crash(&mut fate), position, End::Crash, false)
                    .map_err(|why| format!("{why}, after a second crash {done} operations later"))?;
            }
            take(&volume, "after");
            self.check_live(&live(), position, end)?;
        }
        Ok(())
    }

    /// Every `stride`th point of the workload, in the states that a crash may leave there: all of them where few
    /// operations are unsynced, else all lost, all kept, and `draws` at random.
    fn check_all(mut self, stride: usize, draws: u64) -> Result<(), String> {
        if let Some(why) = self.broken {
            return Err(format!("after a kill: {why}"));
        }
        self.settle();
        let (mut state, log) = self.memory.recording();
        // Merging goes on until here; closing syncs what the last crash should still be able to lose.
        let last = log.len();
        self.volume = None;
        for position in 0..=last {
            if position > 0 {
                state.apply(&log[position - 1]);
            }
            if position % stride != 0 && position != last {
                continue;
            }
            self.check(state.clone(), position, self.end_of_a_kill(), position % 11 == 0).map_err(|why| {
                let next = log.get(position).map(|op| op.to_string());
                format!("killed before operation {position} ({next:?}): {why}")
            })?;
            let seed = |draw: u64| Random(position as u64 * 1_000 + draw);
            let unsynced = state.unsynced();
            let chosen = if unsynced <= 4 { (0..1 << unsynced).collect() } else { vec![0, u64::MAX] };
            let chosen = chosen.into_iter().map(|bits| Fate::Chosen { bits, next: 0 });
            let drawn = (0..if unsynced == 0 { 0 } else { draws }).map(|draw| {
                let kept = [4, 1, 7][draw as usize % 3];
                Fate::Drawn { random: seed(draw), kept, torn: draw % 2 == 0 }
            });
            for (index, mut fate) in chosen.chain(drawn).enumerate() {
                let thorough = (position / stride + index).is_multiple_of(11);
                self.check(state.crash(&mut fate), position, End::Crash, thorough).map_err(|why| {
                    let next = log.get(position).map(|op| op.to_string());
                    format!("crash before operation {position} ({next:?}), state {index}: {why}")
                })?;
            }
        }
        Ok(())
    }
}
