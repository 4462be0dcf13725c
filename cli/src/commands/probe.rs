//! `coeval probe`

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;
use timesync::hardware::Timestamps;
use timesync::net_sync::Mechanism;
use timesync::probe::{Answer, Probe, ProbeConfig, Probed, Summary};
use timesync::time::Nanos;
use timesync::wire::EVENT_PORT;

use super::{Failure, Finding, print, print_json, word};
use crate::args::ProbeArgs;
use crate::keys;
use crate::units::{format_offset, format_short, format_unsigned};

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
        best: Option<Best>,
    },
}

/// The exchange with the smallest round trip, which says most by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Best {
    sequence: u16,
    offset_ns: i64,
    half_ns: i64,
}

impl Best {
    fn of(before: Option<Best>, probed: &Probed) -> Option<Best> {
        let now = probed.answer.map(|answer| Best {
            sequence: probed.sequence,
            offset_ns: answer.offset_ns,
            half_ns: half(answer.rtt_ns, answer.error_ns),
        });
        before.into_iter().chain(now).min_by_key(|best| best.half_ns)
    }
}

/// What an exchange knows its offset to: half its round trip, whole nanoseconds on either end, and what its stamps leave
/// open.
fn half(rtt_ns: i64, error_ns: i64) -> i64 {
    rtt_ns / 2 + 1 + error_ns
}

/// Probes the targets, one after the other; good if all of them answered.
///
/// # Errors
/// When a target's name means nothing or the sockets cannot be opened.
pub fn run(args: &ProbeArgs) -> Result<Finding, Failure> {
    if args.targets.len() > 1 && args.count.is_none() {
        return Err("with several targets, say how many exchanges with each: --count N".into());
    }
    let key = args.key.as_deref().map(keys::read).transpose()?;
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
        if args.net_sync {
            probe.ask_by(Mechanism::NetSync);
        }
        if let Some(key) = &key {
            probe.authenticate(key.clone());
        }
        if !args.json {
            let every = args.interval;
            print(&format!(
                "{target} ({}), an exchange every {every}; offset: CLOCK_REALTIME there less here",
                probe.target()
            ))?;
        }
        let (mut left, mut best) = (args.count, None);
        while left != Some(0) && !interrupts.came() {
            let probed = probe.exchange().map_err(|error| format!("cannot reach {target}: {error}"))?;
            best = Best::of(best, &probed);
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
            print_json(&Line::Summary { target, summary, best })?;
        } else {
            print(&summarise(target, &summary, best))?;
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
        format_short(half(*rtt_ns, *error_ns)),
        format_short(*rtt_ns),
        word(sent),
        word(received),
    )
}

fn summarise(target: &str, summary: &Summary, best: Option<Best>) -> String {
    let Summary { offset_ns, hard_ns, rtt_ns, sent, lost } = summary;
    let percent = if *sent == 0 { 0.0 } else { *lost as f64 / *sent as f64 * 100.0 };
    let mut text = format!("--- {target}: {sent} exchanges, {lost} lost ({percent:.1} %)");
    if let Some(trips) = rtt_ns {
        let [min, p50, p99] = [trips.min, trips.p50, trips.p99].map(format_unsigned);
        text += &format!("\nround trips: min {min}, p50 {p50}, p99 {p99}");
    }
    if let Some(Best { sequence, offset_ns, half_ns }) = best {
        let half = format_short(half_ns);
        text += &format!("\nbest exchange: seq={sequence}, {} ± {half}", format_offset(offset_ns));
    }
    match (offset_ns, hard_ns) {
        (Some(offset), Some(hard)) => {
            let hard = format_short(*hard);
            text += &format!("\nall together: {} ± {hard} (hard bound)", format_offset(*offset));
        }
        _ if *lost < *sent => {
            text += "\nthe exchanges contradict each other: a clock was set or is slewed by more than 1000 ppm, so there \
                     is no bound";
        }
        _ => {
            text += "\nno answer: is a PTP responder (`coeval host`, or `ptp4l` with Pdelay) running there, and UDP open?";
        }
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
    use timesync::exchange::StampClass;
    use timesync::report::RoundTrips;

    use super::*;

    #[test]
    fn the_summary_has_losses_round_trips_and_the_best_bound() {
        let probed = |sequence, rtt_ns| Probed {
            sequence,
            answer: Some(Answer {
                error_ns: 0,
                offset_ns: 3_000_000,
                rtt_ns,
                sent: StampClass::Software,
                received: StampClass::Software,
                responder: None,
            }),
        };
        let best = Best::of(None, &Probed { sequence: 1, answer: None });
        let best = [probed(2, 9_000), probed(3, 2_815), probed(4, 2_900)].iter().fold(best, Best::of);
        let summary = Summary {
            offset_ns: Some(3_000_050),
            hard_ns: Some(1_290),
            rtt_ns: Some(RoundTrips { min: 2_815, p50: 2_900, p99: 9_000 }),
            sent: 4,
            lost: 1,
        };
        let expected = "\
--- db1: 4 exchanges, 1 lost (25.0 %)
round trips: min 2.81 µs, p50 2.90 µs, p99 9.00 µs
best exchange: seq=3, +3.000000 ms ± 1.41 µs
all together: +3.000050 ms ± 1.29 µs (hard bound)";
        assert_eq!(summarise("db1", &summary, best), expected);
        let broken = Summary { offset_ns: None, hard_ns: None, ..summary.clone() };
        assert!(summarise("db1", &broken, best).contains("contradict each other"));
        let silent = Summary { rtt_ns: None, sent: 2, lost: 2, ..broken };
        let text = summarise("db1", &silent, None);
        assert!(text.starts_with("--- db1: 2 exchanges, 2 lost (100.0 %)\nno answer: "), "{text}");
    }

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
