//! What a hypervisor says of a virtual machine's clock: `/dev/vmclock0` (Linux 6.13; `struct vmclock_abi` in the kernel's
//! include/uapi/linux/vmclock-abi.h).
//!
//! When a virtual machine is moved or restored from a snapshot, its counter goes on from another value, or at another
//! rate. To the machine itself nothing shows. The hypervisor then writes another *disruption marker* into a page that the
//! machine can read. That marker is all that is taken from there: a change of it is a disruption, whatever it says.

use std::io;
use std::path::Path;

use crate::sys::SharedPage;

/// The page's first eight words, in the machine's own order of octets. The layout is little-endian:
///
/// | octets | field |
/// | --- | --- |
/// | 0 .. 4 | `magic` |
/// | 4 .. 8 | `size` of the structure |
/// | 8 .. 10 | `version`; then `counter_id` and `time_type`, an octet each |
/// | 12 .. 16 | `seq_count`: odd while something in the rest is being changed, and another value afterwards |
/// | 16 .. 24 | `disruption_marker` |
/// | 24 .. 32 | `flags` |
pub(crate) type Words = [u32; 8];

/// "VCLK".
const MAGIC: u32 = 0x4b4c_4356;
const VERSION: u32 = 1;
/// As far as the flags.
const LEAST_SIZE: u32 = 32;
/// A change takes the hypervisor less than a microsecond: so many looks.
const LOOKS: usize = 100;

/// What was seen of the marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Marker(u64),
    /// It is being changed, under this sequence count.
    Changing(u32),
    /// The page holds something else.
    Nothing,
}

/// What the words say, and `sequence_after`, read after them.
fn parse(words: Words, sequence_after: u32) -> Seen {
    let [magic, size, version, sequence, marker_low, marker_high, ..] = words;
    if magic != MAGIC || version & 0xffff != VERSION || size < LEAST_SIZE {
        return Seen::Nothing;
    }
    // Whatever was read while the count was odd, or across a change of it, may be half old and half new.
    if sequence % 2 == 1 || sequence != sequence_after {
        return Seen::Changing(sequence_after);
    }
    Seen::Marker(u64::from(marker_high) << 32 | u64::from(marker_low))
}

/// A hypervisor's page, and what was last seen in it.
#[derive(Debug)]
pub struct VmClock {
    page: SharedPage,
    known: Seen,
}

impl VmClock {
    /// This machine's, where it has one that can be read.
    pub fn of_this_machine() -> Option<Self> {
        let path = Path::new("/dev/vmclock0");
        match Self::open(path) {
            Ok(clock) => Some(clock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let path = path.display();
                tracing::warn!(%error, "cannot read {path}, so a move of this virtual machine may go unnoticed");
                None
            }
        }
    }

    /// The page at `path`: a device, or a file of at least a page that nobody makes shorter.
    ///
    /// # Errors
    /// The system's; or the page holds something else.
    pub fn open(path: &Path) -> io::Result<Self> {
        let page = SharedPage::open(path)?;
        let known = look(&page);
        if known == Seen::Nothing {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it holds no vmclock of version 1"));
        }
        Ok(VmClock { page, known })
    }

    /// Whether the clock was disrupted since this was asked before. A change that is under way counts as one, and so
    /// does its end: once too often costs some exchanges.
    pub fn disrupted(&mut self) -> bool {
        let now = look(&self.page);
        std::mem::replace(&mut self.known, now) != now
    }
}

/// What the page says once nobody is changing it, or after enough looks.
fn look(page: &SharedPage) -> Seen {
    let mut seen = Seen::Nothing;
    for _ in 0..LOOKS {
        let (words, sequence_after) = page.read();
        seen = parse(words, sequence_after);
        if !matches!(seen, Seen::Changing(_)) {
            break;
        }
        std::hint::spin_loop();
    }
    seen
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    const WORDS: Words = [MAGIC, 104, 0x0001_0001, 6, 0x89ab_cdef, 0x0123_4567, 0, 0];

    #[test]
    fn the_marker_is_read_where_it_stands() {
        assert_eq!(parse(WORDS, 6), Seen::Marker(0x0123_4567_89ab_cdef));
    }

    #[test]
    fn what_is_being_changed_is_no_marker() {
        let mut odd = WORDS;
        odd[3] = 7;
        assert_eq!(parse(odd, 7), Seen::Changing(7));
        assert_eq!(parse(WORDS, 8), Seen::Changing(8), "it was changed meanwhile");
        assert_eq!(parse(WORDS, 7), Seen::Changing(7));
    }

    #[test]
    fn anything_else_is_no_vmclock() {
        for (word, value) in [(0, 0), (0, MAGIC.swap_bytes()), (1, 31), (2, 0), (2, 2), (2, 0x0001_0000)] {
            let mut words = WORDS;
            words[word] = value;
            assert_eq!(parse(words, 6), Seen::Nothing, "{word}: {value:#x}");
        }
    }

    proptest! {
        /// Whatever a hypervisor writes: a marker comes from a steady page only, and another one is another one.
        #[test]
        fn a_marker_is_what_a_steady_page_holds(words: Words, known: bool, sequence_after in 0_u32..4, sequence in 0_u32..4) {
            let mut words = words;
            words[3] = sequence;
            if known {
                words[..3].copy_from_slice(&WORDS[..3]);
            }
            let marker = u64::from(words[5]) << 32 | u64::from(words[4]);
            match parse(words, sequence_after) {
                Seen::Marker(seen) => prop_assert!(seen == marker && sequence == sequence_after && sequence % 2 == 0),
                Seen::Changing(_) => prop_assert!(sequence % 2 == 1 || sequence != sequence_after),
                Seen::Nothing => prop_assert!(!known),
            }
        }
    }

    /// A file that stands in for the device. Removed when dropped.
    pub(crate) struct Page {
        pub(crate) path: PathBuf,
        file: File,
    }

    impl Page {
        pub(crate) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("vmclock-{}-{name}", std::process::id()));
            let file = File::create(&path).unwrap();
            file.set_len(4096).unwrap();
            let page = Page { path, file };
            WORDS.iter().enumerate().for_each(|(word, value)| page.write(word, *value));
            page
        }

        pub(crate) fn write(&self, word: usize, value: u32) {
            self.file.write_all_at(&value.to_le_bytes(), word as u64 * 4).unwrap();
        }

        /// As a hypervisor does it when it has moved the machine.
        pub(crate) fn disrupt(&self) {
            self.write(3, 7);
            self.write(4, 0x5555);
            self.write(3, 8);
        }
    }

    impl Drop for Page {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    #[test]
    fn a_change_of_the_marker_is_a_disruption_and_of_nothing_else() {
        let page = Page::new("marker");
        let mut clock = VmClock::open(&page.path).unwrap();
        assert!(!clock.disrupted());
        page.write(3, 10);
        page.write(6, 1);
        assert!(!clock.disrupted(), "the clock was adjusted, which is not our business");
        page.disrupt();
        assert!(clock.disrupted());
        assert!(!clock.disrupted());
        // A change that does not end counts, but once.
        page.write(3, 11);
        assert!(clock.disrupted() && !clock.disrupted());
    }

    #[test]
    fn a_page_of_something_else_is_refused() {
        let page = Page::new("else");
        page.write(0, 0);
        assert_eq!(VmClock::open(&page.path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(VmClock::open(Path::new("/nowhere")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
