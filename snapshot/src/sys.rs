//! The system calls that need `unsafe`: those that nix does not wrap.
#![expect(unsafe_code, reason = "the one module that may: see each block")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

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

/// The length of a device-mapper request's header, `struct dm_ioctl` (linux/dm-ioctl.h).
pub const DM_HEADER: usize = 312;

/// A request to the device mapper: `message` begins with a header that says how long it is, and is overwritten with the
/// answer.
///
/// # Errors
/// What the device mapper says; EINVAL where the header does not give the message's length.
pub fn device_mapper(control: BorrowedFd<'_>, command: u8, message: &mut [u8]) -> nix::Result<()> {
    let length = message.get(12..16).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_ne_bytes(*bytes));
    if message.len() < DM_HEADER || length.map(|length| length as usize) != Some(message.len()) {
        return Err(nix::errno::Errno::EINVAL);
    }
    let request = nix::request_code_readwrite!(0xfd, command, DM_HEADER);
    // SAFETY: the kernel reads and writes as many bytes as the header says at 12..16, which is the length of `message`, as
    // was just checked; it lives, and is ours alone, until the call returns.
    let outcome = unsafe { nix::libc::ioctl(control.as_raw_fd(), request, message.as_mut_ptr()) };
    nix::errno::Errno::result(outcome).map(|_| ())
}

/// Has the kernel kill the program when the thread that starts it ends, however it ends, also by `kill -9`.
pub fn die_with_us(command: &mut Command) {
    let parent = getpid();
    let arrange = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before the kernel was asked.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    };
    // SAFETY: between fork and exec only async-signal-safe functions may be called. `prctl` and `getppid` are bare system
    // calls; the closure takes no lock and allocates nothing, its errors are numbers.
    unsafe { command.pre_exec(arrange) };
}
