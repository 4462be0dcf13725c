//! Authenticated exchanges with real sockets on loopback: what a server without the key is told, and what somebody on the
//! way can do.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use timesync::authentication::{Key, Keyring, SessionKey};
use timesync::clock::HostClock;
use timesync::hardware::Timestamps;
use timesync::identity::Incarnation;
use timesync::module::{Module, ModuleConfig};
use timesync::probe::{Probe, ProbeConfig};
use timesync::server::{HostConfig, HostKey, ServerConfig, State, TimeServer};
use timesync::source::{SkewSource, Unobserved};
use timesync::time::{Nanos, Offset};

fn key(secret: u8) -> Key {
    Key::new(1, 7, &[secret; 32])
}

fn module(ip: &str, keyring: &Arc<Keyring>) -> (Module, SocketAddr) {
    let config = ModuleConfig { listen: vec![ip.parse().unwrap()], event_port: 0, ..ModuleConfig::default() };
    let incarnation = Incarnation::of_this_process().unwrap();
    let module =
        Module::start_authenticated(&config, Arc::clone(keyring), HostClock::real(), incarnation).unwrap();
    let address = module.addresses()[0];
    (module, address)
}

/// A server of the one host `a`.
fn server(address: SocketAddr, key: Option<Key>, agentless: bool) -> TimeServer {
    let key = key.map(|key| HostKey { key, agentless });
    let hosts = vec![HostConfig { key, ..HostConfig::new("a", address) }];
    let config = ServerConfig { hosts, event_port: 0, ..ServerConfig::default() };
    TimeServer::start(&config, Incarnation::of_this_process().unwrap()).unwrap()
}

fn burst_until(server: &TimeServer, done: impl Fn() -> bool) {
    for _ in 0..100 {
        server.burst(&["a".to_owned()]);
        if done() {
            return;
        }
    }
    panic!("no end after 100 bursts: {:?}", server.report());
}

fn assert_covers_zero(server: &TimeServer) {
    let bound = server.observe("a").unwrap().window.hard(server.now()).unwrap();
    assert!(bound.contains(Offset::new(0)), "{bound:?}");
}

#[test]
fn a_host_with_a_key_answers_those_who_have_it_and_no_others() {
    for ip in ["127.0.0.1", "::1"] {
        if ip == "::1" && UdpSocket::bind("[::1]:0").is_err() {
            continue; // a machine without IPv6
        }
        let keyring = Arc::new(Keyring::new(Some(key(1))));
        let (module, address) = module(ip, &keyring);
        // Both forms: with numbers, and as a stock daemon has it.
        for agentless in [false, true] {
            let knowing = server(address, Some(key(1)), agentless);
            burst_until(&knowing, || knowing.observe("a").is_ok());
            assert_covers_zero(&knowing);
        }
        let refused = || module.counters().refused.load(Ordering::Relaxed);
        assert_eq!(refused(), 0);
        for wrong in [None, Some(key(2))] {
            let before = refused();
            let ignorant = server(address, wrong, false);
            ignorant.burst(&["a".to_owned()]);
            assert_eq!(ignorant.observe("a").unwrap_err(), Unobserved::Silent("a".into()));
            assert!(refused() > before);
        }
    }
}

#[test]
fn a_server_with_a_key_believes_no_host_without_it_and_says_so() {
    let (_module, address) = module("127.0.0.1", &Arc::default());
    let server = server(address, Some(key(1)), false);
    burst_until(&server, || {
        server.observe("a").is_err_and(|why| why == Unobserved::Unauthenticated("a".into()))
    });
    let row = &server.report().hosts[0];
    assert_eq!((row.state, row.offset_ns, row.exchanges), (State::Unauthenticated, None, 0));
    assert!(server.unheard("a")(Nanos::ZERO));
}

#[test]
fn a_session_key_that_comes_late_is_enough() {
    let handed = SessionKey::draw().unwrap();
    let keyring = Arc::new(Keyring::default());
    let (_module, address) = module("127.0.0.1", &keyring);
    let server = server(address, Some(handed.key()), false);
    server.burst(&["a".to_owned()]);
    assert!(server.observe("a").is_err());
    keyring.add(&handed);
    burst_until(&server, || server.observe("a").is_ok());
    assert_covers_zero(&server);
    assert!(!server.unheard("a")(Nanos::from_millis(60_000)));
}

#[test]
fn a_probe_with_the_key_is_answered() {
    let (_module, address) = module("127.0.0.1", &Arc::new(Keyring::new(Some(key(1)))));
    let config = ProbeConfig {
        timestamps: Timestamps::Software,
        target: address,
        event_port: 0,
        domain: 0,
        interval: Nanos::from_millis(5),
        timeout: Nanos::from_millis(100),
    };
    let mut probe = Probe::open(config.clone()).unwrap();
    assert_eq!(probe.exchange().unwrap().answer, None);
    probe.authenticate(key(1));
    let answer = (0..100).find_map(|_| probe.exchange().unwrap().answer).unwrap();
    assert!(answer.offset_ns.abs() <= answer.rtt_ns / 2 + 2, "{answer:?}");
}

/// Stands between server and module. It sends on what is genuine, and in front of it what an attacker would rather have
/// believed: the answer with another time in it, with the authentication cut off, and an earlier answer with the present
/// sequenceId.
fn attacker(module: SocketAddr, stop: Arc<AtomicBool>) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    let back = UdpSocket::bind("127.0.0.1:0").unwrap();
    for socket in [&front, &back] {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    }
    let address = front.local_addr().unwrap();
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 256];
        let mut recorded: Vec<Vec<u8>> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let Ok((len, server)) = front.recv_from(&mut buffer) else { continue };
            let sequence = [buffer[30], buffer[31]];
            // The request twice: the module must not answer the copy.
            for _ in 0..2 {
                back.send_to(&buffer[..len], module).unwrap();
            }
            for _ in 0..2 {
                let Ok(len) = back.recv(&mut buffer) else { break };
                let genuine = buffer[..len].to_vec();
                // Our TLV's earliest instant (octets 66 to 73), an hour later.
                let mut forged = genuine.clone();
                let raw = i64::from_be_bytes(forged[66..74].try_into().unwrap()) + 3_600_000_000_000;
                forged[66..74].copy_from_slice(&raw.to_be_bytes());
                let mut stripped = forged[..118].to_vec();
                stripped[3] = 118;
                for lie in [&forged, &stripped] {
                    front.send_to(lie, server).unwrap();
                }
                if let Some(old) = recorded.iter().rev().nth(2) {
                    // With its own sequenceId, and with the present one.
                    front.send_to(old, server).unwrap();
                    let mut renamed = old.clone();
                    renamed[30..32].copy_from_slice(&sequence);
                    front.send_to(&renamed, server).unwrap();
                }
                front.send_to(&genuine, server).unwrap();
                front.send_to(&genuine, server).unwrap();
                recorded.push(genuine);
            }
        }
    });
    (address, thread)
}

#[test]
fn forged_stripped_and_replayed_answers_are_refused_and_the_genuine_ones_taken() {
    let handed = SessionKey::draw().unwrap();
    let keyring = Arc::new(Keyring::default());
    keyring.add(&handed);
    let (module, address) = module("127.0.0.1", &keyring);
    let stop = Arc::new(AtomicBool::new(false));
    let (relay, thread) = attacker(address, Arc::clone(&stop));
    let server = server(relay, Some(handed.key()), false);
    burst_until(&server, || server.observe("a").is_ok());
    server.burst(&["a".to_owned()]);
    assert_covers_zero(&server);
    assert_eq!(server.report().hosts[0].state, State::Ok, "a lie would have contradicted the rest");
    assert!(module.counters().refused.load(Ordering::Relaxed) > 0, "copies of requests are refused");
    stop.store(true, Ordering::Relaxed);
    thread.join().unwrap();
}
