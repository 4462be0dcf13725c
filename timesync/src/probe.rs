//! The core of `coeval probe`: exchanges with any PTP responder in the foreground, like `ping`.
//!
//! It compares the two machines' `CLOCK_REALTIME`, which is what stock responders stamp with: one thread and one
//! `poll(2)` are all it needs.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use uuid::Uuid;

use crate::authentication::{self, Association, Key};
use crate::bound::{Assumptions, Window};
use crate::clock::{Clocks, pace_now};
use crate::exchange::{Backward, Exchange, Forward, StampClass};
use crate::hardware::Timestamps;
use crate::module::StartError;
use crate::net_sync::{Mechanism, Replies};
use crate::report::{RoundTrips, SLEW_PPB};
use crate::socket::{Datagram, Endpoint};
use crate::time::{Nanos, Server, Span, Time, Wall};
use crate::translate::{ClockReading, HARDWARE_WALL_ERROR, PacketStamp, Stamp};
use crate::wire::{Body, Extension, Header, Message, REQUESTER, Reading};

/// What to probe, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// The responder's event port.
    pub target: SocketAddr,
    /// Our own event port. Stock daemons answer to 319 and 320 only, whatever port asked; 0: the system chooses.
    pub event_port: u16,
    /// Which timestamps are used. Network cards' only at PTP's port.
    pub timestamps: Timestamps,
    /// PTP domain.
    pub domain: u8,
    /// From one exchange to the next.
    pub interval: Nanos,
    /// An answer that takes longer is lost.
    pub timeout: Nanos,
}

/// One exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Probed {
    /// The request's number.
    pub sequence: u16,
    /// None: something of it was lost.
    pub answer: Option<Answer>,
}

/// What an exchange says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The responder's `CLOCK_REALTIME` less ours: right to within half the round trip and `error_ns`.
    pub offset_ns: i64,
    /// Between the stamping points, less the time that the responder took.
    pub rtt_ns: i64,
    /// What network cards' stamps leave open of `CLOCK_REALTIME`; 0 with the kernel's.
    pub error_ns: i64,
    /// Where our transmit stamp was taken.
    pub sent: StampClass,
    /// Where our receive stamp was taken.
    pub received: StampClass,
    /// The worse of the responder's two, where it tells: only a module does.
    pub responder: Option<StampClass>,
}

/// All exchanges so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The responder's `CLOCK_REALTIME` less ours at the last answer: the middle of the hard bound.
    pub offset_ns: Option<i64>,
    /// The hard bound's half-width. It assumes that neither clock was set meanwhile, or slewed by more than 1 000 ppm.
    pub hard_ns: Option<i64>,
    /// Round trips.
    pub rtt_ns: Option<RoundTrips>,
    /// Requests.
    pub sent: u64,
    /// Those that were not answered in full.
    pub lost: u64,
}

/// Exchanges that the summary's bound looks at.
const WINDOW: usize = 512;

/// Two wall clocks that may each be slewed by 1 000 ppm, on oscillators within 100 ppm. Slewing starts at any time.
fn assumptions() -> Assumptions {
    Assumptions { rate_ppb: 2_200_000, wander_ppb_per_s: None, ..Assumptions::default() }
}

/// A probe of one responder.
#[derive(Debug)]
pub struct Probe {
    config: ProbeConfig,
    endpoint: Endpoint,
    association: Option<Association>,
    mechanism: Mechanism,
    sequence: u16,
    due: Nanos,
    plain: bool,
    /// The newest packet whose transmit stamps are back, as far as they are.
    stamp: Option<(u32, PacketStamp)>,
    clocks: Clocks,
    window: Window,
    round_trips: Histogram<u64>,
    last: Option<Time<Server>>,
    sent: u64,
    lost: u64,
}

/// A stamp by `CLOCK_REALTIME`, of either machine.
#[derive(Clone, Copy)]
struct WallStamp {
    at: Time<Wall>,
    /// It may be off by this.
    error: Nanos,
    class: Option<StampClass>,
}

impl WallStamp {
    /// Its wall time was taken from `near`.
    fn ours(stamp: &Stamp, near: &ClockReading) -> Self {
        let apart = (stamp.raw.middle() - near.raw.middle()).abs();
        let error = hardware_error(stamp.class, stamp.raw.width(), apart);
        WallStamp { at: stamp.wall, error, class: Some(stamp.class) }
    }

    /// Its wall time was taken from a reading between the two stamps, which are `turnaround` apart.
    fn theirs(at: Time<Wall>, reading: Option<Reading>, turnaround: Nanos) -> Self {
        let error = reading.map_or(Nanos::ZERO, |reading| {
            hardware_error(reading.class, Nanos::new(reading.raw_width.into()), turnaround)
        });
        WallStamp { at, error, class: reading.map(|reading| reading.class) }
    }

    /// A clock that counts whole nanoseconds was up to one further on.
    fn span<T>(&self) -> Span<T> {
        let at = Time::from_nanos(self.at.as_nanos());
        Span { earliest: at - self.error, latest: at + self.error + Nanos::new(1) }
    }
}

/// `CLOCK_REALTIME` at a card's stamp is known no better than the stamp on the raw clock, and may have been slewed between
/// the stamp and the reading that it was taken from. The kernel's stamps, and this process's, are by `CLOCK_REALTIME`.
fn hardware_error(class: StampClass, width: Nanos, apart: Nanos) -> Nanos {
    if class != StampClass::Hardware {
        return Nanos::ZERO;
    }
    width + HARDWARE_WALL_ERROR + Nanos::new(apart.get().saturating_mul(SLEW_PPB) / 1_000_000_000)
}

impl Probe {
    /// Opens the sockets.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn open(config: ProbeConfig) -> Result<Self, StartError> {
        let any = if config.target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
        let [high, low, ..] = *Uuid::new_v4().as_bytes();
        #[expect(
            clippy::expect_used,
            reason = "the bounds and the precision are constants that the library documents as valid"
        )]
        let round_trips =
            Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("1 ns to 1 min at 2 digits");
        Ok(Probe {
            endpoint: Endpoint::bind(any, config.event_port, config.timestamps)?,
            association: None,
            mechanism: Mechanism::PeerDelay,
            config,
            sequence: u16::from_be_bytes([high, low]),
            due: pace_now(),
            plain: false,
            stamp: None,
            clocks: Clocks::new()?,
            window: Window::new(assumptions(), WINDOW),
            round_trips,
            last: None,
            sent: 0,
            lost: 0,
        })
    }

    /// Whom it asks.
    pub fn target(&self) -> SocketAddr {
        self.config.target
    }

    /// Asks in this way from here on; by peer delay at first.
    pub fn ask_by(&mut self, mechanism: Mechanism) {
        self.mechanism = mechanism;
    }

    /// Authenticates requests from here on, and takes only answers that are authenticated too: in linuxptp's form, which
    /// modules speak as well.
    pub fn authenticate(&mut self, key: Key) {
        self.association = Some(Association::new(key, false));
    }

    /// Waits until the next exchange is due, makes it, and returns when it is answered or lost.
    ///
    /// # Errors
    /// When the request cannot be sent: no route, no network.
    pub fn exchange(&mut self) -> std::io::Result<Probed> {
        self.drain_until(self.due);
        let now = pace_now();
        self.due = (self.due + self.config.interval).max(now);
        self.sequence = self.sequence.wrapping_add(1);
        let header = Header::request(self.config.domain, self.sequence);
        // Answered without our TLV, we ask without: all messages are to be equally long.
        let net_sync = self.mechanism == Mechanism::NetSync;
        let extension = (!self.plain && !net_sync).then_some(Extension::Wanted);
        let request = Message { header, body: self.mechanism.request(), extension };
        let mut replies = net_sync.then(|| Replies::new(REQUESTER, self.sequence));
        let seal = self.association.as_mut().map(Association::next_request);
        let octets = authentication::encode(&request, seal.as_ref());
        let before = self.clocks.read();
        self.sent += 1;
        self.lost += 1;
        let number = self.endpoint.event.send(&octets, self.config.target, None)?;
        let deadline = now + self.config.timeout;
        self.take_stamps();
        let mut response = None;
        let mut follow_up = None;
        let mut datagrams = Vec::new();
        loop {
            for datagram in datagrams.drain(..) {
                self.take(&datagram, &before, &mut replies, &mut response, &mut follow_up);
            }
            if let (Some((received, theirs, t4)), Some((sent, theirs_too))) = (response, follow_up) {
                self.take_stamps();
                let stamp = self.stamp.filter(|(of, _)| Some(*of) == number).map(|(_, stamp)| stamp);
                let t1 = Stamp::sent(stamp.unwrap_or_default(), &before, &self.clocks.read());
                let turnaround = (sent - received).abs();
                let t2 = WallStamp::theirs(received, theirs, turnaround);
                let t3 = WallStamp::theirs(sent, theirs_too, turnaround);
                let answer = self.conclude([WallStamp::ours(&t1, &before), t2, t3, t4]);
                return Ok(Probed { sequence: self.sequence, answer: Some(answer) });
            }
            if !self.wait(deadline, &mut datagrams) {
                return Ok(Probed { sequence: self.sequence, answer: None });
            }
        }
    }

    /// Takes a datagram if it answers the present request: t2 with our own t4, or t3.
    fn take(
        &mut self,
        datagram: &Datagram,
        before: &ClockReading,
        replies: &mut Option<Replies>,
        response: &mut Option<(Time<Wall>, Option<Reading>, WallStamp)>,
        follow_up: &mut Option<(Time<Wall>, Option<Reading>)>,
    ) {
        let after = self.clocks.read();
        let association = self.association.as_ref();
        let Ok(octets) = authentication::admit(association, datagram.octets()) else { return };
        let Ok(message) = Message::parse(octets) else { return };
        if datagram.from.ip() != self.config.target.ip() || message.header.domain != self.config.domain {
            return;
        }
        let answers = match replies {
            Some(replies) => replies.take(&message, datagram.stamp),
            None => vec![(message, datagram.stamp)],
        };
        for (answer, stamp) in answers {
            let arrived = WallStamp::ours(&Stamp::received(stamp, before, &after), &after);
            self.take_answer(&answer, arrived, response, follow_up);
        }
    }

    fn take_answer(
        &mut self,
        message: &Message,
        arrived: WallStamp,
        response: &mut Option<(Time<Wall>, Option<Reading>, WallStamp)>,
        follow_up: &mut Option<(Time<Wall>, Option<Reading>)>,
    ) {
        let ours = message.header.sequence == self.sequence;
        let reading = match message.extension {
            Some(Extension::Reading(reading)) => Some(reading),
            _ => None,
        };
        match message.body {
            Body::Response { received, requester }
                if ours && requester == REQUESTER && response.is_none() && received.as_nanos() != 0 =>
            {
                self.plain = reading.is_none();
                *response = Some((received, reading, arrived));
                if !message.header.two_step {
                    // No follow-up comes, and it left no earlier than the request arrived.
                    *follow_up = Some((received, reading));
                }
            }
            Body::FollowUp { sent, requester } if ours && requester == REQUESTER && follow_up.is_none() => {
                *follow_up = Some((sent, reading));
            }
            _ => {}
        }
    }

    fn conclude(&mut self, [t1, t2, t3, t4]: [WallStamp; 4]) -> Answer {
        self.window.push(&Exchange {
            forward: Some(Forward { sent: t1.span(), received: t2.span() }),
            backward: Some(Backward { sent: t3.span(), received: t4.span() }),
        });
        self.last = Some(Time::from_nanos(t4.at.as_nanos()));
        let (there, back) = ((t2.at - t1.at).get(), (t3.at - t4.at).get());
        let rtt_ns = there.saturating_sub(back);
        self.round_trips.saturating_record(u64::try_from(rtt_ns).unwrap_or(0).max(1));
        self.lost -= 1;
        let offset_ns = there / 2 + back / 2 + (there % 2 + back % 2) / 2;
        let userspace = StampClass::Userspace;
        let (sent, received) = (t1.class.unwrap_or(userspace), t4.class.unwrap_or(userspace));
        let error_ns =
            ([t1, t2, t3, t4].iter().fold(Nanos::ZERO, |sum, stamp| sum + stamp.error).get() + 1) / 2;
        Answer { offset_ns, rtt_ns, error_ns, sent, received, responder: t2.class.max(t3.class) }
    }

    /// What all exchanges so far say.
    pub fn summary(&self) -> Summary {
        let bound = self.last.and_then(|last| self.window.hard(last).ok());
        let trips = &self.round_trips;
        Summary {
            offset_ns: bound.map(|bound| bound.middle().get()),
            hard_ns: bound.map(|bound| bound.half_width().get()),
            rtt_ns: (!trips.is_empty()).then(|| RoundTrips::of(trips)),
            sent: self.sent,
            lost: self.lost,
        }
    }

    /// Throws away what arrives until `until`: late answers.
    fn drain_until(&mut self, until: Nanos) {
        let mut late = Vec::new();
        while self.wait(until, &mut late) {
            late.clear();
        }
    }

    /// Waits for datagrams, at most until `deadline`; whether there is time left.
    fn wait(&mut self, deadline: Nanos, into: &mut Vec<Datagram>) -> bool {
        let left = deadline - pace_now();
        if left <= Nanos::ZERO {
            return false;
        }
        let millis = (left.get() + 999_999) / 1_000_000;
        let timeout =
            PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX);
        let event = &self.endpoint.event;
        let sockets = std::iter::once(event).chain(&self.endpoint.general);
        let mut fds: Vec<_> = sockets.map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
        // An error (a signal) reports nothing; the sockets are looked at all the same.
        let _ = poll(&mut fds, timeout);
        let ready = |flag| fds.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(flag)));
        let (readable, failed) = (ready(PollFlags::POLLIN), ready(PollFlags::POLLERR));
        if readable {
            self.endpoint.receive(1, into);
        } else if failed && !self.take_stamps() {
            self.endpoint.event.clear_error();
        }
        true
    }

    /// Whether there were any.
    fn take_stamps(&mut self) -> bool {
        let mut any = false;
        while let Some((number, mut stamp)) = self.endpoint.event.transmit_stamp() {
            if let Some((_, earlier)) = self.stamp.filter(|(of, _)| *of == number) {
                stamp.merge(earlier);
            }
            (self.stamp, any) = (Some((number, stamp)), true);
        }
        any
    }
}
