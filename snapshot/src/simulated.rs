//! Clocks whose truth is known, and the exchanges that a server would have with them. Only for tests.

use proptest::prelude::*;
use timesync::bound::{Assumptions, Policy, Window};
use timesync::exchange::{Backward, Exchange, Forward};
use timesync::identity::{BootId, Incarnation, ProcessId};
use timesync::time::{Host, Nanos, Server, Span, Time};
use uuid::Uuid;

use crate::certificate::{Evidence, HostEvidence, Mode, Observed};
use crate::cut::{Cause, Readings, Stretch};

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

/// Any clock within its assumptions, and any path.
pub fn any_host() -> impl Strategy<Value = (Clock, Path)> {
    let clock = (-1_i64 << 50..1 << 50, -150_000_i64..150_000)
        .prop_map(|(offset, drift_ppb)| Clock { offset, drift_ppb });
    let path = (1_i64..2_000, 1_i64..2_000).prop_map(|(forward, backward)| Path::micros(forward, backward));
    (clock, path)
}

/// Hosts whose clocks and paths are known, and a timed cut that they took as ordered.
pub struct World {
    pub clocks: Vec<(Clock, Path)>,
    pub evidence: Evidence,
}

impl World {
    /// Plans at `now`: `order` gives each host's T and the stretch from what was measured. Every host reads as close to
    /// its T as the rules allow: P = T − 1, Q = T + V.
    pub fn new(
        clocks: Vec<(Clock, Path)>,
        now: Time<Server>,
        order: impl FnOnce(&[Window]) -> (Vec<Time<Host>>, Nanos),
    ) -> Self {
        let planned: Vec<Window> = clocks.iter().map(|(clock, path)| clock.window(now, *path)).collect();
        let (at, stretch) = order(&planned);
        let server = incarnation();
        let hosts = clocks.iter().zip(planned).zip(at).zip(["a", "b", "c", "d"]);
        let hosts = hosts.map(|((((clock, path), planned), at), name)| {
            let host = incarnation();
            let mut remeasured = planned.clone();
            clock.burst(&mut remeasured, clock.truth(at + stretch) + Nanos::from_millis(50), *path);
            HostEvidence {
                host: name.to_owned(),
                ordered: host,
                reported: host,
                readings: Readings {
                    at,
                    p: at - Nanos::new(1),
                    q: at + stretch,
                    released_by: Cause::Time,
                    held: 0,
                    stretch_ns: Stretch::default(),
                },
                nonce: None,
                observed: Some(Observed {
                    planned,
                    remeasured,
                    planned_with: host,
                    remeasured_with: host,
                    planned_resets: 1,
                    remeasured_resets: 1,
                }),
            }
        });
        let evidence = Evidence {
            mode: Mode::Timed,
            policy: Policy::Hard,
            server_before: server,
            server_after: server,
            released_nonces: Vec::new(),
            hosts: hosts.collect(),
        };
        World { clocks, evidence }
    }

    /// What the margin really was.
    pub fn true_margin(&self) -> Nanos {
        let read = |index: usize| self.evidence.hosts[index].readings;
        let truth = |index: usize, reading| self.clocks[index].0.truth(reading);
        let pairs = (0..self.clocks.len()).flat_map(|i| (0..self.clocks.len()).map(move |j| (i, j)));
        pairs.filter(|(i, j)| i != j).map(|(i, j)| truth(i, read(i).q) - truth(j, read(j).p)).min().unwrap()
    }

    /// The first host's evidence.
    pub fn first(&mut self) -> &mut HostEvidence {
        &mut self.evidence.hosts[0]
    }

    /// The first host's exchanges.
    pub fn observed(&mut self) -> &mut Observed {
        self.first().observed.as_mut().unwrap()
    }
}
