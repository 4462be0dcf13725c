//! What the clocks and the network do, and what is assumed of them.

use timesync::bound::Assumptions;
use timesync::random::Random;
use timesync::time::Nanos;

use super::card::Handling;
use super::clock::{Change, SECOND, Shape};
use super::host::Break;
use super::machine::Discipline;
use super::network::{Queue, Way};

/// Who finds out about a break first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Nobody but the stamps.
    Stamps,
    /// The host: it counts its suspends.
    Suspend,
    /// The host: it sees its clock source change, when it looks.
    Source,
    /// The host has another boot id.
    Boot,
    /// The server, about itself.
    Server,
}

/// A kind of break.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Forward by so many ns, from and to; also what a suspend of the server looks like.
    Step(f64, f64, Tell),
    /// A suspend of so many ns, from and to.
    Suspend(f64, f64),
    /// A jump of the rate by so many ppb, from and to, in either direction.
    Rate(f64, f64, Tell),
    /// The way to the host becomes shorter by so many ns, from and to: by less than it is long.
    Shortcut(f64, f64),
    /// A new boot, so many ns later.
    Boot(f64, f64),
    /// Transparent clocks claim so many ns too much, from and to, on either way.
    Lie(f64, f64),
    /// The rate of a network card's oscillator jumps by so many ppb, from and to, in either direction.
    Card(f64, f64),
}

impl Kind {
    pub fn tell(self) -> Tell {
        match self {
            Kind::Step(.., tell) | Kind::Rate(.., tell) => tell,
            Kind::Suspend(..) => Tell::Suspend,
            Kind::Shortcut(..) | Kind::Lie(..) | Kind::Card(..) => Tell::Stamps,
            Kind::Boot(..) => Tell::Boot,
        }
    }

    /// The break of one run.
    pub fn draw(self, at: i64, random: &mut Random) -> Break {
        // Small ones as often as large ones.
        let sign = if random.chance(0.5) { 1.0 } else { -1.0 };
        let mut size = |low: f64, high: f64| low * (high / low).powf(random.unit());
        let change = match self {
            Kind::Step(low, high, _) => Change::Step(size(low, high)),
            Kind::Shortcut(low, high) => Change::Shortcut(size(low, high)),
            Kind::Suspend(low, high) => Change::Stop(size(low, high) as i64),
            Kind::Boot(low, high) => Change::Boot(size(low, high) as i64),
            Kind::Rate(low, high, _) => Change::Rate(sign * size(low, high)),
            Kind::Lie(low, high) => Change::Lie(sign * size(low, high)),
            Kind::Card(low, high) => Change::Card(sign * size(low, high)),
        };
        Break { at, change, tell: self.tell() }
    }
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    pub assumptions: Assumptions,
    pub shape: Shape,
    pub forward: Way,
    pub backward: Way,
    pub discipline: Discipline,
    /// How long a process takes to wake up, in the mean.
    pub wake_ns: f64,
    pub loss: f64,
    pub duplicated: f64,
    pub pairs_per_second: i64,
    pub window: usize,
    pub agentless: bool,
    pub lying_correction: bool,
    /// Both ends' network cards stamp the packets, and this is done to the host's clock of its card.
    pub card: Option<Handling>,
    pub breaks: Option<Kind>,
}

impl Scenario {
    pub fn pair_interval(&self) -> i64 {
        SECOND / self.pairs_per_second
    }

    /// How long a full window lasts, in ns.
    pub fn window_span(&self) -> i64 {
        self.window as i64 / 2 * self.pair_interval()
    }
}

/// As a kernel's readings are on an idle machine (timesync/src/clock.rs), disciplined gently.
pub const SERVER_DISCIPLINE: Discipline =
    Discipline { slew_ppb: 50_000.0, limit_ppb: 1_000_000, step_s: 0.0, reading_ns: 20 };

const ORDINARY: Shape = Shape { rate_ppb: 200_000.0, wander_ppb_per_s: 10.0, extreme: false };
/// All that ρ and κ allow by default.
const EXTREME: Shape = Shape { rate_ppb: 200_000.0, wander_ppb_per_s: 100.0, extreme: true };

const LIGHT: Way = Way { cold: 1_300.0, ..Way::steady(230.0, 60.0) };

fn assumptions() -> Assumptions {
    Assumptions::default()
}

/// Every scenario, those that keep the assumptions first.
pub fn all() -> &'static [Scenario] {
    static ALL: std::sync::LazyLock<Vec<Scenario>> = std::sync::LazyLock::new(|| {
        let mut all = keeping();
        all.extend(breaking());
        all
    });
    &ALL
}

fn base() -> Scenario {
    Scenario {
        name: "idle",
        assumptions: assumptions(),
        shape: ORDINARY,
        forward: LIGHT,
        backward: LIGHT,
        discipline: SERVER_DISCIPLINE,
        wake_ns: 11_000.0,
        loss: 0.0,
        duplicated: 0.0,
        pairs_per_second: 8,
        window: 512,
        agentless: false,
        lying_correction: false,
        card: None,
        breaks: None,
    }
}

/// Packets are held for most of the way by transparent clocks, which are trusted.
fn transparent() -> Scenario {
    let way = Way { held: (2_000.0, 20_000.0), ..LIGHT };
    let assumptions = Assumptions { trust_correction: true, ..assumptions() };
    Scenario { assumptions, forward: way, backward: way, ..base() }
}

fn keeping() -> Vec<Scenario> {
    let bursty = Queue::Bursty { calm: 300.0, busy: 30_000.0, calm_s: 2.0, busy_s: 2.0 };
    let wide = |least: f64| Way::steady(least, 800_000.0);
    vec![
        base(),
        Scenario {
            name: "loaded",
            forward: Way { queue: Queue::Steady(2_000.0), ..LIGHT },
            backward: Way { queue: Queue::Steady(3_000.0), ..LIGHT },
            wake_ns: 60_000.0,
            ..base()
        },
        Scenario {
            name: "bursty",
            forward: Way { queue: bursty, ..LIGHT },
            backward: Way { queue: bursty, ..LIGHT },
            ..base()
        },
        Scenario {
            name: "heavy-tail",
            forward: Way { queue: Queue::Heavy(50_000.0), ..LIGHT },
            backward: Way { queue: Queue::Heavy(20_000.0), ..LIGHT },
            ..base()
        },
        Scenario { name: "asymmetric", forward: Way::steady(20_000.0, 500.0), ..base() },
        Scenario {
            name: "asymmetry-varies",
            forward: Way { wave: (3_000.0, 40.0), ..Way::steady(5_000.0, 300.0) },
            backward: Way { wave: (2_000.0, 23.0), ..Way::steady(5_000.0, 300.0) },
            ..base()
        },
        Scenario {
            name: "route-changes",
            forward: Way { reroute: (30_000.0, 5.0), ..LIGHT },
            backward: Way { reroute: (10_000.0, 8.0), ..LIGHT },
            ..base()
        },
        Scenario { name: "extreme-wander", shape: EXTREME, ..base() },
        Scenario {
            name: "extreme-loaded",
            shape: EXTREME,
            forward: Way { queue: Queue::Steady(5_000.0), ..LIGHT },
            backward: Way { queue: Queue::Steady(5_000.0), ..LIGHT },
            ..base()
        },
        Scenario { name: "lossy", loss: 0.2, duplicated: 0.1, ..base() },
        Scenario {
            name: "known-minimum",
            assumptions: Assumptions {
                min_forward: Nanos::new(1_800),
                min_backward: Nanos::new(1_500),
                ..assumptions()
            },
            forward: Way::steady(1_800.0, 200.0),
            backward: Way::steady(1_500.0, 200.0),
            ..base()
        },
        Scenario {
            name: "any-rate",
            assumptions: Assumptions { wander_ppb_per_s: None, ..assumptions() },
            shape: Shape { wander_ppb_per_s: 8_000.0, ..ORDINARY },
            ..base()
        },
        Scenario {
            name: "wall-clock-steered",
            discipline: Discipline { slew_ppb: 990_000.0, step_s: 4.0, ..SERVER_DISCIPLINE },
            ..base()
        },
        Scenario { name: "lying-correction", lying_correction: true, ..base() },
        Scenario { name: "once-a-second", pairs_per_second: 1, window: 128, ..base() },
        Scenario { name: "small-window", window: 16, ..base() },
        Scenario {
            name: "wide-area",
            forward: wide(22_000_000.0),
            backward: wide(17_000_000.0),
            loss: 0.01,
            ..base()
        },
        Scenario { name: "transparent-clocks", ..transparent() },
        Scenario { name: "hardware", card: Some(Handling { step_s: 0.0, set_s: 0.0 }), ..base() },
        Scenario { name: "phc-jumps", card: Some(Handling { step_s: 3.0, set_s: 0.0 }), ..base() },
        Scenario { name: "phc-rate-changes", card: Some(Handling { step_s: 0.0, set_s: 0.2 }), ..base() },
        Scenario {
            name: "agentless",
            agentless: true,
            // A daemon slews the wall clock on top of the oscillator's own rate.
            discipline: Discipline { slew_ppb: 900_000.0, ..SERVER_DISCIPLINE },
            ..base()
        },
    ]
}

fn breaking() -> Vec<Scenario> {
    let breaks = |name, kind| Scenario { name, breaks: Some(kind), ..base() };
    vec![
        breaks("suspend", Kind::Suspend(2e2, 4e9)),
        breaks("reboot", Kind::Boot(1e8, 4e9)),
        breaks("clock-source", Kind::Rate(1e3, 8e5, Tell::Source)),
        breaks("server-suspend", Kind::Step(2e2, 4e9, Tell::Server)),
        breaks("jump", Kind::Step(2e3, 1e8, Tell::Stamps)),
        breaks("jump-below-round-trip", Kind::Step(50.0, 400.0, Tell::Stamps)),
        breaks("rate-beyond-limit", Kind::Rate(4.1e5, 3e6, Tell::Stamps)),
        breaks("wander-beyond-limit", Kind::Rate(1e3, 1e5, Tell::Stamps)),
        // Up to what passes for plausible: no longer than the packets are on their way.
        Scenario { breaks: Some(Kind::Lie(5e1, 9e2)), name: "correction-lies", ..transparent() },
        Scenario {
            card: Some(Handling { step_s: 0.0, set_s: 0.0 }),
            ..breaks("phc-rate-beyond-limit", Kind::Card(4.1e5, 3e8))
        },
        Scenario {
            assumptions: Assumptions {
                min_forward: Nanos::new(4_000),
                min_backward: Nanos::new(200),
                ..assumptions()
            },
            forward: Way::steady(4_000.0, 60.0),
            // A shorter route: the packets to the host arrive earlier than was declared to be possible.
            ..breaks("minimum-undercut", Kind::Shortcut(2e1, 3.7e3))
        },
    ]
}
