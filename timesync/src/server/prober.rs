//! The probing thread: sends the requests that are due, and sees whose answer it is that arrived.
//!
//! Both clocks are read before requests are sent and after answers were received; every stamp in between is translated by
//! these two readings, of which one is always near. A few requests that are due together share the reading before them,
//! and all answers that have arrived share the one after them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use uuid::Uuid;

use super::outstanding::{Outstanding, Responder};
use super::schedule::{Pace, Schedule, Task};
use super::{ServerConfig, Shared};
use crate::authentication::{self, Association};
use crate::clock::{Clocks, ServerClock, SuspendWatch, exact_sleeps};
use crate::module::{StartError, source_is_trusted};
use crate::net_sync::{Mechanism, Replies};
use crate::socket::{Datagram, Endpoint, Outgoing};
use crate::time::{Nanos, Server, Time};
use crate::translate::ClockReading;
use crate::wire::{EVENT_PORT, Extension, GENERAL_PORT, Header, Message, REQUESTER};

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
const RECEIVE_BATCH: usize = 64;
/// Requests that share a clock reading: the last of them leaves some 50 µs after it, in which the wall clock can be
/// slewed by as many nanoseconds.
const SEND_BATCH: usize = 16;
/// The clock source is looked up so often.
const CHECK_EVERY: Nanos = Nanos::from_millis(1_000);
/// A plain responder is asked for readings every so many exchanges: a module may have been installed.
const ASK_PLAIN_EVERY: u16 = 16;

/// The thread's state.
pub struct Prober {
    shared: Arc<Shared>,
    inbox: Receiver<Command>,
    endpoints: Vec<Endpoint>,
    hosts: Vec<Host>,
    schedule: Schedule,
    /// Where answers come from.
    by_address: HashMap<SocketAddr, usize>,
    /// Whose request it is that has this number at this endpoint, until its stamp is back.
    unstamped: HashMap<(usize, u32), usize>,
    domain: u8,
    clocks: Clocks,
    suspends: SuspendWatch,
    known_suspends: u32,
    trusted: bool,
    next_check: Time<Server>,
}

/// One host.
struct Host {
    address: SocketAddr,
    endpoint: usize,
    sequence: u16,
    mechanism: Mechanism,
    /// Of the request on its way, where the host is asked as a NetSync monitor.
    replies: Option<Replies>,
    /// What its answers must be authenticated with.
    association: Option<Association>,
    outstanding: Option<Outstanding>,
    /// Who waits for the burst.
    waiting: Vec<Sender<()>>,
    /// The last answer came without readings.
    plain: bool,
}

/// An exchange that ended, of which the host's record does not know yet.
struct Finished {
    host: usize,
    request: Outstanding,
    burst_over: bool,
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
        let pace = Pace {
            pair_interval: Nanos::new(1_000_000_000 / i64::from(config.pairs_per_second.max(1))),
            burst: config.burst,
            burst_interval: config.burst_interval,
            timeout: config.timeout,
        };
        let start = ServerClock.now();
        let mut by_address = HashMap::new();
        let mut hosts = Vec::new();
        for (index, host) in config.hosts.iter().enumerate() {
            by_address.insert(host.address, index);
            if host.address.port() == EVENT_PORT {
                by_address.insert(SocketAddr::new(host.address.ip(), GENERAL_PORT), index);
            }
            let [a, b, ..] = *Uuid::new_v4().as_bytes();
            hosts.push(Host {
                address: host.address,
                endpoint: used.iter().position(|ip| ip.is_ipv4() == host.address.is_ipv4()).unwrap_or(0),
                sequence: u16::from_be_bytes([a, b]),
                mechanism: host.mechanism,
                replies: None,
                association: host.key.clone().map(|key| Association::new(key.key, !key.agentless)),
                outstanding: None,
                waiting: Vec::new(),
                plain: false,
            });
        }
        let mut suspends = SuspendWatch::new();
        Ok(Prober {
            shared,
            inbox,
            endpoints,
            schedule: Schedule::new(hosts.len(), pace, start),
            hosts,
            by_address,
            unstamped: HashMap::new(),
            domain: config.domain,
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
        let mut datagrams = Vec::with_capacity(2 * RECEIVE_BATCH);
        loop {
            self.do_due();
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
                self.endpoints[endpoint].receive(RECEIVE_BATCH, &mut datagrams);
            }
            if !datagrams.is_empty() {
                let after = self.clocks.read();
                let answered = datagrams.drain(..).filter_map(|datagram| self.take(&datagram, &after));
                let answered = answered.collect::<Vec<usize>>();
                self.finish(&answered);
            }
        }
    }

    /// Does what is due: gives answers up, and sends requests, but no more than one batch before answers are looked for.
    fn do_due(&mut self) {
        let now = ServerClock.now();
        let mut probed = Vec::new();
        while probed.len() < SEND_BATCH
            && let Some(task) = self.schedule.pop(now)
        {
            match task {
                Task::Probe(host) => probed.push(host),
                Task::GiveUp(host) => self.finish(&[host]),
            }
        }
        self.send(&probed);
    }

    /// Sends each of `hosts` a request, at most [`SEND_BATCH`] of them, all after one reading of the clocks.
    fn send(&mut self, hosts: &[usize]) {
        if hosts.is_empty() {
            return;
        }
        let before = self.clocks.read();
        for endpoint in 0..self.endpoints.len() {
            let hosts = hosts.iter().copied().filter(|host| self.hosts[*host].endpoint == endpoint);
            let hosts = hosts.collect::<Vec<usize>>();
            let requests: Vec<Outgoing> = hosts.iter().map(|host| self.request(*host)).collect();
            let sent = self.endpoints[endpoint].event.send_all(&requests);
            for (index, sent) in hosts.into_iter().zip(sent) {
                let host = &mut self.hosts[index];
                match sent {
                    Ok(number) => {
                        host.outstanding = Some(Outstanding::new(host.sequence, number, before));
                        self.unstamped.extend(number.map(|number| ((endpoint, number), index)));
                    }
                    Err(error) => {
                        tracing::debug!(host = %host.address, %error, "cannot send");
                        self.shared.record(index).lose();
                        if self.schedule.end(index, false, ServerClock.now()).burst_over {
                            host.waiting.clear();
                        }
                    }
                }
            }
            self.take_stamps(endpoint);
        }
    }

    /// A host's next request.
    fn request(&mut self, index: usize) -> Outgoing {
        let host = &mut self.hosts[index];
        host.sequence = host.sequence.wrapping_add(1);
        let header = Header::request(self.domain, host.sequence);
        // A plain responder answers without our TLV; so that all messages are equally long, so is the request.
        let net_sync = host.mechanism == Mechanism::NetSync;
        host.replies = net_sync.then(|| Replies::new(REQUESTER, host.sequence));
        let asks = !net_sync && (!host.plain || host.sequence.is_multiple_of(ASK_PLAIN_EVERY));
        let body = host.mechanism.request();
        let request = Message { header, body, extension: asks.then_some(Extension::Wanted) };
        let seal = host.association.as_mut().map(Association::next_request);
        let octets = authentication::encode(&request, seal.as_ref());
        Outgoing { octets, to: host.address, from: None }
    }

    /// Gives the stamps that are back to their requests. Returns how many there were.
    fn take_stamps(&mut self, endpoint: usize) -> usize {
        let mut stamps = 0;
        for (number, stamp) in self.endpoints[endpoint].event.transmit_stamps() {
            stamps += 1;
            let Entry::Occupied(entry) = self.unstamped.entry((endpoint, number)) else { continue };
            let host = *entry.get();
            if !self.endpoints[endpoint].event.awaits_card(number) {
                entry.remove();
            }
            if let Some(request) = &mut self.hosts[host].outstanding
                && request.number == Some(number)
            {
                request.sent.merge(stamp);
            }
        }
        stamps
    }

    /// Takes an answer: only from the address of a host that was asked, and only if it fits the request. Returns the host
    /// when its answer is complete.
    fn take(&mut self, datagram: &Datagram, after: &ClockReading) -> Option<usize> {
        let index = *self.by_address.get(&datagram.from)?;
        let host = &mut self.hosts[index];
        let request = host.outstanding.as_mut()?;
        let octets = match authentication::admit(host.association.as_ref(), datagram.octets()) {
            Ok(octets) => octets,
            Err(why) => {
                self.shared.record(index).refuse(ServerClock.now(), why);
                return None;
            }
        };
        let message = match Message::parse(octets) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(from = %datagram.from, %error, "not an answer");
                return None;
            }
        };
        if message.header.domain != self.domain {
            return None;
        }
        let mut accept = |answer: &Message, stamp| request.accept(answer, REQUESTER, stamp, after);
        let fits = match &mut host.replies {
            None => accept(&message, datagram.stamp),
            Some(replies) => replies
                .take(&message, datagram.stamp)
                .iter()
                .fold(false, |any, (answer, stamp)| accept(answer, *stamp) | any),
        };
        if let (true, Some(responder)) = (fits, request.responder()) {
            // The first answer after a break tells of it: nobody waits for the rest of the exchange.
            self.shared.record(index).hear(responder);
        }
        (fits && request.is_complete()).then_some(index)
    }

    /// Ends the exchanges on their way with `hosts`. The pairs' second requests leave before the first ones' outcomes are
    /// worked out.
    fn finish(&mut self, hosts: &[usize]) {
        let now = ServerClock.now();
        let (mut finished, mut seconds) = (Vec::new(), Vec::new());
        for &host in hosts {
            let number = self.hosts[host].outstanding.as_ref().and_then(|request| request.number);
            let endpoint = self.hosts[host].endpoint;
            if number.is_some_and(|number| self.endpoints[endpoint].event.awaits_card(number)) {
                // A network card's stamp may have come back meanwhile.
                self.take_stamps(endpoint);
            }
            let Some(request) = self.hosts[host].outstanding.take() else { continue };
            if let (None, Some(number)) = (request.sent.hardware, request.number)
                && let Entry::Occupied(entry) = self.unstamped.entry((self.hosts[host].endpoint, number))
                && *entry.get() == host
            {
                // Its stamp comes too late or never. (The number may be another's by now: they begin anew after errors.)
                entry.remove();
            }
            let ended = self.schedule.end(host, request.is_complete(), now);
            seconds.extend(ended.second.then_some(host));
            finished.push(Finished { host, request, burst_over: ended.burst_over });
        }
        for batch in seconds.chunks(SEND_BATCH) {
            self.send(batch);
        }
        for Finished { host, request, burst_over } in finished {
            self.record(host, &request);
            if burst_over {
                self.hosts[host].waiting.clear();
            }
        }
    }

    /// Works out what came of an exchange.
    fn record(&mut self, host: usize, request: &Outstanding) {
        let Some(outcome) = request.outcome() else {
            return self.shared.record(host).lose();
        };
        self.shared.record(host).complete(&outcome);
        self.hosts[host].plain = matches!(outcome.responder, Responder::Plain(_));
    }

    /// Waits for packets, stamps, a command, or the next thing that is due: whether there is a command, and for each
    /// endpoint, whether its socket has an error or stamps.
    fn wait(&self) -> (bool, Vec<bool>) {
        let next = self.schedule.next().map_or(self.next_check, |due| due.min(self.next_check));
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
            for host in hosts {
                self.schedule.burst(host, ServerClock.now());
                self.hosts[host].waiting.push(done.clone());
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
            self.unstamped.clear();
            for (index, host) in self.hosts.iter_mut().enumerate() {
                if host.outstanding.take().is_some() {
                    self.schedule.forget(index);
                }
                self.shared.record(index).server_changed(trusted);
            }
        }
    }
}
