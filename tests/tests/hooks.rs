//! Hooks around snapshots, with real daemons: in order, refused, cut short by kill -9; and told of.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use coeval_cli::cluster::{Cluster, Place};
use harness::tools::{ask, command, free_port, refusal_of, skew};
use harness::{coeval, eventually};
use serde_json::Value;
use tempfile::TempDir;

/// A server and a host `a` whose hooks write a line each to one file.
struct Rig {
    directory: TempDir,
    cluster: Cluster,
}

/// A command line, in TOML, that appends a line to the log and then does as the script says.
fn hook(log: &Path, line: &str, script: &str) -> String {
    let script = format!("echo {line} $COEVAL_SNAPSHOT >> {}; {script}", log.display());
    format!("[\"/bin/sh\", \"-c\", {script:?}]")
}

impl Rig {
    fn start(before: &str, more: &str) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let at = |flag| format!("{flag}=127.0.0.1:{}", free_port());
        let host = Place {
            config: format!(
                "[hooks]\nbefore = {}\nafter = {}\n{more}",
                hook(&log, "before", before),
                hook(&log, "after", "true")
            ),
            // Where it is found again after a restart.
            ..Place::loopback(&[&at("--listen"), &at("--time")])
        };
        let server = Place {
            config: format!(
                "[[hook]]\nname = \"always\"\nvolumes = [\"a/data\"]\nbefore = {}\nafter = {}\n\
                 [[hook]]\nname = \"named\"\nbefore = {}\n",
                hook(&log, "server-before", "true"),
                hook(&log, "server-after", "true"),
                hook(&log, "named", "true")
            ),
            ..Place::loopback(&[])
        };
        let cluster = Cluster::start(coeval(), &[("a", host)], &server, |_, address| Ok(address)).unwrap();
        let rig = Rig { directory, cluster };
        ask(&rig.cluster, &["volume", "create", "a/data", "1MiB"]);
        eventually(|| match skew(&mut command(&rig.cluster))["hosts"][0]["hard_ns"].is_i64() {
            true => Ok(()),
            false => Err("the clock is not bounded yet"),
        });
        rig
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn wait_for(&self, line: &str) {
        eventually(|| match self.log().iter().any(|logged| logged == line) {
            true => Ok(()),
            false => Err(format!("{:?} has no line {line:?}", self.log())),
        });
    }

    /// What the snapshot's story says of a step, each entry as host and detail.
    fn story(&self, snapshot: &str, step: &str) -> Vec<(Option<String>, String)> {
        let shown = ask(&self.cluster, &["snapshot", "show", snapshot]);
        let entries = shown["story"].as_array().unwrap().iter().filter(|entry| entry["step"] == step);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        entries.map(|entry| (text(&entry["host"]), text(&entry["detail"]).unwrap())).collect()
    }

    /// Starts to take a snapshot, in the background.
    fn take(&self, arguments: &[&str]) -> Child {
        let mut command = command(&self.cluster);
        command.args(["snapshot", "create"]).args(arguments);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    }

    /// Waits until so many entries of s1's story are of a step.
    fn wait_for_story(&self, step: &str, entries: usize) {
        eventually(|| match self.story("s1", step) {
            told if told.len() == entries => Ok(()),
            told => Err(format!("{told:?}")),
        });
    }

    fn notes(&self) -> PathBuf {
        // The host's volumes lie beside its socket.
        self.cluster.hosts[0].nbd_socket.with_file_name("a").join(".hooks")
    }

    fn assert_nothing_is_owed(&self) {
        eventually(|| match fs::read_dir(self.notes()).unwrap().count() {
            0 => Ok(()),
            count => Err(format!("{count} notes are left")),
        });
    }
}

#[test]
fn hooks_run_in_order_around_a_snapshot_and_are_told_of() {
    let rig = Rig::start("true", "");
    ask(&rig.cluster, &["snapshot", "create", "s1", "--mode", "barrier"]);
    assert_eq!(rig.log(), ["server-before s1", "before s1", "after s1", "server-after s1"]);
    ask(&rig.cluster, &["snapshot", "create", "s2", "--mode", "barrier", "--hook", "named"]);
    assert_eq!(rig.log()[4..], ["server-before s2", "named s2", "before s2", "after s2", "server-after s2"]);
    ask(&rig.cluster, &["snapshot", "create", "s3", "--mode", "barrier", "--dry-run"]);
    assert_eq!(rig.log().len(), 9, "a dry run disturbs no application");

    let before = rig.story("s1", "before");
    assert!(before[0].0.is_none() && before[0].1.starts_with("always: the hook ran, in "), "{before:?}");
    assert!(before[1].0.as_deref() == Some("a") && before[1].1.starts_with("the hook ran"), "{before:?}");
    let after = rig.story("s1", "after");
    assert!(after[0].0.as_deref() == Some("a") && after[0].1.starts_with("the hook ran"), "{after:?}");
    assert!(after[1].0.is_none() && after[1].1.starts_with("always: the hook ran, in "), "{after:?}");
    rig.assert_nothing_is_owed();

    let mut unknown = command(&rig.cluster);
    let refusal = refusal_of(unknown.args(["snapshot", "create", "s4", "--hook", "other"]));
    assert!(refusal.contains("no hook is called other"), "{refusal}");
}

#[test]
fn a_hook_that_fails_or_overruns_refuses_the_snapshot_and_is_made_up_for() {
    for (before, more, sentence) in [
        ("exit 7", "", "host a: the hook before the snapshot failed (/bin/sh: exit status: 7)"),
        (
            "sleep 600",
            // Enough to write its line first.
            "before_timeout = \"2s\"\n",
            "host a: the hook before the snapshot took longer than 2.00 s and was killed (/bin/sh)",
        ),
    ] {
        let rig = Rig::start(before, more);
        let mut create = command(&rig.cluster);
        let refusal = refusal_of(create.args(["snapshot", "create", "s1", "--mode", "barrier"]));
        assert!(refusal.contains(sentence), "{refusal}");
        assert_eq!(rig.log(), ["server-before s1", "before s1", "after s1", "server-after s1"]);
        let after = rig.story("s1", "after");
        assert!(after[0].1.starts_with("the hook before failed; the hook ran"), "{after:?}");
        let volumes = ask(&rig.cluster, &["volume", "list"]);
        assert!(volumes[0]["volumes"][0]["snapshots"].as_array().unwrap().is_empty(), "{volumes}");
        rig.assert_nothing_is_owed();
    }
}

#[test]
fn a_host_killed_after_its_hook_began_runs_the_other_one_when_it_starts_again() {
    // In the middle of the hook; and after it, while the attempt waits for T.
    for (before, ends) in [("exec sleep 600", false), ("true", true)] {
        let mut rig = Rig::start(before, "");
        let mut taking = rig.take(&["s1", "--mode", "timed", "--lead", "10s"]);
        rig.wait_for("before s1");
        if ends {
            rig.wait_for_story("before", 2);
        }
        harness::fleet::kill(&rig.cluster.hosts[0].daemon);
        rig.cluster.restart_host(0).unwrap();
        assert!(!taking.wait().unwrap().success(), "a host that died takes part in no snapshot");
        rig.wait_for("after s1");
        rig.wait_for_story("after", 2);
        let after = rig.story("s1", "after");
        let told = after.iter().find(|(host, _)| host.is_some()).unwrap();
        assert!(told.1.starts_with("the daemon restarted; the hook ran"), "{after:?}");
        assert_eq!(rig.log().len(), 4, "{:?}", rig.log());
        rig.assert_nothing_is_owed();
    }
}

#[test]
fn a_server_killed_between_the_hooks_tells_of_them_when_it_starts_again() {
    let mut rig = Rig::start("true", "");
    let mut taking = rig.take(&["s1", "--mode", "timed", "--lead", "10s"]);
    rig.wait_for("before s1");
    harness::fleet::kill(&rig.cluster.server);
    assert!(!taking.wait().unwrap().success());
    rig.cluster.restart_server().unwrap();
    rig.wait_for("after s1");
    rig.wait_for("server-after s1");
    rig.wait_for_story("after", 2);
    assert_eq!(rig.log().len(), 4, "{:?}", rig.log());
    rig.assert_nothing_is_owed();
}
