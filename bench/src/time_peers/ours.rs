//! Our server and our module, each on a thread of this process, in their namespaces.

use std::net::SocketAddr;

use harness::namespaces::Network;
use timesync::bound::Window;
use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::module::{Module, ModuleConfig};
use timesync::server::{HostConfig, ServerConfig, TimeServer};
use timesync::source::SkewSource;
use timesync::wire::EVENT_PORT;

use super::process::{received, threads_cpu};
use super::{Cpu, Failure, RATE, Times, Turn, follow};

/// Whose offset is asked for. Both are 0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Timeline {
    /// CLOCK_MONOTONIC_RAW's, on which cuts are planned and certified, at the instant of asking.
    Raw,
    /// CLOCK_REALTIME's, as `coeval skew` reports it, at the instant of the last exchange.
    Wall,
}

const HOST: &str = "host";

/// One turn, with the defaults but for the rate.
pub fn turn(network: &Network, timeline: Timeline, times: Times) -> Result<Turn, Failure> {
    let [here, there] = &network.hosts[..] else { unreachable!("a pair") };
    let incarnation = Incarnation::of_this_process()?;
    let config = ModuleConfig { listen: vec![there.address], ..ModuleConfig::default() };
    let _module = there.inside(|| Module::start(&config, HostClock::real(), incarnation))??;
    let host = HostConfig::new(HOST, SocketAddr::new(there.address, EVENT_PORT));
    let config = ServerConfig { hosts: vec![host], pairs_per_second: RATE / 2, ..ServerConfig::default() };
    let server = here.inside(|| TimeServer::start(&config, incarnation))??;
    let cpu = || {
        let (measuring, answering) = (threads_cpu("time-prober")?, threads_cpu("time-module")?);
        Ok(Cpu { exchanges: received(there)?, measuring, answering })
    };
    follow(
        times,
        cpu,
        || Ok(()),
        |(), turn| {
            let (error, half_width) = match timeline {
                Timeline::Raw => {
                    let window = server.observe(HOST)?.window;
                    let bound = window.hard(server.now())?;
                    let Floor { delays, stamps } = floor(&window)?;
                    turn.above_floor.push(bound.half_width().get() - delays);
                    turn.of_stamps.push(stamps);
                    (bound.middle().get().abs(), bound.half_width().get())
                }
                Timeline::Wall => {
                    let report = server.report();
                    let row = report.hosts.first().ok_or("the report has no host")?;
                    (row.offset_ns.ok_or("no offset")?.abs(), row.hard_ns.ok_or("no bound")?)
                }
            };
            if error > half_width {
                return Err(format!("the bound is wrong: 0 is not within {error} ± {half_width} ns").into());
            }
            turn.errors.push(error);
            turn.half_widths.push(half_width);
            Ok(())
        },
    )
}

/// What is in a half-width that no estimator could take out of it.
struct Floor {
    /// Half of the smallest forward and the smallest backward delay in the window: no bound from these packets is narrower,
    /// even for one who knows that the clocks' rates are equal.
    delays: i64,
    /// Above that, for the stamps of the same two packets: when each was taken on `CLOCK_MONOTONIC_RAW` is known no better
    /// than its clocks were read.
    stamps: i64,
}

/// The window's limits are delays, as the true offset is 0, but for the stamps' intervals: their outer ends are in it, so
/// half of their width is no delay.
fn floor(window: &Window) -> Result<Floor, Failure> {
    /// An instant, a limit of the offset, and the width of the stamps' intervals, as a stored window has them.
    type Limit = Option<(i64, i64, i64)>;
    let stored = serde_json::to_value(window)?;
    let exchanges: Vec<(Limit, Limit)> = serde_json::from_value(stored["exchanges"].clone())?;
    let forward =
        exchanges.iter().filter_map(|(upper, _)| upper.map(|(_, limit, width)| (limit - width / 2, width)));
    let backward =
        exchanges.iter().filter_map(|(_, lower)| lower.map(|(_, limit, width)| (-limit - width / 2, width)));
    let (forward, backward) = (forward.min().ok_or("no requests")?, backward.min().ok_or("no responses")?);
    Ok(Floor { delays: (forward.0 + backward.0) / 2, stamps: (forward.1 + backward.1) / 4 })
}
