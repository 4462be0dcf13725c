use std::path::Path;

use timesync::hardware::{CardStamps, Setting};

use super::*;

fn machine() -> Machine {
    Machine {
        clock_source: Some("tsc".to_owned()),
        clock_sources: vec!["tsc".to_owned(), "hpet".to_owned()],
        reading: Nanos::new(25),
        slew_ppb: 3_000,
        cards: vec![card(None)],
        may: Rights { low_ports: true, net_admin: true },
    }
}

fn card(card_stamps: Option<CardStamps>) -> Card {
    Card { interface: "eth0".to_owned(), bond: false, kernel_stamps: true, card_stamps }
}

fn daemon() -> Daemon {
    Daemon {
        kind: "host",
        file: Path::new("/etc/coeval/host.toml").to_owned(),
        asked_for: true,
        problem: None,
        runs: false,
        ports: Vec::new(),
        disks: Vec::new(),
        certificates: Vec::new(),
        hosts: Vec::new(),
    }
}

fn of_machine(machine: Machine) -> Vec<Finding> {
    judge(&Facts { machine: Some(machine), ..Facts::default() })
}

fn of_daemon(daemon: Daemon) -> Vec<Finding> {
    judge(&Facts { daemons: vec![daemon], ..Facts::default() })
}

/// The one finding of this level has these words in what it says or in what to do; nothing else is as bad.
fn assert_one(findings: &[Finding], level: Level, words: &str) {
    let bad: Vec<_> = findings.iter().filter(|finding| finding.level >= level.max(Level::Warn)).collect();
    let said = |finding: &Finding| {
        format!("{}. {}", finding.what, finding.todo.as_deref().unwrap_or_default()).contains(words)
    };
    if level == Level::Ok {
        assert!(bad.is_empty() && findings.iter().any(said), "{words}: {findings:?}");
    } else {
        assert!(bad.len() == 1 && bad[0].level == level && said(bad[0]), "{words}: {findings:?}");
    }
}

#[test]
fn what_is_bad_says_what_to_do() {
    let facts = Facts {
        machine: Some(Machine { clock_source: None, reading: Nanos::from_millis(1), ..machine() }),
        daemons: vec![Daemon { problem: Some("it is wrong".to_owned()), ..daemon() }],
        fleet: Some(Err("no answer".to_owned())),
    };
    for finding in judge(&facts) {
        assert_eq!(finding.level == Level::Ok, finding.todo.is_none(), "{finding:?}");
        assert!(!finding.what.contains('\n'), "{finding:?}");
    }
}

#[test]
fn clocks() {
    let of = |source: &str, sources: &[&str], reading: i64, slew_ppb: i64| {
        of_machine(Machine {
            clock_source: Some(source.to_owned()),
            clock_sources: sources.iter().map(|name| (*name).to_owned()).collect(),
            reading: Nanos::new(reading),
            slew_ppb,
            ..machine()
        })
    };
    assert_one(&of("tsc", &["tsc"], 25, 0), Level::Ok, "the clock source is tsc");
    assert_one(&of("arch_sys_counter", &[], 25, 0), Level::Ok, "arch_sys_counter");
    assert_one(&of("hpet", &["tsc", "hpet"], 25, 0), Level::Warn, "boot with clocksource=tsc");
    assert_one(&of("kvm-clock", &["kvm-clock"], 25, 0), Level::Warn, "invariant TSC");
    assert_one(&of("tsc", &["tsc"], 900, 0), Level::Warn, "reading the clock takes");
    assert_one(&of("tsc", &["tsc"], 25, -500_000), Level::Warn, "slewed by -500 ppm");
}

#[test]
fn cards() {
    let of = |card: Card, net_admin: bool| {
        let may = Rights { low_ports: true, net_admin };
        of_machine(Machine { cards: vec![card], may, ..machine() })
    };
    let stamps = |setting, reading: Result<_, &str>| {
        card(Some(CardStamps { phc: 0, setting, reading: reading.map_err(str::to_owned) }))
    };
    let precise = timesync::hardware::Method::Precise;
    assert_one(&of(card(None), true), Level::Ok, "the kernel stamps packets");
    assert_one(&of(Card { kernel_stamps: false, ..card(None) }, true), Level::Warn, "nobody stamps");
    assert_one(&of(stamps(Setting::On, Ok(precise)), false), Level::Ok, "read by Precise");
    assert_one(&of(stamps(Setting::Off, Ok(precise)), true), Level::Ok, "switches that on");
    assert_one(&of(stamps(Setting::Off, Ok(precise)), false), Level::Warn, "CAP_NET_ADMIN");
    assert_one(&of(stamps(Setting::Taken, Ok(precise)), true), Level::Warn, "another program");
    assert_one(&of(stamps(Setting::On, Err("denied")), true), Level::Warn, "/dev/ptp0");
    assert_one(&of(Card { bond: true, ..stamps(Setting::On, Ok(precise)) }, true), Level::Warn, "bond");
    let none = of_machine(Machine { cards: Vec::new(), ..machine() });
    assert_one(&none, Level::Warn, "no network interface");
}

#[test]
fn ports() {
    let of = |bound: Bound, runs: bool| {
        let port = Port { what: "time exchanges", address: "udp 0.0.0.0:319".to_owned(), bound };
        of_daemon(Daemon { ports: vec![port], runs, ..daemon() })
    };
    assert_one(&of(Bound::Free, false), Level::Ok, "is free");
    assert_one(&of(Bound::InUse, true), Level::Ok, "by the daemon");
    assert_one(&of(Bound::InUse, false), Level::Fail, "another program");
    assert_one(&of(Bound::Denied, false), Level::Fail, "CAP_NET_BIND_SERVICE");
    assert_one(&of(Bound::NotHere, false), Level::Fail, "not an address of this machine");
    let unprivileged = Machine { may: Rights { low_ports: false, net_admin: false }, ..machine() };
    assert_one(&of_machine(unprivileged), Level::Warn, "CAP_NET_BIND_SERVICE");
}

#[test]
fn a_configuration_that_only_came_with_the_package_is_not_judged() {
    let taken = Port { what: "time exchanges", address: "udp 0.0.0.0:319".to_owned(), bound: Bound::InUse };
    let of = |asked_for: bool, host_runs: bool| {
        let host = Daemon { runs: host_runs, ..daemon() };
        let server = Daemon { kind: "server", asked_for, ports: vec![taken.clone()], ..daemon() };
        judge(&Facts { daemons: vec![host, server], ..Facts::default() }).pop().unwrap()
    };
    assert_one(&[of(false, true)], Level::Ok, "doctor --server-config");
    assert_one(&[of(true, true)], Level::Fail, "another program");
    assert_one(&[of(false, false)], Level::Fail, "another program");
}

#[test]
fn disks_and_certificates() {
    let disk = |space: Result<(u64, u64), &str>| {
        let space = space.map_err(str::to_owned);
        of_daemon(Daemon { disks: vec![Disk { what: "volumes", path: "/v".into(), space }], ..daemon() })
    };
    assert_one(&disk(Ok((50 << 30, 100 << 30))), Level::Ok, "free");
    assert_one(&disk(Ok((9 << 30, 100 << 30))), Level::Warn, "make room");
    assert_one(&disk(Ok((1 << 20, 100 << 30))), Level::Fail, "make room");
    assert_one(&disk(Err("not a directory")), Level::Fail, "cannot be used");
    let certificate = |days_left: Result<i64, &str>| {
        let days_left = days_left.map_err(str::to_owned);
        let certificates = vec![Certificate { file: "/etc/coeval/a.pem".into(), days_left }];
        of_daemon(Daemon { certificates, ..daemon() })
    };
    assert_one(&certificate(Ok(300)), Level::Ok, "valid for 300 days");
    assert_one(&certificate(Ok(29)), Level::Warn, "expires in 29 days");
    assert_one(&certificate(Ok(-2)), Level::Fail, "expired 2 days ago");
    assert_one(&certificate(Err("no certificate")), Level::Fail, "no certificate");
}

#[test]
fn symptoms_of_a_firewall_are_told_from_a_daemon_that_does_not_run() {
    let of = |exchanges: Option<Exchanges>, connection: Connection| {
        let host = Reach {
            host: "a".to_owned(),
            time: "10.0.0.1:319".parse().unwrap(),
            exchanges,
            control: Some(("10.0.0.1:7421".to_owned(), connection)),
        };
        of_daemon(Daemon { kind: "server", hosts: vec![host], ..daemon() })
    };
    let answered = Exchanges::Answered { lost: 0, round_trip: Nanos::from_micros(50) };
    assert_one(&of(Some(answered), Connection::Made), Level::Ok, "are answered, in 50");
    let some = Exchanges::Answered { lost: 3, round_trip: Nanos::from_micros(50) };
    assert_one(&of(Some(some), Connection::Made), Level::Warn, "3 time exchanges");
    assert_one(&of(Some(Exchanges::Silence), Connection::Made), Level::Fail, "a firewall drops UDP");
    assert_one(
        &of(Some(Exchanges::Refused), Connection::Made),
        Level::Fail,
        "nothing listens at 10.0.0.1:319",
    );
    assert_one(&of(Some(answered), Connection::Silence), Level::Fail, "allow TCP");
    assert_one(&of(None, Connection::Refused), Level::Fail, "start `coeval host` there");
    let both = of(Some(Exchanges::Silence), Connection::Silence);
    assert_eq!(both.iter().filter(|finding| finding.level == Level::Fail).count(), 2);
}

#[test]
fn a_fleet_says_what_a_snapshot_would_be_like() {
    let of = |change: &dyn Fn(&mut Fleet)| {
        let forecast = Forecast {
            group: Vec::new(),
            mode: snapshot::certificate::Mode::Timed,
            why_not_timed: None,
            v_ns: Some(Nanos::from_micros(3)),
            margin_ns: None,
            stretch_ns: Nanos::from_micros(3),
            control_round_trip_ns: Nanos::from_micros(200),
            lead_ns: Nanos::from_millis(50),
            hosts: Vec::new(),
        };
        let mut fleet = Fleet {
            clocks: Vec::new(),
            unreachable: Vec::new(),
            unserved: Vec::new(),
            forecast: Some(Ok(forecast)),
        };
        change(&mut fleet);
        judge(&Facts { fleet: Some(Ok(fleet)), ..Facts::default() })
    };
    assert_one(&of(&|_| {}), Level::Ok, "would be timed: V 3.00 µs");
    assert_one(&of(&|fleet| fleet.forecast = None), Level::Warn, "volume create");
    assert_one(&of(&|fleet| fleet.forecast = Some(Err("b is off".to_owned()))), Level::Fail, "b is off");
    let by_messages = |fleet: &mut Fleet| {
        if let Some(Ok(forecast)) = &mut fleet.forecast {
            (forecast.v_ns, forecast.why_not_timed) = (None, Some("V would be 2 s".to_owned()));
        }
    };
    assert_one(&of(&by_messages), Level::Warn, "V would be 2 s");
    let off = ("b".to_owned(), "it is off".to_owned());
    assert_one(&of(&|fleet| fleet.unreachable = vec![off.clone()]), Level::Fail, "`coeval doctor` on b");
    assert_one(&of(&|fleet| fleet.unserved = vec![off.clone()]), Level::Fail, "`coeval volume check`");
}
