//! What one four-timestamp exchange established.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::{Host, Nanos, Server, Span, Time, Wall};

/// Where a timestamp was taken, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StampClass {
    /// By the network card, near the wire.
    Hardware,
    /// By the kernel, on the packet's way through the driver or the receive path.
    Software,
    /// By this process, before the send or after the receive.
    Userspace,
}

/// A packet from the server to the host: t1 → t2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// t1, on the server's timeline.
    pub sent: Span<Server>,
    /// t2, on the host's timeline.
    pub received: Span<Host>,
}

/// A packet from the host to the server: t3 → t4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backward {
    /// t3, on the host's timeline.
    pub sent: Span<Host>,
    /// t4, on the server's timeline.
    pub received: Span<Server>,
}

/// What one exchange established. Each half stands by itself: a lost response or follow-up costs only its own half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// The request's half, where its receive stamp came back.
    pub forward: Option<Forward>,
    /// The response's half, where its transmit stamp came back.
    pub backward: Option<Backward>,
}

impl Exchange {
    /// (t4 − t1) − (t3 − t2), taken between the middles of the stamps' intervals; none for a half exchange.
    pub fn round_trip(&self) -> Option<Nanos> {
        let (forward, backward) = (self.forward?, self.backward?);
        Some(
            (backward.received.middle() - forward.sent.middle())
                - (backward.sent.middle() - forward.received.middle()),
        )
    }
}

/// `CLOCK_REALTIME` of host and server at (nearly) one instant, from the same exchange: for the report people read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WallReading<T> {
    /// The machine's `CLOCK_REALTIME` at `at`.
    pub wall: Time<Wall>,
    /// The same instant on the machine's own monotonic timeline.
    #[serde(bound = "")]
    pub at: Span<T>,
}
