//! File systems on volumes, as machines have them that are not virtual: `qemu-storage-daemon` shows an export as a file
//! through FUSE, and the kernel mounts that file through a loop device.
//!
//! Everything is mounted in a mount namespace of the test's thread, and what serves a mount dies with that thread: so
//! nothing is left behind even when the test is killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};

use crate::eventually;
use crate::tools::run;

/// Runs `work` on a thread whose mounts nobody else sees. Processes that it starts see them.
///
/// # Panics
/// When the namespace cannot be made, which needs root; and when `work` does.
pub fn with_own_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let inside = || {
        let separated = unshare(CloneFlags::CLONE_NEWNS);
        assert!(separated.is_ok(), "no mount namespace (it needs root): {separated:?}");
        run(Command::new("mount").args(["--make-rprivate", "/"]));
        work()
    };
    thread::scope(|scope| {
        let ended = scope.spawn(inside).join();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A program that is killed when the calling thread ends, however it ends.
pub fn dies_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]).stdin(Stdio::null());
    command
}

/// An export as a file, which is gone when this is dropped.
#[derive(Debug)]
pub struct Attached {
    daemon: Child,
    /// The file, as large as the export.
    pub file: PathBuf,
}

impl Attached {
    /// Makes an export of the NBD server at a Unix socket appear at `file`. What is acknowledged is durable only after
    /// an fsync, as with any disk that has a cache. A connection that breaks is made again for a minute; what was
    /// acknowledged before is not sent again.
    ///
    /// # Panics
    /// When it does not.
    pub fn new(socket: &Path, export: &str, file: &Path) -> Attached {
        std::fs::write(file, "").unwrap();
        let (socket, path) = (socket.display(), file.display());
        let node = format!(
            "driver=nbd,node-name=volume,server.type=unix,server.path={socket},export={export},\
             reconnect-delay=60,discard=unmap"
        );
        let fuse = format!("type=fuse,id=file,node-name=volume,mountpoint={path},writable=on");
        let mut command = dies_with_us("qemu-storage-daemon");
        let daemon = command.args(["--blockdev", &node, "--export", &fuse]).spawn().unwrap();
        let mut attached = Attached { daemon, file: file.to_owned() };
        eventually(|| {
            let ended = attached.daemon.try_wait().unwrap();
            assert!(ended.is_none(), "qemu-storage-daemon ended: {ended:?}");
            let length = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
            if length > 0 { Ok(()) } else { Err("the export is not mounted yet".to_owned()) }
        });
        attached
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // It holds nothing back: what was written to the file is on its way to the server, or was never acknowledged.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        unmount(&self.file);
    }
}

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl Kind {
    /// Makes an empty one.
    ///
    /// # Panics
    /// When that fails.
    pub fn make(self, file: &Path) {
        let mut command = match self {
            Kind::Ext4 => Command::new("mkfs.ext4"),
            Kind::Xfs => Command::new("mkfs.xfs"),
            Kind::Btrfs => Command::new("mkfs.btrfs"),
        };
        run(command.arg("-q").arg(if self == Kind::Ext4 { "-F" } else { "-f" }).arg(file));
    }

    /// Checks one that is not mounted and whose journal was replayed, changing nothing.
    ///
    /// # Panics
    /// When it is not clean.
    pub fn check(self, file: &Path) {
        match self {
            Kind::Ext4 => run(Command::new("e2fsck").arg("-fn").arg(file)),
            Kind::Xfs => run(Command::new("xfs_repair").args(["-n", "-f"]).arg(file)),
            Kind::Btrfs => run(Command::new("btrfs").arg("check").arg(file)),
        };
    }

    /// Mounts the file system in `file` at a new directory. That replays its journal.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(self, file: &Path, at: &Path) -> Mounted {
        std::fs::create_dir(at).unwrap();
        // XFS refuses what has the same identity as something mounted, such as a snapshot of it.
        Mounted::new(file, at, if self == Kind::Xfs { "loop,nouuid" } else { "loop" })
    }
}

/// A mounted file system; its loop device goes with it.
#[derive(Debug)]
pub struct Mounted {
    /// Where.
    pub at: PathBuf,
}

impl Mounted {
    /// Mounts a device, or a file that is as good as one, at a directory that is there.
    ///
    /// # Panics
    /// When that fails.
    pub fn new(device: &Path, at: &Path, options: &str) -> Mounted {
        run(Command::new("mount").args(["-o", options]).arg(device).arg(at));
        Mounted { at: at.to_owned() }
    }

    /// Unmounts it, which writes everything out.
    ///
    /// # Panics
    /// When something in it is open.
    pub fn unmount(self) {
        run(Command::new("umount").arg(&self.at));
        std::fs::remove_dir(&self.at).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.at);
    }
}

/// As far as it is mounted; also what is still in use, which then goes when it no longer is.
fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(path).stderr(Stdio::null()).status();
}
