//! Modules and a server with real sockets on loopback: one machine, so the true offset is known.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use timesync::clock::{HostClock, wall_now};
use timesync::hardware::Timestamps;
use timesync::identity::Incarnation;
use timesync::module::{Module, ModuleConfig};
use timesync::probe::{Probe, ProbeConfig};
use timesync::server::{HostConfig, ServerConfig, State, TimeServer};
use timesync::source::{SkewSource, Unobserved};
use timesync::time::{Nanos, Offset, Time};
use timesync::wire::{Body, Header, Message, PLAIN_LEN, PortIdentity};

fn incarnation() -> Incarnation {
    Incarnation::of_this_process().unwrap()
}

fn module_at(ip: &str, port: u16, clock: HostClock) -> (Module, SocketAddr) {
    let listen: Vec<IpAddr> = vec![ip.parse().unwrap()];
    let config = ModuleConfig { listen, event_port: port, domain: 0, ..ModuleConfig::default() };
    let module = Module::start(&config, clock, incarnation()).unwrap();
    let address = module.addresses()[0];
    (module, address)
}

fn module(clock: HostClock) -> (Module, SocketAddr) {
    module_at("127.0.0.1", 0, clock)
}

fn server(hosts: &[(&str, SocketAddr)], allow_simulated: bool) -> TimeServer {
    let hosts = hosts.iter().map(|(name, address)| HostConfig::new(*name, *address)).collect();
    let config = ServerConfig { hosts, event_port: 0, allow_simulated, ..ServerConfig::default() };
    config.check().unwrap();
    TimeServer::start(&config, incarnation()).unwrap()
}

/// Bursts until `done` says so. A burst is 32 exchanges, of which 8 do; more than one is needed on a machine so busy that
/// answers take longer than the server waits.
fn burst_until(server: &TimeServer, hosts: &[String], done: impl Fn() -> bool) {
    for _ in 0..100 {
        server.burst(hosts);
        if done() {
            return;
        }
    }
    panic!("no end after 100 bursts: {:?}", server.report());
}

#[test]
fn on_one_machine_the_bound_covers_zero() {
    for ip in ["127.0.0.1", "::1"] {
        if ip == "::1" && UdpSocket::bind("[::1]:0").is_err() {
            continue; // a machine without IPv6
        }
        let (_module, address) = module_at(ip, 0, HostClock::real());
        let server = server(&[("a", address)], false);
        let hosts = ["a".to_owned()];
        burst_until(&server, &hosts, || server.observe("a").is_ok());

        let observation = server.observe("a").unwrap();
        for ahead in [0, 50, 1_000] {
            let bound = observation.window.hard(server.now() + Nanos::from_millis(ahead)).unwrap();
            assert!(bound.contains(Offset::new(0)), "{bound:?}");
            assert!(bound.half_width() < Nanos::from_millis(10), "{bound:?}");
        }
        let report = server.report();
        let row = &report.hosts[0];
        assert_eq!(row.state, State::Ok);
        assert!(row.offset_ns.unwrap().abs() <= row.hard_ns.unwrap(), "{row:?}");
        assert!(row.statistical_ns.unwrap() <= row.hard_ns.unwrap(), "{row:?}");
        assert!(row.exchanges >= 8 && row.rtt_ns.unwrap().min > 0 && row.age_ms.is_some());
    }
}

#[test]
fn simulated_clocks_are_covered_and_refused_unless_allowed() {
    let since = server(&[], false).now().as_nanos();
    let clocks = ["offset=35ms,drift=40ppm", "offset=-20ms,drift=-25ppm", "offset=1s,wander=0.01ppm/60s"]
        .map(|spec| HostClock::simulated(format!("{spec},since={since}").parse().unwrap()));
    let modules = clocks.clone().map(module);
    let names = ["a", "b", "c"].map(str::to_owned);
    let addresses: Vec<_> =
        names.iter().zip(&modules).map(|(name, module)| (name.as_str(), module.1)).collect();
    let strict = server(&addresses, false);
    let server = server(&addresses, true);
    burst_until(&server, &names, || names.iter().all(|name| server.observe(name).is_ok()));
    burst_until(&strict, &names, || strict.report().hosts.iter().all(|row| row.state == State::Simulated));
    assert_eq!(strict.observe("a").unwrap_err(), Unobserved::Simulated("a".into()));

    for (name, clock) in names.iter().zip(&clocks) {
        let window = server.observe(name).unwrap().window;
        let now = server.now();
        for at in [now - Nanos::from_millis(20), now, now + Nanos::from_millis(50)] {
            let bound = window.hard(at).unwrap();
            let truth = Offset::new(clock.deviation(Time::from_nanos(at.as_nanos())).get());
            assert!(bound.contains(truth), "{name} at {at:?}: {truth:?} is not in {bound:?}");
        }
    }
    // The report is about CLOCK_REALTIME, which lies as much as the timeline does.
    let asked = server.now();
    let report = server.report();
    // These clocks drift by less than 50 ppm, also while the report is made. age_ms is in whole milliseconds, in which
    // they drift by 40 ns and a little more.
    let allowance = 1_000 + (server.now() - asked).get() / 20_000;
    for (row, clock) in report.hosts.iter().zip(&clocks) {
        let then = asked - Nanos::from_millis(row.age_ms.unwrap());
        let truth = clock.deviation(Time::from_nanos(then.as_nanos())).get();
        let within = row.hard_ns.unwrap() + allowance;
        assert!((row.offset_ns.unwrap() - truth).abs() <= within, "{row:?}: {truth}");
    }
    assert_eq!(report.pairs.len(), 3);
    let hard = |name: &str| report.hosts.iter().find(|row| row.host == name).unwrap().hard_ns.unwrap();
    for pair in &report.pairs {
        assert_eq!(pair.hard_ns.unwrap(), hard(&pair.a) + hard(&pair.b));
    }
}

#[test]
fn a_host_that_does_not_answer_is_silent_and_ends_the_burst() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = server(&[("a", nobody.local_addr().unwrap())], false);
    server.burst(&["a".to_owned(), "unheard-of".to_owned()]);
    assert_eq!(server.observe("a").unwrap_err(), Unobserved::Silent("a".into()));
    assert_eq!(server.observe("b").unwrap_err(), Unobserved::Unknown("b".into()));
    let row = &server.report().hosts[0];
    assert_eq!((row.state, row.offset_ns, row.exchanges), (State::Silent, None, 0));
    assert!(row.lost >= 2);
}

#[test]
fn a_module_that_was_started_anew_is_another_incarnation_and_no_contradiction() {
    let (first, address) = module(HostClock::real());
    let server = server(&[("a", address)], false);
    let hosts = ["a".to_owned()];
    burst_until(&server, &hosts, || server.observe("a").is_ok());
    let before = server.observe("a").unwrap().incarnation;
    drop(first);
    let _second = module_at("127.0.0.1", address.port(), HostClock::real());
    burst_until(&server, &hosts, || server.observe("a").is_ok_and(|seen| seen.incarnation != before));
    assert_eq!(server.report().hosts[0].state, State::Ok);
}

#[test]
fn a_port_that_is_taken_is_said_so() {
    let (_module, address) = module(HostClock::real());
    let config = ModuleConfig {
        listen: vec![address.ip()],
        event_port: address.port(),
        domain: 0,
        ..ModuleConfig::default()
    };
    let error = Module::start(&config, HostClock::real(), incarnation()).unwrap_err();
    assert!(error.to_string().contains("is in use"), "{error}");
}

#[test]
fn another_domain_is_not_answered() {
    let config = ModuleConfig {
        listen: vec!["127.0.0.1".parse().unwrap()],
        event_port: 0,
        domain: 9,
        ..ModuleConfig::default()
    };
    let module = Module::start(&config, HostClock::real(), incarnation()).unwrap();
    let server = server(&[("a", module.addresses()[0])], false);
    server.burst(&["a".to_owned()]);
    assert_eq!(server.observe("a").unwrap_err(), Unobserved::Silent("a".into()));
    assert!(module.counters().ignored.load(Ordering::Relaxed) > 0);
}

/// Stands between server and module, and adds to every answer: a forgery from elsewhere before it, and after it damaged
/// copies and a replay with another time in it.
fn hostile_relay(module: SocketAddr, stop: Arc<AtomicBool>) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").unwrap();
    let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&front, &back] {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    let address = front.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, server)) = front.recv_from(&mut buffer) else { continue };
            back.send_to(&buffer[..len], module).unwrap();
            for _ in 0..2 {
                let Ok(len) = back.recv(&mut buffer) else { break };
                let genuine = buffer[..len].to_vec();
                // The TLV's earliest instant (octets 66 to 73), an hour later.
                let mut forged = genuine.clone();
                let raw = i64::from_be_bytes(forged[66..74].try_into().unwrap()) + 3_600_000_000_000;
                forged[66..74].copy_from_slice(&raw.to_be_bytes());
                assert!(Message::parse(&forged).is_ok());
                // Of another request, which is not outstanding.
                let mut stale = forged.clone();
                stale[31] ^= 0x55;
                elsewhere.send_to(&forged, server).unwrap();
                front.send_to(&stale, server).unwrap();
                front.send_to(&genuine[..40], server).unwrap();
                front.send_to(b"", server).unwrap();
                front.send_to(&genuine, server).unwrap();
                front.send_to(&forged, server).unwrap();
                front.send_to(&genuine, server).unwrap();
            }
        }
    });
    (address, thread)
}

#[test]
fn forged_replayed_and_damaged_answers_change_nothing() {
    let (_module, address) = module(HostClock::real());
    let stop = Arc::new(AtomicBool::new(false));
    let (relay, thread) = hostile_relay(address, Arc::clone(&stop));
    let server = server(&[("a", relay)], false);
    let hosts = ["a".to_owned()];
    burst_until(&server, &hosts, || server.observe("a").is_ok());
    server.burst(&hosts);
    let bound = server.observe("a").unwrap().window.hard(server.now()).unwrap();
    assert!(bound.contains(Offset::new(0)) && bound.half_width() < Nanos::from_millis(100), "{bound:?}");
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
}

/// Answers like a daemon that knows nothing of our TLV. Returns how long the requests were.
fn plain_responder(stop: Arc<AtomicBool>) -> (SocketAddr, std::thread::JoinHandle<Vec<usize>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let address = socket.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let (mut buffer, mut lengths) = ([0; 256], Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, server)) = socket.recv_from(&mut buffer) else { continue };
            let received = wall_now();
            let request = Message::parse(&buffer[..len]).unwrap().header;
            let source = PortIdentity { clock: [6; 8], port: 1 };
            let header = Header { source, two_step: true, ..request };
            let requester = request.source;
            for body in
                [Body::Response { received, requester }, Body::FollowUp { sent: wall_now(), requester }]
            {
                // A follow-up says when the response was sent; a reading before that is early, as stamps may be.
                let octets = Message { header, body, extension: None }.encode();
                socket.send_to(&octets, server).unwrap();
            }
            lengths.push(len);
        }
        lengths
    });
    (address, thread)
}

#[test]
fn a_plain_responder_is_reported_and_asked_in_messages_as_long_as_its_own() {
    let stop = Arc::new(AtomicBool::new(false));
    let (address, thread) = plain_responder(Arc::clone(&stop));
    let server = server(&[("a", address)], false);
    let hosts = ["a".to_owned()];
    burst_until(&server, &hosts, || server.report().hosts[0].state == State::Agentless);
    assert_eq!(server.observe("a").unwrap_err(), Unobserved::Agentless("a".into()));
    let row = server.report().hosts[0].clone();
    assert!(row.offset_ns.unwrap().abs() <= row.hard_ns.unwrap(), "{row:?}");
    stop.store(true, Ordering::Relaxed);
    let lengths = thread.join().unwrap();
    let plain = lengths.iter().filter(|len| **len == PLAIN_LEN).count();
    // Now and then it is asked whether a module has come.
    assert!(lengths[0] > PLAIN_LEN && plain > lengths.len() / 2 && plain < lengths.len(), "{lengths:?}");
}

#[test]
fn damaged_requests_are_counted_and_harm_nothing() {
    let (module, address) = module(HostClock::real());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in 0..200 {
        socket.send_to(&vec![0x12; len], address).unwrap();
    }
    let server = server(&[("a", address)], false);
    burst_until(&server, &["a".to_owned()], || server.observe("a").is_ok());
    assert!(module.counters().malformed.load(Ordering::Relaxed) > 0);
}

fn probe(target: SocketAddr, timeout_ms: i64) -> Probe {
    let config = ProbeConfig {
        target,
        event_port: 0,
        timestamps: Timestamps::Software,
        domain: 0,
        interval: Nanos::from_millis(5),
        timeout: Nanos::from_millis(timeout_ms),
    };
    Probe::open(config).unwrap()
}

#[test]
fn a_probe_finds_a_module_as_any_responder() {
    let (_module, address) = module(HostClock::simulated("offset=3ms".parse().unwrap()));
    let mut probe = probe(address, 1_000);
    let answers: Vec<_> = (0..20).filter_map(|_| probe.exchange().unwrap().answer).collect();
    let summary = probe.summary();
    assert_eq!((summary.sent, summary.lost), (20, 20 - answers.len() as u64));
    for answer in answers {
        assert!((answer.offset_ns - 3_000_000).abs() <= answer.rtt_ns / 2 + 2, "{answer:?}");
    }
    let (offset, hard) = (summary.offset_ns.unwrap(), summary.hard_ns.unwrap());
    assert!((offset - 3_000_000).abs() <= hard, "{summary:?}");
}

#[test]
fn a_probe_over_ipv6_finds_a_module() {
    if UdpSocket::bind("[::1]:0").is_err() {
        return; // a machine without IPv6
    }
    let (_module, address) = module_at("::1", 0, HostClock::real());
    let mut probe = probe(address, 1_000);
    let answer = (0..20).find_map(|_| probe.exchange().unwrap().answer).unwrap();
    assert!(answer.offset_ns.abs() <= answer.rtt_ns / 2 + 2, "{answer:?}");
}

/// Answers in one message, without a follow-up.
fn one_step_responder(stop: Arc<AtomicBool>) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let address = socket.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, server)) = socket.recv_from(&mut buffer) else { continue };
            let received = wall_now();
            let request = Message::parse(&buffer[..len]).unwrap().header;
            let source = PortIdentity { clock: [6; 8], port: 1 };
            let correction = (wall_now() - received).get() << 16;
            let header = Header { source, two_step: false, correction, ..request };
            let body = Body::Response { received, requester: request.source };
            socket.send_to(&Message { header, body, extension: None }.encode(), server).unwrap();
        }
    });
    (address, thread)
}

#[test]
fn one_step_responders_are_understood() {
    let stop = Arc::new(AtomicBool::new(false));
    let (address, thread) = one_step_responder(Arc::clone(&stop));
    let server = server(&[("a", address)], false);
    burst_until(&server, &["a".to_owned()], || server.report().hosts[0].state == State::Agentless);
    let row = server.report().hosts[0].clone();
    assert!(row.offset_ns.unwrap().abs() <= row.hard_ns.unwrap(), "{row:?}");
    let mut probe = probe(address, 1_000);
    let answer = (0..20).find_map(|_| probe.exchange().unwrap().answer).unwrap();
    assert!(answer.offset_ns.abs() <= answer.rtt_ns / 2 + 2, "{answer:?}");
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
}

#[test]
fn a_probe_of_nobody_counts_its_losses() {
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut probe = probe(nobody.local_addr().unwrap(), 20);
    assert_eq!(probe.exchange().unwrap().answer, None);
    let summary = probe.summary();
    assert_eq!((summary.sent, summary.lost, summary.hard_ns), (1, 1, None));
}
