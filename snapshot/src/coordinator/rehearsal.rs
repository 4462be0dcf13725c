//! A rehearsal: everything but the cut, and what the cut would be like.
//!
//! Hosts make the next layers, as for a snapshot, so that a full disk shows; the attempt is then undone as one that was
//! refused. Nothing is armed, so no request waits for it.

use std::sync::Arc;

use uuid::Uuid;

use super::attempt::{Attempt, Stop};
use super::{Coordinator, CoordinatorError, Job};
use crate::certificate::Mode;
use crate::messages::{CreateRequest, Forecast, HostForecast, RequestedMode};

impl Coordinator {
    /// Rehearses a snapshot. Run it as a task of its own, as [`Coordinator::create`].
    ///
    /// # Errors
    /// [`CoordinatorError`]: why there would be no snapshot.
    pub async fn rehearse(self: &Arc<Self>, request: CreateRequest) -> Result<Forecast, CoordinatorError> {
        if request.control.is_some() {
            return Err(CoordinatorError::Request("a control is not rehearsed".to_owned()));
        }
        let job = self.prepare(Uuid::now_v7(), request).await?;
        let mode = match job.request.mode {
            RequestedMode::Timed | RequestedMode::Auto => Mode::Timed,
            RequestedMode::Barrier => Mode::Barrier,
        };
        let (id, name) = (job.id, job.name.clone());
        self.with_catalogue(move |catalogue| catalogue.begin(id, &name, None)).await?;
        let forecast = self.rehearse_once(&job, mode).await;
        self.with_catalogue(move |catalogue| catalogue.remove(id)).await?;
        forecast.map_err(|stop| match stop {
            Stop::Failed(error) => error,
            Stop::Refused(why) | Stop::Unplannable(why) => CoordinatorError::Refused { attempts: 1, why },
        })
    }

    async fn rehearse_once(&self, job: &Job, mode: Mode) -> Result<Forecast, Stop> {
        let attempt = Attempt::new(self, job, 1, mode, &|_| {}).await?;
        attempt.begin().await?;
        let forecast = attempt.rehearse().await;
        attempt.undo().await;
        forecast
    }
}

impl Attempt<'_> {
    async fn rehearse(&self) -> Result<Forecast, Stop> {
        self.prepare(self.coordinator.source.0.incarnation()).await?;
        let control_round_trip_ns = self.round_trip().await?;
        let timed = match self.mode {
            Mode::Timed => Some(self.foresee().await),
            Mode::Barrier => None,
        };
        let (timed, why_not_timed) = match timed {
            None => (None, None),
            Some(Ok(timed)) => (Some(timed), None),
            Some(Err(Stop::Unplannable(why))) if self.job.request.mode == RequestedMode::Auto => {
                (None, Some(why))
            }
            Some(Err(stop)) => return Err(stop),
        };
        let hosts = self.participants.iter().enumerate().map(|(index, host)| {
            let observed = timed.as_ref().map(|(plan, observed)| (plan.errors[index], &observed[index]));
            HostForecast {
                host: host.remote.name().to_owned(),
                error_ns: observed.map(|(error, _)| error),
                timestamps: observed.map(|(_, observation)| observation.timestamps),
                max_stretch_ns: host.max_stretch,
                volumes: host.volumes.clone(),
            }
        });
        let plan = timed.as_ref().map(|(plan, _)| plan);
        Ok(Forecast {
            group: self.job.group.clone(),
            mode: if plan.is_some() { Mode::Timed } else { Mode::Barrier },
            why_not_timed,
            v_ns: plan.map(|plan| plan.stretch),
            margin_ns: plan.and_then(super::plan::Plan::margin),
            stretch_ns: plan.map_or(control_round_trip_ns + control_round_trip_ns, |plan| plan.stretch),
            control_round_trip_ns,
            lead_ns: self.lead(),
            hosts: hosts.collect(),
        })
    }
}
