//! Clients that are slow, on purpose or not, at every stream socket of both daemons: they hold nobody else up.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::process::Command;

use coeval_cli::cluster::{Cluster, Place};
use harness::coeval;
use harness::tls::Authority;
use harness::tools::{ask, one_host, run, stop_all};
use snapshot::http::Role;
use snapshot::nbd::{Client, Endpoint};

/// Of each kind, at each socket.
const MANY: usize = 50;

/// A connection that has sent this, and neither reads nor closes.
fn idle(address: &str, sends: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut rest = sends;
    // As much as both ends' buffers take: what the other end does not read waits here.
    while !rest.is_empty() {
        match stream.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(why) if why.kind() == ErrorKind::WouldBlock => break,
            Err(why) => panic!("{why}"),
        }
    }
    stream
}

#[test]
fn slow_http_clients_hold_nobody_up() {
    let cluster = one_host(&[]);
    ask(&cluster, &["volume", "create", "a/data", "1MiB"]);
    let server = cluster.api.trim_start_matches("http://");
    let host = cluster.hosts[0].ready.control.trim_start_matches("http://");
    let half_a_body = "POST /api/v1/snapshots HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
                       content-length: 1000\r\n\r\n{";
    // All of its answers wait for somebody who reads.
    let greedy = |path| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").repeat(200);
    let mut slow = Vec::new();
    for (address, greedy) in [(server, greedy("/api/v1/openapi.json")), (host, greedy("/v1/openapi.json"))] {
        for sends in ["", "GET /metrics HTTP/1.1\r\nhost: loc", half_a_body, &greedy] {
            slow.extend((0..MANY).map(|_| idle(address, sends.as_bytes())));
        }
    }
    assert_eq!(ask(&cluster, &["snapshot", "create", "s"])["verdict"], "consistent");
    assert_eq!(ask(&cluster, &["volume", "list"])[0]["volumes"].as_array().unwrap().len(), 1);
    drop(slow);
    stop_all(cluster);
}

#[test]
fn slow_nbd_clients_hold_nobody_up() {
    let cluster = one_host(&[]);
    ask(&cluster, &["volume", "create", "a/data", "1MiB"]);
    let tcp = cluster.hosts[0].ready.nbd.iter().find_map(|uri| uri.strip_prefix("nbd://")).unwrap();
    // Client flags, then `NBD_OPT_GO` for the export (NetworkBlockDevice/nbd, doc/proto.md), then reads of all of it.
    let go: Vec<u8> =
        [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7, 0, 0, 0, 10, 0, 0, 0, 4], b"data", &[0, 0]].concat();
    let read = [&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0][..], &[0; 16], &(1_u32 << 20).to_be_bytes()].concat();
    let greedy = [go.clone(), read.repeat(50)].concat();
    let slow: Vec<TcpStream> = [&[][..], &go[..10], &greedy]
        .into_iter()
        .flat_map(|sends| (0..10).map(move |_| idle(tcp, sends)))
        .collect();
    let endpoint: Endpoint = format!("tcp://{tcp}").parse().unwrap();
    let mut good = Client::connect(&endpoint, "data").unwrap();
    good.write(0, &[7; 4096], true).unwrap();
    assert_eq!(ask(&cluster, &["snapshot", "create", "s"])["verdict"], "consistent");
    let mut block = [0; 4096];
    good.read(0, &mut block).unwrap();
    assert_eq!(block, [7; 4096]);
    drop((slow, good));
    stop_all(cluster);
}

#[test]
fn clients_that_never_shake_hands_hold_nobody_up() {
    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let authority = Authority::new();
    let place = |role, name| Place { tls: Some(authority.issue(role, name, HERE)), ..Place::loopback(&[]) };
    let (host, server) = (place(Role::Host, "a"), place(Role::Server, "backup"));
    let cluster = Cluster::start(coeval(), &[("a", host)], &server, |_, address| Ok(address)).unwrap();
    let mut slow = Vec::new();
    for url in [&cluster.api, &cluster.hosts[0].ready.control] {
        // Nothing, and the head of a TLS record.
        for sends in [&[][..], &[0x16, 3, 1, 2, 0]] {
            slow.extend((0..MANY).map(|_| idle(url.trim_start_matches("https://"), sends)));
        }
    }
    let files = authority.issue(Role::Operator, "anna", HERE);
    let mut create = Command::new(coeval());
    create.args(["volume", "create", "a/data", "1MiB", "--server", &cluster.api]);
    create.arg("--cert").arg(files.cert).arg("--key").arg(files.key).arg("--ca").arg(files.ca);
    run(&mut create);
    drop(slow);
    stop_all(cluster);
}
