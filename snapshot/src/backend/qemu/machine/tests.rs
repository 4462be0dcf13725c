use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use serde_json::Value;

use super::*;

const SOON: Nanos = Nanos::from_millis(60_000);
const SHORT: Nanos = Nanos::from_millis(30);

/// A QEMU that answers so: `None` leaves. It returns what it was told.
fn qemu(
    answers: impl Fn(usize, &str) -> Option<String> + Send + 'static,
) -> (Machine, JoinHandle<Vec<String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut stream = theirs.try_clone().unwrap();
        let mut told = Vec::new();
        for line in BufReader::new(theirs).lines() {
            let command: Value = serde_json::from_str(&line.unwrap()).unwrap();
            let name = command["execute"].as_str().unwrap().to_owned();
            let Some(answer) = answers(told.len(), &name) else { break };
            told.push(name);
            stream.write_all(answer.replace('$', &command["id"].to_string()).as_bytes()).unwrap();
        }
        told
    });
    (Machine::new(ours.into(), "/nowhere/qmp".into()), thread)
}

const RUNNING: &str = "{\"return\": {\"status\": \"running\", \"running\": true}, \"id\": $}\n";
const PAUSED: &str = "{\"return\": {\"status\": \"paused\", \"running\": false}, \"id\": $}\n";
const DONE: &str = "{\"return\": {}, \"id\": $}\n";
const RESUME: &str = "{\"event\": \"RESUME\"}\n";

fn said(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn it_is_stopped_and_set_running_again() {
    let (mut machine, qemu) = qemu(|number, _| said([RUNNING, DONE, PAUSED, PAUSED, DONE][number]));
    machine.pause(SOON).unwrap();
    assert_eq!(machine.resume().unwrap(), Resumption::Ours);
    drop(machine);
    assert_eq!(qemu.join().unwrap(), ["query-status", "stop", "query-status", "query-status", "cont"]);
}

#[test]
fn one_that_somebody_else_has_stopped_stays_so() {
    let (mut machine, qemu) = qemu(|_, _| said(PAUSED));
    let refused = machine.pause(SOON).unwrap_err().to_string();
    assert!(refused.contains("does not run (QEMU says: paused)"), "{refused}");
    drop(machine);
    assert_eq!(qemu.join().unwrap(), ["query-status"]);
}

#[test]
fn a_resume_by_somebody_else_is_noticed() {
    // It runs when we want to resume it; or it was resumed and stopped again meanwhile.
    for before_ours in [RUNNING.to_owned(), format!("{RESUME}{PAUSED}")] {
        let (mut machine, _qemu) = qemu(move |number, _| match number {
            0 => said(RUNNING),
            2 => said(PAUSED),
            3 => Some(before_ours.clone()),
            _ => said(DONE),
        });
        machine.pause(SOON).unwrap();
        assert_eq!(machine.resume().unwrap(), Resumption::Others);
    }
    // Before the pause, others may do as they like.
    let (mut machine, _qemu) = qemu(|number, _| match number {
        0 => Some(format!("{RESUME}{RUNNING}")),
        2 | 3 => said(PAUSED),
        _ => said(DONE),
    });
    machine.pause(SOON).unwrap();
    assert_eq!(machine.resume().unwrap(), Resumption::Ours);
}

#[test]
fn a_stop_that_is_not_answered_is_followed_by_a_cont() {
    // It hangs at `stop`, and answers everything once it has got a `cont` as well.
    let (mut machine, qemu) = qemu(|_, command| match command {
        "stop" => said(""),
        "cont" => said(DONE),
        _ => said(RUNNING),
    });
    let late = machine.pause(SHORT).unwrap_err().to_string();
    assert!(late.contains("did not answer stop"), "{late}");
    drop(machine);
    assert_eq!(qemu.join().unwrap(), ["query-status", "stop", "query-status", "cont"]);
}

#[test]
fn a_machine_that_dies_while_it_is_stopped_was_not_resumed_by_us() {
    let (mut machine, _qemu) =
        qemu(|number, _| if number < 3 { said([RUNNING, DONE, PAUSED][number]) } else { None });
    machine.pause(SOON).unwrap();
    assert_eq!(machine.resume().unwrap(), Resumption::Others);
    // Or it was shut down for good: QEMU says that it cannot go on.
    let refusal = "{\"error\": {\"class\": \"GenericError\", \"desc\": \"Resetting the Virtual Machine is required\"}, \"id\": $}\n";
    let (mut machine, _qemu) = qemu(move |number, _| said([RUNNING, DONE, PAUSED, PAUSED, refusal][number]));
    machine.pause(SOON).unwrap();
    assert_eq!(machine.resume().unwrap(), Resumption::Others);
}
