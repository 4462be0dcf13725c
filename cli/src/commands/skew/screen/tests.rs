use ratatui::Terminal;
use ratatui::backend::TestBackend;
use timesync::history::Point;

use super::*;
use crate::commands::skew::table::tests::report;

fn drawn(screen: &Screen, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned()).collect()
}

fn press(screen: &mut Screen, code: KeyCode) -> bool {
    screen.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn watched() -> Screen {
    let mut screen = Screen::new();
    for second in 0..60 {
        screen.take(report(), f64::from(second));
    }
    screen
}

#[test]
fn the_table_the_chart_and_the_keys_are_shown() {
    let mut screen = watched();
    let lines = drawn(&screen, 100, 30);
    let has = |texts: &[&str]| lines.iter().any(|line| texts.iter().all(|text| line.contains(text)));
    assert!(has(&["2 of 4 hosts bounded", "widest pair db1 - stock ± 61.4 µs"]), "{lines:#?}");
    assert!(has(&["host", "hard ±", "stat. ±", "rtt", "state"]), "{lines:#?}");
    assert!(has(&["db1", "+35.0001 ms", "1.32 µs", "480 ns", "+40.0 ppm", "software", "ok"]), "{lines:#?}");
    assert!(has(&["db1: offset, hard and statistical bound around +35.0001 ms"]), "{lines:#?}");
    assert!(has(&["+1.38 µs"]) && has(&["-59 s", "now"]), "{lines:#?}");
    assert!(has(&["q quit", "↑ ↓ select", "s sort: widest first"]), "{lines:#?}");
    assert!(lines.iter().any(|line| line.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c))), "a curve");

    // The selected host's reason, and no chart where nothing was ever bounded.
    assert!(press(&mut screen, KeyCode::Down) && press(&mut screen, KeyCode::Down));
    let lines = drawn(&screen, 100, 30);
    assert!(lines.iter().any(|line| line.contains("db2 has not answered")), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("bound around")), "{lines:#?}");
}

#[test]
fn a_selection_stays_with_its_host_and_ends_at_the_ends() {
    let mut screen = watched();
    press(&mut screen, KeyCode::Up);
    assert_eq!(screen.selected.as_deref(), Some("db1"));
    press(&mut screen, KeyCode::Char('s'));
    assert_eq!(screen.rows().last().unwrap().host, "db1", "the narrowest is last");
    press(&mut screen, KeyCode::PageDown);
    assert_eq!(screen.selected.as_deref(), Some("db1"));
    press(&mut screen, KeyCode::PageUp);
    assert_eq!(screen.selected.as_deref(), Some("db2"));
    // The host is gone from the report.
    let mut report = report();
    report.hosts.retain(|row| row.host != "db2");
    screen.take(report, 60.0);
    assert_eq!(screen.selected.as_deref(), Some("db1"));
    for (key, on) in [(KeyCode::Char('x'), true), (KeyCode::Char('q'), false), (KeyCode::Esc, false)] {
        assert_eq!(press(&mut screen, key), on);
    }
    assert!(
        !screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)),
        "raw mode takes Ctrl-C away"
    );
}

#[test]
fn a_server_that_is_gone_is_said_so_above_what_was_known() {
    let mut screen = watched();
    screen.fail("the server does not answer at http://x".to_owned());
    let lines = drawn(&screen, 100, 30);
    assert!(lines[0].contains("the server does not answer at http://x; what follows is old"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("db1")), "{lines:#?}");
    screen.take(report(), 61.0);
    assert!(drawn(&screen, 100, 30)[0].contains("CLOCK_REALTIME"));
}

#[test]
fn the_past_comes_before_the_present_and_is_asked_for_once() {
    let mut screen = watched();
    assert_eq!((screen.wanted().as_deref(), screen.wanted()), (Some("db1"), None));
    let point = |at_ms| Point { at_ms, offset_ns: Some(1), hard_ns: Some(2), ..Point::default() };
    // The clock of the points is 1 000 s ahead: these are 20 s and 10 s before the screen's zero, and one after it.
    let points = vec![point(980_000), point(990_000), point(1_010_000)];
    screen.take_past(&Track { host: "db1".to_owned(), points, round_trips: Vec::new() }, 1_000.0);
    let past: Vec<f64> = screen.past["db1"].iter().take(3).map(|moment| moment.at).collect();
    assert_eq!((past, screen.past["db1"].len()), (vec![-20.0, -10.0, 0.0], 62));
}

#[test]
fn no_size_is_too_small() {
    for (width, height) in [(1, 1), (20, 5), (100, 21), (300, 80)] {
        drawn(&watched(), width, height);
        drawn(&Screen::new(), width, height);
    }
}
