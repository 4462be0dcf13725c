//! Clocks whose truth is known, and the exchanges that a server would have with them. Only for tests.

use timesync::bound::{Assumptions, Window};
use timesync::exchange::{Backward, Exchange, Forward};
use timesync::identity::{BootId, Incarnation, ProcessId};
use timesync::time::{Host, Nanos, Server, Span, Time};
use uuid::Uuid;

/// A host's clock: off by `offset` ns at the server's zero, and drifting.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub offset: i64,
    pub drift_ppb: i64,
}

impl Clock {
    /// What it reads at a server instant, rounded down.
    pub fn reads(self, at: Time<Server>) -> Time<Host> {
        let drifted = i128::from(at.as_nanos()) * i128::from(self.drift_ppb);
        let drifted = i64::try_from(drifted.div_euclid(1_000_000_000)).unwrap();
        Time::from_nanos(at.as_nanos() + self.offset + drifted)
    }

    /// The server instant at which it reads `reading`, within 1 ns.
    pub fn truth(self, reading: Time<Host>) -> Time<Server> {
        let scaled = i128::from(reading.as_nanos() - self.offset) * 1_000_000_000;
        Time::from_nanos(
            i64::try_from(scaled.div_euclid(1_000_000_000 + i128::from(self.drift_ppb))).unwrap(),
        )
    }

    /// An exchange that leaves the server at `sent` and is answered at once.
    pub fn exchange(self, sent: Time<Server>, path: Path) -> Exchange {
        let arrived = sent + path.forward;
        let received = arrived + path.backward;
        let stamp = Span::exact(self.reads(arrived));
        Exchange {
            forward: Some(Forward { sent: Span::exact(sent), received: stamp }),
            backward: Some(Backward { sent: stamp, received: Span::exact(received) }),
        }
    }

    /// Adds 32 exchanges to a window, 1 ms apart, the last one at `until`.
    pub fn burst(self, window: &mut Window, until: Time<Server>, path: Path) {
        for ago in (0..32).rev() {
            window.push(&self.exchange(until - Nanos::from_millis(ago), path));
        }
    }

    /// A window with one burst until `until`.
    pub fn window(self, until: Time<Server>, path: Path) -> Window {
        let mut window = Window::new(Assumptions::default(), 512);
        self.burst(&mut window, until, path);
        window
    }
}

/// One-way delays, positive.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    pub forward: Nanos,
    pub backward: Nanos,
}

impl Path {
    pub fn micros(forward: i64, backward: i64) -> Self {
        Path { forward: Nanos::from_micros(forward), backward: Nanos::from_micros(backward) }
    }
}

/// A daemon that nothing else is.
pub fn incarnation() -> Incarnation {
    Incarnation { boot: BootId(Uuid::new_v4()), process: ProcessId(Uuid::new_v4()) }
}
