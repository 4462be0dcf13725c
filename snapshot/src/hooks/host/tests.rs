use tempfile::TempDir;

use super::super::Hook;
use super::*;
use crate::simulated::incarnation;

/// Hooks that write a line each to a file.
struct Rig {
    directory: TempDir,
    host: Incarnation,
}

impl Rig {
    fn new() -> Self {
        Rig { directory: TempDir::new().unwrap(), host: incarnation() }
    }

    fn hook(&self, script: &str) -> Option<Hook> {
        let log = self.directory.path().join("log");
        let script = format!("echo $COEVAL_HOOK $COEVAL_SNAPSHOT >> {}; {script}", log.display());
        let command = ["/bin/sh", "-c", &script].map(str::to_owned).to_vec();
        Some(Hook { command, timeout: Nanos::from_millis(60_000) })
    }

    fn open(&self, before: &str, after: &str, patience_ms: i64) -> Arc<Sessions> {
        let hooks = Hooks { before: self.hook(before), after: self.hook(after) };
        let notes = self.directory.path().join("notes");
        Sessions::open(&notes, hooks, Nanos::from_millis(patience_ms), self.host).unwrap()
    }

    fn order(&self, name: &str) -> BeforeOrder {
        BeforeOrder { host: self.host, name: name.to_owned(), volumes: vec!["data".to_owned()] }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default().replace('\n', ", ")
    }

    fn notes(&self) -> usize {
        std::fs::read_dir(self.directory.path().join("notes")).unwrap().count()
    }
}

const LONG: i64 = 600_000;

#[test]
fn the_hook_after_runs_when_it_is_ordered_and_once() {
    let rig = Rig::new();
    let sessions = rig.open("true", "true", LONG);
    let snapshot = Uuid::new_v4();
    sessions.before(snapshot, rig.order("s1")).unwrap();
    assert!(sessions.holds(snapshot));
    assert_eq!((rig.log().as_str(), rig.notes()), ("before s1, ", 1));
    let report = sessions.after(snapshot).unwrap();
    assert!(report.detail.starts_with("the hook ran, in "), "{report:?}");
    assert_eq!(sessions.after(snapshot).unwrap(), report);
    assert_eq!((rig.log().as_str(), rig.notes()), ("before s1, after s1, ", 0));
    assert!(!sessions.holds(snapshot));
    assert!(matches!(sessions.before(snapshot, rig.order("s1")), Err(HookRefused::Gone)));
}

#[test]
fn one_at_a_time_and_none_that_was_called_off_first() {
    let rig = Rig::new();
    let sessions = rig.open("true", "true", LONG);
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    assert!(matches!(sessions.after(other), Err(HookRefused::Unknown)));
    assert!(matches!(sessions.before(other, rig.order("s2")), Err(HookRefused::Gone)));
    sessions.before(one, rig.order("s1")).unwrap();
    let busy = sessions.before(Uuid::new_v4(), rig.order("s3")).unwrap_err();
    assert!(busy.to_string().contains("snapshot s1"), "{busy}");
    sessions.after(one).unwrap();
    let elsewhere = BeforeOrder { host: incarnation(), ..rig.order("s4") };
    assert!(matches!(sessions.before(Uuid::new_v4(), elsewhere), Err(HookRefused::Restarted)));
    assert_eq!(rig.log(), "before s1, after s1, ");
}

#[test]
fn after_a_hook_that_failed_the_other_one_runs_unasked() {
    let rig = Rig::new();
    let sessions = rig.open("exit 1", "exit 2", LONG);
    let snapshot = Uuid::new_v4();
    let error = sessions.before(snapshot, rig.order("s1")).unwrap_err();
    assert!(error.to_string().starts_with("the hook before the snapshot failed"), "{error}");
    let report = sessions.after(snapshot).unwrap().detail;
    assert!(report.starts_with("the hook before failed; the hook after the snapshot failed"), "{report}");
    assert_eq!((rig.log().as_str(), rig.notes()), ("before s1, after s1, ", 0));
}

#[test]
fn a_host_does_not_wait_for_its_server_for_ever() {
    let rig = Rig::new();
    let sessions = rig.open("true", "true", 20);
    let snapshot = Uuid::new_v4();
    sessions.before(snapshot, rig.order("s1")).unwrap();
    while sessions.holds(snapshot) {
        std::thread::yield_now();
    }
    let report = sessions.after(snapshot).unwrap().detail;
    assert!(report.starts_with("nobody asked for it in time; the hook ran"), "{report}");
    assert_eq!(rig.log(), "before s1, after s1, ");
}

#[test]
fn what_a_daemon_that_died_owes_is_made_up_for_as_it_was_then() {
    let rig = Rig::new();
    let sessions = rig.open("true", "true", LONG);
    let snapshot = Uuid::new_v4();
    sessions.before(snapshot, rig.order("s1")).unwrap();
    // The first one's keeper waits on, as nothing does in a process that died.
    let hooks = Hooks::default();
    let notes = rig.directory.path().join("notes");
    let next = Sessions::open(&notes, hooks, Nanos::from_millis(LONG), rig.host).unwrap();
    let report = next.after(snapshot).unwrap().detail;
    assert!(report.starts_with("the daemon restarted; the hook ran"), "{report}");
    assert_eq!((rig.log().as_str(), rig.notes()), ("before s1, after s1, ", 0));
    assert!(next.limits() == HookLimits { before: Nanos::ZERO, after: Nanos::ZERO });
}
