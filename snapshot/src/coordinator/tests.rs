mod fake;
mod groups;
mod http_api;
mod rebuild;
mod restore;
mod schedules;

use std::sync::Mutex;
use std::time::Duration;

use timesync::bound::AsymmetryBudget;
use utoipa_axum::router::OpenApiRouter;

use super::*;
use crate::api;
use crate::client::ServerClient;
use crate::http::{Admits, Listener, StopHandle};
use crate::messages::{Control, SnapshotState, Step, Verdict};
use crate::simulated::{Path, incarnation};
use fake::{FakeHost, Fleet, eventually, lopsided, near};

fn named(name: &str, mode: RequestedMode) -> CreateRequest {
    CreateRequest { name: Some(name.to_owned()), mode, ..CreateRequest::default() }
}

fn timed() -> CreateRequest {
    named("s1", RequestedMode::Timed)
}

async fn state(coordinator: &Coordinator, key: &str) -> SnapshotState {
    coordinator.show(key, false).await.unwrap().snapshot.state
}

/// The state directory is free once every task of a server is done.
async fn stop(coordinator: Arc<Coordinator>) {
    let catalogue = Arc::downgrade(&coordinator.catalogue);
    drop(coordinator);
    eventually(async || catalogue.upgrade().is_none()).await;
}

#[tokio::test]
async fn a_timed_snapshot_is_certified_and_named_on_every_host() {
    for paths in [near(), lopsided()] {
        let fleet = Fleet::new(paths);
        let coordinator = fleet.coordinator(|_| {});
        let steps = Mutex::new(Vec::new());
        let manifest = coordinator
            .create(timed(), |progress| steps.lock().unwrap().extend(progress.attempt.map(|at| at.step)))
            .await
            .unwrap();
        assert_eq!((manifest.verdict, manifest.attempts), (Verdict::Consistent, 1));
        assert!(manifest.margin_ns.unwrap() > Nanos::ZERO);
        let v = manifest.v_ns.unwrap();
        for (i, a) in manifest.hosts.iter().enumerate() {
            assert_eq!(a.q_ns.unwrap() - a.at_ns.unwrap(), v);
            for b in &manifest.hosts[i + 1..] {
                assert!(a.error_ns.unwrap() + b.error_ns.unwrap() <= v, "V covers {} and {}", a.host, b.host);
                assert!(a.q_earliest_ns > b.p_latest_ns && b.q_earliest_ns > a.p_latest_ns);
            }
        }
        let order =
            [Step::Describe, Step::Prepare, Step::Measure, Step::Plan, Step::Arm, Step::Seal, Step::Measure];
        assert_eq!(*steps.lock().unwrap(), [&order[..], &[Step::Certify, Step::Commit]].concat());
        assert!(fleet.hosts.iter().all(|host| host.names() == ["s1"]));
        assert_eq!(fleet.asked("abort"), [0, 0, 0]);
        assert_eq!(state(&coordinator, "s1").await, SnapshotState::Complete);
        let story = coordinator.show("s1", false).await.unwrap().story;
        assert!(story.iter().any(|entry| entry.step == Step::Seal && entry.host.as_deref() == Some("b")));
        assert!(coordinator.catalogue.owed().unwrap().is_empty());
    }
}

#[tokio::test]
async fn verify_computes_verdict_and_digests_again() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let manifest = coordinator.create(timed(), |_| {}).await.unwrap();
    eventually(async || {
        let stored = coordinator.show("s1", false).await.unwrap().snapshot.manifest.unwrap();
        stored.hosts.iter().flat_map(|host| &host.volumes).all(|volume| volume.digest.is_some())
    })
    .await;
    let report = coordinator.verify(&manifest.id.to_string(), |_| {}).await.unwrap();
    assert_eq!(
        (report.verdict, report.margin_ns, report.intact),
        (Verdict::Consistent, manifest.margin_ns, true)
    );

    fleet.hosts[1].change_content();
    let report = coordinator.verify("s1", |_| {}).await.unwrap();
    assert!(!report.intact);
    let changed: Vec<_> = report.volumes.iter().filter(|volume| volume.now != volume.stored).collect();
    assert_eq!(changed.iter().map(|volume| volume.member.host.as_str()).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn whatever_step_fails_on_one_host_is_undone_on_all() {
    for (mode, step) in [
        (RequestedMode::Timed, "prepare"),
        (RequestedMode::Timed, "arm"),
        (RequestedMode::Timed, "seal"),
        (RequestedMode::Timed, "commit"),
        (RequestedMode::Barrier, "prepare"),
        (RequestedMode::Barrier, "arm"),
        (RequestedMode::Barrier, "strike"),
        (RequestedMode::Barrier, "release"),
        (RequestedMode::Barrier, "seal"),
        (RequestedMode::Barrier, "commit"),
    ] {
        let fleet = Fleet::new(near());
        let coordinator = fleet.coordinator(|_| {});
        fleet.hosts[1].refuses(step, 507, 1);
        let error = coordinator.create(named("s1", mode), |_| {}).await.unwrap_err();
        assert_eq!(error.to_string(), format!("host b: scripted to refuse {step}"));
        assert_eq!(error.status(), 507);
        assert!(fleet.all_clean(), "{mode:?} {step}");
        assert_eq!(fleet.asked("abort"), [1, 1, 1], "{mode:?} {step}");
        assert_eq!(state(&coordinator, "s1").await, SnapshotState::Failed);
        assert!(coordinator.catalogue.owed().unwrap().is_empty());
        // Nothing is in the way of the next one, its name included.
        coordinator.create(named("s1", mode), |_| {}).await.unwrap();
        assert_eq!(state(&coordinator, "s1").await, SnapshotState::Complete);
    }
}

#[tokio::test]
async fn a_host_that_does_not_answer_a_seal_voids_the_attempt_everywhere() {
    let fleet = Fleet::new(near());
    // The other hosts' orders have this limit, too.
    let coordinator = fleet.coordinator(|options| options.limits.seal = Duration::from_secs(2));
    fleet.hosts[2].script(|script| script.hang = Some("seal"));
    let error = coordinator.create(timed(), |_| {}).await.unwrap_err().to_string();
    assert!(error.starts_with("host c did not answer within"), "{error}");
    assert!(fleet.all_clean());
    assert_eq!(state(&coordinator, "s1").await, SnapshotState::Failed);
}

#[tokio::test]
async fn a_restarted_host_is_never_certified() {
    for mode in [RequestedMode::Timed, RequestedMode::Barrier, RequestedMode::Auto] {
        let fleet = Fleet::new(near());
        let coordinator = fleet.coordinator(|_| {});
        fleet.hosts[0].script(|script| script.reports_as = Some(incarnation()));
        let error = coordinator.create(named("s1", mode), |_| {}).await.unwrap_err().to_string();
        assert!(error.contains("host a restarted"), "{error}");
        assert!(fleet.all_clean() && fleet.asked("commit") == [0, 0, 0]);
    }
}

#[tokio::test]
async fn a_refused_or_late_attempt_is_repeated_at_a_new_t() {
    let causes: [fn(&FakeHost); 2] =
        [|host| host.script(|script| script.early = 1), |host| host.refuses("arm", 422, 1)];
    for cause in causes {
        let fleet = Fleet::new(lopsided());
        let coordinator = fleet.coordinator(|_| {});
        cause(&fleet.hosts[0]);
        let manifest = coordinator.create(timed(), |_| {}).await.unwrap();
        assert_eq!((manifest.attempts, manifest.verdict), (2, Verdict::Consistent));
        assert_eq!(fleet.asked("abort"), [1, 1, 1]);
        let story = coordinator.show("s1", false).await.unwrap().story;
        let mut attempts: Vec<_> = story.iter().map(|entry| entry.attempt).collect();
        attempts.dedup();
        assert_eq!(attempts.len(), 2, "each attempt has an id of its own");
    }
}

#[tokio::test]
async fn auto_turns_to_messages_when_the_timed_attempts_are_used_up() {
    let fleet = Fleet::new(lopsided());
    let coordinator = fleet.coordinator(|_| {});
    fleet.hosts[0].script(|script| script.early = 3);
    let manifest = coordinator.create(named("s1", RequestedMode::Auto), |_| {}).await.unwrap();
    assert_eq!((manifest.mode, manifest.attempts), (Some(Mode::Barrier), 4));
    assert_eq!((manifest.margin_ns, manifest.v_ns, manifest.t_ns), (None, None, None));
    assert!(manifest.control_round_trip_ns.unwrap() > Nanos::ZERO);
    assert_eq!(fleet.asked("strike"), [1, 1, 1]);
    assert_eq!(coordinator.verify("s1", |_| {}).await.unwrap().verdict, Verdict::Consistent);
}

#[tokio::test]
async fn a_bound_too_wide_to_stretch_for_leaves_only_messages() {
    let far = [Path::micros(3_000_000, 3_000_000), Path::micros(3_000_000, 3_000_000), Path::micros(20, 20)];
    let fleet = Fleet::new(far);
    let coordinator = fleet.coordinator(|_| {});
    let error = coordinator.create(timed(), |_| {}).await.unwrap_err().to_string();
    assert!(error.contains("use mode barrier"), "{error}");
    assert_eq!(fleet.asked("arm"), [0, 0, 0]);
    let manifest = coordinator.create(named("s2", RequestedMode::Auto), |_| {}).await.unwrap();
    assert_eq!((manifest.mode, manifest.attempts), (Some(Mode::Barrier), 2));
}

#[tokio::test]
async fn a_barrier_that_somebody_left_early_is_refused() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|options| options.attempts = 1);
    // The host takes no release, so its own limit ends the stretch.
    fleet.hosts[1].refuses("release", 410, 1);
    let error = coordinator.create(named("s1", RequestedMode::Barrier), |_| {}).await.unwrap_err();
    assert!(matches!(error, CoordinatorError::Refused { attempts: 1, .. }), "{error}");
    assert!(fleet.all_clean());
}

#[tokio::test]
async fn an_abort_is_repeated_until_the_host_answers_it() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    fleet.hosts[0].refuses("seal", 500, 1);
    fleet.hosts[1].refuses("abort", 503, u32::MAX);
    coordinator.create(timed(), |_| {}).await.unwrap_err();
    eventually(async || fleet.hosts[1].asked("abort") > 1).await;
    assert!(!fleet.hosts[1].is_clean());
    fleet.hosts[1].refuses("abort", 503, 0);
    eventually(async || coordinator.catalogue.owed().unwrap().is_empty()).await;
    assert!(fleet.all_clean());
}

#[tokio::test]
async fn the_story_of_a_failure_tells_which_host_which_step_why_and_what_was_undone() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    fleet.hosts[1].refuses("seal", 500, 1);
    fleet.hosts[0].refuses("abort", 503, 1);
    coordinator.create(timed(), |_| {}).await.unwrap_err();
    let told = async |step, host: Option<&str>| {
        let story = coordinator.show("s1", false).await.unwrap().story;
        let of = story.into_iter().filter(|entry| entry.step == step && entry.host.as_deref() == host);
        of.map(|entry| entry.detail).collect::<Vec<_>>()
    };
    let plan = told(Step::Plan, Some("c")).await;
    assert!(plan[0].starts_with("T is ") && plan[0].contains("known within ±"), "{plan:?}");
    assert!(told(Step::Seal, Some("a")).await[0].contains("\"released_by\""));
    assert_eq!(told(Step::Seal, Some("b")).await, ["host b: scripted to refuse seal"]);
    assert_eq!(told(Step::Abort, None).await, ["host b: scripted to refuse seal"]);
    assert_eq!(told(Step::Abort, Some("b")).await, ["undone there"]);
    let again = "host a: scripted to refuse abort; it is asked again until it answers";
    eventually(async || told(Step::Abort, Some("a")).await == [again, "undone there"]).await;

    // A group that is listed: nobody has to be asked what there is before the attempt begins.
    let group = ["a", "b", "c"].map(|host| Member { host: host.to_owned(), volume: "data".to_owned() });
    fleet.hosts[2].refuses("describe", 500, 1);
    let request = CreateRequest { group: group.into(), ..named("s2", RequestedMode::Auto) };
    coordinator.create(request, |_| {}).await.unwrap_err();
    let story = coordinator.show("s2", false).await.unwrap().story;
    assert_eq!((story.len(), story[0].step), (1, Step::Describe));
    assert_eq!(story[0].detail, "host c: scripted to refuse describe");
}

#[tokio::test]
async fn a_crash_at_any_state_is_rolled_back_at_the_next_start() {
    let fleet = Fleet::new(near());
    let first = fleet.coordinator(|_| {});
    let done = first.create(named("done", RequestedMode::Timed), |_| {}).await.unwrap();
    stop(first).await;
    let hosts: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
    for reached in ["planning", "armed", "committing", "partly committed"] {
        let (id, attempt) = (Uuid::now_v7(), Uuid::now_v7());
        {
            let catalogue = fleet.catalogue();
            catalogue.begin(id, reached, None).unwrap();
            if reached != "planning" {
                catalogue.begin_attempt(id, attempt, &hosts).unwrap();
            }
            if reached.ends_with("committing") || reached.ends_with("committed") {
                let name = reached.to_owned();
                let evidence = catalogue.evidence(done.id).unwrap();
                catalogue.committing(&Manifest { id, name, ..done.clone() }, evidence.as_ref()).unwrap();
            }
            if reached == "partly committed" {
                fleet.hosts[2].leave_behind(attempt, reached);
            }
        }
        let coordinator = fleet.coordinator(|_| {});
        assert_eq!(
            state(&coordinator, reached).await,
            SnapshotState::Failed,
            "{reached}, before any host answers"
        );
        assert!(coordinator.verify(reached, |_| {}).await.is_err(), "a failed snapshot has no verdict");
        coordinator.recover().await.unwrap();
        eventually(async || coordinator.catalogue.owed().unwrap().is_empty()).await;
        assert!(
            fleet.hosts.iter().all(|host| host.names() == ["done"]),
            "{reached}: only the complete one is left"
        );
        assert_eq!(state(&coordinator, "done").await, SnapshotState::Complete);
        stop(coordinator).await;
    }
}

#[tokio::test]
async fn controls_are_kept_but_never_called_consistent() {
    let fleet = Fleet::new(lopsided());
    let coordinator = fleet.coordinator(|_| {});
    for (name, control) in
        [("zero", Control::ZeroStretch), ("raw", Control::Untranslated), ("alone", Control::Uncoordinated)]
    {
        let lead_ns = Some(Nanos::from_millis(300));
        let request = CreateRequest { control: Some(control), lead_ns, ..named(name, RequestedMode::Timed) };
        let manifest = coordinator.create(request, |_| {}).await.unwrap();
        assert_eq!(manifest.verdict, Verdict::Inconsistent, "{name}");
        assert!(manifest.refusal.is_some() && manifest.margin_ns.is_none());
        assert_eq!(state(&coordinator, name).await, SnapshotState::Inconsistent);
        assert!(
            fleet.hosts.iter().all(|host| host.names().contains(&name.to_owned())),
            "{name} can be opened"
        );
        assert_eq!(coordinator.verify(name, |_| {}).await.unwrap().verdict, Verdict::Inconsistent);
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_before_anything_is_sent() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|options| options.simulation = false);
    let member = |host: &str, volume: &str| Member { host: host.to_owned(), volume: volume.to_owned() };
    let statistical = |group_confidence| RequestedPolicy::Statistical {
        group_confidence,
        budget: AsymmetryBudget::SmallestRoundTrip,
    };
    for (request, status) in [
        (named("../s1", RequestedMode::Timed), 422),
        (named("", RequestedMode::Timed), 422),
        (CreateRequest { lead_ns: Some(Nanos::ZERO), ..timed() }, 422),
        (CreateRequest { attempts: Some(0), ..timed() }, 422),
        (CreateRequest { policy: statistical(1.0), ..timed() }, 422),
        (CreateRequest { policy: statistical(f64::NAN), ..timed() }, 422),
        (CreateRequest { control: Some(Control::ZeroStretch), ..timed() }, 422),
        (CreateRequest { group: vec![member("z", "data")], ..timed() }, 404),
        (CreateRequest { group: vec![member("a", "none")], ..timed() }, 404),
    ] {
        let error = coordinator.create(request.clone(), |_| {}).await.unwrap_err();
        assert_eq!(error.status(), status, "{request:?}: {error}");
    }
    assert_eq!(fleet.asked("arm"), [0, 0, 0]);
}

#[tokio::test]
async fn a_name_is_held_by_one_snapshot() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    coordinator.create(timed(), |_| {}).await.unwrap();
    let error = coordinator.create(timed(), |_| {}).await.unwrap_err();
    assert_eq!(error.status(), 409);
    assert_eq!(fleet.asked("arm"), [1, 1, 1]);
    let unnamed = CreateRequest { name: None, ..timed() };
    let (one, other) = (
        coordinator.create(unnamed.clone(), |_| {}).await.unwrap(),
        coordinator.create(unnamed, |_| {}).await.unwrap(),
    );
    assert!(one.name != other.name && is_name(&one.name));
}

#[tokio::test]
async fn a_name_that_a_host_knows_from_elsewhere_is_refused_and_kept() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    fleet.hosts[1].leave_behind(Uuid::now_v7(), "s1");
    let error = coordinator.create(timed(), |_| {}).await.unwrap_err();
    assert_eq!(error.status(), 409);
    assert!(error.to_string().contains("volume data of host b has a snapshot called s1"), "{error}");
    assert_eq!((fleet.asked("arm"), fleet.hosts[1].names()), (vec![0, 0, 0], vec!["s1".to_owned()]));
}

#[tokio::test]
async fn a_subset_of_the_hosts_can_be_cut() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    for group in [vec!["c"], vec!["c", "a", "c"]] {
        let group = group.into_iter().map(|host| Member { host: host.to_owned(), volume: "data".to_owned() });
        let request = CreateRequest { group: group.collect(), name: None, ..timed() };
        let manifest = coordinator.create(request, |_| {}).await.unwrap();
        assert_eq!(manifest.verdict, Verdict::Consistent);
    }
    assert_eq!(fleet.asked("arm"), [1, 0, 2]);
}

#[tokio::test]
async fn a_statistical_certificate_prints_the_groups_confidence() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let policy = RequestedPolicy::Statistical {
        group_confidence: 0.9,
        budget: AsymmetryBudget::Configured(Nanos::new(4_000)),
    };
    let manifest = coordinator.create(CreateRequest { policy, ..timed() }, |_| {}).await.unwrap();
    assert_eq!((manifest.group_confidence, manifest.verdict), (Some(0.9), Verdict::Consistent));
    assert_eq!(coordinator.verify("s1", |_| {}).await.unwrap().margin_ns, manifest.margin_ns);
}

#[tokio::test]
async fn a_snapshot_is_deleted_on_the_hosts_before_it_is_forgotten() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    coordinator.create(timed(), |_| {}).await.unwrap();
    fleet.hosts[2].refuses("delete", 500, 1);
    coordinator.delete("s1").await.unwrap_err();
    assert_eq!(state(&coordinator, "s1").await, SnapshotState::Deleting);
    assert!(coordinator.verify("s1", |_| {}).await.is_err(), "what is half deleted is not called consistent");
    coordinator.delete("s1").await.unwrap();
    assert!(fleet.all_clean());
    assert_eq!(coordinator.delete("s1").await.unwrap_err().status(), 404);
}

#[tokio::test]
async fn a_deletion_goes_on_by_itself_and_over_a_restart_of_the_server() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    coordinator.create(timed(), |_| {}).await.unwrap();
    fleet.hosts[2].refuses("delete", 500, u32::MAX);
    let error = coordinator.delete("s1").await.unwrap_err().to_string();
    assert!(error.contains("goes on"), "{error}");
    let taken = coordinator.create(timed(), |_| {}).await.unwrap_err();
    assert_eq!(taken.status(), 409, "a name that is being deleted is taken: {taken}");
    // As a new server does: from here on two tasks are at it, one at a time.
    coordinator.recover().await.unwrap();
    fleet.hosts[2].refuses("delete", 500, 0);
    eventually(async || coordinator.list().await.unwrap().is_empty()).await;
    assert!(fleet.all_clean());
    coordinator.create(timed(), |_| {}).await.unwrap();
}

#[tokio::test]
async fn the_api_serves_its_client_and_a_client_that_leaves_stops_nothing() {
    let fleet = Fleet::new(near());
    let coordinator = fleet.coordinator(|_| {});
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None, false).unwrap();
    let url = listener.url();
    let router = api::router(coordinator, OpenApiRouter::new());
    tokio::spawn(listener.serve(router, Admits::People, StopHandle::new()));
    let client = ServerClient::new(&Connector::new(None, false).unwrap(), &url).unwrap();

    let mut steps = 0;
    let manifest = client.create(&timed(), |_| steps += 1).await.unwrap();
    assert!(steps > 5);
    let error = client.create(&timed(), |_| {}).await.unwrap_err();
    assert_eq!((error.status(), fleet.asked("abort")), (Some(409), vec![0, 0, 0]));
    assert_eq!(client.show("s1", false).await.unwrap().evidence, None);
    assert!(client.show("s1", true).await.unwrap().evidence.is_some());
    assert_eq!(client.verify("s1").await.unwrap().margin_ns, manifest.margin_ns);
    assert_eq!(client.volumes().await.unwrap().len(), 3);
    client.delete("s1").await.unwrap();

    let (sender, receiver) = tokio::sync::oneshot::channel();
    let mut sender = Some(sender);
    let request = named("s2", RequestedMode::Timed);
    let leaving = client.create(&request, |_| {
        if let Some(sender) = sender.take() {
            sender.send(()).unwrap();
        }
    });
    tokio::select! {
        _ = leaving => panic!("the first step is not the last"),
        _ = receiver => {}
    }
    eventually(async || {
        client
            .list()
            .await
            .unwrap()
            .iter()
            .any(|row| row.name == "s2" && row.state == SnapshotState::Complete)
    })
    .await;
}

#[tokio::test]
async fn a_rehearsal_says_what_a_snapshot_would_be_like_and_leaves_nothing() {
    let fleet = Fleet::new(lopsided());
    let coordinator = fleet.coordinator(|_| {});
    let forecast = coordinator.rehearse(timed()).await.unwrap();
    assert_eq!(fleet.asked("arm"), [0, 0, 0]);
    assert_eq!(fleet.asked("abort"), [1, 1, 1]);
    assert!(coordinator.list().await.unwrap().is_empty());
    assert!(coordinator.catalogue.owed().unwrap().is_empty());

    let manifest = coordinator.create(timed(), |_| {}).await.unwrap();
    let near = |a: Nanos, b: Nanos| (a.get() - b.get()).abs() < b.get() / 2;
    assert!(near(forecast.v_ns.unwrap(), manifest.v_ns.unwrap()), "{forecast:?} {manifest:?}");
    assert!(forecast.margin_ns.unwrap() > Nanos::ZERO);
    assert!(forecast.margin_ns.unwrap() <= manifest.margin_ns.unwrap());
    for (host, result) in forecast.hosts.iter().zip(&manifest.hosts) {
        assert_eq!(host.host, result.host);
        // Measuring again only adds to what is known.
        assert!(host.error_ns.unwrap() >= result.error_ns.unwrap(), "{host:?} {result:?}");
    }

    let barrier = coordinator.rehearse(named("s2", RequestedMode::Barrier)).await.unwrap();
    assert_eq!((barrier.mode, barrier.v_ns), (Mode::Barrier, None));
    let taken = coordinator.rehearse(timed()).await;
    assert!(matches!(taken, Err(CoordinatorError::Catalogue(CatalogueError::NameTaken(_)))), "{taken:?}");
    let missing = Member { host: "a".to_owned(), volume: "nothing".to_owned() };
    let refused = coordinator
        .rehearse(CreateRequest { group: vec![missing], ..named("s2", RequestedMode::Auto) })
        .await;
    assert!(matches!(refused, Err(CoordinatorError::Unknown(_))), "{refused:?}");
}
