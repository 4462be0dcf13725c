//! One host: exchanges with it, one after the other, through the server's own code for them.

use std::collections::VecDeque;
use std::sync::Arc;

use timesync::exchange::StampClass;
use timesync::identity::{BootId, Incarnation, ProcessId};
use timesync::module::Repeats;
use timesync::random::Random;
use timesync::server::{Outcome, Outstanding, Responder};
use timesync::time::{Nanos, Raw, Server, Span, Time, Wall};
use timesync::translate::{ClockReading, PacketStamp, Stamp};
use timesync::wire::{Body, Extension, Header, Message, PortIdentity, REQUESTER, Reading};
use uuid::Uuid;

use super::card::{Card, Handling};
use super::clock::{Change, Clock, SECOND};
use super::estimator::{Estimator, Measured};
use super::machine::{Machine, host_raw, server_raw};
use super::network::Traffic;
use super::scenario::{Scenario, Tell};

/// An answer that takes longer is lost.
const TIMEOUT: i64 = SECOND / 4;
/// A burst, as the server does it by default.
pub const BURST: u32 = 32;
const BURST_INTERVAL: i64 = 1_000_000;
/// A host looks its clock source up so often at most.
const SOURCE_CHECK: i64 = 1_000_000;

/// A change of the host, and how it shows.
#[derive(Clone, Copy, Debug)]
pub struct Break {
    pub at: i64,
    pub change: Change,
    pub tell: Tell,
}

impl Break {
    /// The host runs again, if the break stopped it.
    pub fn over(&self) -> i64 {
        match self.change {
            Change::Stop(long) | Change::Boot(long) => self.at + long,
            _ => self.at,
        }
    }
}

#[derive(Clone)]
pub struct Host<E> {
    pub clock: Clock,
    pub estimator: E,
    /// What the estimator was given, newest last: at least as much as its window holds.
    pub measured: VecDeque<Measured>,
    /// When it stopped being trusted.
    pub withdrawn: Vec<i64>,
    /// When the first answer came that the host had made after it could tell of a break.
    pub told: Option<i64>,
    /// Exchanges that network cards stamped at both ends.
    pub by_card: usize,
    scenario: Arc<Scenario>,
    breaking: Option<Break>,
    /// When a break that is told shows in the readings.
    told_at: i64,
    host: Machine,
    server: Machine,
    /// The network cards, the host's and the server's.
    cards: Option<[Card; 2]>,
    ways: (Traffic, Traffic),
    random: Random,
    sequence: u16,
    due: i64,
    /// No exchange begins before the last one is over.
    free: i64,
    first_of_pair: bool,
    burst_left: u32,
    pending: Option<Pending>,
    server_changed: bool,
    /// Nobody answers.
    pub down: bool,
    /// Nothing passes until then.
    pub cut_off_until: i64,
    /// How often the daemon was started anew.
    pub restarts: u128,
    repeats: Repeats,
}

/// An exchange whose outcome is known, but not yet to the server.
#[derive(Clone)]
struct Pending {
    done: i64,
    outcome: Option<Outcome>,
    complete: bool,
    delays: (i64, i64),
    /// Who answered, as soon as one does.
    heard: VecDeque<(i64, Responder)>,
}

/// A message on its way to the server.
struct Answer {
    arrives: i64,
    /// When its readings were made.
    made: i64,
    message: Message,
}

/// Positions among the cards.
const HOST: usize = 0;
const SERVER: usize = 1;

impl<E: Estimator> Host<E> {
    pub fn new(
        scenario: &Scenario,
        estimator: E,
        breaking: Option<Break>,
        seconds: i64,
        random: &mut Random,
    ) -> Self {
        let mut random = random.split();
        let clock = Clock::new(scenario.shape, seconds, breaking.map(|b| (b.at, b.change)), &mut random);
        let server = super::scenario::SERVER_DISCIPLINE;
        let lag = if matches!(breaking.map(|b| b.tell), Some(Tell::Source)) {
            random.nanos(0, SOURCE_CHECK)
        } else {
            0
        };
        let cards = scenario.card.map(|handling| {
            let fault = breaking.and_then(|b| match b.change {
                Change::Card(ppb) => Some((b.at, ppb)),
                _ => None,
            });
            let untouched = Handling { step_s: 0.0, set_s: 0.0 };
            [
                Card::new(handling, seconds, fault, clock.clone(), &mut random),
                Card::new(untouched, seconds, None, Clock::server(), &mut random),
            ]
        });
        Host {
            clock,
            estimator,
            measured: VecDeque::new(),
            withdrawn: Vec::new(),
            told: None,
            by_card: 0,
            scenario: Arc::new(scenario.clone()),
            breaking,
            told_at: breaking.map_or(i64::MAX, |b| b.at.saturating_add(lag)),
            host: Machine::new(scenario.discipline, seconds, &mut random),
            server: Machine::new(server, seconds, &mut random),
            cards,
            ways: (Traffic::new(scenario.forward, &mut random), Traffic::new(scenario.backward, &mut random)),
            sequence: random.bits() as u16,
            due: SECOND + random.nanos(0, scenario.pair_interval()),
            free: 0,
            first_of_pair: true,
            burst_left: 0,
            pending: None,
            server_changed: false,
            down: false,
            cut_off_until: 0,
            restarts: 0,
            repeats: Repeats::default(),
            random,
        }
    }

    /// The clock that is bounded, at the server's instant `x`: θ as an integer and a rest.
    pub fn truth(&self, x: i64) -> (i64, f64) {
        let (whole, rest) = self.clock.theta(x);
        if self.scenario.agentless {
            let (ahead, slewed) = self.host.wall_ahead(x);
            (whole + ahead, rest + slewed)
        } else {
            (whole, rest)
        }
    }

    /// Lets everything happen that happens until `now`.
    pub fn advance(&mut self, now: i64) {
        loop {
            if self.pending.is_none() {
                let at = self.due.max(self.free);
                if at > now {
                    break;
                }
                let interval =
                    if self.burst_left > 0 { BURST_INTERVAL } else { self.scenario.pair_interval() };
                self.due = if at - self.due < interval { self.due + interval } else { at + interval };
                self.send(at, self.burst_left == 0);
            }
            self.hear(now);
            if self.pending.as_ref().is_none_or(|pending| pending.done > now) {
                break;
            }
            self.finish();
        }
        self.notice_own_change(now);
    }

    /// A burst from `now` on. Returns when it is over.
    pub fn burst(&mut self, now: i64) -> i64 {
        self.begin_burst(now, BURST);
        let mut last = now;
        while let Some(next) = self.next_of_burst() {
            last = last.max(next);
            self.advance(last);
        }
        last
    }

    /// Begins a burst of so many exchanges.
    pub fn begin_burst(&mut self, now: i64, exchanges: u32) {
        self.advance(now);
        if let Some(pending) = &self.pending {
            self.advance(pending.done);
        }
        self.burst_left = exchanges;
        self.due = now;
    }

    /// When the burst goes on; none once it is over.
    pub fn next_of_burst(&self) -> Option<i64> {
        let next = self.pending.as_ref().map_or(self.due.max(self.free), |pending| pending.done);
        (self.burst_left > 0).then_some(next)
    }

    /// The server finds out about its own suspend before it believes anything that was measured across it.
    fn notice_own_change(&mut self, now: i64) {
        let changed = self.breaking.is_some_and(|b| b.tell == Tell::Server && b.at <= now);
        if changed && !self.server_changed {
            self.server_changed = true;
            self.pending = None;
            self.free = now;
            self.judge(now, E::server_changed);
        }
    }

    /// Does something to the estimator, and notes whether its bound was withdrawn by it.
    fn judge(&mut self, now: i64, act: impl FnOnce(&mut E)) {
        let at = Time::from_nanos(now);
        let before = self.estimator.trusted(at).is_some();
        act(&mut self.estimator);
        if before && self.estimator.trusted(at).is_none() {
            self.withdrawn.push(now);
        }
    }

    /// Every answer that has come until `now` tells who gave it.
    fn hear(&mut self, now: i64) {
        while let Some((at, responder)) =
            self.pending.as_mut().and_then(|pending| pending.heard.pop_front_if(|(at, _)| *at <= now))
        {
            self.notice_own_change(at);
            self.judge(at, |estimator| estimator.hear(responder));
        }
    }

    fn finish(&mut self) {
        let Some(Pending { done, .. }) = self.pending else { return };
        self.notice_own_change(done);
        let Some(Pending { done, outcome, complete, delays, .. }) = self.pending.take() else { return };
        self.free = done;
        if self.burst_left == 1 {
            self.due = done + self.scenario.pair_interval();
        }
        self.burst_left = self.burst_left.saturating_sub(1);
        if std::mem::take(&mut self.first_of_pair) && complete {
            self.send(done + 2_000, false);
            self.first_of_pair = false;
        }
        let Some(outcome) = outcome else {
            self.estimator.lose();
            return;
        };
        let (forward, backward) = delays;
        self.by_card += usize::from(outcome.class == StampClass::Hardware);
        let round_trip = outcome.exchange.round_trip().map(Nanos::get);
        let assumptions = &self.scenario.assumptions;
        let exchange = if assumptions.trust_correction {
            outcome.corrections.apply(&outcome.exchange, assumptions.rate_ppb).ok()
        } else {
            Some(outcome.exchange)
        };
        self.measured.extend(exchange.map(|exchange| Measured { exchange, round_trip, forward, backward }));
        if self.measured.len() > self.scenario.window {
            self.measured.pop_front();
        }
        self.judge(done, |estimator| estimator.complete(&outcome));
    }

    /// A host that stands still does nothing until it runs again.
    fn awake(&self, x: i64) -> i64 {
        match self.breaking {
            Some(b) if b.at <= x && x < b.over() => b.over() + 1_000,
            _ => x,
        }
    }

    /// From when a packet arrives until the process that waits for it runs.
    fn wake(&mut self) -> i64 {
        self.random.exponential(self.scenario.wake_ns) as i64 + 300
    }

    fn shortcut(&self, x: i64) -> i64 {
        match self.breaking {
            Some(Break { at, change: Change::Shortcut(by), .. }) if at <= x => by as i64,
            _ => 0,
        }
    }

    fn server_reading(&mut self, x: i64) -> ClockReading {
        self.server.reading(x, server_raw(x), &mut self.random)
    }

    fn host_reading(&mut self, x: i64) -> ClockReading {
        self.host.reading(x, host_raw(&self.clock, x), &mut self.random)
    }

    /// What will happen to it.
    pub fn breaking(&self) -> Option<Break> {
        self.breaking
    }

    /// Who answers at `x`.
    pub fn incarnation(&self, x: i64) -> Incarnation {
        let rebooted = x >= self.told_at && self.breaking.map(|b| b.tell) == Some(Tell::Boot);
        self.incarnation_of(u128::from(rebooted))
    }

    fn incarnation_of(&self, boot: u128) -> Incarnation {
        let process = ProcessId(Uuid::from_u128(boot + 100 + self.restarts * 1_000));
        Incarnation { process, ..incarnation(boot) }
    }

    /// What a module's TLV says of a stamp, at `x`.
    fn extension(&self, stamp: &Stamp, x: i64) -> Option<Extension> {
        let told = x >= self.told_at;
        let tell = self.breaking.map(|b| b.tell);
        let boot = u128::from(told && tell == Some(Tell::Boot));
        let width = stamp.raw.width().get();
        (!self.scenario.agentless).then_some(Extension::Reading(Reading {
            raw_earliest: stamp.raw.earliest.as_nanos(),
            raw_width: u32::try_from(width).unwrap_or(u32::MAX),
            class: stamp.class,
            incarnation: self.incarnation_of(boot),
            suspends: u32::from(told && tell == Some(Tell::Suspend)),
            steps: 0,
            simulated: false,
            trusted_source: !(told && tell == Some(Tell::Source)),
        }))
    }

    /// Reads a card's clock, if there is one, at `x`.
    fn prepare(&mut self, card: usize, x: i64) {
        if let Some(cards) = &mut self.cards {
            cards[card].prepare(x, &mut self.random);
        }
    }

    /// A card's stamp of the packet that passed it at `x`, later than `since`, when its clock is read at `read`.
    fn card_stamp(&mut self, card: usize, x: i64, since: Option<i64>, read: i64) -> Option<Span<Raw>> {
        let card = &mut self.cards.as_mut()?[card];
        card.read(read, &mut self.random);
        card.stamp(x, since, &mut self.random)
    }

    /// Works out an exchange that leaves the server at `sent`.
    fn send(&mut self, sent: i64, first_of_pair: bool) {
        let scenario = Arc::clone(&self.scenario);
        self.sequence = self.sequence.wrapping_add(1);
        self.first_of_pair = first_of_pair;
        let before = self.server_reading(sent - 700);
        let mut outstanding = Outstanding::new(self.sequence, Some(0), before);
        self.prepare(SERVER, sent - 300);
        outstanding.sent = PacketStamp {
            software: Some(self.server.wall(sent, server_raw(sent))),
            hardware: self.card_stamp(SERVER, sent, Some(sent - 300), sent + 3_000),
        };
        let forward = self.ways.0.delay(sent, first_of_pair, &mut self.random) - self.shortcut(sent);
        let (held, correction) = self.ways.0.held(scenario.assumptions.rate_ppb, &mut self.random);
        let correction = correction + self.lie(sent, 1.0);
        let t2 = sent + forward + held;
        let mut arrivals = Vec::new();
        let backward = self.answer(t2, correction, first_of_pair, &mut arrivals);
        if self.random.chance(scenario.duplicated) {
            let again = t2 + self.random.nanos(1_000, 300_000);
            self.answer(again, correction, false, &mut arrivals);
        }
        arrivals.sort_by_key(|answer| answer.arrives);
        let deadline = sent + TIMEOUT;
        let (mut done, mut heard, mut taken) = (deadline, VecDeque::new(), sent);
        for Answer { arrives, made, message } in
            arrivals.into_iter().filter(|answer| answer.arrives < deadline)
        {
            // The kernel stamps when it arrives; both clocks are read when the prober has woken up.
            taken = taken.max(arrives + self.wake());
            let hardware = self.card_stamp(SERVER, arrives, None, taken);
            let after = self.server_reading(taken);
            let software: Time<Wall> = self.server.wall(arrives, server_raw(arrives));
            let stamp = PacketStamp { software: Some(software), hardware };
            if outstanding.accept(&message, REQUESTER, stamp, &after) {
                heard.extend(outstanding.responder().map(|responder| (taken, responder)));
                if made >= self.told_at {
                    self.told = Some(self.told.map_or(taken, |told| told.min(taken)));
                }
            }
            if outstanding.is_complete() {
                done = taken;
                break;
            }
        }
        let complete = outstanding.is_complete();
        let outcome = outstanding.outcome();
        self.pending = Some(Pending { done, outcome, complete, delays: (forward, backward), heard });
    }

    /// What the module does when the request arrives at `t2`: its messages, and when they arrive at the server. Returns
    /// the response's delay.
    fn answer(&mut self, t2: i64, corrected: i64, first_of_pair: bool, answers: &mut Vec<Answer>) -> i64 {
        let scenario = Arc::clone(&self.scenario);
        let deaf =
            self.down || t2 < self.cut_off_until || self.awake(t2) != t2 || self.random.chance(scenario.loss);
        let from = ([10, 0, 0, 1], 319).into();
        if deaf || self.repeats.repeated(from, self.sequence) {
            return 0;
        }
        // The reading before is as old as the last time the module looked.
        let age = self.random.nanos(1_000, SECOND / 8);
        let earlier = self.host_reading(t2 - age);
        let woken = t2 + self.wake();
        let answered = self.awake(woken);
        let hardware = self.card_stamp(HOST, t2, None, answered);
        let after = self.host_reading(answered);
        let software = Some(self.host.wall(t2, host_raw(&self.clock, t2)));
        let received = Stamp::received(PacketStamp { software, hardware }, &earlier, &after);
        let ready = answered + 2_000 + self.wake() / 4;
        self.prepare(HOST, ready);
        let t3 = self.awake(ready);
        let backward = self.ways.1.delay(t3, first_of_pair, &mut self.random);
        let (held, correction) = self.ways.1.held(scenario.assumptions.rate_ppb, &mut self.random);
        let correction = correction + self.lie(t3, -1.0);
        let response = self.message(received.wall, true, correction, self.extension(&received, answered));
        let back = t3 + 3_000 + self.wake() / 4;
        let stamped = self.awake(back);
        let hardware = self.card_stamp(HOST, t3, Some(ready), stamped);
        let read_back = self.host_reading(stamped);
        let software = Some(self.host.wall(t3, host_raw(&self.clock, t3)));
        let left = Stamp::sent(PacketStamp { software, hardware }, &after, &read_back);
        let follow_up = self.message(left.wall, false, corrected, self.extension(&left, stamped));
        let later = self.ways.1.delay(stamped, false, &mut self.random);
        let messages = [(t3 + backward + held, answered, response), (stamped + later, stamped, follow_up)];
        for (arrives, made, message) in messages {
            if !self.random.chance(scenario.loss) {
                answers.push(Answer { arrives, made, message });
            }
            if self.random.chance(scenario.duplicated) {
                let arrives = arrives + self.random.nanos(0, 40_000_000);
                answers.push(Answer { arrives, made, message });
            }
        }
        backward
    }

    /// What the transparent clocks claim too much of packets this way, in 2⁻¹⁶ ns.
    fn lie(&self, x: i64, way: f64) -> i64 {
        match self.breaking {
            Some(Break { at, change: Change::Lie(by), .. }) if at <= x => {
                ((by * way).max(0.0) * 65_536.0) as i64
            }
            _ => 0,
        }
    }

    fn message(
        &mut self,
        stamp: Time<Wall>,
        response: bool,
        correction: i64,
        extension: Option<Extension>,
    ) -> Message {
        let correction = if self.scenario.lying_correction {
            self.random.nanos(-1 << 40, 1 << 40) // up to 17 ms, either way
        } else {
            correction
        };
        let header = Header {
            domain: 0,
            sdo: 0,
            minor_version: 1,
            two_step: response,
            unicast: true,
            correction,
            source: PortIdentity { clock: [7; 8], port: 1 },
            sequence: self.sequence,
        };
        let body = if response {
            Body::Response { received: stamp, requester: REQUESTER }
        } else {
            Body::FollowUp { sent: stamp, requester: REQUESTER }
        };
        Message { header, body, extension }
    }

    /// The newest exchanges that the estimator counts.
    pub fn counted(&self, now: i64) -> Option<impl Iterator<Item = &Measured> + Clone> {
        let count = self.estimator.trusted(at(now))?;
        Some(self.measured.iter().skip(self.measured.len().saturating_sub(count)))
    }
}

pub fn at(x: i64) -> Time<Server> {
    Time::from_nanos(x)
}

/// A module, by its boot.
pub fn incarnation(boot: u128) -> Incarnation {
    let (boot, process) = (Uuid::from_u128(boot + 1), Uuid::from_u128(boot + 100));
    Incarnation { boot: BootId(boot), process: ProcessId(process) }
}
