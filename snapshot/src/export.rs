//! Exporting a snapshot of a volume to a file: read over NBD, written as a raw image or as qcow2.
//!
//! The file gets its name last: it is written as `NAME.part`, checked against the snapshot's digest where that is known,
//! synced, renamed, and its directory synced. Whatever has the name is whole.

pub mod qcow2;

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use qcow2::{Backing, CLUSTER, Layout, MAX_BACKING_NAME, Piece};

use crate::digest::{RANGE, Tree};
use crate::nbd::{Client, ClientError};
use crate::orders::{Extent, ExtentState};

/// Bytes in a block, the unit of a raw image's holes.
const BLOCK: u64 = 4096;

/// What kind of file an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The plain content; what is zero is a hole of the file.
    Raw,
    /// QEMU's format, version 3.
    Qcow2,
}

/// What to export, and to where.
#[derive(Clone, Copy, Debug)]
pub struct Order<'a> {
    /// The snapshot's extents, in order and without gaps, up to its size.
    pub extents: &'a [Extent],
    /// Its digest, which what was read must have; with unchanged extents it is not looked at.
    pub digest: Option<&'a str>,
    /// The file to make.
    pub file: &'a Path,
    /// Its format; qcow2 where anything is unchanged.
    pub format: Format,
    /// The export that the unchanged extents are left to.
    pub backing: Option<&'a Path>,
}

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes that were read; the others are zero or unchanged.
    pub read: u64,
    /// Whether the content was checked against the snapshot's digest.
    pub checked: bool,
}

/// Why there is no export. Each is a sentence; nothing is left under the export's name.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Nothing is overwritten.
    #[error("{} exists; choose another name or remove it", .0.display())]
    Exists(PathBuf),
    /// Somebody else is about to make the same file.
    #[error("{} is being written by another export", .0.display())]
    UnderWay(PathBuf),
    /// A raw image cannot leave anything to another.
    #[error("a raw image cannot be incremental; use qcow2")]
    RawIncrement,
    /// The file that the older export is said to be.
    #[error("{} cannot be what this export builds on: {why}", .path.display())]
    Backing {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The list of extents does not describe the export that was read.
    #[error("the host's list of extents does not fit its volume: {0}")]
    Extents(String),
    /// What was read is not what was snapshotted.
    #[error(
        "what was read has the digest {found}, but the snapshot's is {expected}: it does not read as it did; `coeval \
         snapshot verify` tells where"
    )]
    Digest {
        /// As stored.
        expected: String,
        /// As exported.
        found: String,
    },
    /// Reading failed.
    #[error(transparent)]
    Nbd(#[from] ClientError),
    /// Writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// How.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> ExportError + use<> {
    let path = path.to_owned();
    move |source| ExportError::Io { path, source }
}

/// Exports what `source` has open. `progress` hears how many bytes of its size are done.
///
/// # Errors
/// [`ExportError`]; there is no file of the name then.
pub fn export(
    source: &mut Client,
    order: &Order<'_>,
    mut progress: impl FnMut(u64),
) -> Result<Exported, ExportError> {
    let size = source.size();
    check_extents(order.extents, size)?;
    if order.backing.is_some() && order.format == Format::Raw {
        return Err(ExportError::RawIncrement);
    }
    let backing = order.backing.map(|path| find_backing(path, order.file, size)).transpose()?;
    let is_full = backing.is_none();
    if is_full && order.extents.iter().any(|extent| extent.state == ExtentState::Unchanged) {
        return Err(ExportError::Extents("some are unchanged, but nothing older is there".to_owned()));
    }
    let mut target = Partial::create(order.file, order.format, size, backing)?;
    let (mut tree, mut buffer) = (Tree::new(), vec![0; RANGE.min(size) as usize]);
    let (mut rest, mut read) = (order.extents, 0);
    for start in (0..size).step_by(RANGE as usize) {
        let range = start..size.min(start + RANGE);
        let content = &mut buffer[..(range.end - range.start) as usize];
        let runs = runs_of(&mut rest, &range, target.grain());
        let all_zero = matches!(runs[..], [(_, ExtentState::Zero)]);
        for (run, state) in runs {
            let part = &mut content[(run.start - start) as usize..(run.end - start) as usize];
            match state {
                ExtentState::Data => {
                    source.read(run.start, part)?;
                    read += run.end - run.start;
                    target.data(run.start, part)?;
                }
                ExtentState::Zero => {
                    part.fill(0);
                    target.zero(&run)?;
                }
                ExtentState::Unchanged => {}
            }
        }
        if is_full {
            tree.push(if all_zero {
                tree.leaf_of_zeros(range.end - range.start)
            } else {
                blake3::hash(content)
            });
        }
        progress(range.end);
    }
    let expected = order.digest.filter(|_| is_full);
    if let Some(expected) = expected {
        let found = tree.root().to_hex().to_string();
        if found != expected {
            return Err(ExportError::Digest { expected: expected.to_owned(), found });
        }
    }
    target.finish()?;
    Ok(Exported { read, checked: expected.is_some() })
}

/// An export goes by the list alone, so a gap in it would be a hole in a backup.
fn check_extents(extents: &[Extent], size: u64) -> Result<(), ExportError> {
    let mut end = 0;
    for extent in extents {
        let next = end + extent.length;
        if extent.offset != end || next <= end || next > size || !extent.offset.is_multiple_of(BLOCK) {
            return Err(ExportError::Extents(format!("there is a gap or an overlap at byte {end}")));
        }
        end = next;
    }
    if end != size {
        return Err(ExportError::Extents(format!("it ends at byte {end} of {size}")));
    }
    Ok(())
}

/// The runs of `range` in units of `grain`: one that holds different things is data. Takes from `rest` what ends in it.
fn runs_of(rest: &mut &[Extent], range: &Range<u64>, grain: u64) -> Vec<(Range<u64>, ExtentState)> {
    let mut runs: Vec<(Range<u64>, ExtentState)> = Vec::new();
    let mut at = range.start;
    while at < range.end {
        while let Some((_, others)) = rest.split_first().filter(|(it, _)| it.offset + it.length <= at) {
            *rest = others;
        }
        let Some(first) = rest.first() else { break };
        let grain_end = range.end.min(at + grain);
        // Whole grains that lie in the first extent; or one that does not.
        let whole = range.end.min(first.offset + first.length);
        let whole = if whole == range.end { whole } else { whole / grain * grain };
        let (end, state) = if whole >= grain_end {
            (whole, first.state)
        } else {
            (grain_end, state_of(rest, &(at..grain_end)))
        };
        match runs.last_mut() {
            Some((last, before)) if *before == state => last.end = end,
            _ => runs.push((at..end, state)),
        }
        at = end;
    }
    runs
}

/// What a grain holds that the first one of `extents` ends in.
fn state_of(extents: &[Extent], grain: &Range<u64>) -> ExtentState {
    let mut touching =
        extents.iter().take_while(|extent| extent.offset < grain.end).map(|extent| extent.state);
    match touching.next() {
        Some(first) if touching.all(|state| state == first) => first,
        _ => ExtentState::Data,
    }
}

/// Looks at the older export, and says how an image in the place of `file` names it.
fn find_backing(path: &Path, file: &Path, size: u64) -> Result<Backing, ExportError> {
    let unfit = |why: String| ExportError::Backing { path: path.to_owned(), why };
    let read = || {
        let mut head = [0; 32];
        let mut opened = File::open(path)?;
        let length = opened.metadata()?.len();
        let is_long = length >= head.len() as u64;
        if is_long {
            opened.read_exact(&mut head)?;
        }
        let qcow2 = qcow2::virtual_size(&head);
        Ok::<_, io::Error>((qcow2.unwrap_or(length), if qcow2.is_some() { "qcow2" } else { "raw" }))
    };
    let (found, format) = read().map_err(|error| unfit(error.to_string()))?;
    if found != size {
        return Err(unfit(format!(
            "it has {found} bytes and the snapshot {size}; after a change of size, take a full export"
        )));
    }
    let directory = directory_of(file);
    let resolve = |path: &Path| fs::canonicalize(path).map_err(at(path));
    let name = relative(&resolve(directory)?, &resolve(path)?);
    let name = name.to_str().map(str::to_owned).ok_or_else(|| unfit("its name is not UTF-8".to_owned()))?;
    if name.len() > MAX_BACKING_NAME {
        return Err(unfit(format!("its name has more than {MAX_BACKING_NAME} bytes")));
    }
    Ok(Backing { name, format })
}

/// The way from a directory to a file, both absolute. It begins with `./` or `../`: QEMU takes what comes before a colon
/// for a protocol, but not if a slash comes first.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Component::ParentDir);
    let way: PathBuf = up.chain(to.components().skip(common)).collect();
    if way.starts_with("..") { way } else { Path::new(".").join(way) }
}

fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// An export that is being written, under another name. Dropped before it is finished, it is removed.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    to: PathBuf,
    file: File,
    /// None: raw.
    layout: Option<Layout>,
    finished: bool,
}

impl Partial {
    fn create(
        to: &Path,
        format: Format,
        size: u64,
        backing: Option<Backing>,
    ) -> Result<Partial, ExportError> {
        let mut name: OsString = to.as_os_str().to_owned();
        name.push(".part");
        let path = PathBuf::from(name);
        // One that was interrupted is written over.
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ExportError::UnderWay(path)),
            Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
        let layout = match format {
            Format::Raw => None,
            Format::Qcow2 => Some(Layout::new(size, backing)),
        };
        let partial = Partial { path, to: to.to_owned(), file, layout, finished: false };
        // With the lock, so that of two exports one sees the other's.
        if to.try_exists().map_err(at(to))? {
            return Err(ExportError::Exists(to.to_owned()));
        }
        let length = if partial.layout.is_some() { 0 } else { size };
        partial.file.set_len(0).and_then(|()| partial.file.set_len(length)).map_err(at(&partial.path))?;
        Ok(partial)
    }

    /// The unit in which it can tell what data is.
    fn grain(&self) -> u64 {
        if self.layout.is_some() { CLUSTER } else { BLOCK }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        self.file.write_all_at(data, offset).map_err(at(&self.path))
    }

    fn write_piece(&self, piece: Option<Piece>) -> Result<(), ExportError> {
        piece.map_or(Ok(()), |(offset, bytes)| self.write(offset, &bytes))
    }

    fn data(&mut self, offset: u64, data: &[u8]) -> Result<(), ExportError> {
        if self.layout.is_none() {
            return self.write(offset, data);
        }
        for (cluster, data) in (offset / CLUSTER..).zip(data.chunks(CLUSTER as usize)) {
            let Some(layout) = &mut self.layout else { break };
            let (place, done) = layout.data(cluster);
            self.write_piece(done)?;
            // Of the last one, the file ends with what follows it.
            self.write(place, data)?;
        }
        Ok(())
    }

    fn zero(&mut self, run: &Range<u64>) -> Result<(), ExportError> {
        for cluster in run.start / CLUSTER..run.end.div_ceil(CLUSTER) {
            // A raw image has a hole there from the start.
            let Some(layout) = &mut self.layout else { break };
            let done = layout.zero(cluster);
            self.write_piece(done)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), ExportError> {
        for piece in self.layout.take().map(Layout::finish).unwrap_or_default() {
            self.write_piece(Some(piece))?;
        }
        self.file.sync_all().map_err(at(&self.path))?;
        fs::rename(&self.path, &self.to).map_err(at(&self.to))?;
        self.finished = true;
        let directory = directory_of(&self.to);
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // It is not called a finished export, removed or not.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests;
