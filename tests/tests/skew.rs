//! What people see of the bound: `coeval skew` as a table, live, as a picture, over time, recorded and replayed.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use coeval_cli::cluster::Cluster;
use harness::tools::{DEADLINE, command, finish, refusal_of, run, skew, stop_all, two_hosts};
use harness::{coeval, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A `coeval skew` that needs no server, and would find none.
fn serverless() -> Command {
    let mut command = Command::new(coeval());
    command.args(["skew", "--server", "http://127.0.0.1:1"]);
    command
}

#[test]
fn the_table_fits_and_says_who_is_missing_and_why() {
    let mut cluster = two_hosts(&[]);
    let table = run(command(&cluster).arg("skew"));
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
    let line = |host: &str| table.lines().find(|line| line.starts_with(host)).unwrap().to_owned();
    // A busy machine makes the bounds wide, and the table shows as many digits as they leave.
    let report = skew(&mut command(&cluster));
    assert_covers(&report["hosts"][0], 35_000_000);
    assert_covers(&report["pairs"][0], 37_000_000);
    assert!(line("a ").contains(" +3") && line("a - b").contains(" +3"), "{table}");
    assert!(line("a ").contains("= hard") && line("a ").ends_with("ok"), "{table}");
    assert!(line("No two").ends_with("apart (a - b)."), "{table}");
    assert!(!table.contains("confidence of 1"), "{table}");
    let one = run(command(&cluster).args(["skew", "--host", "b"]));
    assert!(!one.contains("\na "), "{one}");
    let sentence = refusal_of(command(&cluster).args(["skew", "--host", "c"]));
    assert!(sentence.contains("no host is called c; there are a, b"), "{sentence}");

    harness::fleet::kill(&cluster.hosts[1].daemon);
    cluster.hosts[1].daemon.wait().unwrap();
    let output = eventually(|| {
        let output = finish(command(&cluster).arg("skew"));
        (output.status.code() == Some(1)).then_some(output).ok_or("not so yet: b is missed")
    });
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("Without a bound:\n  b has not answered at 127.0.0.1:"), "{table}");
    assert!(run(command(&cluster).args(["skew", "--host", "a"])).contains("ok"), "only b is missed");
    cluster.hosts.truncate(1);
    stop_all(cluster);
}

#[test]
fn a_recording_replays_without_a_server_and_a_changed_one_is_refused_with_its_line() {
    let cluster = two_hosts(&[]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("clocks.jsonl");
    let record = || {
        let mut skew = command(&cluster);
        skew.args(["skew", "--record"]).arg(&file);
        skew
    };
    let said = run(record().args(["--for", "3s"]));
    assert!(said.contains("clocks.jsonl: ") && said.contains(" bounds"), "{said}");
    let unknown = refusal_of(record().args(["--host", "c"]));
    assert!(unknown.contains("no host is called c"), "{unknown}");

    // That one emptied the file; this one is ended early, and ends well.
    let mut recording = record().args(["--for", "1h"]).stdout(Stdio::piped()).spawn().unwrap();
    eventually(|| {
        let length = std::fs::metadata(&file).map_or(0, |file| file.len());
        (length > 20_000).then_some(()).ok_or("not so yet: something is recorded")
    });
    kill(Pid::from_raw(recording.id().cast_signed()), Signal::SIGINT).unwrap();
    assert!(recording.wait().unwrap().success());

    let replayed = run(serverless().arg("--replay").arg(&file));
    assert!(replayed.contains("bounds came out as recorded, to the last bit"), "{replayed}");
    assert!(replayed.lines().any(|line| line.starts_with("a - b")), "{replayed}");
    let image = directory.path().join("replayed.svg");
    let json = run(serverless().args(["--json", "--replay"]).arg(&file).arg("--plot").arg(&image));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert!(
        json["replayed"]["bounds"].as_u64().unwrap() >= 2 && json["hosts"].as_array().unwrap().len() == 2
    );
    assert_covers(&json["pairs"][0], 37_000_000);
    assert_picture(&image, &["a: offset", "b: offset", "round trips"]);

    let text = std::fs::read_to_string(&file).unwrap();
    let number = text.lines().position(|line| line.contains("\"bound\":")).unwrap();
    let changed: Vec<String> =
        text.lines()
            .enumerate()
            .map(|(at, line)| {
                if at == number { line.replacen("\"hard_ns\":", "\"hard_ns\":1", 1) } else { line.to_owned() }
            })
            .collect();
    std::fs::write(&file, changed.join("\n")).unwrap();
    let sentence = refusal_of(serverless().arg("--replay").arg(&file));
    assert!(sentence.contains(&format!("clocks.jsonl:{}: its checksum is wrong", number + 1)), "{sentence}");
    std::fs::write(&file, text.lines().next().unwrap()).unwrap();
    let sentence = refusal_of(serverless().arg("--replay").arg(&file));
    assert!(sentence.contains("clocks.jsonl:2: the recording is cut off"), "{sentence}");
    let sentence = refusal_of(serverless().args(["--replay", "/no/such/file"]));
    assert!(sentence.contains("/no/such/file"), "{sentence}");
    stop_all(cluster);
}

#[test]
fn the_server_remembers_and_the_picture_shows_it() {
    let cluster = two_hosts(&[]);
    let history = || -> Vec<Value> {
        serde_json::from_str(&run(command(&cluster).args(["skew", "--history", "10min", "--json"]))).unwrap()
    };
    // A point every ten seconds.
    let tracks = eventually(|| {
        let tracks = history();
        let all = tracks.iter().all(|track| !track["points"].as_array().unwrap().is_empty());
        all.then_some(tracks).ok_or("not so yet: there is a point of both")
    });
    let point = &tracks[0]["points"][0];
    assert_eq!((&tracks[0]["host"], &tracks[1]["host"]), (&"a".into(), &"b".into()));
    assert!((point["offset_ns"].as_i64().unwrap() - 35_000_000).abs() < 5_000_000, "{point}");
    assert!(point["rtt_min_ns"].as_u64().unwrap() <= point["rtt_max_ns"].as_u64().unwrap(), "{point}");
    assert!(point["exchanges"].as_u64().unwrap() > 0, "{point}");
    assert!(!tracks[0]["round_trips"].as_array().unwrap().is_empty());
    let text = run(command(&cluster).args(["skew", "--history", "10min"]));
    assert!(text.contains("The last 10 min") && text.contains("hard ± p50"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");

    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("clocks.svg");
    let said = run(command(&cluster).args(["skew", "--plot"]).arg(&image));
    assert!(said.contains("clocks.svg: 2 hosts"), "{said}");
    assert_picture(&image, &["a: offset", "b: offset", "hard bound", "statistical bound", "round trips"]);
    let sentence = refusal_of(command(&cluster).args(["skew", "--plot", "/no/such/directory/x.svg"]));
    assert!(sentence.contains("cannot write /no/such/directory/x.svg"), "{sentence}");
    stop_all(cluster);
}

/// A row's offset is as far from the truth as its hard bound says, at most.
fn assert_covers(row: &Value, truth_ns: i64) {
    let (offset, hard) = (row["offset_ns"].as_i64().unwrap(), row["hard_ns"].as_i64().unwrap());
    assert!((offset - truth_ns).abs() <= hard, "{truth_ns}: {row}");
}

fn assert_picture(file: &Path, texts: &[&str]) {
    let image = std::fs::read_to_string(file).unwrap();
    assert!(image.starts_with("<svg ") && image.trim_end().ends_with("</svg>"));
    for text in texts {
        assert!(image.contains(text), "no {text:?} in {}", file.display());
    }
}

/// A shell in a terminal of its own.
struct Terminal {
    child: Child,
    keys: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn run(cluster: &Cluster, line: &str) -> Terminal {
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", line, "/dev/null"]);
        script.env("COEVAL_SERVER", &cluster.api).env("TERM", "xterm");
        let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (keys, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Terminal { child, keys, output, seen: String::new() }
    }

    /// Waits for a text without spaces: of those, only the ones that change anything are written.
    fn wait_for(&mut self, text: &str) {
        // The screen is drawn every second.
        for _ in 0..DEADLINE.as_secs() * 10 {
            if self.seen.contains(text) {
                return;
            }
            let Ok(bytes) = self.output.recv_timeout(DEADLINE) else { break };
            self.seen += &String::from_utf8_lossy(&bytes);
        }
        panic!("never came {text:?}: {:?}", self.seen);
    }

    /// Waits for the end, after which the terminal must be as it was: off the other screen, with a cursor, and in the mode
    /// that the shell left it in.
    fn assert_restored(mut self) {
        self.wait_for("restored-terminal");
        let last = |text: &str| self.seen.rfind(text);
        assert!(last("\u{1b}[?1049l") > last("\u{1b}[?1049h"), "{:?}", self.seen);
        assert!(last("\u{1b}[?25h") > last("\u{1b}[?25l"), "{:?}", self.seen);
        self.child.wait().unwrap();
    }
}

#[test]
fn watching_shows_the_hosts_and_leaves_the_terminal_as_it_was() {
    let cluster = two_hosts(&[]);
    let watch = |end: &str| {
        let line = format!(
            "stty rows 30 cols 100; before=$(stty -g); (echo pid=$BASHPID.; exec {} skew --watch); {end}; \
             test \"$(stty -g)\" = \"$before\" && echo restored-terminal",
            coeval().display()
        );
        Terminal::run(&cluster, &format!("bash -c '{line}'"))
    };
    let mut quit = watch("echo status=$?");
    for text in ["bounded", "statistical", "quit"] {
        quit.wait_for(text);
    }
    quit.keys.write_all(b"jsq").unwrap();
    quit.wait_for("status=0");
    quit.assert_restored();

    let mut ended = watch("true");
    ended.wait_for("quit");
    let pid = ended.seen.split("pid=").nth(1).unwrap().split('.').next().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    ended.assert_restored();

    let sentence = refusal_of(command(&cluster).args(["skew", "--watch"]).stdin(Stdio::null()));
    assert!(sentence.contains("--watch needs a terminal"), "{sentence}");
    stop_all(cluster);
}
