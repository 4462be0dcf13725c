//! What there is to compute for a snapshot of very many hosts: from their exchanges to the plan, and from their readings
//! to the certificate. The windows, the plan and the certificate are the product's own code; clocks, paths, readings
//! and the time between plan and evidence are made up, and no message is sent.

use std::hint::black_box;

use snapshot::certificate::{Evidence, HostEvidence, Mode, Observed, certify};
use snapshot::coordinator::plan::{Candidate, plan};
use snapshot::cut::{Cause, Readings, Stretch};
use timesync::bound::{Assumptions, Policy, Window};
use timesync::clock::ServerClock;
use timesync::exchange::{Backward, Exchange, Forward};
use timesync::identity::{BootId, Incarnation, ProcessId};
use timesync::random::Random;
use timesync::time::{Host, Nanos, Server, Span, Time};
use uuid::Uuid;

use super::{Failure, Row};
use crate::quantiles::Quantiles;

const ROUNDS: u64 = 3;
const BURST: i64 = 32;
const MILLI: i64 = 1_000_000;
/// The default.
const LEAD: Nanos = Nanos::from_millis(50);
/// Exchanges with a host that a message in each direction stands for: describe, prepare, arm, seal, commit.
const CONTROL_MESSAGES: u64 = 2 * 5;

/// A clock that is off and drifts, behind a path with queues.
struct Simulated {
    offset: i64,
    drift_ppb: i64,
    incarnation: Incarnation,
}

impl Simulated {
    fn new(random: &mut Random) -> Self {
        let id = |random: &mut Random| Uuid::from_u64_pair(random.bits(), random.bits());
        Simulated {
            offset: random.nanos(-1_000 * MILLI, 1_000 * MILLI),
            drift_ppb: random.nanos(-50_000, 50_000),
            incarnation: Incarnation { boot: BootId(id(random)), process: ProcessId(id(random)) },
        }
    }

    fn reads(&self, at: i64) -> Time<Host> {
        Time::from_nanos(at + self.offset + at / 1_000_000 * self.drift_ppb / 1_000)
    }

    /// An exchange that leaves the server at `sent`.
    fn exchange(&self, sent: i64, random: &mut Random) -> Exchange {
        let delay = |random: &mut Random| 250 + random.exponential(2_000.0) as i64;
        let stamp = |at: i64| Span { earliest: self.reads(at) - Nanos::new(40), latest: self.reads(at) };
        let server = |at: i64| Span::<Server>::exact(Time::from_nanos(at));
        let arrived = sent + delay(random);
        let left = arrived + 10_000;
        Exchange {
            forward: Some(Forward { sent: server(sent), received: stamp(arrived) }),
            backward: Some(Backward { sent: stamp(left), received: server(left + delay(random)) }),
        }
    }

    fn burst(&self, window: &mut Window, from: i64, random: &mut Random) {
        for number in 0..BURST {
            window.push(&self.exchange(from + number * MILLI, random));
        }
    }
}

/// Computes for snapshots of so many hosts.
pub fn measure(hosts: u32) -> Result<Row, Failure> {
    let mut random = Random(hosts.into());
    let (mut planning, mut certifying, mut both) = (Vec::new(), Vec::new(), Vec::new());
    let (mut v, mut margin, mut stretch) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS.cast_signed() {
        let clocks: Vec<Simulated> = (0..hosts).map(|_| Simulated::new(&mut random)).collect();
        let now = (100 + 100 * round) * 1_000 * MILLI;
        let planned: Vec<Window> = clocks.iter().map(|clock| usual_window(clock, now, &mut random)).collect();

        let began = ServerClock.now();
        let candidates: Vec<_> = planned
            .iter()
            .map(|window| Candidate {
                bound: |at| window.bound(at, &Policy::Hard),
                rate_ppb: window.assumptions().rate_ppb,
                max_stretch: Nanos::from_millis(100),
            })
            .collect();
        let plan = plan(Time::from_nanos(now), LEAD, &candidates).map_err(|why| format!("{why:?}"))?;
        let planned_after = (ServerClock.now() - began).get();

        let after = plan.t.as_nanos() + plan.stretch.get() + 20 * MILLI;
        let evidence = Evidence {
            mode: Mode::Timed,
            policy: Policy::Hard,
            server_before: clocks[0].incarnation,
            server_after: clocks[0].incarnation,
            released_nonces: Vec::new(),
            hosts: clocks
                .iter()
                .zip(planned)
                .zip(&plan.at)
                .map(|((clock, planned), at)| {
                    let mut remeasured = planned.clone();
                    clock.burst(&mut remeasured, after, &mut random);
                    cut(clock, planned, remeasured, *at, plan.stretch, &mut random)
                })
                .collect(),
        };
        let began = ServerClock.now();
        let certificate = black_box(certify(black_box(&evidence)))?;
        let certified_after = (ServerClock.now() - began).get();

        planning.push(planned_after);
        certifying.push(certified_after);
        both.push(planned_after + certified_after);
        v.push(plan.stretch.get());
        margin.extend(certificate.margin.map(Nanos::get));
        stretch.extend(evidence.hosts.iter().map(|host| (host.readings.q - host.readings.at).get()));
    }
    let median = |samples: &[i64]| Quantiles::of(samples).p50;
    Ok(Row {
        hosts: hosts as usize,
        kind: "simulated",
        mode: "timed",
        snapshots: both.len(),
        attempts: both.len(),
        certificate_ns: Quantiles::of(&both),
        named_ns: Quantiles::of(&both),
        control_messages: CONTROL_MESSAGES * u64::from(hosts),
        exchanges: 2 * BURST.unsigned_abs() * u64::from(hosts),
        v_ns: Some(median(&v)),
        margin_ns: Some(median(&margin)),
        stretch_ns: Quantiles::of(&stretch),
        floor_ns: None,
        steps_ns: vec![("plan".to_owned(), median(&planning)), ("certify".to_owned(), median(&certifying))],
    })
}

/// A window as a server has it when it plans: pairs at the usual pace, then a burst.
fn usual_window(clock: &Simulated, now: i64, random: &mut Random) -> Window {
    let mut window = Window::new(Assumptions::default(), 512);
    for pair in (1..=240).rev() {
        let sent = now - BURST * MILLI - pair * 125 * MILLI;
        window.push(&clock.exchange(sent, random));
        window.push(&clock.exchange(sent + 30_000, random));
    }
    clock.burst(&mut window, now - BURST * MILLI, random);
    window
}

/// A host that does as it is told, and reads its clock a little later than it might.
fn cut(
    clock: &Simulated,
    planned: Window,
    remeasured: Window,
    at: Time<Host>,
    stretch: Nanos,
    random: &mut Random,
) -> HostEvidence {
    HostEvidence {
        host: clock.incarnation.process.0.to_string(),
        ordered: clock.incarnation,
        reported: clock.incarnation,
        readings: Readings {
            at,
            p: at - Nanos::new(1 + random.nanos(0, 20_000)),
            q: at + stretch + Nanos::new(random.nanos(0, 20_000)),
            released_by: Cause::Time,
            held: 0,
            stretch_ns: Stretch::default(),
        },
        nonce: None,
        observed: Some(Observed {
            planned,
            remeasured,
            planned_with: clock.incarnation,
            remeasured_with: clock.incarnation,
            planned_resets: 0,
            remeasured_resets: 0,
        }),
    }
}
