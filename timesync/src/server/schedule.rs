//! When to send which host its next request. Decides; reads no clock and sends nothing.
//!
//! Every host stands in one queue, at the instant at which it next wants something: when the exchange on its way is given
//! up, or else when the next one is due. So a wake-up costs what is due and not what there is, and the host that has
//! waited longest comes first: where there is more to do than time, all are late alike.

use std::collections::BTreeSet;

use crate::time::{Nanos, Server, Time};

/// How fast hosts are probed.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// From one pair of exchanges with a host to its next.
    pub pair_interval: Nanos,
    /// Exchanges of a burst.
    pub burst: u32,
    /// From one exchange of a burst to the next.
    pub burst_interval: Nanos,
    /// An answer that takes longer is lost.
    pub timeout: Nanos,
}

/// What is to be done for a host, which is named by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Send a request.
    Probe(usize),
    /// The answer is overdue: end the exchange.
    GiveUp(usize),
}

/// What follows from the end of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// It was the first of a pair and was answered: the second request leaves at once, while caches are warm.
    pub second: bool,
    /// No burst is under way with this host, or no longer.
    pub burst_over: bool,
}

/// So many lost exchanges in a row end a burst.
const BURST_PATIENCE: u32 = 2;

/// All hosts' turns.
#[derive(Debug)]
pub struct Schedule {
    pace: Pace,
    turns: Vec<Turn>,
    /// Each host once, at [`Turn::wakes`].
    queue: BTreeSet<(Time<Server>, usize)>,
}

#[derive(Clone, Debug)]
struct Turn {
    /// When the next pair begins, or the burst's next exchange.
    due: Time<Server>,
    /// When the exchange on its way is given up.
    deadline: Option<Time<Server>>,
    /// The exchange on its way is the first of its pair.
    first_of_pair: bool,
    /// Exchanges of the burst that are still to end.
    burst_left: u32,
    lost_in_a_row: u32,
}

impl Turn {
    fn wakes(&self) -> Time<Server> {
        self.deadline.unwrap_or(self.due)
    }
}

impl Schedule {
    /// Hosts whose first pairs are spread over an interval from `start` on, so that they do not answer all at once.
    pub fn new(hosts: usize, pace: Pace, start: Time<Server>) -> Self {
        let share = |index: usize| {
            let nanos = i128::from(pace.pair_interval.get()) * index as i128 / hosts as i128;
            Nanos::new(i64::try_from(nanos).unwrap_or(i64::MAX))
        };
        let turn = |index| Turn {
            due: start + share(index),
            deadline: None,
            first_of_pair: false,
            burst_left: 0,
            lost_in_a_row: 0,
        };
        let turns: Vec<Turn> = (0..hosts).map(turn).collect();
        let queue = turns.iter().enumerate().map(|(index, turn)| (turn.wakes(), index)).collect();
        Schedule { pace, turns, queue }
    }

    /// When the next host wants something; none without hosts.
    pub fn next(&self) -> Option<Time<Server>> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// What has been due for longest at `now`. The exchange of a host to be probed is on its way from then on. Every
    /// task is to be followed by [`Schedule::end`] (or [`Schedule::forget`]) in its time.
    pub fn pop(&mut self, now: Time<Server>) -> Option<Task> {
        let (_, host) = *self.queue.first().filter(|(at, _)| *at <= now)?;
        if self.turns[host].deadline.is_some() {
            self.forget(host);
            return Some(Task::GiveUp(host));
        }
        let pace = self.pace;
        self.change(host, |turn| {
            let interval = if turn.burst_left > 0 { pace.burst_interval } else { pace.pair_interval };
            // What comes next is due at the same pace whether this one is answered or not; after a pause, from now on.
            turn.due = if now - turn.due < interval { turn.due + interval } else { now + interval };
            turn.first_of_pair = turn.burst_left == 0;
            turn.deadline = Some(now + pace.timeout);
        });
        Some(Task::Probe(host))
    }

    /// The exchange on its way with `host` ended: `complete` with all of its answer, or without, or it was never sent.
    /// The second of a pair is on its way from then on.
    pub fn end(&mut self, host: usize, complete: bool, now: Time<Server>) -> Ended {
        let timeout = self.pace.timeout;
        self.change(host, |turn| {
            let second = std::mem::take(&mut turn.first_of_pair) && complete;
            turn.deadline = second.then(|| now + timeout);
            turn.lost_in_a_row = if complete { 0 } else { turn.lost_in_a_row + 1 };
            turn.burst_left = turn.burst_left.saturating_sub(1);
            if turn.lost_in_a_row >= BURST_PATIENCE {
                turn.burst_left = 0;
            }
            Ended { second, burst_over: turn.burst_left == 0 }
        })
    }

    /// Begins a burst with `host`, now. An exchange that is on its way counts as its first.
    pub fn burst(&mut self, host: usize, now: Time<Server>) {
        let burst_left = self.pace.burst;
        self.change(host, |turn| {
            *turn = Turn {
                due: now,
                deadline: turn.deadline,
                first_of_pair: false,
                burst_left,
                lost_in_a_row: 0,
            };
        });
    }

    /// Forgets the exchange on its way with `host`.
    pub fn forget(&mut self, host: usize) {
        self.change(host, |turn| turn.deadline = None);
    }

    fn change<R>(&mut self, host: usize, change: impl FnOnce(&mut Turn) -> R) -> R {
        let turn = &mut self.turns[host];
        let before = turn.wakes();
        let result = change(turn);
        let after = turn.wakes();
        if after != before {
            self.queue.remove(&(before, host));
            self.queue.insert((after, host));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: i64 = 1_000_000;
    const PACE: Pace = Pace {
        pair_interval: Nanos::from_millis(125),
        burst: 32,
        burst_interval: Nanos::from_millis(1),
        timeout: Nanos::from_millis(250),
    };

    fn at(nanos: i64) -> Time<Server> {
        Time::from_nanos(nanos)
    }

    /// A request that was sent.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Sent {
        at: i64,
        second: bool,
    }

    /// A server that does nothing but what the schedule says, and hosts that answer after a while or never.
    struct Simulation {
        schedule: Schedule,
        now: i64,
        /// What the server takes to send a request.
        cost: i64,
        /// Which host answers when, and which of its requests.
        answers: BTreeSet<(i64, usize, usize)>,
        sent: Vec<Vec<Sent>>,
        bursts_over: Vec<i64>,
        tasks: u64,
    }

    impl Simulation {
        fn new(hosts: usize, pace: Pace) -> Self {
            Simulation {
                schedule: Schedule::new(hosts, pace, at(0)),
                now: 0,
                cost: 0,
                answers: BTreeSet::new(),
                sent: vec![Vec::new(); hosts],
                bursts_over: vec![-1; hosts],
                tasks: 0,
            }
        }

        /// Runs until `until`. `answers_after` tells when a host answers its request, by the request's number.
        fn run(&mut self, until: i64, mut answers_after: impl FnMut(usize, usize) -> Option<i64>) {
            loop {
                let answer = self.answers.first().map_or(i64::MAX, |(at, ..)| *at);
                let wanted = self.schedule.next().map_or(i64::MAX, Time::as_nanos).min(answer);
                if wanted >= until {
                    self.now = self.now.max(until);
                    return;
                }
                self.now = self.now.max(wanted);
                if answer <= self.now {
                    let (_, host, request) = self.answers.pop_first().unwrap();
                    // An answer after its deadline finds another exchange on its way, or none.
                    let waiting = self.schedule.turns[host].deadline.is_some();
                    if waiting && request == self.sent[host].len() {
                        self.end(host, true, &mut answers_after);
                    }
                    continue;
                }
                let Some(task) = self.schedule.pop(at(self.now)) else { continue };
                self.tasks += 1;
                match task {
                    Task::Probe(host) => self.send(host, false, &mut answers_after),
                    Task::GiveUp(host) => self.end(host, false, &mut answers_after),
                }
            }
        }

        fn send(
            &mut self,
            host: usize,
            second: bool,
            answers_after: &mut impl FnMut(usize, usize) -> Option<i64>,
        ) {
            self.sent[host].push(Sent { at: self.now, second });
            self.now += self.cost;
            let request = self.sent[host].len();
            if let Some(after) = answers_after(host, request) {
                self.answers.insert((self.now + after, host, request));
            }
        }

        fn end(
            &mut self,
            host: usize,
            complete: bool,
            answers_after: &mut impl FnMut(usize, usize) -> Option<i64>,
        ) {
            let ended = self.schedule.end(host, complete, at(self.now));
            if ended.burst_over && self.bursts_over[host] < 0 {
                self.bursts_over[host] = self.now;
            }
            if ended.second {
                self.send(host, true, answers_after);
            }
        }
    }

    #[test]
    fn pairs_keep_the_pace_and_their_seconds_follow_at_once() {
        let mut simulation = Simulation::new(1, PACE);
        simulation.run(1_000 * MS, |_, _| Some(20_000));
        let firsts = (0..8).map(|pair| Sent { at: pair * 125 * MS, second: false });
        let expected: Vec<_> =
            firsts.flat_map(|first| [first, Sent { at: first.at + 20_000, second: true }]).collect();
        assert_eq!(simulation.sent[0], expected);
    }

    #[test]
    fn what_is_not_answered_is_given_up_and_has_no_second() {
        let mut simulation = Simulation::new(1, PACE);
        simulation.run(1_000 * MS, |_, _| None);
        // Given up after 250 ms, when the next pair has been due for long.
        let expected: Vec<_> = (0..4).map(|i| Sent { at: i * 250 * MS, second: false }).collect();
        assert_eq!(simulation.sent[0], expected);
    }

    #[test]
    fn after_a_pause_the_pace_counts_from_its_end() {
        let mut schedule = Schedule::new(1, PACE, at(0));
        let woken = at(10_000 * MS);
        assert_eq!(schedule.pop(woken), Some(Task::Probe(0)));
        assert_eq!(schedule.pop(woken), None);
        schedule.end(0, true, woken);
        schedule.end(0, true, woken);
        assert_eq!((schedule.pop(woken), schedule.next()), (None, Some(at(10_125 * MS))));
    }

    #[test]
    fn a_request_that_could_not_be_sent_is_lost_and_the_pace_goes_on() {
        let mut schedule = Schedule::new(1, PACE, at(0));
        assert_eq!(schedule.pop(at(0)), Some(Task::Probe(0)));
        assert_eq!(schedule.end(0, false, at(0)), Ended { second: false, burst_over: true });
        assert_eq!(schedule.next(), Some(at(125 * MS)));
    }

    #[test]
    fn a_burst_is_single_exchanges_at_its_own_pace_and_ends() {
        let mut simulation = Simulation::new(2, PACE);
        simulation.run(1, |_, _| Some(20_000));
        simulation.schedule.burst(1, at(1));
        simulation.run(200 * MS, |_, _| Some(20_000));
        let burst: Vec<i64> =
            simulation.sent[1].iter().filter(|sent| !sent.second).map(|sent| sent.at).take(32).collect();
        assert_eq!(burst, (0..32).map(|i| 1 + i * MS).collect::<Vec<_>>());
        assert_eq!(simulation.bursts_over[1], burst[31] + 20_000);
        // Then pairs again, an interval after the last of them would have been due.
        let rest: Vec<_> = simulation.sent[1][32..].iter().map(|sent| (sent.at, sent.second)).collect();
        assert_eq!(rest[..2], [(1 + 32 * MS, false), (1 + 32 * MS + 20_000, true)]);
        assert_eq!(simulation.sent[0].len(), 4, "the other host's pairs went on");
    }

    #[test]
    fn a_burst_ends_after_two_losses_in_a_row() {
        let mut simulation = Simulation::new(1, PACE);
        simulation.schedule.burst(0, at(0));
        simulation.run(2_000 * MS, |_, request| (request % 3 == 0).then_some(20_000));
        assert_eq!(simulation.bursts_over[0], 500 * MS);
        let mut simulation = Simulation::new(1, PACE);
        simulation.schedule.burst(0, at(0));
        simulation.run(20_000 * MS, |_, request| (request % 2 == 0).then_some(20_000));
        let of_burst = simulation.sent[0].iter().filter(|sent| sent.at <= simulation.bursts_over[0]).count();
        assert_eq!(of_burst, 32, "single losses do not end it");
    }

    #[test]
    fn ten_thousand_hosts_at_one_pair_a_second_cost_ten_thousand_tasks_a_second() {
        let hosts = 10_000;
        let mut simulation =
            Simulation::new(hosts, Pace { pair_interval: Nanos::from_millis(1_000), ..PACE });
        simulation.run(3_000 * MS, |_, _| Some(50_000));
        assert!(simulation.sent.iter().all(|sent| sent.len() == 6));
        assert_eq!(simulation.tasks, 3 * 10_000, "whoever is not due costs nothing");
        assert_eq!(simulation.schedule.queue.len(), hosts);
        // Spread over the second: no two at the same instant.
        let mut firsts: Vec<i64> = simulation.sent.iter().map(|sent| sent[0].at).collect();
        firsts.dedup();
        assert_eq!(firsts.len(), hosts);
    }

    #[test]
    fn where_there_is_too_much_to_do_nobody_starves() {
        // 1000 hosts · 16 requests a second, and a server that manages 5000 requests a second.
        let mut simulation = Simulation::new(1_000, PACE);
        simulation.cost = 200_000;
        simulation.run(5_000 * MS, |_, _| Some(20_000));
        let counts = || simulation.sent.iter().map(Vec::len);
        let (least, most) = (counts().min().unwrap(), counts().max().unwrap());
        assert!(least >= 20 && most - least <= 4, "{least} to {most}");
    }

    proptest! {
        /// Whatever is lost or late: every host is probed at its pace, never faster, one exchange at a time, and every
        /// burst ends.
        #[test]
        fn every_host_is_probed_at_its_pace(
            answers in prop::collection::vec(
                prop_oneof![8 => (1_000..300_000_i64).prop_map(Some), 1 => (0..400 * MS).prop_map(Some), 1 => Just(None)],
                1..64,
            ),
            hosts in 1_usize..20,
            bursts in prop::collection::vec((0_usize..20, 0..3_000 * MS), 0..4),
        ) {
            let mut simulation = Simulation::new(hosts, PACE);
            let answer = |host: usize, request: usize| answers[(host * 7 + request) % answers.len()];
            let mut bursts = bursts;
            bursts.sort_by_key(|(_, when)| *when);
            let mut probed = vec![false; hosts];
            for (host, when) in bursts {
                let host = host % hosts;
                simulation.run(when, answer);
                simulation.schedule.burst(host, at(simulation.now));
                (probed[host], simulation.bursts_over[host]) = (true, -1);
            }
            let quiet_from = simulation.now;
            let until = quiet_from + 40_000 * MS;
            simulation.run(until, answer);
            for (host, probed) in probed.into_iter().enumerate() {
                prop_assert!(!probed || simulation.bursts_over[host] >= 0, "a burst without end");
                // The last of a burst is a quarter of a second after its begin, or 32 time-outs.
                let settled = quiet_from + 9_000 * MS;
                let firsts: Vec<i64> = simulation.sent[host]
                    .iter()
                    .filter(|sent| !sent.second && sent.at >= settled)
                    .map(|sent| sent.at)
                    .collect();
                for pair in firsts.windows(2) {
                    let distance = pair[1] - pair[0];
                    // Both exchanges of a pair may be given up, so the next is late by up to two time-outs; and one
                    // that follows a late one may be early against that one, never against the pace.
                    prop_assert!((1..=2 * 250 * MS + 125 * MS).contains(&distance), "{distance}");
                }
                let most = (until - settled) / (125 * MS) + 1;
                let least = (until - settled) / (2 * 250 * MS + 125 * MS);
                prop_assert!((least..=most).contains(&(firsts.len() as i64)), "{} of {most}", firsts.len());
            }
            prop_assert_eq!(simulation.schedule.queue.len(), hosts);
        }
    }
}
