//! The exchanges that a bound is computed from.

mod witness;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::hard::{self, Constraint, Solution};
use super::statistical;
use super::{Assumptions, AsymmetryBudget, Drift, Interval, Policy, Statistical};
use crate::exchange::Exchange;
use crate::time::{Host, Nanos, Server, Time};

pub(crate) use witness::Witness;

/// Why a window gives no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum WindowError {
    /// Not one packet in some direction.
    #[error("no exchanges yet")]
    Empty,
    /// The constraints contradict each other: an assumption broke.
    #[error(
        "the exchanges contradict the clock assumptions (a step, a suspend, a rate beyond the limit, or a lie)"
    )]
    Broken,
}

/// What one exchange says: `[upper, lower]` in JSON, each `[at, limit, width]` or null.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Halves", into = "Halves")]
struct Entry {
    upper: Option<Constraint>,
    lower: Option<Constraint>,
}

type Halves = (Option<Constraint>, Option<Constraint>);

impl From<Halves> for Entry {
    fn from((upper, lower): Halves) -> Self {
        Entry { upper, lower }
    }
}

impl From<Entry> for Halves {
    fn from(entry: Entry) -> Self {
        (entry.upper, entry.lower)
    }
}

/// Up to `capacity` exchanges with one host, kept as the constraints that they are for the bound.
///
/// Exchanges may be pushed in any order; the one pushed first is the first to leave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    assumptions: Assumptions,
    capacity: usize,
    exchanges: VecDeque<Entry>,
}

impl Window {
    /// An empty window for `capacity` exchanges, at least one.
    pub fn new(assumptions: Assumptions, capacity: usize) -> Self {
        Window { assumptions, capacity, exchanges: VecDeque::new() }
    }

    /// What the bound assumes.
    pub fn assumptions(&self) -> &Assumptions {
        &self.assumptions
    }

    /// Adds an exchange; when the window is full, the oldest one leaves. An exchange without any half says nothing and
    /// is not counted.
    pub fn push(&mut self, exchange: &Exchange) {
        let entry = Entry {
            upper: exchange.forward.as_ref().map(|forward| Constraint::upper(forward, &self.assumptions)),
            lower: exchange.backward.as_ref().map(|backward| Constraint::lower(backward, &self.assumptions)),
        };
        if entry.upper.is_none() && entry.lower.is_none() {
            return;
        }
        while self.exchanges.len() >= self.capacity.max(1) {
            self.exchanges.pop_front();
        }
        self.exchanges.push_back(entry);
    }

    /// How many exchanges are in the window.
    pub fn len(&self) -> usize {
        self.exchanges.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.exchanges.is_empty()
    }

    /// Forgets all exchanges: after an assumption broke.
    pub fn clear(&mut self) {
        self.exchanges.clear();
    }

    /// The server's instant of the newest packet; the bound's age counts from here.
    pub fn newest(&self) -> Option<Time<Server>> {
        self.constraints().map(|constraint| constraint.at).max()
    }

    /// The smallest (t4 − t1) − (t3 − t2) of the full exchanges, between the outer ends of the stamps' intervals.
    pub fn smallest_round_trip(&self) -> Option<Nanos> {
        let known = hard::in_host_time(self.assumptions.min_forward, &self.assumptions)
            + hard::in_host_time(self.assumptions.min_backward, &self.assumptions);
        self.full().map(|(upper, lower)| upper.limit - lower.limit + known).min()
    }

    /// The round trips, as in [`Window::smallest_round_trip`], of the full exchanges whose request left at `since` or
    /// later.
    pub fn round_trips(&self, since: Time<Server>) -> impl Iterator<Item = Nanos> {
        let known = hard::in_host_time(self.assumptions.min_forward, &self.assumptions)
            + hard::in_host_time(self.assumptions.min_backward, &self.assumptions);
        let recent = self.full().filter(move |(upper, _)| upper.at >= since);
        recent.map(move |(upper, lower)| upper.limit - lower.limit + known)
    }

    /// The bound at the server's instant `at`, past, present or future, by `policy`. A statistical one only where the
    /// samples carry the confidence that the policy asks for; the hard one otherwise.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn bound(&self, at: Time<Server>, policy: &Policy) -> Result<Interval, WindowError> {
        match *policy {
            Policy::Hard => self.hard(at),
            Policy::Statistical { confidence, budget } => {
                let statistical = self.statistical(at, confidence, budget)?;
                if statistical.confidence >= confidence { Ok(statistical.interval) } else { self.hard(at) }
            }
        }
    }

    /// The hard bound at the server's instant `at`.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn hard(&self, at: Time<Server>) -> Result<Interval, WindowError> {
        Ok(self.solve(at)?.interval)
    }

    /// The statistical bound at the server's instant `at`, at `confidence` (0.5 ≤ confidence < 1) or what less
    /// the samples carry. It never leaves the hard bound.
    ///
    /// # Errors
    /// [`WindowError`], as for the hard bound.
    pub fn statistical(
        &self,
        at: Time<Server>,
        confidence: f64,
        budget: AsymmetryBudget,
    ) -> Result<Statistical, WindowError> {
        let solution = self.solve(at)?;
        let smallest = self.smallest_round_trip();
        Ok(statistical::narrow(&solution, self.full(), smallest, at, &self.assumptions, confidence, budget))
    }

    /// The host's rate relative to the server's at the instant `at`: the middle of the rates that the hard bound's
    /// assumptions allow.
    ///
    /// # Errors
    /// [`WindowError`], as for the hard bound.
    pub fn drift(&self, at: Time<Server>) -> Result<Drift, WindowError> {
        let (least, most) = self.solve(at)?.rate;
        Ok(Drift { ppb: (least + most) / 2.0 * 1e9, error_ppb: (most - least) / 2.0 * 1e9 })
    }

    /// Whether there are packets in both directions on both sides of `at`: before it, and at it or after it.
    pub fn brackets(&self, at: Time<Server>) -> bool {
        let before = |constraint: Constraint| constraint.at < at;
        self.uppers().any(before)
            && self.lowers().any(before)
            && !self.uppers().all(before)
            && !self.lowers().all(before)
    }

    /// A server instant near the one at which the host's clock read `reading`: by the offset that the packet nearest to
    /// it on the host's timeline gives, so it is off by about that packet's delay, and by the drift since.
    ///
    /// # Errors
    /// [`WindowError::Empty`].
    pub fn nearest(&self, reading: Time<Host>) -> Result<Time<Server>, WindowError> {
        let distance = |constraint: &Constraint| (constraint.at + constraint.limit - reading).abs();
        let nearest = self.constraints().min_by_key(distance).ok_or(WindowError::Empty)?;
        Ok(reading - nearest.limit)
    }

    fn solve(&self, at: Time<Server>) -> Result<Solution, WindowError> {
        hard::solve(self.uppers(), self.lowers(), at, &self.assumptions)
    }

    fn uppers(&self) -> impl Iterator<Item = Constraint> + Clone {
        self.exchanges.iter().filter_map(|entry| entry.upper)
    }

    fn lowers(&self) -> impl Iterator<Item = Constraint> + Clone {
        self.exchanges.iter().filter_map(|entry| entry.lower)
    }

    fn constraints(&self) -> impl Iterator<Item = Constraint> {
        self.uppers().chain(self.lowers())
    }

    /// The exchanges of which no half is missing.
    fn full(&self) -> impl Iterator<Item = (Constraint, Constraint)> {
        self.exchanges.iter().filter_map(|entry| Some((entry.upper?, entry.lower?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::pairwise;
    use super::super::simulation::{Clock, Path, window};
    use super::*;
    use crate::exchange::{Backward, Forward};
    use crate::random::Random;
    use crate::time::Span;

    const SECOND: i64 = 1_000_000_000;

    fn at(nanos: i64) -> Time<Server> {
        Time::from_nanos(nanos)
    }

    fn assumptions() -> impl Strategy<Value = Assumptions> {
        // A wander of κ over the simulation's 100 s stays within ρ.
        let rates = (0u32..5_000, 1u32..200_000).prop_map(|(wander, extra)| (wander, 100 * wander + extra));
        // A second: where d·ρ would be missed.
        let delay = || prop_oneof![Just(0), 0i64..2_000, Just(1_000_000_000)];
        (rates, delay(), delay()).prop_map(|((wander, rate_ppb), forward, backward)| Assumptions {
            rate_ppb,
            wander_ppb_per_s: Some(wander),
            min_forward: Nanos::new(forward),
            min_backward: Nanos::new(backward),
            ..Assumptions::default()
        })
    }

    fn path() -> impl Strategy<Value = Path> {
        let scale = || prop_oneof![Just(0.0), 1.0..1e3, 1e3..1e6];
        (scale(), scale(), scale(), scale(), scale(), 0.0..0.5).prop_map(
            |(forward, backward, forward_queue, backward_queue, stamp, loss)| Path {
                forward,
                backward,
                forward_queue,
                backward_queue,
                stamp,
                loss,
            },
        )
    }

    /// A path that keeps the assumed minimum delays.
    fn keeping(path: Path, assumptions: &Assumptions) -> Path {
        Path {
            forward: path.forward + assumptions.min_forward.get() as f64,
            backward: path.backward + assumptions.min_backward.get() as f64,
            ..path
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]

        #[test]
        fn the_truth_is_always_covered(
            seed: u64,
            assumptions in assumptions(),
            steadiness in prop_oneof![Just(0.0), 0.0..1.0],
            paths in (path(), path()),
            counts in (1usize..60, 1usize..60),
            steered: bool,
        ) {
            let random = &mut Random(seed);
            let clocks = [(); 2].map(|()| Clock::within(&assumptions, steadiness, random));
            let wander_ppb_per_s = assumptions.wander_ppb_per_s.filter(|_| !steered);
            let told = Assumptions { wander_ppb_per_s, ..assumptions };
            let span = (20 * SECOND, 20 * SECOND + (60.0 * SECOND as f64 * random.unit() * random.unit()) as i64);
            let first = window(told, &clocks[0], keeping(paths.0, &told), counts.0, span, random);
            let second = window(told, &clocks[1], keeping(paths.1, &told), counts.1, span, random);
            for _ in 0..6 {
                let x = match random.bits() % 3 {
                    0 => random.between(0.0, 1e11),
                    1 => random.between(span.0 as f64, span.1 as f64),
                    _ => span.1 as f64 + random.between(0.0, 1e9),
                } as i64;
                let bounds = [first.hard(at(x)), second.hard(at(x))];
                for ((bound, clock), window) in bounds.iter().zip(&clocks).zip([&first, &second]) {
                    match bound {
                        Ok(interval) => {
                            prop_assert!(clock.is_within(*interval, x), "{interval:?} misses {:?}", clock.theta(x));
                            let drift = window.drift(at(x)).unwrap();
                            prop_assert!((drift.ppb - clock.rate(x)).abs() <= drift.error_ppb + 1e-3, "{drift:?}");
                        }
                        Err(why) => prop_assert_eq!(*why, WindowError::Empty),
                    }
                }
                if let [Ok(i), Ok(j)] = bounds {
                    let (least, most) = pairwise(i, j);
                    let ((i, i_rest), (j, j_rest)) = (clocks[0].theta(x), clocks[1].theta(x));
                    let rest = i_rest - j_rest;
                    prop_assert!((least.get() - (i - j)) as f64 <= rest + 1e-5);
                    prop_assert!(rest - 1e-5 <= (most.get() - (i - j)) as f64);
                }
            }
        }

        #[test]
        fn a_reading_is_placed_near_its_instant(seed: u64, x in 20 * SECOND..80 * SECOND) {
            let random = &mut Random(seed);
            let assumptions = Assumptions::default();
            let clock = Clock::within(&assumptions, 0.0, random);
            let window = window(assumptions, &clock, Path::QUIET, 60, (20 * SECOND, 80 * SECOND), random);
            let near = window.nearest(clock.read(x).earliest).unwrap();
            // One delay, and 200 ppm of the distance to the nearest packet.
            prop_assert!((near - at(x)).abs() < Nanos::from_millis(10));
        }
    }

    /// 8 pairs a second for half a minute over a path that is now and then quiet.
    fn half_a_minute(clock: &Clock, path: Path, random: &mut Random) -> Window {
        let mut window = Window::new(Assumptions::default(), 512);
        for pair in 0..240 {
            for member in 0..2 {
                let queued = random.chance(0.9);
                let path =
                    if queued { path } else { Path { forward_queue: 0.0, backward_queue: 0.0, ..path } };
                window.push(&path.exchange(
                    clock,
                    20 * SECOND + pair * SECOND / 8 + member * 2_000_000,
                    random,
                ));
            }
        }
        window
    }

    #[test]
    fn the_bound_is_little_wider_than_the_smallest_round_trip() {
        let random = &mut Random(1);
        for queue in [0.0, 1e6] {
            let clock = Clock::within(&Assumptions::default(), 0.5, random);
            let path = Path { forward_queue: queue, backward_queue: queue, ..Path::QUIET };
            let window = half_a_minute(&clock, path, random);
            let smallest = window.smallest_round_trip().unwrap();
            assert!((1_000..1_010).contains(&smallest.get()), "{smallest}");
            for (x, limit) in [(35, 1.2), (50, if queue > 0.0 { 2.5 } else { 1.5 })] {
                let half_width = window.hard(at(x * SECOND)).unwrap().half_width().get() as f64;
                assert!(
                    (450.0..limit * 500.0).contains(&half_width),
                    "{half_width} ns at {x} s, queue {queue}"
                );
            }
        }
    }

    #[test]
    fn known_minimum_delays_shrink_the_bound() {
        let random = &mut Random(2);
        let clock = Clock::within(&Assumptions::default(), 0.5, random);
        let known = Nanos::new(450);
        let told = Assumptions { min_forward: known, min_backward: known, ..Assumptions::default() };
        let span = (20 * SECOND, 22 * SECOND);
        let window = window(told, &clock, Path::QUIET, 64, span, random);
        assert!(window.hard(at(21 * SECOND)).unwrap().half_width() < Nanos::new(150));
        assert!((1_000..1_010).contains(&window.smallest_round_trip().unwrap().get()));
    }

    #[test]
    fn a_step_is_proof_of_a_broken_assumption() {
        let random = &mut Random(3);
        let clock = Clock::within(&Assumptions::default(), 0.5, random);
        let mut window = half_a_minute(&clock, Path::QUIET, random);
        let query = at(51 * SECOND);
        assert!(window.hard(query).is_ok());
        for step in [-100_000, 100_000] {
            let mut stepped = window.clone();
            let mut exchange = Path::QUIET.exchange(&clock, 50 * SECOND, random);
            let (forward, backward) =
                (exchange.forward.as_mut().unwrap(), exchange.backward.as_mut().unwrap());
            for span in [&mut forward.received, &mut backward.sent] {
                *span = Span {
                    earliest: span.earliest + Nanos::new(step),
                    latest: span.latest + Nanos::new(step),
                };
            }
            stepped.push(&exchange);
            assert_eq!(stepped.hard(query), Err(WindowError::Broken));
            assert_eq!(stepped.drift(query), Err(WindowError::Broken));
            assert_eq!(stepped.bound(query, &Policy::Hard), Err(WindowError::Broken));
        }
        window.clear();
        assert_eq!(window.hard(query), Err(WindowError::Empty));
    }

    #[test]
    fn a_rate_beyond_the_limit_is_proof_of_a_broken_assumption() {
        let random = &mut Random(4);
        let fast = Assumptions { rate_ppb: 1_000_000, ..Assumptions::default() };
        let clock = loop {
            let clock = Clock::within(&fast, 0.5, random);
            if clock.rate(35 * SECOND).abs() > 300_000.0 {
                break clock;
            }
        };
        let window = half_a_minute(&clock, Path::QUIET, random);
        assert_eq!(window.hard(at(35 * SECOND)), Err(WindowError::Broken));
    }

    #[test]
    fn the_oldest_exchange_leaves_first() {
        let random = &mut Random(5);
        let clock = Clock::within(&Assumptions::default(), 0.5, random);
        let mut window = Window::new(Assumptions::default(), 3);
        assert!(window.is_empty() && window.newest().is_none());
        window.push(&Exchange::default());
        assert!(window.is_empty());
        for second in 1..=5 {
            window.push(&Path::QUIET.exchange(&clock, second * SECOND, random));
        }
        assert_eq!(window.len(), 3);
        assert!(window.newest().unwrap() > at(5 * SECOND));
        assert!(!window.brackets(at(3 * SECOND)) && window.brackets(at(4 * SECOND)));
    }

    #[test]
    fn an_instant_is_bracketed_by_both_directions_on_both_sides() {
        let random = &mut Random(6);
        let clock = Clock::within(&Assumptions::default(), 0.5, random);
        let [early, late] = [1, 3].map(|second| Path::QUIET.exchange(&clock, second * SECOND, random));
        let query = at(2 * SECOND);
        let forward = |exchange: Exchange| Exchange { backward: None, ..exchange };
        let backward = |exchange: Exchange| Exchange { forward: None, ..exchange };
        for (exchanges, expected) in [
            (vec![early, late], true),
            (vec![late, early], true),
            (vec![early], false),
            (vec![late], false),
            (vec![forward(early), late], false),
            (vec![backward(early), late], false),
            (vec![early, forward(late)], false),
            (vec![early, backward(late)], false),
            (vec![forward(early), backward(early), backward(late), forward(late)], true),
        ] {
            let mut window = Window::new(Assumptions::default(), 8);
            exchanges.iter().for_each(|exchange| window.push(exchange));
            assert_eq!(window.brackets(query), expected, "{exchanges:?}");
        }
    }

    #[test]
    fn json_is_compact_and_gives_the_same_window_back() {
        let mut window = Window::new(Assumptions::default(), 4);
        let exchange = Exchange {
            forward: Some(Forward {
                sent: Span::exact(at(100)),
                received: Span::exact(Time::from_nanos(-6_900)),
            }),
            backward: Some(Backward {
                sent: Span { earliest: Time::from_nanos(-6_000), latest: Time::from_nanos(-5_995) },
                received: Span::exact(at(1_800)),
            }),
        };
        window.push(&exchange);
        window.push(&Exchange { backward: None, ..exchange });
        let json = serde_json::to_string(&window).unwrap();
        assert!(
            json.ends_with(r#""exchanges":[[[100,-7000,0],[1800,-7800,5]],[[100,-7000,0],null]]}"#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Window>(&json).unwrap(), window);
    }
}
