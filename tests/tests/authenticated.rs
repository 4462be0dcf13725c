//! Authenticated time exchanges, with the real binary: by session keys, which daemons with certificates agree on by
//! themselves, and by key files.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use coeval_cli::cluster::{Cluster, HostReady, Place, ServerReady};
use harness::tls::Authority;
use harness::tools::{finish, free_port, refusal, run, run_eventually, skew, start, stop, stop_all};
use harness::{coeval, eventually};
use snapshot::http::{Role, TlsFiles};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn probe(target: &str) -> Command {
    let mut command = Command::new(coeval());
    command.args(["probe", target, "--port", "0", "--count", "3", "--interval", "10ms"]);
    command
}

#[test]
fn daemons_with_certificates_authenticate_by_themselves_and_find_each_other_again() {
    let authority = Authority::new();
    let [control, time] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
    let flags = ["--listen", &control, "--time", &time];
    let host = Place { tls: Some(authority.issue(Role::Host, "host", HERE)), ..Place::loopback(&flags) };
    let server = Place { tls: Some(authority.issue(Role::Server, "server", HERE)), ..Place::loopback(&[]) };
    let mut cluster = Cluster::start(coeval(), &[("a", host)], &server, |_, address| Ok(address)).unwrap();
    let admin = authority.issue(Role::Operator, "admin", HERE);

    run(ask(&cluster, &admin).args(["volume", "create", "a/data", "16MiB"]));
    snapshot(&cluster, &admin, "first");
    // The host answers nobody else any more.
    let unanswered = finish(&mut probe(&time));
    assert_eq!(unanswered.status.code(), Some(1), "{}", String::from_utf8_lossy(&unanswered.stdout));

    let assert_handed_out = |log: &str| assert!(!log.contains("could be handed out"), "{log}");
    assert_handed_out(&cluster.server.log().unwrap());
    // It has lost its key, and the server hears nothing. While it is away, it cannot be given one.
    cluster.restart_host(0).unwrap();
    snapshot(&cluster, &admin, "host-anew");
    assert_eq!(finish(&mut probe(&time)).status.code(), Some(1));
    // The server has drawn another key, and the host knows the old one.
    let before = cluster.server.log().unwrap().len();
    cluster.restart_server().unwrap();
    snapshot(&cluster, &admin, "server-anew");
    assert_handed_out(&cluster.server.log().unwrap()[before..]);
    stop_all(cluster);
}

/// A command to the cluster's server with the administrator's certificate.
fn ask(cluster: &Cluster, TlsFiles { cert, key, ca }: &TlsFiles) -> Command {
    let mut command = Command::new(coeval());
    command.env("COEVAL_SERVER", &cluster.api);
    command.env("COEVAL_CERT", cert).env("COEVAL_KEY", key).env("COEVAL_CA", ca);
    command
}

/// By clocks, so that only exchanges that were believed can certify it.
fn snapshot(cluster: &Cluster, admin: &TlsFiles, name: &str) {
    run_eventually(ask(cluster, admin).args(["snapshot", "create", name, "--mode", "timed"]));
}

#[test]
fn a_key_file_does_without_certificates_and_only_the_same_key_will_do() {
    let directory = tempfile::tempdir().unwrap();
    let key = |name: &str, secret: &str| {
        let file = directory.path().join(name);
        std::fs::write(&file, format!("[security_association]\nspp 1\n1 SHA256-128 ASCII:{secret}\n"))
            .unwrap();
        file
    };
    let (ours, other) = (key("ours", "correct-horse-battery"), key("other", "battery-horse-correct"));
    let host_config = format!(
        "name = \"a\"\nlisten = \"127.0.0.1:0\"\ntime = \"127.0.0.1:0\"\nnbd = []\nvolumes = {:?}\ntime_key = {ours:?}\n",
        directory.path().join("volumes"),
    );
    let mut host = start(Command::new(coeval()), "host", directory.path(), &host_config);
    let ready: HostReady = host.ready().unwrap();

    let target = ready.time.to_string();
    for (file, answered) in [(None, 1), (Some(&other), 1), (Some(&ours), 0)] {
        let mut command = probe(&target);
        if let Some(file) = file {
            command.arg("--key").arg(file);
        }
        let output = finish(&mut command);
        assert_eq!(output.status.code(), Some(answered), "{}", String::from_utf8_lossy(&output.stdout));
    }

    for (file, state) in [(&other, "silent"), (&ours, "ok")] {
        let config = format!(
            "listen = \"127.0.0.1:0\"\nstate = {:?}\n[time]\nport = 0\n\
             [[host]]\nname = \"a\"\ntime = \"{target}\"\ncontrol = \"{}\"\ntime_key = {file:?}\n",
            directory.path().join("server"),
            ready.control,
        );
        let mut server = start(Command::new(coeval()), "server", directory.path(), &config);
        let ServerReady { api } = server.ready().unwrap();
        eventually(|| {
            let report = skew(Command::new(coeval()).env("COEVAL_SERVER", &api));
            let row = &report["hosts"][0];
            // A few exchanges, so that silence is an answer.
            let tried = row["lost"].as_u64() >= Some(4) || row["exchanges"].as_u64() >= Some(8);
            if row["state"] == state && tried { Ok(()) } else { Err(row.to_string()) }
        });
        stop(&mut server);
    }

    std::fs::write(&ours, "spp 1\n1 AES128 ASCII:0123456789abcdef\n").unwrap();
    let file = directory.path().join("host.toml");
    let sentence = refusal(["host", "--check", "--config", file.to_str().unwrap()]);
    assert!(sentence.contains("line 2: only keys of the type SHA256-128"), "{sentence}");
    stop(&mut host);
}
