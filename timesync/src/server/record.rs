//! What the server knows of one host. Decides; reads no clock.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::HostConfig;
use super::outstanding::{Outcome, Responder};
use crate::authentication::Refused;
use crate::bound::{Assumptions, Window, WindowError, Witness};
use crate::exchange::{Exchange, StampClass, WallReading};
use crate::recording::{Event, Tap};
use crate::source::{Observation, Unobserved};
use crate::time::{Host, Nanos, Server, Time};

/// So many good exchanges come before a bound is published: at the start, and again after every reset.
const SETTLED_AFTER: u32 = 8;
/// A host that was not heard of for so long is silent.
const SILENT_AFTER: Nanos = Nanos::from_millis(5_000);
/// A clock source that is not an oscillator's counter may run at another rate, and change it: 1 000 ppm.
const UNTRUSTED_RATE_PPB: u32 = 1_000_000;
/// A wall clock that a daemon slews by up to 1 000 ppm, on top of the oscillators' 200.
const STEERED_RATE_PPB: u32 = 1_200_000;

/// Why a host's window was emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Reset {
    /// Another boot, process or clock: an announced change.
    Announced,
    /// The exchanges contradicted each other.
    Broken,
}

/// One host as the server knows it: a machine whose state follows from what it was told and from nothing else, so that a
/// recording of that gives the same state again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// As configured.
    pub config: HostConfig,
    capacity: usize,
    /// The server's own clock source keeps an oscillator's rate.
    server_trusted: bool,
    window: Window,
    /// Proves that the window's exchanges do not contradict each other. Without it that is worked out again, to the same
    /// end.
    #[serde(skip)]
    witness: Option<Witness>,
    responder: Option<Responder>,
    /// Good exchanges that are still wanted before a bound is published, and why.
    unsettled: (u32, Reset),
    latest: Option<Latest>,
    /// The class of timestamps that was logged, and how many exchanges in a row had another one.
    class: (Option<StampClass>, u32),
    /// When the newest answer's request left.
    heard: Option<Time<Server>>,
    /// When an answer was last refused, because it was not authenticated with the host's key.
    refused_at: Option<Time<Server>>,
    /// Of full exchanges since the last reset, in ns.
    #[serde(with = "crate::recording::histogram")]
    pub round_trips: Histogram<u32>,
    /// Exchanges that gave at least a half.
    pub exchanges: u64,
    /// Exchanges of which anything was lost.
    pub lost: u64,
    /// How often the exchanges contradicted the assumptions.
    pub broken: u64,
    /// How often the window was emptied, for whatever reason.
    resets: u64,
    /// Answers that were refused, because they were not authenticated with the host's key.
    pub refused: u64,
    /// Who hears of everything that this record is told, while somebody records.
    #[serde(skip)]
    pub tap: Option<Tap>,
}

/// The newest exchange that gave anything.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Latest {
    /// The server's wall clock.
    pub server_wall: WallReading<Server>,
    /// The host's.
    pub host_wall: WallReading<Host>,
    /// The worst of the stamps' classes.
    pub class: StampClass,
    /// No more time lies between the instants that the two wall clocks are known at.
    pub apart: Nanos,
    /// How often the host's wall clock was set while its module ran.
    pub steps: u32,
}

/// What a report says about a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its bound is published.
    Ok,
    /// No answer, ever or lately.
    Silent,
    /// It answers, but not authenticated with its key.
    Unauthenticated,
    /// It answers without our module.
    Agentless,
    /// Its clock is simulated, and the server was not told to accept that.
    Simulated,
    /// Its exchanges contradicted the assumptions; too few good ones since.
    Broken,
    /// Too few exchanges yet.
    Warming,
}

impl Record {
    /// A host that nothing is known of, with a window for `capacity` exchanges.
    pub fn new(mut config: HostConfig, capacity: usize, server_trusted: bool) -> Self {
        config.assumptions.authenticated = config.key.is_some();
        Record {
            window: Window::new(config.assumptions, capacity),
            witness: None,
            config,
            capacity,
            server_trusted,
            responder: None,
            unsettled: (SETTLED_AFTER, Reset::Announced),
            latest: None,
            class: (None, 0),
            heard: None,
            refused_at: None,
            round_trips: round_trips(),
            exchanges: 0,
            lost: 0,
            broken: 0,
            resets: 0,
            refused: 0,
            tap: None,
        }
    }

    /// Takes what happened to it.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Heard(responder) => self.hear(*responder),
            Event::Exchange(outcome) => self.complete(outcome),
            Event::Lost => self.lose(),
            Event::Refused { at, why } => self.refuse(*at, *why),
            Event::ServerChanged { trusted } => self.server_changed(*trusted),
        }
    }

    fn tell(&mut self, event: Event) {
        // A tap that cannot keep up is gone; whoever listens is told so.
        if self.tap.as_ref().is_some_and(|tap| !tap.event(event)) {
            self.tap = None;
        }
    }

    /// Takes who gave an answer, as soon as it is there: if that is another timeline than before, nothing from before is
    /// trusted any longer, whatever comes of the exchange.
    pub fn hear(&mut self, responder: Responder) {
        if self.responder == Some(responder) {
            return;
        }
        self.tell(Event::Heard(responder));
        if let Some(before) = self.responder {
            tracing::info!(host = self.config.name, ?before, now = ?responder, "another timeline");
        }
        self.responder = Some(responder);
        self.reset(Reset::Announced);
    }

    /// Takes what came of an exchange.
    pub fn complete(&mut self, outcome: &Outcome) {
        self.hear(outcome.responder);
        self.tell(Event::Exchange(*outcome));
        if let Some(latest) = &self.latest
            && latest.steps != outcome.steps
        {
            tracing::info!(host = self.config.name, "the host's CLOCK_REALTIME was set");
        }
        self.exchanges += 1;
        self.heard = Some(outcome.server_wall.at.latest);
        let Some(exchange) = self.corrected(outcome) else { return };
        self.window.push(&exchange);
        self.witness = self.witness.filter(|witness| self.window.newest_keeps(witness));
        let Some(round_trip) = exchange.round_trip() else {
            self.lost += 1;
            // Half an exchange may contradict the others too.
            self.reset_if_broken();
            return;
        };
        self.log_class(outcome.class);
        self.latest = Some(Latest {
            server_wall: outcome.server_wall,
            host_wall: outcome.host_wall,
            class: outcome.class,
            apart: round_trip.abs() + outcome.apart,
            steps: outcome.steps,
        });
        self.round_trips.saturating_record(u64::try_from(round_trip.get()).unwrap_or(0).max(1));
        if !self.reset_if_broken() {
            self.unsettled.0 = self.unsettled.0.saturating_sub(1);
        }
    }

    fn reset_if_broken(&mut self) -> bool {
        let broken = self.is_broken();
        if broken {
            self.broken += 1;
            tracing::warn!(host = self.config.name, "{}; starting anew", WindowError::Broken);
            self.reset(Reset::Broken);
        }
        broken
    }

    /// Whether the exchanges contradict each other. The program is solved only when the last solution's witness has
    /// fallen: that is seldom, and takes longer than everything else about an exchange.
    fn is_broken(&mut self) -> bool {
        if self.witness.is_some() {
            return false;
        }
        let solved = self.window.witness();
        self.witness = solved.ok();
        solved.is_err_and(|error| error == WindowError::Broken)
    }

    /// The exchange as the bound is to take it; none, and counted as lost, where it trusts corrections that cannot be true.
    fn corrected(&mut self, outcome: &Outcome) -> Option<Exchange> {
        let assumptions = self.window.assumptions();
        if !assumptions.trust_correction {
            return Some(outcome.exchange);
        }
        match outcome.corrections.apply(&outcome.exchange, assumptions.rate_ppb) {
            Ok(exchange) => Some(exchange),
            Err(why) => {
                tracing::warn!(host = self.config.name, corrections = ?outcome.corrections, "{why}");
                self.lost += 1;
                None
            }
        }
    }

    /// Says when the timestamps have become better or worse, not when a single one is missing.
    fn log_class(&mut self, now: StampClass) {
        let (logged, others) = &mut self.class;
        *others = if *logged == Some(now) { 0 } else { *others + 1 };
        if logged.is_none() || *others >= SETTLED_AFTER {
            if let Some(before) = logged {
                tracing::warn!(host = self.config.name, ?before, ?now, "another class of timestamps");
            }
            self.class = (Some(now), 0);
        }
    }

    /// Counts an exchange that nothing came of.
    pub fn lose(&mut self) {
        self.tell(Event::Lost);
        self.lost += 1;
    }

    /// Counts an answer that was not authenticated with the host's key. It changes nothing else.
    pub fn refuse(&mut self, now: Time<Server>, why: Refused) {
        self.tell(Event::Refused { at: now, why });
        self.refused += 1;
        if why == Refused::Replayed {
            // By somebody with the key, so it says nothing against the host: mostly it is just late.
            return;
        }
        // One without any is what a host answers until it is handed its key; the state says it if that lasts.
        if why != Refused::Missing && self.refused_at.is_none_or(|before| now - before > SILENT_AFTER) {
            tracing::warn!(host = self.config.name, refused = self.refused, "an answer was refused: {why}");
        }
        self.refused_at = Some(now);
    }

    /// The server's own timeline has become another one: it was suspended, or its clock source changed.
    pub fn server_changed(&mut self, trusted: bool) {
        self.tell(Event::ServerChanged { trusted });
        self.server_trusted = trusted;
        self.reset(Reset::Announced);
    }

    fn reset(&mut self, why: Reset) {
        self.window = Window::new(self.assumptions(), self.capacity);
        self.witness = None;
        self.unsettled = (SETTLED_AFTER, why);
        self.resets += 1;
        self.latest = None;
        self.round_trips = round_trips();
    }

    /// What the bound assumes: as configured, or more cautiously where the clocks are worse than that supposes.
    pub fn assumptions(&self) -> Assumptions {
        let configured = self.config.assumptions;
        match self.responder {
            Some(Responder::Plain(_)) => Assumptions {
                rate_ppb: configured.rate_ppb.max(STEERED_RATE_PPB),
                wander_ppb_per_s: None,
                ..configured
            },
            Some(Responder::Module { trusted_source, .. }) if !(trusted_source && self.server_trusted) => {
                Assumptions { rate_ppb: configured.rate_ppb.max(UNTRUSTED_RATE_PPB), ..configured }
            }
            _ => configured,
        }
    }

    /// When the newest answer's request left; none before the first.
    pub fn heard(&self) -> Option<Time<Server>> {
        self.heard
    }

    /// The state at the server's instant `now`.
    pub fn state(&self, now: Time<Server>, allow_simulated: bool) -> State {
        let lately = |at: Option<Time<Server>>| at.is_some_and(|at| now - at <= SILENT_AFTER);
        if !lately(self.heard) {
            return if lately(self.refused_at) { State::Unauthenticated } else { State::Silent };
        }
        match (self.responder, self.unsettled) {
            (None, _) => State::Silent,
            (Some(Responder::Module { simulated: true, .. }), _) if !allow_simulated => State::Simulated,
            (_, (1.., Reset::Broken)) => State::Broken,
            (_, (1.., Reset::Announced)) => State::Warming,
            (Some(Responder::Plain(_)), _) => State::Agentless,
            (Some(Responder::Module { .. }), _) => State::Ok,
        }
    }

    /// The window and the newest exchange, where a bound may be published.
    pub fn published(&self) -> Option<(&Window, &Latest)> {
        if self.unsettled.0 > 0 { None } else { Some((&self.window, self.latest.as_ref()?)) }
    }

    /// A copy for the coordinator.
    ///
    /// # Errors
    /// [`Unobserved`], but never [`Unobserved::Unknown`].
    pub fn observe(&self, now: Time<Server>, allow_simulated: bool) -> Result<Observation, Unobserved> {
        let name = || self.config.name.clone();
        match (self.state(now, allow_simulated), self.responder, self.published()) {
            (State::Ok, Some(Responder::Module { incarnation, suspends, .. }), Some((window, latest))) => {
                Ok(Observation {
                    window: window.clone(),
                    incarnation,
                    suspends,
                    timestamps: latest.class,
                    resets: self.resets,
                })
            }
            (State::Silent, ..) => Err(Unobserved::Silent(name())),
            (State::Unauthenticated, ..) => Err(Unobserved::Unauthenticated(name())),
            (State::Agentless, ..) => Err(Unobserved::Agentless(name())),
            (State::Simulated, ..) => Err(Unobserved::Simulated(name())),
            _ => Err(Unobserved::Unsettled(name())),
        }
    }
}

/// An empty histogram of round trips, of 15 KiB: four octets count what a host answers in years.
pub fn round_trips() -> Histogram<u32> {
    #[expect(
        clippy::expect_used,
        reason = "the bounds and the precision are constants that the library documents as valid"
    )]
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("1 ns to 1 min at 2 digits")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::correction::Corrections;
    use crate::exchange::{Backward, Exchange, Forward};
    use crate::identity::{BootId, Incarnation, ProcessId};
    use crate::time::Span;
    use crate::wire::PortIdentity;

    const SECOND: i64 = 1_000_000_000;

    fn module(boot: u128, suspends: u32) -> Responder {
        Responder::Module {
            incarnation: Incarnation {
                boot: BootId(Uuid::from_u128(boot)),
                process: ProcessId(Uuid::from_u128(7)),
            },
            suspends,
            simulated: false,
            trusted_source: true,
        }
    }

    /// An exchange at `at` with a host that is `offset` ahead, 400 ns each way.
    fn outcome(at: i64, offset: i64, responder: Responder) -> Outcome {
        let server = |at| Span::exact(Time::from_nanos(at));
        let host = |at: i64| Span::exact(Time::from_nanos(at + offset));
        Outcome {
            exchange: Exchange {
                forward: Some(Forward { sent: server(at), received: host(at + 400) }),
                backward: Some(Backward { sent: host(at + 500), received: server(at + 900) }),
            },
            corrections: Corrections::default(),
            responder,
            server_wall: WallReading { wall: Time::from_nanos(at), at: server(at) },
            host_wall: WallReading { wall: Time::from_nanos(at), at: host(at + 400) },
            apart: Nanos::ZERO,
            class: StampClass::Software,
            steps: 0,
        }
    }

    fn record() -> Record {
        Record::new(HostConfig::new("a", "127.0.0.1:319".parse().unwrap()), 64, true)
    }

    fn feed(record: &mut Record, from: i64, count: i64, offset: i64, responder: Responder) -> Time<Server> {
        for i in 0..count {
            record.complete(&outcome(from + i * SECOND / 8, offset, responder));
        }
        Time::from_nanos(from + count * SECOND / 8)
    }

    #[test]
    fn a_bound_is_published_after_eight_good_exchanges() {
        let mut record = record();
        let start = Time::from_nanos(SECOND);
        assert_eq!(record.observe(start, false).unwrap_err(), Unobserved::Silent("a".into()));
        let now = feed(&mut record, SECOND, 7, 5_000, module(1, 0));
        assert_eq!(record.observe(now, false).unwrap_err(), Unobserved::Unsettled("a".into()));
        let now = feed(&mut record, 2 * SECOND, 1, 5_000, module(1, 0));
        let observation = record.observe(now, false).unwrap();
        let bound = observation.window.hard(now).unwrap();
        assert!(bound.contains(crate::time::Offset::new(5_000)));
        let later = now + SILENT_AFTER + SILENT_AFTER;
        assert_eq!(record.observe(later, false).unwrap_err(), Unobserved::Silent("a".into()));
    }

    #[test]
    fn another_boot_or_a_suspend_starts_anew() {
        for next in [module(2, 0), module(1, 1)] {
            let mut record = record();
            feed(&mut record, SECOND, 9, 5_000, module(1, 0));
            let now = feed(&mut record, 3 * SECOND, 1, 900_000_000, next);
            assert_eq!((record.state(now, false), record.broken), (State::Warming, 0));
            let now = feed(&mut record, 4 * SECOND, 8, 900_000_000, next);
            let bound = record.observe(now, false).unwrap().window.hard(now).unwrap();
            assert!(bound.contains(crate::time::Offset::new(900_000_000)));
        }
    }

    #[test]
    fn the_first_answer_that_tells_of_a_break_withdraws_the_bound() {
        let mut record = record();
        let now = feed(&mut record, SECOND, 9, 5_000, module(1, 0));
        record.hear(module(1, 0));
        assert!(record.observe(now, false).is_ok());
        record.hear(module(1, 1));
        assert!(record.observe(now, false).is_err() && record.published().is_none());
        // What was measured on the new timeline counts at once.
        let now = feed(&mut record, 3 * SECOND, 8, 700, module(1, 1));
        assert!(record.observe(now, false).is_ok());
    }

    #[test]
    fn a_contradiction_withdraws_the_bound_until_eight_good_exchanges() {
        let mut record = record();
        feed(&mut record, SECOND, 9, 5_000, module(1, 0));
        // An unannounced jump by 5 ms.
        let now = feed(&mut record, 3 * SECOND, 1, 5_005_000, module(1, 0));
        assert_eq!((record.state(now, false), record.broken), (State::Broken, 1));
        assert!(record.observe(now, false).is_err() && record.published().is_none());
        let now = feed(&mut record, 4 * SECOND, 7, 5_005_000, module(1, 0));
        assert_eq!(record.state(now, false), State::Broken);
        let now = feed(&mut record, 5 * SECOND, 1, 5_005_000, module(1, 0));
        assert_eq!(record.state(now, false), State::Ok);
        assert!(
            record
                .observe(now, false)
                .unwrap()
                .window
                .hard(now)
                .unwrap()
                .contains(crate::time::Offset::new(5_005_000))
        );
    }

    #[test]
    fn half_an_exchange_may_contradict_the_others() {
        let mut record = record();
        let now = feed(&mut record, SECOND, 9, 5_000, module(1, 0));
        let before = record.observe(now, false).unwrap().resets;
        let mut half = outcome(3 * SECOND, -5_000_000, module(1, 0));
        half.exchange.backward = None;
        record.complete(&half);
        assert_eq!((record.state(Time::from_nanos(3 * SECOND), false), record.broken), (State::Broken, 1));
        // And whoever asked before can see that the window was emptied since.
        let now = feed(&mut record, 4 * SECOND, 8, -4_995_000, module(1, 0));
        assert_eq!(record.observe(now, false).unwrap().resets, before + 1);
    }

    #[test]
    fn a_plain_responder_is_bounded_as_a_steered_clock_and_never_certified() {
        let mut record = record();
        let plain = Responder::Plain(PortIdentity { clock: [1; 8], port: 1 });
        let now = feed(&mut record, SECOND, 9, 5_000, plain);
        assert_eq!(record.observe(now, false).unwrap_err(), Unobserved::Agentless("a".into()));
        let assumptions = record.published().unwrap().0.assumptions();
        assert_eq!((assumptions.rate_ppb, assumptions.wander_ppb_per_s), (1_200_000, None));
    }

    #[test]
    fn a_simulated_clock_is_refused_unless_allowed() {
        let mut record = record();
        let Responder::Module { incarnation, suspends, trusted_source, .. } = module(1, 0) else {
            unreachable!()
        };
        let lying = Responder::Module { incarnation, suspends, simulated: true, trusted_source };
        let now = feed(&mut record, SECOND, 9, 5_000, lying);
        assert_eq!(record.observe(now, false).unwrap_err(), Unobserved::Simulated("a".into()));
        assert!(record.observe(now, true).is_ok());
    }

    #[test]
    fn corrections_narrow_the_bound_only_where_they_are_trusted_and_can_be_true() {
        let width = |trust_correction, forward: i64| {
            let mut record = record();
            let assumptions = Assumptions { trust_correction, ..Assumptions::default() };
            record.config.assumptions = assumptions;
            for i in 0..9 {
                let mut outcome = outcome((1 + i) * SECOND, 5_000, module(1, 0));
                outcome.corrections.forward = forward << 16;
                record.complete(&outcome);
            }
            let bound = record
                .observe(Time::from_nanos(9 * SECOND), false)
                .ok()?
                .window
                .hard(Time::from_nanos(9 * SECOND));
            Some((bound.unwrap().half_width().get(), record.lost))
        };
        let plain = width(false, 0).unwrap();
        assert_eq!(width(false, 300), Some(plain), "not regarded");
        assert_eq!(width(false, -1), Some(plain), "not regarded either");
        assert!(width(true, 300).unwrap().0 <= plain.0 - 140);
        assert_eq!(width(true, -1), None, "refused");
        assert_eq!(width(true, 5_000), None, "longer than the round trip");
    }

    #[test]
    fn what_a_host_is_refused_for_is_said() {
        let mut record = record();
        let at = Time::from_nanos(SECOND);
        record.refuse(at, Refused::Replayed);
        assert_eq!(record.state(at, false), State::Silent, "an answer that is late says nothing of the host");
        record.refuse(at, Refused::Missing);
        assert_eq!((record.state(at, false), record.refused), (State::Unauthenticated, 2));
        assert_eq!(record.observe(at, false).unwrap_err(), Unobserved::Unauthenticated("a".into()));
        let later = at + SILENT_AFTER + SILENT_AFTER;
        assert_eq!(record.state(later, false), State::Silent);
        // Forgeries beside true answers change nothing.
        let now = feed(&mut record, 20 * SECOND, 9, 5_000, module(1, 0));
        record.refuse(now, Refused::Forged);
        assert_eq!(record.state(now, false), State::Ok);
    }

    #[test]
    fn a_clock_source_that_is_no_counter_widens_the_rate() {
        let mut record = Record::new(HostConfig::new("a", "127.0.0.1:319".parse().unwrap()), 64, false);
        let now = feed(&mut record, SECOND, 9, 5_000, module(1, 0));
        assert_eq!(record.observe(now, false).unwrap().window.assumptions().rate_ppb, 1_000_000);
    }
}
