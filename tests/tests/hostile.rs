//! Bytes from people who mean harm, at every socket of both daemons: who means well is served all the same.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coeval_cli::cluster::ServerReady;
use coeval_cli::daemon::Daemon;
use harness::tools::{self, DEADLINE, ask, one_host, run, skew, stop, stop_all};
use harness::{coeval, eventually};
use serde_json::Value;
use snapshot::nbd::{Client, Endpoint};
use timesync::random::Random;

/// Bytes that repeat from run to run.
fn bytes(random: &mut Random, count: usize) -> Vec<u8> {
    (0..count).map(|_| random.bits() as u8).collect()
}

/// A Pdelay_Req as IEEE 1588-2019 section 13.9 lays it out, 54 octets.
fn pdelay_request() -> Vec<u8> {
    let mut octets = vec![0; 54];
    octets[..4].copy_from_slice(&[0x02, 0x02, 0, 54]);
    octets[6] = 0x04;
    octets
}

/// The same packet spoilt: cut off, lengthened, with wrong lengths and flipped bits.
fn spoilt(sound: &[u8], random: &mut Random) -> Vec<u8> {
    let mut octets = sound.to_vec();
    match random.below(5) {
        0 => octets.truncate(random.below(sound.len())),
        1 => {
            let tail = random.below(1400);
            octets.extend(bytes(random, tail));
        }
        2 => octets[2..4].copy_from_slice(&(random.bits() as u16).to_be_bytes()),
        3 => {
            let at = random.below(octets.len());
            octets[at] ^= 1 << random.below(8);
        }
        _ => {
            let count = random.below(1472);
            octets = bytes(random, count);
        }
    }
    octets
}

#[test]
fn hostile_packets_do_not_keep_a_module_from_answering() {
    let cluster = one_host(&[]);
    let time = cluster.hosts[0].ready.time;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = Random(1);
    for _ in 0..20_000 {
        // A full socket buffer drops the rest, as it should.
        let _ = socket.send_to(&spoilt(&pdelay_request(), &mut random), time);
    }
    let mut command = Command::new(coeval());
    command.args(["probe", &time.to_string(), "--port", "0", "--count", "5", "--interval", "10ms", "--json"]);
    let printed = run(&mut command);
    let summary: Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let (offset, half) = (&summary["summary"]["offset_ns"], &summary["summary"]["hard_ns"]);
    assert!(
        offset.as_i64().unwrap().abs() <= half.as_i64().unwrap(),
        "it is this machine's own clock: {summary}"
    );
    eventually(|| {
        (skew(&mut tools::command(&cluster))["hosts"][0]["state"] == "ok")
            .then_some(())
            .ok_or("not so yet: the server still measures it")
    });
    stop_all(cluster);
}

#[test]
fn hostile_answers_do_not_mislead_the_prober() {
    let cluster = one_host(&[]);
    let honest = &cluster.hosts[0];
    let liar = UdpSocket::bind("127.0.0.1:0").unwrap();
    liar.set_read_timeout(Some(DEADLINE)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("server.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nstate = {:?}\n[time]\nport = 0\npairs_per_second = 100\n\
         [[host]]\nname = \"a\"\ntime = \"{}\"\ncontrol = {:?}\n\
         [[host]]\nname = \"liar\"\ntime = \"{}\"\nagentless = true\n",
        directory.path().join("state"),
        honest.ready.time,
        honest.ready.control,
        liar.local_addr().unwrap()
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(coeval());
    command.args(["server", "--with-parent", "--config"]).arg(&config);
    let mut server = Daemon::start(command, &directory.path().join("server.log")).unwrap();
    let ready: ServerReady = server.ready().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    // Ends when nothing is asked any more.
    std::thread::spawn(move || {
        let (mut random, mut buffer) = (Random(2), [0; 2048]);
        while let Ok((length, server)) = liar.recv_from(&mut buffer) {
            count.fetch_add(1, Ordering::Relaxed);
            for _ in 0..100 {
                // The request back as a response (3), a follow-up (10) or itself, and spoilt. It names no requester, so
                // by no accident is it a sound answer.
                let mut answer = buffer[..length].to_vec();
                answer[0] = (answer[0] & 0xf0) | [3, 10, 2][random.below(3)];
                // A full socket buffer drops the rest, as it should.
                let _ = liar.send_to(&spoilt(&answer, &mut random), server);
            }
        }
    });
    let report = eventually(|| {
        let report = skew(Command::new(coeval()).env("COEVAL_SERVER", &ready.api));
        // One that gives no sound answer is asked seldom.
        let measured = report["hosts"][0]["state"] == "ok" && asked.load(Ordering::Relaxed) > 30;
        measured.then_some(report).ok_or("not so yet: the honest host is measured beside it")
    });
    let (a, liar) = (&report["hosts"][0], &report["hosts"][1]);
    assert!(a["offset_ns"].as_i64().unwrap().abs() <= a["hard_ns"].as_i64().unwrap(), "{a}");
    assert!(liar["offset_ns"].is_null() && liar["hard_ns"].is_null(), "{liar}");
    stop(&mut server);
    stop_all(cluster);
}

#[test]
fn hostile_nbd_clients_do_not_disturb_others() {
    let cluster = one_host(&[]);
    ask(&cluster, &["volume", "create", "a/data", "1MiB"]);
    let tcp = cluster.hosts[0].ready.nbd.iter().find_map(|uri| uri.strip_prefix("nbd://")).unwrap();
    let endpoint: Endpoint = format!("tcp://{tcp}").parse().unwrap();
    let mut good = Client::connect(&endpoint, "data").unwrap();
    good.write(4096, &[7; 4096], true).unwrap();

    let mut random = Random(3);
    // Client flags, then `NBD_OPT_GO` for the export (NetworkBlockDevice/nbd, doc/proto.md), then requests.
    let go: Vec<u8> =
        [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7, 0, 0, 0, 10, 0, 0, 0, 4], b"data", &[0, 0]].concat();
    let request = |kind: u8, offset: u64, length: u32| {
        let head = [0x25, 0x60, 0x95, 0x13, 0, 0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 1];
        [&head[..], &offset.to_be_bytes(), &length.to_be_bytes()].concat()
    };
    let huge_option = [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat();
    let mut attacks = vec![
        huge_option,
        [go.clone(), request(1, 0, u32::MAX)].concat(),
        [go.clone(), request(1, u64::MAX, 4096)].concat(),
        [go.clone(), request(0, u64::MAX - 5, 4096)].concat(),
        // Half a write, and nothing more.
        [go.clone(), request(1, 4096, 4096), vec![9; 2000]].concat(),
    ];
    for _ in 0..100 {
        let count = 1 + random.below(400);
        attacks.push(bytes(&mut random, count));
        attacks.push([go.clone(), bytes(&mut random, count)].concat());
        // A flush: no single bit makes it a sound request that changes anything.
        attacks.push(spoilt(&[go.clone(), request(3, 0, 0)].concat(), &mut random));
    }
    for attack in attacks {
        let mut stream = TcpStream::connect(tcp).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // The server may have hung up before it was all sent.
        let _ = stream.write_all(&attack).and_then(|()| stream.shutdown(Shutdown::Write));
        // It hangs up in the end; by a reset where it did not read all.
        let hung_up = stream.read_to_end(&mut Vec::new());
        assert!(hung_up.is_ok_and(|_| true) || stream.peek(&mut [0]).is_ok_and(|left| left == 0));
    }
    let mut block = [0; 4096];
    good.read(4096, &mut block).unwrap();
    assert_eq!(block, [7; 4096], "half a write writes nothing");
    good.write(0, &[8; 4096], true).unwrap();
    Client::connect(&endpoint, "data").unwrap().read(0, &mut block).unwrap();
    assert_eq!(block, [8; 4096]);
    drop(good);
    stop_all(cluster);
}

/// Sends these bytes and returns the status and the body of the answer.
fn http(address: &str, octets: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    // It may refuse before it has read all.
    let _ = stream.write_all(octets);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..count]);
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let problem = head.to_lowercase().contains("content-type: application/problem+json");
    // What is no HTTP at all is answered by the HTTP library, without a body.
    assert!(problem || status < 300 || body.is_empty(), "{answer}");
    (status, body.to_owned())
}

fn request(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn hostile_http_requests_are_answered_with_a_sentence() {
    let cluster = one_host(&[]);
    ask(&cluster, &["volume", "create", "a/data", "1MiB"]);
    let server = cluster.api.trim_start_matches("http://");
    let host = cluster.hosts[0].ready.control.trim_start_matches("http://");
    let big = format!("{{\"name\": \"{}\"}}", "x".repeat(2 << 20));
    let deep = "[".repeat(100_000);
    let uuid = "018f3c3e-0000-7000-8000-000000000000";
    let arm = format!("/v1/cuts/{uuid}/arm");
    for (address, method, path, body, expected) in [
        (server, "POST", "/api/v1/snapshots", big.as_str(), 413),
        (server, "POST", "/api/v1/volumes", &big, 413),
        (server, "POST", "/api/v1/snapshots", "{", 400),
        (server, "POST", "/api/v1/snapshots", "", 400),
        (server, "POST", "/api/v1/snapshots", &deep, 400),
        (server, "POST", "/api/v1/snapshots", "{\"nmae\": \"x\"}", 422),
        (server, "POST", "/api/v1/volumes", "{\"host\": \"a\", \"name\": \"x\", \"size\": -1}", 422),
        (server, "POST", "/api/v1/nothing", "{}", 404),
        (server, "PUT", "/api/v1/snapshots", "{}", 405),
        (server, "POST", "/api/v1/skew", "{}", 405),
        (server, "GET", "/api/v1/snapshots/%ff%fe", "", 400),
        (server, "GET", "/api/v1/snapshots/x?evidence=many", "", 400),
        (host, "POST", "/v1/volumes", &big, 413),
        (host, "POST", "/v1/volumes", "not json", 400),
        (host, "POST", "/v1/volumes", "{\"name\": \"../x\", \"size\": 4096}", 409),
        (host, "POST", &arm, "{}", 422),
        (host, "POST", "/v1/cuts/nonsense/arm", "{}", 400),
        (host, "POST", &format!("/v1/cuts/{uuid}/seal"), "", 410),
        (host, "POST", &format!("/v1/cuts/{uuid}/uncoordinated"), "{}", 404),
        (host, "DELETE", "/v1/volumes/nothing/snapshots/s", "", 404),
        (host, "GET", "/", "", 404),
    ] {
        let (status, body) = http(address, &request(method, path, body.as_bytes()));
        assert_eq!(status, expected, "{method} {path}: {body}");
        let problem: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(problem["status"], expected);
        let detail = problem["detail"].as_str().unwrap();
        assert!(
            !detail.is_empty() && !detail.contains('\n') && detail.len() < 300,
            "{method} {path}: {detail:?}"
        );
    }
    let mut random = Random(4);
    for address in [server, host] {
        for octets in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET / HTTP/9.9\r\n\r\n", &bytes(&mut random, 5000)]
        {
            let mut stream = TcpStream::connect(address).unwrap();
            let _ = stream.write_all(octets).and_then(|()| stream.shutdown(Shutdown::Write));
            let _ = stream.read_to_end(&mut Vec::new());
        }
        let head = format!("GET / HTTP/1.1\r\nx: {}\r\n", "y".repeat(1 << 20));
        http(address, head.as_bytes());
        // A name that somebody else's DNS could lead here.
        let rebound = b"GET / HTTP/1.1\r\nhost: elsewhere.example\r\nconnection: close\r\n\r\n";
        assert_eq!(http(address, rebound).0, 421);
    }
    assert_eq!(ask(&cluster, &["snapshot", "create", "s"])["verdict"], "consistent");
    assert_eq!(ask(&cluster, &["volume", "list"])[0]["volumes"].as_array().unwrap().len(), 1);
    stop_all(cluster);
}
