//! What a snapshot's manifest says, from the attempt and its evidence.

use timesync::bound::Policy;

use super::attempt::{Attempt, Participant, Taken};
use crate::certificate::{Certificate, Mode, Refusal};
use crate::messages::{
    Assumed, ClockAssumptions, HostResult, Manifest, PolicyName, RequestedPolicy, Verdict,
};

impl Attempt<'_> {
    /// The manifest of a cut that was judged.
    pub(super) fn manifest(&self, taken: &Taken, verdict: Result<Certificate, Refusal>) -> Manifest {
        let (certificate, refusal) = match verdict {
            Ok(certificate) => (Some(certificate), None),
            Err(refusal) => (None, Some(refusal.to_string())),
        };
        let mut manifest = self.blank_manifest();
        manifest.verdict = if certificate.is_some() { Verdict::Consistent } else { Verdict::Inconsistent };
        manifest.refusal = refusal;
        manifest.margin_ns = certificate.as_ref().and_then(|certificate| certificate.margin);
        manifest.control_round_trip_ns = taken.round_trip;
        manifest.assumptions.policy = taken.evidence.policy;
        for (index, (result, evidence)) in manifest.hosts.iter_mut().zip(&taken.evidence.hosts).enumerate() {
            let readings = evidence.readings;
            result.at_ns = Some(readings.at);
            result.p_ns = Some(readings.p);
            result.q_ns = Some(readings.q);
            result.held = readings.held;
            result.stretch_ns = readings.stretch_ns;
            result.released_by = Some(readings.released_by);
            if let Some(placed) = certificate.as_ref().and_then(|certificate| certificate.placed.get(index)) {
                result.p_latest_ns = Some(placed.p_latest);
                result.q_earliest_ns = Some(placed.q_earliest);
                result.error_ns = Some(placed.error);
            }
        }
        for (result, externals) in manifest.hosts.iter_mut().zip(&taken.externals) {
            for volume in &mut result.volumes {
                volume.external = externals.iter().find(|part| part.volume == volume.name).cloned();
            }
        }
        if let Some((plan, observations)) = &taken.timed {
            manifest.t_ns = Some(plan.t);
            manifest.v_ns = Some(plan.stretch);
            for (result, observation) in manifest.hosts.iter_mut().zip(observations) {
                result.timestamps = Some(observation.timestamps);
                manifest.assumptions.clocks.push(ClockAssumptions {
                    host: result.host.clone(),
                    assumptions: *observation.window.assumptions(),
                });
            }
        }
        manifest
    }

    /// What is known of a snapshot before anything was cut.
    pub(super) fn blank_manifest(&self) -> Manifest {
        let (policy, confidence) = match (self.mode, self.job.request.policy) {
            (Mode::Timed, RequestedPolicy::Statistical { group_confidence, .. }) => {
                (PolicyName::Statistical, Some(group_confidence))
            }
            _ => (PolicyName::Hard, None),
        };
        Manifest {
            id: self.job.id,
            name: self.job.name.clone(),
            group: self.job.group.clone(),
            mode: Some(self.mode),
            verdict: Verdict::Inconsistent,
            refusal: None,
            margin_ns: None,
            v_ns: None,
            t_ns: None,
            control_round_trip_ns: None,
            attempts: self.number,
            policy,
            group_confidence: confidence,
            hosts: self.participants.iter().map(blank).collect(),
            assumptions: Assumed {
                policy: Policy::Hard,
                simulated: self.coordinator.options.simulation,
                clocks: Vec::new(),
            },
        }
    }
}

fn blank(participant: &Participant) -> HostResult {
    HostResult::blank(participant.remote.name().to_owned(), participant.incarnation, &participant.volumes)
}
