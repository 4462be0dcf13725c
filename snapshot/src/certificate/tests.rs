use proptest::prelude::*;
use timesync::bound::Assumptions;
use timesync::identity::BootId;

use super::*;
use crate::simulated::{Clock, Path, World, any_host, incarnation};

const NOW: Time<Server> = Time::from_nanos(10_000_000_000);
const LEAD: Nanos = Nanos::from_millis(50);

/// How a stretch follows from the half-widths at T, largest first.
type Sizing = fn(&[Nanos]) -> Nanos;

fn sum_of_two(errors: &[Nanos]) -> Nanos {
    errors[0] + errors[1] + Nanos::new(1_000)
}

fn larger_alone(errors: &[Nanos]) -> Nanos {
    errors[0] + Nanos::new(1_000)
}

/// A world that was ordered to cut at the middles of the bounds at T, with a stretch as `sizing` says.
fn world(clocks: Vec<(Clock, Path)>, sizing: Sizing) -> World {
    let t = NOW + LEAD;
    World::new(clocks, NOW, |planned| {
        let bounds = planned.iter().map(|window| window.bound(t, &Policy::Hard).unwrap());
        let (at, mut errors): (Vec<_>, Vec<_>) =
            bounds.map(|bound| (t + bound.middle(), bound.half_width())).unzip();
        errors.sort_unstable_by_key(|error| -error.get());
        (at, sizing(&errors))
    })
}

/// Two hosts whose delays lie entirely in opposite directions: each true offset is at the far end of its bound.
fn lopsided() -> Vec<(Clock, Path)> {
    vec![
        (Clock { offset: 30_000_000, drift_ppb: 20_000 }, Path::micros(2_000, 1)),
        (Clock { offset: -25_000_000, drift_ppb: -30_000 }, Path::micros(1, 2_000)),
    ]
}

fn barrier() -> Evidence {
    let mut evidence = world(lopsided(), sum_of_two).evidence;
    evidence.mode = Mode::Barrier;
    for host in &mut evidence.hosts {
        host.readings.released_by = Cause::Barrier;
        host.observed = None;
        host.nonce = Some(Uuid::new_v4());
    }
    evidence.released_nonces = evidence.hosts.iter().filter_map(|host| host.nonce).collect();
    evidence
}

#[test]
fn the_sum_of_two_half_widths_is_enough_on_a_lopsided_network() {
    let world = world(lopsided(), sum_of_two);
    let certificate = certify(&world.evidence).unwrap();
    let margin = certificate.margin.unwrap();
    assert!(margin > Nanos::ZERO && margin <= world.true_margin(), "{margin} of {}", world.true_margin());
}

#[test]
fn the_larger_half_width_alone_tears_the_cut_and_is_refused() {
    let world = world(lopsided(), larger_alone);
    assert!(world.true_margin() < Nanos::ZERO, "the scenario must really tear: {}", world.true_margin());
    assert!(matches!(certify(&world.evidence), Err(Refusal::Margin { .. })));
}

#[test]
fn no_stretch_tears_the_cut_and_is_refused() {
    let world = world(lopsided(), |_| Nanos::ZERO);
    assert!(world.true_margin() < Nanos::ZERO);
    assert!(matches!(certify(&world.evidence), Err(Refusal::Margin { .. })));
}

#[test]
fn an_untranslated_t_is_refused() {
    let mut world = world(lopsided(), sum_of_two);
    let stretch = world.evidence.hosts[0].readings.q - world.evidence.hosts[0].readings.at;
    let number: Time<Host> = Time::from_nanos((NOW + LEAD).as_nanos());
    for host in &mut world.evidence.hosts {
        host.readings.at = number;
        host.readings.p = number - Nanos::new(1);
        host.readings.q = number + stretch;
    }
    assert!(world.true_margin() < Nanos::ZERO);
    assert!(matches!(certify(&world.evidence), Err(Refusal::Margin { .. })));
}

#[test]
fn one_host_alone_is_ordered_by_its_own_clock() {
    let mut world = world(lopsided(), sum_of_two);
    world.evidence.hosts.truncate(1);
    let Readings { p, q, .. } = world.evidence.hosts[0].readings;
    assert_eq!(certify(&world.evidence).unwrap().margin, Some(q - p));
}

#[test]
fn what_was_not_paused_is_certified_alone_and_never_across_hosts() {
    let mut world = world(lopsided(), sum_of_two);
    world.first().readings.released_by = Cause::Unpaused;
    assert!(matches!(certify(&world.evidence), Err(Refusal::ReleasedBy { cause: Cause::Unpaused, .. })));
    world.evidence.hosts.truncate(1);
    assert!(certify(&world.evidence).is_ok());
}

/// Spoils good evidence.
type Spoil = fn(&mut World);
/// Recognises the refusal.
type Expect = fn(&Refusal) -> bool;

#[test]
fn every_refusal_is_reached_by_what_it_names() {
    let cases: [(&str, Spoil, Expect); 16] = [
        ("no hosts", |world| world.evidence.hosts.clear(), |why| matches!(why, Refusal::NoHosts)),
        (
            "the server restarted",
            |world| world.evidence.server_after = incarnation(),
            |why| matches!(why, Refusal::Restarted { who } if who == "the server"),
        ),
        (
            "a host restarted before it reported",
            |world| world.first().reported = incarnation(),
            |why| matches!(why, Refusal::Restarted { who } if who == "host a"),
        ),
        (
            "another boot answered the exchanges before",
            |world| world.observed().planned_with.boot = BootId(Uuid::new_v4()),
            |why| matches!(why, Refusal::Restarted { .. }),
        ),
        (
            "another boot answered the exchanges after",
            |world| world.observed().remeasured_with.boot = BootId(Uuid::new_v4()),
            |why| matches!(why, Refusal::Restarted { .. }),
        ),
        (
            "max_stretch ran out",
            |world| world.first().readings.released_by = Cause::Timeout,
            |why| matches!(why, Refusal::ReleasedBy { cause: Cause::Timeout, .. }),
        ),
        (
            "aborted",
            |world| world.first().readings.released_by = Cause::Abort,
            |why| matches!(why, Refusal::ReleasedBy { cause: Cause::Abort, .. }),
        ),
        (
            "P and Q swapped",
            |world| {
                let Readings { p, q, .. } = &mut world.first().readings;
                std::mem::swap(p, q);
            },
            |why| matches!(why, Refusal::Contradiction { .. }),
        ),
        (
            "released before T",
            |world| world.first().readings.q = world.first().readings.at - Nanos::new(1),
            |why| matches!(why, Refusal::Contradiction { .. }),
        ),
        (
            "no exchanges stored",
            |world| world.first().observed = None,
            |why| matches!(why, Refusal::NotRemeasured { .. }),
        ),
        (
            "only the exchanges of the plan",
            |world| world.observed().remeasured = world.observed().planned.clone(),
            |why| matches!(why, Refusal::NotRemeasured { .. }),
        ),
        (
            "an empty window",
            |world| world.observed().remeasured = Window::new(Assumptions::default(), 512),
            |why| matches!(why, Refusal::Unbounded { why: WindowError::Empty, .. }),
        ),
        (
            "a step in the window",
            |world| {
                let (Clock { offset, drift_ppb }, path) = world.clocks[0];
                let stepped = Clock { offset: offset + 50_000_000, drift_ppb };
                let after = NOW + Nanos::from_millis(500);
                stepped.burst(&mut world.observed().remeasured, after, path);
            },
            |why| matches!(why, Refusal::Unbounded { why: WindowError::Broken, .. }),
        ),
        (
            "a step between plan and re-measurement, with the old exchanges gone",
            |world| {
                let (Clock { offset, drift_ppb }, path) = world.clocks[0];
                let stepped = Clock { offset: offset + 5_000_000, drift_ppb };
                let mut remeasured = stepped.window(NOW, path);
                stepped.burst(&mut remeasured, NOW + Nanos::from_millis(500), path);
                world.observed().remeasured = remeasured;
            },
            |why| matches!(why, Refusal::MovedSincePlanned { .. }),
        ),
        (
            "a suspend between plan and re-measurement, shorter than the intervals are wide",
            |world| world.observed().remeasured_resets += 1,
            |why| matches!(why, Refusal::TimelineChanged { host } if host == "a"),
        ),
        (
            "released too early",
            |world| world.first().readings.q = world.first().readings.at,
            |why| matches!(why, Refusal::Margin { i, j, .. } if i == "a" && j == "b"),
        ),
    ];
    for (what, spoil, expect) in cases {
        let mut world = world(lopsided(), sum_of_two);
        spoil(&mut world);
        let refusal = certify(&world.evidence).expect_err(what);
        assert!(expect(&refusal), "{what}: {refusal:?}");
    }
}

#[test]
fn a_barrier_certifies_only_a_release_that_carried_every_nonce() {
    let good = barrier();
    assert_eq!(certify(&good), Ok(Certificate { margin: None, placed: Vec::new() }));
    for index in 0..good.hosts.len() {
        let host = good.hosts[index].host.clone();
        let mut lacking = good.clone();
        lacking.released_nonces.remove(index);
        assert_eq!(certify(&lacking), Err(Refusal::Nonce { host: host.clone() }));
        let mut silent = good.clone();
        silent.hosts[index].nonce = None;
        assert_eq!(certify(&silent), Err(Refusal::Nonce { host }));
    }
    for cause in [Cause::Time, Cause::Timeout, Cause::Abort] {
        let mut otherwise = good.clone();
        otherwise.hosts[1].readings.released_by = cause;
        assert!(matches!(certify(&otherwise), Err(Refusal::ReleasedBy { .. })), "{cause:?}");
    }
}

#[test]
fn stored_evidence_gives_the_same_certificate() {
    let evidence = world(lopsided(), sum_of_two).evidence;
    let stored = serde_json::to_string(&evidence).unwrap();
    let read: Evidence = serde_json::from_str(&stored).unwrap();
    assert_eq!(read, evidence);
    assert_eq!(certify(&read), certify(&evidence));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_certified_margin_is_no_more_than_the_true_one(
        clocks in prop::collection::vec(any_host(), 2..=4),
        // From far too little to more than enough, in percent of the sum.
        percent in 0_i64..150,
        early in 1_i64..1_000_000,
        late in 0_i64..1_000_000,
    ) {
        let mut world = world(clocks, sum_of_two);
        for host in &mut world.evidence.hosts {
            let Readings { at, p, q, .. } = &mut host.readings;
            *p = *at - Nanos::new(early);
            *q = *at + Nanos::new((*q - *at).get() * percent / 100 + late);
        }
        let truth = world.true_margin();
        match certify(&world.evidence) {
            // The truth is known to 1 ns on either side.
            Ok(certificate) => prop_assert!(certificate.margin.unwrap() <= truth + Nanos::new(2)),
            Err(Refusal::Margin { margin, .. }) => prop_assert!(margin <= truth + Nanos::new(2)),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn a_stretch_of_the_sum_is_always_certified(clocks in prop::collection::vec(any_host(), 2..=4)) {
        let world = world(clocks, sum_of_two);
        prop_assert!(certify(&world.evidence).is_ok(), "{:?}", certify(&world.evidence));
        prop_assert!(world.true_margin() > Nanos::ZERO);
    }
}

proptest! {
    #[test]
    fn the_least_margin_is_the_least_of_all_pairs(
        readings in prop::collection::vec((0_i64..20, 0_i64..20), 0..7)
    ) {
        let placed: Vec<Placed> = readings
            .iter()
            .map(|&(p, q)| Placed {
                p_latest: Time::from_nanos(p),
                q_earliest: Time::from_nanos(q),
                error: Nanos::ZERO,
            })
            .collect();
        let pairs = (0..placed.len()).flat_map(|i| (0..placed.len()).map(move |j| (i, j)));
        let all = pairs.filter(|(i, j)| i != j).map(|(i, j)| placed[i].q_earliest - placed[j].p_latest);
        let found = least_margin(&placed);
        prop_assert_eq!(found.map(|(margin, ..)| margin), all.min());
        if let Some((margin, i, j)) = found {
            prop_assert!(i != j && margin == placed[i].q_earliest - placed[j].p_latest);
        }
    }
}
