use tempfile::TempDir;

use super::*;
use crate::messages::Step;

fn open(directory: &TempDir) -> Catalogue {
    Catalogue::open(directory.path()).unwrap()
}

#[test]
fn a_second_server_on_the_same_directory_is_refused() {
    let directory = TempDir::new().unwrap();
    let first = open(&directory);
    let error = Catalogue::open(directory.path()).unwrap_err();
    assert!(matches!(error, CatalogueError::InUse(_)), "{error}");
    drop(first);
    open(&directory);
}

#[test]
fn a_catalogue_of_a_later_version_is_left_alone() {
    let directory = TempDir::new().unwrap();
    open(&directory).lock().pragma_update(None, "user_version", 99).unwrap();
    let error = Catalogue::open(directory.path()).unwrap_err();
    assert!(matches!(error, CatalogueError::Newer { found: 99 }), "{error}");
}

#[test]
fn a_directory_that_is_a_file_is_named() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("state");
    std::fs::write(&file, "").unwrap();
    let error = Catalogue::open(&file).unwrap_err().to_string();
    assert!(error.contains(&file.display().to_string()), "{error}");
}

#[test]
fn a_file_that_is_no_database_is_refused_and_kept() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("catalogue.sqlite");
    std::fs::write(&file, vec![b'x'; 8192]).unwrap();
    assert!(matches!(Catalogue::open(directory.path()), Err(CatalogueError::Database(_))));
    assert_eq!(std::fs::read(&file).unwrap(), vec![b'x'; 8192]);
}

#[test]
fn only_a_failed_snapshot_gives_its_name_back() {
    let directory = TempDir::new().unwrap();
    let catalogue = open(&directory);
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    catalogue.begin(first, "s1", None).unwrap();
    assert!(matches!(catalogue.begin(second, "s1", None), Err(CatalogueError::NameTaken(_))));
    catalogue.fail(first, "a reason").unwrap();
    catalogue.begin(second, "s1", None).unwrap();
    assert_eq!(catalogue.find("s1").unwrap().id, second, "the name leads to its holder");
    let failed = catalogue.find(&first.to_string()).unwrap();
    assert_eq!((failed.state, failed.why.as_deref()), (SnapshotState::Failed, Some("a reason")));
    assert!(matches!(catalogue.find("s2"), Err(CatalogueError::NoSuch(_))));
}

#[test]
fn a_snapshot_is_complete_only_by_way_of_committing() {
    let directory = TempDir::new().unwrap();
    let catalogue = open(&directory);
    let (id, attempt) = (Uuid::now_v7(), Uuid::now_v7());
    catalogue.begin(id, "s1", None).unwrap();
    assert!(catalogue.finish(id, attempt, SnapshotState::Complete).is_err());
    catalogue.fail(id, "a reason").unwrap();
    assert!(catalogue.finish(id, attempt, SnapshotState::Complete).is_err());
    assert_eq!(catalogue.find("s1").unwrap().state, SnapshotState::Failed);
}

#[test]
fn what_is_being_taken_is_not_deleted() {
    let directory = TempDir::new().unwrap();
    let catalogue = open(&directory);
    catalogue.begin(Uuid::now_v7(), "s1", None).unwrap();
    let error = catalogue.deleting("s1").unwrap_err().to_string();
    assert_eq!(error, "snapshot s1 is planning; wait until it is done");
}

#[test]
fn debts_outlive_the_snapshot_and_the_server() {
    let directory = TempDir::new().unwrap();
    let (id, attempt) = (Uuid::now_v7(), Uuid::now_v7());
    let catalogue = open(&directory);
    catalogue.begin(id, "s1", None).unwrap();
    catalogue.begin_attempt(id, attempt, &["a".to_owned(), "b".to_owned()]).unwrap();
    catalogue.settle(attempt, "a", Time::from_nanos(7)).unwrap();
    catalogue.fail(id, "a reason").unwrap();
    catalogue.remove(id).unwrap();
    drop(catalogue);
    assert_eq!(open(&directory).owed().unwrap(), [(attempt, "b".to_owned())]);
}

#[test]
fn the_story_is_told_in_order() {
    let directory = TempDir::new().unwrap();
    let catalogue = open(&directory);
    let (id, attempt) = (Uuid::now_v7(), Uuid::now_v7());
    let entry = |step, host: Option<&str>| StoryEntry {
        attempt,
        at_ns: Time::from_nanos(7),
        step,
        host: host.map(str::to_owned),
        detail: "armed at 5".to_owned(),
    };
    let story = [entry(Step::Plan, None), entry(Step::Arm, Some("b")), entry(Step::Arm, Some("a"))];
    catalogue.begin(id, "s1", None).unwrap();
    catalogue.tell(id, &story[..1]).unwrap();
    catalogue.tell(id, &story[1..]).unwrap();
    assert_eq!(catalogue.story(id).unwrap(), story);
}

#[test]
fn a_catalogue_of_version_one_is_taken_over_with_all_it_holds() {
    let directory = TempDir::new().unwrap();
    let id = Uuid::now_v7();
    {
        let old = Connection::open(directory.path().join("catalogue.sqlite")).unwrap();
        old.execute_batch(SCHEMA).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        let insert = "INSERT INTO snapshots (id, name, state) VALUES (?1, 'kept', 'complete')";
        old.execute(insert, [id.to_string()]).unwrap();
    }
    for _ in 0..2 {
        let catalogue = open(&directory);
        let kept = catalogue.find("kept").unwrap();
        assert_eq!((kept.id, kept.state, kept.schedule), (id, SnapshotState::Complete, None));
        assert_eq!(catalogue.schedules().unwrap(), []);
    }
}

#[test]
fn a_catalogue_of_version_three_is_taken_over_with_all_it_holds() {
    let directory = TempDir::new().unwrap();
    {
        let old = Connection::open(directory.path().join("catalogue.sqlite")).unwrap();
        old.execute_batch(include_str!("../../../tests/fixtures/catalogue-3.sql")).unwrap();
    }
    for _ in 0..2 {
        let catalogue = open(&directory);
        let names: Vec<_> = catalogue.list().unwrap().into_iter().map(|it| (it.name, it.state)).collect();
        let nightly = "nightly-20261122T0300Z";
        let expected = [(nightly, SnapshotState::Complete), ("by-hand", SnapshotState::Failed)];
        assert_eq!(names, expected.map(|(name, state)| (name.to_owned(), state)));
        let manifest = catalogue.find(nightly).unwrap().manifest.unwrap();
        assert_eq!(
            (manifest.name.as_str(), manifest.hosts[0].volumes[0].digest.as_deref()),
            (nightly, Some("00"))
        );
        assert_eq!(catalogue.owed().unwrap().len(), 1);
        assert_eq!(catalogue.story(catalogue.find("by-hand").unwrap().id).unwrap()[0].step, Step::Arm);
        let schedules = catalogue.schedules().unwrap();
        assert_eq!((schedules[0].schedule.name.as_str(), schedules[0].missed), ("nightly", 2));
        assert_eq!(schedules[0].schedule.request.group_name, None);
        assert_eq!((catalogue.groups().unwrap().len(), catalogue.labels().unwrap().len()), (0, 0));
    }
}

#[test]
fn a_catalogue_of_version_five_is_taken_over_with_all_it_holds() {
    let directory = TempDir::new().unwrap();
    {
        let old = Connection::open(directory.path().join("catalogue.sqlite")).unwrap();
        old.execute_batch(include_str!("../../../tests/fixtures/catalogue-5.sql")).unwrap();
    }
    let first = Uuid::now_v7();
    for _ in 0..2 {
        let catalogue = open(&directory);
        let kept = catalogue.find("nightly-20261122T0300Z").unwrap();
        assert_eq!((kept.state, kept.manifest.unwrap().attempts), (SnapshotState::Complete, 1));
        assert_eq!(catalogue.states().unwrap(), [("complete".to_owned(), 1)]);
        let [(attempt, _)] = catalogue.owed().unwrap()[..] else { panic!("one host is owed an abort") };
        assert_eq!(catalogue.snapshot_of(attempt).unwrap(), Some(kept.id.to_string()));
        assert_eq!(catalogue.hooks_owed(None).unwrap(), [(kept.id, Debt::Host("a".to_owned()))]);
        let group = catalogue.group("shop").unwrap();
        assert_eq!(group.volumes, crate::groups::Which::Selector("app=shop".parse().unwrap()));
        assert_eq!(catalogue.labels().unwrap().len(), 1);
        let schedules = catalogue.schedules().unwrap();
        assert_eq!(schedules[0].schedule.request.group_name.as_deref(), Some("shop"));
        // What is new.
        let claimed = catalogue.claim("k", "d", first).unwrap();
        assert_eq!((claimed.snapshot, claimed.answer), (first, None));
    }
}
