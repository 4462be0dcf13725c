//! A recording of a live server and its hosts replays to the very same numbers, and a changed one is refused.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails where it stands")]

use std::net::{IpAddr, UdpSocket};

use serde_json::Value;
use timesync::bound::AsymmetryBudget;
use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::module::{Module, ModuleConfig};
use timesync::recording::{RecordError, Replayed, Sealer, replay};
use timesync::server::{HostConfig, ServerConfig, State, TimeServer};
use timesync::source::SkewSource;
use timesync::time::Nanos;

fn incarnation() -> Incarnation {
    Incarnation::of_this_process().unwrap()
}

fn module(spec: &str) -> Module {
    let listen: Vec<IpAddr> = vec!["127.0.0.1".parse().unwrap()];
    let config = ModuleConfig { listen, event_port: 0, ..ModuleConfig::default() };
    Module::start(&config, HostClock::simulated(spec.parse().unwrap()), incarnation()).unwrap()
}

/// The lines of a recording of a server with the hosts a and b, of which b has an asymmetry budget, and of nobody at c.
fn recorded() -> Vec<String> {
    let modules = [module("offset=35ms,drift=40ppm"), module("offset=-2ms,drift=-25ppm")];
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut hosts = vec![
        HostConfig::new("a", modules[0].addresses()[0]),
        HostConfig::new("b", modules[1].addresses()[0]),
        HostConfig::new("c", nobody.local_addr().unwrap()),
    ];
    hosts[1].asymmetry = AsymmetryBudget::Configured(Nanos::new(500));
    let config = ServerConfig { hosts, event_port: 0, allow_simulated: true, ..ServerConfig::default() };
    let server = TimeServer::start(&config, incarnation()).unwrap();
    // What was before the recording counts as well.
    let both = ["a", "b"].map(str::to_owned);
    while !both.iter().all(|host| server.observe(host).is_ok()) {
        server.burst(&both);
    }
    let (mut sealer, mut lines, mut begun) = (Sealer::default(), Vec::new(), false);
    std::thread::scope(|scope| {
        let result = server.record(&[], Nanos::from_millis(1_500), |line| {
            if !std::mem::replace(&mut begun, true) {
                assert_eq!(server.record(&[], Nanos::ZERO, |_| true), Err(RecordError::Busy));
            }
            if line.get("bound").is_some() {
                scope.spawn(|| server.burst(&both));
            }
            lines.push(sealer.seal(&line));
            true
        });
        result.unwrap();
    });
    lines.push(sealer.end());
    let unknown = server.record(&["d".to_owned()], Nanos::ZERO, |_| true);
    assert_eq!(unknown, Err(RecordError::Unknown("d".to_owned())));
    lines
}

fn replay_lines(lines: &[String]) -> Result<Replayed, String> {
    replay(lines.concat().as_bytes()).map_err(|error| error.to_string())
}

fn content(line: &str) -> Value {
    let mut value: Value = serde_json::from_str(line).unwrap();
    value.as_object_mut().unwrap().remove("crc").unwrap();
    value
}

/// With checksums that fit, as somebody would make them who knows how.
fn sealed_again(contents: &[Value]) -> Vec<String> {
    let mut sealer = Sealer::default();
    let mut lines: Vec<String> =
        contents[..contents.len() - 1].iter().map(|line| sealer.seal(line)).collect();
    lines.push(sealer.end());
    lines
}

#[test]
fn a_recording_replays_to_the_same_numbers_and_a_changed_one_is_refused() {
    let lines = recorded();
    let contents: Vec<Value> = lines.iter().map(|line| content(line)).collect();
    let replayed = replay_lines(&lines).unwrap();

    // Every bound was computed and compared; the last rows are the last ones recorded.
    let bounds: Vec<&Value> = contents.iter().filter_map(|line| line.get("bound")).collect();
    assert!(bounds.len() >= 6 && replayed.bounds == bounds.len() as u64, "{} bounds", bounds.len());
    assert!(replayed.events >= 64, "a burst is 32 exchanges with each: {}", replayed.events);
    let states: Vec<State> = replayed.report.hosts.iter().map(|row| row.state).collect();
    assert_eq!(states, [State::Ok, State::Ok, State::Silent]);
    for row in &replayed.report.hosts {
        let last = bounds.iter().rev().find(|bound| bound["host"] == row.host.as_str()).unwrap();
        assert_eq!(serde_json::to_value(row).unwrap(), last["row"]);
        assert_eq!(last["theta"].is_null(), row.host == "c", "{last}");
    }
    assert_eq!(replayed.report.pair_count, 3);
    for track in &replayed.tracks {
        let rows =
            bounds.iter().filter(|bound| bound["host"] == track.host.as_str()).map(|bound| &bound["row"]);
        let of = |row: &Value| ["offset_ns", "hard_ns", "statistical_ns"].map(|name| row[name].as_i64());
        let seen = track.points.iter().map(|point| [point.offset_ns, point.hard_ns, point.statistical_ns]);
        assert_eq!(seen.collect::<Vec<_>>(), rows.map(of).collect::<Vec<_>>());
    }
    assert!(replayed.tracks[0].points.iter().map(|point| point.exchanges).sum::<u64>() >= 32);
    let counted: u64 = replayed.tracks[0].round_trips.iter().map(|(_, count)| count).sum();
    assert!(counted > 32, "with those of before the recording: {counted}");
    assert_eq!(replay_lines(&sealed_again(&contents)).unwrap().report, replayed.report);

    // Damage: any digit of any line, a line that is missing or elsewhere, an end that is missing.
    for number in [0, 1, 3, lines.len() / 2, lines.len() - 1] {
        let mut damaged = lines.clone();
        let at = damaged[number].rfind(|c: char| c.is_ascii_digit()).unwrap();
        let other = if &damaged[number][at..=at] == "7" { "8" } else { "7" };
        damaged[number].replace_range(at..=at, other);
        let refused = replay_lines(&damaged).unwrap_err();
        assert!(refused.starts_with(&format!("line {}: its checksum is wrong", number + 1)), "{refused}");
        let mut missing = lines.clone();
        missing.remove(number);
        let refused = replay_lines(&missing).unwrap_err();
        assert!(refused.starts_with(&format!("line {}: ", number + 1)), "{refused}");
    }
    let mut cut = lines.concat();
    cut.truncate(cut.len() - 9);
    assert!(replay(cut.as_bytes()).unwrap_err().to_string().contains("checksum"));

    // A stamp that was changed knowingly: t2 of the last exchange before a bound, a millisecond earlier.
    let bound = contents.iter().rposition(|line| line["bound"]["host"] == "a").unwrap();
    let of_a = |line: &Value| line["event"]["host"] == "a" && line["event"]["what"].get("exchange").is_some();
    let number = contents[..bound].iter().rposition(of_a).unwrap();
    let mut forged = contents.clone();
    for end in ["earliest", "latest"] {
        let t2 = &mut forged[number]["event"]["what"]["exchange"]["exchange"]["forward"]["received"][end];
        *t2 = (t2.as_i64().unwrap() - 1_000_000).into();
    }
    let refused = replay_lines(&sealed_again(&forged)).unwrap_err();
    assert!(refused.contains("computed again, bound.") && refused.contains("as recorded"), "{refused}");

    // A bound that was changed by one nanosecond, and only there.
    let mut forged = contents.clone();
    let hard = &mut forged[bound]["bound"]["row"]["hard_ns"];
    let was = hard.as_i64().unwrap();
    *hard = (was - 1).into();
    let refused = replay_lines(&sealed_again(&forged)).unwrap_err();
    let sentence = format!("line {}: computed again, bound.row.hard_ns is {was}, not {}", bound + 1, was - 1);
    assert!(refused.starts_with(&sentence), "{refused}");

    // Another format, and no recording at all.
    let mut newer = contents;
    newer[0]["recording"]["format"] = 2.into();
    assert!(replay_lines(&sealed_again(&newer)).unwrap_err().starts_with("line 1: format 2"));
    assert!(replay(&b""[..]).unwrap_err().to_string().contains("nothing in it"));
    assert!(replay(&b"{}\n"[..]).unwrap_err().to_string().starts_with("line 1: "));
    assert!(replay(&b"\xff\xfe\n"[..]).unwrap_err().to_string().starts_with("line 1: "));
}
