//! The core of `coeval probe`: exchanges with any PTP responder in the foreground, like `ping`.
//!
//! It compares the two machines' `CLOCK_REALTIME`, which is what stock responders stamp with, so nothing is translated
//! and one thread, one `poll(2)` and two ordinary clocks are all it needs.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use hdrhistogram::Histogram;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use uuid::Uuid;

use crate::authentication::{self, Association, Key};
use crate::bound::{Assumptions, Window};
use crate::clock::{pace_now, wall_now};
use crate::exchange::{Backward, Exchange, Forward, StampClass};
use crate::net_sync::{Mechanism, Replies};
use crate::report::RoundTrips;
use crate::socket::{Datagram, Endpoint, SocketError};
use crate::time::{Host, Nanos, Server, Span, Time, Wall};
use crate::wire::{Body, Extension, Header, Message, REQUESTER};

/// What to probe, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeConfig {
    /// The responder's event port.
    pub target: SocketAddr,
    /// Our own event port. Stock daemons answer to 319 and 320 only, whatever port asked; 0: the system chooses.
    pub event_port: u16,
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
    /// The responder's `CLOCK_REALTIME` less ours: right to within half the round trip.
    pub offset_ns: i64,
    /// Between the stamping points, less the time that the responder took.
    pub rtt_ns: i64,
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
    /// The newest transmit stamp that is back, and its packet's number.
    stamp: Option<(u32, Time<Wall>)>,
    window: Window,
    round_trips: Histogram<u64>,
    last: Option<Time<Server>>,
    sent: u64,
    lost: u64,
}

/// Half of an exchange: a stamp of ours.
#[derive(Clone, Copy)]
struct Own {
    at: Time<Wall>,
    class: StampClass,
}

impl Own {
    fn new(kernel: Option<Time<Wall>>, userspace: Time<Wall>) -> Self {
        match kernel {
            Some(at) => Own { at, class: StampClass::Software },
            None => Own { at: userspace, class: StampClass::Userspace },
        }
    }
}

impl Probe {
    /// Opens the sockets.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn open(config: ProbeConfig) -> Result<Self, SocketError> {
        let any = if config.target.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
        let [high, low, ..] = *Uuid::new_v4().as_bytes();
        #[expect(
            clippy::expect_used,
            reason = "the bounds and the precision are constants that the library documents as valid"
        )]
        let round_trips =
            Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("1 ns to 1 min at 2 digits");
        Ok(Probe {
            endpoint: Endpoint::bind(any, config.event_port)?,
            association: None,
            mechanism: Mechanism::PeerDelay,
            config,
            sequence: u16::from_be_bytes([high, low]),
            due: pace_now(),
            plain: false,
            stamp: None,
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
        let header = Header {
            domain: self.config.domain,
            sdo: 0,
            minor_version: 1,
            two_step: false,
            unicast: true,
            correction: 0,
            source: REQUESTER,
            sequence: self.sequence,
        };
        // Answered without our TLV, we ask without: all messages are to be equally long.
        let net_sync = self.mechanism == Mechanism::NetSync;
        let extension = (!self.plain && !net_sync).then_some(Extension::Wanted);
        let request = Message { header, body: self.mechanism.request(), extension };
        let mut replies = net_sync.then(|| Replies::new(REQUESTER, self.sequence));
        let seal = self.association.as_mut().map(Association::next_request);
        let octets = authentication::encode(&request, seal.as_ref());
        let before = wall_now();
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
                self.take(&datagram, &mut replies, &mut response, &mut follow_up);
            }
            if let (Some((received, t4, near)), Some((sent, far))) = (response, follow_up) {
                let kernel = self.stamp.filter(|(of, _)| Some(*of) == number).map(|(_, at)| at);
                let answer = self.conclude(Own::new(kernel, before), received, sent, t4, near.max(far));
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
        replies: &mut Option<Replies>,
        response: &mut Option<(Time<Wall>, Own, Option<StampClass>)>,
        follow_up: &mut Option<(Time<Wall>, Option<StampClass>)>,
    ) {
        let now = wall_now();
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
            self.take_answer(&answer, Own::new(stamp, now), response, follow_up);
        }
    }

    fn take_answer(
        &mut self,
        message: &Message,
        arrived: Own,
        response: &mut Option<(Time<Wall>, Own, Option<StampClass>)>,
        follow_up: &mut Option<(Time<Wall>, Option<StampClass>)>,
    ) {
        let ours = message.header.sequence == self.sequence;
        let class = match message.extension {
            Some(Extension::Reading(reading)) => Some(reading.class),
            _ => None,
        };
        match message.body {
            Body::Response { received, requester }
                if ours && requester == REQUESTER && response.is_none() && received.as_nanos() != 0 =>
            {
                self.plain = class.is_none();
                *response = Some((received, arrived, class));
                if !message.header.two_step {
                    // No follow-up comes, and it left no earlier than the request arrived.
                    *follow_up = Some((received, class));
                }
            }
            Body::FollowUp { sent, requester } if ours && requester == REQUESTER && follow_up.is_none() => {
                *follow_up = Some((sent, class));
            }
            _ => {}
        }
    }

    fn conclude(
        &mut self,
        t1: Own,
        t2: Time<Wall>,
        t3: Time<Wall>,
        t4: Own,
        responder: Option<StampClass>,
    ) -> Answer {
        // A clock that counts whole nanoseconds was up to one further on.
        let server = |at: Time<Wall>| -> Span<Server> {
            let earliest = Time::from_nanos(at.as_nanos());
            Span { earliest, latest: earliest + Nanos::new(1) }
        };
        let host = |at: Time<Wall>| -> Span<Host> {
            let earliest = Time::from_nanos(at.as_nanos());
            Span { earliest, latest: earliest + Nanos::new(1) }
        };
        self.window.push(&Exchange {
            forward: Some(Forward { sent: server(t1.at), received: host(t2) }),
            backward: Some(Backward { sent: host(t3), received: server(t4.at) }),
        });
        self.last = Some(server(t4.at).earliest);
        let (there, back) = ((t2 - t1.at).get(), (t3 - t4.at).get());
        let rtt_ns = there.saturating_sub(back);
        self.round_trips.saturating_record(u64::try_from(rtt_ns).unwrap_or(0).max(1));
        self.lost -= 1;
        let offset_ns = there / 2 + back / 2 + (there % 2 + back % 2) / 2;
        Answer { offset_ns, rtt_ns, sent: t1.class, received: t4.class, responder }
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
        while let Some(stamp) = self.endpoint.event.transmit_stamp() {
            (self.stamp, any) = (Some(stamp), true);
        }
        any
    }
}
