//! The system calls that need `unsafe`: those that nix does not wrap.
#![expect(unsafe_code, reason = "the one module that may: see each block")]

mod send;

use std::io;
use std::mem::MaybeUninit;

pub use send::send_all;

/// How the kernel steers `CLOCK_REALTIME` now: `adjtimex(2)` with `modes` 0, which changes nothing and needs no rights.
///
/// # Errors
/// The system call's: a sandbox may forbid it.
pub fn clock_steering() -> io::Result<libc::timex> {
    // SAFETY: timex consists of integers only, for which all zeros is a value.
    let mut timex: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the pointer is to a whole timex that lives until the call returns; the kernel writes nothing else.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(timex) }
}
