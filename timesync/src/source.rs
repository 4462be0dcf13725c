//! What the coordinator wants to know of the time-sync server: *what is the skew bound at instant x?*

use serde::{Deserialize, Serialize};

use crate::bound::Window;
use crate::exchange::StampClass;
use crate::identity::Incarnation;
use crate::time::{Server, Time};

/// What the server knows of one host's clock, at one moment: a copy, which does not change while it is used.
#[derive(Clone, Debug)]
pub struct Observation {
    /// The exchanges. Ask it for the bound at any instant.
    pub window: Window,
    /// Who answered them, all of them.
    pub incarnation: Incarnation,
    /// How often its machine was suspended, as of all of them.
    pub suspends: u32,
    /// The worse class of timestamps on either end.
    pub timestamps: StampClass,
    /// How often the window was emptied: exchanges from before and after that are on different timelines.
    pub resets: u64,
}

/// Why there is no observation of a host. Each is one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Unobserved {
    /// Not in the configuration.
    #[error("no host is called {0}; the server's configuration lists the hosts")]
    Unknown(String),
    /// No answer, ever or lately.
    #[error(
        "host {0} does not answer time exchanges; is `coeval host` running there, and its UDP port open?"
    )]
    Silent(String),
    /// Its answers are not authenticated with its key.
    #[error(
        "host {0} answers time exchanges, but not with the key that the server has for it; is it the same key there?"
    )]
    Unauthenticated(String),
    /// It answers, but has no module that could vouch for a timeline.
    #[error("host {0} answers as a plain PTP clock; a snapshot needs `coeval host` there")]
    Agentless(String),
    /// It announces a simulated clock.
    #[error("host {0} runs on a simulated clock; only a server started with --simulation accepts it")]
    Simulated(String),
    /// Too few exchanges since it appeared, or since its exchanges contradicted each other.
    #[error(
        "host {0} has too few good exchanges since its clock's timeline last changed; try again in a second"
    )]
    Unsettled(String),
}

/// What is the skew bound at instant x?
pub trait SkewSource: Send + Sync {
    /// The server's clock, now.
    fn now(&self) -> Time<Server>;

    /// This server.
    fn incarnation(&self) -> Incarnation;

    /// Exchanges a burst with each of `hosts` (default 32 at 1 ms) and returns when all are answered or given up.
    /// Blocks: call it where blocking is allowed.
    fn burst(&self, hosts: &[String]);

    /// What is known of `host` now.
    ///
    /// # Errors
    /// [`Unobserved`].
    fn observe(&self, host: &str) -> Result<Observation, Unobserved>;
}
