//! A file system in memory that records what is done to it, and shows what a crash at any point may leave.
//!
//! What may be left is what POSIX allows, which is more than most file systems do: each name that was made, moved or
//! removed since the last sync of its directory has been so or not, whatever happened to others; and each sector of
//! 512 bytes that was changed since the last sync of its file is as it was after any of these changes or before them
//! all, whatever happened to others. Within a sector the changes come in order: there is one page cache. What a failed
//! sync was to make durable is gone from it once the file is opened anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::TryLockError;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use timesync::random::Random;

use super::storage::{Life, Storage, StoredFile};

const SECTOR: u64 = 512;
const NEVER: usize = usize::MAX;

/// What changes a file.
#[derive(Clone, Debug)]
pub enum Change {
    Write {
        offset: u64,
        data: Arc<[u8]>,
    },
    Zero(Range<u64>),
    /// Cut down to nothing, and made this long again.
    Empty {
        length: u64,
    },
    /// Cut off, or zeros added.
    Resize {
        length: u64,
    },
}

/// What changes a directory. A name without a file is a directory.
#[derive(Clone, Debug)]
pub enum NameChange {
    Put { path: PathBuf, file: Option<usize> },
    Move { from: PathBuf, to: PathBuf, file: Option<usize> },
    Remove { path: PathBuf, file: Option<usize> },
}

/// One operation.
#[derive(Clone, Debug)]
pub enum Op {
    Change {
        file: usize,
        change: Change,
    },
    Sync {
        file: usize,
    },
    /// It failed, and will not be told again.
    FailedSync {
        file: usize,
    },
    /// What a failed sync left in the page cache goes.
    Evict {
        file: usize,
    },
    Name(NameChange),
    SyncDirectory(PathBuf),
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Op::Change { file, change: Change::Write { offset, data } } => {
                write!(f, "write {} bytes at {offset} of file {file}", data.len())
            }
            other => write!(f, "{other:?}"),
        }
    }
}

/// A disk that does not do as it is told: what a volume would be on it that had forgotten a step or its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    NoDataSync,
    NoMapSync,
    /// The map's sync takes effect before the data's.
    DataSyncAfterMap,
    /// A directory's sync is forgotten where files were made.
    NoSyncOfNewFiles,
    /// A directory's sync is forgotten where a file was renamed.
    NoSyncOfRename,
    /// The new manifest's sync takes effect after it was renamed.
    ManifestSyncAfterRename,
    /// Nobody can tell a reset from the death of a process.
    NoNewLife,
    /// What is recorded for the case that a process dies is not written.
    NoRecords,
    /// It is not emptied after a failed sync.
    RecordsStay,
}

#[derive(Clone, Debug, Default)]
struct Content {
    /// The name that it was made under.
    name: PathBuf,
    seen: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    /// What the last sync that failed left: the disk has it or not. The next one does not write it,
    unsure: Vec<Change>,
    /// and the page cache shows it for a while only.
    fades: bool,
    pending: Vec<Change>,
}

type Names = BTreeMap<PathBuf, Option<usize>>;

/// A file system between two operations.
#[derive(Clone, Debug, Default)]
pub struct State {
    files: Vec<Content>,
    seen: Names,
    durable: Names,
    pending: Vec<NameChange>,
    /// How often the system was reset,
    life: u64,
    /// and whether that is not to be seen.
    endless: bool,
}

/// Decides what a crash leaves.
#[derive(Debug)]
pub enum Fate {
    /// The nth unsynced operation is kept if bit n is set.
    Chosen { bits: u64, next: u32 },
    /// Each is kept with a probability, in eighths; with `torn`, each of its sectors.
    Drawn { random: Random, kept: u64, torn: bool },
}

impl Fate {
    fn keeps(&mut self) -> bool {
        match self {
            Fate::Chosen { bits, next } => {
                *next += 1;
                *bits >> (*next - 1) & 1 == 1
            }
            Fate::Drawn { random, kept, .. } => (random.below(8) as u64) < *kept,
        }
    }
}

impl NameChange {
    fn directory(&self) -> Option<&Path> {
        match self {
            NameChange::Put { path, .. } | NameChange::Remove { path, .. } => path.parent(),
            NameChange::Move { to, .. } => to.parent(),
        }
    }

    fn apply(&self, names: &mut Names) {
        let mut forget = |path: &PathBuf, file: &Option<usize>| {
            if names.get(path) == Some(file) {
                names.remove(path);
            }
        };
        match self {
            NameChange::Remove { path, file } => forget(path, file),
            NameChange::Move { from, to, file } => {
                forget(from, file);
                names.insert(to.clone(), *file);
            }
            NameChange::Put { path, file } => {
                names.insert(path.clone(), *file);
            }
        }
    }
}

impl Change {
    /// The bytes it changes in a file that is `length` long.
    fn range(&self, length: u64) -> Range<u64> {
        match self {
            Change::Write { offset, data } => *offset..offset + data.len() as u64,
            Change::Zero(range) => range.clone(),
            Change::Empty { length: new } => 0..length.max(*new),
            Change::Resize { length: new } => *new.min(&length)..length.max(*new),
        }
    }

    fn length(&self, before: u64) -> u64 {
        match self {
            Change::Empty { length } | Change::Resize { length } => *length,
            _ => before.max(self.range(0).end),
        }
    }

    fn apply_whole(&self, content: &mut Vec<u8>) {
        let length = self.length(content.len() as u64);
        let range = self.range(content.len() as u64);
        content.resize(content.len().max(range.end as usize), 0);
        self.apply(content, &range);
        content.resize(length as usize, 0);
    }

    /// Does the part of it that lies in `part`, a range inside its own.
    fn apply(&self, content: &mut [u8], part: &Range<u64>) {
        let target = &mut content[part.start as usize..part.end as usize];
        match self {
            Change::Write { offset, data } => {
                target.copy_from_slice(&data[(part.start - offset) as usize..(part.end - offset) as usize]);
            }
            Change::Zero(_) | Change::Empty { .. } | Change::Resize { .. } => target.fill(0),
        }
    }
}

impl Content {
    fn change(&mut self, change: &Change) {
        change.apply_whole(Arc::make_mut(&mut self.seen));
        self.pending.push(change.clone());
    }

    /// What is durable, with all changes since but for those that a failed sync left.
    fn without_unsure(&self) -> Arc<Vec<u8>> {
        let mut content = self.durable.to_vec();
        self.pending.iter().for_each(|change| change.apply_whole(&mut content));
        Arc::new(content)
    }

    /// What is never synced, as nothing of it counts after a crash.
    fn is_log(&self) -> bool {
        self.name.extension().is_some_and(|extension| extension == "log")
    }

    /// What a crash leaves. Of a file that must not count then, all: that is the worst.
    fn crash(&self, fate: &mut Fate) -> Arc<Vec<u8>> {
        if self.is_log() {
            return Arc::clone(&self.seen);
        }
        if self.unsure.is_empty() && self.pending.is_empty() {
            return Arc::clone(&self.durable);
        }
        let mut content = self.durable.to_vec();
        let (mut length, mut length_is_lost) = (content.len() as u64, false);
        // What was lost once shows nothing later.
        let mut lost = BTreeSet::new();
        for change in self.unsure.iter().chain(&self.pending) {
            let range = change.range(content.len() as u64);
            content.resize(content.len().max(range.end as usize), 0);
            let whole = fate.keeps();
            for sector in range.start / SECTOR..range.end.div_ceil(SECTOR) {
                let kept = if matches!(fate, Fate::Drawn { torn: true, .. }) { fate.keeps() } else { whole };
                if !kept {
                    lost.insert(sector);
                }
                if !lost.contains(&sector) {
                    let part = range.start.max(sector * SECTOR)..range.end.min((sector + 1) * SECTOR);
                    change.apply(&mut content, &part);
                }
            }
            length_is_lost |= !whole;
            if !length_is_lost {
                length = change.length(length);
            }
        }
        content.resize(length as usize, 0);
        Arc::new(content)
    }
}

impl State {
    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Change { file, change } => self.files[*file].change(change),
            Op::Sync { file } => {
                let content = &mut self.files[*file];
                let all = !content.fades;
                content.durable = if all { Arc::clone(&content.seen) } else { content.without_unsure() };
                content.pending.clear();
                content.unsure.clear();
            }
            Op::FailedSync { file } => {
                let content = &mut self.files[*file];
                content.unsure.append(&mut content.pending);
                content.fades = true;
            }
            Op::Evict { file } => {
                let content = &mut self.files[*file];
                content.seen = content.without_unsure();
                (content.unsure, content.fades) = (Vec::new(), false);
            }
            Op::Name(change) => {
                if let NameChange::Put { path, file: Some(file) } = change
                    && *file == self.files.len()
                {
                    self.files.push(Content { name: path.clone(), ..Content::default() });
                }
                change.apply(&mut self.seen);
                self.pending.push(change.clone());
            }
            Op::SyncDirectory(directory) => {
                let (synced, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending)
                    .into_iter()
                    .partition(|change| change.directory() == Some(directory));
                synced.iter().for_each(|change| change.apply(&mut self.durable));
                self.pending = rest;
            }
        }
    }

    /// How many operations a crash may lose.
    pub fn unsynced(&self) -> u32 {
        let files = self.files.iter().filter(|file| !file.is_log());
        let changes: usize = files.map(|file| file.unsure.len() + file.pending.len()).sum();
        (self.pending.len() + changes) as u32
    }

    /// What a crash leaves.
    pub fn crash(&self, fate: &mut Fate) -> State {
        let mut names = self.durable.clone();
        for change in &self.pending {
            if fate.keeps() {
                change.apply(&mut names);
            }
        }
        // What lies in a directory that is gone is gone with it.
        let has = |path: &Path| path == Path::new("/") || names.get(path) == Some(&None);
        let names: Names = names
            .iter()
            .filter(|(path, _)| path.parent().is_some_and(has))
            .map(|(path, file)| (path.clone(), *file))
            .collect();
        let crashed = |file: &Content| {
            let content = file.crash(fate);
            let (seen, durable) = (Arc::clone(&content), content);
            Content { name: file.name.clone(), seen, durable, ..Content::default() }
        };
        let files = self.files.iter().map(crashed).collect();
        let (life, endless) = (self.life + u64::from(!self.endless), self.endless);
        State { files, seen: names.clone(), durable: names, pending: Vec::new(), life, endless }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Before the first operation.
    began: State,
    state: State,
    log: Vec<Op>,
    fault: Option<Fault>,
    /// How many more operations succeed before one fails.
    until_failure: Option<usize>,
    deferred: Vec<Op>,
    locked: BTreeSet<usize>,
}

/// The file system. Its root, `/`, is there.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
}

impl Memory {
    /// From now on it does this wrongly.
    pub fn fail(&self, fault: Fault) {
        let mut inner = self.inner();
        inner.fault = Some(fault);
        if fault == Fault::NoNewLife {
            (inner.began.endless, inner.state.endless) = (true, true);
        }
    }

    /// What came up again after a crash.
    pub fn after(crash: State) -> Self {
        let memory = Memory::default();
        memory.inner().began = crash.clone();
        memory.inner().state = crash;
        memory
    }

    /// After this many operations that change or sync something, one fails, and does nothing.
    pub fn fail_after(&self, operations: usize) {
        self.inner().until_failure = Some(operations);
    }

    /// Whether it has failed as [`Memory::fail_after`] asked.
    pub fn has_failed(&self) -> bool {
        self.inner().until_failure == Some(NEVER)
    }

    /// What the next process finds when this one is killed: all that was done, none of it synced by that.
    pub fn after_kill(&self) -> Self {
        let inner = self.inner();
        let (began, state, log) = (inner.began.clone(), inner.state.clone(), inner.log.clone());
        let (fault, until_failure) = (inner.fault, inner.until_failure);
        let inner = Inner { began, state, log, fault, until_failure, ..Inner::default() };
        Memory { inner: Arc::new(Mutex::new(inner)) }
    }

    /// The state at present.
    #[cfg(feature = "simulation")]
    pub fn state(&self) -> State {
        self.inner().state.clone()
    }

    /// Number of operations so far.
    pub fn position(&self) -> usize {
        self.inner().log.len()
    }

    /// The state before the first operation, and all of them.
    pub fn recording(&self) -> (State, Vec<Op>) {
        let inner = self.inner();
        (inner.began.clone(), inner.log.clone())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each operation is applied as a whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For an operation that may fail.
    fn try_inner(&self) -> io::Result<MutexGuard<'_, Inner>> {
        #[cfg(feature = "simulation")]
        crate::sync::pause();
        let mut inner = self.inner();
        match inner.until_failure {
            Some(0) => {
                inner.until_failure = Some(NEVER);
                Err(io::ErrorKind::StorageFull.into())
            }
            left => {
                inner.until_failure = left.map(|left| if left == NEVER { NEVER } else { left - 1 });
                Ok(inner)
            }
        }
    }
}

impl Inner {
    fn record(&mut self, op: Op) {
        self.state.apply(&op);
        self.log.push(op);
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        match self.state.seen.get(path) {
            Some(Some(file)) => Ok(*file),
            Some(None) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn find_or_make(&mut self, path: &Path) -> io::Result<usize> {
        match self.find(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = self.state.files.len();
                self.record(Op::Name(NameChange::Put { path: path.to_owned(), file: Some(file) }));
                Ok(file)
            }
            found => found,
        }
    }

    fn sync(&mut self, file: usize) {
        let name = self.state.files[file].name.to_string_lossy().into_owned();
        let is_map = name.ends_with(".map");
        let is_data = name.ends_with(".dat");
        match self.fault {
            Some(Fault::NoDataSync) if is_data => {}
            Some(Fault::NoMapSync) if is_map => {}
            Some(Fault::DataSyncAfterMap) if is_data => self.deferred.push(Op::Sync { file }),
            Some(Fault::ManifestSyncAfterRename) if name.ends_with(".new") => {
                self.deferred.push(Op::Sync { file });
            }
            _ => {
                self.record(Op::Sync { file });
                self.take_effect();
            }
        }
    }

    fn take_effect(&mut self) {
        for op in std::mem::take(&mut self.deferred) {
            self.record(op);
        }
    }
}

impl Storage for Memory {
    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.try_inner()?;
        if inner.state.seen.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.record(Op::Name(NameChange::Put { path: path.to_owned(), file: None }));
        Ok(())
    }

    fn create(&self, path: &Path, length: u64) -> io::Result<Box<dyn StoredFile>> {
        let mut inner = self.try_inner()?;
        let file = inner.find_or_make(path)?;
        inner.record(Op::Change { file, change: Change::Empty { length } });
        Ok(Box::new(MemoryFile { memory: self.clone(), file, locks: false }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        let mut inner = self.inner();
        let file = inner.find(path)?;
        if inner.state.files[file].fades {
            inner.record(Op::Evict { file });
        }
        drop(inner);
        Ok(Box::new(MemoryFile { memory: self.clone(), file, locks: false }))
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn StoredFile>, TryLockError> {
        let mut inner = self.inner();
        let file = inner.find_or_make(path).map_err(TryLockError::Error)?;
        if !inner.locked.insert(file) {
            return Err(TryLockError::WouldBlock);
        }
        Ok(Box::new(MemoryFile { memory: self.clone(), file, locks: true }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.try_inner()?;
        let file = Some(inner.find(from)?);
        inner.record(Op::Name(NameChange::Move { from: from.to_owned(), to: to.to_owned(), file }));
        if inner.fault == Some(Fault::ManifestSyncAfterRename) {
            inner.take_effect();
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.try_inner()?;
        let file = Some(inner.find(path)?);
        inner.record(Op::Name(NameChange::Remove { path: path.to_owned(), file }));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.try_inner()?;
        let file = Some(inner.find(from)?);
        if inner.state.seen.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inner.record(Op::Name(NameChange::Put { path: to.to_owned(), file }));
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.try_inner()?;
        if inner.state.seen.keys().any(|name| name.parent() == Some(path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        inner.record(Op::Name(NameChange::Remove { path: path.to_owned(), file: None }));
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.inner().state.seen.contains_key(path))
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        let inner = self.inner();
        Ok(inner.state.seen.keys().filter(|path| path.parent() == Some(directory)).cloned().collect())
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        let mut inner = self.try_inner()?;
        let renamed = inner.state.pending.iter().any(|change| matches!(change, NameChange::Move { .. }));
        match inner.fault {
            Some(Fault::NoSyncOfNewFiles) if !renamed => {}
            Some(Fault::NoSyncOfRename) if renamed => {}
            _ => inner.record(Op::SyncDirectory(directory.to_owned())),
        }
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryFile {
    memory: Memory,
    file: usize,
    locks: bool,
}

impl MemoryFile {
    fn seen(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.memory.inner().state.files[self.file].seen)
    }

    fn change(&self, change: Change) -> io::Result<()> {
        self.memory.try_inner()?.record(Op::Change { file: self.file, change });
        Ok(())
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        if self.locks {
            self.memory.inner().locked.remove(&self.file);
        }
    }
}

impl StoredFile for MemoryFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        #[cfg(feature = "simulation")]
        crate::sync::pause();
        let seen = self.seen();
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(seen.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let inner = self.memory.inner();
        if inner.fault == Some(Fault::NoRecords) && inner.state.files[self.file].is_log() {
            return Ok(());
        }
        drop(inner);
        self.change(Change::Write { offset, data: data.into() })
    }

    fn zero(&self, range: &Range<u64>, _keep_space: bool) -> io::Result<()> {
        self.change(Change::Zero(range.clone()))
    }

    fn sync_data(&self) -> io::Result<()> {
        #[cfg(feature = "simulation")]
        crate::sync::disk();
        match self.memory.try_inner() {
            Ok(mut inner) => {
                inner.sync(self.file);
                Ok(())
            }
            Err(error) => {
                self.memory.inner().record(Op::FailedSync { file: self.file });
                Err(error)
            }
        }
    }

    fn life(&self) -> io::Result<Life> {
        let mut life = [0; 32];
        life[..8].copy_from_slice(&self.memory.inner().state.life.to_le_bytes());
        life[8..16].copy_from_slice(&(self.file as u64).to_le_bytes());
        Ok(Life(life))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.seen().len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let inner = self.memory.inner();
        let failed = inner.state.files.iter().any(|file| file.fades);
        if inner.fault == Some(Fault::RecordsStay) && failed && inner.state.files[self.file].is_log() {
            return Ok(());
        }
        drop(inner);
        self.change(Change::Resize { length })
    }

    fn links(&self) -> io::Result<u64> {
        let inner = self.memory.inner();
        Ok(inner.state.seen.values().filter(|file| **file == Some(self.file)).count() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        let blocks = self.seen().chunks(4096).filter(|block| block.iter().any(|&byte| byte != 0)).count();
        Ok(blocks as u64 * 4096)
    }

    fn next_data(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let seen = self.seen();
        let mut bytes = range.clone();
        let start = bytes.find(|&at| seen[at as usize] != 0)?;
        let end = bytes.find(|&at| seen[at as usize] == 0).unwrap_or(range.end);
        Some(start..end)
    }
}
