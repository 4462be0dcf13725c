//! The time module: answers a server's exchanges on a host.
//!
//! A plain thread on `poll(2)`; timing is its only job. Plain PTP requests are answered like a stock responder's.

mod repeats;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use repeats::Repeats;

use crate::authentication::{self, Keyring, Seal};
use crate::clock::{self, Clocks, HostClock, SharedSuspendWatch, clock_source, is_trusted_source};
use crate::hardware::Timestamps;
use crate::identity::Incarnation;
use crate::socket::{Datagram, Endpoint, Outgoing, Readable, SocketError};
use crate::time::{Nanos, Raw, Time, Wall};
use crate::translate::{ClockReading, PacketStamp, Stamp};
use crate::wire::{Body, EVENT_PORT, Extension, GENERAL_PORT, Header, Message, PortIdentity, Reading};

/// How a module listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleConfig {
    /// The addresses, each of its own family: `0.0.0.0` is all of IPv4, `::` all of IPv6.
    pub listen: Vec<IpAddr>,
    /// UDP port of event messages. PTP's is 319, with 320 for the general ones; at any other port, one socket serves
    /// both. 0: the system chooses.
    pub event_port: u16,
    /// Which timestamps are used. Network cards' only at PTP's port.
    pub timestamps: Timestamps,
    /// PTP domain; requests of others are ignored.
    pub domain: u8,
}

impl Default for ModuleConfig {
    /// PTP's ports on every IPv4 address, domain 0.
    fn default() -> Self {
        ModuleConfig {
            listen: vec![IpAddr::from([0, 0, 0, 0])],
            event_port: EVENT_PORT,
            timestamps: Timestamps::Auto,
            domain: 0,
        }
    }
}

/// Why a module or a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The kernel gives no timer, event descriptor or thread.
    #[error("the system refuses a resource that time exchanges need")]
    System(#[from] io::Error),
}

/// What a module has done since it started.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests that were answered.
    pub answered: AtomicU64,
    /// Answers whose second half (the follow-up) was sent too.
    pub followed_up: AtomicU64,
    /// Datagrams that are no PTP messages of an exchange.
    pub malformed: AtomicU64,
    /// Messages that are not for this module (another domain, or no request), and second copies of requests.
    pub ignored: AtomicU64,
    /// Requests that are not authenticated as this module's keys want it.
    pub refused: AtomicU64,
    /// Requests without the kernel's receive stamp.
    pub unstamped_requests: AtomicU64,
    /// Answers whose transmit stamp the kernel did not give back.
    pub unstamped_answers: AtomicU64,
    /// Messages that the network refused to send.
    pub unsent: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A running module. Dropping it stops it.
#[derive(Debug)]
pub struct Module {
    thread: Option<JoinHandle<()>>,
    stop: Arc<EventFd>,
    counters: Arc<Counters>,
    suspends: SharedSuspendWatch,
    addresses: Vec<SocketAddr>,
}

impl Module {
    /// Starts to answer by `clock`, in the name of `incarnation`.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start(
        config: &ModuleConfig,
        clock: HostClock,
        incarnation: Incarnation,
    ) -> Result<Self, StartError> {
        Self::start_authenticated(config, Arc::default(), clock, incarnation)
    }

    /// As [`Module::start`], answering only what `keyring` admits.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn start_authenticated(
        config: &ModuleConfig,
        keyring: Arc<Keyring>,
        clock: HostClock,
        incarnation: Incarnation,
    ) -> Result<Self, StartError> {
        let bind = |&ip| Endpoint::bind(ip, config.event_port, config.timestamps);
        let endpoints = config.listen.iter().map(bind).collect::<Result<_, _>>()?;
        Self::serve(endpoints, keyring, config.domain, clock, incarnation, SharedSuspendWatch::default())
    }

    fn serve(
        endpoints: Vec<Endpoint>,
        keyring: Arc<Keyring>,
        domain: u8,
        clock: HostClock,
        incarnation: Incarnation,
        suspends: SharedSuspendWatch,
    ) -> Result<Self, StartError> {
        let endpoints: Vec<_> =
            endpoints.into_iter().map(|endpoint| Listening { endpoint, awaiting: HashMap::new() }).collect();
        let addresses = endpoints.iter().map(|listening| listening.endpoint.event.local_address()).collect();
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(io::Error::from)?);
        let counters = Arc::new(Counters::default());
        let mut clocks = Clocks::new()?;
        let counted = suspends.count();
        let responder = Responder {
            domain,
            keyring,
            identity: own_identity(incarnation),
            incarnation,
            clock,
            latest: clocks.read(),
            newest: None,
            clocks,
            suspends: suspends.clone(),
            counted,
            latest_counted: counted,
            trusted_source: source_is_trusted(),
            source_checked: clock::raw_now(),
            repeats: Repeats::default(),
            counters: Arc::clone(&counters),
        };
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("time-module".into())
            .spawn(move || responder.run(endpoints, &told))?;
        Ok(Module { thread: Some(thread), stop, counters, suspends, addresses })
    }

    /// Where it listens, in the order of [`ModuleConfig::listen`].
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it has done.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts suspends as its answers do.
    pub fn suspends(&self) -> SharedSuspendWatch {
        self.suspends.clone()
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// A clock identity that differs from process to process: a stock daemon drops messages that carry its own.
fn own_identity(incarnation: Incarnation) -> PortIdentity {
    let id = incarnation.process.0.as_bytes();
    PortIdentity { clock: [id[0] & 0xFE | 0x02, id[1], id[2], 0xFF, 0xFE, id[3], id[4], id[5]], port: 1 }
}

pub(crate) fn source_is_trusted() -> bool {
    clock_source().is_some_and(|name| is_trusted_source(&name))
}

struct Listening {
    endpoint: Endpoint,
    /// Answers whose transmit stamp is not back yet, by number.
    awaiting: HashMap<u32, Awaiting>,
}

/// An answer that was sent: what its follow-up needs.
struct Awaiting {
    to: SocketAddr,
    from: Option<IpAddr>,
    request: Header,
    seal: Option<Seal>,
    wants_reading: bool,
    before: ClockReading,
    /// As far as they are back.
    stamp: PacketStamp,
}

/// A stamp that is not back by then will not come: the follow-up goes out with the reading before the send.
const STAMP_PATIENCE_MS: u16 = 10;
/// The readings before the next packet must not be too old.
const IDLE_MS: u16 = 500;
/// The clock source is looked up before an answer (it takes some 5 µs), but not more often than this.
const SOURCE_EVERY: Nanos = Nanos::from_millis(1);
/// Requests that are answered in one go: the last answer leaves some 100 µs after the clocks were read.
const BATCH: usize = 64;

struct Responder {
    domain: u8,
    keyring: Arc<Keyring>,
    identity: PortIdentity,
    incarnation: Incarnation,
    clock: HostClock,
    clocks: Clocks,
    /// The reading before whatever packet comes next.
    latest: ClockReading,
    /// The newest reading since the last packets were waited for.
    newest: Option<ClockReading>,
    suspends: SharedSuspendWatch,
    /// Suspends, as of when they were last counted,
    counted: u32,
    /// and as of some time before whatever packet comes next.
    latest_counted: u32,
    trusted_source: bool,
    source_checked: Time<Raw>,
    repeats: Repeats,
    counters: Arc<Counters>,
}

impl Responder {
    fn run(mut self, mut endpoints: Vec<Listening>, stop: &EventFd) {
        clock::exact_sleeps();
        let mut datagrams = Vec::with_capacity(2 * BATCH);
        loop {
            let waiting = endpoints.iter().any(|listening| !listening.awaiting.is_empty());
            let timeout = PollTimeout::from(if waiting { STAMP_PATIENCE_MS } else { IDLE_MS });
            let Some(events) = wait(&endpoints, stop, timeout) else { return };
            let (steps, counted) = (self.clocks.steps(), self.counted);
            let mut drained = true;
            for (listening, Ready { failed, readable }) in endpoints.iter_mut().zip(events) {
                if failed && self.follow_up(listening) == 0 {
                    listening.endpoint.event.clear_error();
                }
                // What was not readable had nothing that waited, either.
                listening.endpoint.receive_from(readable, BATCH, &mut datagrams);
                drained &= datagrams.len() < BATCH;
                if !datagrams.is_empty() {
                    self.answer(listening, &mut datagrams);
                }
                self.give_up_stamps(listening);
            }
            let newest = self.newest.take().unwrap_or_else(|| self.clocks.read());
            // Packets that still wait arrived before this reading: only the old one tells whether the clock was set since.
            // Those that come after all have been taken may have been stamped before it too, but not before `steps`.
            if drained {
                self.latest = ClockReading { steps_before: steps, ..newest };
                self.latest_counted = counted;
            }
        }
    }

    /// Answers a batch of requests: all responses first, as they are timed; their follow-ups when the stamps are back,
    /// which on most networks is at once.
    fn answer(&mut self, listening: &mut Listening, datagrams: &mut Vec<Datagram>) {
        let mut after = self.read_clocks();
        let suspends = self.count_suspends();
        let undisturbed = suspends == self.latest_counted;
        if !undisturbed {
            // The reading may be from before the suspend or move.
            after = self.read_clocks();
        }
        if after.raw.earliest - self.source_checked >= SOURCE_EVERY {
            (self.trusted_source, self.source_checked) = (source_is_trusted(), after.raw.earliest);
        }
        let (mut responses, mut requests) = (Vec::new(), Vec::new());
        for datagram in datagrams.drain(..) {
            let (octets, seal) = match self.keyring.admit(datagram.octets()) {
                Ok(admitted) => admitted,
                Err(error) => {
                    tracing::debug!(from = %datagram.from, %error, "refused");
                    count(&self.counters.refused);
                    continue;
                }
            };
            let message = match Message::parse(octets) {
                Ok(message) => message,
                Err(error) => {
                    tracing::debug!(from = %datagram.from, %error, "not a PTP message");
                    count(&self.counters.malformed);
                    continue;
                }
            };
            let request = message.header;
            let for_us = message.body == Body::Request
                && request.domain == self.domain
                && request.sdo == 0
                && request.source != self.identity;
            if !for_us || self.repeats.repeated(datagram.from, request.sequence) {
                count(&self.counters.ignored);
                continue;
            }
            if datagram.stamp.is_none() {
                count(&self.counters.unstamped_requests);
            }
            // If it came before a suspend or a move, its stamp is of another timeline. The reading after it is not, and a
            // stamp may be late.
            let stamp = if undisturbed { datagram.stamp } else { PacketStamp::default() };
            let received = Stamp::received(stamp, &self.latest, &after);
            let wants_reading = message.extension.is_some();
            let Some(extension) = self.extension(&received, suspends, wants_reading) else { continue };
            let body = Body::Response { received: self.wall(&received), requester: request.source };
            let header = Header { two_step: true, correction: 0, source: self.identity, ..request };
            let octets = authentication::encode(&Message { header, body, extension }, seal.as_ref());
            responses.push(Outgoing { octets, to: datagram.from, from: datagram.to });
            requests.push((request, seal, wants_reading));
        }
        let sent = listening.endpoint.event.send_all(&responses);
        for ((sent, Outgoing { to, from, .. }), (request, seal, wants_reading)) in
            sent.into_iter().zip(responses).zip(requests)
        {
            let stamp = PacketStamp::default();
            let awaiting = Awaiting { to, from, request, seal, wants_reading, before: after, stamp };
            match sent {
                Ok(Some(number)) => {
                    listening.awaiting.insert(number, awaiting);
                }
                Ok(None) => {
                    let follow_up = self.follow_up_of(&awaiting, &after, suspends);
                    self.send_follow_ups(&mut listening.endpoint, follow_up.as_slice());
                }
                Err(error) => {
                    tracing::debug!(%to, %error, "cannot answer");
                    count(&self.counters.unsent);
                    continue;
                }
            }
            count(&self.counters.answered);
        }
        self.follow_up(listening);
    }

    /// Sends the follow-ups of all answers whose stamps are back, and returns how many stamps there were.
    fn follow_up(&mut self, listening: &mut Listening) -> usize {
        let mut stamps = 0;
        // Where one socket serves both kinds of messages, follow-ups are stamped as well: the second turn takes those off.
        loop {
            let mut ready = Vec::new();
            let exactly = listening.endpoint.has_one_stamp_each() && !listening.awaiting.is_empty();
            let few = if exactly { listening.awaiting.len() } else { usize::MAX };
            for (number, stamp) in listening.endpoint.event.first_transmit_stamps(few) {
                stamps += 1;
                let awaits_card = listening.endpoint.event.awaits_card(number);
                if let Entry::Occupied(mut awaiting) = listening.awaiting.entry(number) {
                    awaiting.get_mut().stamp.merge(stamp);
                    if !awaits_card {
                        ready.push(awaiting.remove());
                    }
                }
            }
            if ready.is_empty() {
                return stamps;
            }
            let after = self.read_clocks();
            let suspends = self.count_suspends();
            let follow_ups: Vec<Outgoing> = ready
                .into_iter()
                .filter_map(|awaiting| self.follow_up_of(&awaiting, &after, suspends))
                .collect();
            self.send_follow_ups(&mut listening.endpoint, &follow_ups);
            if listening.endpoint.general.is_some() && listening.awaiting.is_empty() {
                return stamps;
            }
        }
    }

    fn give_up_stamps(&mut self, listening: &mut Listening) {
        if listening.awaiting.is_empty() {
            return;
        }
        let after = self.read_clocks();
        let patience = Nanos::from_millis(i64::from(STAMP_PATIENCE_MS));
        let suspends = self.count_suspends();
        let overdue = |sent: &Awaiting| after.raw.earliest - sent.before.raw.latest > patience;
        let overdue = listening.awaiting.extract_if(|_, sent| overdue(sent));
        let follow_ups: Vec<Outgoing> =
            overdue.filter_map(|(_, awaiting)| self.follow_up_of(&awaiting, &after, suspends)).collect();
        self.send_follow_ups(&mut listening.endpoint, &follow_ups);
    }

    /// The follow-up of an answer. None if its stamp is too vague to be sent.
    fn follow_up_of(&self, awaiting: &Awaiting, after: &ClockReading, suspends: u32) -> Option<Outgoing> {
        if awaiting.stamp.is_none() {
            count(&self.counters.unstamped_answers);
        }
        let sent = Stamp::sent(awaiting.stamp, &awaiting.before, after);
        let extension = self.extension(&sent, suspends, awaiting.wants_reading)?;
        // Some networks correct the request on its way; the follow-up carries that back (IEEE 1588-2019 §11.4.2).
        let header = Header { two_step: false, source: self.identity, ..awaiting.request };
        let body = Body::FollowUp { sent: self.wall(&sent), requester: awaiting.request.source };
        let octets = authentication::encode(&Message { header, body, extension }, awaiting.seal.as_ref());
        // A requester at PTP's event port takes general messages at PTP's general port. One at any other port has only
        // that port, and a firewall or address translation on the way lets answers through to that one alone.
        let mut to = awaiting.to;
        if to.port() == EVENT_PORT {
            to.set_port(GENERAL_PORT);
        }
        Some(Outgoing { octets, to, from: awaiting.from })
    }

    fn send_follow_ups(&self, endpoint: &mut Endpoint, follow_ups: &[Outgoing]) {
        let refused = endpoint.send_generals(follow_ups);
        self.counters.followed_up.fetch_add(follow_ups.len() as u64 - refused, Ordering::Relaxed);
        self.counters.unsent.fetch_add(refused, Ordering::Relaxed);
    }

    fn count_suspends(&mut self) -> u32 {
        self.counted = self.suspends.count();
        self.counted
    }

    fn read_clocks(&mut self) -> ClockReading {
        *self.newest.insert(self.clocks.read())
    }

    /// The TLV for an answer, inside: none if it was not asked for. None if the stamp is too vague to be sent.
    fn extension(&self, stamp: &Stamp, suspends: u32, wanted: bool) -> Option<Option<Extension>> {
        if !wanted {
            return Some(None);
        }
        let host = self.clock.span(stamp.raw);
        Some(Some(Extension::Reading(Reading {
            raw_earliest: host.earliest.as_nanos(),
            raw_width: u32::try_from(host.width().get()).ok()?,
            class: stamp.class,
            incarnation: self.incarnation,
            suspends,
            steps: self.clocks.steps(),
            simulated: self.clock.is_simulated(),
            trusted_source: self.trusted_source,
        })))
    }

    /// The stamp by the host's `CLOCK_REALTIME`; that of a host with a simulated clock lies by as much.
    fn wall(&self, stamp: &Stamp) -> Time<Wall> {
        stamp.wall + self.clock.deviation(stamp.raw.earliest)
    }
}

/// What poll(2) says of an endpoint.
struct Ready {
    /// Its event socket has an error or stamps.
    failed: bool,
    readable: Readable,
}

/// Waits for packets, stamps or the end (then there is nothing).
fn wait(endpoints: &[Listening], stop: &EventFd, timeout: PollTimeout) -> Option<Vec<Ready>> {
    let mut fds = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    for Listening { endpoint, .. } in endpoints {
        // Where one socket serves both, it is looked at twice.
        for socket in [&endpoint.event, endpoint.general.as_ref().unwrap_or(&endpoint.event)] {
            fds.push(PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        }
    }
    // An error (a signal, no memory) reports nothing; the sockets are looked at all the same.
    let polled = poll(&mut fds, timeout).is_ok();
    let (stop, sockets) = fds.split_first()?;
    if stop.any() == Some(true) {
        return None;
    }
    let has = |fd: &PollFd<'_>, flag| fd.revents().is_some_and(|events| events.contains(flag));
    let ready = |pair: &[PollFd<'_>]| match pair {
        [event, general] => Some(Ready {
            failed: has(event, PollFlags::POLLERR),
            readable: Readable {
                event: !polled || has(event, PollFlags::POLLIN),
                // An error is taken off by looking.
                general: !polled || general.any() == Some(true),
            },
        }),
        _ => None,
    };
    sockets.chunks(2).map(ready).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SuspendWatch;
    use crate::exchange::StampClass;
    use crate::server::{HostConfig, ServerConfig, TimeServer};
    use crate::socket::StampedSocket;
    use crate::source::SkewSource;
    use crate::time::Offset;
    use crate::vmclock::VmClock;

    /// The module's next complete answers to one request.
    fn ask(module: &Module, socket: &mut StampedSocket, sequence: u16) -> [Reading; 2] {
        let request = Message {
            header: Header::request(0, sequence),
            body: Body::Request,
            extension: Some(Extension::Wanted),
        };
        let octets = authentication::encode(&request, None);
        socket.send(&octets, module.addresses()[0], None).unwrap();
        let mut answers = Vec::new();
        while answers.len() < 2 {
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap();
            while socket.transmit_stamp().is_some() {}
            answers.extend(socket.receive().map(|datagram| {
                match Message::parse(datagram.octets()).unwrap().extension {
                    Some(Extension::Reading(reading)) => reading,
                    other => panic!("{other:?}"),
                }
            }));
        }
        [answers[0], answers[1]]
    }

    #[test]
    fn a_move_of_the_machine_is_told_by_the_next_answer_and_no_stamp_of_before_is_used() {
        let page = crate::vmclock::tests::Page::new("module");
        let hypervisor = VmClock::open(&page.path).unwrap();
        let watch = SharedSuspendWatch::new(SuspendWatch::with_hypervisor(Some(hypervisor)));
        let localhost = IpAddr::from([127, 0, 0, 1]);
        let endpoint = Endpoint::bind(localhost, 0, Timestamps::Auto).unwrap();
        let incarnation = Incarnation::of_this_process().unwrap();
        let module =
            Module::serve(vec![endpoint], Arc::default(), 0, HostClock::real(), incarnation, watch).unwrap();
        let mut socket = StampedSocket::bind(SocketAddr::new(localhost, 0), true).unwrap();
        // The kernel begins to stamp arrivals a little after it was asked to.
        let stamped = |readings: [Reading; 2]| readings[0].class == StampClass::Software;
        let mut sequence = 0;
        while !stamped(ask(&module, &mut socket, sequence)) {
            sequence += 1;
        }
        let [response, follow_up] = ask(&module, &mut socket, 1_000);
        assert_eq!((response.suspends, follow_up.suspends), (0, 0));
        page.disrupt();
        let [response, follow_up] = ask(&module, &mut socket, 1_001);
        assert!(response.suspends >= 1 && follow_up.suspends == response.suspends, "{response:?}");
        assert_eq!(response.class, StampClass::Userspace);
        // And when the queue was seen to be empty after it, stamps are used again.
        let again = (1_002..1_010).any(|sequence| stamped(ask(&module, &mut socket, sequence)));
        assert!(again);
    }

    #[test]
    fn without_the_kernels_stamps_exchanges_go_on_with_wider_bounds() {
        let event = StampedSocket::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let address = event.local_address();
        let incarnation = Incarnation::of_this_process().unwrap();
        let endpoint = Endpoint { event, general: None };
        let module = Module::serve(
            vec![endpoint],
            Arc::default(),
            0,
            HostClock::real(),
            incarnation,
            Default::default(),
        )
        .unwrap();
        let hosts = vec![HostConfig::new("a", address)];
        let config = ServerConfig { hosts, event_port: 0, ..ServerConfig::default() };
        let server = TimeServer::start(&config, incarnation).unwrap();
        let names = ["a".to_owned()];
        let observation = (0..100)
            .find_map(|_| {
                server.burst(&names);
                server.observe("a").ok()
            })
            .unwrap();
        assert_eq!(observation.timestamps, StampClass::Userspace);
        assert!(observation.window.hard(server.now()).unwrap().contains(Offset::new(0)));
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert!(count(&module.counters().unstamped_requests) >= 8);
        assert!(count(&module.counters().unstamped_answers) >= 8);
    }
}
