//! What the facts mean, and what to do about them.

use snapshot::messages::Forecast;
use timesync::clock::is_trusted_source;
use timesync::exchange::StampClass;
use timesync::hardware::{Card, CardStamps, Setting};
use timesync::report::HostRow;
use timesync::server::State;
use timesync::time::Nanos;

use super::{
    Bound, Certificate, Connection, Daemon, Disk, Exchanges, Facts, Finding, Fleet, Machine, Port, Reach,
};
use crate::units::format_size;

/// Reading a counter takes some 25 ns; through a hypervisor or a slow bus it takes a microsecond.
const SLOW_READING: Nanos = Nanos::new(300);
/// A steered clock is slewed by some ppm; chronyd and ptp4l slew by hundreds only while they correct something.
const HARD_SLEW_PPB: i64 = 100_000;
/// In days.
const EXPIRES_SOON: i64 = 30;
/// In percent.
const FULL_SOON: u64 = 10;
/// In bytes: below it, even small volumes' layers do not fit.
const FULL: u64 = 64 << 20;

/// What the facts mean, in their order.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(machine) = &facts.machine {
        clock(machine, &mut findings);
        cards(machine, &mut findings);
        rights(machine, &facts.daemons, &mut findings);
    }
    let one_runs = facts.daemons.iter().any(|daemon| daemon.runs);
    for daemon in &facts.daemons {
        if one_runs && !daemon.runs && !daemon.asked_for {
            findings.push(not_in_use(daemon));
        } else {
            judge_daemon(daemon, &mut findings);
        }
    }
    match &facts.fleet {
        None => {}
        Some(Err(why)) => findings.push(Finding::fail(
            "server",
            why.clone(),
            "start the server, or say where it is with --server or COEVAL_SERVER",
        )),
        Some(Ok(fleet)) => judge_fleet(fleet, &mut findings),
    }
    findings
}

fn clock(machine: &Machine, findings: &mut Vec<Finding>) {
    match machine.clock_source.as_deref() {
        None => findings.push(Finding::warn(
            "clock",
            "the kernel does not tell its clock source, so its rate is trusted less",
            "mount /sys, or take a kernel that tells",
        )),
        Some(source) if is_trusted_source(source) => {
            findings
                .push(Finding::ok("clock", format!("the clock source is {source}, an oscillator's counter")));
        }
        Some(source) => {
            let better = machine.clock_sources.iter().find(|name| is_trusted_source(name));
            let todo = match better {
                Some(better) => format!(
                    "boot with clocksource={better}, or write {better} to \
                     /sys/devices/system/clocksource/clocksource0/current_clocksource"
                ),
                None => "on bare metal look in the kernel's log for why tsc was given up; in a virtual machine, have the \
                         hypervisor offer an invariant TSC"
                    .to_owned(),
            };
            findings.push(Finding::warn(
                "clock",
                format!("the clock source is {source}, whose rate is trusted less: its bounds are wider"),
                todo,
            ));
        }
    }
    if machine.reading > SLOW_READING {
        findings.push(Finding::warn(
            "clock",
            format!("reading the clock takes {}, and a write during a cut reads it twice", machine.reading),
            "use a clock source that is read without the kernel, such as tsc",
        ));
    }
    if machine.slew_ppb.abs() > HARD_SLEW_PPB {
        let ppm = machine.slew_ppb / 1_000;
        findings.push(Finding::warn(
            "clock",
            format!("CLOCK_REALTIME is being slewed by {ppm} ppm, which widens what is known of kernel timestamps"),
            "wait until the time service has corrected the clock, or let it correct more gently (chrony: maxslewrate)",
        ));
    }
}

fn cards(machine: &Machine, findings: &mut Vec<Finding>) {
    if machine.cards.is_empty() {
        findings.push(Finding::warn(
            "network",
            "no network interface is up beside loopback",
            "bring up the interface that leads to the others",
        ));
    }
    for card in &machine.cards {
        findings.push(judge_card(card, machine.may.net_admin));
    }
}

fn judge_card(card: &Card, net_admin: bool) -> Finding {
    let name = &card.interface;
    let Some(CardStamps { phc, setting, reading }) = &card.card_stamps else {
        return if card.kernel_stamps {
            Finding::ok("network", format!("{name}: the kernel stamps packets; the card cannot"))
        } else {
            Finding::warn(
                "network",
                format!(
                    "{name}: nobody stamps what leaves it, so time is known to the scheduler's accuracy only"
                ),
                "use a card whose driver stamps what it sends (`ethtool -T`)",
            )
        };
    };
    if card.bond {
        return Finding::warn(
            "network",
            format!("{name}: a bond does not say which card's clock stamps, so the kernel's stamps are used"),
            "for the card's stamps, give the time network an interface of its own",
        );
    }
    match (reading, setting) {
        (Err(why), _) => Finding::warn(
            "network",
            format!("{name}: the card stamps packets, but its clock /dev/ptp{phc} cannot be read: {why}"),
            format!("let the daemon open /dev/ptp{phc} (a udev rule, or run as root)"),
        ),
        (Ok(method), Setting::On) => Finding::ok(
            "network",
            format!("{name}: the card stamps packets; its clock /dev/ptp{phc} is read by {method:?}"),
        ),
        (Ok(_), Setting::Off) if net_admin => {
            Finding::ok("network", format!("{name}: the card can stamp packets; the daemon switches that on"))
        }
        (Ok(_), Setting::Off) => Finding::warn(
            "network",
            format!(
                "{name}: the card can stamp packets, that is off, and who runs this may not switch it on"
            ),
            "give the daemon CAP_NET_ADMIN, or switch it on once with `hwstamp_ctl -i INTERFACE -t 1 -r 12`",
        ),
        (Ok(_), Setting::Taken) => Finding::warn(
            "network",
            format!("{name}: another program uses the card's stamps in a way that does not go with ours"),
            "end that program, or have it use filter `all` and plain transmit stamps",
        ),
        (Ok(_), Setting::Unknown) => Finding::warn(
            "network",
            format!("{name}: the driver does not say whether the card's stamps are on"),
            "update the driver; the kernel's stamps are used meanwhile",
        ),
    }
}

fn rights(machine: &Machine, daemons: &[Daemon], findings: &mut Vec<Finding>) {
    let denied = daemons.iter().flat_map(|daemon| &daemon.ports).any(|port| port.bound == Bound::Denied);
    if machine.may.low_ports {
        findings.push(Finding::ok("rights", "who runs this may use ports below 1024, such as PTP's 319"));
    } else if !denied {
        // A port that was denied says so itself.
        findings.push(Finding::warn(
            "rights",
            "who runs this may not use ports below 1024, such as PTP's 319",
            "give the daemon CAP_NET_BIND_SERVICE, as the systemd units do, or choose another `time` port",
        ));
    }
}

/// The package brings both configurations, and most machines run one of the daemons: it may well have the other's ports.
fn not_in_use(daemon: &Daemon) -> Finding {
    let (kind, file) = (daemon.kind, daemon.file.display());
    let look = format!("if it should, `coeval doctor --{kind}-config {file}` looks at it");
    Finding::ok("config", format!("{file}: no {kind} runs here; {look}"))
}

fn judge_daemon(daemon: &Daemon, findings: &mut Vec<Finding>) {
    let file = daemon.file.display();
    if let Some(problem) = &daemon.problem {
        let todo = format!("correct it, then `coeval {} --config {file} --check`", daemon.kind);
        findings.push(Finding::fail("config", problem.clone(), todo));
        return;
    }
    let runs = if daemon.runs { "the daemon runs" } else { "the daemon does not run" };
    findings.push(Finding::ok("config", format!("{file} is valid; {runs}")));
    daemon.ports.iter().for_each(|port| findings.extend(judge_port(port, daemon.runs)));
    daemon.disks.iter().for_each(|disk| findings.push(judge_disk(disk)));
    daemon.certificates.iter().for_each(|certificate| findings.push(judge_certificate(certificate)));
    daemon.hosts.iter().for_each(|host| reach(host, findings));
}

fn judge_port(port: &Port, runs: bool) -> Option<Finding> {
    let Port { what, address, bound } = port;
    Some(match bound {
        Bound::Free if runs => return None,
        Bound::Free => Finding::ok("ports", format!("{address}, for {what}, is free")),
        Bound::InUse if runs => {
            Finding::ok("ports", format!("{address}, for {what}, is in use, by the daemon"))
        }
        Bound::InUse => Finding::fail(
            "ports",
            format!("{address}, for {what}, is in use by another program"),
            "end that program (`ss -lntup` shows it; a ptp4l or an old daemon is usual), or choose another port",
        ),
        Bound::Denied => Finding::fail(
            "ports",
            format!("who runs this may not bind {address}, for {what}"),
            "run this as the daemon's user with its capabilities, or give it CAP_NET_BIND_SERVICE",
        ),
        Bound::NotHere => Finding::fail(
            "ports",
            format!("{address}, for {what}, is not an address of this machine"),
            "correct the configuration, or bring up the interface that has it",
        ),
        Bound::Failed(why) => Finding::fail(
            "ports",
            format!("{address}, for {what}, cannot be bound: {why}"),
            "correct the configuration",
        ),
    })
}

fn judge_disk(disk: &Disk) -> Finding {
    let (what, path) = (disk.what, disk.path.display());
    match &disk.space {
        Err(why) => Finding::fail(
            "disk",
            format!("{path}, for {what}, cannot be used: {why}"),
            "make the directory, and let the daemon's user own it",
        ),
        Ok((free, total)) => {
            let said = format!("{path}, for {what}: {} of {} free", format_size(*free), format_size(*total));
            let todo = "make room: delete snapshots (`coeval volume list` shows what they hold), or give it a larger disk";
            if *free < FULL {
                Finding::fail("disk", said, todo)
            } else if u128::from(*free) * 100 < u128::from(*total) * u128::from(FULL_SOON) {
                Finding::warn("disk", said, todo)
            } else {
                Finding::ok("disk", said)
            }
        }
    }
}

fn judge_certificate(certificate: &Certificate) -> Finding {
    let file = certificate.file.display();
    let todo = "issue a new one with `coeval pki issue` in its place (an authority: make another one, and let `ca` hold both \
                meanwhile); no restart is needed";
    match &certificate.days_left {
        Err(why) => {
            Finding::fail("tls", format!("{file}: {why}"), "correct [tls]: `coeval pki issue` prints one")
        }
        Ok(days) if *days < 0 => Finding::fail("tls", format!("{file} expired {} days ago", -days), todo),
        Ok(days) if *days < EXPIRES_SOON => {
            Finding::warn("tls", format!("{file} expires in {days} days"), todo)
        }
        Ok(days) => Finding::ok("tls", format!("{file} is valid for {days} days")),
    }
}

fn reach(reach: &Reach, findings: &mut Vec<Finding>) {
    let (host, time) = (&reach.host, reach.time);
    let connected = match &reach.control {
        None => None,
        Some((address, connection)) => {
            findings.push(match connection {
                Connection::Made => Finding::ok("reach", format!("host {host}: its control port {address} answers")),
                Connection::Refused => Finding::fail(
                    "reach",
                    format!("host {host}: nothing listens at its control address {address}"),
                    "start `coeval host` there, or correct `control`",
                ),
                Connection::Silence => Finding::fail(
                    "reach",
                    format!("host {host}: requests leave for its control address {address}, and nothing comes back"),
                    "a firewall drops them, or the address is wrong: allow TCP to that port from this server",
                ),
                Connection::Failed(why) => Finding::fail(
                    "reach",
                    format!("host {host}: its control address {address} cannot be reached: {why}"),
                    "correct `control`, or the way there",
                ),
            });
            Some(connection)
        }
    };
    findings.extend(reach.exchanges.map(|exchanges| match exchanges {
        Exchanges::Answered { lost: 0, round_trip } => Finding::ok(
            "reach",
            format!("host {host}: time exchanges with {time} are answered, in {round_trip} at best"),
        ),
        Exchanges::Answered { lost, round_trip } => Finding::warn(
            "reach",
            format!("host {host}: {lost} time exchanges with {time} were lost; the others took {round_trip} at best"),
            "look for a full queue or a rate limit on the way",
        ),
        Exchanges::Refused => Finding::fail(
            "reach",
            format!("host {host}: nothing listens at {time}"),
            "start `coeval host` there, or correct `time`",
        ),
        // The control port was reached, so the way is there: it is this protocol that is dropped.
        Exchanges::Silence if connected == Some(&Connection::Made) => Finding::fail(
            "reach",
            format!("host {host}: time requests leave for {time}, and nothing comes back, though its control port answers"),
            "a firewall drops UDP: allow ports 319 and 320 (or the configured one) both ways; a host that has a key answers \
             only the server that gave it",
        ),
        Exchanges::Silence => Finding::fail(
            "reach",
            format!("host {host}: time requests leave for {time}, and nothing comes back"),
            "a firewall drops them, the host is off, or the address is wrong",
        ),
        Exchanges::NotSent => Finding::fail(
            "reach",
            format!("host {host}: time requests to {time} cannot be sent"),
            "give this machine a route to that address",
        ),
    }));
}

fn judge_fleet(fleet: &Fleet, findings: &mut Vec<Finding>) {
    fleet.clocks.iter().for_each(|row| findings.push(row_of(row)));
    for (host, why) in &fleet.unreachable {
        findings.push(Finding::fail(
            "control",
            format!("host {host} does not answer the server: {why}"),
            format!("run `coeval doctor` on {host}, and `coeval doctor --server-config FILE` on the server"),
        ));
    }
    for (volume, why) in &fleet.unserved {
        findings.push(Finding::fail(
            "volumes",
            format!("{volume} is not served: {why}"),
            "`coeval volume check` on that host says what is wrong with it",
        ));
    }
    match &fleet.forecast {
        None => findings.push(Finding::warn(
            "snapshot",
            "there is no volume to take a snapshot of",
            "make one with `coeval volume create HOST/VOLUME SIZE`",
        )),
        Some(Err(why)) => findings.push(Finding::fail(
            "snapshot",
            format!("a snapshot of everything would fail: {why}"),
            "see to the findings above first",
        )),
        Some(Ok(forecast)) => findings.push(predicted(forecast)),
    }
}

fn row_of(row: &HostRow) -> Finding {
    let host = &row.host;
    match (row.state, row.hard_ns) {
        (State::Ok, Some(hard)) => {
            let class = match row.timestamps {
                Some(StampClass::Hardware) => "the cards' stamps",
                Some(StampClass::Software) => "the kernels' stamps",
                _ => "stamps of user space",
            };
            let said = format!("host {host}: its clock is known to ± {}, by {class}", Nanos::new(hard));
            let all = row.exchanges + row.lost;
            if all > 0 && row.lost * 20 > all {
                return Finding::warn(
                    "clocks",
                    format!("{said}; {} of {all} exchanges were lost", row.lost),
                    "look for a full queue, a rate limit, or a card that misses transmit stamps",
                );
            }
            Finding::ok("clocks", said)
        }
        (State::Agentless, _) => {
            Finding::ok("clocks", format!("host {host} answers without our module; it is only reported on"))
        }
        (state, _) => Finding::fail(
            "clocks",
            format!("host {host} has no bound: it is {}", format!("{state:?}").to_lowercase()),
            row.why.clone().unwrap_or_else(|| "wait for more exchanges".to_owned()),
        ),
    }
}

fn predicted(forecast: &Forecast) -> Finding {
    let hosts = forecast.hosts.len();
    match (forecast.v_ns, forecast.margin_ns) {
        (Some(v), _) => Finding::ok(
            "snapshot",
            format!("a snapshot of {hosts} hosts would be timed: V {v}, no reply held for longer than that"),
        ),
        (None, _) => Finding::warn(
            "snapshot",
            format!(
                "a snapshot of {hosts} hosts would go by messages and hold replies for about {}: {}",
                forecast.stretch_ns,
                forecast.why_not_timed.as_deref().unwrap_or("it was asked for so")
            ),
            "bring the round trip down, or use the cards' stamps (docs/tuning.md)",
        ),
    }
}
