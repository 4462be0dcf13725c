//! Every file operation of a volume, behind one small trait: a crash can only lose what went through here unsynced.
//! The real one is [`Disk`]; tests have one in memory that can crash at any point (`memory.rs`).

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::{VolumeError, at_path};

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
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn exists(&self, path: &Path) -> io::Result<bool>;
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// An open file. It stays usable when its name is removed.
pub(super) trait StoredFile: Debug + Send + Sync {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes a range inside the file zero, and gives its space back or (`keep_space`) allocates it.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the file system cannot; nothing has changed then.
    fn zero(&self, range: &Range<u64>, keep_space: bool) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
    fn length(&self) -> io::Result<u64>;
    /// Bytes of disk.
    fn allocated(&self) -> io::Result<u64>;
    /// Whether a range is known to be unwritten.
    fn is_hole(&self, range: &Range<u64>) -> bool;
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
        Ok(Box::new(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        Ok(Box::new(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn StoredFile>, TryLockError> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let file = file.map_err(TryLockError::Error)?;
        file.try_lock()?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
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

impl StoredFile for File {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn zero(&self, range: &Range<u64>, keep_space: bool) -> io::Result<()> {
        let mode = if keep_space {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        } else {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
        };
        let length = range.end - range.start;
        Ok(fallocate(self, mode, range.start.cast_signed(), length.cast_signed())?)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.metadata()?.blocks() * 512)
    }

    fn is_hole(&self, range: &Range<u64>) -> bool {
        match lseek(self, range.start.cast_signed(), Whence::SeekData) {
            Ok(next) => next.cast_unsigned() >= range.end,
            Err(error) => error == nix::errno::Errno::ENXIO,
        }
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

    pub(super) fn remove(&self, name: &str) -> Result<(), VolumeError> {
        let path = self.path.join(name);
        self.storage.remove(&path).map_err(at_path(&path))
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
