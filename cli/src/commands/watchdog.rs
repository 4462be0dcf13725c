//! `coeval watchdog`, which `coeval host` starts with its standard input and output put to use.

use std::os::fd::AsFd;

use snapshot::backend::watchdog;
use timesync::clock::HostClock;

use super::Failure;
use crate::args::WatchdogArgs;

/// Lives a watchdog's life.
///
/// # Errors
/// When nobody started it for that.
pub fn run(args: &WatchdogArgs) -> Result<(), Failure> {
    let clock = match &args.simulate_clock {
        None => HostClock::real(),
        Some(spec) => HostClock::simulated(spec.parse()?),
    };
    let daemon = std::io::stdin().as_fd().try_clone_to_owned()?;
    let file = std::io::stdout().as_fd().try_clone_to_owned()?;
    watchdog::run(daemon, file, &clock).map_err(|error| {
        format!("a watchdog is started by `coeval host`, and talks with it only: {error}").into()
    })
}
