//! Sets of byte ranges and locks on block ranges: which requests touch the same place.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::PoisonError;

use super::lock;
use crate::sync::{Condvar, Mutex};

/// A set of bytes, kept as ranges that neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds a range.
    pub(super) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        while let Some((&other_start, &other_end)) = self.ranges.range(..=end).next_back() {
            if other_end < start {
                break;
            }
            self.ranges.remove(&other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ranges.insert(start, end);
    }

    /// Whether any byte of `range` is in the set.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        let last = self.ranges.range(..range.end).next_back();
        !range.is_empty() && last.is_some_and(|(_, &end)| end > range.start)
    }
}

/// Locks on ranges of blocks, first come, first served.
///
/// Requests that write whole blocks share: blocks are written in one piece each, and a block protocol leaves the order
/// of overlapping requests open. A request with a block of which it has only a part reads the rest, and excludes
/// everybody from its blocks meanwhile: otherwise it would write back what it read over somebody's newer bytes.
#[derive(Debug, Default)]
pub(super) struct RangeLock {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// In the order of arrival, those who wait included: nobody is overtaken for ever.
    entries: Vec<Entry>,
    next_id: u64,
    waiting: usize,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    blocks: Range<u64>,
    exclusive: bool,
}

impl Entry {
    fn excludes(&self, other: &Entry) -> bool {
        (self.exclusive || other.exclusive)
            && self.blocks.start < other.blocks.end
            && other.blocks.start < self.blocks.end
    }
}

impl Queue {
    fn must_wait(&self, id: u64) -> bool {
        let Some(place) = self.entries.iter().position(|entry| entry.id == id) else { return false };
        self.entries[..place].iter().any(|earlier| earlier.excludes(&self.entries[place]))
    }
}

/// A range that is locked while this lives.
#[derive(Debug)]
pub(super) struct RangeGuard<'a> {
    of: &'a RangeLock,
    id: u64,
}

impl RangeLock {
    /// Waits until no earlier request excludes this one.
    pub(super) fn lock(&self, blocks: Range<u64>, exclusive: bool) -> RangeGuard<'_> {
        let mut queue = lock(&self.queue);
        let id = queue.next_id;
        queue.next_id += 1;
        queue.entries.push(Entry { id, blocks, exclusive });
        while queue.must_wait(id) {
            queue.waiting += 1;
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.waiting -= 1;
        }
        RangeGuard { of: self, id }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut queue = lock(&self.of.queue);
        queue.entries.retain(|entry| entry.id != self.id);
        if queue.waiting > 0 {
            self.of.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_set_of_ranges_is_a_set_of_bytes(
            inserted in proptest::collection::vec((0_u64..200, 0_u64..20), 0..30),
            asked in proptest::collection::vec((0_u64..220, 0_u64..20), 1..30),
        ) {
            let (mut set, mut model) = (RangeSet::default(), [false; 240]);
            for (start, length) in inserted {
                set.insert(start..start + length);
                model[start as usize..(start + length) as usize].fill(true);
            }
            for (start, length) in asked {
                let expected = model[start as usize..(start + length) as usize].iter().any(|&held| held);
                prop_assert_eq!(set.overlaps(&(start..start + length)), expected);
            }
        }
    }

    #[test]
    fn exclusive_excludes_and_nobody_is_overtaken() {
        let queue = |entries: &[(Range<u64>, bool)]| Queue {
            entries: (0_u64..)
                .zip(entries)
                .map(|(id, (blocks, exclusive))| Entry { id, blocks: blocks.clone(), exclusive: *exclusive })
                .collect(),
            ..Queue::default()
        };
        let shared = queue(&[(0..4, false), (2..6, false)]);
        assert!(!shared.must_wait(1), "whole blocks share");
        let mixed = queue(&[(0..4, false), (3..4, true), (3..5, false), (4..5, true)]);
        assert!(mixed.must_wait(1), "a part of a block waits for the whole block's writer");
        assert!(mixed.must_wait(2), "a later sharer does not overtake one who waits for exclusion");
        assert!(mixed.must_wait(3), "nor the other way round");
        assert!(!queue(&[(0..4, true), (4..5, true)]).must_wait(1), "other blocks are free");
    }
}
