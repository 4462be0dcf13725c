//! The exchanges that a bound is computed from.

use serde::{Deserialize, Serialize};

use super::{Assumptions, Interval, Policy};
use crate::exchange::Exchange;
use crate::time::{Host, Server, Time};

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

/// Up to `capacity` exchanges with one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    assumptions: Assumptions,
}

impl Window {
    /// An empty window.
    pub fn new(assumptions: Assumptions, capacity: usize) -> Self {
        let _ = capacity;
        Window { assumptions }
    }

    /// What the bound assumes.
    pub fn assumptions(&self) -> &Assumptions {
        &self.assumptions
    }

    /// Adds an exchange.
    pub fn push(&mut self, exchange: &Exchange) {
        let _ = exchange;
    }

    /// The bound at the server's instant `at`, past, present or future, by `policy`.
    ///
    /// # Errors
    /// [`WindowError`].
    pub fn bound(&self, at: Time<Server>, policy: &Policy) -> Result<Interval, WindowError> {
        let _ = (at, policy);
        Err(WindowError::Empty)
    }

    /// Whether there are packets in both directions on both sides of `at`.
    pub fn brackets(&self, at: Time<Server>) -> bool {
        let _ = at;
        false
    }

    /// A server instant near the one at which the host's clock read `reading`.
    ///
    /// # Errors
    /// [`WindowError::Empty`].
    pub fn nearest(&self, reading: Time<Host>) -> Result<Time<Server>, WindowError> {
        let _ = reading;
        Err(WindowError::Empty)
    }
}
