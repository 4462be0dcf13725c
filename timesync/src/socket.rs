//! UDP sockets whose packets the kernel stamps.
//!
//! Receive stamps come with the datagram; transmit stamps come back through the socket's error queue and name the
//! packet by its number. The kernel's stamps are `CLOCK_REALTIME`; those of a network card that has any come besides them
//! ([`crate::hardware`]).
//!
//! Many cards hold one transmit stamp at a time, so where stamps are expected of one, there is one packet in flight: a
//! send waits for the stamp of the packet before, though not for long. Packets would only lose their stamps otherwise.

mod batch;
mod segments;

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, RecvMsg, SockaddrStorage, TimestampingFlag, Timestamps,
    recvmsg, sendmsg, setsockopt, sockopt,
};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

pub use segments::Outgoing;

use crate::clock::raw_now;
use crate::hardware::{self, Hardware};
use crate::phc::Phc;
use crate::sys;
use crate::time::{Nanos, Raw, Time};
use crate::translate::PacketStamp;
use crate::wire::{EVENT_PORT, GENERAL_PORT};

/// Why a socket could not be had. Each is a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody else has the port.
    #[error("UDP {0} is in use: stop the other program (ptp4l? another coeval?) or choose another port")]
    InUse(SocketAddr),
    /// Ports below 1024 are for the privileged.
    #[error(
        "no permission to use UDP {0}: run as root, grant CAP_NET_BIND_SERVICE, or choose a port above 1023"
    )]
    Permission(SocketAddr),
    /// Not one of this machine's addresses.
    #[error("this machine has no address {0}; listen on one that it has, or on 0.0.0.0")]
    NoSuchAddress(IpAddr),
    /// Anything else.
    #[error("cannot open UDP {at}")]
    Other {
        /// The address.
        at: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// The longest datagram that is read whole. Longer ones are no PTP messages of ours, and are cut off.
const LONGEST: usize = 256;

/// A datagram that arrived.
#[derive(Clone, Debug)]
pub struct Datagram {
    octets: [u8; LONGEST],
    len: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// Which of this machine's addresses it was sent to, if the kernel says.
    pub to: Option<IpAddr>,
    /// When it was received.
    pub stamp: PacketStamp,
    /// The interface, and the stamp of its card, before that is translated.
    card: Option<(u32, Time<Phc>)>,
}

impl Datagram {
    /// What it says.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }
}

/// A UDP socket whose packets the kernel stamps.
#[derive(Debug)]
pub struct StampedSocket {
    socket: Socket,
    local: SocketAddr,
    stamping: bool,
    /// The next packet's number: one more for each packet sent.
    next: u32,
    /// The packet that the kernel's numbers (OPT_ID) count from. They begin anew after an error; ours do not, so that a
    /// later packet's stamp is never taken for that of an earlier one.
    first: u32,
    control: Vec<u8>,
    hardware: Option<Hardware>,
    /// The packet that a card's stamp is awaited for.
    in_flight: Option<InFlight>,
    /// Packets in a row whose card's stamp did not come.
    missing: u32,
    /// Stamps that came back while a send waited.
    back: VecDeque<(u32, PacketStamp)>,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    number: u32,
    sent_after: Time<Raw>,
}

/// A card's stamp that is not back by then will not come. It takes most cards some 50 µs.
const CARD_PATIENCE: Nanos = Nanos::from_millis(2);
/// After so many that did not come, nobody waits any longer, until one comes: somebody may have switched them off.
const MISSING_LIMIT: u32 = 16;

impl StampedSocket {
    /// Opens a socket at `at`, non-blocking. With `stamping`, asks the kernel to stamp its packets; a kernel that cannot
    /// is no error, the stamps are just missing.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(at: SocketAddr, stamping: bool) -> Result<Self, SocketError> {
        let explain = |error: io::Error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EADDRINUSE) => SocketError::InUse(at),
            Some(Errno::EACCES | Errno::EPERM) => SocketError::Permission(at),
            Some(Errno::EADDRNOTAVAIL) => SocketError::NoSuchAddress(at.ip()),
            _ => SocketError::Other { at, source: error },
        };
        let (socket, local) = open(at).map_err(explain)?;
        let mut socket = StampedSocket {
            socket,
            local,
            stamping: false,
            next: 0,
            first: 0,
            control: control_space(),
            hardware: None,
            in_flight: None,
            missing: 0,
            back: VecDeque::new(),
        };
        if at.ip().is_unspecified() {
            // Answers must leave from the address that was asked. Where the kernel does not tell it, it chooses.
            let _ = match at {
                SocketAddr::V4(_) => setsockopt(&socket.socket, sockopt::Ipv4PacketInfo, &true),
                SocketAddr::V6(_) => setsockopt(&socket.socket, sockopt::Ipv6RecvPacketInfo, &true),
            };
        }
        if stamping {
            socket.start_stamping();
        }
        Ok(socket)
    }

    /// Uses the stamps of network cards, too, where there are any.
    pub fn use_hardware(&mut self) {
        self.hardware = Hardware::set_up(self.socket.as_fd(), self.local.ip());
        if self.hardware.is_some() {
            // Stamps are told apart by the interface that the packet passed.
            let _ = match self.local {
                SocketAddr::V4(_) => setsockopt(&self.socket, sockopt::Ipv4PacketInfo, &true),
                SocketAddr::V6(_) => setsockopt(&self.socket, sockopt::Ipv6RecvPacketInfo, &true),
            };
            self.start_stamping();
        }
    }

    /// Whether a better stamp of packet `number` is still to come, from a network card.
    pub fn awaits_card(&self, number: u32) -> bool {
        self.missing < MISSING_LIMIT && self.in_flight.is_some_and(|packet| packet.number == number)
    }

    /// Where the socket listens: with the port that the system chose, if it was asked to.
    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Sends a datagram, from this machine's address `from` if one is given, and returns the number by which the packet's
    /// stamp will be known; none if the kernel stamps no packets here.
    ///
    /// # Errors
    /// The system's: the network is down, or there is no way to `to`.
    pub fn send(&mut self, octets: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<Option<u32>> {
        self.await_card();
        if let Some(hardware) = &self.hardware {
            hardware.prepare();
        }
        let sent_after = raw_now();
        let data = [IoSlice::new(octets)];
        let (to, fd) = (SockaddrStorage::from(to), self.socket.as_raw_fd());
        let sent = with_source(from, |control| sendmsg(fd, &data, control, MsgFlags::empty(), Some(&to)));
        if let Err(error) = sent {
            // Kernels differ in whether a packet that failed takes a number: start anew.
            if self.stamping {
                self.start_stamping();
            }
            return Err(error.into());
        }
        if self.stamping && self.hardware.is_some() {
            self.in_flight = Some(InFlight { number: self.next, sent_after });
        }
        Ok(self.take_number())
    }

    /// The number of the packet that was sent.
    fn take_number(&mut self) -> Option<u32> {
        let number = self.next;
        self.next = self.next.wrapping_add(u32::from(self.stamping));
        self.stamping.then_some(number)
    }

    /// The next transmit stamp that has come back, with its packet's number. On loopback and virtual Ethernet it is there
    /// when [`StampedSocket::send`] returns. A packet that a network card stamps, too, has two that come one after the
    /// other.
    pub fn transmit_stamp(&mut self) -> Option<(u32, PacketStamp)> {
        self.back.pop_front().or_else(|| self.queued_stamp())
    }

    fn queued_stamp(&mut self) -> Option<(u32, PacketStamp)> {
        let newest = self.next.wrapping_sub(1);
        loop {
            let mut octets = [0; LONGEST];
            let mut data = [IoSliceMut::new(&mut octets)];
            let received = recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut data,
                Some(&mut self.control),
                MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
            );
            let message = match received {
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            };
            if let Some(returned) = Returned::read(&message, self.first, newest) {
                return Some(self.transmitted(returned));
            }
        }
    }

    /// Translates a stamp that came back, and knows whether there is one still to come.
    fn transmitted(&mut self, returned: Returned) -> (u32, PacketStamp) {
        let Returned { number, stamps, interface } = returned;
        let software = time(stamps.system);
        let Some(hardware) = &self.hardware else { return (number, software.into()) };
        let packet = self.in_flight.filter(|packet| packet.number == number);
        let card = time(stamps.hw_raw);
        // No card stamps what passes another interface.
        if packet.is_some() && (card.is_some() || interface.is_some_and(|index| !hardware.covers(index))) {
            self.in_flight = None;
        }
        if packet.is_some() && card.is_some() {
            self.missing = 0;
        }
        let translated = interface.zip(card).and_then(|(interface, card)| {
            hardware.read();
            hardware.translate(interface, card, Some(packet?.sent_after))
        });
        (number, PacketStamp { software, hardware: translated })
    }

    /// Waits until the card's stamp of the packet before is back, or will not come.
    fn await_card(&mut self) {
        while let Some(packet) = self.in_flight {
            let left = packet.sent_after + CARD_PATIENCE - raw_now();
            if left <= Nanos::ZERO || self.missing >= MISSING_LIMIT {
                self.in_flight = None;
                self.missing = self.missing.saturating_add(1);
            } else if !self.keep_stamp() {
                let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
                let timeout = TimeSpec::from_duration(left.to_std());
                // Awake without a stamp: an error of the network's, which must not keep it awake.
                if ppoll(&mut fds, Some(timeout), None) == Ok(1) && !self.keep_stamp() {
                    self.clear_error();
                }
            }
        }
    }

    /// Keeps the next transmit stamp that has come back. Whether there was any.
    fn keep_stamp(&mut self) -> bool {
        self.queued_stamp().map(|stamp| self.keep(stamp)).is_some()
    }

    /// Both stamps of a packet are kept as one.
    fn keep(&mut self, (number, stamp): (u32, PacketStamp)) {
        match self.back.back_mut() {
            Some((same, earlier)) if *same == number => earlier.merge(stamp),
            _ => self.back.push_back((number, stamp)),
        }
    }

    /// Takes an error off the socket that keeps poll(2) awake though its error queue is empty, such as "network is down".
    pub fn clear_error(&self) {
        if let Ok(Some(error)) = self.socket.take_error() {
            tracing::debug!(%error, address = %self.local, "socket error");
        }
    }

    /// The next datagram that has arrived; none if there is none now.
    pub fn receive(&mut self) -> Option<Datagram> {
        let mut octets = [0; LONGEST];
        let mut data = [IoSliceMut::new(&mut octets)];
        loop {
            let received = recvmsg::<SockaddrStorage>(
                self.socket.as_raw_fd(),
                &mut data,
                Some(&mut self.control),
                MsgFlags::MSG_DONTWAIT,
            );
            let message = match received {
                Ok(message) => message,
                Err(Errno::EINTR) => continue,
                // Nothing there, or an error of the network's: in UDP, both mean that nothing has arrived.
                Err(_) => return None,
            };
            let Some(datagram) = envelope(&message) else { continue };
            return Some(Datagram { octets, ..datagram });
        }
    }

    /// Translates the stamps that network cards gave to datagrams, all of which have arrived by now.
    fn translate_cards(&self, datagrams: &mut [Datagram]) {
        let Some(hardware) = &self.hardware else { return };
        if datagrams.iter().any(|datagram| datagram.card.is_some()) {
            hardware.read();
        }
        for datagram in datagrams {
            let card = datagram.card.take();
            let translated = card.and_then(|(interface, stamp)| hardware.translate(interface, stamp, None));
            datagram.stamp.hardware = translated;
        }
    }

    /// Asks for stamps, and for numbers. The kernel starts its numbers anew when they are switched on, so they are switched
    /// off first.
    fn start_stamping(&mut self) {
        let software = TimestampingFlag::SOF_TIMESTAMPING_SOFTWARE
            | TimestampingFlag::SOF_TIMESTAMPING_RX_SOFTWARE
            | TimestampingFlag::SOF_TIMESTAMPING_TX_SOFTWARE;
        let without_numbers = match self.hardware {
            // Without the packet, which nobody needs: it would count against the receive buffer.
            None => software | TimestampingFlag::SOF_TIMESTAMPING_OPT_TSONLY,
            // With it, the kernel also tells the interface. Both kinds of stamps, each when it is there.
            Some(_) => {
                software
                    | TimestampingFlag::SOF_TIMESTAMPING_RAW_HARDWARE
                    | TimestampingFlag::SOF_TIMESTAMPING_RX_HARDWARE
                    | TimestampingFlag::SOF_TIMESTAMPING_TX_HARDWARE
                    | TimestampingFlag::from_bits_retain(
                        libc::SOF_TIMESTAMPING_OPT_CMSG | libc::SOF_TIMESTAMPING_OPT_TX_SWHW,
                    )
            }
        };
        let numbered = without_numbers | TimestampingFlag::SOF_TIMESTAMPING_OPT_ID;
        let set = |flags| setsockopt(&self.socket, sockopt::Timestamping, &flags);
        self.stamping = set(without_numbers).and_then(|()| set(numbered)).is_ok();
        self.first = self.next;
        self.in_flight = None;
        if !self.stamping {
            tracing::warn!(address = %self.local, "the kernel stamps no packets here; bounds will be wide");
        }
    }
}

impl AsFd for StampedSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What a message from the error queue says of a packet that was sent.
struct Returned {
    number: u32,
    stamps: Timestamps,
    /// The interface that it left by, if the kernel says.
    interface: Option<u32>,
}

impl Returned {
    /// None of an error of the network's: those come by the same queue.
    fn read(message: &RecvMsg<'_, '_, SockaddrStorage>, first: u32, newest: u32) -> Option<Self> {
        // A stamp without a number (some tools that stand in for the kernel) can only be the newest packet's.
        let (mut number, mut stamps, mut interface) = (Some(newest), None, None);
        for control in message.cmsgs().into_iter().flatten() {
            match control {
                ControlMessageOwned::ScmTimestampsns(both) => stamps = Some(both),
                ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                    let is_stamp = error.ee_errno == libc::ENOMSG.cast_unsigned();
                    number = is_stamp.then(|| first.wrapping_add(error.ee_data));
                }
                ControlMessageOwned::Ipv4PacketInfo(info) => interface = u32::try_from(info.ipi_ifindex).ok(),
                ControlMessageOwned::Ipv6PacketInfo(info) => interface = Some(info.ipi6_ifindex),
                _ => {}
            }
        }
        Some(Returned { number: number?, stamps: stamps?, interface })
    }
}

/// A datagram that arrived, but for its octets.
fn envelope(message: &RecvMsg<'_, '_, SockaddrStorage>) -> Option<Datagram> {
    let from = message.address.as_ref().and_then(address)?;
    let (mut to, mut interface) = (None, None);
    let (mut stamp, mut card) = (PacketStamp::default(), None);
    for control in message.cmsgs().into_iter().flatten() {
        match control {
            ControlMessageOwned::ScmTimestampsns(stamps) => {
                (stamp.software, card) = (time(stamps.system), time(stamps.hw_raw));
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                interface = u32::try_from(info.ipi_ifindex).ok();
                to = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)).into());
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                interface = Some(info.ipi6_ifindex);
                to = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
            }
            _ => {}
        }
    }
    Some(Datagram { octets: [0; LONGEST], len: message.bytes, from, to, stamp, card: interface.zip(card) })
}

/// Sends with what makes a datagram leave from this machine's address `from`, if one is given.
fn with_source<T>(from: Option<IpAddr>, send: impl FnOnce(&[ControlMessage<'_>]) -> T) -> T {
    match from {
        None => send(&[]),
        Some(IpAddr::V4(from)) => {
            let source = libc::in_addr { s_addr: u32::from(from).to_be() };
            let nowhere = libc::in_addr { s_addr: 0 };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: nowhere };
            send(&[ControlMessage::Ipv4PacketInfo(&info)])
        }
        Some(IpAddr::V6(from)) => {
            let source = libc::in6_addr { s6_addr: from.octets() };
            let info = libc::in6_pktinfo { ipi6_addr: source, ipi6_ifindex: 0 };
            send(&[ControlMessage::Ipv6PacketInfo(&info)])
        }
    }
}

/// Creates the socket without flags, which are set afterwards: programs that run under a replacement of libc's socket
/// calls may only know the plain types.
fn open(at: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new_raw(Domain::for_address(at), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_cloexec(true)?;
    socket.set_nonblocking(true)?;
    if at.is_ipv6() {
        // IPv4 has its own socket, so that no address has two forms.
        socket.set_only_v6(true)?;
    }
    if at.is_ipv4() {
        // Our datagrams are shorter than any path's limit. Where this is refused, sending only takes a little longer.
        let _ = sys::send_unnumbered(socket.as_fd());
    }
    // Room for the answers of some 5000 hosts. Without privileges, the system may give less.
    let room = 4 << 20;
    if setsockopt(&socket, sockopt::RcvBufForce, &room).is_err() {
        let _ = socket.set_recv_buffer_size(room);
    }
    socket.bind(&at.into())?;
    let local = socket.local_addr()?.as_socket().unwrap_or(at);
    Ok((socket, local))
}

fn control_space() -> Vec<u8> {
    cmsg_space!(
        [TimeSpec; 3],
        libc::in6_pktinfo,
        libc::in_pktinfo,
        libc::sock_extended_err,
        libc::sockaddr_in6
    )
}

/// A stamp; all zero where there is none.
fn time<T>(stamp: TimeSpec) -> Option<Time<T>> {
    let nanos = stamp.tv_sec().checked_mul(1_000_000_000)?.checked_add(stamp.tv_nsec())?;
    (nanos != 0).then(|| Time::from_nanos(nanos))
}

fn address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = storage.as_sockaddr_in().map(|v4| SocketAddrV4::from(*v4).into());
    v4.or_else(|| storage.as_sockaddr_in6().map(|v6| SocketAddrV6::from(*v6).into()))
}

/// The sockets of one PTP port: event messages are stamped; general messages (follow-ups) have a socket of their own
/// where the event port is PTP's 319, because then they go to 320. Elsewhere one socket serves both.
#[derive(Debug)]
pub struct Endpoint {
    /// The socket whose packets are stamped.
    pub event: StampedSocket,
    /// The socket for general messages, if it is another one.
    pub general: Option<StampedSocket>,
}

/// Which sockets of an endpoint may have datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Readable {
    /// The one whose packets are stamped.
    pub event: bool,
    /// The one for general messages.
    pub general: bool,
}

impl Endpoint {
    /// Whether no more stamps come back than one for each event message that is sent: nothing else is sent by that socket,
    /// and no network card stamps besides the kernel.
    pub fn has_one_stamp_each(&self) -> bool {
        self.general.is_some() && self.event.hardware.is_none()
    }

    /// Opens the sockets at `ip` and `event_port` (0: the system chooses). Network cards' stamps are only used at PTP's
    /// own event port: many cards stamp nothing else.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(ip: IpAddr, event_port: u16, timestamps: hardware::Timestamps) -> Result<Self, SocketError> {
        let mut event = StampedSocket::bind(SocketAddr::new(ip, event_port), true)?;
        if timestamps == hardware::Timestamps::Auto && event_port == EVENT_PORT {
            event.use_hardware();
        }
        let general = (event_port == EVENT_PORT)
            .then(|| StampedSocket::bind(SocketAddr::new(ip, GENERAL_PORT), false))
            .transpose()?;
        Ok(Endpoint { event, general })
    }

    /// Sends a general message.
    ///
    /// # Errors
    /// See [`StampedSocket::send`].
    pub fn send_general(&mut self, octets: &[u8], to: SocketAddr, from: Option<IpAddr>) -> io::Result<()> {
        self.general.as_mut().unwrap_or(&mut self.event).send(octets, to, from).map(|_| ())
    }

    /// Collects up to `most` datagrams that have arrived at either socket.
    pub fn receive(&mut self, most: usize, into: &mut Vec<Datagram>) {
        self.receive_from(Readable { event: true, general: true }, most, into);
    }

    /// Collects up to `most` datagrams that have arrived at either of these sockets.
    pub fn receive_from(&mut self, readable: Readable, most: usize, into: &mut Vec<Datagram>) {
        if readable.event {
            self.event.receive_all(most, into);
        }
        if let Some(general) = self.general.as_mut().filter(|_| readable.general) {
            general.receive_all(most, into);
        }
        self.event.translate_cards(into);
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn wait(socket: &StampedSocket) {
        let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(5_000_u16)), Ok(1), "nothing arrived in 5 s");
    }

    #[test]
    fn packets_are_stamped_on_both_ends_and_stamps_name_their_packets() {
        for localhost in ["127.0.0.1:0", "[::1]:0"] {
            let localhost: SocketAddr = localhost.parse().unwrap();
            let Ok(mut a) = StampedSocket::bind(localhost, true) else {
                assert!(localhost.is_ipv6(), "every machine has IPv4's loopback");
                continue;
            };
            let mut b = StampedSocket::bind(localhost, true).unwrap();
            // The kernel begins to stamp arrivals a little after the machine's first socket has asked for that.
            let mut other = StampedSocket::bind(localhost, true).unwrap();
            loop {
                other.send(b"?", b.local_address(), None).unwrap();
                wait(&b);
                if !b.receive().unwrap().stamp.is_none() {
                    break;
                }
            }
            let numbers: Vec<_> =
                (0..3).map(|_| a.send(b"hello", b.local_address(), None).unwrap().unwrap()).collect();
            let stamps: Vec<_> = std::iter::from_fn(|| a.transmit_stamp()).collect();
            assert_eq!(numbers, [0, 1, 2]);
            assert_eq!(stamps.iter().map(|(number, _)| *number).collect::<Vec<_>>(), numbers);
            for (_, sent) in stamps {
                wait(&b);
                let datagram = b.receive().unwrap();
                assert_eq!((datagram.octets(), datagram.from), (b"hello".as_slice(), a.local_address()));
                assert!(datagram.stamp.software.unwrap() >= sent.software.unwrap());
            }
            assert!(b.receive().is_none());
        }
    }

    #[test]
    fn numbers_stay_right_after_a_send_that_failed() {
        let mut a = StampedSocket::bind("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let b = StampedSocket::bind("127.0.0.1:0".parse().unwrap(), true).unwrap();
        a.send(b"1", b.local_address(), None).unwrap();
        a.transmit_stamp().unwrap();
        // Too long for any datagram, and an address of another family.
        a.send(&[0; 70_000], b.local_address(), None).unwrap_err();
        a.send(b"2", "[::1]:9".parse().unwrap(), None).unwrap_err();
        for _ in 0..3 {
            let number = a.send(b"3", b.local_address(), None).unwrap().unwrap();
            assert_eq!(a.transmit_stamp().unwrap().0, number);
        }
    }

    #[test]
    fn an_answer_leaves_from_the_address_that_was_asked() {
        let mut asker = StampedSocket::bind("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let mut server = StampedSocket::bind("0.0.0.0:0".parse().unwrap(), true).unwrap();
        let address = SocketAddr::new("127.0.0.77".parse().unwrap(), server.local_address().port());
        asker.send(b"?", address, None).unwrap();
        wait(&server);
        let question = server.receive().unwrap();
        server.send(b"!", question.from, question.to).unwrap();
        wait(&asker);
        assert_eq!(asker.receive().unwrap().from, address);
    }

    #[test]
    fn a_port_that_is_taken_is_an_error_that_says_what_to_do() {
        let first = StampedSocket::bind("127.0.0.1:0".parse().unwrap(), true).unwrap();
        let error = StampedSocket::bind(first.local_address(), true).unwrap_err();
        assert!(matches!(error, SocketError::InUse(at) if at == first.local_address()));
        assert!(error.to_string().ends_with("or choose another port"));
        let error = StampedSocket::bind("192.0.2.1:0".parse().unwrap(), true).unwrap_err();
        assert!(matches!(error, SocketError::NoSuchAddress(_)));
    }

    #[test]
    fn an_error_of_the_network_does_not_keep_poll_awake() {
        let socket = StampedSocket::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        // A connected socket hears that nobody listens there.
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        socket.socket.connect(&nobody.into()).unwrap();
        socket.socket.send(b"?").unwrap();
        let polled = |timeout: u16| {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::empty())];
            poll(&mut fds, PollTimeout::from(timeout)).unwrap();
            fds[0].revents().unwrap()
        };
        assert_eq!(polled(5_000), PollFlags::POLLERR);
        socket.clear_error();
        assert_eq!(polled(0), PollFlags::empty());
    }
}
