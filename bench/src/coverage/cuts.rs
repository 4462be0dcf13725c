//! Timed cuts of two hosts, planned and certified by the coordinator's own functions.

use snapshot::certificate::{Evidence, HostEvidence, Mode, Observed, certify};
use snapshot::coordinator::plan::{Candidate, plan};
use snapshot::cut::{Cause, Readings, Stretch};
use timesync::bound::Policy;
use timesync::random::Random;
use timesync::source::Observation;
use timesync::time::{Host as HostTimeline, Nanos, Time};

use super::clock::SECOND;
use super::estimator::Estimator;
use super::host::{Host, at, incarnation};

const LEAD: i64 = 50_000_000;
const MAX_STRETCH: i64 = 100_000_000;

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No plan, or no certificate.
    Refused,
    /// Certified, and what the certificate says is true.
    Right,
    /// Certified, and a reading was not where the certificate says: by so many ns.
    Wrong(i64),
}

/// One attempt that begins at `now`. The hosts read as close to their T as the rules allow: P = T − 1, Q = T + V.
pub fn attempt<E: Estimator>(hosts: &mut [Host<E>], now: i64, random: &mut Random) -> Verdict {
    let Some((planned_at, planned)) = measure(hosts, now) else { return Verdict::Refused };
    let candidates: Vec<_> = planned
        .iter()
        .map(|observation| Candidate {
            bound: |at| observation.window.bound(at, &Policy::Hard),
            rate_ppb: observation.window.assumptions().rate_ppb,
            max_stretch: Nanos::new(MAX_STRETCH),
        })
        .collect();
    let Ok(plan) = plan(at(planned_at), Nanos::new(LEAD), &candidates) else { return Verdict::Refused };
    let stretch = if hosts.len() > 1 { plan.stretch } else { Nanos::ZERO };
    let readings: Vec<(Time<HostTimeline>, Time<HostTimeline>)> =
        plan.at.iter().map(|&at| (at - Nanos::new(1), at + stretch)).collect();
    // When they really read them; a host that is far behind never does.
    let far = planned_at + 30 * SECOND;
    let truth: Vec<(i64, i64)> = hosts
        .iter()
        .zip(&readings)
        .map(|(host, (p, q))| {
            let first = |reading| host.clock.first(reading, planned_at, far);
            (first(p.as_nanos() + 1), first(q.as_nanos()))
        })
        .collect();
    let released = truth.iter().map(|(_, q)| *q).max().unwrap_or(far);
    if released >= far || truth.iter().any(|(p, _)| *p <= planned_at) {
        return Verdict::Refused; // the order came too late, or the host timed out
    }
    let sealed = released + random.nanos(1_000_000, 40_000_000);
    let Some((_, remeasured)) = measure(hosts, sealed) else { return Verdict::Refused };
    let server = incarnation(900);
    let evidence = planned.into_iter().zip(remeasured).zip(&plan.at).zip(&readings).enumerate().map(
        |(index, (((planned, remeasured), &at), &(p, q)))| HostEvidence {
            host: format!("host{index}"),
            // Orders and reports go over the control plane, which names the boot it talks to.
            ordered: planned.incarnation,
            reported: remeasured.incarnation,
            readings: Readings {
                at,
                p,
                q,
                released_by: Cause::Time,
                held: 0,
                stretch_ns: Stretch::default(),
            },
            nonce: None,
            observed: Some(Observed::of(&planned, &remeasured)),
        },
    );
    let evidence = Evidence {
        mode: Mode::Timed,
        policy: Policy::Hard,
        server_before: server,
        server_after: server,
        released_nonces: Vec::new(),
        hosts: evidence.collect(),
    };
    let Ok(certificate) = certify(&evidence) else { return Verdict::Refused };
    let off = |(placed, &(p, q)): (&snapshot::certificate::Placed, &(i64, i64))| {
        (p - placed.p_latest.as_nanos()).max(placed.q_earliest.as_nanos() - q)
    };
    // `truth` has P one nanosecond late, when the clock goes on to the next one.
    match certificate.placed.iter().zip(&truth).map(off).max() {
        Some(off) if off > 2 => Verdict::Wrong(off),
        _ => Verdict::Right,
    }
}

/// A burst with every host, and what is known of each after it.
fn measure<E: Estimator>(hosts: &mut [Host<E>], now: i64) -> Option<(i64, Vec<Observation>)> {
    let over = hosts.iter_mut().map(|host| host.burst(now)).max()?;
    hosts.iter_mut().for_each(|host| host.advance(over));
    let observed = hosts.iter().map(|host| host.estimator.observe(at(over)).ok());
    Some((over, observed.collect::<Option<_>>()?))
}
