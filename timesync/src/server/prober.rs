//! The probing thread: when to send which request, and whose answer it is that arrived.
//!
//! Both clocks are read before a request is sent and after its answers were received; every stamp in between is translated
//! by these two readings, of which one is always near.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use uuid::Uuid;

use super::outstanding::{Outstanding, Responder};
use super::{ServerConfig, Shared};
use crate::clock::{Clocks, ServerClock, SuspendWatch, exact_sleeps};
use crate::module::{StartError, source_is_trusted};
use crate::socket::{Datagram, Endpoint};
use crate::time::{Nanos, Server, Time};
use crate::translate::ClockReading;
use crate::wire::{Body, EVENT_PORT, Extension, GENERAL_PORT, Header, Message, REQUESTER};

/// What the probing thread is told.
#[derive(Debug)]
pub enum Command {
    /// Exchange a burst with each of the hosts.
    Burst {
        /// By index.
        hosts: Vec<usize>,
        /// Dropped for each host that is done.
        done: Sender<()>,
    },
    /// End.
    Stop,
}

/// Datagrams that are taken from each socket in one go.
const BATCH: usize = 64;
/// The clock source is looked up so often.
const CHECK_EVERY: Nanos = Nanos::from_millis(1_000);
/// A plain responder is asked for readings every so many exchanges: a module may have been installed.
const ASK_PLAIN_EVERY: u16 = 16;
/// So many lost exchanges in a row end a burst.
const BURST_PATIENCE: u32 = 2;

/// The thread's state.
pub struct Prober {
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    endpoints: Vec<Endpoint>,
    hosts: Vec<Schedule>,
    /// Where answers come from.
    by_address: HashMap<SocketAddr, usize>,
    domain: u8,
    pair_interval: Nanos,
    timeout: Nanos,
    burst: (u32, Nanos),
    clocks: Clocks,
    suspends: SuspendWatch,
    known_suspends: u32,
    trusted: bool,
    next_check: Time<Server>,
}

/// One host's schedule.
struct Schedule {
    address: SocketAddr,
    endpoint: usize,
    sequence: u16,
    outstanding: Option<(Outstanding, Time<Server>)>,
    /// When the next pair begins, or the burst's next exchange.
    due: Time<Server>,
    /// The exchange on its way is the first of its pair: the second follows at once, when caches are warm.
    first_of_pair: bool,
    /// Exchanges of the burst that are still to come.
    burst_left: u32,
    lost_in_a_row: u32,
    /// Who waits for the burst.
    waiting: Vec<Sender<()>>,
    /// The last answer came without readings.
    plain: bool,
}

impl Prober {
    /// Opens the sockets: one endpoint for each family that hosts have addresses of.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn new(
        config: &ServerConfig,
        shared: Arc<Shared>,
        inbox: Receiver<Command>,
        trusted: bool,
    ) -> Result<Self, StartError> {
        let families = [IpAddr::from([0; 4]), IpAddr::from([0_u16; 8])];
        let used = families
            .iter()
            .filter(|ip| config.hosts.iter().any(|host| host.address.is_ipv4() == ip.is_ipv4()));
        let used: Vec<_> = used.collect();
        let endpoints: Vec<_> = used
            .iter()
            .map(|ip| Endpoint::bind(**ip, config.event_port, config.timestamps))
            .collect::<Result<_, _>>()?;
        let pair_interval = Nanos::new(1_000_000_000 / i64::from(config.pairs_per_second.max(1)));
        let start = ServerClock.now();
        let mut by_address = HashMap::new();
        let mut hosts = Vec::new();
        for (index, (host, i)) in config.hosts.iter().zip(0_i64..).enumerate() {
            by_address.insert(host.address, index);
            if host.address.port() == EVENT_PORT {
                by_address.insert(SocketAddr::new(host.address.ip(), GENERAL_PORT), index);
            }
            let count = i64::try_from(config.hosts.len()).unwrap_or(i64::MAX);
            let [a, b, ..] = *Uuid::new_v4().as_bytes();
            hosts.push(Schedule {
                address: host.address,
                endpoint: used.iter().position(|ip| ip.is_ipv4() == host.address.is_ipv4()).unwrap_or(0),
                sequence: u16::from_be_bytes([a, b]),
                outstanding: None,
                // Spread over the interval, so that hosts do not answer all at once.
                due: start + Nanos::new(pair_interval.get() / count * i),
                first_of_pair: false,
                burst_left: 0,
                lost_in_a_row: 0,
                waiting: Vec::new(),
                plain: false,
            });
        }
        let mut suspends = SuspendWatch::new();
        Ok(Prober {
            shared,
            inbox,
            endpoints,
            hosts,
            by_address,
            domain: config.domain,
            pair_interval,
            timeout: config.timeout,
            burst: (config.burst, config.burst_interval),
            clocks: Clocks::new()?,
            known_suspends: suspends.count(),
            suspends,
            trusted,
            next_check: start + CHECK_EVERY,
        })
    }

    /// Probes until told to stop.
    pub fn run(mut self) {
        exact_sleeps();
        let mut datagrams = Vec::with_capacity(2 * BATCH);
        loop {
            let now = ServerClock.now();
            for index in 0..self.hosts.len() {
                self.advance(index, now);
            }
            let (commanded, failed) = self.wait();
            // Before anything that was measured across a suspend is believed: mostly this thread is found waiting.
            self.check_own_timeline();
            if commanded && !self.take_commands() {
                return;
            }
            for (endpoint, failed) in failed.into_iter().enumerate() {
                let stamps = self.take_stamps(endpoint);
                if failed && stamps == 0 {
                    self.endpoints[endpoint].event.clear_error();
                }
                self.endpoints[endpoint].receive(BATCH, &mut datagrams);
            }
            if !datagrams.is_empty() {
                let after = self.clocks.read();
                for datagram in datagrams.drain(..) {
                    self.take(&datagram, &after);
                }
            }
        }
    }

    /// Does what is due for a host: gives an answer up, or sends a request.
    fn advance(&mut self, index: usize, now: Time<Server>) {
        let host = &mut self.hosts[index];
        if host.outstanding.as_ref().is_some_and(|(_, deadline)| *deadline <= now) {
            self.finish(index);
        }
        let host = &mut self.hosts[index];
        if host.outstanding.is_none() && host.due <= now {
            host.first_of_pair = host.burst_left == 0;
            self.send(index);
        }
    }

    fn send(&mut self, index: usize) {
        let before = self.clocks.read();
        let host = &mut self.hosts[index];
        host.sequence = host.sequence.wrapping_add(1);
        // What comes next is due at the same pace whether this one is answered or not; after a pause, from now on.
        let now = ServerClock.now();
        let interval = if host.burst_left > 0 { self.burst.1 } else { self.pair_interval };
        host.due = if now - host.due < interval { host.due + interval } else { now + interval };
        let header = Header {
            domain: self.domain,
            sdo: 0,
            minor_version: 1,
            two_step: false,
            unicast: true,
            correction: 0,
            source: REQUESTER,
            sequence: host.sequence,
        };
        // A plain responder answers without our TLV; so that all messages are equally long, so is the request.
        let asks = !host.plain || host.sequence.is_multiple_of(ASK_PLAIN_EVERY);
        let request = Message { header, body: Body::Request, extension: asks.then_some(Extension::Wanted) };
        match self.endpoints[host.endpoint].event.send(&request.encode(), host.address, None) {
            Ok(number) => {
                let outstanding = Outstanding::new(host.sequence, number, before);
                host.outstanding = Some((outstanding, now + self.timeout));
                let endpoint = host.endpoint;
                self.take_stamps(endpoint);
            }
            Err(error) => {
                tracing::debug!(host = %host.address, %error, "cannot send");
                host.first_of_pair = false;
                self.shared.record(index).lose();
                self.count_for_burst(index, false);
            }
        }
    }

    /// Gives the stamps that are back to their requests. Returns how many there were.
    fn take_stamps(&mut self, endpoint: usize) -> usize {
        let mut stamps = 0;
        while let Some((number, stamp)) = self.endpoints[endpoint].event.transmit_stamp() {
            stamps += 1;
            let outstanding = self.hosts.iter_mut().filter(|host| host.endpoint == endpoint);
            let mut outstanding = outstanding.filter_map(|host| host.outstanding.as_mut());
            if let Some((request, _)) = outstanding.find(|(request, _)| request.number == Some(number)) {
                request.sent.merge(stamp);
            }
        }
        stamps
    }

    /// Takes an answer: only from the address of a host that was asked, and only if it fits the request.
    fn take(&mut self, datagram: &Datagram, after: &ClockReading) {
        let Some(&index) = self.by_address.get(&datagram.from) else { return };
        let host = &mut self.hosts[index];
        let Some((request, _)) = &mut host.outstanding else { return };
        let message = match Message::parse(datagram.octets()) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(from = %datagram.from, %error, "not an answer");
                return;
            }
        };
        let fits = message.header.domain == self.domain
            && request.accept(&message, REQUESTER, datagram.stamp, after);
        if fits && request.is_complete() {
            self.finish(index);
        }
    }

    /// Ends the exchange on its way. The pair's second request leaves before the first one's outcome is worked out.
    fn finish(&mut self, index: usize) {
        // A network card's stamp may have come back meanwhile.
        let host = &self.hosts[index];
        let number = host.outstanding.as_ref().and_then(|(request, _)| request.number);
        if number.is_some_and(|number| self.endpoints[host.endpoint].event.awaits_card(number)) {
            self.take_stamps(host.endpoint);
        }
        let host = &mut self.hosts[index];
        let Some((request, _)) = host.outstanding.take() else { return };
        let complete = request.is_complete();
        if std::mem::take(&mut host.first_of_pair) && complete {
            let due = host.due;
            self.send(index);
            self.hosts[index].due = due;
        }
        let outcome = request.outcome();
        let mut record = self.shared.record(index);
        match &outcome {
            Some(outcome) => record.complete(outcome),
            None => record.lose(),
        }
        drop(record);
        if let Some(outcome) = outcome {
            self.hosts[index].plain = matches!(outcome.responder, Responder::Plain(_));
        }
        self.count_for_burst(index, complete);
    }

    fn count_for_burst(&mut self, index: usize, complete: bool) {
        let host = &mut self.hosts[index];
        host.lost_in_a_row = if complete { 0 } else { host.lost_in_a_row + 1 };
        host.burst_left = host.burst_left.saturating_sub(1);
        if host.burst_left == 0 || host.lost_in_a_row >= BURST_PATIENCE {
            host.burst_left = 0;
            host.waiting.clear();
        }
    }

    /// Waits for packets, stamps, a command, or the next thing that is due: whether there is a command, and for each
    /// endpoint, whether its socket has an error or stamps.
    fn wait(&self) -> (bool, Vec<bool>) {
        let due = self.hosts.iter().map(|host| match &host.outstanding {
            Some((_, deadline)) => *deadline,
            None => host.due,
        });
        let next = due.fold(self.next_check, Time::min);
        let mut fds = vec![PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            self.endpoints.iter().map(|endpoint| PollFd::new(endpoint.event.as_fd(), PollFlags::POLLIN)),
        );
        let events = fds.len();
        let general = self.endpoints.iter().filter_map(|endpoint| endpoint.general.as_ref());
        fds.extend(general.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)));
        let timeout = TimeSpec::from_duration((next - ServerClock.now()).to_std());
        // An error (a signal, no memory) reports nothing; the sockets are looked at all the same.
        let _ = ppoll(&mut fds, Some(timeout), None);
        let failed = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
        (fds[0].any() == Some(true), fds[1..events].iter().map(failed).collect())
    }

    /// Whether to go on.
    fn take_commands(&mut self) -> bool {
        let _ = self.shared.wake.read();
        while let Ok(command) = self.inbox.try_recv() {
            let Command::Burst { hosts, done } = command else { return false };
            for index in hosts {
                let host = &mut self.hosts[index];
                host.burst_left = self.burst.0;
                host.lost_in_a_row = 0;
                host.due = ServerClock.now();
                host.first_of_pair = false;
                host.waiting.push(done.clone());
            }
        }
        true
    }

    /// Every bound is on the server's timeline: if that has stood still or changed its source, all start anew.
    fn check_own_timeline(&mut self) {
        let (now, suspends) = (ServerClock.now(), self.suspends.count());
        let mut trusted = self.trusted;
        if now >= self.next_check {
            (self.next_check, trusted) = (now + CHECK_EVERY, source_is_trusted());
        }
        if (suspends, trusted) != (self.known_suspends, self.trusted) {
            tracing::warn!(suspends, trusted, "the server's own timeline changed; all hosts start anew");
            (self.known_suspends, self.trusted) = (suspends, trusted);
            for (index, host) in self.hosts.iter_mut().enumerate() {
                host.outstanding = None;
                self.shared.record(index).server_changed(trusted);
            }
        }
    }
}
