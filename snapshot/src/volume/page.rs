//! A page of a layer's map as it lies on disk. Pure: bytes in, states out.
//!
//! Page p of a map has two slots of 4096 bytes at offsets p·8192 and p·8192 + 4096. Generation g stands in slot g mod 2,
//! so a page is always written over the *older* copy, and a write that tears leaves the newer one intact. The newest
//! valid slot counts. A slot of zeros is valid: generation 0, every block absent; a new map is one sparse file.
//!
//! A slot, little-endian:
//!
//! | bytes | field |
//! | --- | --- |
//! | 0..8 | magic `COEVMAP1` |
//! | 8..16 | page number |
//! | 16..24 | generation, from 1 |
//! | 24..28 | layer id |
//! | 28..32 | CRC32C of the other 4092 bytes |
//! | 32..4096 | 508 words of 32 blocks each, two bits a block, lowest bits first: 00 absent, 01 data, 11 zero |

/// Bytes in a slot.
pub(super) const SLOT: usize = 4096;
/// Words of states in a page.
pub(super) const WORDS: usize = (SLOT - HEADER) / 8;
/// Blocks that a word describes.
pub(super) const BLOCKS_PER_WORD: u64 = 32;
/// Blocks that a page describes.
pub(super) const BLOCKS_PER_PAGE: u64 = WORDS as u64 * BLOCKS_PER_WORD;
/// The lower bit of each of a word's states.
pub(super) const LOW_BITS: u64 = 0x5555_5555_5555_5555;

const HEADER: usize = 32;
const CRC: std::ops::Range<usize> = 28..32;
const MAGIC: &[u8; 8] = b"COEVMAP1";

/// The states of a page's blocks.
pub(super) type Words = [u64; WORDS];

/// What a pair of slots holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    /// 0 if the page was never written.
    pub generation: u64,
    pub words: Box<Words>,
    /// Whether the other slot is neither valid nor empty: a write tore, or the medium decays.
    pub torn: bool,
}

/// Where generation `generation` of page `page` lies in the map file.
pub(super) fn offset(page: usize, generation: u64) -> u64 {
    (page as u64 * 2 + generation % 2) * SLOT as u64
}

/// One slot's bytes.
pub(super) fn encode(layer: u32, page: usize, generation: u64, words: &Words) -> Vec<u8> {
    let mut slot = Vec::with_capacity(SLOT);
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&(page as u64).to_le_bytes());
    slot.extend_from_slice(&generation.to_le_bytes());
    slot.extend_from_slice(&layer.to_le_bytes());
    slot.extend_from_slice(&[0; 4]);
    for word in words {
        slot.extend_from_slice(&word.to_le_bytes());
    }
    let crc = checksum(&slot);
    slot[CRC].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// The newest valid one of a page's two slots, given as they follow each other in the file; None if neither is valid.
pub(super) fn decode(slots: &[u8], layer: u32, page: usize) -> Option<Stored> {
    let (even, odd) = slots.split_at(SLOT);
    let (even, odd) = (decode_slot(even, layer, page, 0), decode_slot(odd, layer, page, 1));
    let torn = even.is_none() || odd.is_none();
    let (generation, words) = even.into_iter().chain(odd).max_by_key(|(generation, _)| *generation)?;
    Some(Stored { generation, words, torn })
}

fn decode_slot(slot: &[u8], layer: u32, page: usize, parity: u64) -> Option<(u64, Box<Words>)> {
    let mut words = Box::new([0; WORDS]);
    if slot.iter().all(|&byte| byte == 0) {
        return Some((0, words));
    }
    let generation = read_u64(&slot[16..24]);
    let ours = &slot[..8] == MAGIC
        && read_u64(&slot[8..16]) == page as u64
        && generation > 0
        && generation % 2 == parity
        && slot[24..28] == layer.to_le_bytes()
        && slot[CRC] == checksum(slot).to_le_bytes();
    for (word, bytes) in words.iter_mut().zip(slot[HEADER..].chunks_exact(8)) {
        *word = read_u64(bytes);
    }
    // 10 is no state.
    let known = words.iter().all(|word| (word >> 1) & !word & LOW_BITS == 0);
    (ours && known).then_some((generation, words))
}

fn checksum(slot: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&slot[..CRC.start]), &slot[CRC.end..])
}

fn read_u64(bytes: &[u8]) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(bytes);
    u64::from_le_bytes(array)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(seed: &[u8]) -> Words {
        let mut words = [0; WORDS];
        for (i, &byte) in seed.iter().enumerate() {
            words[i * 7 % WORDS] |= [0, 0b01, 0b11][usize::from(byte % 3)] << (u64::from(byte) % 32 * 2);
        }
        words
    }

    fn pair(even: &[u8], odd: &[u8]) -> Vec<u8> {
        [even, odd].concat()
    }

    const EMPTY: [u8; SLOT] = [0; SLOT];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_newest_slot_is_read_back(seed: Vec<u8>, other: Vec<u8>, generation in 1_u64..1 << 40, page in 0_usize..99) {
            let new = encode(7, page, generation + 1, &words(&seed));
            let old = encode(7, page, generation, &words(&other));
            let slots = if generation % 2 == 0 { pair(&old, &new) } else { pair(&new, &old) };
            let stored = decode(&slots, 7, page).unwrap();
            prop_assert_eq!(stored, Stored { generation: generation + 1, words: Box::new(words(&seed)), torn: false });
        }

        #[test]
        fn a_torn_write_leaves_the_older_copy(seed: Vec<u8>, cut in 0..SLOT, flip in 1_u8..) {
            let old = encode(7, 3, 4, &words(&seed));
            let mut new = encode(7, 3, 5, &words(&[1, 2, 3, 4, 5, 6]));
            new[cut] ^= flip;
            let stored = decode(&pair(&old, &new), 7, 3).unwrap();
            prop_assert_eq!((stored.generation, stored.torn), (4, true));
            prop_assert_eq!(*stored.words, words(&seed));
        }
    }

    #[test]
    fn a_first_write_that_tore_leaves_an_empty_page() {
        let mut first = encode(7, 0, 1, &words(&[1, 2, 3]));
        first[2048..].fill(0);
        first[40] = 1;
        let stored = decode(&pair(&EMPTY, &first), 7, 0).unwrap();
        assert_eq!((stored.generation, stored.torn), (0, true));
    }

    #[test]
    fn a_page_of_another_place_or_layer_is_not_valid() {
        let slot = encode(7, 3, 4, &words(&[1]));
        assert!(decode(&pair(&slot, &slot), 7, 3).unwrap().torn, "generation 4 has no business in slot 1");
        assert_eq!(decode(&pair(&slot, &slot), 8, 3), None);
        assert_eq!(decode(&pair(&slot, &slot), 7, 2), None);
    }
}
