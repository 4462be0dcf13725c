//! The certificate: from what the clocks read, is this a consistent cut? Pure arithmetic over stored evidence, so that
//! anybody can compute it again.
//!
//! *Theorem.* Let host i's clock have read Q_i before any completion of a post request left it, and P_j be the latest
//! reading that classified a request as pre on host j. Place both on the server's timeline: Q_i happened no earlier
//! than `q_earliest`, P_j no later than `p_latest`. If `q_earliest(i) − p_latest(j) > 0` for all i ≠ j, the cut is
//! consistent.
//!
//! *Proof.* Suppose post write a on i causally precedes pre write b on j ≠ i. What revealed a left i after the reading
//! Q ≥ Q_i, so at a server time ≥ q_earliest(i). b was received after that and classified by a reading ≤ P_j taken
//! after it was received, so at a server time ≤ p_latest(j). Hence q_earliest(i) ≤ p_latest(j): the margin is ≤ 0, a
//! contradiction. On one host the clock is monotone and P_i < T_i ≤ Q_i. ∎
//!
//! The proof needs true intervals and nothing else: no timers, no message delivery, no scheduling. So the intervals are
//! taken from exchanges on *both sides* of the readings; a prediction may plan a cut, it never certifies one.

use serde::{Deserialize, Serialize};
use timesync::bound::{Interval, Policy, Window, WindowError, locate};
use timesync::identity::Incarnation;
use timesync::source::Observation;
use timesync::time::{Host, Nanos, Server, Time};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::cut::{Cause, Readings};
use crate::mutation::mutated;

/// How the hosts agreed on the instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// By their clocks, and the bound on them.
    Timed,
    /// By messages.
    Barrier,
}

/// What the server knew of a host's clock when it planned and after T.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// The exchanges the plan was made from.
    pub planned: Window,
    /// The exchanges afterwards, with some on both sides of every reading.
    pub remeasured: Window,
    /// Who answered the exchanges behind `planned`.
    pub planned_with: Incarnation,
    /// Who answered the exchanges behind `remeasured`.
    pub remeasured_with: Incarnation,
    /// How often the window had been emptied when `planned` was taken.
    #[serde(default)]
    pub planned_resets: u64,
    /// And when `remeasured` was.
    #[serde(default)]
    pub remeasured_resets: u64,
}

impl Observed {
    /// What two observations of the same host say together.
    pub fn of(planned: &Observation, remeasured: &Observation) -> Self {
        Observed {
            planned: planned.window.clone(),
            remeasured: remeasured.window.clone(),
            planned_with: planned.incarnation,
            remeasured_with: remeasured.incarnation,
            planned_resets: planned.resets,
            remeasured_resets: remeasured.resets,
        }
    }
}

/// One host's evidence: what it read, and what bounds its clock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostEvidence {
    /// The host's name.
    pub host: String,
    /// Whom the order was addressed to.
    pub ordered: Incarnation,
    /// Who reported the readings.
    pub reported: Incarnation,
    /// The readings.
    pub readings: Readings,
    /// Barrier mode: the nonce the host drew after its cut.
    pub nonce: Option<Uuid>,
    /// Timed mode: the exchanges that bound its clock.
    pub observed: Option<Observed>,
}

/// Everything the verdict rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// How the hosts agreed.
    pub mode: Mode,
    /// Which bound counts, and at what confidence per host.
    pub policy: Policy,
    /// The server that planned and measured.
    pub server_before: Incarnation,
    /// The server that certified; any change refuses.
    pub server_after: Incarnation,
    /// Barrier mode: the nonces that the release carried, in the order of `hosts`.
    pub released_nonces: Vec<Uuid>,
    /// Every host of the group.
    pub hosts: Vec<HostEvidence>,
}

impl Evidence {
    /// The same of other hosts, or of fewer: the theorem is about pairs, so what is left proves as much about those.
    pub fn with_hosts(&self, hosts: Vec<HostEvidence>) -> Evidence {
        Evidence {
            mode: self.mode,
            policy: self.policy,
            server_before: self.server_before,
            server_after: self.server_after,
            released_nonces: self.released_nonces.clone(),
            hosts,
        }
    }
}

/// One host's readings on the server's timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// P_i happened no later than this.
    pub p_latest: Time<Server>,
    /// Q_i happened no earlier than this.
    pub q_earliest: Time<Server>,
    /// Half-width of the interval that places P_i.
    pub error: Nanos,
}

/// The certificate of a consistent cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// By how much the cut is consistent: positive. None in barrier mode, where messages order the events.
    pub margin: Option<Nanos>,
    /// The readings on the server's timeline, in the order of the evidence's hosts; empty in barrier mode.
    pub placed: Vec<Placed>,
}

/// Why there is no certificate.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// There is nothing to certify.
    #[error("the snapshot has no hosts")]
    NoHosts,
    /// A daemon restarted, or its machine did.
    #[error("{who} restarted while the cut was taken, so its evidence counts for nothing")]
    Restarted {
        /// The host's name, or "the server".
        who: String,
    },
    /// A stretch ended by something else than it should have.
    #[error("host {host} released its writes by {cause:?}, not by {expected:?}")]
    ReleasedBy {
        /// The host's name.
        host: String,
        /// What ended it.
        cause: Cause,
        /// What should have.
        expected: Cause,
    },
    /// R1 or R2 was broken on one host.
    #[error("host {host} reports readings that contradict each other (P ≥ T or Q < T)")]
    Contradiction {
        /// The host's name.
        host: String,
    },
    /// No exchanges, or none on both sides of a reading.
    #[error("host {host} has no exchanges on both sides of the cut")]
    NotRemeasured {
        /// The host's name.
        host: String,
    },
    /// The host's clock broke an assumption.
    #[error("no bound for host {host}: {why}")]
    Unbounded {
        /// The host's name.
        host: String,
        /// What the window says.
        why: WindowError,
    },
    /// The plan's interval and the re-measured one exclude each other.
    #[error("host {host}'s clock is not where it was when the cut was planned: an assumption broke")]
    MovedSincePlanned {
        /// The host's name.
        host: String,
    },
    /// The window was emptied between plan and re-measurement.
    #[error("host {host}'s timeline changed, or contradicted itself, after the cut was planned")]
    TimelineChanged {
        /// The host's name.
        host: String,
    },
    /// The arithmetic says no.
    #[error("the cut may be torn between {i} and {j}: margin {margin}")]
    Margin {
        /// The host whose release is too early.
        i: String,
        /// The host whose cut is too late.
        j: String,
        /// q_earliest(i) − p_latest(j), not positive.
        margin: Nanos,
    },
    /// A release that did not wait for everybody.
    #[error("host {host} was released without its nonce")]
    Nonce {
        /// The host's name.
        host: String,
    },
}

/// Computes the certificate from the evidence.
///
/// # Errors
/// The first reason found why the cut is not certainly consistent.
pub fn certify(evidence: &Evidence) -> Result<Certificate, Refusal> {
    if evidence.hosts.is_empty() {
        return Err(Refusal::NoHosts);
    }
    if evidence.server_before != evidence.server_after {
        return Err(Refusal::Restarted { who: "the server".to_owned() });
    }
    let expected = match evidence.mode {
        Mode::Timed => Cause::Time,
        Mode::Barrier => Cause::Barrier,
    };
    for host in &evidence.hosts {
        if host.ordered != host.reported && !mutated!(RestartedEvidence) {
            return Err(Refusal::Restarted { who: format!("host {}", host.host) });
        }
        let Readings { at, p, q, released_by, .. } = host.readings;
        let timed_out = mutated!(TimeoutCertified) && released_by == Cause::Timeout;
        // One volume's own snapshot needs nobody's agreement. The host sees to it that it is one volume.
        let alone = evidence.hosts.len() == 1 && released_by == Cause::Unpaused;
        if released_by != expected && !timed_out && !alone {
            return Err(Refusal::ReleasedBy { host: host.host.clone(), cause: released_by, expected });
        }
        if p >= at || q < at {
            return Err(Refusal::Contradiction { host: host.host.clone() });
        }
    }
    match evidence.mode {
        Mode::Timed => certify_timed(evidence),
        Mode::Barrier => certify_barrier(evidence),
    }
}

fn certify_timed(evidence: &Evidence) -> Result<Certificate, Refusal> {
    let placed =
        evidence.hosts.iter().map(|host| place(host, &evidence.policy)).collect::<Result<Vec<_>, _>>()?;
    // One host orders its own readings by its own monotone clock; alone, that is the whole margin.
    let least = match placed.as_slice() {
        [_] => evidence.hosts.first().map(|host| (host.readings.q - host.readings.p, 0, 0)),
        placed => least_margin(placed),
    };
    match least {
        None => Err(Refusal::NoHosts),
        Some((margin, ..)) if mutated!(LargerError | ZeroStretch) => {
            Ok(Certificate { margin: Some(margin), placed })
        }
        Some((margin, i, j)) if margin <= Nanos::ZERO => Err(Refusal::Margin {
            i: evidence.hosts[i].host.clone(),
            j: evidence.hosts[j].host.clone(),
            margin,
        }),
        Some((margin, ..)) => Ok(Certificate { margin: Some(margin), placed }),
    }
}

/// The smallest `q_earliest(i) − p_latest(j)` over all i ≠ j, with i and j; none for fewer than two hosts.
///
/// Not by looking at all pairs, of which ten thousand hosts have a hundred million: the earliest Q and the latest P make
/// the smallest, unless both are one host's; then one of the two is the next one.
fn least_margin(placed: &[Placed]) -> Option<(Nanos, usize, usize)> {
    let mut releases: Vec<usize> = (0..placed.len()).collect();
    releases.sort_by_key(|&i| placed[i].q_earliest);
    let mut cuts: Vec<usize> = (0..placed.len()).collect();
    cuts.sort_by_key(|&j| std::cmp::Reverse(placed[j].p_latest));
    let pairs = releases.iter().take(2).flat_map(|&i| cuts.iter().take(2).map(move |&j| (i, j)));
    pairs
        .filter(|(i, j)| i != j)
        .map(|(i, j)| (placed[i].q_earliest - placed[j].p_latest, i, j))
        .min_by_key(|(margin, ..)| *margin)
}

/// A release that carries every host's nonce was composed after every host had cut: each nonce is drawn after its cut
/// reading. So each post completion left after every pre classification, which is the theorem without a clock.
fn certify_barrier(evidence: &Evidence) -> Result<Certificate, Refusal> {
    for host in &evidence.hosts {
        let carried = host.nonce.is_some_and(|nonce| evidence.released_nonces.contains(&nonce));
        if !carried {
            return Err(Refusal::Nonce { host: host.host.clone() });
        }
    }
    Ok(Certificate { margin: None, placed: Vec::new() })
}

/// Places one host's readings on the server's timeline, each by the bound at its own instant.
fn place(evidence: &HostEvidence, policy: &Policy) -> Result<Placed, Refusal> {
    let host = || evidence.host.clone();
    let observed = evidence.observed.as_ref().ok_or_else(|| Refusal::NotRemeasured { host: host() })?;
    #[cfg(feature = "simulation")]
    if mutated!(PlannedMargin | NotRemeasured)
        || (mutated!(RestartedEvidence) && evidence.ordered != evidence.reported)
    {
        return place_by_plan(evidence, observed, policy);
    }
    if observed.planned_with.boot != evidence.ordered.boot
        || observed.remeasured_with.boot != evidence.ordered.boot
    {
        return Err(Refusal::Restarted { who: format!("host {}", evidence.host) });
    }
    // The plan's interval is of a timeline that ended. Where the change was smaller than the intervals are wide, they
    // still overlap, and the truth may be outside the overlap.
    if observed.planned_resets != observed.remeasured_resets {
        return Err(Refusal::TimelineChanged { host: host() });
    }
    let p = place_reading(evidence.readings.p, observed, policy, &evidence.host)?;
    let q = place_reading(evidence.readings.q, observed, policy, &evidence.host)?;
    Ok(Placed { p_latest: p.latest, q_earliest: q.earliest, error: p.error })
}

/// The mistakes that ask nobody what happened after the plan. A restart empties the window, so whoever believes a host
/// that restarted can ask nobody either, about that host.
#[cfg(feature = "simulation")]
fn place_by_plan(evidence: &HostEvidence, observed: &Observed, policy: &Policy) -> Result<Placed, Refusal> {
    let unbounded = |why| Refusal::Unbounded { host: evidence.host.clone(), why };
    let locate_by_plan = |reading: Time<Host>| {
        let near = observed.planned.nearest(reading).map_err(unbounded)?;
        let at = reading - observed.planned.bound(near, policy).map_err(unbounded)?.middle();
        let interval = observed.planned.bound(at, policy).map_err(unbounded)?;
        let span = locate(reading, at, interval, observed.planned.assumptions().rate_ppb);
        Ok::<_, Refusal>((span, interval.half_width()))
    };
    let (p, error) = locate_by_plan(evidence.readings.p)?;
    let (q, _) = locate_by_plan(evidence.readings.q)?;
    Ok(Placed { p_latest: p.latest, q_earliest: q.earliest, error })
}

struct PlacedReading {
    earliest: Time<Server>,
    latest: Time<Server>,
    error: Nanos,
}

fn place_reading(
    reading: Time<Host>,
    observed: &Observed,
    policy: &Policy,
    host: &str,
) -> Result<PlacedReading, Refusal> {
    let unbounded = |why| Refusal::Unbounded { host: host.to_owned(), why };
    let rate = observed.remeasured.assumptions().rate_ppb;
    // Where to evaluate: any server instant near the reading serves, because `locate` accounts for the distance. The
    // re-measured window's own middle leads there, in two steps because it is itself evaluated at an instant.
    let near = observed.remeasured.nearest(reading).map_err(unbounded)?;
    let first = observed.remeasured.bound(near, policy).map_err(unbounded)?;
    let at = reading - first.middle();
    let planned = observed.planned.bound(at, policy).map_err(unbounded)?;
    let remeasured = observed.remeasured.bound(at, policy).map_err(unbounded)?;
    let interval: Interval =
        planned.intersect(remeasured).ok_or_else(|| Refusal::MovedSincePlanned { host: host.to_owned() })?;
    let span = locate(reading, at, interval, rate);
    if !(observed.remeasured.brackets(span.earliest) && observed.remeasured.brackets(span.latest)) {
        return Err(Refusal::NotRemeasured { host: host.to_owned() });
    }
    Ok(PlacedReading { earliest: span.earliest, latest: span.latest, error: interval.half_width() })
}

#[cfg(test)]
mod tests;
