//! What an operator does beside taking snapshots, with the real binary: groups, follow-ups, doctor, a catalogue that was lost.

#![expect(clippy::unwrap_used, reason = "a panic is how a test's helpers fail")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use coeval_cli::cluster::{Cluster, HostReady, Place, ServerReady};
use coeval_cli::daemon::Daemon;
use harness::tools::{finish, run, stop_all};
use harness::{coeval, eventually};
use serde_json::Value;
use tempfile::TempDir;

/// A server and two hosts on loopback, with configuration files of their own.
struct Small {
    directory: TempDir,
    server: Option<Daemon>,
    api: String,
    hosts: Vec<Daemon>,
}

impl Small {
    fn new(server_config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut config = format!(
            "listen = \"127.0.0.1:0\"\nstate = {:?}\n[time]\nport = 0\n{server_config}\n",
            at("server")
        );
        let hosts = ["a", "b"].map(|name| {
            let text = format!(
                "name = {name:?}\nlisten = \"127.0.0.1:0\"\ntime = \"127.0.0.1:0\"\nnbd = [\"unix://{}\"]\nvolumes = {:?}\n",
                at(&format!("{name}.sock")).display(),
                at(name)
            );
            let daemon = start(directory.path(), "host", name, &text);
            let ready: HostReady = daemon.ready().unwrap();
            config += &format!(
                "[[host]]\nname = {name:?}\ntime = \"{}\"\ncontrol = {:?}\nlabels = {{ name = {name:?} }}\n",
                ready.time, ready.control
            );
            daemon
        });
        std::fs::write(at("server.toml"), config).unwrap();
        let mut small =
            Small { directory, server: None, api: String::new(), hosts: hosts.into_iter().collect() };
        small.start_server();
        small
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn start_server(&mut self) {
        let text = std::fs::read_to_string(self.at("server.toml")).unwrap();
        let server = start(self.directory.path(), "server", "server", &text);
        self.api = server.ready::<ServerReady>().unwrap().api;
        self.server = Some(server);
        eventually(|| {
            let skew = finish(&mut self.command(&["skew"]));
            if skew.status.success() { Ok(()) } else { Err("a host has no bound yet") }
        });
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(coeval());
        command.args(arguments).env("COEVAL_SERVER", &self.api);
        command
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&run(self.command(arguments).arg("--json"))).unwrap()
    }

    /// Until its digests are there, and the hosts have them.
    fn wait_for_digests(&self, snapshot: &str) {
        eventually(|| {
            let shown = self.json(&["snapshot", "show", snapshot]);
            let hosts = shown["manifest"]["hosts"].as_array().unwrap().clone();
            let all = hosts.iter().all(|host| host["volumes"][0]["digest"].is_string());
            let handed = ["a", "b"].iter().all(|host| {
                let mut kept = std::fs::read_dir(self.at(host).join(".records")).unwrap();
                kept.any(|record| {
                    let text = std::fs::read_to_string(record.unwrap().path()).unwrap_or_default();
                    text.contains(&format!("\"name\":\"{snapshot}\"")) && text.contains("\"complete\":true")
                })
            });
            if all && handed { Ok(()) } else { Err("no digest yet") }
        });
    }
}

fn start(directory: &Path, kind: &str, name: &str, config: &str) -> Daemon {
    let file = directory.join(format!("{name}.toml"));
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(coeval());
    command.args([kind, "--with-parent", "--config"]).arg(file);
    Daemon::start(command, &directory.join(format!("{name}.log"))).unwrap()
}

#[test]
fn a_lost_catalogue_is_made_again_from_what_the_hosts_keep() {
    let mut small = Small::new("");
    for volume in ["a/data", "b/data", "b/log"] {
        run(&mut small.command(&["volume", "create", volume, "1MiB"]));
    }
    run(&mut small.command(&["snapshot", "create", "all", "--attempts", "10"]));
    run(&mut small.command(&[
        "snapshot", "create", "one", "--mode", "barrier", "--volume", "a/data", "--volume", "b/data",
    ]));
    run(&mut small.command(&["snapshot", "create", "gone", "--attempts", "10"]));
    run(&mut small.command(&["snapshot", "delete", "gone"]));
    small.wait_for_digests("all");
    small.wait_for_digests("one");
    let all = |small: &Small| {
        let mut list = small.json(&["snapshot", "list"]);
        let mut shown = Vec::new();
        for name in ["all", "one"] {
            let mut details = small.json(&["snapshot", "show", name]);
            // What happened in the attempts is not kept by hosts.
            details.as_object_mut().unwrap().remove("story");
            let verified = small.json(&["snapshot", "verify", name]);
            assert!(verified["verdict"] == "consistent" && verified["intact"] == true, "{verified}");
            shown.push((details, verified));
        }
        (list.take(), shown)
    };
    let before = all(&small);
    assert_eq!(before.0.as_array().unwrap().len(), 2);

    // One of which a host has lost its part, as after half a deletion.
    run(&mut small.command(&["snapshot", "create", "half", "--attempts", "10"]));
    small.wait_for_digests("half");
    drop(small.server.take());
    for file in std::fs::read_dir(small.at("server")).unwrap() {
        let file = file.unwrap().path();
        if file.file_name().unwrap().to_str().unwrap().starts_with("catalogue") {
            std::fs::remove_file(file).unwrap();
        }
    }
    let config = small.at("server.toml");
    let half = std::fs::read_dir(small.at("b").join(".records"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|file| std::fs::read_to_string(file).unwrap().contains("\"name\":\"half\""))
        .unwrap();
    std::fs::remove_file(half).unwrap();

    let mut rebuild = Command::new(coeval());
    rebuild.arg("server").arg("--config").arg(&config).arg("--rebuild-catalogue");
    let said = run(&mut rebuild);
    assert!(said.contains("2 snapshots stand again"), "{said}");
    assert!(said.contains("DOUBTFUL half: host b keeps no record of it"), "{said}");
    let again = finish(&mut rebuild);
    assert!(!again.status.success(), "what is there is not written over");
    small.start_server();
    // It is shown for what it is, and goes as any other.
    assert_eq!(small.json(&["snapshot", "show", "half"])["state"], "deleting");
    run(&mut small.command(&["snapshot", "delete", "half"]));
    assert_eq!(all(&small), before);
    run(&mut small.command(&["snapshot", "create", "next", "--attempts", "10"]));
    for host in ["a", "b"] {
        let kept = std::fs::read_dir(small.at(host).join(".records")).unwrap();
        let kept = kept.filter(|file| file.as_ref().unwrap().path().extension().is_some()).count();
        assert_eq!(kept, 3, "{host} keeps records of what stands, and of nothing else");
    }
}

#[test]
fn groups_follow_ups_and_schedules_from_the_command_line() {
    let marker = tempfile::NamedTempFile::new().unwrap();
    let follow_up = format!(
        "[[follow_up]]\ngroup = \"shop\"\ncommand = [\"/bin/sh\", \"-c\", \"echo $COEVAL_SNAPSHOT $COEVAL_VOLUMES >> {}\"]\ndeadline = \"1h\"",
        marker.path().display()
    );
    let mut small = Small::new(&follow_up);
    run(&mut small.command(&["volume", "create", "a/data", "1MiB", "--label", "app=shop"]));
    run(&mut small.command(&["volume", "create", "b/data", "1MiB"]));
    run(&mut small.command(&["volume", "create", "b/log", "1MiB"]));
    let labels = run(&mut small.command(&["volume", "label", "b/data", "app=shop", "tier=db"]));
    assert_eq!(labels.trim(), "b/data: app=shop,tier=db");
    run(&mut small.command(&["group", "create", "shop", "--selector", "app=shop"]));
    run(&mut small.command(&["group", "create", "logs", "--volume", "b/log"]));
    let shown = small.json(&["group", "show", "shop"]);
    assert_eq!(shown["members"].as_array().unwrap().len(), 2, "{shown}");
    let dry = small.json(&["snapshot", "create", "--dry-run", "--group", "logs"]);
    assert_eq!(dry["group"], serde_json::json!([{ "host": "b", "volume": "log" }]));
    let manifest = small.json(&["snapshot", "create", "s1", "--group", "shop", "--attempts", "10"]);
    assert_eq!(manifest["group"].as_array().unwrap().len(), 2);
    eventually(|| {
        let story = small.json(&["snapshot", "show", "s1"])["story"].clone();
        let told = story.as_array().unwrap().iter().any(|entry| {
            entry["step"] == "follow_up" && entry["detail"].as_str().unwrap().ends_with("it did its work")
        });
        if told { Ok(()) } else { Err("the follow-up is not done") }
    });
    assert_eq!(std::fs::read_to_string(marker.path()).unwrap(), "s1 a/data b/data\n");

    run(&mut small.command(&["schedule", "create", "yearly", "--cron", "0 0 1 1 *", "--group", "shop"]));
    assert_eq!(small.json(&["schedule", "list"])[0]["state"], "good");
    // Its host goes away.
    drop(small.hosts.pop());
    let list = finish(small.command(&["schedule", "list", "--json"]).env("RUST_LOG", "off"));
    assert!(!list.status.success(), "for whoever watches over it from a script");
    let list: Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!((&list[0]["state"], &list[0]["missing"][0]["host"]), (&"degraded".into(), &"b".into()));
    let refused = finish(&mut small.command(&["snapshot", "create", "s2", "--group", "shop"]));
    let sentence = String::from_utf8_lossy(&refused.stderr);
    assert!(sentence.contains("group shop is not whole"), "{sentence}");
    assert!(!finish(&mut small.command(&["group", "show", "shop"])).status.success());
    let kept = finish(&mut small.command(&["group", "delete", "shop"]));
    assert!(String::from_utf8_lossy(&kept.stderr).contains("schedule yearly takes group shop"));
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    let mut small = Small::new("");
    let findings = |output: std::process::Output| -> (bool, Vec<(String, String, String)>) {
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let all = report["findings"].as_array().unwrap().iter();
        let all = all.map(|one| (text(&one["about"]), text(&one["level"]), text(&one["what"])));
        (output.status.success(), all.collect())
    };
    run(&mut small.command(&["volume", "create", "a/data", "1MiB"]));
    let (good, fleet) = findings(finish(&mut small.command(&["doctor", "--fleet", "--json"])));
    assert!(
        good && fleet.iter().any(|(about, _, what)| about == "snapshot" && what.contains("a snapshot of")),
        "{fleet:?}"
    );
    let server = small.at("server.toml");
    let here = |small: &Small| {
        let mut command = small.command(&["doctor", "--json", "--server-config"]);
        findings(finish(command.arg(&server)))
    };
    let (_, all) = here(&small);
    assert!(
        all.iter()
            .any(|(about, level, what)| about == "clock" && level != "fail" && what.contains("clock source")),
        "{all:?}"
    );
    assert!(all.iter().any(|(about, level, _)| about == "reach" && level == "ok"), "{all:?}");

    drop(small.server.take());
    drop(small.hosts.pop());
    let (good, all) = here(&small);
    assert!(!good);
    let reach = |host: &str, level: &str, words: &str| {
        let begin = format!("host {host}: ");
        let found = all.iter().any(|(about, found, what)| {
            about == "reach" && found == level && what.starts_with(&begin) && what.contains(words)
        });
        assert!(found, "{host} {level} {words}: {all:?}");
    };
    reach("a", "ok", "time exchanges");
    reach("b", "fail", "nothing listens at its control address");
    reach("b", "fail", "nothing listens at 127.0.0.1:");
    let (good, fleet) = findings(finish(&mut small.command(&["doctor", "--fleet", "--json"])));
    assert!(!good && fleet[0].0 == "server", "{fleet:?}");
    let broken = small.at("broken.toml");
    std::fs::write(&broken, "lisen = 1\n").unwrap();
    let mut command = small.command(&["doctor", "--json", "--host-config"]);
    let (good, all) = findings(finish(command.arg(&broken)));
    assert!(
        !good
            && all.iter().any(|(about, _, what)| about == "config" && what.contains("did you mean `listen`"))
    );
}

#[test]
fn completions_are_for_this_program() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(Command::new(coeval()).args(["completions", shell]));
        assert!(script.contains("coeval") && script.contains("doctor"), "{shell}");
    }
}

#[test]
fn what_a_daemon_starts_has_none_of_its_capabilities_and_its_socket_is_its_groups() {
    const NONE: &str = "CapAmb:\t0000000000000000";
    // As a unit with AmbientCapabilities= does it: what is started inherits those.
    let launcher = ["setpriv", "--inh-caps=+net_admin", "--ambient-caps=+net_admin", "--"];
    let given = run(Command::new(launcher[0]).args(&launcher[1..]).args(["cat", "/proc/self/status"]));
    assert!(given.contains("CapAmb:") && !given.contains(NONE), "{given}");
    let place = Place { launcher: launcher.map(ToOwned::to_owned).into(), ..Place::loopback(&[]) };
    let cluster =
        Cluster::start(coeval(), &[("a", place)], &Place::loopback(&[]), |_, address| Ok(address)).unwrap();
    let host = &cluster.hosts[0];
    let kept = std::fs::read_to_string(format!("/proc/{}/status", host.daemon.id())).unwrap();
    assert!(kept.contains(NONE), "{kept}");
    assert_eq!(std::fs::metadata(&host.nbd_socket).unwrap().permissions().mode() & 0o777, 0o660);
    stop_all(cluster);
}
