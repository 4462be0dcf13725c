//! Who produced a reading: a timeline is one boot's, a promise is one process's.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// One boot of one machine (`/proc/sys/kernel/random/boot_id`): `CLOCK_MONOTONIC_RAW` starts anew with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct BootId(pub Uuid);

/// One run of one daemon (random, drawn at start): what it promised ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct ProcessId(pub Uuid);

/// A daemon as orders and evidence name it. Any difference between two namings refuses a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct Incarnation {
    /// The machine's boot.
    pub boot: BootId,
    /// The daemon's run.
    pub process: ProcessId,
}

impl BootId {
    /// This machine's present boot.
    ///
    /// # Errors
    /// When it cannot be read or parsed.
    pub fn of_this_machine() -> std::io::Result<Self> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(BootId(Uuid::parse_str(text.trim()).map_err(std::io::Error::other)?))
    }
}

impl Incarnation {
    /// This process on this boot.
    ///
    /// # Errors
    /// When the boot id cannot be read or parsed: without it no timeline can be named.
    pub fn of_this_process() -> std::io::Result<Self> {
        Ok(Incarnation { boot: BootId::of_this_machine()?, process: ProcessId(Uuid::new_v4()) })
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.boot.0, self.process.0)
    }
}
