//! Many datagrams in one system call. nix's wrapper of `sendmmsg(2)` does not tell how many were sent without reading
//! memory that nobody wrote.

use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use nix::sys::socket::{SockaddrLike, SockaddrStorage};

/// Room for one control message with an address, aligned as its header must be.
#[derive(Default)]
struct Control {
    room: [u64; 8],
    len: usize,
}

impl Control {
    /// What makes a datagram leave from this machine's address `from`.
    fn source(from: IpAddr) -> Self {
        match from {
            IpAddr::V4(from) => {
                let source = libc::in_addr { s_addr: u32::from(from).to_be() };
                let nowhere = libc::in_addr { s_addr: 0 };
                let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: nowhere };
                Self::with(libc::IPPROTO_IP, libc::IP_PKTINFO, info)
            }
            IpAddr::V6(from) => {
                let source = libc::in6_addr { s6_addr: from.octets() };
                let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
                Self::with(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info)
            }
        }
    }

    fn with<T: Copy>(level: libc::c_int, kind: libc::c_int, info: T) -> Self {
        let mut control = Control::default();
        let size = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
        // SAFETY: these only compute, from any number.
        let (space, len) = unsafe { (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize) };
        assert!(space <= size_of_val(&control.room), "64 octets hold either kind of address");
        let header = libc::cmsghdr { cmsg_len: len, cmsg_level: level, cmsg_type: kind };
        let start = control.room.as_mut_ptr();
        // SAFETY: header and contents lie in the room, as asserted: CMSG_DATA stands CMSG_LEN(0) behind the header, and
        // CMSG_LEN(size) is no more than CMSG_SPACE(size). The room is aligned to 8, which is what a cmsghdr needs.
        unsafe {
            start.cast::<libc::cmsghdr>().write(header);
            libc::CMSG_DATA(start.cast_const().cast()).cast::<T>().write_unaligned(info);
        }
        control.len = space;
        control
    }
}

/// Sends each message to its address, in their order, all from this machine's address `from` if one is given. Returns how
/// many were sent before one failed.
///
/// # Errors
/// The system's, where already the first failed.
pub fn send_all(
    socket: BorrowedFd<'_>,
    messages: &[(&[u8], SockaddrStorage)],
    from: Option<IpAddr>,
) -> io::Result<usize> {
    let mut control = from.map_or_else(Control::default, Control::source);
    let data: Vec<IoSlice<'_>> = messages.iter().map(|(octets, _)| IoSlice::new(octets)).collect();
    let header = |((_, to), data): (&(&[u8], SockaddrStorage), &IoSlice<'_>)| libc::mmsghdr {
        msg_hdr: libc::msghdr {
            msg_name: to.as_ptr().cast_mut().cast(),
            msg_namelen: to.len(),
            msg_iov: ptr::from_ref(data).cast_mut().cast(),
            msg_iovlen: 1,
            msg_control: if control.len > 0 { control.room.as_mut_ptr().cast() } else { ptr::null_mut() },
            msg_controllen: control.len,
            msg_flags: 0,
        },
        msg_len: 0,
    };
    let mut headers: Vec<libc::mmsghdr> = messages.iter().zip(&data).map(header).collect();
    let count = u32::try_from(headers.len()).unwrap_or(u32::MAX);
    // SAFETY: `headers` has `count` whole headers. Each points to an address and its length, to one IoSlice (which has the
    // layout of an iovec) and to the control message with its length; all of these live until the call returns. The kernel
    // writes msg_len only.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
