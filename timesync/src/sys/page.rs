//! A page that somebody else writes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};

use crate::vmclock::Words;

/// The kernel maps whole pages; this many octets of the first are used at most.
const LENGTH: usize = 4096;
/// Which of the words is the sequence count.
const SEQUENCE: usize = 3;

/// The first page of a device or a file, mapped for reading; others may write to it.
#[derive(Debug)]
pub struct SharedPage(NonNull<u32>);

// SAFETY: the mapping belongs to the process, not to a thread, and is only ever read.
unsafe impl Send for SharedPage {}

impl SharedPage {
    /// Maps the first page of `path`, which must be a device's, or a file's that has one and keeps it.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory. It outlives the descriptor.
        let address = unsafe {
            libc::mmap(ptr::null_mut(), LENGTH, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).map(SharedPage).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// The page's first words, of which the sequence count is read before those behind it; and the sequence count once
    /// more, read after them all.
    pub fn read(&self) -> (Words, u32) {
        let word = |index: usize| {
            // SAFETY: the index is below 8, so the word lies in the mapping, which is aligned to a page and lives as long
            // as `self`. Others may write to it meanwhile, so it is read as volatile memory, one whole word at a time.
            u32::from_le(unsafe { self.0.add(index).read_volatile() })
        };
        let mut words = [0; 8];
        let (head, tail) = words.split_at_mut(SEQUENCE + 1);
        head.iter_mut().enumerate().for_each(|(index, value)| *value = word(index));
        fence(Ordering::Acquire);
        tail.iter_mut().enumerate().for_each(|(index, value)| *value = word(SEQUENCE + 1 + index));
        fence(Ordering::Acquire);
        (words, word(SEQUENCE))
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, of that length, and nobody refers to it any longer.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}
