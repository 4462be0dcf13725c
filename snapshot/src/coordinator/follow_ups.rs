//! Runs the configured commands after a finished snapshot, and tells how they went in its story.
//!
//! At most once: a server that dies over a command does not run it again. The story then says that it began, and not how
//! it ended.

use std::sync::Arc;

use super::Coordinator;
use crate::follow_ups::{Finished, FollowUp};
use crate::messages::{Manifest, Member, Step, Verdict};
use crate::sync::task;

impl Coordinator {
    /// Says which commands to run after finished snapshots. Once, before the first snapshot.
    pub fn set_follow_ups(&self, follow_ups: Vec<FollowUp>) {
        // A second call would be another configuration; the first one stays.
        let _ = self.follow_ups.set(follow_ups);
    }

    /// Runs the commands that concern a snapshot, in the background and one after the other. The snapshot is not deleted
    /// until they are done.
    pub(super) fn follow_up_later(
        self: &Arc<Self>,
        manifest: &Manifest,
        group: Option<String>,
        schedule: Option<String>,
    ) {
        let follow_ups = self.follow_ups.get().map_or(&[][..], Vec::as_slice);
        let finished = Finished {
            snapshot: manifest.name.clone(),
            id: manifest.id.to_string(),
            volumes: manifest.group.iter().map(Member::to_string).collect(),
            group,
            schedule,
        };
        let follow_ups: Vec<FollowUp> =
            follow_ups.iter().filter(|follow_up| follow_up.concerns(&finished)).cloned().collect();
        if follow_ups.is_empty() || manifest.verdict != Verdict::Consistent {
            return;
        }
        // Nobody deletes what has only just become a snapshot; if somebody does, there is nothing to run a command for.
        let Ok(claim) = self.claims.claim(manifest.id, "worked on by a follow-up") else { return };
        let (coordinator, id) = (Arc::clone(self), manifest.id);
        task::spawn(async move {
            let _one_at_a_time = coordinator.following_up.lock().await;
            for follow_up in follow_ups {
                let program = follow_up.program().to_owned();
                coordinator.tell_of_follow_up(id, format!("{program}: begun")).await;
                let finished = finished.clone();
                let outcome = match task::spawn_blocking(move || follow_up.run(&finished)).await {
                    Ok(outcome) => outcome,
                    Err(panic) => {
                        tracing::error!(snapshot = %id, program, %panic, "a follow-up could not be run");
                        continue;
                    }
                };
                if !outcome.is_good() {
                    tracing::warn!(snapshot = %id, program, %outcome, "a follow-up failed");
                }
                coordinator.tell_of_follow_up(id, format!("{program}: {outcome}")).await;
            }
            drop(claim);
        });
    }

    async fn tell_of_follow_up(&self, id: uuid::Uuid, detail: String) {
        let told = self.tell_of_command(id, Step::FollowUp, None, detail).await;
        if let Err(why) = told {
            tracing::warn!(snapshot = %id, %why, "how a follow-up went was not stored");
        }
    }
}
