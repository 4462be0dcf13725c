use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use super::*;

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": ["oob"]}}"#;
/// Never reached where the peer answers.
const LIMIT: Nanos = Nanos::from_millis(60_000);
/// Always reached: the peer is silent.
const SHORT: Nanos = Nanos::from_millis(30);

/// A monitor that says these lines, each after so many lines of its client's.
struct Monitor {
    directory: tempfile::TempDir,
    thread: JoinHandle<Vec<Value>>,
}

impl Monitor {
    /// `script`: what it says first, and in answer to each command; `$` stands for the command's id. It returns what it
    /// was told, and leaves.
    fn start(script: &[&str]) -> Monitor {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("qmp")).unwrap();
        let script: Vec<String> = script.iter().map(|line| (*line).to_owned()).collect();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut heard = Vec::new();
            let mut id = 0;
            for (number, said) in script.iter().enumerate() {
                if number > 0 {
                    let Some(Ok(line)) = lines.next() else { break };
                    let command: Value = serde_json::from_str(&line).unwrap();
                    id = command["id"].as_u64().unwrap();
                    heard.push(command);
                }
                // The client may be gone: some of these lines are more than it takes.
                let _ = stream.write_all(said.replace('$', &id.to_string()).as_bytes());
            }
            heard
        });
        Monitor { directory, thread }
    }

    fn connect(&self) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.directory.path().join("qmp"), LIMIT)
    }
}

const READY: &str = "{\"return\": {}, \"id\": $}\r\n";

fn greeting() -> String {
    format!("{GREETING}\r\n")
}

#[test]
fn commands_are_answered_by_their_id_and_events_in_between_are_passed_over() {
    let answer = "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 1, \"microseconds\": 2}}\r\n{\"return\": {\"running\": false}, \"id\": $}\n";
    let monitor = Monitor::start(&[&greeting(), READY, answer]);
    let mut qmp = monitor.connect().unwrap();
    let status = qmp.execute("query-status", json!({"a": 1}), LIMIT).unwrap();
    assert_eq!(status, json!({"running": false}));
    assert_eq!(qmp.resumes(), 0);
    let heard = monitor.thread.join().unwrap();
    assert_eq!(heard[0]["execute"], "qmp_capabilities");
    assert_eq!((&heard[1]["execute"], &heard[1]["arguments"]), (&json!("query-status"), &json!({"a": 1})));
}

#[test]
fn a_refusal_is_one_sentence_and_the_connection_goes_on() {
    let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"No such node\"}, \"id\": $}\n";
    let monitor = Monitor::start(&[&greeting(), READY, refusal, READY]);
    let mut qmp = monitor.connect().unwrap();
    let refused = qmp.execute("blockdev-del", json!({}), LIMIT).unwrap_err();
    assert_eq!(refused.to_string(), "QEMU refuses blockdev-del: No such node");
    qmp.execute("stop", json!({}), LIMIT).unwrap();
}

#[test]
fn every_resume_is_counted() {
    let events = "{\"event\": \"RESUME\"}\n{\"event\": \"STOP\"}\n{\"event\": \"RESUME\"}\n{\"return\": {}, \"id\": $}\n";
    let monitor = Monitor::start(&[&greeting(), READY, events]);
    let mut qmp = monitor.connect().unwrap();
    qmp.execute("query-status", json!({}), LIMIT).unwrap();
    assert_eq!(qmp.resumes(), 2);
}

#[test]
fn a_message_may_come_in_pieces_and_several_at_once() {
    let long = format!("{{\"return\": \"{}\", \"id\": $}}\n", "x".repeat(100_000));
    let monitor = Monitor::start(&[&greeting(), &format!("{{\"event\": \"A\"}}\n{READY}"), &long]);
    let mut qmp = monitor.connect().unwrap();
    let answer = qmp.execute("query-block", json!({}), LIMIT).unwrap();
    assert_eq!(answer.as_str().map(str::len), Some(100_000));
}

#[test]
fn no_peer_is_waited_for_longer_than_the_limit() {
    // It greets and then says nothing, neither to this command nor to any other.
    let monitor = Monitor::start(&[&greeting(), READY, "{\"event\": \"STOP\"}\n", ""]);
    let mut qmp = monitor.connect().unwrap();
    let late = qmp.execute("cont", json!({}), SHORT).unwrap_err();
    assert_eq!(late.to_string(), "QEMU did not answer cont within 30.00 ms");
    let after = qmp.execute("query-status", json!({}), LIMIT).unwrap_err();
    assert!(matches!(after, QmpError::Broken { .. }), "an answer could be to the command before: {after}");

    // Somebody else's monitor: connections are taken by the kernel, and nobody greets.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let _listener = UnixListener::bind(&path).unwrap();
    let silent = Qmp::connect(&path, SHORT).unwrap_err();
    assert!(matches!(silent, QmpError::Silent { .. }), "{silent}");
    assert!(!silent.is_not_there());
}

#[test]
fn a_machine_that_does_not_run_is_told_from_one_that_does_not_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    assert!(Qmp::connect(&path, LIMIT).unwrap_err().is_not_there(), "no socket");
    drop(UnixListener::bind(&path).unwrap());
    assert!(Qmp::connect(&path, LIMIT).unwrap_err().is_not_there(), "nobody listens at the socket");
}

#[test]
fn a_monitor_that_dies_or_talks_nonsense_is_an_error() {
    let endless = format!("{{\"return\": \"{}", "x".repeat(MAX_LINE + (64 << 10)));
    let cases: [(&str, &str); 5] = [
        ("", "broke"),
        ("nonsense\n", "no JSON"),
        ("{\"return\": {}}\n", "neither answer nor event"),
        ("{}\n", "neither answer nor event"),
        (&endless, "does not end"),
    ];
    for (said, expected) in cases {
        let monitor = Monitor::start(&[&greeting(), READY, said]);
        let mut qmp = monitor.connect().unwrap();
        let error = qmp.execute("stop", json!({}), LIMIT).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        drop(qmp);
        monitor.thread.join().unwrap();
    }
    for first in ["{\"return\": {}}\n", "SSH-2.0\n", "\u{0}\u{1}\n"] {
        let monitor = Monitor::start(&[first]);
        assert!(matches!(monitor.connect(), Err(QmpError::Protocol(_))), "{first}");
    }
}

#[test]
fn two_processes_share_a_connection() {
    // The answer to the other's command comes first, and half of it was read by the other.
    let theirs = "{\"return\": {\"theirs\": true}, \"id\": 1}\n";
    let monitor =
        Monitor::start(&[&greeting(), READY, theirs, "{\"return\": {\"ours\": true}, \"id\": $}\n"]);
    let mut theirs = monitor.connect().unwrap();
    let mut ours = Qmp::adopt(theirs.share().unwrap());
    let sent = theirs.send("stop", json!({}), LIMIT).unwrap();
    theirs.stream.read_exact(&mut [0; 5]).unwrap();
    assert_eq!(ours.execute("cont", json!({}), LIMIT).unwrap(), json!({"ours": true}));
    let heard = monitor.thread.join().unwrap();
    assert_eq!(heard[1]["id"], sent);
    assert_eq!(heard[2]["execute"], "cont", "what was sent later is executed later");
}
