use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::bound::{Assumptions, Window};
use crate::exchange::{Backward, Exchange, Forward, StampClass};
use crate::identity::{BootId, ProcessId};
use crate::time::Raw;

const SECOND: i64 = 1_000_000_000;
const MS: i64 = 1_000_000;
const BUDGET: i64 = 10_000;

fn incarnation(number: u128) -> Incarnation {
    Incarnation { boot: BootId(Uuid::from_u128(number)), process: ProcessId(Uuid::from_u128(number)) }
}

/// A clock that goes by another one, but for its offset and a rate in ppb that changes once.
#[derive(Clone, Copy, Debug)]
struct Line {
    offset: i64,
    ppb: i64,
    bend: (i64, i64),
}

impl Line {
    fn at(self, x: i64) -> i64 {
        let (from, ppb) = self.bend;
        let went = |span: i64, ppb: i64| {
            i64::try_from(i128::from(span) * i128::from(ppb) / i128::from(SECOND)).unwrap()
        };
        let (before, after) = (x.min(from), (x - from).max(0));
        x + self.offset + went(before, self.ppb) + went(after, ppb)
    }
}

/// A server and a host, as functions of the server's raw clock.
#[derive(Clone, Copy, Debug)]
struct World {
    host_raw: Line,
    /// Against the server's raw clock.
    server_wall: Line,
    /// Against the host's raw clock.
    host_wall: Line,
    steps: u32,
    /// From each exchange to the next one, requests become so much faster and responses so much slower, in ns: then the
    /// bound's middle drifts away from the truth. Negative: the other way round.
    ramp: i64,
}

impl World {
    fn plain() -> Self {
        let line = |offset, ppb| Line { offset, ppb, bend: (i64::MAX, 0) };
        let (host_raw, server_wall) = (line(77 * SECOND, 40_000), line(1_000_000 * SECOND, -20_000));
        // Against each other's walls: 5 µs apart at the server's 100 s, and drifting slowly.
        let mut host_wall = line(0, -60_000);
        let x = 100 * SECOND;
        host_wall.offset = server_wall.at(x) + 5_000 - host_wall.at(host_raw.at(x));
        World { host_raw, server_wall, host_wall, steps: 0, ramp: 0 }
    }

    fn reading(self, raw: i64, wall: i64) -> ClockReading {
        let instant = |at| Time::<Raw>::from_nanos(at);
        ClockReading {
            wall: Time::from_nanos(wall),
            raw: Span { earliest: instant(raw - 20), latest: instant(raw + 20) },
            // CLOCK_MONOTONIC is as good as the raw clock here.
            ahead_of_monotonic: (Nanos::new(wall - raw - 60), Nanos::new(wall - raw + 60)),
            slew_ppb: 1_000_000,
            steps_before: self.steps,
            steps_after: self.steps,
        }
    }

    fn server_reads(self, x: i64) -> ClockReading {
        World { steps: 0, ..self }.reading(x, self.server_wall.at(x))
    }

    fn host_reads(self, x: i64) -> ClockReading {
        let raw = self.host_raw.at(x);
        self.reading(raw, self.host_wall.at(raw))
    }

    /// D, host less server.
    fn truth(self, x: i64) -> i64 {
        self.host_wall.at(self.host_raw.at(x)) - self.server_wall.at(x)
    }

    /// What the server says at `x`, after 8 pairs a second for a while.
    fn statement(self, x: i64) -> ServerTime {
        let mut window = Window::new(Assumptions::default(), 256);
        let server = |at| Span::exact(Time::from_nanos(at));
        let host = |at| Span::exact(Time::from_nanos(self.host_raw.at(at)));
        for ago in (0..128).rev() {
            let sent = x - ago * SECOND / 8 - 7 * MS;
            let (early, late) = (self.ramp.abs() * (127 - ago), self.ramp.abs() * ago);
            let (forward, backward) = if self.ramp > 0 { (late, early) } else { (early, late) };
            let arrived = sent + 400 + forward;
            window.push(&Exchange {
                forward: Some(Forward { sent: server(sent), received: host(arrived) }),
                backward: Some(Backward { sent: host(arrived), received: server(arrived + 500 + backward) }),
            });
        }
        let observation = Observation {
            window,
            incarnation: incarnation(1),
            suspends: 0,
            resets: 0,
            timestamps: StampClass::Software,
        };
        let mut rate = WallRate::default();
        assert_eq!(rate.measure(&self.server_reads(x - 2 * SECOND)), None);
        let rate = rate.measure(&self.server_reads(x)).unwrap();
        ServerTime::of(&observation, incarnation(2), &self.server_reads(x), rate).unwrap()
    }

    /// A publisher that has looked at its clocks for a while, and heard the server at `x`.
    fn publisher(self, x: i64) -> Publisher {
        let mut publisher = Publisher::new(incarnation(1), BUDGET as u32);
        for before in [2_500, 1_400, 200] {
            assert_eq!(publisher.publish(&self.host_reads(x - before * MS), 0), Err(Withdrawn::Unknown));
        }
        publisher.hear(self.statement(x), &self.host_reads(x + MS), 0).unwrap();
        publisher
    }
}

const X: i64 = 100 * SECOND;

#[test]
fn the_bound_covers_the_offset_and_is_about_as_wide_as_the_servers() {
    let world = World::plain();
    let published = world.publisher(X).publish(&world.host_reads(X + 2 * MS), 0).unwrap();
    let truth = Nanos::new(world.truth(X + 2 * MS));
    assert!(published.offset.0 <= truth && truth <= published.offset.1, "{published:?}, truth {truth}");
    let width = published.offset.1 - published.offset.0;
    assert!(width.get() < 2_000, "a round trip of 900 ns gives {width}");
    assert!(published.bound().get() < 7_000);
    // Both budgets, what the window knows of the rate, and 1 ppm that it may wander in 10 s.
    assert!(published.growth_ppb < 30_000, "{published:?}");
}

#[test]
fn a_silent_server_ends_the_bound() {
    let world = World::plain();
    let mut publisher = world.publisher(X);
    let at = |ms: i64| world.host_reads(X + ms * MS);
    for ms in (2..MAX_AGE.get() / MS - 1).step_by(100) {
        assert!(publisher.publish(&at(ms), 0).is_ok(), "{ms} ms");
    }
    assert_eq!(publisher.publish(&at(MAX_AGE.get() / MS + 1), 0), Err(Withdrawn::Unknown));
    publisher.hear(world.statement(X + 6 * SECOND), &at(6_001), 0).unwrap();
    assert!(publisher.publish(&at(6_002), 0).is_ok(), "and it comes back with the server");
}

#[test]
fn a_step_withdraws_the_bound_and_then_counts_in_it() {
    let mut world = World::plain();
    let mut publisher = world.publisher(X);
    publisher.publish(&world.host_reads(X + 2 * MS), 0).unwrap();
    world.host_wall.offset += 3 * MS;
    // The kernel announces it a moment late: the contradiction shows it all the same.
    assert_eq!(publisher.publish(&world.host_reads(X + 50 * MS), 0), Err(Withdrawn::Disrupted));
    world.steps += 1;
    assert_eq!(publisher.publish(&world.host_reads(X + 51 * MS), 0), Err(Withdrawn::Disrupted));
    // For a second the wall clock's rate is not known again.
    assert_eq!(publisher.publish(&world.host_reads(X + 150 * MS), 0), Err(Withdrawn::Unknown));
    let published = publisher.publish(&world.host_reads(X + 1_200 * MS), 0).unwrap();
    let truth = world.truth(X + 1_200 * MS);
    assert!(published.bound().get() >= truth && truth > 3 * MS, "{published:?}");
}

#[test]
fn steering_beyond_the_budget_withdraws_the_bound_until_the_rate_is_known_again() {
    let mut world = World::plain();
    let mut publisher = world.publisher(X);
    publisher.publish(&world.host_reads(X + 2 * MS), 0).unwrap();
    // Somebody slews by 500 ppm from now on.
    world.host_wall.bend = (world.host_raw.at(X + 2 * MS), world.host_wall.ppb + 500_000);
    assert_eq!(publisher.publish(&world.host_reads(X + 102 * MS), 0), Err(Withdrawn::Disrupted));
    assert_eq!(publisher.publish(&world.host_reads(X + 202 * MS), 0), Err(Withdrawn::Unknown));
    let published = publisher.publish(&world.host_reads(X + 1_302 * MS), 0).unwrap();
    assert!(published.growth_ppb > 500_000, "readers reckon with it: {published:?}");
    assert!(publisher.publish(&world.host_reads(X + 1_402 * MS), 0).is_ok());
}

#[test]
fn after_a_suspend_the_server_must_have_heard_of_it() {
    let world = World::plain();
    let mut publisher = world.publisher(X);
    publisher.publish(&world.host_reads(X + 2 * MS), 0).unwrap();
    let now = world.host_reads(X + 100 * MS);
    assert_eq!(publisher.publish(&now, 1), Err(Withdrawn::Disrupted));
    let stale = world.statement(X + 90 * MS);
    assert_eq!(publisher.hear(stale, &now, 1), Err(Disbelief::Suspended));
    assert_eq!(publisher.publish(&world.host_reads(X + 200 * MS), 1), Err(Withdrawn::Disrupted));
    publisher.hear(ServerTime { suspends: 1, ..stale }, &now, 1).unwrap();
    assert!(publisher.publish(&world.host_reads(X + 300 * MS), 1).is_ok());
}

#[test]
fn a_server_that_contradicts_itself_is_believed_when_it_repeats_itself() {
    let mut world = World::plain();
    let mut publisher = world.publisher(X);
    publisher.publish(&world.host_reads(X + 2 * MS), 0).unwrap();
    // Its wall clock is set back.
    world.server_wall.offset -= MS;
    publisher.hear(world.statement(X + SECOND), &world.host_reads(X + SECOND + MS), 0).unwrap();
    assert_eq!(publisher.publish(&world.host_reads(X + SECOND + 2 * MS), 0), Err(Withdrawn::Disrupted));
    publisher.hear(world.statement(X + 2 * SECOND), &world.host_reads(X + 2 * SECOND + MS), 0).unwrap();
    let published = publisher.publish(&world.host_reads(X + 2 * SECOND + 2 * MS), 0).unwrap();
    assert!(published.bound().get() >= MS);
}

#[test]
fn statements_for_another_run_or_another_time_are_not_believed() {
    let world = World::plain();
    let mut publisher = world.publisher(X);
    let statement = world.statement(X + SECOND);
    let hear = |publisher: &mut Publisher, statement, ms: i64| {
        publisher.hear(statement, &world.host_reads(X + SECOND + ms * MS), 0)
    };
    let stranger = ServerTime { host: incarnation(9), ..statement };
    assert_eq!(hear(&mut publisher, stranger, 1), Err(Disbelief::Restarted));
    assert_eq!(hear(&mut publisher, statement, -1), Err(Disbelief::Untimely));
    assert_eq!(hear(&mut publisher, statement, 5_001), Err(Disbelief::Untimely));
    let rate = Rate { ppb: 0, error_ppb: u32::MAX };
    assert_eq!(hear(&mut publisher, ServerTime { rate, ..statement }, 1), Err(Disbelief::Senseless));
    assert_eq!(hear(&mut publisher, statement, 1), Ok(()));
}

/// Both wall clocks leave their rates in opposite directions, as far as they may, right after a publication.
#[test]
fn the_growth_allows_for_both_wall_clocks() {
    for sign in [-1, 1] {
        let mut world = World::plain();
        world.host_wall.offset -= 5_000;
        let publisher = world.publisher(X);
        world.server_wall.bend = (X + 2 * MS, world.server_wall.ppb + sign * BUDGET);
        world.host_wall.bend = (world.host_raw.at(X + 2 * MS), world.host_wall.ppb - sign * BUDGET);
        let published = publisher.clone().publish(&world.host_reads(X + 2 * MS), 0).unwrap();
        let bound = published.bound().get() + 5 * i64::from(published.growth_ppb);
        let truth = world.truth(X + 5 * SECOND).abs();
        assert!(truth > 90_000 && truth <= bound, "{truth} is not within {bound}");
    }
}

proptest! {
    // Takes that many to meet each of the bound's parts at its edge.
    #![proptest_config(ProptestConfig::with_cases(8_192))]

    /// Any clocks within the assumptions, walls that are steered within the budget at the worst moments, and a reader at
    /// any time afterwards: what it concludes is true.
    #[test]
    fn a_reader_is_never_told_too_little(
        raw_ppb in -190_000_i64..190_000,
        raw_offset in -1_000_000 * SECOND..1_000_000 * SECOND,
        wall_ppb in proptest::array::uniform2(-400_000_i64..400_000),
        steered in proptest::array::uniform2(-BUDGET..=BUDGET),
        bends_ms in proptest::array::uniform2(0_i64..6_000),
        apart in -SECOND..SECOND,
        published_after_ms in 2_i64..4_900,
        read_after_ms in 0_i64..5_000,
        ramp in -200_i64..200,
    ) {
        let [server_ppb, host_ppb] = wall_ppb;
        let host_raw = Line { offset: raw_offset, ppb: raw_ppb, bend: (i64::MAX, 0) };
        let server_bend = (X + bends_ms[0] * MS, server_ppb + steered[0]);
        let server_wall = Line { offset: 1_000_000 * SECOND, ppb: server_ppb, bend: server_bend };
        // The host's publisher measures its own wall's rate up to the publication: only what comes later is steered.
        let published_at = X + published_after_ms * MS;
        let host_bend = (host_raw.at(published_at + bends_ms[1] * MS), host_ppb + steered[1]);
        let mut host_wall = Line { offset: 0, ppb: host_ppb, bend: host_bend };
        host_wall.offset = server_wall.at(X) + apart - host_wall.at(host_raw.at(X));
        let world = World { host_raw, server_wall, host_wall, steps: 0, ramp };
        let published = world.publisher(X).publish(&world.host_reads(published_at), 0).unwrap();
        let truth = world.truth(published_at);
        prop_assert!(published.offset.0.get() <= truth && truth <= published.offset.1.get());

        let read_at = published_at + read_after_ms * MS;
        // CLOCK_MONOTONIC is the raw clock in this world.
        let age = host_raw.at(read_at) - published.monotonic.get();
        prop_assert!(age >= 0);
        let grown = i128::from(age) * i128::from(published.growth_ppb) / i128::from(SECOND);
        let bound = i128::from(published.bound().get()) + grown;
        prop_assert!(i128::from(world.truth(read_at)).abs() <= bound + 1, "{published:?}");
    }
}
