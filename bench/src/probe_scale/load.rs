//! Requests to one responder, so many on their way at any time, and what the answers cost it.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use timesync::clock::pace_now;
use timesync::time::Nanos;
use timesync::wire::{Body, Extension, Header, Message};

/// After so long without any answer, whatever was on its way is lost.
const PATIENCE: Duration = Duration::from_millis(100);

/// A protocol, as far as a requester needs it.
pub trait Protocol {
    /// The request in the slot `slot`.
    fn request(&mut self, slot: u16) -> Vec<u8>;

    /// Takes a datagram; the slot whose request is answered in full by it, if it is.
    fn answer(&mut self, datagram: &[u8]) -> Option<u16>;
}

/// Keeps so many requests on their way to `responder` for `time`, and returns how many were answered.
///
/// # Errors
/// The socket's.
pub fn load(
    protocol: &mut impl Protocol,
    responder: SocketAddr,
    on_their_way: u16,
    time: Nanos,
) -> io::Result<u64> {
    // Not connected: follow-ups come from another port.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let until = pace_now() + time;
    let mut answered = 0;
    let mut datagram = [0; 256];
    let start = |protocol: &mut dyn FnMut(u16) -> Vec<u8>| -> io::Result<()> {
        (0..on_their_way).try_for_each(|slot| socket.send_to(&protocol(slot), responder).map(|_| ()))
    };
    start(&mut |slot| protocol.request(slot))?;
    while pace_now() < until {
        match socket.recv(&mut datagram) {
            Ok(length) => {
                if let Some(slot) = protocol.answer(&datagram[..length]) {
                    answered += 1;
                    socket.send_to(&protocol.request(slot), responder)?;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                start(&mut |slot| protocol.request(slot))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(answered)
}

/// Peer delay with our TLV, as the server asks.
pub struct PeerDelay {
    /// Of each slot, the last request's sequence number: a module does not answer the same number twice. Its rest by the
    /// number of slots is the slot, even where numbers come round again, as that number is a power of two.
    sequences: Vec<u16>,
}

impl PeerDelay {
    /// A client with so many slots: a power of two.
    pub fn new(slots: u16) -> Self {
        PeerDelay { sequences: (0..slots).collect() }
    }
}

impl Protocol for PeerDelay {
    fn request(&mut self, slot: u16) -> Vec<u8> {
        let slots = self.sequences.len() as u16;
        let sequence = &mut self.sequences[usize::from(slot)];
        *sequence = sequence.wrapping_add(slots);
        let header = Header::request(0, *sequence);
        Message { header, body: Body::Request, extension: Some(Extension::Wanted) }.encode().to_vec()
    }

    fn answer(&mut self, datagram: &[u8]) -> Option<u16> {
        let message = Message::parse(datagram).ok()?;
        let slots = self.sequences.len() as u16;
        matches!(message.body, Body::FollowUp { .. }).then_some(message.header.sequence % slots)
    }
}

/// NTP version 4 (RFC 5905), in interleaved client/server mode (RFC 9769) or in basic mode.
pub struct Ntp {
    interleaved: bool,
    /// The server's receive timestamp of the last answer in each slot.
    received: Vec<[u8; 8]>,
    serial: u32,
    /// Answers in the mode that was asked for.
    pub as_asked: u64,
}

impl Ntp {
    /// A client with so many slots that asks for interleaved answers, or does not.
    pub fn new(interleaved: bool, slots: u16) -> Self {
        Ntp { interleaved, received: vec![[0; 8]; usize::from(slots)], serial: 0, as_asked: 0 }
    }
}

/// Where the timestamps stand in a packet of 48 octets (RFC 5905 section 7.3).
const ORIGIN: std::ops::Range<usize> = 24..32;
const RECEIVE: std::ops::Range<usize> = 32..40;
const TRANSMIT: std::ops::Range<usize> = 40..48;
/// What tells the transmit timestamp of a request from its receive timestamp; the rest of both names the slot.
const TRANSMITTED: u8 = 0x80;

impl Protocol for Ntp {
    fn request(&mut self, slot: u16) -> Vec<u8> {
        self.serial = self.serial.wrapping_add(1);
        let mut packet = vec![0; 48];
        packet[0] = 4 << 3 | 3;
        if self.interleaved {
            packet[ORIGIN].copy_from_slice(&self.received[usize::from(slot)]);
            packet[RECEIVE][2..4].copy_from_slice(&slot.to_be_bytes());
            packet[RECEIVE][4..].copy_from_slice(&self.serial.to_be_bytes());
        }
        packet[TRANSMIT][0] = TRANSMITTED;
        packet[TRANSMIT][2..4].copy_from_slice(&slot.to_be_bytes());
        packet[TRANSMIT][4..].copy_from_slice(&self.serial.to_be_bytes());
        packet
    }

    fn answer(&mut self, datagram: &[u8]) -> Option<u16> {
        if datagram.len() < 48 || datagram[0] & 7 != 4 {
            return None;
        }
        // An interleaved answer repeats the request's receive timestamp, a basic one the transmit timestamp.
        let origin = &datagram[ORIGIN];
        self.as_asked += u64::from((origin[0] != TRANSMITTED) == self.interleaved);
        let slot = u16::from_be_bytes([origin[2], origin[3]]);
        self.received.get_mut(usize::from(slot))?.copy_from_slice(&datagram[RECEIVE]);
        Some(slot)
    }
}
