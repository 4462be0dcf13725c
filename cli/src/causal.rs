//! What the causal workload writes, and how a set of images is checked to be a consistent cut. Pure.
//!
//! Tokens go from volume to volume. At each step a token's record, with a vector of how often it has been written on
//! each host, goes into the token's own slot; only after the write was acknowledged does the token move on. So each
//! record names exactly the writes that were acknowledged before it was issued, and a set of images is a consistent cut
//! if and only if no record in it knows of a write that another image lacks (Mattern, "Virtual Time and Global States
//! of Distributed Systems", 1989: the cut is the same as the maximum of its vector clocks).

use std::fmt;

const MAGIC: [u8; 8] = *b"coevalTK";
const BLOCK: usize = 4096;
const SMALL: usize = 512;
/// Magic, token, host, number of hosts.
const HEADER: usize = 8 + 4 + 4 + 4;
const CHECKSUM: usize = 4;

/// The most hosts that a record of 512 bytes has room for.
pub const MAX_HOSTS: usize = (SMALL - HEADER - CHECKSUM) / 8;

/// Where a token's record lies in every volume.
///
/// Even tokens have a block of 4096 bytes to themselves; odd ones have 512 bytes and share their block with seven
/// others, so that writes of part of a block meet each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// In bytes.
    pub offset: usize,
    /// In bytes.
    pub length: usize,
}

impl Slot {
    /// The slot of a token.
    pub fn of(token: usize) -> Slot {
        let half = token / 2;
        if token.is_multiple_of(2) {
            Slot { offset: token * BLOCK, length: BLOCK }
        } else {
            Slot { offset: (1 + 2 * (half / 8)) * BLOCK + (half % 8) * SMALL, length: SMALL }
        }
    }

    /// Bytes at the beginning of a volume that hold the slots of so many tokens.
    pub fn region(tokens: usize) -> usize {
        (tokens + 1) * BLOCK
    }
}

/// One write of one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The token.
    pub token: usize,
    /// The host it was written on.
    pub host: usize,
    /// How many times the token was written on each host, this write included.
    pub written: Vec<u64>,
}

impl Record {
    /// The bytes of the token's slot, a checksum over all of them included.
    ///
    /// # Panics
    /// With more than [`MAX_HOSTS`] hosts.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.written.len() <= MAX_HOSTS, "a record has room for {MAX_HOSTS} hosts");
        let mut bytes = Vec::with_capacity(Slot::of(self.token).length);
        bytes.extend(MAGIC);
        for number in [self.token, self.host, self.written.len()] {
            bytes.extend((number as u32).to_le_bytes());
        }
        for count in &self.written {
            bytes.extend(count.to_le_bytes());
        }
        // A different filling each time: half of one write and half of another is then no valid record.
        bytes.resize(Slot::of(self.token).length - CHECKSUM, self.written[self.host] as u8);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Reads a token's slot; none if nothing was written there yet.
    ///
    /// # Errors
    /// [`Damaged`] when the bytes are no record of this token.
    pub fn decode(token: usize, bytes: &[u8]) -> Result<Option<Record>, Damaged> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(Damaged)?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) || !body.starts_with(&MAGIC) {
            return Err(Damaged);
        }
        let number = |at: usize| {
            let bytes = body.get(at..at + 4)?.first_chunk::<4>()?;
            usize::try_from(u32::from_le_bytes(*bytes)).ok()
        };
        let (stored, host, hosts) =
            (number(8).ok_or(Damaged)?, number(12).ok_or(Damaged)?, number(16).ok_or(Damaged)?);
        let counts = body.get(HEADER..HEADER + hosts.min(MAX_HOSTS) * 8).ok_or(Damaged)?;
        let written: Vec<u64> =
            counts.as_chunks::<8>().0.iter().map(|count| u64::from_le_bytes(*count)).collect();
        if stored != token || host >= written.len() {
            return Err(Damaged);
        }
        Ok(Some(Record { token, host, written }))
    }
}

/// A slot that holds no whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damaged;

/// Why a set of images is no consistent cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// One image knows of a write that another lacks, although it was acknowledged before.
    Torn {
        /// The token.
        token: usize,
        /// The host whose image knows of the write.
        known_on: usize,
        /// The host whose image lacks it.
        missing_on: usize,
        /// The write that is known of, as a count of the token's writes there.
        known: u64,
        /// The last one that is there.
        found: u64,
    },
    /// A slot holds no whole record.
    Damaged {
        /// The token.
        token: usize,
        /// The host.
        host: usize,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::Torn { token, known_on, missing_on, known, found } => write!(
                f,
                "token {token}: image {known_on} knows of write {known} on {missing_on}, which has only {found}"
            ),
            Violation::Damaged { token, host } => write!(f, "token {token}: no whole record in image {host}"),
        }
    }
}

/// Checks the images of all hosts' volumes, each at least [`Slot::region`] long, in the order the workload knows them.
///
/// # Panics
/// When an image is shorter.
pub fn check(images: &[Vec<u8>], tokens: usize) -> Vec<Violation> {
    let mut violations = Vec::new();
    for token in 0..tokens {
        let Slot { offset, length } = Slot::of(token);
        let mut records = Vec::with_capacity(images.len());
        for (host, image) in images.iter().enumerate() {
            let record =
                Record::decode(token, &image[offset..offset + length]).and_then(|found| match found {
                    Some(record) if record.host != host || record.written.len() != images.len() => {
                        Err(Damaged)
                    }
                    found => Ok(found),
                });
            records.push(record.unwrap_or_else(|Damaged| {
                violations.push(Violation::Damaged { token, host });
                None
            }));
        }
        let last: Vec<u64> = records
            .iter()
            .enumerate()
            .map(|(host, record)| record.as_ref().map_or(0, |record| record.written[host]))
            .collect();
        for (known_on, record) in
            records.iter().enumerate().filter_map(|(i, record)| Some((i, record.as_ref()?)))
        {
            for (missing_on, (&known, &found)) in record.written.iter().zip(&last).enumerate() {
                if known > found {
                    violations.push(Violation::Torn { token, known_on, missing_on, known, found });
                }
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKENS: usize = 20;
    const HOSTS: usize = 3;

    /// Every write of a run, in order: of random tokens on random hosts.
    fn history(steps: &[(usize, usize)]) -> Vec<Record> {
        let mut written = vec![vec![0u64; HOSTS]; TOKENS];
        let step = |&(token, host): &(usize, usize)| {
            written[token][host] += 1;
            Record { token, host, written: written[token].clone() }
        };
        steps.iter().map(step).collect()
    }

    /// The images after each host's first so many writes.
    fn images(history: &[Record], kept: impl Fn(usize, &Record) -> bool) -> Vec<Vec<u8>> {
        let mut images = vec![vec![0; Slot::region(TOKENS)]; HOSTS];
        for (_, record) in history.iter().enumerate().filter(|(index, record)| kept(*index, record)) {
            let Slot { offset, length } = Slot::of(record.token);
            images[record.host][offset..offset + length].copy_from_slice(&record.encode());
        }
        images
    }

    #[test]
    fn slots_do_not_overlap_and_lie_in_the_region() {
        let mut used = vec![false; Slot::region(100)];
        for token in 0..100 {
            let Slot { offset, length } = Slot::of(token);
            for byte in &mut used[offset..offset + length] {
                assert!(!*byte, "token {token} overlaps another");
                *byte = true;
            }
        }
    }

    #[test]
    fn a_torn_set_is_found_and_named() {
        let history = history(&[(3, 0), (3, 1), (3, 0), (3, 2)]);
        assert_eq!(check(&images(&history, |_, _| true), TOKENS), []);
        // The second write on host 0 is missing, the write on host 2 that knows of it is there.
        let torn = check(&images(&history, |index, _| index != 2), TOKENS);
        let expected = Violation::Torn { token: 3, known_on: 2, missing_on: 0, known: 2, found: 1 };
        assert_eq!(torn, [expected]);
    }

    #[test]
    fn damage_is_a_violation() {
        let history = history(&[(4, 1), (5, 1)]);
        let mut images = images(&history, |_, _| true);
        images[1][Slot::of(4).offset + 2000] ^= 1;
        assert_eq!(check(&images, TOKENS), [Violation::Damaged { token: 4, host: 1 }]);
        images.swap(1, 2);
        assert_eq!(check(&images, TOKENS).len(), 2, "images of other hosts are no better");
    }

    proptest! {
        #[test]
        fn records_survive_encoding(
            token in 0..100usize, host in 0..HOSTS, written in prop::collection::vec(any::<u64>(), HOSTS)
        ) {
            let record = Record { token, host, written };
            let bytes = record.encode();
            prop_assert_eq!(bytes.len(), Slot::of(token).length);
            prop_assert_eq!(Record::decode(token, &bytes), Ok(Some(record)));
        }

        #[test]
        fn any_bytes_are_a_record_or_damaged(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Record::decode(0, &bytes);
        }

        /// The truth by brute force: a cut by a host's count of writes is consistent iff no kept write comes after a
        /// write of the same token that was not kept.
        #[test]
        fn the_checker_is_right_about_any_cut(
            steps in prop::collection::vec((0..2usize, 0..HOSTS), 0..40),
            kept in prop::collection::vec(0..15usize, HOSTS),
        ) {
            let history = history(&steps);
            let position = |index: usize| {
                history[..index].iter().filter(|earlier| earlier.host == history[index].host).count()
            };
            let is_kept = |index: usize| position(index) < kept[history[index].host];
            let torn = (0..history.len()).any(|later| {
                is_kept(later)
                    && (0..later).any(|earlier| history[earlier].token == history[later].token && !is_kept(earlier))
            });
            let violations = check(&images(&history, |index, _| is_kept(index)), TOKENS);
            prop_assert_eq!(!violations.is_empty(), torn);
        }
    }
}
