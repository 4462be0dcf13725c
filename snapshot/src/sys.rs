//! The system calls that need `unsafe`.
#![expect(unsafe_code, reason = "the one module that may: see the block")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};

/// Has the kernel kill the command's process when the thread that starts it ends, also by `kill -9`.
pub(crate) fn dies_with_this_thread(command: &mut Command) {
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
