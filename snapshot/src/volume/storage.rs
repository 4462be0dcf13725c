//! Every file operation of a volume, behind one small trait: a crash can only lose what went through here unsynced.
//! The real one is [`Disk`]; tests have one in memory that can crash at any point (`memory.rs`).

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, copy_file_range, fallocate, posix_fadvise};
use nix::unistd::{Whence, lseek};
use timesync::identity::BootId;

use super::{VolumeError, at_path, lock};
use crate::sync::Mutex;

/// Bytes written by one system call, in bounds that are multiples of it. Linux keeps what one call writes in one piece of
/// its page cache where it can, and then looks at all of that piece for every later write into it: after a write of
/// 1 MiB, one of 4 KiB takes ten times as long. The long write itself is hardly slower in pieces (docs/speed.md).
const PIECE: u64 = 32 << 10;

/// A file system, as far as a volume needs one.
///
/// Nothing is durable by itself: the content and length of a file are after [`StoredFile::sync_data`], names that were
/// made, changed or removed are after [`Storage::sync_directory`]. Until then each may or may not survive a crash,
/// whatever happened later.
pub(super) trait Storage: Debug + Send + Sync {
    fn create_directory(&self, path: &Path) -> io::Result<()>;
    /// Makes a file of `length` zeros. One of that name is emptied.
    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn StoredFile>>;
    /// Opens a file to read and write it.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>>;
    /// Opens or makes a file and locks it for as long as it is open.
    fn lock(&self, path: &Path) -> Result<Box<dyn StoredFile>, TryLockError>;
    /// Replaces `to`, if there is one, in one step.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file one more name, on the same file system. There must be none of that name.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    fn exists(&self, path: &Path) -> io::Result<bool>;
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// A file's life in the page cache: as long as it is the same, what was written to the file's directory is there, synced
/// or not. No reset leaves it the same, and a copy of a file has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Life(pub [u8; 32]);

/// An open file. It stays usable when its name is removed.
pub(super) trait StoredFile: Debug + Send + Sync {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range inside the file zero, and gives its space back or (`keep_space`) allocates it.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the file system cannot; nothing has changed then.
    fn zero(&self, range: &Range<u64>, keep_space: bool) -> io::Result<()>;
    /// Copies a range of another file to the same place in this one, within the file system.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where it cannot; some of the range may have been copied then.
    fn copy_from(&self, _other: &dyn StoredFile, _range: &Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// The file itself, if it is one of the system's.
    fn as_file(&self) -> Option<&File> {
        None
    }
    fn sync_data(&self) -> io::Result<()>;
    fn life(&self) -> io::Result<Life>;
    fn length(&self) -> io::Result<u64>;
    /// Cuts the file off, or adds zeros.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// How many names it has.
    fn links(&self) -> io::Result<u64>;
    /// Bytes of disk.
    fn allocated(&self) -> io::Result<u64>;
    /// The first part of a range that may have been written; the rest of the range before it is zero for certain.
    fn next_data(&self, range: &Range<u64>) -> Option<Range<u64>>;
    /// Is told that a range will be read soon.
    fn prefetch(&self, _range: &Range<u64>) {}
    /// Whether a range is known to be unwritten.
    fn is_hole(&self, range: &Range<u64>) -> bool {
        self.next_data(range).is_none()
    }
}

/// The file system itself.
#[derive(Debug)]
pub(super) struct Disk;

impl Storage for Disk {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn StoredFile>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.set_len(length)?;
        Ok(Box::new(DiskFile::new(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        Ok(Box::new(DiskFile::new(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn StoredFile>, TryLockError> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(Box::new(DiskFile::new(file)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

/// A file of the system's.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    /// Held by whoever writes more than one piece. The system lets one thread write to a file at a time, and the others
    /// spin for each of their pieces; here they sleep, once for each write.
    long_write: Mutex<()>,
}

impl DiskFile {
    pub(super) fn new(file: File) -> Self {
        DiskFile { file, long_write: Mutex::new(()) }
    }
}

impl StoredFile for DiskFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        let _alone = (data.len() as u64 > PIECE).then(|| lock(&self.long_write));
        while !data.is_empty() {
            let (piece, rest) = data.split_at(data.len().min((PIECE - offset % PIECE) as usize));
            self.file.write_all_at(piece, offset)?;
            (offset, data) = (offset + piece.len() as u64, rest);
        }
        Ok(())
    }

    fn zero(&self, range: &Range<u64>, keep_space: bool) -> io::Result<()> {
        let mode = if keep_space {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        } else {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
        };
        let length = range.end - range.start;
        Ok(fallocate(&self.file, mode, range.start.cast_signed(), length.cast_signed())?)
    }

    fn copy_from(&self, other: &dyn StoredFile, range: &Range<u64>) -> io::Result<()> {
        let Some(other) = other.as_file() else { return Err(io::ErrorKind::Unsupported.into()) };
        let (mut from, mut to) = (range.start.cast_signed(), range.start.cast_signed());
        while to.cast_unsigned() < range.end {
            let left = (range.end - to.cast_unsigned()) as usize;
            match copy_file_range(other, Some(&mut from), &self.file, Some(&mut to), left) {
                // Nothing, before the end of the range: some file systems' way of saying that they cannot.
                Ok(0) | Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn life(&self) -> io::Result<Life> {
        let (boot, file) = (BootId::of_this_machine()?, self.file.metadata()?);
        let mut life = [0; 32];
        life[..16].copy_from_slice(boot.0.as_bytes());
        life[16..24].copy_from_slice(&file.dev().to_le_bytes());
        life[24..].copy_from_slice(&file.ino().to_le_bytes());
        Ok(Life(life))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn links(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.nlink())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    fn prefetch(&self, range: &Range<u64>) {
        let (offset, length) = (range.start.cast_signed(), (range.end - range.start).cast_signed());
        // It is advice: a file system that does not take it reads later.
        let _ = posix_fadvise(&self.file, offset, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }

    fn next_data(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let start = match lseek(&self.file, range.start.cast_signed(), Whence::SeekData) {
            Ok(next) => next.cast_unsigned(),
            Err(Errno::ENXIO) => return None,
            // Where nobody can tell, all may be data.
            Err(_) => return Some(range.clone()),
        };
        if start >= range.end {
            return None;
        }
        let end =
            lseek(&self.file, start.cast_signed(), Whence::SeekHole).map_or(range.end, i64::cast_unsigned);
        Some(start..end.clamp(start + 1, range.end))
    }
}

/// A directory in a storage. Its errors name the file.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    storage: Arc<dyn Storage>,
    path: PathBuf,
}

impl Directory {
    pub(super) fn new(storage: Arc<dyn Storage>, path: &Path) -> Self {
        Directory { storage, path: path.to_owned() }
    }

    pub(crate) fn on_disk(path: &Path) -> Self {
        Directory::new(Arc::new(Disk), path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn child(&self, name: &str) -> Directory {
        Directory { storage: Arc::clone(&self.storage), path: self.path.join(name) }
    }

    /// The directory that it lies in.
    pub(super) fn parent(&self) -> Directory {
        let path = self.path.parent().unwrap_or(&self.path).to_owned();
        Directory { storage: Arc::clone(&self.storage), path }
    }

    /// Makes it; one that is there is taken as it is.
    pub(super) fn make(&self) -> Result<(), VolumeError> {
        match self.storage.create_directory(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            result => result.map_err(at_path(&self.path)),
        }
    }

    pub(super) fn create(&self, name: &str, length: u64) -> Result<Box<dyn StoredFile>, VolumeError> {
        let path = self.path.join(name);
        self.storage.create(&path, length).map_err(at_path(&path))
    }

    pub(super) fn open(&self, name: &str) -> Result<Box<dyn StoredFile>, VolumeError> {
        let path = self.path.join(name);
        self.storage.open(&path).map_err(at_path(&path))
    }

    /// A whole file.
    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, VolumeError> {
        let file = self.open(name)?;
        let read = || {
            let mut content = vec![0; usize::try_from(file.length()?).map_err(io::Error::other)?];
            file.read(0, &mut content)?;
            Ok(content)
        };
        read().map_err(at_path(&self.path.join(name)))
    }

    /// None if somebody else holds the lock.
    pub(super) fn lock(&self, name: &str) -> Result<Option<Box<dyn StoredFile>>, VolumeError> {
        let path = self.path.join(name);
        match self.storage.lock(&path) {
            Ok(file) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(at_path(&path)(error)),
        }
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> Result<(), VolumeError> {
        let to = self.path.join(to);
        self.storage.rename(&self.path.join(from), &to).map_err(at_path(&to))
    }

    /// Gives the file of another directory a name in this one, too.
    pub(super) fn link_from(&self, path: &Path, name: &str) -> Result<(), VolumeError> {
        let to = self.path.join(name);
        self.storage.link(path, &to).map_err(at_path(&to))
    }

    pub(super) fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let path = self.path.join(name);
        self.storage.remove(&path).map_err(at_path(&path))
    }

    /// Removes the directory itself, if it is empty.
    pub(super) fn remove_if_empty(&self) -> Result<(), VolumeError> {
        match self.storage.remove_directory(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            result => result.map_err(at_path(&self.path)),
        }
    }

    /// Whether there is a file of that name. If nobody can tell, there is: opening it will say why it cannot be opened.
    pub(super) fn has(&self, name: &str) -> bool {
        // A plain file has no files in it.
        let path = self.path.join(name);
        self.storage.exists(&path).unwrap_or_else(|error| error.kind() != io::ErrorKind::NotADirectory)
    }

    /// The names of its files and directories, but for those that no program of ours can have made.
    pub(super) fn names(&self) -> Result<Vec<String>, VolumeError> {
        let paths = self.storage.list(&self.path).map_err(at_path(&self.path))?;
        Ok(paths.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    /// Makes created, renamed and removed names durable.
    pub(super) fn sync(&self) -> Result<(), VolumeError> {
        self.storage.sync_directory(&self.path).map_err(at_path(&self.path))
    }
}
