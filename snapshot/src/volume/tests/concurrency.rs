//! Many writers while cuts are taken by the clock.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::thread;

use timesync::time::{Host, Time};

use super::*;

const SECTOR: u64 = 512;
/// Blocks that each belong to one writer.
const OWNED: u64 = 16;
/// Blocks of which each writer has one sector.
const SHARED: u64 = 4;
const WRITERS: u64 = 4;
const CUTS: usize = 24;

/// One write: what it wrote, when, and the cut that its answer waited for.
struct Entry {
    first_sector: u64,
    sectors: u64,
    sequence: u64,
    before: Time<Host>,
    after: Time<Host>,
    held_by: Option<Arc<Cut>>,
}

fn data(sequence: u64, sectors: u64) -> Vec<u8> {
    sequence.to_le_bytes().repeat((sectors * SECTOR / 8) as usize)
}

fn sequence(image: &[u8], sector: u64) -> u64 {
    let bytes = &image[(sector * SECTOR) as usize..][..SECTOR as usize];
    let sequence = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes == data(sequence, 1), "a sector holds parts of two writes");
    sequence
}

/// Writes its own blocks, several at once, and its sector of the shared ones, each time with a new sequence number.
fn write(volume: &Arc<Volume>, writer: u64, stop: &AtomicBool) -> Vec<Entry> {
    let (device, clock, mut log) = (volume.attach().unwrap(), volume.core.clock.clone(), Vec::new());
    for sequence in 1.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let block = sequence * 7 % (OWNED / 2);
        let (first_sector, sectors) = match sequence % 3 {
            0 => ((writer * OWNED + block * 2) * 8, 16),
            1 => ((WRITERS * OWNED + sequence % SHARED) * 8 + writer, 1),
            _ => ((writer * OWNED + block * 2) * 8 + 3, 9),
        };
        let before = clock.now();
        let outcome = device.write(first_sector * SECTOR, &data(sequence, sectors), false);
        assert_eq!(outcome.result, Ok(()));
        let after = clock.now();
        if let Some(cut) = &outcome.hold {
            while !cut.may_release(clock.now()) {
                thread::yield_now();
            }
        }
        if sequence % 64 == 0 {
            done(device.flush());
        }
        log.push(Entry { first_sector, sectors, sequence, before, after, held_by: outcome.hold });
    }
    log
}

/// None if it was armed too late, as can happen on a busy machine.
fn take_timed(volume: &Arc<Volume>, name: &str) -> Option<Arc<Cut>> {
    let clock = &volume.core.clock;
    let attempt = volume.prepare("taking a snapshot").unwrap();
    let timing = Timing::Timed { at: clock.now() + Nanos::from_millis(5), stretch: Nanos::new(500_000) };
    let cut = Arc::new(Cut::new(timing, MAX_STRETCH));
    attempt.arm(&cut, &mut || false).unwrap();
    cut.armed(clock.now()).ok()?;
    while !cut.may_release(clock.now()) {
        thread::yield_now();
    }
    assert!(attempt.wait_drained(&mut || false));
    attempt.seal().unwrap();
    attempt.disarm();
    attempt.commit(name, uuid::Uuid::nil()).unwrap();
    Some(cut)
}

/// A sector's content in the snapshot is that of the last write before the cut: later than no write that came after
/// it, earlier than none that came before.
fn check_snapshot(image: &[u8], cut: &Arc<Cut>, log: &[Entry]) {
    let at = cut.at().unwrap();
    for entry in log {
        let held = entry.held_by.as_ref().is_some_and(|by| Arc::ptr_eq(by, cut));
        for sector in entry.first_sector..entry.first_sector + entry.sectors {
            let found = sequence(image, sector);
            if entry.after < at {
                assert!(found >= entry.sequence, "a write before the cut is missing");
                assert!(!held, "a write before the cut was held");
            }
            if held || entry.before >= at {
                assert!(found < entry.sequence, "a write after the cut is in the snapshot");
            }
        }
    }
}

#[test]
fn snapshots_are_the_replay_of_the_writes_before_them_and_no_write_is_lost() {
    let (_root, volume) = create(WRITERS * OWNED + SHARED);
    let stop = AtomicBool::new(false);
    let (mut cuts, mut images) = (Vec::new(), Vec::new());
    let logs: Vec<_> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (volume, stop) = (&volume, &stop);
                scope.spawn(move || write(volume, writer, stop))
            })
            .collect();
        for i in 0..CUTS {
            let name = format!("s{i}");
            if let Some(cut) = take_timed(&volume, &name) {
                images.push(snapshot(&volume, &name));
                cuts.push(cut);
                // Some go at once, some later, so that layers are merged in all orders while the writers go on.
                if i % 3 == 0 {
                    volume.delete_snapshot(&name).unwrap();
                } else if i % 3 == 2 && volume.describe().snapshots.len() > 3 {
                    volume.delete_snapshot(&volume.describe().snapshots[0]).unwrap();
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert!(!cuts.is_empty(), "all cuts were armed too late");
    let live = content(&*volume.attach().unwrap());
    for log in &logs {
        for (image, cut) in images.iter().zip(&cuts) {
            check_snapshot(image, cut, log);
        }
        for sector in 0..live.len() as u64 / SECTOR {
            let writes =
                |entry: &&Entry| (entry.first_sector..entry.first_sector + entry.sectors).contains(&sector);
            if let Some(last) = log.iter().rfind(writes) {
                assert_eq!(sequence(&live, sector), last.sequence, "an acknowledged write was lost");
            }
        }
    }
    assert!(logs.iter().flatten().any(|entry| entry.held_by.is_some()), "no write met a cut");
}

#[test]
fn writers_of_parts_of_a_block_lose_nothing() {
    const BLOCKS: u64 = 64;
    let (_root, volume) = create(BLOCKS);
    for round in 1..=20 {
        // A new layer: each block is copied up by the first one who writes to it, while others do.
        take(&volume, &format!("s{round}"));
        let start = Barrier::new(WRITERS as usize);
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (volume, start) = (&volume, &start);
                scope.spawn(move || {
                    let device = volume.attach().unwrap();
                    start.wait();
                    for block in 0..BLOCKS {
                        done(device.write((block * 8 + writer) * SECTOR, &data(round, 1), false));
                    }
                });
            }
        });
        let live = content(&*volume.attach().unwrap());
        for sector in (0..BLOCKS * 8).filter(|sector| sector % 8 < WRITERS) {
            assert_eq!(sequence(&live, sector), round, "sector {sector}");
        }
    }
}
