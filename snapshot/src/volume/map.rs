//! A layer's map in memory: which of its blocks hold data, which are zero, and which show what lies below.
//!
//! Lookups and changes are atomic per word and take no lock. Pages are allocated when they are first touched, so memory
//! follows the regions in use (a page of 4 KiB stands for 63.5 MiB of volume).

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::page::{self, BLOCKS_PER_PAGE, BLOCKS_PER_WORD, LOW_BITS, WORDS, Words};

/// What a layer says about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing: the layer below counts.
    Absent,
    /// Its content is in this layer's data file.
    Data,
    /// It reads as zeros.
    Zero,
}

#[derive(Debug)]
struct Page {
    words: [AtomicU64; WORDS],
    /// Set after each change of `words`, cleared before they are copied: no change is ever missed.
    dirty: AtomicBool,
    /// The generation that is on disk. Only the one who syncs the layer changes it.
    generation: AtomicU64,
}

/// A copy of a page, to be written.
#[derive(Debug)]
pub(super) struct Image {
    pub page: usize,
    pub generation: u64,
    words: Box<Words>,
}

impl Image {
    pub(super) fn encode(&self, layer: u32) -> Vec<u8> {
        page::encode(layer, self.page, self.generation, &self.words)
    }
}

/// The map of one layer.
#[derive(Debug)]
pub(super) struct Map {
    pages: Box<[OnceLock<Box<Page>>]>,
    blocks: u64,
}

impl Map {
    /// A map of `blocks` absent blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let pages = blocks.div_ceil(BLOCKS_PER_PAGE);
        Map { pages: (0..pages).map(|_| OnceLock::new()).collect(), blocks }
    }

    /// Number of pages.
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Puts a page that was read from disk in its place; only while the map is loaded.
    pub(super) fn load(&self, page: usize, generation: u64, words: &Words) {
        let loaded = self.page(page);
        for (word, &stored) in loaded.words.iter().zip(words) {
            word.store(stored, Ordering::Relaxed);
        }
        loaded.generation.store(generation, Ordering::Relaxed);
    }

    /// A block's state.
    pub(super) fn get(&self, block: u64) -> State {
        let (page, word, first) = place(block);
        let Some(page) = self.pages[page].get() else { return State::Absent };
        match (page.words[word].load(Ordering::Acquire) >> (first * 2)) & 0b11 {
            0b00 => State::Absent,
            0b01 => State::Data,
            _ => State::Zero,
        }
    }

    /// Sets the state of some blocks.
    pub(super) fn set(&self, blocks: Range<u64>, state: State) {
        let pattern = match state {
            State::Absent => 0,
            State::Data => LOW_BITS,
            State::Zero => u64::MAX,
        };
        let mut block = blocks.start;
        while block < blocks.end {
            let (page, word, first) = place(block);
            let count = (BLOCKS_PER_WORD - first).min(blocks.end - block);
            let mask = (u64::MAX >> (64 - count * 2)) << (first * 2);
            let page = self.page(page);
            // In one step: a reader must never see a block absent on its way from one state to another.
            let update = |word: u64| Some((word & !mask) | (pattern & mask));
            let _ = page.words[word].fetch_update(Ordering::SeqCst, Ordering::SeqCst, update);
            page.dirty.store(true, Ordering::SeqCst);
            block += count;
        }
    }

    /// The first run of blocks from `from` on that are not absent and have the same state.
    pub(super) fn next_run(&self, from: u64) -> Option<(Range<u64>, State)> {
        self.next_run_in(&(from..self.blocks))
    }

    /// The same within some blocks: what lies beyond is not looked at.
    pub(super) fn next_run_in(&self, blocks: &Range<u64>) -> Option<(Range<u64>, State)> {
        let limit = blocks.end.min(self.blocks);
        let mut block = blocks.start;
        loop {
            if block >= limit {
                return None;
            }
            if self.pages[place(block).0].get().is_none() {
                block = (block / BLOCKS_PER_PAGE + 1) * BLOCKS_PER_PAGE;
            } else if self.get(block) == State::Absent {
                block += 1;
            } else {
                break;
            }
        }
        let state = self.get(block);
        let end = (block..limit).find(|&other| self.get(other) != state).unwrap_or(limit);
        Some((block..end, state))
    }

    /// Copies of the pages that changed since they were last taken, as their next generation.
    pub(super) fn take_dirty(&self) -> Vec<Image> {
        self.images(|page| page.dirty.swap(false, Ordering::SeqCst))
    }

    /// Copies of all pages, as their next generation.
    pub(super) fn all(&self) -> Vec<Image> {
        self.images(|_| true)
    }

    /// Images reached the disk.
    pub(super) fn written(&self, images: &[Image]) {
        for image in images {
            self.page(image.page).generation.store(image.generation, Ordering::SeqCst);
        }
    }

    /// Images did not reach the disk.
    pub(super) fn not_written(&self, images: &[Image]) {
        for image in images {
            self.page(image.page).dirty.store(true, Ordering::SeqCst);
        }
    }

    fn images(&self, wanted: impl Fn(&Page) -> bool) -> Vec<Image> {
        let touched = self.pages.iter().enumerate().filter_map(|(i, page)| Some((i, page.get()?)));
        touched
            .filter(|(_, page)| wanted(page))
            .map(|(i, page)| {
                let mut words = Box::new([0; WORDS]);
                for (copy, word) in words.iter_mut().zip(&page.words) {
                    *copy = word.load(Ordering::SeqCst);
                }
                Image { page: i, generation: page.generation.load(Ordering::SeqCst) + 1, words }
            })
            .collect()
    }

    fn page(&self, page: usize) -> &Page {
        self.pages[page].get_or_init(|| {
            Box::new(Page {
                words: [const { AtomicU64::new(0) }; WORDS],
                dirty: AtomicBool::new(false),
                generation: AtomicU64::new(0),
            })
        })
    }
}

/// Page, word and place in the word.
fn place(block: u64) -> (usize, usize, u64) {
    let in_page = block % BLOCKS_PER_PAGE;
    ((block / BLOCKS_PER_PAGE) as usize, (in_page / BLOCKS_PER_WORD) as usize, in_page % BLOCKS_PER_WORD)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = BLOCKS_PER_PAGE * 2 + 77;

    fn state() -> impl Strategy<Value = State> {
        prop_oneof![Just(State::Absent), Just(State::Data), Just(State::Zero)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn it_says_what_a_plain_list_says(
            changes in proptest::collection::vec((0..BLOCKS, 1_u64..300, state()), 0..40),
        ) {
            let (map, mut model) = (Map::new(BLOCKS), vec![State::Absent; BLOCKS as usize]);
            for (start, count, state) in changes {
                let end = (start + count).min(BLOCKS);
                map.set(start..end, state);
                model[start as usize..end as usize].fill(state);
            }
            for (block, &state) in model.iter().enumerate() {
                prop_assert_eq!(map.get(block as u64), state);
            }
            let mut from_runs = vec![State::Absent; BLOCKS as usize];
            let mut from = 0;
            while let Some((run, state)) = map.next_run(from) {
                from_runs[run.start as usize..run.end as usize].fill(state);
                from = run.end;
            }
            prop_assert_eq!(&from_runs, &model);

            let loaded = Map::new(BLOCKS);
            for image in map.take_dirty() {
                loaded.load(image.page, image.generation, &image.words);
            }
            prop_assert!((0..BLOCKS).all(|block| loaded.get(block) == map.get(block)));
            prop_assert!(map.take_dirty().is_empty(), "nothing changed since");
        }
    }

    #[test]
    fn pages_that_were_not_written_are_taken_again() {
        let map = Map::new(BLOCKS);
        map.set(5..6, State::Data);
        let images = map.take_dirty();
        map.not_written(&images);
        let again = map.take_dirty();
        assert_eq!(
            (again.len(), again[0].generation),
            (1, 1),
            "the same generation: it must not touch the other slot"
        );
        map.written(&again);
        map.set(6..7, State::Data);
        assert_eq!(map.take_dirty()[0].generation, 2);
    }
}
