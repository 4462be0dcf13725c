//! The system call that needs `unsafe`: nix does not wrap it.
#![expect(unsafe_code, reason = "the one module that may: see each block")]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

mod requests {
    use nix::libc;
    nix::ioctl_write_ptr_bad!(tunsetiff, libc::TUNSETIFF, libc::ifreq);
}

/// Makes a virtual Ethernet interface in this thread's network namespace. What is sent on it is read from the file, a
/// frame at a time, and what is written to the file is received on it. It is gone when the file is closed. Reads do not
/// wait.
///
/// # Errors
/// The system's: it needs root.
pub fn open_tap(name: &str) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: the structure consists of integers, characters and a union of such and of pointers that nobody follows;
    // all zeros is a value of each.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The last octet stays 0.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the pointer is to a whole ifreq that lives until the call returns.
    unsafe { requests::tunsetiff(file.as_raw_fd(), &raw const request) }?;
    Ok(file)
}
