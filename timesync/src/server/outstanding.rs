//! One exchange on its way: what came of it so far.

use serde::{Deserialize, Serialize};

use crate::clock::ServerClock;
use crate::correction::Corrections;
use crate::exchange::{Backward, Exchange, Forward, StampClass, WallReading};
use crate::identity::Incarnation;
use crate::time::{Host, Nanos, Server, Span, Time, Wall};
use crate::translate::{ClockReading, HARDWARE_WALL_ERROR, PacketStamp, Stamp};
use crate::wire::{Body, Extension, Message, PortIdentity, Reading};

/// An exchange whose request was sent.
#[derive(Clone, Debug)]
pub struct Outstanding {
    /// The request's sequenceId.
    pub sequence: u16,
    /// By which the kernel calls the request's stamp.
    pub number: Option<u32>,
    /// The request's stamps, as far as they are back.
    pub sent: PacketStamp,
    before: ClockReading,
    response: Option<Response>,
    follow_up: Option<FollowUp>,
    heard: Option<Responder>,
}

#[derive(Clone, Copy, Debug)]
struct Response {
    /// t4.
    arrived: Stamp,
    /// Read after it arrived.
    after: ClockReading,
    /// t2.
    received: Time<Wall>,
    /// The way back's.
    correction: i64,
    responder: Responder,
    reading: Option<Reading>,
}

#[derive(Clone, Copy, Debug)]
struct FollowUp {
    /// t3.
    sent: Time<Wall>,
    /// The way there's.
    correction: i64,
    responder: Responder,
    reading: Option<Reading>,
}

/// Who answers. If anything in here changes, the timeline is another one, or cannot be trusted as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Responder {
    /// A PTP daemon without our module.
    Plain(PortIdentity),
    /// A module.
    Module {
        /// Which one.
        incarnation: Incarnation,
        /// How often its machine was suspended.
        suspends: u32,
        /// Its clock is simulated.
        simulated: bool,
        /// Its clock source keeps an oscillator's rate.
        trusted_source: bool,
    },
}

/// What came of an exchange.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Both halves, or the forward one.
    pub exchange: Exchange,
    /// What transparent clocks said of its packets. The exchange is as measured, without regard to this.
    pub corrections: Corrections,
    /// Who answered.
    pub responder: Responder,
    /// The server's wall clock when the request left.
    pub server_wall: WallReading<Server>,
    /// The host's wall clock when the request arrived.
    pub host_wall: WallReading<Host>,
    /// How much longer than the request's delay is it at most from one instant to the other that the two wall clocks are
    /// known at? The server's is read before it sends, the host's between t2 and t3; only the kernel's stamps are
    /// `CLOCK_REALTIME` themselves.
    pub apart: Nanos,
    /// The worst of the stamps' classes. A plain responder does not tell its own.
    pub class: StampClass,
    /// How often the host's wall clock was set while its module ran.
    pub steps: u32,
}

impl Outstanding {
    /// A request that was sent after `before` was read.
    pub fn new(sequence: u16, number: Option<u32>, before: ClockReading) -> Self {
        Outstanding {
            sequence,
            number,
            sent: PacketStamp::default(),
            before,
            response: None,
            follow_up: None,
            heard: None,
        }
    }

    /// Takes an answer that was received before `after` was read. Returns whether it belongs to this exchange: the first
    /// of its kind with the sequence number and the identity `requester` of the request does. Replays do not.
    pub fn accept(
        &mut self,
        message: &Message,
        requester: PortIdentity,
        stamp: impl Into<PacketStamp>,
        after: &ClockReading,
    ) -> bool {
        if message.header.sequence != self.sequence {
            return false;
        }
        let reading = match message.extension {
            Some(Extension::Reading(reading)) => Some(reading),
            Some(Extension::Wanted) => return false,
            None => None,
        };
        let responder =
            reading.map_or(Responder::Plain(message.header.source), |reading| Responder::Module {
                incarnation: reading.incarnation,
                suspends: reading.suspends,
                simulated: reading.simulated,
                trusted_source: reading.trusted_source,
            });
        let correction = message.header.correction;
        let taken = match message.body {
            Body::Response { received, requester: named }
                if named == requester && self.response.is_none() && says_when(received, reading) =>
            {
                let arrived = Stamp::received(stamp, &self.before, after);
                let after = *after;
                if !message.header.two_step {
                    // Its correction is the turnaround (§11.4.2) and whatever transparent clocks added to it, so only
                    // this is sure: it left no earlier than the request arrived.
                    self.response =
                        Some(Response { arrived, after, received, correction: 0, responder, reading });
                    self.follow_up = Some(FollowUp { sent: received, correction: 0, responder, reading });
                } else {
                    self.response =
                        Some(Response { arrived, after, received, correction, responder, reading });
                }
                true
            }
            Body::FollowUp { sent, requester: named } if named == requester && self.follow_up.is_none() => {
                self.follow_up = Some(FollowUp { sent, correction, responder, reading });
                true
            }
            _ => false,
        };
        if taken {
            self.heard = Some(responder);
        }
        taken
    }

    /// Who gave the newest of the answers that were taken; none before the first.
    pub fn responder(&self) -> Option<Responder> {
        self.heard
    }

    /// Whether both answers are here.
    pub fn is_complete(&self) -> bool {
        self.response.is_some() && self.follow_up.is_some()
    }

    /// What came of it. Without a response, nothing; without the follow-up, the forward half. If the two differ in who
    /// gave them, the timeline became another one in between: nothing again.
    pub fn outcome(&self) -> Option<Outcome> {
        let response = self.response?;
        if self.follow_up.is_some_and(|follow_up| follow_up.responder != response.responder) {
            return None;
        }
        // A network card's stamp may come back later than the response.
        let t1 = Stamp::sent(self.sent, &self.before, &response.after);
        let t4 = response.arrived;
        let received = on_host_timeline(response.received, response.reading);
        let sent_on_server = ServerClock.span(t1.raw);
        let follow_up = self.follow_up;
        let since_reading = t1.raw.latest - self.before.raw.earliest;
        let turnaround = follow_up.map_or(Nanos::ZERO, |follow_up| {
            on_host_timeline(follow_up.sent, follow_up.reading).latest - received.earliest
        });
        let of_card = |class, apart| if class == StampClass::Hardware { apart } else { Nanos::ZERO };
        let apart = of_card(t1.class, since_reading)
            + response.reading.map_or(Nanos::ZERO, |reading| of_card(reading.class, turnaround));
        let classes = [
            Some(t1.class),
            Some(t4.class),
            response.reading.map(|reading| reading.class),
            follow_up.and_then(|follow_up| follow_up.reading).map(|reading| reading.class),
        ];
        Some(Outcome {
            exchange: Exchange {
                forward: Some(Forward { sent: sent_on_server, received }),
                backward: follow_up.map(|follow_up| Backward {
                    sent: on_host_timeline(follow_up.sent, follow_up.reading),
                    received: ServerClock.span(t4.raw),
                }),
            },
            corrections: Corrections {
                forward: follow_up.map_or(0, |follow_up| follow_up.correction),
                backward: response.correction,
            },
            responder: response.responder,
            server_wall: wall_reading(t1.wall, sent_on_server, Some(t1.class)),
            host_wall: wall_reading(
                response.received,
                received,
                response.reading.map(|reading| reading.class),
            ),
            apart,
            class: classes.into_iter().flatten().max().unwrap_or(StampClass::Userspace),
            steps: response.reading.map_or(0, |reading| reading.steps),
        })
    }
}

/// A responder may say zero and give nothing but its turnaround (IEEE 1588-2019 §11.4.2): the mean delay follows from
/// that, but no offset.
fn says_when(received: Time<Wall>, reading: Option<Reading>) -> bool {
    reading.is_some() || received.as_nanos() != 0
}

/// `CLOCK_REALTIME` at a stamp: that of a network card's stamp is known as of its middle.
fn wall_reading<T>(wall: Time<Wall>, stamp: Span<T>, class: Option<StampClass>) -> WallReading<T> {
    let at = match class {
        Some(StampClass::Hardware) => {
            let middle = stamp.middle();
            Span { earliest: middle - HARDWARE_WALL_ERROR, latest: middle + HARDWARE_WALL_ERROR }
        }
        _ => stamp,
    };
    WallReading { wall, at }
}

/// A plain responder has no timeline but that of its stamps, which are in whole nanoseconds.
fn on_host_timeline(wall: Time<Wall>, reading: Option<Reading>) -> Span<Host> {
    let (earliest, width) = match reading {
        Some(reading) => (reading.raw_earliest, i64::from(reading.raw_width)),
        None => (wall.as_nanos(), 1),
    };
    let earliest = Time::from_nanos(earliest);
    Span { earliest, latest: earliest + Nanos::new(width) }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::identity::{BootId, ProcessId};
    use crate::time::Raw;
    use crate::wire::Header;

    const SERVER: PortIdentity = PortIdentity { clock: [2; 8], port: 1 };

    fn clocks(at: i64) -> ClockReading {
        ClockReading {
            wall: Time::from_nanos(1_000_000 + at),
            raw: Span::<Raw>::exact(Time::from_nanos(at)),
            ahead_of_monotonic: (Nanos::ZERO, Nanos::ZERO),
            slew_ppb: 0,
            steps_before: 0,
            steps_after: 0,
        }
    }

    fn reading(process: u128, raw: i64) -> Extension {
        Extension::Reading(Reading {
            raw_earliest: raw,
            raw_width: 10,
            class: StampClass::Software,
            incarnation: Incarnation {
                boot: BootId(Uuid::from_u128(1)),
                process: ProcessId(Uuid::from_u128(process)),
            },
            suspends: 0,
            steps: 4,
            simulated: false,
            trusted_source: true,
        })
    }

    fn message(sequence: u16, body: Body, extension: Option<Extension>) -> Message {
        let header = Header {
            domain: 0,
            sdo: 0,
            minor_version: 1,
            two_step: true,
            unicast: true,
            correction: 0,
            source: PortIdentity { clock: [7; 8], port: 1 },
            sequence,
        };
        Message { header, body, extension }
    }

    fn response(extension: Option<Extension>) -> Message {
        message(9, Body::Response { received: Time::from_nanos(500), requester: SERVER }, extension)
    }

    fn follow_up(extension: Option<Extension>) -> Message {
        message(9, Body::FollowUp { sent: Time::from_nanos(510), requester: SERVER }, extension)
    }

    fn request() -> Outstanding {
        let mut request = Outstanding::new(9, Some(0), clocks(100));
        request.sent = Some(Time::from_nanos(1_000_110)).into();
        request
    }

    #[test]
    fn answers_in_either_order_make_an_exchange() {
        let answers = [response(Some(reading(5, 7_000))), follow_up(Some(reading(5, 7_050)))];
        for order in [[0, 1], [1, 0]] {
            let mut request = request();
            for i in order {
                assert!(!request.is_complete());
                let stamp = Some(Time::from_nanos(1_000_190));
                assert!(request.accept(&answers[i], SERVER, stamp, &clocks(200)));
                assert!(!request.accept(&answers[i], SERVER, stamp, &clocks(200)), "a replay");
            }
            let outcome = request.outcome().unwrap();
            assert!(request.is_complete());
            let (forward, backward) = (outcome.exchange.forward.unwrap(), outcome.exchange.backward.unwrap());
            assert_eq!(forward.received.earliest.as_nanos(), 7_000);
            assert_eq!(backward.sent.latest.as_nanos(), 7_060);
            assert!(forward.sent.earliest.as_nanos() <= 110 && 110 <= forward.sent.latest.as_nanos());
            assert!(
                backward.received.earliest.as_nanos() <= 190 && 190 <= backward.received.latest.as_nanos()
            );
            assert_eq!((outcome.class, outcome.steps), (StampClass::Software, 4));
        }
    }

    #[test]
    fn what_belongs_to_another_request_is_not_taken() {
        let other = PortIdentity { clock: [3; 8], port: 1 };
        let received = Time::from_nanos(500);
        for stray in [
            message(8, Body::Response { received, requester: SERVER }, None),
            message(9, Body::Response { received, requester: other }, None),
            message(9, Body::FollowUp { sent: received, requester: other }, None),
            message(9, Body::Request, None),
            response(Some(Extension::Wanted)),
        ] {
            let mut request = request();
            assert!(!request.accept(&stray, SERVER, None, &clocks(200)));
            assert!(request.outcome().is_none());
        }
    }

    #[test]
    fn a_network_cards_stamp_counts_though_it_comes_after_the_response() {
        let mut request = request();
        let Extension::Reading(hardware) = reading(5, 7_000) else { unreachable!() };
        let hardware = Extension::Reading(Reading { class: StampClass::Hardware, ..hardware });
        let span = |at: i64| Span { earliest: Time::from_nanos(at - 30), latest: Time::from_nanos(at + 30) };
        let stamp = |at| PacketStamp { software: None, hardware: Some(span(at)) };
        request.accept(&response(Some(hardware)), SERVER, stamp(180), &clocks(200));
        assert_eq!(request.outcome().unwrap().class, StampClass::Software, "the worst of all stamps counts");
        request.sent.merge(stamp(120));
        request.accept(&follow_up(Some(hardware)), SERVER, None, &clocks(300));
        let outcome = request.outcome().unwrap();
        assert_eq!(outcome.class, StampClass::Hardware);
        assert_eq!(outcome.exchange.forward.unwrap().sent, ServerClock.span(span(120)));
        assert_eq!(outcome.exchange.backward.unwrap().received, ServerClock.span(span(180)));
        // However wide the stamp's interval is, both wall clocks are known as of its middle.
        assert_eq!(outcome.server_wall.at.width(), HARDWARE_WALL_ERROR + HARDWARE_WALL_ERROR);
        assert_eq!(outcome.server_wall.wall, Time::from_nanos(1_000_120));
        assert_eq!(outcome.host_wall.at.middle(), Time::from_nanos(7_005));
        assert_eq!(outcome.apart, Nanos::new((150 - 100) + (7_010 - 7_000)));
    }

    #[test]
    fn a_follow_up_that_is_lost_leaves_the_forward_half_and_one_by_another_nothing() {
        let mut request = request();
        assert_eq!(request.responder(), None);
        request.accept(&response(Some(reading(5, 7_000))), SERVER, None, &clocks(200));
        let exchange = request.outcome().unwrap().exchange;
        assert!(exchange.forward.is_some() && exchange.backward.is_none());
        let before = request.responder();
        request.accept(&follow_up(Some(reading(6, 7_050))), SERVER, None, &clocks(200));
        assert!(request.outcome().is_none());
        assert!(before.is_some() && request.responder() != before, "whoever answers tells who it is");
    }

    #[test]
    fn a_one_step_response_is_an_exchange_by_itself_if_it_says_when() {
        let mut one_step = response(None);
        one_step.header.two_step = false;
        one_step.header.correction = 7 << 16;
        let mut asked = request();
        assert!(asked.accept(&one_step, SERVER, Some(Time::from_nanos(1_000_190)), &clocks(200)));
        assert!(asked.is_complete());
        let outcome = asked.outcome().unwrap();
        let (forward, backward) = (outcome.exchange.forward.unwrap(), outcome.exchange.backward.unwrap());
        assert_eq!(
            (forward.received, backward.sent),
            (on_host_timeline(Time::from_nanos(500), None), forward.received)
        );
        assert_eq!(outcome.corrections, Corrections::default(), "the turnaround is no residence time");

        let received = Time::from_nanos(0);
        let untimed = message(9, Body::Response { received, requester: SERVER }, None);
        let mut asked = request();
        assert!(!asked.accept(&untimed, SERVER, None, &clocks(200)), "it gives its turnaround only");
    }

    #[test]
    fn without_the_kernels_stamps_the_readings_around_the_packet_stand_in() {
        let mut request = Outstanding::new(9, None, clocks(100));
        request.accept(&response(None), SERVER, None, &clocks(200));
        request.accept(&follow_up(None), SERVER, None, &clocks(300));
        let outcome = request.outcome().unwrap();
        assert_eq!(outcome.class, StampClass::Userspace);
        assert_eq!(outcome.exchange.forward.unwrap().sent, Span::exact(Time::from_nanos(100)));
        assert_eq!(outcome.exchange.backward.unwrap().received, Span::exact(Time::from_nanos(200)));
        assert_eq!(outcome.responder, Responder::Plain(PortIdentity { clock: [7; 8], port: 1 }));
    }
}
