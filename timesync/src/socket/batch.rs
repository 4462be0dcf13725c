//! Many packets in one system call, where there are many.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{MsgFlags, MultiHeaders, RecvMsg, SockaddrStorage, recvmmsg};

use super::{Datagram, LONGEST, Outgoing, Returned, StampedSocket, control_space, envelope};
use crate::sys;
use crate::translate::PacketStamp;

/// Packets of one system call.
const MOST: usize = 32;
/// To prepare for many costs as much as a few calls for one, so the first few are taken one by one.
const FEW: usize = 3;

impl StampedSocket {
    /// Sends event messages in their order: for each, what [`StampedSocket::send`] returns.
    pub fn send_all(&mut self, messages: &[Outgoing]) -> Vec<io::Result<Option<u32>>> {
        let mut results = Vec::with_capacity(messages.len());
        for row in messages.chunk_by(|a, b| a.from == b.from) {
            let mut sent = 0;
            // Where cards stamp, there is one packet in flight.
            if row.len() > 1 && self.hardware.is_none() {
                let addressed: Vec<(&[u8], SockaddrStorage)> =
                    row.iter().map(|message| (&*message.octets, message.to.into())).collect();
                sent = sys::send_all(self.socket.as_fd(), &addressed, row[0].from).unwrap_or(0);
                results.extend((0..sent).map(|_| Ok(self.take_number())));
                if sent < row.len() && self.stamping {
                    // Kernels differ in whether a packet that failed takes a number: start anew. A stamp still on its way
                    // may then be taken for a later packet's. It is early for that one, which only adds to its delay.
                    self.start_stamping();
                }
            }
            for message in &row[sent..] {
                results.push(self.send(&message.octets, message.to, message.from));
            }
        }
        results
    }

    /// All transmit stamps that have come back, with their packets' numbers, both of a packet as one where both are here.
    pub fn transmit_stamps(&mut self) -> Vec<(u32, PacketStamp)> {
        self.first_transmit_stamps(usize::MAX)
    }

    /// Likewise, but where `few` are awaited, no more is looked for after so many.
    pub fn first_transmit_stamps(&mut self, few: usize) -> Vec<(u32, PacketStamp)> {
        for _ in 0..FEW {
            if self.back.len() >= few || !self.keep_stamp() {
                return std::mem::take(&mut self.back).into();
            }
        }
        let (first, newest) = (self.first, self.next.wrapping_sub(1));
        let mut returned = Vec::new();
        while self.receive_many(MOST, MsgFlags::MSG_ERRQUEUE, |message, _| {
            returned.extend(Returned::read(message, first, newest));
        }) == MOST
        {}
        for returned in returned {
            let stamp = self.transmitted(returned);
            self.keep(stamp);
        }
        std::mem::take(&mut self.back).into()
    }

    /// Collects up to `most` datagrams that have arrived.
    pub fn receive_all(&mut self, most: usize, into: &mut Vec<Datagram>) {
        let few = FEW.min(most);
        for _ in 0..few {
            match self.receive() {
                Some(datagram) => into.push(datagram),
                None => return,
            }
        }
        let mut left = most - few;
        while left > 0 {
            let wanted = left.min(MOST);
            let received = self.receive_many(wanted, MsgFlags::empty(), |message, octets| {
                let mut copy = [0; LONGEST];
                copy[..octets.len()].copy_from_slice(octets);
                into.extend(envelope(message).map(|datagram| Datagram { octets: copy, ..datagram }));
            });
            if received < wanted {
                return;
            }
            left -= received;
        }
    }

    /// Takes up to `wanted` messages, at most [`MOST`], in one system call. Returns how many there were.
    fn receive_many(
        &mut self,
        wanted: usize,
        from: MsgFlags,
        mut each: impl FnMut(&RecvMsg<'_, '_, SockaddrStorage>, &[u8]),
    ) -> usize {
        let mut octets = [[0; LONGEST]; MOST];
        let mut data: Vec<_> = octets[..wanted].iter_mut().map(|octets| [IoSliceMut::new(octets)]).collect();
        // Anew for each call: from one call to the next, the room for control messages would shrink to what was used.
        let mut headers = MultiHeaders::preallocate(wanted, Some(control_space()));
        let flags = from | MsgFlags::MSG_DONTWAIT;
        // Nothing there, or an error of the network's: in UDP, both mean that nothing has arrived.
        let Ok(messages) = recvmmsg(self.socket.as_raw_fd(), &mut headers, &mut data, flags, None) else {
            return 0;
        };
        let mut count = 0;
        for message in messages {
            each(&message, message.iovs().next().unwrap_or_default());
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;
    use crate::authentication;
    use crate::wire::{Body, Header, Message, PLAIN_LEN};

    fn bind(at: &str) -> StampedSocket {
        StampedSocket::bind(at.parse().unwrap(), true).unwrap()
    }

    fn message(sequence: u16, to: SocketAddr, from: Option<&str>) -> Outgoing {
        let header = Header::request(0, sequence);
        let octets = authentication::encode(&Message { header, body: Body::Request, extension: None }, None);
        Outgoing { octets, to, from: from.map(|from| from.parse().unwrap()) }
    }

    fn receive(socket: &mut StampedSocket, count: usize) -> Vec<Datagram> {
        let mut datagrams = Vec::new();
        while datagrams.len() < count {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)), Ok(1), "{} arrived", datagrams.len());
            socket.receive_all(count - datagrams.len(), &mut datagrams);
        }
        datagrams
    }

    #[test]
    fn a_batch_arrives_whole_and_stamps_name_their_packets() {
        let (mut a, mut b) = (bind("0.0.0.0:0"), bind("127.0.0.1:0"));
        let to = b.local_address();
        for count in [1, FEW, FEW + 1, 100] {
            let before = a.next;
            let sources = |i: u16| if i % 30 < 20 { Some("127.0.0.7") } else { None };
            let sequences = 0..u16::try_from(count).unwrap();
            let messages: Vec<_> = sequences.clone().map(|i| message(i, to, sources(i))).collect();
            let numbers: Vec<u32> =
                a.send_all(&messages).into_iter().map(|sent| sent.unwrap().unwrap()).collect();
            assert_eq!(numbers, (before..a.next).collect::<Vec<_>>());
            let stamps = a.transmit_stamps();
            assert_eq!(stamps.iter().map(|(number, _)| *number).collect::<Vec<_>>(), numbers);
            let datagrams = receive(&mut b, count);
            assert_eq!(datagrams.len(), count);
            for (i, (datagram, (_, sent))) in sequences.zip(datagrams.iter().zip(stamps)) {
                assert_eq!(datagram.octets().len(), PLAIN_LEN);
                assert_eq!(Message::parse(datagram.octets()).unwrap().header.sequence, i);
                assert_eq!(datagram.from.ip().to_string(), sources(i).unwrap_or("127.0.0.1"));
                assert!(datagram.stamp.software.is_none_or(|received| received >= sent.software.unwrap()));
            }
        }
    }

    #[test]
    fn in_a_batch_that_fails_half_way_the_rest_is_sent_and_numbered() {
        let (mut a, mut b) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let (good, bad) = (b.local_address(), "[::1]:9".parse().unwrap());
        let messages = [good, good, bad, good, good].map(|to| message(7, to, None));
        let results = a.send_all(&messages);
        assert!(results[2].is_err());
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 4);
        assert_eq!(receive(&mut b, 4).len(), 4);
        a.transmit_stamps();
        // Whatever the failure did to the kernel's numbers, ours are right from here on, and none comes twice.
        let mut numbers: Vec<u32> = results.into_iter().filter_map(|result| result.ok().flatten()).collect();
        let number = a.send_all(&[message(8, good, None)]).remove(0).unwrap().unwrap();
        assert_eq!(a.transmit_stamps().last().unwrap().0, number);
        numbers.push(number);
        assert!(numbers.is_sorted_by(|earlier, later| earlier < later), "{numbers:?}");
    }

    #[test]
    fn a_short_message_does_not_cost_the_next_ones_their_stamps() {
        let (a, mut b) = (std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), bind("0.0.0.0:0"));
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), b.local_address().port());
        // The kernel starts to stamp a moment after it was asked: when it likes.
        let mut stamped = || {
            a.send_to(&[], to).unwrap();
            receive(&mut b, 1).iter().all(|datagram| !datagram.stamp.is_none())
        };
        while !stamped() {}
        for _ in 0..20 {
            for length in 0..10 {
                a.send_to(&[1; 200][..length * 20], to).unwrap();
            }
            let datagrams = receive(&mut b, 10);
            let lengths: Vec<usize> = datagrams.iter().map(|datagram| datagram.octets().len()).collect();
            assert_eq!(lengths, (0..10).map(|length| length * 20).collect::<Vec<_>>());
            assert!(datagrams.iter().all(|datagram| !datagram.stamp.is_none()));
            assert!(datagrams.iter().all(|datagram| datagram.to == Some("127.0.0.1".parse().unwrap())));
        }
    }
}
