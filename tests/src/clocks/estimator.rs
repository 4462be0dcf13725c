//! What is put to the test: the server's record of a host, or in the tests, one that was broken on purpose.

use timesync::bound::Interval;
use timesync::exchange::Exchange;
use timesync::server::{Outcome, Record, Responder, State};
use timesync::source::{Observation, Unobserved};
use timesync::time::{Server, Time};

/// Takes what came of exchanges, and bounds the host's clock.
pub trait Estimator: Clone {
    /// An answer has come, by this responder.
    fn hear(&mut self, responder: Responder);
    fn complete(&mut self, outcome: &Outcome);
    fn lose(&mut self);
    fn server_changed(&mut self);
    /// How many exchanges count, where the bound is trusted at `now`.
    fn trusted(&self, now: Time<Server>) -> Option<usize>;
    /// The hard bound at `at`, where it is trusted at `now`.
    fn hard(&self, now: Time<Server>, at: Time<Server>) -> Option<Interval>;
    /// As the coordinator sees it.
    fn observe(&self, now: Time<Server>) -> Result<Observation, Unobserved>;
}

impl Estimator for Record {
    fn hear(&mut self, responder: Responder) {
        Record::hear(self, responder);
    }

    fn complete(&mut self, outcome: &Outcome) {
        Record::complete(self, outcome);
    }

    fn lose(&mut self) {
        Record::lose(self);
    }

    fn server_changed(&mut self) {
        Record::server_changed(self, true);
    }

    fn trusted(&self, now: Time<Server>) -> Option<usize> {
        let shown = matches!(self.state(now, false), State::Ok | State::Agentless);
        shown.then(|| self.published())?.map(|(window, _)| window.len())
    }

    fn hard(&self, now: Time<Server>, at: Time<Server>) -> Option<Interval> {
        let shown = matches!(self.state(now, false), State::Ok | State::Agentless);
        shown.then(|| self.published())?.and_then(|(window, _)| window.hard(at).ok())
    }

    fn observe(&self, now: Time<Server>) -> Result<Observation, Unobserved> {
        Record::observe(self, now, false)
    }
}

/// An exchange as it was measured, and the delays that its packets really met.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Where corrections are trusted, without the time for which they say that its packets were held.
    pub exchange: Exchange,
    /// With that time, in ns; none of half an exchange.
    pub round_trip: Option<i64>,
    pub forward: i64,
    pub backward: i64,
}
