//! Long work: what is under way, how far it is, and what came of it.
//!
//! An operation goes on to its end whether anybody listens or not. It is remembered for a while after that, and no
//! longer than this process lives: what must outlive it (a snapshot, a decided restore, the answer to a request with an
//! idempotency key) is in the catalogue.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Serialize;
use serde_json::Value;
use timesync::clock;
use tokio::sync::watch;
use uuid::Uuid;

use crate::messages::Progress;
use crate::messages::operations::{Operation, OperationEvent, OperationKind, OperationState};
use crate::orders::Problem;

/// Operations that are remembered after their end.
const REMEMBERED: usize = 256;

/// The operations of one server.
#[derive(Debug, Default)]
pub struct Operations {
    /// In the order in which they began.
    known: Mutex<VecDeque<Arc<Running>>>,
}

/// One operation, under way or over.
#[derive(Debug)]
pub struct Running {
    id: Uuid,
    kind: OperationKind,
    target: String,
    began: DateTime<Utc>,
    events: Mutex<Vec<OperationEvent>>,
    changed: watch::Sender<()>,
}

impl Operations {
    /// Starts `work`, or joins the operation of the same id if there is one. `work` tells the operation how far it is.
    pub fn start<T, F>(
        &self,
        id: Uuid,
        kind: OperationKind,
        target: String,
        work: impl FnOnce(Arc<Running>) -> F,
    ) -> Arc<Running>
    where
        T: Serialize,
        F: Future<Output = Result<T, Problem>> + Send + 'static,
    {
        let (running, is_new) = self.enlist(id, kind, target, Vec::new());
        if is_new {
            let work = work(Arc::clone(&running));
            let work = tokio::spawn(async move { Ok(serde_json::to_value(work.await?)) });
            let ending = Arc::clone(&running);
            tokio::spawn(async move {
                let failed = |why: String| OperationEvent::Problem(internal(&why));
                ending.add(match work.await {
                    Ok(Ok(Ok(result))) => OperationEvent::Result(result),
                    Ok(Ok(Err(why))) => failed(why.to_string()),
                    Ok(Err(problem)) => OperationEvent::Problem(problem),
                    Err(panic) => failed(panic.to_string()),
                });
            });
        }
        running
    }

    /// Takes up an operation that ended in an earlier run of the server.
    pub fn recall(&self, id: Uuid, kind: OperationKind, target: String, end: OperationEvent) -> Arc<Running> {
        self.enlist(id, kind, target, vec![end]).0
    }

    /// One of them.
    pub fn find(&self, id: Uuid) -> Option<Arc<Running>> {
        self.known().iter().find(|running| running.id == id).cloned()
    }

    /// All of them, the newest first.
    pub fn list(&self) -> Vec<Operation> {
        let known: Vec<_> = self.known().iter().rev().cloned().collect();
        known.iter().map(|running| running.describe()).collect()
    }

    fn enlist(
        &self,
        id: Uuid,
        kind: OperationKind,
        target: String,
        events: Vec<OperationEvent>,
    ) -> (Arc<Running>, bool) {
        let mut known = self.known();
        if let Some(running) = known.iter().find(|running| running.id == id) {
            return (Arc::clone(running), false);
        }
        let began = DateTime::from_timestamp_nanos(clock::wall_now().as_nanos());
        let (changed, _) = watch::channel(());
        let running = Arc::new(Running { id, kind, target, began, events: Mutex::new(events), changed });
        known.push_back(Arc::clone(&running));
        if known.len() > REMEMBERED
            && let Some(oldest) = known.iter().position(|running| running.has_ended())
        {
            known.remove(oldest);
        }
        (running, true)
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Arc<Running>>> {
        // Nothing that panics runs under it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Its id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Says how far it is.
    pub fn tell(&self, progress: Progress) {
        self.add(OperationEvent::Progress(progress));
    }

    /// What there is to say about it now.
    pub fn describe(&self) -> Operation {
        let events = self.events();
        let progress = events.iter().rev().find_map(|event| match event {
            OperationEvent::Progress(progress) => Some(progress.clone()),
            _ => None,
        });
        let (state, result, problem) = match events.last() {
            Some(OperationEvent::Result(result)) => (OperationState::Succeeded, Some(result.clone()), None),
            Some(OperationEvent::Problem(problem)) => (OperationState::Failed, None, Some(problem.clone())),
            _ => (OperationState::Running, None, None),
        };
        Operation {
            id: self.id,
            kind: self.kind,
            target: self.target.clone(),
            state,
            began: self.began,
            events: events.len(),
            progress,
            result,
            problem,
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// The problem that it ended with.
    pub async fn outcome(&self) -> Result<Value, Problem> {
        let mut changed = self.changed.subscribe();
        loop {
            match self.events().last() {
                Some(OperationEvent::Result(result)) => return Ok(result.clone()),
                Some(OperationEvent::Problem(problem)) => return Err(problem.clone()),
                _ => {}
            }
            // The sender is part of `self`: it cannot be gone.
            let _ = changed.changed().await;
        }
    }

    /// Its events from number `from` on, counted from 0, each with its number; as they come, to the last one.
    pub fn follow(self: Arc<Self>, from: usize) -> impl Stream<Item = (usize, OperationEvent)> {
        let changed = self.changed.subscribe();
        unfold((self, changed, from), async |(running, mut changed, at)| {
            loop {
                {
                    let events = running.events();
                    if let Some(event) = events.get(at).cloned() {
                        drop(events);
                        return Some(((at, event), (running, changed, at + 1)));
                    }
                    if events.last().is_some_and(OperationEvent::is_end) {
                        return None;
                    }
                }
                let _ = changed.changed().await;
            }
        })
    }

    fn has_ended(&self) -> bool {
        self.events().last().is_some_and(OperationEvent::is_end)
    }

    fn add(&self, event: OperationEvent) {
        self.events().push(event);
        self.changed.send_replace(());
    }

    fn events(&self) -> MutexGuard<'_, Vec<OperationEvent>> {
        // Nothing that panics runs under it.
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn internal(why: &str) -> Problem {
    Problem {
        status: 500,
        title: "Internal Server Error".to_owned(),
        detail: format!("the server failed at this: {why}; its log says more"),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    fn progress(detail: &str) -> Progress {
        Progress::from(detail.to_owned())
    }

    #[tokio::test]
    async fn events_are_replayed_and_followed_to_the_end() {
        let operations = Operations::default();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let id = Uuid::now_v7();
        let running = operations.start(id, OperationKind::VerifySnapshot, "s".to_owned(), |it| async move {
            it.tell(progress("one"));
            wait.await.unwrap();
            it.tell(progress("two"));
            Ok::<_, Problem>(3)
        });
        // Joined, not started again.
        let again = operations.start(id, OperationKind::VerifySnapshot, "s".to_owned(), |_| async {
            panic!("it runs once");
            #[expect(unreachable_code, reason = "gives the future its type")]
            Ok(())
        });
        assert_eq!(again.describe().state, OperationState::Running);

        let mut events = Box::pin(Arc::clone(&running).follow(0));
        assert_eq!(events.next().await, Some((0, OperationEvent::Progress(progress("one")))));
        go.send(()).unwrap();
        assert_eq!(events.next().await, Some((1, OperationEvent::Progress(progress("two")))));
        assert_eq!(events.next().await, Some((2, OperationEvent::Result(3.into()))));
        assert_eq!(events.next().await, None);

        assert_eq!(running.outcome().await, Ok(3.into()));
        let late: Vec<_> = Arc::clone(&running).follow(1).collect().await;
        assert_eq!(late.len(), 2, "from the second on");
        let described = operations.find(id).unwrap().describe();
        assert_eq!((described.state, described.events), (OperationState::Succeeded, 3));
    }

    #[tokio::test]
    async fn work_that_panics_ends_with_a_problem() {
        let operations = Operations::default();
        let work = async { if clock::wall_now().as_nanos() > 0 { panic!("oops") } else { Ok(()) } };
        let running =
            operations.start(Uuid::now_v7(), OperationKind::VerifySnapshot, "s".to_owned(), |_| work);
        assert_eq!(running.outcome().await.unwrap_err().status, 500);
    }

    #[tokio::test]
    async fn only_what_has_ended_is_forgotten() {
        let operations = Operations::default();
        let forever = Uuid::now_v7();
        let waiting = std::future::pending::<Result<(), Problem>>();
        operations.start(forever, OperationKind::VerifySnapshot, "s".to_owned(), |_| waiting);
        let mut ids = Vec::new();
        for _ in 0..2 * REMEMBERED {
            let id = Uuid::now_v7();
            let done = async { Ok(()) };
            operations
                .start(id, OperationKind::VerifySnapshot, "s".to_owned(), |_| done)
                .outcome()
                .await
                .unwrap();
            ids.push(id);
        }
        assert_eq!(operations.list().len(), REMEMBERED);
        assert!(operations.find(forever).is_some() && operations.find(ids[0]).is_none());
        assert!(operations.find(ids[ids.len() - 1]).is_some());
    }
}
