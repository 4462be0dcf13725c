//! What people get wrong: each gives one clear sentence and a bad exit, and changes nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;

use harness::tools::{ask, command, finish, one_host, refusal, refusal_of, skew, stop_all};
use harness::{coeval, eventually};

fn assert_says(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "{sentence:?} should say {part:?}");
    }
}

/// A host that would start if nothing were wrong, and leave no trace outside `directory`.
fn host_flags(directory: &Path) -> Vec<String> {
    let volumes = directory.join("volumes");
    let flags = ["host", "--listen", "127.0.0.1:0", "--time", "127.0.0.1:0", "--nbd", "tcp://127.0.0.1:0"];
    let mut flags: Vec<String> = flags.map(str::to_owned).to_vec();
    flags.extend(["--volumes".to_owned(), volumes.display().to_string()]);
    flags
}

/// The same with another value for one flag.
fn host_with(directory: &Path, flag: &str, value: &str) -> Vec<String> {
    let mut flags = host_flags(directory);
    let at = flags.iter().position(|known| known == flag).unwrap();
    flags[at + 1] = value.to_owned();
    flags
}

#[test]
fn a_wrong_configuration_is_refused_at_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("c.toml");
    let path = file.display().to_string();
    for (role, text, parts) in [
        ("server", "lisen = \"127.0.0.1:0\"", &["c.toml:1", "`lisen`", "did you mean `listen`"][..]),
        ("server", "[time]\nwindo = 512", &["c.toml:2", "`windo`", "did you mean `window`"]),
        ("server", "[[hosts]]\nname = \"a\"", &["c.toml:1", "`hosts`", "did you mean `host`"]),
        ("host", "\nvolume = \"/x\"", &["c.toml:2", "`volume`", "did you mean `volumes`"]),
        ("server", "[cut\nlead = 1", &["c.toml:1"]),
        ("server", "\nlisten = [", &["c.toml:"]),
        ("host", "name = \"a\" \"b\"", &["c.toml:1"]),
        ("server", "[cut]\nlead = \"50 parsecs\"", &["c.toml:2", "50 parsecs", "ms"]),
        ("host", "max_stretch = \"1h\"", &["c.toml:1", "`1h`", "min"]),
        ("host", "max_stretch = \"11s\"", &["max_stretch", "is not between"]),
        ("host", "nbd = [\"ftp://x\"]", &["c.toml:1", "ftp://x", "tcp://"]),
        ("server", "[time]\nwindow = 3", &["window"]),
        ("server", "listen = \"0.0.0.0:0\"", &["0.0.0.0:0", "[tls]", "insecure = true"]),
        ("host", "listen = \"[::]:0\"", &["[::]:0", "[tls]", "insecure = true"]),
        ("server", "[[host]]\nname = \"a\"\ntime = \"127.0.0.1:1\"", &["host a", "control", "agentless"]),
    ] {
        std::fs::write(&file, text).unwrap();
        // As a check, and when it is meant to run.
        let checked = refusal([role, "--check", "--config", &path]);
        assert_says(&checked, parts);
        assert_eq!(refusal([role, "--config", &path]), checked);
    }
    let missing = directory.path().join("missing.toml").display().to_string();
    assert_says(&refusal(["server", "--config", &missing]), &["missing.toml", "No such file"]);
    assert_says(&refusal(["host", "--listen", "0.0.0.0:0"]), &["0.0.0.0:0", "insecure"]);
    assert_says(&refusal(["host", "--max-stretch", "50"]), &["`50`", "ms"]);
    std::fs::write(&file, "insecure = true\nlisten = \"0.0.0.0:0\"").unwrap();
    assert!(finish(Command::new(coeval()).args(["server", "--check", "--config", &path])).status.success());
}

#[test]
fn a_clock_is_not_simulated_by_a_slip() {
    for spec in ["nonsense", "offset", "offset=", "offset=5", "offset=1ms,drift=fast", "offset=99999999s"] {
        let sentence = refusal(["host", "--check", "--simulate-clock", spec]);
        assert!(sentence.len() < 200, "{sentence}");
    }
}

#[test]
fn what_is_in_use_is_named() {
    let cluster = one_host(&[]);
    let living = &cluster.hosts[0];
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp, udp) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    let (tcp_port, udp_port) = (tcp.port().to_string(), udp.port().to_string());
    let unix = format!("unix://{}", living.nbd_socket.display());

    let state = directory.join("server").display().to_string();
    let server = ["server", "--listen", &tcp.to_string(), "--time-port", "0", "--state", &state];
    assert_says(&refusal(server), &["port", &tcp_port, "in use"]);
    // Another server has this one's address.
    let api = cluster.api.trim_start_matches("http://");
    let second = ["server", "--listen", api, "--time-port", "0", "--state", &state];
    assert_says(&refusal(second), &["port", "in use"]);
    let config = directory.join("server.toml");
    let agentless = "[[host]]\nname = \"clock\"\ntime = \"127.0.0.1:9\"\nagentless = true\n";
    std::fs::write(&config, agentless).unwrap();
    let server = ["server", "--listen", "127.0.0.1:0", "--time-port", &udp_port, "--state", &state];
    let server = [&server[..], &["--config", config.to_str().unwrap()]].concat();
    assert_says(&refusal(server), &[&udp_port, "in use"]);

    let tcp = tcp.to_string();
    assert_says(&refusal(host_with(directory, "--listen", &tcp)), &["port", &tcp_port, "in use"]);
    let nbd = format!("tcp://{tcp}");
    assert_says(&refusal(host_with(directory, "--nbd", &nbd)), &[&nbd, "in use"]);
    assert_says(&refusal(host_with(directory, "--nbd", &unix)), &[&unix, "in use"]);
    assert_says(&refusal(host_with(directory, "--time", &udp.to_string())), &[&udp_port, "in use"]);
    let file = directory.join("file");
    std::fs::write(&file, "precious").unwrap();
    let not_a_socket = format!("unix://{}", file.display());
    assert_says(&refusal(host_with(directory, "--nbd", &not_a_socket)), &["not a socket"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");

    // The volume directory of a living host.
    let volumes = living.nbd_socket.with_file_name("a").display().to_string();
    assert_says(&refusal(host_with(directory, "--volumes", &volumes)), &["another host daemon", &volumes]);
    assert!(living.nbd_socket.exists(), "the living host lost nothing");
    ask(&cluster, &["volume", "create", "a/data", "1MiB"]);
    stop_all(cluster);
}

#[test]
fn a_server_that_cannot_be_reached_is_named() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let url = format!("http://{address}");
    for command in [
        &["skew"][..],
        &["volume", "list"],
        &["volume", "create", "a/b", "1MiB"],
        &["snapshot", "create"],
        &["snapshot", "list"],
        &["snapshot", "show", "s"],
        &["snapshot", "verify", "s"],
        &["snapshot", "delete", "s"],
    ] {
        let arguments = [command, &["--server", &url]].concat();
        assert_says(&refusal(arguments), &["the server does not answer", &url]);
    }
    assert_says(&refusal(["skew", "--server", "banana"]), &["banana", "https://host:port"]);
    assert_says(&refusal(["skew", "--server", "http://10.0.0.1:1"]), &["10.0.0.1", "insecure"]);
    assert_says(&refusal(["skew", "--server", "ftp://127.0.0.1"]), &["scheme"]);
}

#[test]
fn unknown_names_and_impossible_values_are_refused() {
    let cluster = one_host(&[]);
    ask(&cluster, &["volume", "create", "a/data", "1MiB"]);
    let before = ask(&cluster, &["volume", "list"]);
    let long = format!("a/{}", "x".repeat(65));
    for (arguments, parts) in [
        (&["volume", "create", "nobody/data", "1MiB"][..], &["nobody"][..]),
        (&["volume", "create", "a/data", "1MiB"], &["data", "already"]),
        (&["volume", "create", "a/odd", "1000"], &["1000", "4096"]),
        (&["volume", "create", "a/none", "0"], &["4096"]),
        (&["volume", "create", "a/huge", "9000000TiB"], &["9000000TiB", "not a size"]),
        (&["volume", "create", "a/huge", "8000TiB"], &["huge"]),
        (&["volume", "create", "a/x", "much"], &["`much`", "GiB"]),
        (&["volume", "create", "data", "1MiB"], &["`data`", "HOST/VOLUME"]),
        (&["volume", "create", "a/../evil", "1MiB"], &["../evil", "letters"]),
        (&["volume", "create", "a/data@s", "1MiB"], &["data@s", "letters"]),
        (&["volume", "create", "a/.hidden", "1MiB"], &[".hidden", "letters"]),
        (&["volume", "create", &long, "1MiB"], &["at most 64"]),
        (&["snapshot", "create", "--volume", "nobody/data"], &["nobody"]),
        (&["snapshot", "create", "--volume", "a/nothing"], &["a", "no volume nothing"]),
        (&["snapshot", "create", "--volume", "data"], &["`data`", "HOST/VOLUME"]),
        (&["snapshot", "create", "no/slash"], &["no/slash"]),
        (&["snapshot", "create", "--lead", "1us"], &["lead"]),
        (&["snapshot", "create", "--statistical", "1.5"], &["1.5", "between 0 and 1"]),
        (&["snapshot", "show", "never"], &["never"]),
        (&["snapshot", "verify", "never"], &["never"]),
        (&["snapshot", "delete", "never"], &["never"]),
        (&["snapshot", "show", "../../etc"], &["../../etc"]),
    ] {
        let sentence = refusal_of(command(&cluster).args(arguments));
        assert_says(&sentence, parts);
    }
    assert_eq!(ask(&cluster, &["volume", "list"]), before, "nothing was made or changed");
    let taken = ask(&cluster, &["snapshot", "create", "s"]);
    assert_eq!(taken["verdict"], "consistent");
    assert_says(&refusal_of(command(&cluster).args(["snapshot", "create", "s"])), &["s", "another name"]);
    stop_all(cluster);
}

#[test]
fn a_simulated_clock_is_never_certified_by_a_server_that_was_not_told() {
    let cluster = one_host(&["--simulate-clock=offset=37ms,drift=20ppm"]);
    ask(&cluster, &["volume", "create", "a/data", "1MiB"]);
    eventually(|| {
        (skew(&mut command(&cluster))["hosts"][0]["state"] == "simulated")
            .then_some(())
            .ok_or("not so yet: the server sees through it")
    });
    assert!(skew(&mut command(&cluster))["hosts"][0]["offset_ns"].is_null());
    let sentence = refusal_of(command(&cluster).args(["snapshot", "create", "--mode", "timed"]));
    assert_says(&sentence, &["host a", "simulat"]);
    let listed = ask(&cluster, &["volume", "list"]);
    assert_eq!(listed[0]["volumes"][0]["snapshots"].as_array().unwrap().len(), 0);
    stop_all(cluster);
}
