//! A UDP relay that delays each direction by its own constant: a lopsided network, for the demonstration and tests.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use timesync::clock::ServerClock;
use timesync::time::{Nanos, Server, Time};

/// Larger than any PTP message.
const DATAGRAM: usize = 2048;

/// How soon a relay that nobody uses notices that it is to stop.
const LONGEST_WAIT: Nanos = Nanos::from_millis(50);

/// Passes datagrams between whoever sends to it and one target. Stops when dropped.
#[derive(Debug)]
pub struct Relay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Starts a relay on a free loopback port. What comes in goes to `target` after `forward`; what `target` answers
    /// goes back, after `backward`, to the address that sent last.
    ///
    /// # Errors
    /// When sockets or the thread cannot be created.
    pub fn start(target: SocketAddr, forward: Nanos, backward: Nanos) -> io::Result<Relay> {
        let front = Direction::new(UdpSocket::bind("127.0.0.1:0")?, forward)?;
        // Where the target is no loopback address, it could not answer one.
        let back = Direction::new(UdpSocket::bind("0.0.0.0:0")?, backward)?;
        back.socket.connect(target)?;
        let address = front.socket.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread =
            std::thread::Builder::new().name("relay".to_owned()).spawn(move || run(front, back, &stopped))?;
        Ok(Relay { address, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A relay that panicked has stopped all the same.
            let _ = thread.join();
        }
    }
}

/// What came in on one socket and waits to leave by the other one. The delay is constant, so first in is first out.
struct Direction {
    socket: UdpSocket,
    delay: Nanos,
    waiting: VecDeque<(Time<Server>, Vec<u8>)>,
}

impl Direction {
    fn new(socket: UdpSocket, delay: Nanos) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Direction { socket, delay, waiting: VecDeque::new() })
    }

    /// Takes in all that has arrived; gives the address of the last sender.
    fn receive(&mut self, clock: ServerClock) -> Option<SocketAddr> {
        let mut buffer = [0; DATAGRAM];
        let mut last = None;
        while let Ok((length, sender)) = self.socket.recv_from(&mut buffer) {
            self.waiting.push_back((clock.now() + self.delay, buffer[..length].to_vec()));
            last = Some(sender);
        }
        last
    }

    fn take_due(&mut self, now: Time<Server>) -> Option<Vec<u8>> {
        self.waiting.pop_front_if(|(due, _)| *due <= now).map(|(_, datagram)| datagram)
    }
}

fn run(mut front: Direction, mut back: Direction, stop: &AtomicBool) {
    let clock = ServerClock;
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        client = front.receive(clock).or(client);
        back.receive(clock);
        // Errors on sending are what a network does: it loses the datagram.
        while let Some(datagram) = front.take_due(clock.now()) {
            let _ = back.socket.send(&datagram);
        }
        while let Some((datagram, client)) =
            client.and_then(|client| Some((back.take_due(clock.now())?, client)))
        {
            let _ = front.socket.send_to(&datagram, client);
        }
        let next = front.waiting.front().into_iter().chain(back.waiting.front()).map(|(due, _)| *due).min();
        let timeout = next.map_or(LONGEST_WAIT, |due| due - clock.now()).to_std().min(LONGEST_WAIT.to_std());
        let mut sockets =
            [&front, &back].map(|direction| PollFd::new(direction.socket.as_fd(), PollFlags::POLLIN));
        let _ = ppoll(&mut sockets, Some(TimeSpec::from_duration(timeout)), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_pass_both_ways_and_not_before_their_delay() {
        let target = UdpSocket::bind("127.0.0.1:0").unwrap();
        let delay = Nanos::from_millis(3);
        let relay = Relay::start(target.local_addr().unwrap(), delay, Nanos::ZERO).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for socket in [&client, &target] {
            socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        }
        let mut buffer = [0; 16];
        for number in 0..20u8 {
            let before = ServerClock.now();
            client.send_to(&[number], relay.address()).unwrap();
            let (length, sender) = target.recv_from(&mut buffer).unwrap();
            assert!(ServerClock.now() - before >= delay, "passed on too early");
            assert_eq!(buffer[..length], [number]);
            target.send_to(&[number, 1], sender).unwrap();
            let (length, sender) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..length], sender), (&[number, 1][..], relay.address()));
        }
    }
}
