//! The system calls that need `unsafe`: those that nix does not wrap.
#![expect(unsafe_code, reason = "the one module that may: see each block")]

mod page;
mod send;

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

pub use page::SharedPage;
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

/// Has IPv4 packets of `socket` sent with "don't fragment" and the identification 0, which is all that an atomic datagram
/// needs (RFC 6864 section 4). Without, the kernel draws a number for each from a shared pool: 4 % of an answer's time.
///
/// # Errors
/// The system call's.
pub fn send_unnumbered(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mode: libc::c_int = libc::IP_PMTUDISC_PROBE;
    let length = u32::try_from(size_of_val(&mode)).unwrap_or(u32::MAX);
    let (level, option) = (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
    // SAFETY: the pointer is to an int of that length, which lives until the call returns; the kernel only reads it.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const mode).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

mod requests {
    nix::ioctl_readwrite!(ptp_sys_offset_precise, b'=', 8, libc::ptp_sys_offset_precise);
    nix::ioctl_readwrite!(ptp_sys_offset_extended, b'=', 9, libc::ptp_sys_offset_extended);
    // Declared as writing only, though the kernel also answers in it (linux/ptp_clock.h).
    nix::ioctl_write_ptr!(ptp_sys_offset, b'=', 5, libc::ptp_sys_offset);
    nix::ioctl_readwrite_bad!(ethtool, 0x8946, libc::ifreq);
    nix::ioctl_readwrite_bad!(get_hwtstamp, libc::SIOCGHWTSTAMP, libc::ifreq);
    nix::ioctl_readwrite_bad!(set_hwtstamp, libc::SIOCSHWTSTAMP, libc::ifreq);
}

/// A PHC and the system's clocks at one instant, as the hardware latched them.
///
/// # Errors
/// The system call's: most cards cannot.
pub fn phc_precise(phc: BorrowedFd<'_>) -> io::Result<libc::ptp_sys_offset_precise> {
    // SAFETY: the structure consists of integers only, for which all zeros is a value.
    let mut offset: libc::ptp_sys_offset_precise = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the kernel writes one such structure, which lives until the call returns.
    unsafe { requests::ptp_sys_offset_precise(phc.as_raw_fd(), &raw mut offset) }?;
    Ok(offset)
}

/// `samples` (at most 25) readings of a PHC, each between two of the system's clock `clock`.
///
/// # Errors
/// The system call's: EINVAL from kernels that know no other `clock` than `CLOCK_REALTIME`.
pub fn phc_extended(
    phc: BorrowedFd<'_>,
    samples: u32,
    clock: libc::clockid_t,
) -> io::Result<libc::ptp_sys_offset_extended> {
    // SAFETY: the structure consists of integers only, for which all zeros is a value.
    let mut offset: libc::ptp_sys_offset_extended = unsafe { MaybeUninit::zeroed().assume_init() };
    (offset.n_samples, offset.clockid) = (samples, clock);
    // SAFETY: the kernel reads and writes one such structure, which lives until the call returns; it refuses more samples
    // than there is room for.
    unsafe { requests::ptp_sys_offset_extended(phc.as_raw_fd(), &raw mut offset) }?;
    Ok(offset)
}

/// `samples` (at most 25) readings of a PHC, with `CLOCK_REALTIME` before, between and after them.
///
/// # Errors
/// The system call's.
pub fn phc_basic(phc: BorrowedFd<'_>, samples: u32) -> io::Result<libc::ptp_sys_offset> {
    // SAFETY: the structure consists of integers only, for which all zeros is a value.
    let mut offset: libc::ptp_sys_offset = unsafe { MaybeUninit::zeroed().assume_init() };
    offset.n_samples = samples;
    // SAFETY: the kernel reads and writes one such structure, which lives until the call returns and is reached through
    // a pointer that may be written through; it refuses more samples than there is room for.
    unsafe { requests::ptp_sys_offset(phc.as_raw_fd(), &raw mut offset) }?;
    Ok(offset)
}

/// The frequency that a PHC was last set to, in 2^-16 ppm off nominal: `clock_adjtime(2)` with `modes` 0.
///
/// # Errors
/// The system call's: EACCES if `phc` is open for reading only (before Linux 6.15).
pub fn phc_frequency(phc: BorrowedFd<'_>) -> io::Result<i64> {
    // SAFETY: timex consists of integers only, for which all zeros is a value.
    let mut timex: libc::timex = unsafe { MaybeUninit::zeroed().assume_init() };
    // A descriptor's clock (FD_TO_CLOCKID in the kernel's tools/testing/selftests/ptp/testptp.c).
    let clock = (!phc.as_raw_fd() << 3) | 3;
    // SAFETY: the pointer is to a whole timex that lives until the call returns; the kernel writes nothing else.
    let state = unsafe { libc::clock_adjtime(clock, &raw mut timex) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(timex.freq) }
}

/// `struct ethtool_ts_info` (linux/ethtool.h): how a network interface can stamp packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TimestampInfo {
    command: u32,
    /// SOF_TIMESTAMPING_* bits.
    pub so_timestamping: u32,
    /// Number of its clock: /dev/ptpN. −1: none.
    pub phc_index: i32,
    /// Bit n: HWTSTAMP_TX_* n.
    pub tx_types: u32,
    tx_reserved: [u32; 3],
    /// Bit n: HWTSTAMP_FILTER_* n.
    pub rx_filters: u32,
    rx_reserved: [u32; 3],
}

/// How `interface` can stamp packets; `socket` is any socket in its network namespace.
///
/// # Errors
/// The system call's: there is no such interface, or it cannot say.
pub fn timestamp_info(socket: BorrowedFd<'_>, interface: &str) -> io::Result<TimestampInfo> {
    const ETHTOOL_GET_TS_INFO: u32 = 0x41;
    let mut info = TimestampInfo { command: ETHTOOL_GET_TS_INFO, ..TimestampInfo::default() };
    let mut request = interface_request(interface, (&raw mut info).cast())?;
    // SAFETY: the request points to a whole ethtool_ts_info, which the command in it says; both live until the call returns.
    unsafe { requests::ethtool(socket.as_raw_fd(), &raw mut request) }?;
    Ok(info)
}

/// How `interface` is set to stamp packets.
///
/// # Errors
/// The system call's: it cannot stamp, or cannot say.
pub fn hardware_stamping(socket: BorrowedFd<'_>, interface: &str) -> io::Result<libc::hwtstamp_config> {
    // SAFETY: the structure consists of integers only, for which all zeros is a value.
    let mut config: libc::hwtstamp_config = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut request = interface_request(interface, (&raw mut config).cast())?;
    // SAFETY: the request points to a whole hwtstamp_config; both live until the call returns.
    unsafe { requests::get_hwtstamp(socket.as_raw_fd(), &raw mut request) }?;
    Ok(config)
}

/// Sets how `interface` stamps packets, for every program on the machine, and returns what the driver made of it.
///
/// # Errors
/// The system call's: EPERM without CAP_NET_ADMIN, ERANGE if it cannot.
pub fn set_hardware_stamping(
    socket: BorrowedFd<'_>,
    interface: &str,
    mut config: libc::hwtstamp_config,
) -> io::Result<libc::hwtstamp_config> {
    let mut request = interface_request(interface, (&raw mut config).cast())?;
    // SAFETY: the request points to a whole hwtstamp_config; both live until the call returns.
    unsafe { requests::set_hwtstamp(socket.as_raw_fd(), &raw mut request) }?;
    Ok(config)
}

fn interface_request(interface: &str, data: *mut libc::c_char) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq consists of integers and a union of such and pointers, for all of which all zeros is a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The last octet stays zero: it ends the name.
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = data;
    Ok(request)
}
