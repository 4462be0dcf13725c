//! `coeval probe`

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;
use timesync::hardware::Timestamps;
use timesync::probe::{Answer, Probe, ProbeConfig, Probed, Summary};
use timesync::time::Nanos;
use timesync::wire::EVENT_PORT;

use super::{Failure, Finding, print, print_json, word};
use crate::args::ProbeArgs;
use crate::units::{format_offset, format_unsigned};

/// An answer that takes longer is lost.
const TIMEOUT: Nanos = Nanos::from_millis(1_000);

/// One line of JSON.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Exchange {
        target: &'a str,
        #[serde(flatten)]
        probed: Probed,
    },
    Summary {
        target: &'a str,
        #[serde(flatten)]
        summary: Summary,
    },
}

/// Probes the targets, one after the other; good if all of them answered.
///
/// # Errors
/// When a target's name means nothing or the sockets cannot be opened.
pub fn run(args: &ProbeArgs) -> Result<Finding, Failure> {
    if args.targets.len() > 1 && args.count.is_none() {
        return Err("with several targets, say how many exchanges with each: --count N".into());
    }
    let interrupts = Interrupts::new()?;
    let mut finding = Finding::Good;
    for target in &args.targets {
        let config = ProbeConfig {
            target: resolve(target)?,
            event_port: args.port,
            timestamps: if args.software { Timestamps::Software } else { Timestamps::Auto },
            domain: args.domain,
            interval: args.interval,
            timeout: TIMEOUT,
        };
        let mut probe = Probe::open(config)?;
        let mut left = args.count;
        while left != Some(0) && !interrupts.came() {
            let probed = probe.exchange().map_err(|error| format!("cannot reach {target}: {error}"))?;
            if args.json {
                print_json(&Line::Exchange { target, probed })?;
            } else {
                print(&describe(target, &probed))?;
            }
            left = left.map(|left| left - 1);
        }
        let summary = probe.summary();
        if summary.sent == summary.lost {
            finding = Finding::Bad;
        }
        if args.json {
            print_json(&Line::Summary { target, summary })?;
        } else {
            print(&summarise(target, &summary))?;
        }
    }
    Ok(finding)
}

fn describe(target: &str, probed: &Probed) -> String {
    let Some(Answer { offset_ns, rtt_ns, error_ns, sent, received, responder }) = &probed.answer else {
        return format!("{target} seq={}: no answer", probed.sequence);
    };
    let theirs = responder.as_ref().map_or_else(|| "untold".to_owned(), word);
    format!(
        "{target} seq={} offset={} ± {} rtt={} stamps={}/{}, theirs={theirs}",
        probed.sequence,
        format_offset(*offset_ns),
        Nanos::new(rtt_ns / 2 + error_ns),
        Nanos::new(*rtt_ns),
        word(sent),
        word(received),
    )
}

fn summarise(target: &str, summary: &Summary) -> String {
    let Summary { offset_ns, hard_ns, rtt_ns, sent, lost } = summary;
    let mut text = format!("--- {target}: {sent} exchanges, {lost} lost");
    if let (Some(offset), Some(hard)) = (offset_ns, hard_ns) {
        text += &format!(
            "\nCLOCK_REALTIME there less here: {} ± {} (hard bound)",
            format_offset(*offset),
            Nanos::new(*hard)
        );
    }
    if let Some(trips) = rtt_ns {
        let [min, p50, p99] = [trips.min, trips.p50, trips.p99].map(format_unsigned);
        text += &format!("\nround trips: min {min}, p50 {p50}, p99 {p99}");
    }
    text
}

/// An address or a name, with PTP's event port unless it says another.
fn resolve(target: &str) -> Result<SocketAddr, Failure> {
    if let Ok(address) = target.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, EVENT_PORT));
    }
    let found = match target.rsplit_once(':') {
        Some(_) => target.to_socket_addrs(),
        None => (target, EVENT_PORT).to_socket_addrs(),
    };
    let address = found.map_err(|error| format!("no address for `{target}`: {error}"))?.next();
    address.ok_or_else(|| format!("no address for `{target}`").into())
}

/// SIGINT and SIGTERM, asked for between two exchanges: the summary is still to come.
struct Interrupts(SignalFd);

impl Interrupts {
    fn new() -> nix::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
        signals.thread_block()?;
        Ok(Interrupts(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    fn came(&self) -> bool {
        self.0.read_signal().is_ok_and(|signal| signal.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (text, address) in [
            ("10.0.0.1", "10.0.0.1:319"),
            ("10.0.0.1:4000", "10.0.0.1:4000"),
            ("fe80::1", "[fe80::1]:319"),
            ("[::1]:5", "[::1]:5"),
        ] {
            assert_eq!(resolve(text).unwrap(), address.parse().unwrap(), "{text}");
        }
        assert!(resolve("no such host:319").is_err());
    }
}
