//! What was answered and not flushed when a process was killed: the latest changes of a layer's map, in `NNNNNN.log`.
//!
//! NBD promises nothing of a write that was not flushed. But a client that connects again (the Linux kernel's, QEMU's)
//! does not send again what was answered, and flushes later as if it were there. So a process that dies must not lose it
//! while the system lives, as little as one that serves a plain file would. The data is in the system's page cache by
//! then. What says that it counts, the map, is in the process's memory until the next sync. Hence each change of the map
//! is written to this file too, into the page cache, and never synced.
//!
//! # Why a replay shows what was answered
//!
//! - A change is recorded after its data was written and before the map has it, both under one lock: a block that the map
//!   has was recorded, and records stand in the order in which the map changed.
//! - A sync notes where the file ends and then copies the map: whatever was recorded before the note is in the copy. When
//!   the copy is durable, records before the note may go. What remains is the *end* of all that was ever recorded. A block
//!   that is named in it is named in it by its last change; any other is as the map on disk says.
//! - After a failed sync the system may have dropped the data. Then nothing recorded counts any more: replayed, it would
//!   hide what lies below and was flushed. The file is emptied as soon as a sync has failed; only a process that is
//!   killed in between leaves it, and the next one cannot know, for the system tells of a failed sync once.
//! - Replaying changes the map in memory only, and where it has not changed already. What was replayed is synced, as all
//!   that a killed process left, before anybody is served; only then the file goes.
//!
//! # Why nothing is replayed that the disk does not have
//!
//! The system may bring this file to the disk before the data, or parts of it. So it counts only in the [`Life`] in which
//! it was written: the same boot of the machine, the same file on the same device. Then no write was lost, and after a reset
//! the map on disk counts alone. One thing is not noticed: that somebody stopped the daemon and put an older image of the
//! whole file system, taken while the daemon ran, in its place beneath the same device, without a reset. (A mount's number
//! would tell, but a service that systemd restarts gets other numbers for the same mounts.)
//!
//! A file, little-endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..8 | magic `COEVLOG1` |
//! | 8..40 | the life |
//! | 40..44 | layer id |
//! | 44..48 | CRC32C of the other 44 bytes |
//! | 4096.. | records of 32 bytes; one of zeros says nothing |
//!
//! A record: first block (8 bytes), first block after it (8), state (4: 1 data, 2 zero), zeros (8), CRC32C of the other 28.

use std::io;
use std::ops::Range;

use tracing::{error, warn};

use super::map::{Map, State};
use super::storage::{Directory, Life, StoredFile};
use super::{VolumeError, at_path, lock};
use crate::sync::Mutex;

const MAGIC: &[u8; 8] = b"COEVLOG1";
const HEADER: usize = 48;
/// Where records begin: so that what lies before one can be given back to the file system in whole blocks.
const FIRST: u64 = 4096;
const RECORD: usize = 32;
/// Bytes of records that are read at once, and that are worth giving back.
const PIECE: u64 = 64 << 10;

/// The file of a layer.
pub(super) fn log_name(layer: u32) -> String {
    format!("{layer:06}.log")
}

/// The changes of a layer's map that may not be on disk.
#[derive(Debug)]
pub(super) struct Unflushed {
    layer: u32,
    life: Life,
    file: Box<dyn StoredFile>,
    place: Mutex<Place>,
}

#[derive(Debug)]
struct Place {
    /// The file could not be written, and was emptied: a part of it would be worse than nothing. The next sync begins it
    /// anew.
    void: bool,
    end: u64,
    /// Records before it were given back.
    kept_from: u64,
}

impl Place {
    const BEGIN: Place = Place { void: false, end: FIRST, kept_from: FIRST };
}

impl Unflushed {
    /// Begins to record for a layer of which all is durable.
    pub(super) fn begin(directory: &Directory, layer: u32) -> Result<Self, VolumeError> {
        let name = log_name(layer);
        let file = directory.create(&name, 0)?;
        let begun = file.life().and_then(|life| file.write(0, &header(layer, &life)).map(|()| life));
        let life = begun.map_err(at_path(&directory.path().join(name)))?;
        Ok(Unflushed { layer, life, file, place: Mutex::new(Place::BEGIN) })
    }

    /// Records that `blocks` are in `state` from now on, and lets `set` make them so.
    ///
    /// # Errors
    /// If the file can neither be written nor emptied; nothing has changed then.
    pub(super) fn record(&self, blocks: &Range<u64>, state: State, set: impl FnOnce()) -> io::Result<()> {
        let mut place = lock(&self.place);
        if !place.void {
            match self.file.write(place.end, &encode(blocks, state)) {
                Ok(()) => place.end += RECORD as u64,
                Err(error) => {
                    self.file.set_length(0)?;
                    place.void = true;
                    let layer = self.layer;
                    warn!(layer, %error, "if the daemon were killed now, writes that are not flushed would be lost");
                }
            }
        }
        set();
        Ok(())
    }

    /// A sync begins. Returns what [`Unflushed::synced`] is to be told when all that the map says now is durable.
    pub(super) fn begin_sync(&self) -> u64 {
        let mut place = lock(&self.place);
        // What changes from now on is recorded again; what changed before, this sync makes durable.
        if place.void {
            self.begin_anew(&mut place);
        }
        place.end
    }

    /// Begins the file again, which is empty. If that fails, the next sync tries.
    fn begin_anew(&self, place: &mut Place) {
        if self.file.write(0, &header(self.layer, &self.life)).is_ok() {
            *place = Place::BEGIN;
        }
    }

    /// What was recorded before `mark` is durable.
    pub(super) fn synced(&self, mark: u64) {
        let mut place = lock(&self.place);
        let gone = place.kept_from..mark / FIRST * FIRST;
        // A file system that cannot give back a part keeps it until the layer is sealed.
        if gone.end >= gone.start + PIECE && self.file.zero(&gone, false).is_ok() {
            place.kept_from = gone.end;
        }
    }

    /// A sync of the layer failed. None will be tried again, so nothing is recorded any more.
    pub(super) fn give_up(&self) {
        let mut place = lock(&self.place);
        place.void = true;
        give_up(&*self.file, self.layer);
    }

    /// All of the layer is durable, and nobody changes it just now. It may be changed again: whatever sealed it may fail
    /// in the end, and leave it to its clients.
    pub(super) fn empty(&self) -> io::Result<()> {
        let mut place = lock(&self.place);
        self.file.set_length(0)?;
        place.void = true;
        self.begin_anew(&mut place);
        Ok(())
    }
}

/// A sync of a layer failed that a killed process left: what it recorded does not count any more.
pub(super) fn give_up_recorded(directory: &Directory, layer: u32) {
    if directory.has(&log_name(layer)) {
        match directory.open(&log_name(layer)) {
            Ok(file) => give_up(&*file, layer),
            Err(error) => error!(layer, %error, "{STAYS}"),
        }
    }
}

const STAYS: &str = "a sync failed, and what was recorded of unflushed writes could not be emptied: before the daemon starts \
                     again, remove the layer's .log file";

fn give_up(file: &dyn StoredFile, layer: u32) {
    // Either will do.
    if let Err(error) = file.set_length(0).or_else(|_| file.write(0, &[0; HEADER])) {
        error!(layer, %error, "{STAYS}");
    }
}

/// Changes `map` as a process recorded that was killed in this life of the system.
pub(super) fn replay(directory: &Directory, layer: u32, map: &Map) -> Result<(), VolumeError> {
    let name = log_name(layer);
    let file = directory.open(&name)?;
    let replayed = || {
        let length = file.length()?;
        let mut begin = [0; HEADER];
        if length < FIRST {
            return Ok(());
        }
        file.read(0, &mut begin)?;
        if begin != header(layer, &file.life()?) {
            return Ok(());
        }
        let mut records = vec![0; PIECE as usize];
        let mut at = FIRST;
        while let Some(written) = file.next_data(&(at..length)) {
            at = written.start / FIRST * FIRST;
            let piece = &mut records[..PIECE.min(length - at) as usize];
            file.read(at, piece)?;
            for (blocks, state) in piece.chunks_exact(RECORD).filter_map(decode) {
                map.set(blocks.start..blocks.end.min(map.blocks()), state);
            }
            at += piece.len() as u64;
        }
        Ok(())
    };
    replayed().map_err(at_path(&directory.path().join(name)))
}

fn header(layer: u32, life: &Life) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..40].copy_from_slice(&life.0);
    header[40..44].copy_from_slice(&layer.to_le_bytes());
    let sum = crc32c::crc32c(&header[..44]);
    header[44..].copy_from_slice(&sum.to_le_bytes());
    header
}

fn encode(blocks: &Range<u64>, state: State) -> [u8; RECORD] {
    let state: u32 = match state {
        State::Absent | State::Unknown => 0,
        State::Data => 1,
        State::Zero => 2,
    };
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&blocks.start.to_le_bytes());
    record[8..16].copy_from_slice(&blocks.end.to_le_bytes());
    record[16..20].copy_from_slice(&state.to_le_bytes());
    let sum = crc32c::crc32c(&record[..28]);
    record[28..].copy_from_slice(&sum.to_le_bytes());
    record
}

/// None of what was never written, or is no record.
fn decode(record: &[u8]) -> Option<(Range<u64>, State)> {
    let (number, sum) = record.split_at_checked(28)?;
    if crc32c::crc32c(number).to_le_bytes() != sum {
        return None;
    }
    let word =
        |at: usize| number.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
    let state = match number.get(16)? {
        1 => State::Data,
        2 => State::Zero,
        _ => return None,
    };
    Some((word(0)?..word(8)?, state))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::super::memory::Memory;
    use super::*;

    fn root() -> Directory {
        Directory::new(Arc::new(Memory::default()), Path::new("/"))
    }

    fn states(directory: &Directory) -> Vec<State> {
        let map = Map::new(40_000);
        replay(directory, 3, &map).unwrap();
        (0..40_000).map(|block| map.get(block)).collect()
    }

    #[test]
    fn the_last_change_of_a_block_counts() {
        let root = root();
        let log = Unflushed::begin(&root, 3).unwrap();
        for (blocks, state) in [(5..9, State::Data), (7..20, State::Zero), (8..9, State::Data)] {
            log.record(&blocks, state, || {}).unwrap();
        }
        let states = states(&root);
        assert_eq!(
            states[4..10],
            [State::Absent, State::Data, State::Data, State::Zero, State::Data, State::Zero]
        );
        assert_eq!(states[20], State::Absent);
    }

    #[test]
    fn what_is_durable_is_given_back_and_what_came_later_is_kept() {
        let root = root();
        let log = Unflushed::begin(&root, 3).unwrap();
        let write = |block: u64| log.record(&(block..block + 1), State::Data, || {}).unwrap();
        (0..5_000).for_each(write);
        let mark = log.begin_sync();
        (5_000..5_010).for_each(write);
        log.synced(mark);
        let states = states(&root);
        assert!(states[5_000..5_010].iter().all(|state| *state == State::Data));
        assert_eq!(states[0], State::Absent, "its space was given back");
        assert_eq!(states[5_010], State::Absent);
    }

    #[test]
    fn one_that_was_emptied_goes_on() {
        let root = root();
        let log = Unflushed::begin(&root, 3).unwrap();
        log.record(&(1..2), State::Data, || {}).unwrap();
        log.empty().unwrap();
        log.record(&(2..3), State::Zero, || {}).unwrap();
        assert_eq!(states(&root)[..4], [State::Absent, State::Absent, State::Zero, State::Absent]);
    }

    #[test]
    fn one_that_is_cut_short_or_of_another_layer_or_not_even_begun_says_nothing() {
        let root = root();
        let log = Unflushed::begin(&root, 3).unwrap();
        log.record(&(1..2), State::Data, || {}).unwrap();
        log.file.write(FIRST + 8, &[9]).unwrap();
        assert!(states(&root).iter().all(|state| *state == State::Absent), "its sum is wrong");
        log.file.write(0, &header(4, &log.life)).unwrap();
        log.record(&(1..2), State::Data, || {}).unwrap();
        assert!(states(&root).iter().all(|state| *state == State::Absent), "it is another layer's");
        log.file.set_length(17).unwrap();
        assert!(states(&root).iter().all(|state| *state == State::Absent));
    }

    #[test]
    fn one_that_could_not_be_written_is_void_until_the_next_sync() {
        let (memory, mut was_set) = (Memory::default(), 0);
        let root = Directory::new(Arc::new(memory.clone()), Path::new("/"));
        let log = Unflushed::begin(&root, 3).unwrap();
        let mut write = |block: u64| log.record(&(block..block + 1), State::Data, || was_set += 1).unwrap();
        write(1);
        memory.fail_after(0);
        write(2);
        write(3);
        assert!(states(&root).iter().all(|state| *state == State::Absent), "not a part of it");
        let mark = log.begin_sync();
        write(4);
        log.synced(mark);
        assert_eq!(was_set, 4);
        let states = states(&root);
        assert_eq!((states[3], states[4]), (State::Absent, State::Data));
    }
}
