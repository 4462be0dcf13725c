//! The other way to ask a stock daemon: one that measures end to end (`delay_mechanism E2E`) answers no `Pdelay_Req`, but
//! as a NetSync monitor (ptp4l(8): `net_sync_monitor`, with `hybrid_e2e`) it answers a marked `Delay_Req` with three
//! messages in any order: `Delay_Resp` (t2), `Sync` (t3 → t4) and `Follow_Up` (t3).
//!
//! That is the same exchange of four timestamps. So the three are put together to the two that peer delay has, and
//! everything else need not know.

use crate::time::{Time, Wall};
use crate::translate::PacketStamp;
use crate::wire::{Body, Header, Message, PortIdentity};

/// How a host is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mechanism {
    /// Peer delay: modules, and stock daemons with `-P`.
    #[default]
    PeerDelay,
    /// As a NetSync monitor: stock daemons with `-E`, which then correct for end-to-end transparent clocks.
    NetSync,
}

impl Mechanism {
    /// What a request's body is.
    pub fn request(self) -> Body {
        match self {
            Mechanism::PeerDelay => Body::Request,
            Mechanism::NetSync => Body::DelayRequest,
        }
    }
}

/// The replies to one request, so far.
#[derive(Clone, Debug)]
pub struct Replies {
    requester: PortIdentity,
    sequence: u16,
    /// With the stamp of its arrival, t4.
    sync: Option<(Header, PacketStamp)>,
    /// t2, and the way there's correction.
    received: Option<(Time<Wall>, i64)>,
    /// t3.
    sent: Option<Time<Wall>>,
    responded: bool,
    followed_up: bool,
}

impl Replies {
    /// To the request of `requester` with this sequenceId.
    pub fn new(requester: PortIdentity, sequence: u16) -> Self {
        let (sync, received, sent) = (None, None, None);
        Replies { requester, sequence, sync, received, sent, responded: false, followed_up: false }
    }

    /// Takes a reply that arrived at `stamp`, and returns what of peer delay's answers it completes: the response with its
    /// arrival's stamp, the follow-up, both, or none.
    pub fn take(&mut self, message: &Message, stamp: impl Into<PacketStamp>) -> Vec<(Message, PacketStamp)> {
        let header = message.header;
        // A daemon that is a master sends Sync messages of its own accord, too: those are not unicast.
        if header.sequence != self.sequence || !header.unicast {
            return Vec::new();
        }
        match message.body {
            Body::Sync { sent } if self.sync.is_none() => {
                self.sync = Some((header, stamp.into()));
                if !header.two_step {
                    self.sent = Some(sent);
                }
            }
            Body::SyncFollowUp { sent } if self.sent.is_none() => self.sent = Some(sent),
            Body::DelayResponse { received, requester }
                if self.received.is_none() && requester == self.requester =>
            {
                self.received = Some((received, header.correction));
            }
            _ => return Vec::new(),
        }
        self.completed()
    }

    fn completed(&mut self) -> Vec<(Message, PacketStamp)> {
        let mut completed = Vec::new();
        let (Some((header, stamp)), Some((received, there))) = (self.sync, self.received) else {
            return completed;
        };
        let requester = self.requester;
        if !std::mem::replace(&mut self.responded, true) {
            // The Sync's correction is the way back's, as a peer-delay response's is.
            let header = Header { two_step: true, ..header };
            completed.push((
                Message { header, body: Body::Response { received, requester }, extension: None },
                stamp,
            ));
        }
        if let Some(sent) = self.sent
            && !std::mem::replace(&mut self.followed_up, true)
        {
            let header = Header { two_step: false, correction: there, ..header };
            completed.push((
                Message { header, body: Body::FollowUp { sent, requester }, extension: None },
                PacketStamp::default(),
            ));
        }
        completed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::REQUESTER;

    const HOST: PortIdentity = PortIdentity { clock: [7; 8], port: 1 };

    fn message(body: Body, correction: i64, two_step: bool) -> Message {
        let header = Header {
            domain: 0,
            sdo: 0,
            minor_version: 0,
            two_step,
            unicast: true,
            correction,
            source: HOST,
            sequence: 9,
        };
        Message { header, body, extension: None }
    }

    fn at(nanos: i64) -> Time<Wall> {
        Time::from_nanos(nanos)
    }

    fn replies() -> [Message; 3] {
        [
            message(Body::DelayResponse { received: at(200), requester: REQUESTER }, 5, false),
            message(Body::Sync { sent: at(0) }, 3, true),
            message(Body::SyncFollowUp { sent: at(300) }, 0, false),
        ]
    }

    #[test]
    fn in_any_order_the_replies_are_one_response_and_one_follow_up() {
        let replies = replies();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut taken = Replies::new(REQUESTER, 9);
            let mut answers = Vec::new();
            for i in order {
                for _ in 0..2 {
                    // A second time: duplicates say nothing.
                    answers.extend(taken.take(&replies[i], (i == 1).then(|| at(400))));
                }
            }
            let [(response, arrived), (follow_up, _)] = answers[..] else { panic!("{answers:?}") };
            assert_eq!(response.body, Body::Response { received: at(200), requester: REQUESTER });
            assert_eq!(
                (response.header.correction, response.header.two_step, arrived),
                (3, true, Some(at(400)).into())
            );
            assert_eq!(follow_up.body, Body::FollowUp { sent: at(300), requester: REQUESTER });
            assert_eq!((follow_up.header.correction, follow_up.header.source), (5, HOST));
        }
    }

    #[test]
    fn a_one_step_sync_needs_no_follow_up_and_half_of_the_replies_is_half_an_exchange() {
        let [delay_response, sync, _] = replies();
        let one_step = message(Body::Sync { sent: at(300) }, 3, false);
        let mut taken = Replies::new(REQUESTER, 9);
        assert!(taken.take(&one_step, Some(at(400))).is_empty());
        assert_eq!(taken.take(&delay_response, None).len(), 2);
        let mut taken = Replies::new(REQUESTER, 9);
        assert!(taken.take(&sync, Some(at(400))).is_empty());
        assert_eq!(taken.take(&delay_response, None).len(), 1);
    }

    #[test]
    fn what_answers_another_request_or_nobody_is_not_taken() {
        let [mut multicast, mut late] = [replies()[1]; 2];
        multicast.header.unicast = false;
        late.header.sequence = 8;
        let other = message(Body::DelayResponse { received: at(200), requester: HOST }, 0, false);
        let mut taken = Replies::new(REQUESTER, 9);
        for stray in [multicast, late, other, message(Body::Request, 0, false)] {
            assert!(taken.take(&stray, None).is_empty());
        }
        assert!(taken.sync.is_none() && taken.received.is_none());
    }
}
