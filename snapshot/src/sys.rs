//! The system calls that need `unsafe`: those that nix does not wrap.
#![expect(unsafe_code, reason = "the one module that may: see each block")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

mod requests {
    // Declared as reading and writing an int, though the kernel ignores it (linux/fs.h).
    nix::ioctl_readwrite!(fifreeze, b'X', 119, nix::libc::c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, nix::libc::c_int);
}

/// Freezes the file system that `file` is on: returns when no write is under way and none can begin. That it is so outlives
/// this process.
///
/// # Errors
/// EBUSY where somebody has frozen it already, EOPNOTSUPP where it cannot be frozen, EPERM without `CAP_SYS_ADMIN`.
pub fn freeze(file: BorrowedFd<'_>) -> nix::Result<()> {
    let mut unused = 0;
    // SAFETY: the kernel takes no argument; the pointer is to an int that lives until the call returns.
    unsafe { requests::fifreeze(file.as_raw_fd(), &raw mut unused) }.map(|_| ())
}

/// Ends the freeze of the file system that `file` is on.
///
/// # Errors
/// EINVAL where it is not frozen.
pub fn thaw(file: BorrowedFd<'_>) -> nix::Result<()> {
    let mut unused = 0;
    // SAFETY: the kernel takes no argument; the pointer is to an int that lives until the call returns.
    unsafe { requests::fithaw(file.as_raw_fd(), &raw mut unused) }.map(|_| ())
}

/// Has a program killed when the thread that starts it ends, however it ends.
pub fn die_with_us(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call and touches no memory that another thread could have
    // left locked or half written.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
}
