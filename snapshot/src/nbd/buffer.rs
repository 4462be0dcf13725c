//! A queue of bytes in one piece of memory: filled at the end, consumed at the front.

/// Length that a buffer starts with and goes back to.
pub(super) const INITIAL: usize = 256 << 10;

/// A longer buffer is given back to the system once it is empty: a connection that idles after one 32 MiB request
/// must not keep 32 MiB.
const KEEP: usize = 4 << 20;

/// The memory stays initialised between uses, so that reusing it costs no zeroing.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub fn new() -> Self {
        Buffer { memory: vec![0; INITIAL], start: 0, end: 0 }
    }

    pub fn filled(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    pub fn len(&self) -> usize {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Removes `count` bytes at the front; at most what is there.
    pub fn consume(&mut self, count: usize) {
        self.start += count.min(self.len());
        if self.is_empty() {
            self.clear();
        }
    }

    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
        if self.memory.len() > KEEP {
            self.memory = vec![0; INITIAL];
        }
    }

    /// Free memory after the end, at least `least` bytes. What of it was written is added by [`Buffer::commit`].
    pub fn room(&mut self, least: usize) -> &mut [u8] {
        let free = self.memory.len() - self.end;
        // Moving what is left to the front also pays when little room is left: the next receive then takes more.
        if self.start > 0 && free < least.max(self.memory.len() / 4) {
            self.memory.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.len());
        }
        if self.memory.len() - self.end < least {
            self.memory.resize((self.end + least).next_multiple_of(INITIAL), 0);
        }
        &mut self.memory[self.end..]
    }

    /// Adds the first `count` bytes of the room to the end.
    pub fn commit(&mut self, count: usize) {
        self.end = (self.end + count).min(self.memory.len());
    }

    /// Adds `count` bytes at the end, to be overwritten by the caller: they hold whatever was there before.
    pub fn append(&mut self, count: usize) -> &mut [u8] {
        self.room(count);
        self.commit(count);
        let end = self.end;
        &mut self.memory[end - count..end]
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.append(bytes.len()).copy_from_slice(bytes);
    }

    /// Moves the first `count` bytes, at most what is there, into `other`, which is empty. The shorter part is copied.
    pub fn take(&mut self, count: usize, other: &mut Buffer) {
        let count = count.min(self.len());
        if self.len() - count < count {
            std::mem::swap(self, other);
            self.push(&other.filled()[count..]);
            other.truncate(count);
        } else {
            other.push(&self.filled()[..count]);
            self.consume(count);
        }
    }

    /// Keeps the first `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.end = self.start + len.min(self.len());
    }

    /// Takes out what follows the first `len` bytes.
    pub fn split_off(&mut self, len: usize) -> Vec<u8> {
        let tail = self.filled()[len..].to_vec();
        self.truncate(len);
        tail
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_long_buffer_is_given_back_when_it_is_empty() {
        let mut buffer = Buffer::new();
        buffer.append(32 << 20);
        buffer.consume(32 << 20);
        assert_eq!(buffer.memory.len(), INITIAL);
    }

    proptest! {
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec((0..5u8, 0..300_000usize), 1..40)) {
            let mut buffer = Buffer::new();
            let mut model = VecDeque::new();
            for (number, (kind, count)) in steps.into_iter().enumerate() {
                match kind {
                    0 => {
                        let bytes = vec![u8::try_from(number).unwrap(); count];
                        buffer.push(&bytes);
                        model.extend(bytes);
                    }
                    1 => {
                        buffer.consume(count);
                        model.drain(..count.min(model.len()));
                    }
                    2 => {
                        let len = count.min(model.len());
                        prop_assert_eq!(buffer.split_off(len), Vec::from(model.split_off(len)));
                    }
                    3 => {
                        let mut taken = Buffer::new();
                        buffer.take(count, &mut taken);
                        let expected: Vec<u8> = model.drain(..count.min(model.len())).collect();
                        prop_assert_eq!(taken.filled(), expected);
                    }
                    _ => {
                        prop_assert!(buffer.room(count).len() >= count);
                    }
                }
                prop_assert_eq!(buffer.filled(), &*model.make_contiguous());
            }
        }
    }
}
