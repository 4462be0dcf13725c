//! General messages that are sent in one go.
//!
//! What a message costs is mostly its way through the network stack. Messages that are equally long and go the same way can
//! go through it as one (`UDP_SEGMENT`, udp(7)): they are cut apart by the network card, or just before it. Event messages
//! cannot, as each needs a stamp of its own.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use super::{Endpoint, StampedSocket, with_source};
use crate::authentication::Sealed;

/// A message that is to be sent.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// What it says.
    pub octets: Sealed,
    /// Where it goes.
    pub to: SocketAddr,
    /// Which of this machine's addresses it comes from, if that matters.
    pub from: Option<IpAddr>,
}

/// The kernel takes up to 64 segments (`UDP_MAX_SEGMENTS`; 128 since Linux 6.10).
const MOST_SEGMENTS: usize = 64;

impl Endpoint {
    /// Sends general messages in their order, and returns how many of them the network refused.
    pub fn send_generals(&mut self, messages: &[Outgoing]) -> u64 {
        let alike =
            |a: &Outgoing, b: &Outgoing| (a.to, a.from, a.octets.len()) == (b.to, b.from, b.octets.len());
        let mut refused = 0;
        for row in messages.chunk_by(alike) {
            for together in row.chunks(MOST_SEGMENTS) {
                // On a socket whose packets are numbered, they could not be told apart.
                let sent = together.len() > 1
                    && self.general.as_ref().is_some_and(|socket| socket.send_segments(together).is_ok());
                if sent {
                    continue;
                }
                for Outgoing { octets, to, from } in together {
                    refused += u64::from(self.send_general(octets, *to, *from).is_err());
                }
            }
        }
        refused
    }
}

impl StampedSocket {
    /// Sends messages that differ in what they say only. All are sent, or none: not every kernel and network card can.
    fn send_segments(&self, messages: &[Outgoing]) -> io::Result<()> {
        let [Outgoing { octets, to, from }, ..] = messages else { return Ok(()) };
        let data: Vec<IoSlice<'_>> = messages.iter().map(|message| IoSlice::new(&message.octets)).collect();
        let length = u16::try_from(octets.len()).map_err(io::Error::other)?;
        let to = SockaddrStorage::from(*to);
        with_source(*from, |source| {
            let mut control = vec![ControlMessage::UdpGsoSegments(&length)];
            control.extend_from_slice(source);
            sendmsg(self.socket.as_raw_fd(), &data, &control, MsgFlags::empty(), Some(&to))
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;
    use crate::authentication;
    use crate::time::Time;
    use crate::wire::{Body, Header, Message, REQUESTER};

    #[test]
    fn general_messages_arrive_whole_in_order_and_from_where_they_should() {
        let receiver = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            socket
        };
        let (a, b) = (receiver(), receiver());
        let bind = |stamping| StampedSocket::bind("0.0.0.0:0".parse().unwrap(), stamping).unwrap();
        for general in [Some(bind(false)), None] {
            let mut endpoint = Endpoint { event: bind(true), general };
            let port = endpoint.general.as_ref().unwrap_or(&endpoint.event).local_address().port();
            // 70 to one, then one by one in turns.
            let mut expected = [vec![], vec![]];
            let messages: Vec<Outgoing> = (0..90_u16)
                .map(|sequence| {
                    let to_b = sequence >= 70 && sequence % 2 == 0;
                    expected[usize::from(to_b)].push(sequence);
                    let header = Header::request(0, sequence);
                    let body = Body::FollowUp { sent: Time::from_nanos(1), requester: REQUESTER };
                    Outgoing {
                        octets: authentication::encode(&Message { header, body, extension: None }, None),
                        to: if to_b { &b } else { &a }.local_addr().unwrap(),
                        from: Some("127.0.0.7".parse().unwrap()),
                    }
                })
                .collect();
            assert_eq!(endpoint.send_generals(&messages), 0);
            for (socket, expected) in [&a, &b].into_iter().zip(expected) {
                let received = (0..expected.len()).map(|_| {
                    let mut octets = [0; 256];
                    let (length, from) = socket.recv_from(&mut octets).unwrap();
                    assert_eq!(from, SocketAddr::new("127.0.0.7".parse().unwrap(), port));
                    Message::parse(&octets[..length]).unwrap().header.sequence
                });
                assert_eq!(received.collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn messages_that_cannot_be_sent_are_counted() {
        let bind = || StampedSocket::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let mut endpoint = Endpoint { event: bind(), general: Some(bind()) };
        let body = Body::Request;
        let header = Header::request(0, 0);
        let octets = authentication::encode(&Message { header, body, extension: None }, None);
        // An address of another family.
        let message = Outgoing { octets, to: "[::1]:9".parse().unwrap(), from: None };
        assert_eq!(endpoint.send_generals(&vec![message; 3]), 3);
    }
}
