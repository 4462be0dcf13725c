//! The volume against plain byte images, over random requests, cuts, deletions and reopenings.

use proptest::prelude::*;

use super::*;
use crate::orders::{Extent, ExtentState};

pub(super) const BLOCKS: u64 = 24;
const SIZE: usize = (BLOCKS * BLOCK) as usize;

#[derive(Clone, Debug)]
pub(super) enum Request {
    Write { offset: usize, length: usize, fill: u8, fua: bool },
    Zeroes { offset: usize, length: usize, punch: bool },
    Trim { offset: usize, length: usize },
}

#[derive(Clone, Debug)]
pub(super) enum Op {
    Change(Request),
    Flush,
    Cut {
        before: Vec<Request>,
        after: Vec<Request>,
        commit: bool,
    },
    Delete(usize),
    Restore {
        which: usize,
        keep: bool,
    },
    /// To so many blocks.
    Resize(u64),
    Clone(usize),
    DeleteClone(usize),
    Crash,
    Reopen,
    Kill,
}

/// Byte ranges, whole blocks among them.
fn range() -> impl Strategy<Value = (usize, usize)> {
    let block = BLOCK as usize;
    let bytes = (0..SIZE, 1..3 * block).prop_map(|(offset, length)| (offset, length.min(SIZE - offset)));
    let blocks = (0..BLOCKS as usize, 1..6_usize)
        .prop_map(move |(first, count)| (first * block, (count * block).min(SIZE - first * block)));
    prop_oneof![bytes, blocks]
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        4 => (range(), 1_u8.., proptest::bool::weighted(0.1))
            .prop_map(|((offset, length), fill, fua)| Request::Write { offset, length, fill, fua }),
        1 => (range(), any::<bool>()).prop_map(|((offset, length), punch)| Request::Zeroes { offset, length, punch }),
        1 => range().prop_map(|(offset, length)| Request::Trim { offset, length }),
    ]
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    let requests = || proptest::collection::vec(request(), 0..4);
    prop_oneof![
        8 => request().prop_map(Op::Change),
        1 => Just(Op::Flush),
        3 => (requests(), requests(), proptest::bool::weighted(0.7))
            .prop_map(|(before, after, commit)| Op::Cut { before, after, commit }),
        2 => any::<usize>().prop_map(Op::Delete),
        1 => (any::<usize>(), any::<bool>()).prop_map(|(which, keep)| Op::Restore { which, keep }),
        1 => (1..=BLOCKS).prop_map(Op::Resize),
        1 => any::<usize>().prop_map(Op::Clone),
        1 => any::<usize>().prop_map(Op::DeleteClone),
        2 => Just(Op::Crash),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
    ]
}

impl Request {
    pub(super) fn send(&self, device: &dyn Device) -> Outcome {
        match *self {
            Request::Write { offset, length, fill, fua } => {
                device.write(offset as u64, &pattern(offset, length, fill), fua)
            }
            Request::Zeroes { offset, length, punch } => {
                device.write_zeroes(offset as u64, length as u64, punch, false)
            }
            Request::Trim { offset, length } => device.trim(offset as u64, length as u64, false),
        }
    }

    pub(super) fn replay(&self, image: &mut [u8]) {
        match *self {
            Request::Write { offset, length, fill, .. } => {
                image[offset..offset + length].copy_from_slice(&pattern(offset, length, fill));
            }
            Request::Zeroes { offset, length, .. } | Request::Trim { offset, length } => {
                image[offset..offset + length].fill(0);
            }
        }
    }
}

impl Request {
    /// The bytes that it changes.
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        match *self {
            Request::Write { offset, length, .. }
            | Request::Zeroes { offset, length, .. }
            | Request::Trim { offset, length } => offset..offset + length,
        }
    }

    /// Whether it is durable once it is answered.
    pub(super) fn is_durable(&self) -> bool {
        matches!(self, Request::Write { fua: true, .. })
    }
}

/// Not the same byte everywhere, so that a shifted range shows.
fn pattern(offset: usize, length: usize, fill: u8) -> Vec<u8> {
    (offset..offset + length).map(|at| fill ^ (at / 64) as u8).collect()
}

struct Checked {
    root: TempDir,
    volume: Option<Arc<Volume>>,
    live: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    cuts: usize,
    clones: Vec<(Arc<Volume>, Vec<u8>)>,
}

impl Checked {
    fn new() -> Self {
        let (root, volume) = create(BLOCKS);
        let (live, snapshots, clones) = (vec![0; SIZE], Vec::new(), Vec::new());
        Checked { root, volume: Some(volume), live, snapshots, cuts: 0, clones }
    }

    fn volume(&self) -> &Arc<Volume> {
        self.volume.as_ref().unwrap()
    }

    fn apply(&mut self, op: &Op) {
        let device = self.volume().attach().unwrap();
        let size = self.live.len();
        let fits = move |request: &&Request| request.range().end <= size;
        match op {
            Op::Change(request) if !fits(&request) => {}
            Op::Change(request) => {
                done(request.send(&*device));
                request.replay(&mut self.live);
            }
            Op::Flush => done(device.flush()),
            Op::Cut { before, after, commit } => {
                let (attempt, cut) = armed(self.volume());
                for request in before.iter().filter(fits) {
                    done(request.send(&*device));
                    request.replay(&mut self.live);
                }
                let image = self.live.clone();
                strike(self.volume(), &attempt, &cut);
                for request in after.iter().filter(fits) {
                    assert!(held(&request.send(&*device), &cut));
                    request.replay(&mut self.live);
                }
                self.check_crash();
                release_and_seal(self.volume(), &attempt, &cut);
                if *commit {
                    let name = format!("s{}", self.cuts);
                    attempt.commit(&name, uuid::Uuid::nil()).unwrap();
                    self.snapshots.push((name, image));
                    self.cuts += 1;
                } else {
                    attempt.discard();
                }
                self.check_crash();
            }
            Op::Delete(which) if !self.snapshots.is_empty() => {
                let (name, _) = self.snapshots.remove(which % self.snapshots.len());
                self.volume().delete_snapshot(&name).unwrap();
            }
            Op::Restore { which, keep } if !self.snapshots.is_empty() => {
                let (name, image) = self.snapshots[which % self.snapshots.len()].clone();
                drop(device);
                let kept = format!("s{}", self.cuts);
                restore(self.volume(), &name, keep.then_some(&kept));
                let replaced = std::mem::replace(&mut self.live, image);
                if *keep {
                    self.snapshots.push((kept, replaced));
                    self.cuts += 1;
                }
                self.check_crash();
            }
            Op::Resize(blocks) => {
                drop(device);
                self.volume().resize(blocks * BLOCK, true).unwrap();
                self.live.resize((blocks * BLOCK) as usize, 0);
                self.check_crash();
            }
            Op::Clone(which) if !self.snapshots.is_empty() => {
                let (name, image) = &self.snapshots[which % self.snapshots.len()];
                let mut image = image.clone();
                self.cuts += 1;
                let clone = self.volume().clone_snapshot(name, &format!("c{}", self.cuts)).unwrap();
                let change = Request::Write { offset: 100, length: 50, fill: 99, fua: false };
                done(change.send(&*clone.attach().unwrap()));
                change.replay(&mut image);
                self.clones.push((clone, image));
            }
            Op::DeleteClone(which) if !self.clones.is_empty() => {
                let (clone, _) = self.clones.remove(which % self.clones.len());
                clone.delete(false).unwrap();
                self.volume().wake_merger();
            }
            Op::Delete(_) | Op::Restore { .. } | Op::Clone(_) | Op::DeleteClone(_) => {}
            Op::Crash | Op::Kill => self.check_crash(),
            Op::Reopen => {
                drop(device);
                self.volume = None;
                self.volume = Some(open(&self.root).unwrap());
            }
        }
    }

    /// Whatever was not flushed, snapshots are intact; what was flushed is there.
    fn check_crash(&self) {
        let root = crash(&self.root, self.volume());
        self.check_snapshots(&open(&root).unwrap());
        done(self.volume().attach().unwrap().flush());
        let root = crash(&self.root, self.volume());
        let crashed = open(&root).unwrap();
        self.check(&crashed);
        settle(&crashed);
        self.check(&crashed);
    }

    fn check(&self, volume: &Arc<Volume>) {
        assert!(
            content(&*volume.attach().unwrap()) == self.live,
            "the live volume is not the replay of its writes"
        );
        self.check_snapshots(volume);
    }

    fn check_clones(&self) {
        for (clone, image) in &self.clones {
            assert!(content(&*clone.attach().unwrap()) == *image, "clone {} changed", clone.name());
        }
    }

    fn check_snapshots(&self, volume: &Arc<Volume>) {
        let names: Vec<_> = self.snapshots.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(volume.describe().snapshots, names);
        for (name, image) in &self.snapshots {
            assert!(snapshot(volume, name) == *image, "snapshot {name} changed");
            let leaf = blake3::hash(image);
            assert_eq!(volume.digest(name).unwrap(), blake3::hash(leaf.as_bytes()), "one range, one leaf");
            self.check_extents(volume, name, image);
        }
    }
}

impl Checked {
    /// What is called zero is zero, and what is called unchanged is what it was in the other snapshot, on whatever
    /// branch that is.
    fn check_extents(&self, volume: &Volume, name: &str, image: &[u8]) {
        let others = self.snapshots.iter().map(|(name, image)| (Some(name.as_str()), image.as_slice()));
        for (since, older) in others.chain([(None, &[][..])]) {
            let extents = volume.extents(name, since).unwrap();
            let mut end = 0;
            for Extent { offset, length, state } in extents.within(0..u64::MAX) {
                assert_eq!(offset, end, "a gap between extents");
                end = offset + length;
                let range = offset as usize..end as usize;
                match state {
                    ExtentState::Data => {}
                    ExtentState::Zero => assert!(image[range].iter().all(|&byte| byte == 0)),
                    ExtentState::Unchanged => assert!(image[range.clone()] == older[range]),
                }
            }
            assert_eq!(end, image.len() as u64);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn it_reads_as_plain_images_do(ops in proptest::collection::vec(op(), 1..40)) {
        let mut checked = Checked::new();
        for op in &ops {
            checked.apply(op);
            checked.check(checked.volume());
            checked.check_clones();
        }
        settle(checked.volume());
        checked.check(checked.volume());
        checked.check_clones();
        // The base, one for each boundary that has a name or at which restored states part, of which there are fewer
        // than of snapshots, the head, and one that waits for the head to be sealed.
        // Layers that clones share stay, and so do small ones between larger ones.
        if !ops.iter().any(|op| matches!(op, Op::Clone(_) | Op::Resize(_))) {
            assert!(checked.volume().describe().layers <= 2 * checked.snapshots.len() + 2);
        }
        checked.apply(&Op::Reopen);
        checked.check(checked.volume());
    }
}

#[test]
fn the_digest_is_a_tree_over_ranges_and_does_not_depend_on_the_layers() {
    let (root, volume) = create(4 * 1024 + 3);
    let device = volume.attach().unwrap();
    done(device.write(5 << 20, &[1; 5000], false));
    take(&volume, "a");
    done(device.write(9 << 20, &[2; 100], false));
    done(device.trim(5 << 20, 4096, false));
    take(&volume, "b");
    let digest = volume.digest("b").unwrap();
    let image = snapshot(&volume, "b");
    let leaves: Vec<u8> = image.chunks(4 << 20).flat_map(|range| *blake3::hash(range).as_bytes()).collect();
    assert_eq!(leaves.len(), 5 * 32);
    assert_eq!(digest, blake3::hash(&leaves));
    volume.delete_snapshot("a").unwrap();
    settle(&volume);
    assert_eq!(volume.digest("b").unwrap(), digest);
    drop((device, volume));
    assert_eq!(open(&root).unwrap().digest("b").unwrap(), digest);
}
