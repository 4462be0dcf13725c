//! The layout of a qcow2 image that is written once, from its start to its end. Pure: clusters in, bytes and where they
//! go out. Version 3 of the format (QEMU, `docs/interop/qcow2`), without compression, encryption or internal snapshots.
//!
//! | clusters | hold |
//! | --- | --- |
//! | 0 | the header, its extensions, the backing file's name |
//! | then | the L1 table |
//! | then | data clusters; after those of each 512 MiB of the guest the L2 table that lists them |
//! | then | the refcount blocks, then the refcount table: every cluster of the file is used once |
//!
//! The header goes last, so that an image whose writing was cut short is none.

/// Bytes in a cluster, the unit of everything in the image: QEMU's own default.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes in the longest name of a backing file.
pub const MAX_BACKING_NAME: usize = 1023;

const CLUSTER_BITS: u32 = 16;
/// Entries in an L1 or L2 table's cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Refcounts of 16 bits in a cluster.
const REFCOUNTS: u64 = CLUSTER / 2;
const REFCOUNT_ORDER: u32 = 4;
const HEADER_LENGTH: u32 = 104;
const MAGIC: &[u8; 4] = b"QFI\xfb";
const BACKING_FORMAT: u32 = 0xe279_2aca;
/// In an L1 or L2 entry: the cluster's refcount is exactly 1.
const COPIED: u64 = 1 << 63;
/// In an L2 entry: the cluster reads as zeros, whatever the backing file has there.
const ZERO: u64 = 1;

/// Bytes that go to an offset of the image's file.
pub type Piece = (u64, Vec<u8>);

/// An image's backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// Its name as the image has it: absolute, or relative to the image's directory; up to [`MAX_BACKING_NAME`] bytes.
    pub name: String,
    /// `qcow2` or `raw`.
    pub format: &'static str,
}

/// An image that is being written. Guest clusters come in rising order.
#[derive(Debug)]
pub struct Layout {
    size: u64,
    backing: Option<Backing>,
    /// Clusters of the file that are given away.
    used: u64,
    l1: Vec<u64>,
    /// The L2 table under way: its index in the L1 table, and its entries.
    l2: Option<(u64, Vec<u64>)>,
}

impl Layout {
    /// An image of `size` bytes in which nothing is allocated: it reads as its backing file, or as zeros.
    pub fn new(size: u64, backing: Option<Backing>) -> Self {
        let l1 = vec![0; size.div_ceil(CLUSTER * ENTRIES) as usize];
        let used = 1 + (l1.len() as u64).div_ceil(ENTRIES);
        Layout { size, backing, used, l1, l2: None }
    }

    /// Where the data of a guest cluster goes, and an L2 table that is complete now, if one is.
    pub fn data(&mut self, cluster: u64) -> (u64, Option<Piece>) {
        let done = self.turn_to(cluster);
        let offset = self.allocate(1);
        self.list(cluster, offset | COPIED);
        (offset, done)
    }

    /// Makes a guest cluster read as zeros. Returns an L2 table that is complete now, if one is.
    pub fn zero(&mut self, cluster: u64) -> Option<Piece> {
        // What is not allocated reads as zeros, unless there is something below.
        self.backing.as_ref()?;
        let done = self.turn_to(cluster);
        self.list(cluster, ZERO);
        done
    }

    /// All that is left to be written; the header comes last.
    pub fn finish(mut self) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = self.close_table().into_iter().collect();
        pieces.push((CLUSTER, big_endian(&self.l1)));

        // The refcount blocks and their table are counted too.
        let (mut blocks, mut tables) = (0, 0);
        while (self.used + blocks + tables).div_ceil(REFCOUNTS) > blocks || blocks.div_ceil(ENTRIES) > tables
        {
            blocks = (self.used + blocks + tables).div_ceil(REFCOUNTS);
            tables = blocks.div_ceil(ENTRIES);
        }
        let first = self.allocate(blocks);
        let table = self.allocate(tables);
        for block in 0..blocks {
            let counted = (self.used - block * REFCOUNTS).min(REFCOUNTS) as usize;
            let mut refcounts = [0, 1].repeat(counted);
            refcounts.resize(CLUSTER as usize, 0);
            pieces.push((first + block * CLUSTER, refcounts));
        }
        let listed: Vec<u64> = (0..blocks).map(|block| first + block * CLUSTER).collect();
        let mut listed = big_endian(&listed);
        // The file ends with a whole cluster.
        listed.resize((tables * CLUSTER) as usize, 0);
        pieces.push((table, listed));
        pieces.push((0, self.header(table, tables)));
        pieces
    }

    fn allocate(&mut self, clusters: u64) -> u64 {
        let offset = self.used * CLUSTER;
        self.used += clusters;
        offset
    }

    /// Makes the L2 table of a guest cluster the one under way.
    fn turn_to(&mut self, cluster: u64) -> Option<Piece> {
        let index = cluster / ENTRIES;
        if self.l2.as_ref().is_some_and(|(current, _)| *current == index) {
            return None;
        }
        let done = self.close_table();
        self.l2 = Some((index, vec![0; ENTRIES as usize]));
        done
    }

    fn list(&mut self, cluster: u64, entry: u64) {
        if let Some((_, entries)) = &mut self.l2 {
            entries[(cluster % ENTRIES) as usize] = entry;
        }
    }

    fn close_table(&mut self) -> Option<Piece> {
        let (index, entries) = self.l2.take()?;
        let offset = self.allocate(1);
        self.l1[index as usize] = offset | COPIED;
        Some((offset, big_endian(&entries)))
    }

    fn header(&self, refcount_table: u64, refcount_table_clusters: u64) -> Vec<u8> {
        let mut extensions = Vec::new();
        if let Some(Backing { format, .. }) = &self.backing {
            extensions.extend(BACKING_FORMAT.to_be_bytes());
            extensions.extend((format.len() as u32).to_be_bytes());
            extensions.extend(format.as_bytes());
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0; 8]);
        let name = self.backing.as_ref().map_or(&[][..], |backing| backing.name.as_bytes());
        let name_at = if name.is_empty() { 0 } else { u64::from(HEADER_LENGTH) + extensions.len() as u64 };
        let mut header = MAGIC.to_vec();
        let mut u32 = |value: u32| header.extend(value.to_be_bytes());
        u32(3);
        u32((name_at >> 32) as u32);
        u32(name_at as u32);
        u32(name.len() as u32);
        u32(CLUSTER_BITS);
        header.extend(self.size.to_be_bytes());
        header.extend([0; 4]); // not encrypted
        header.extend((self.l1.len() as u32).to_be_bytes());
        header.extend(CLUSTER.to_be_bytes());
        header.extend(refcount_table.to_be_bytes());
        header.extend((refcount_table_clusters as u32).to_be_bytes());
        header.extend([0; 4 + 8]); // no snapshots
        header.extend([0; 3 * 8]); // no features beyond version 3's
        header.extend(REFCOUNT_ORDER.to_be_bytes());
        header.extend(HEADER_LENGTH.to_be_bytes());
        header.extend(extensions);
        header.extend(name);
        header
    }
}

/// The virtual size of a qcow2 image, if its first 32 bytes are given and say that it is one.
pub fn virtual_size(head: &[u8; 32]) -> Option<u64> {
    let mut size = [0; 8];
    size.copy_from_slice(&head[24..]);
    head.starts_with(MAGIC).then_some(u64::from_be_bytes(size))
}

fn big_endian(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}
