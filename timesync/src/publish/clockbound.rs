//! The shared-memory segment of ClockBound, layout version 2 (aws/clock-bound, `docs/PROTOCOL.md`): what its client
//! libraries read at `/var/run/clockbound/shm0`.
//!
//! ```text
//!  0  u32 ×2  magic 0x414D5A4E, 0x43420200       16  i64 ×2  as_of       seconds and nanoseconds, CLOCK_MONOTONIC_COARSE
//!  8  u32     size of the segment, 80            32  i64 ×2  void_after  likewise
//! 12  u16     layout version, 2                  48  i64     bound, ns, as of as_of
//! 14  u16     generation: odd while it changes   56  u64     disruption marker (of the hypervisor; unused)
//!                                                64  u32     growth of the bound, ns per second
//!                                                68  i32     status
//!                                                72  u8      disruption support, then 7 of padding
//! ```
//! All in the machine's own order of bytes. A reader adds growth · (its `CLOCK_MONOTONIC_COARSE` − `as_of`) to the bound.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{MAX_AGE, Published, Withdrawn};
use crate::time::Nanos;

const SIZE: usize = 80;
const GENERATION_AT: u64 = 14;
/// 31 years: with the status, for those who forget to look at the status.
const NO_BOUND: i64 = 1_000_000_000_000_000_000;

/// The status of the clock, as ClockBound numbers it.
#[derive(Clone, Copy)]
enum Status {
    Unknown = 0,
    Synchronized = 1,
    Disrupted = 3,
}

/// The segment, with `generation` in its place. `coarse`: how far `CLOCK_MONOTONIC_COARSE` may be behind
/// `CLOCK_MONOTONIC`. Readers measure a publication's age by that clock, so it is said to be older by as much.
pub fn encode(published: Result<Published, Withdrawn>, coarse: Nanos, generation: u16) -> [u8; SIZE] {
    let (as_of, void_after, bound, growth, status) = match published {
        Ok(published) => {
            let as_of = published.monotonic - coarse;
            (as_of, as_of + MAX_AGE, published.bound().get(), published.growth_ppb, Status::Synchronized)
        }
        Err(why) => {
            let status = match why {
                Withdrawn::Unknown => Status::Unknown,
                Withdrawn::Disrupted => Status::Disrupted,
            };
            (Nanos::ZERO, Nanos::ZERO, NO_BOUND, 0, status)
        }
    };
    let timespec =
        |nanos: Nanos| [nanos.get().div_euclid(1_000_000_000), nanos.get().rem_euclid(1_000_000_000)];
    let mut octets = Vec::with_capacity(SIZE);
    octets.extend([0x414D_5A4E_u32, 0x4342_0200, 80].map(u32::to_ne_bytes).concat());
    octets.extend([2, generation].map(u16::to_ne_bytes).concat());
    octets.extend(timespec(as_of).map(i64::to_ne_bytes).concat());
    octets.extend(timespec(void_after).map(i64::to_ne_bytes).concat());
    octets.extend(bound.to_ne_bytes());
    octets.extend(0_u64.to_ne_bytes());
    octets.extend(growth.to_ne_bytes());
    octets.extend((status as i32).to_ne_bytes());
    // No disruption support: a client that asks the hypervisor itself would compare its marker with ours.
    let mut segment = [0; SIZE];
    segment[..octets.len()].copy_from_slice(&octets);
    segment
}

/// The segment's file.
///
/// Readers map it; it is written with pwrite(2), which changes the very pages that they have mapped. Three calls make one
/// publication: the odd generation, everything, the even generation. A reader that finds the same even generation before
/// and after what it read has read one publication whole:
///
/// - Every call takes and releases the file's lock in the kernel, so the stores of one call are visible before those of the
///   next (Linux memory model: an unlock and a later lock of the same lock on one CPU order the stores around them).
///   Within a call no order is needed.
/// - The generation's two octets may become visible one after the other. On the way to odd only the lower one changes. On
///   the way back to even the rest is complete, so whatever a reader takes for the generation, it reads whole data.
#[derive(Debug)]
pub struct Segment {
    file: File,
    coarse: Nanos,
    generation: u16,
}

impl Segment {
    /// Opens the segment, or creates it with its directory. What is there is continued, so that readers that have it mapped
    /// go on; nothing is published in it yet.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::ResourceBusy`] where another process publishes there.
    pub fn open(path: &Path, coarse: Nanos) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::ErrorKind::ResourceBusy.into(),
            TryLockError::Error(error) => error,
        })?;
        file.set_len(SIZE as u64)?;
        let mut generation = [0; 2];
        file.read_exact_at(&mut generation, GENERATION_AT)?;
        let mut segment = Segment { file, coarse, generation: u16::from_ne_bytes(generation) };
        segment.publish(Err(Withdrawn::Unknown))?;
        Ok(segment)
    }

    /// Replaces what readers see.
    ///
    /// # Errors
    /// The system's; readers may then see the old publication, which grows and ends by itself.
    pub fn publish(&mut self, published: Result<Published, Withdrawn>) -> io::Result<()> {
        let (generation, writes) = writes(published, self.coarse, self.generation);
        for (at, octets) in writes {
            self.file.write_all_at(&octets, at)?;
        }
        self.generation = generation;
        Ok(())
    }
}

/// The writes of a publication in their order, each with its place, and the generation that they lead to.
fn writes(
    published: Result<Published, Withdrawn>,
    coarse: Nanos,
    generation: u16,
) -> (u16, [(u64, Vec<u8>); 3]) {
    // Whoever wrote here before may have ended in the middle, at an odd one.
    let odd = generation | 1;
    // 0 means that nothing was ever published.
    let even = odd.checked_add(1).unwrap_or(2);
    let everything = encode(published, coarse, odd).to_vec();
    let at = GENERATION_AT;
    (even, [(at, odd.to_ne_bytes().into()), (0, everything), (at, even.to_ne_bytes().into())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Time;

    fn published() -> Published {
        Published {
            wall: Time::from_nanos(1_700_000_000_000_000_123),
            monotonic: Nanos::new(12_345_678_901),
            offset: (Nanos::new(-700), Nanos::new(300)),
            growth_ppb: 20_000,
        }
    }

    /// Reads the layout as the specification has it, and knows nothing of the encoder.
    fn field(octets: &[u8], at: usize, size: usize) -> i128 {
        let mut wide = [0; 8];
        wide[..size].copy_from_slice(&octets[at..at + size]);
        i128::from(u64::from_le_bytes(wide))
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_publication_is_laid_out_as_clients_expect() {
        let octets = encode(Ok(published()), Nanos::from_millis(4), 6);
        assert_eq!(octets[..8], [0x4e, 0x5a, 0x4d, 0x41, 0x00, 0x02, 0x42, 0x43]);
        let fields = [
            (8, 4),
            (12, 2),
            (14, 2),
            (16, 8),
            (24, 8),
            (32, 8),
            (40, 8),
            (48, 8),
            (56, 8),
            (64, 4),
            (68, 4),
        ];
        let values = fields.map(|(at, size)| field(&octets, at, size));
        assert_eq!(values, [80, 2, 6, 12, 341_678_901, 17, 341_678_901, 700, 0, 20_000, 1]);
        assert_eq!(octets[72..], [0; 8]);
        for (why, status) in [(Withdrawn::Unknown, 0), (Withdrawn::Disrupted, 3)] {
            let octets = encode(Err(why), Nanos::from_millis(4), 6);
            assert_eq!((field(&octets, 68, 4), field(&octets, 32, 8)), (status, 0), "void since ever");
            assert_eq!(field(&octets, 48, 8), i128::from(NO_BOUND));
        }
    }

    /// Goes through everything that a reader may find while a publication is written, whichever octets of a write become
    /// visible first: wherever it finds an even generation, and the same one again, what it read is whole.
    #[test]
    fn a_reader_never_takes_parts_of_two_publications() {
        let newer = Published { offset: (Nanos::ZERO, Nanos::new(-1)), growth_ppb: u32::MAX, ..published() };
        let newer = Published { monotonic: Nanos::new(i64::MAX), ..newer };
        for (generation, reversed) in
            [2, 3, 0xfe, 0xff, 0xfffe, 0xffff].into_iter().flat_map(|g| [(g, false), (g, true)])
        {
            let mut memory = encode(Ok(published()), Nanos::ZERO, generation);
            let mut states = vec![memory];
            for (at, octets) in writes(Ok(newer), Nanos::ZERO, generation).1 {
                let mut places: Vec<usize> = (0..octets.len()).collect();
                if reversed {
                    places.reverse();
                }
                for place in places {
                    memory[usize::try_from(at).unwrap() + place] = octets[place];
                    states.push(memory);
                }
            }
            let whole = [states[0], memory].map(|state| state[16..].to_vec());
            let generation = |state: &[u8; SIZE]| u16::from_ne_bytes([state[14], state[15]]);
            for (first, state) in states.iter().enumerate() {
                let same = |later: &&[u8; SIZE]| generation(later) == generation(state);
                if generation(state) % 2 == 1 {
                    continue;
                }
                for later in states[first..].iter().take_while(same) {
                    assert!(whole.contains(&later[16..].to_vec()) && later[16..] == state[16..]);
                }
                let returns = states[first..].iter().skip_while(same).any(|later| same(&later));
                assert!(!returns, "generation {} comes back", generation(state));
            }
        }
    }

    #[test]
    fn a_segment_goes_on_where_it_was_left_and_is_never_at_generation_0() {
        let directory = std::env::temp_dir().join(format!("coeval-segment-{}", uuid::Uuid::new_v4()));
        let path = directory.join("shm0");
        let generation =
            |path: &Path| u16::from_ne_bytes(std::fs::read(path).unwrap()[14..16].try_into().unwrap());
        let mut segment = Segment::open(&path, Nanos::ZERO).unwrap();
        assert_eq!(generation(&path), 2);
        segment.publish(Ok(published())).unwrap();
        assert_eq!(generation(&path), 4);
        let busy = Segment::open(&path, Nanos::ZERO).unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::ResourceBusy);
        drop(segment);
        // Somebody was killed between the odd generation and the even one.
        let mut octets = std::fs::read(&path).unwrap();
        octets[14..16].copy_from_slice(&0xffff_u16.to_ne_bytes());
        std::fs::write(&path, octets).unwrap();
        let mut segment = Segment::open(&path, Nanos::ZERO).unwrap();
        assert_eq!(generation(&path), 2, "65535 is followed by 2");
        segment.publish(Err(Withdrawn::Unknown)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), encode(Err(Withdrawn::Unknown), Nanos::ZERO, 4));
        std::fs::remove_dir_all(directory).unwrap();
    }
}
