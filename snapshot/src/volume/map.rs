//! A layer's map in memory: which of its blocks hold data, which are zero, and which show what lies below.
//!
//! Lookups take no lock. Memory follows what is touched: a page, which stands for 63.5 MiB of volume, is made when it is
//! first changed, and holds a few words by themselves before it holds all of them. A huge volume that is written here
//! and there would otherwise need 4 KiB for each block.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::lock;
use super::page::{self, BLOCKS_PER_PAGE, BLOCKS_PER_WORD, LOW_BITS, WORDS, Words};
use crate::sync::Mutex;

/// Words that a page holds by themselves, of 32 blocks each.
const FEW: usize = 6;

/// What a layer says about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing: the layer below counts.
    Absent,
    /// Its content is in this layer's data file.
    Data,
    /// It reads as zeros.
    Zero,
    /// Nobody knows: the page that said it is lost. Only in a map that is never written (`damaged.rs`).
    Unknown,
}

/// A page's words. Those that it does not hold are 0.
///
/// A reader that finds no `all` looks at the few, which do not change any more once there are all: what it misses
/// then was changed while its own call was under way.
#[derive(Debug, Default)]
struct Page {
    /// Held by whoever changes the few or turns them into all.
    changing: Mutex<()>,
    /// The number of each of the few words plus 1, or 0: none yet. Set after the word itself.
    places: [AtomicU16; FEW],
    few: [AtomicU64; FEW],
    all: OnceLock<Box<[AtomicU64; WORDS]>>,
    /// Changes under way: each counts from before it changes a word until it has marked the page as dirty.
    changes: AtomicU32,
    /// The generation that is on disk. Only the one who syncs the layer changes it.
    generation: AtomicU64,
}

impl Page {
    fn get(&self, word: usize) -> u64 {
        let found = self.all.get().map(|all| &all[word]).or_else(|| self.find(word));
        found.map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// Whether the bits `mask` of a word are those of `bits`, and whoever made them so has marked the page as dirty since:
    /// he counted himself before he changed them, so he has left if they are seen first and then nobody is counted.
    fn has_settled(&self, word: usize, mask: u64, bits: u64) -> bool {
        self.get(word) & mask == bits & mask && self.changes.load(Ordering::SeqCst) == 0
    }

    /// Replaces the bits `mask` of a word by those of `bits`, in one step: a reader must never see a block absent on its
    /// way from one state to another.
    fn put(&self, word: usize, mask: u64, bits: u64) {
        let changed = |old: u64| (old & !mask) | (bits & mask);
        let put_in_all = |all: &[AtomicU64; WORDS]| {
            let _ = all[word].fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(changed(old)));
        };
        if let Some(all) = self.all.get() {
            return put_in_all(all);
        }
        let _alone = lock(&self.changing);
        if let Some(all) = self.all.get() {
            return put_in_all(all);
        }
        if let Some(held) = self.find(word) {
            return held.store(changed(held.load(Ordering::SeqCst)), Ordering::SeqCst);
        }
        match self.places.iter().position(|place| place.load(Ordering::SeqCst) == 0) {
            Some(free) => {
                self.few[free].store(changed(0), Ordering::SeqCst);
                self.places[free].store(word as u16 + 1, Ordering::SeqCst);
            }
            None => {
                let all = Box::new([const { AtomicU64::new(0) }; WORDS]);
                for (number, held) in self.held() {
                    all[number].store(held, Ordering::SeqCst);
                }
                put_in_all(&all);
                // Nobody else can have set it: that takes the lock.
                let _ = self.all.set(all);
            }
        }
    }

    fn find(&self, word: usize) -> Option<&AtomicU64> {
        let place =
            self.places.iter().position(|place| usize::from(place.load(Ordering::SeqCst)) == word + 1)?;
        Some(&self.few[place])
    }

    /// The few words that it holds by themselves, with their numbers.
    fn held(&self) -> impl Iterator<Item = (usize, u64)> {
        let places = self.places.iter().map(|place| usize::from(place.load(Ordering::SeqCst)));
        let few = self.few.iter().map(|word| word.load(Ordering::SeqCst));
        places.take_while(|&place| place > 0).zip(few).map(|(place, word)| (place - 1, word))
    }

    fn copy(&self) -> Copied {
        match self.all.get() {
            Some(all) => Copied::All(Box::new(std::array::from_fn(|word| all[word].load(Ordering::SeqCst)))),
            None => Copied::Few(self.held().collect()),
        }
    }
}

/// A page's words at one time.
#[derive(Debug)]
enum Copied {
    Few(Vec<(usize, u64)>),
    All(Box<Words>),
}

/// A copy of a page, to be written.
#[derive(Debug)]
pub(super) struct Image {
    pub page: usize,
    pub generation: u64,
    copied: Copied,
}

impl Image {
    pub(super) fn encode(&self, layer: u32) -> Vec<u8> {
        match &self.copied {
            Copied::All(words) => page::encode(layer, self.page, self.generation, words),
            Copied::Few(few) => {
                let mut words = [0; WORDS];
                few.iter().for_each(|&(number, word)| words[number] = word);
                page::encode(layer, self.page, self.generation, &words)
            }
        }
    }
}

/// The map of one layer.
#[derive(Debug)]
pub(super) struct Map {
    pages: Box<[OnceLock<Box<Page>>]>,
    /// A bit for each page: set after each change of its words, cleared before they are copied, so no change is ever
    /// missed. Beside the pages, so that a sync of a huge volume need not look at each of them.
    dirty: Box<[AtomicU64]>,
    blocks: u64,
}

impl Map {
    /// A map of `blocks` absent blocks.
    pub(super) fn new(blocks: u64) -> Self {
        let pages = blocks.div_ceil(BLOCKS_PER_PAGE) as usize;
        Map {
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
            dirty: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            blocks,
        }
    }

    /// Number of blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Number of pages.
    pub(super) fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Puts a page that was read from disk in its place; only while the map is loaded.
    pub(super) fn load(&self, page: usize, generation: u64, words: &Words) {
        let loaded = self.page(page);
        for (number, &stored) in words.iter().enumerate().filter(|(_, stored)| **stored != 0) {
            loaded.put(number, u64::MAX, stored);
        }
        loaded.generation.store(generation, Ordering::SeqCst);
    }

    /// A block's state.
    pub(super) fn get(&self, block: u64) -> State {
        let (page, word, first) = place(block);
        let Some(page) = self.pages[page].get() else { return State::Absent };
        match (page.get(word) >> (first * 2)) & 0b11 {
            0b00 => State::Absent,
            0b01 => State::Data,
            0b10 => State::Unknown,
            _ => State::Zero,
        }
    }

    /// Sets the state of some blocks.
    pub(super) fn set(&self, blocks: Range<u64>, state: State) {
        let pattern = pattern(state);
        for (page, word, mask) in words(&blocks) {
            self.change(page, word, mask, pattern);
        }
    }

    /// Whether all of some blocks are in this state, and whoever made them so has marked their pages since.
    pub(super) fn has_settled(&self, blocks: &Range<u64>, state: State) -> bool {
        words(blocks).all(|(page, word, mask)| {
            self.pages[page].get().is_some_and(|page| page.has_settled(word, mask, pattern(state)))
        })
    }

    /// Changes nothing where nothing changes: a block that is written again must not have its page written again.
    fn change(&self, number: usize, word: usize, mask: u64, bits: u64) {
        let page = self.page(number);
        if page.has_settled(word, mask, bits) {
            return;
        }
        page.changes.fetch_add(1, Ordering::SeqCst);
        page.put(word, mask, bits);
        self.mark(number);
        page.changes.fetch_sub(1, Ordering::SeqCst);
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
            let (page, word, first) = place(block);
            match self.pages[page].get() {
                None => block = (block / BLOCKS_PER_PAGE + 1) * BLOCKS_PER_PAGE,
                Some(page) if page.get(word) == 0 => block += BLOCKS_PER_WORD - first,
                Some(_) if self.get(block) == State::Absent => block += 1,
                Some(_) => break,
            }
        }
        let state = self.get(block);
        let end = (block..limit).find(|&other| self.get(other) != state).unwrap_or(limit);
        Some((block..end, state))
    }

    /// Copies of the pages that changed since they were last taken, as their next generation.
    pub(super) fn take_dirty(&self) -> Vec<Image> {
        let mut images = Vec::new();
        for (number, word) in self.dirty.iter().enumerate() {
            // A look first: almost all are clean.
            let dirty = if word.load(Ordering::SeqCst) == 0 { 0 } else { word.swap(0, Ordering::SeqCst) };
            let pages = (0..64).filter(|bit| dirty >> bit & 1 == 1).map(|bit| number * 64 + bit);
            images.extend(pages.filter_map(|page| self.image(page)));
        }
        images
    }

    /// Copies of all pages, as their next generation.
    pub(super) fn all(&self) -> Vec<Image> {
        (0..self.pages.len()).filter_map(|page| self.image(page)).collect()
    }

    /// Images reached the disk.
    pub(super) fn written(&self, images: &[Image]) {
        for image in images {
            self.page(image.page).generation.store(image.generation, Ordering::SeqCst);
        }
    }

    /// Images did not reach the disk.
    pub(super) fn not_written(&self, images: &[Image]) {
        images.iter().for_each(|image| self.mark(image.page));
    }

    /// None where nothing was ever changed.
    fn image(&self, number: usize) -> Option<Image> {
        let page = self.pages[number].get()?;
        let generation = page.generation.load(Ordering::SeqCst) + 1;
        Some(Image { page: number, generation, copied: page.copy() })
    }

    fn mark(&self, page: usize) {
        let (word, bit) = (&self.dirty[page / 64], 1 << (page % 64));
        // One that is set is cleared, if ever, later than this look, and the copy is taken later still. So connections
        // that write to one page do not contend for its bit.
        if word.load(Ordering::SeqCst) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    fn page(&self, page: usize) -> &Page {
        self.pages[page].get_or_init(Box::default)
    }
}

/// A word of blocks that are all in one state.
fn pattern(state: State) -> u64 {
    match state {
        State::Absent => 0,
        State::Data => LOW_BITS,
        State::Zero => u64::MAX,
        State::Unknown => !LOW_BITS,
    }
}

/// The words that stand for some blocks: page, number in the page, and which of its bits.
fn words(blocks: &Range<u64>) -> impl Iterator<Item = (usize, usize, u64)> {
    let (mut block, end) = (blocks.start, blocks.end);
    std::iter::from_fn(move || {
        let count = end.checked_sub(block).filter(|left| *left > 0)?;
        let (page, word, first) = place(block);
        let count = count.min(BLOCKS_PER_WORD - first);
        block += count;
        Some((page, word, (u64::MAX >> (64 - count * 2)) << (first * 2)))
    })
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
                let stored = image.encode(7);
                let stored = page::decode(&[stored.as_slice(), &stored].concat(), 7, image.page).unwrap();
                loaded.load(image.page, image.generation, &stored.words);
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

    #[test]
    fn what_changes_nothing_is_not_written_again() {
        let map = Map::new(BLOCKS);
        map.set(5..40, State::Data);
        map.written(&map.take_dirty());
        map.set(7..39, State::Data);
        assert!(map.take_dirty().is_empty());
        map.set(39..41, State::Data);
        assert_eq!(map.take_dirty().len(), 1, "block 40 is new");
        map.set(5..6, State::Zero);
        assert_eq!(map.take_dirty().len(), 1, "another state");
    }

    #[test]
    fn a_state_that_somebody_else_is_setting_is_in_the_next_image() {
        // Two write the same block at once; whoever is done first has its own flush, which must have the block.
        for _ in 0..2000 {
            let map = Map::new(BLOCKS_PER_PAGE);
            let flushed = Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        map.set(9..10, State::Data);
                        let mut flushed = lock(&flushed);
                        flushed.extend(map.take_dirty());
                        let has_block = |image: &Image| match &image.copied {
                            Copied::Few(few) => few.contains(&(0, 0b01 << 18)),
                            Copied::All(words) => words[0] == 0b01 << 18,
                        };
                        assert!(flushed.iter().any(has_block));
                    });
                }
            });
        }
    }

    #[test]
    fn a_page_that_fills_up_while_others_read_and_write_loses_nothing() {
        let map = Map::new(BLOCKS_PER_PAGE);
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let map = &map;
                scope.spawn(move || {
                    // Neighbours in a word belong to different writers.
                    for block in (writer..BLOCKS_PER_PAGE).step_by(4) {
                        map.set(block..block + 1, State::Data);
                        assert_eq!(map.get(block), State::Data, "what was set is seen");
                    }
                });
            }
        });
        assert_eq!(map.next_run(0), Some((0..BLOCKS_PER_PAGE, State::Data)));
        assert_eq!(map.take_dirty().len(), 1);
    }
}
