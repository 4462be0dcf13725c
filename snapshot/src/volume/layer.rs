//! A layer on disk: a sparse data file in which block n stands at n·4096, and a map that says which blocks count.
//! The base (layer 0) is a plain raw image without a map: every block of it counts.
//!
//! # Order of writes
//!
//! - A map bit in memory is set after its data was written, so a failed write leaves the block as it was. In between it is
//!   recorded for the case that this process dies (`unflushed.rs`).
//! - A sync first *copies* the dirty map pages, then syncs the data, then writes the copies, then syncs the map. A bit
//!   therefore reaches the disk only after the data it stands for: after a crash no block shows what was never written
//!   to it. A page goes over its older slot (`page.rs`), so a torn write costs nothing that was flushed.
//! - Opening a layer syncs both its files first. A process that was killed may have left writes that the system has in
//!   memory only: they are read, so the next flush has to cover them; and a map's page must not go over its older slot
//!   before the newer one is durable. Then what that process recorded is taken into the map, and synced as well.
//! - After a failed `fdatasync` the kernel may have dropped the data and will not say so again. Every later sync of the
//!   layer fails, until the volume is opened anew, and the map is as it was last on disk then: what was recorded since
//!   does not count (`unflushed.rs`).

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tracing::warn;

use super::map::{Image, Map, State};
use super::page::{self, SLOT};
use super::storage::{Directory, StoredFile};
use super::unflushed::{self, Unflushed, log_name};
use super::{BLOCK, VolumeError, at_path, lock};
use crate::sync::Mutex;

/// The id of the base, which has no map.
pub(super) const BASE: u32 = 0;

/// A map and where it is kept.
#[derive(Debug)]
pub(super) struct MapFile {
    file: Box<dyn StoredFile>,
    map: Map,
    /// Of a layer that takes requests.
    unflushed: OnceLock<Unflushed>,
}

impl MapFile {
    fn new(file: Box<dyn StoredFile>, map: Map) -> Self {
        MapFile { file, map, unflushed: OnceLock::new() }
    }
}

/// A layer of an open volume.
#[derive(Debug)]
pub(super) struct Layer {
    pub id: u32,
    /// In bytes.
    pub size: u64,
    data: Box<dyn StoredFile>,
    map: Option<MapFile>,
    /// Requests that may still write to this layer.
    in_flight: AtomicU64,
    /// Set after a write and before its reply, cleared before a sync: a sync covers all that was answered.
    unsynced: AtomicBool,
    failed: AtomicBool,
    syncing: Mutex<()>,
}

/// A request that is registered as in flight on a layer.
#[derive(Debug)]
pub(super) struct Ticket {
    layer: Arc<Layer>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.layer.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The data file of a layer.
pub(super) fn data_name(id: u32) -> String {
    if id == BASE { format!("{id:06}.raw") } else { format!("{id:06}.dat") }
}

/// The map file of a layer.
pub(super) fn map_name(id: u32) -> String {
    format!("{id:06}.map")
}

/// What is wrong with a page of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PageFault {
    /// A write of one of its copies tore, or the medium decays. The other one counts.
    OneCopy,
    /// Nobody knows which of its blocks count.
    BothCopies,
}

/// Bytes in the file of a map of so many blocks.
pub(super) fn map_length(blocks: u64) -> u64 {
    page::offset(blocks.div_ceil(page::BLOCKS_PER_PAGE) as usize, 0)
}

/// Fills `map` from its file, and tells `fault` of each page with which something is wrong, and where it is.
pub(super) fn load_map(
    file: &dyn StoredFile,
    layer: u32,
    map: &Map,
    mut fault: impl FnMut(u64, PageFault),
) -> io::Result<()> {
    let mut slots = vec![0; 2 * SLOT];
    for number in 0..map.pages() {
        let offset = page::offset(number, 0);
        file.read(offset, &mut slots)?;
        match page::decode(&slots, layer, number) {
            None => fault(offset, PageFault::BothCopies),
            Some(stored) => {
                if stored.torn {
                    fault(offset, PageFault::OneCopy);
                }
                if stored.generation > 0 {
                    map.load(number, stored.generation, &stored.words);
                }
            }
        }
    }
    Ok(())
}

/// Opens a file of a layer. It may be longer than expected: a merge has begun to give it another size, or not ended it.
fn open_file(directory: &Directory, name: &str, expected: u64) -> Result<Box<dyn StoredFile>, VolumeError> {
    let file = directory.open(name)?;
    let path = directory.path().join(name);
    let found = file.length().map_err(at_path(&path))?;
    if found < expected {
        let why = format!("it has {found} bytes instead of {expected}");
        return Err(VolumeError::Corrupt { file: path, offset: found, why });
    }
    Ok(file)
}

impl Layer {
    /// Makes an empty layer (or a base of zeros), files synced; the caller syncs the directory.
    ///
    /// Files of that name are left-overs of a structural change that failed, and are overwritten.
    pub(super) fn create(directory: &Directory, id: u32, size: u64) -> Result<Arc<Layer>, VolumeError> {
        let create = |name: String, length: u64| {
            let file = directory.create(&name, length)?;
            file.sync_data().map_err(at_path(&directory.path().join(name)))?;
            Ok::<_, VolumeError>(file)
        };
        let data = create(data_name(id), size)?;
        let map = if id == BASE {
            None
        } else {
            let map = Map::new(size / BLOCK);
            Some(MapFile::new(create(map_name(id), map_length(size / BLOCK))?, map))
        };
        let layer = Layer::new(id, size, data, map);
        layer.begin_recording(directory)?;
        Ok(layer)
    }

    /// Opens a layer that will only be read, as it is: nothing is synced, written or removed. Where neither slot of a map
    /// page is valid, its blocks are [`State::Unknown`].
    ///
    /// # Errors
    /// [`VolumeError::Corrupt`] where a file is too short.
    pub(super) fn open_damaged(directory: &Directory, id: u32, size: u64) -> Result<Arc<Layer>, VolumeError> {
        let data = open_file(directory, &data_name(id), size)?;
        if id == BASE {
            return Ok(Layer::new(id, size, data, None));
        }
        let map = Map::new(size / BLOCK);
        let file = open_file(directory, &map_name(id), map_length(size / BLOCK))?;
        let loaded = load_map(&*file, id, &map, |offset, fault| {
            if fault == PageFault::BothCopies {
                let first = offset / page::offset(1, 0) * page::BLOCKS_PER_PAGE;
                map.set(first..map.blocks().min(first + page::BLOCKS_PER_PAGE), State::Unknown);
            }
        });
        loaded.map_err(at_path(&directory.path().join(map_name(id))))?;
        if directory.has(&log_name(id)) {
            unflushed::replay(directory, id, &map)?;
        }
        Ok(Layer::new(id, size, data, Some(MapFile::new(file, map))))
    }

    /// Opens a layer.
    ///
    /// # Errors
    /// [`VolumeError::Corrupt`] where neither slot of a map page is valid, or a file is too short.
    pub(super) fn open(directory: &Directory, id: u32, size: u64) -> Result<Arc<Layer>, VolumeError> {
        let synced =
            |result: io::Result<()>| result.inspect_err(|_| unflushed::give_up_recorded(directory, id));
        let open = |name: String, length: u64| {
            let file = open_file(directory, &name, length)?;
            synced(file.sync_data()).map_err(at_path(&directory.path().join(name)))?;
            Ok::<_, VolumeError>(file)
        };
        let data = open(data_name(id), size)?;
        if id == BASE {
            return Ok(Layer::new(id, size, data, None));
        }
        let (map, path) = (Map::new(size / BLOCK), directory.path().join(map_name(id)));
        let file = open(map_name(id), map_length(size / BLOCK))?;
        let mut corrupt = None;
        let loaded = load_map(&*file, id, &map, |offset, fault| match fault {
            PageFault::OneCopy => {
                warn!(file = %path.display(), offset, "one copy of a map page is not valid; the other one is used");
            }
            PageFault::BothCopies => corrupt = corrupt.or(Some(offset)),
        });
        loaded.map_err(at_path(&path))?;
        if let Some(offset) = corrupt {
            let why = "neither copy of the map page there is valid".to_owned();
            return Err(VolumeError::Corrupt { file: path, offset, why });
        }
        let recorded = directory.has(&log_name(id));
        if recorded {
            unflushed::replay(directory, id, &map)?;
        }
        let layer = Layer::new(id, size, data, Some(MapFile::new(file, map)));
        if recorded {
            layer.unsynced.store(true, Ordering::SeqCst);
            synced(layer.sync()).map_err(at_path(&path))?;
            directory.remove(&log_name(id))?;
        }
        Ok(layer)
    }

    /// Records from now on what it answers, for the case that this process dies. The caller syncs the directory.
    pub(super) fn begin_recording(&self, directory: &Directory) -> Result<(), VolumeError> {
        if let Some(map) = &self.map {
            let begun = Unflushed::begin(directory, self.id)?;
            // Recorded already, if it fails.
            let _ = map.unflushed.set(begun);
        }
        Ok(())
    }

    fn unflushed(&self) -> Option<&Unflushed> {
        self.map.as_ref()?.unflushed.get()
    }

    /// The same layer with another size, in the same files, for a merge (`resize.rs`). This one takes no requests any
    /// more, and is only read from then on.
    pub(super) fn resized(&self, directory: &Directory, size: u64) -> Result<Arc<Layer>, VolumeError> {
        let grown = || {
            // What is opened below is what is on disk.
            self.seal()?;
            for (file, now, then) in self.lengths(size) {
                if then > now {
                    file.set_length(now)?;
                    file.set_length(then)?;
                    file.sync_data()?;
                }
            }
            Ok(())
        };
        grown().map_err(at_path(&directory.path().join(data_name(self.id))))?;
        let resized = Layer::open(directory, self.id, size)?;
        if let Some(map) = &resized.map {
            let (end, page_end) =
                (self.size / BLOCK, (self.size / BLOCK).next_multiple_of(page::BLOCKS_PER_PAGE));
            map.map.set(end..page_end.min(size / BLOCK).max(end), State::Absent);
        }
        Ok(resized)
    }

    /// Its files, with the length of each at this layer's size and at another one.
    fn lengths(&self, other: u64) -> impl Iterator<Item = (&dyn StoredFile, u64, u64)> {
        let data = (&*self.data, self.size, other);
        let map = self.map.as_ref();
        let map = map.map(|map| (&*map.file, map_length(self.size / BLOCK), map_length(other / BLOCK)));
        std::iter::once(data).chain(map)
    }

    /// Whether a file of it has another name, so that it belongs to another volume too, or may.
    pub(super) fn is_shared(&self) -> bool {
        self.lengths(0).any(|(file, ..)| !matches!(file.links(), Ok(1)))
    }

    /// Cuts off what its files have beyond their end, unless another volume has them too.
    pub(super) fn trim(&self) -> io::Result<()> {
        if self.is_shared() {
            return Ok(());
        }
        for (file, length, _) in self.lengths(0) {
            if file.length()? > length {
                file.set_length(length)?;
            }
        }
        Ok(())
    }

    pub(super) fn new(id: u32, size: u64, data: Box<dyn StoredFile>, map: Option<MapFile>) -> Arc<Layer> {
        Arc::new(Layer {
            id,
            size,
            data,
            map,
            in_flight: AtomicU64::new(0),
            unsynced: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            syncing: Mutex::new(()),
        })
    }

    /// Registers a request as in flight.
    pub(super) fn register(self: &Arc<Self>) -> Ticket {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        Ticket { layer: Arc::clone(self) }
    }

    /// Whether a registered request has not finished.
    pub(super) fn is_in_use(&self) -> bool {
        self.in_flight.load(Ordering::SeqCst) > 0
    }

    /// What the layer says about a block. Beyond its end it is zero, whatever lies below (`resize.rs`).
    pub(super) fn state(&self, block: u64) -> State {
        if block >= self.size / BLOCK {
            return State::Zero;
        }
        self.map.as_ref().map_or(State::Data, |map| map.map.get(block))
    }

    /// The next run of blocks that this layer says something about. Not for the base.
    pub(super) fn next_run(&self, from: u64) -> Option<(Range<u64>, State)> {
        self.map.as_ref()?.map.next_run(from)
    }

    /// The first run of blocks in a range that this layer says something about: of the base, that may hold data; and what
    /// lies beyond its end.
    pub(super) fn next_known(&self, blocks: &Range<u64>) -> Option<(Range<u64>, State)> {
        let end = self.size / BLOCK;
        let within = blocks.start..blocks.end.min(end);
        let known = match &self.map {
            _ if within.is_empty() => None,
            // A file system's own blocks may be smaller.
            None => self
                .data
                .next_data(&(within.start * BLOCK..within.end * BLOCK))
                .map(|data| (data.start / BLOCK..data.end.div_ceil(BLOCK), State::Data)),
            Some(map) => map.map.next_run_in(&within),
        };
        known.or_else(|| (end < blocks.end).then(|| (blocks.start.max(end)..blocks.end, State::Zero)))
    }

    /// Reads from the data file, whatever the map says.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.data.read(offset, buffer)
    }

    /// Writes to the data file; the blocks that lie wholly in the range count from then on.
    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.data.write(offset, data)?;
        self.changed(&(offset.div_ceil(BLOCK)..(offset + data.len() as u64) / BLOCK), State::Data)
    }

    /// Copies whole blocks of another layer's data file, without passing them through this process; they count from then
    /// on. False where the file system cannot: nothing counts then that did not.
    pub(super) fn copy_from(&self, other: &Layer, blocks: &Range<u64>) -> io::Result<bool> {
        let bytes = blocks.start * BLOCK..blocks.end * BLOCK;
        match self.data.copy_from(&*other.data, &bytes) {
            Ok(()) => {
                self.changed(blocks, State::Data)?;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Blocks whose content is in this layer's data file. Not for the base.
    pub(super) fn data_blocks(&self) -> u64 {
        let runs = std::iter::successors(self.next_run(0), |(run, _)| self.next_run(run.end));
        runs.filter(|(_, state)| *state == State::Data).map(|(run, _)| run.end - run.start).sum()
    }

    /// Makes whole blocks read as zeros, with `punch` without keeping space for them.
    pub(super) fn zero(&self, blocks: Range<u64>, punch: bool) -> io::Result<()> {
        match self.zero_fast(blocks.clone(), punch) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
            result => return result,
        }
        let (offset, length) = (blocks.start * BLOCK, (blocks.end - blocks.start) * BLOCK);
        let zeros = vec![0; length.min(1 << 20) as usize];
        for at in (offset..offset + length).step_by(zeros.len()) {
            let count = zeros.len().min((offset + length - at) as usize);
            self.data.write(at, &zeros[..count])?;
        }
        self.changed(&blocks, if punch { State::Zero } else { State::Data })
    }

    /// The same, if the file system can do it without writing zeros.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where it cannot; nothing has changed then.
    pub(super) fn zero_fast(&self, blocks: Range<u64>, punch: bool) -> io::Result<()> {
        self.data.zero(&(blocks.start * BLOCK..blocks.end * BLOCK), !punch)?;
        self.changed(&blocks, if punch { State::Zero } else { State::Data })
    }

    /// Has the file system fetch a range of the data file.
    pub(super) fn prefetch(&self, range: &Range<u64>) {
        self.data.prefetch(range);
    }

    fn changed(&self, blocks: &Range<u64>, state: State) -> io::Result<()> {
        if let Some(MapFile { map, unflushed, .. }) = &self.map
            && !map.has_settled(blocks, state)
        {
            let set = || map.set(blocks.clone(), state);
            match unflushed.get() {
                Some(unflushed) => unflushed.record(blocks, state, set)?,
                None => set(),
            }
        }
        // One that is set is cleared, if ever, later than this look, and the sync that does so begins later still. So
        // connections do not contend for it.
        if !self.unsynced.load(Ordering::SeqCst) {
            self.unsynced.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether a range of the data file is a hole, as far as the file system says.
    pub(super) fn is_hole(&self, range: &Range<u64>) -> bool {
        self.data.is_hole(range)
    }

    /// Makes everything durable that was written before the call.
    pub(super) fn sync(&self) -> io::Result<()> {
        let _alone = lock(&self.syncing);
        if self.failed.load(Ordering::SeqCst) {
            return Err(io::Error::other(
                "an earlier sync failed: open the volume anew to see what is there",
            ));
        }
        if !self.unsynced.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        let recorded = self.unflushed().map(|unflushed| (unflushed, unflushed.begin_sync()));
        let images = self.map.as_ref().map(|map| map.map.take_dirty()).unwrap_or_default();
        self.synced(self.data.sync_data())?;
        self.write_pages(&images)?;
        if let Some((unflushed, mark)) = recorded {
            unflushed.synced(mark);
        }
        Ok(())
    }

    /// Makes a layer durable that takes no requests any more, with both slots of its map alike: from then on one of
    /// them may decay without loss.
    pub(super) fn seal(&self) -> io::Result<()> {
        self.sync()?;
        let _alone = lock(&self.syncing);
        let images = self.map.as_ref().map(|map| map.map.all()).unwrap_or_default();
        self.write_pages(&images)?;
        self.unflushed().map_or(Ok(()), Unflushed::empty)
    }

    fn write_pages(&self, images: &[Image]) -> io::Result<()> {
        let Some(MapFile { file, map, .. }) = &self.map else { return Ok(()) };
        for image in images {
            let offset = page::offset(image.page, image.generation);
            if let Err(error) = file.write(offset, &image.encode(self.id)) {
                // Nothing is lost, a later sync may find room: the same generation goes to the same slot again.
                map.not_written(images);
                self.unsynced.store(true, Ordering::SeqCst);
                return Err(error);
            }
        }
        if !images.is_empty() {
            self.synced(file.sync_data())?;
        }
        map.written(images);
        Ok(())
    }

    fn synced(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.failed.store(true, Ordering::SeqCst);
            if let Some(unflushed) = self.unflushed() {
                unflushed.give_up();
            }
        }
        result
    }

    /// Bytes allocated on disk.
    pub(super) fn allocated(&self) -> u64 {
        let files = [Some(&self.data), self.map.as_ref().map(|map| &map.file)];
        files.into_iter().flatten().filter_map(|file| file.allocated().ok()).sum()
    }
}
