//! A host's hooks: begun by an order of the server, ended by another one, or by this host itself.
//!
//! Order of writes: the note that the hook after the snapshot is owed is durable before the one before is started; it
//! goes when the one after has ended. What a daemon that died has left is made up for at the start.
//!
//! A host does not wait for its server: if nobody orders the end within `patience`, it comes by itself. The server asks
//! before it keeps a snapshot whether the hook's work still holds.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::{DefaultBodyLimit, State as Shared};
use serde::{Deserialize, Serialize};
use timesync::identity::Incarnation;
use timesync::time::Nanos;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{About, HookLimits, Hooks, Moment, run, tell};
use crate::http::{JsonBody, Refusal, Segments};

/// An order names a host's volumes.
const BODY_LIMIT: usize = 256 * 1024;

/// How many ended ones are remembered, for a server that asks late.
const REMEMBERED: usize = 256;

/// A snapshot is about to be taken. `POST /v1/hooks/{snapshot}/before`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeforeOrder {
    /// Whom the order is for; a daemon that restarted refuses it.
    pub host: Incarnation,
    /// The snapshot's name.
    pub name: String,
    /// The volumes that take part.
    pub volumes: Vec<String>,
}

/// What became of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookReport {
    /// A sentence.
    pub detail: String,
}

/// What is on disk while the hook after a snapshot is owed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Note {
    about: About,
    /// As they were when this began: what is undone is what was done.
    hooks: Hooks,
}

/// Why a hook's order is not followed. Each is a sentence.
#[derive(Debug, thiserror::Error)]
pub enum HookRefused {
    /// The order names another run of the daemon.
    #[error("the order is for another run of this host's daemon; it has restarted since")]
    Restarted,
    /// It is over, or was called off before it came.
    #[error("the hooks of this snapshot have ended on this host")]
    Gone,
    /// Never heard of.
    #[error("this run of the host's daemon has begun no hook for this snapshot")]
    Unknown,
    /// One at a time: what one undoes, another one may have done.
    #[error("the hooks of snapshot {0} are under way on this host; try again when they have ended")]
    Busy(String),
    /// The note cannot be written, so nothing was started.
    #[error("cannot note in {} that a hook is owed: {why}", .path.display())]
    Note {
        /// Where.
        path: PathBuf,
        /// Why not.
        why: io::Error,
    },
    /// The hook before the snapshot did not do its work.
    #[error("{0}")]
    Failed(String),
}

impl From<HookRefused> for Refusal {
    fn from(refused: HookRefused) -> Self {
        let status = match refused {
            HookRefused::Unknown => 404,
            HookRefused::Busy(_) => 409,
            HookRefused::Restarted | HookRefused::Gone => 410,
            HookRefused::Note { .. } | HookRefused::Failed(_) => 500,
        };
        Refusal::new(status, refused.to_string())
    }
}

/// A host's hooks and what is under way of them.
#[derive(Debug)]
pub struct Sessions {
    hooks: Hooks,
    patience: Nanos,
    notes: PathBuf,
    host: Incarnation,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    /// Oldest first.
    ended: VecDeque<(Uuid, String)>,
}

#[derive(Debug)]
struct Current {
    about: About,
    /// What became of the hook before, once it has ended.
    before: Option<Result<String, String>>,
    /// The end was ordered.
    called: bool,
}

impl Sessions {
    /// Takes up what is owed in the directory `notes`, which is made if need be: those hooks run now, in the background.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(notes: &Path, hooks: Hooks, patience: Nanos, host: Incarnation) -> io::Result<Arc<Sessions>> {
        fs::create_dir_all(notes)?;
        let owed = owed(notes)?;
        let first = owed.first().map(|note| Current {
            about: note.about.clone(),
            before: Some(Err("the daemon restarted".to_owned())),
            called: true,
        });
        let sessions = Arc::new(Sessions {
            hooks,
            patience,
            notes: notes.to_owned(),
            host,
            state: Mutex::new(State { current: first, ended: VecDeque::new() }),
            changed: Condvar::new(),
        });
        if !owed.is_empty() {
            let keeper = Arc::clone(&sessions);
            std::thread::Builder::new().name("owed hooks".to_owned()).spawn(move || {
                for note in owed {
                    let About { snapshot, name, .. } = &note.about;
                    tracing::warn!(%snapshot, name, "the hook after it is owed since a restart");
                    keeper.end(&note, "the daemon restarted; ");
                }
            })?;
        }
        Ok(sessions)
    }

    /// What the server has to allow for.
    pub fn limits(&self) -> HookLimits {
        let limit = |hook: &Option<super::Hook>| hook.as_ref().map_or(Nanos::ZERO, |hook| hook.timeout);
        HookLimits { before: limit(&self.hooks.before), after: limit(&self.hooks.after) }
    }

    /// Runs the hook before a snapshot. Blocks until it has ended.
    ///
    /// # Errors
    /// [`HookRefused`]; after [`HookRefused::Failed`] the hook after the snapshot runs at once.
    pub fn before(self: &Arc<Self>, snapshot: Uuid, order: BeforeOrder) -> Result<HookReport, HookRefused> {
        if order.host != self.host {
            return Err(HookRefused::Restarted);
        }
        let about = About { snapshot, name: order.name, volumes: order.volumes };
        {
            let mut state = self.state();
            if state.ended.iter().any(|(ended, _)| *ended == snapshot) {
                return Err(HookRefused::Gone);
            }
            if let Some(current) = &state.current {
                return Err(HookRefused::Busy(current.about.name.clone()));
            }
            state.current = Some(Current { about: about.clone(), before: None, called: false });
        }
        let note = Note { about, hooks: self.hooks.clone() };
        let keeper = Arc::clone(self);
        let begun = self.write(&note).and_then(|()| {
            let name = "hooks".to_owned();
            std::thread::Builder::new().name(name).spawn(move || keeper.keep(&note))
        });
        if let Err(why) = begun {
            let _ = fs::remove_file(self.path(snapshot));
            self.state().current = None;
            return Err(HookRefused::Note { path: self.notes.clone(), why });
        }
        let mut state = self.state();
        loop {
            match state.current.as_ref().filter(|current| current.about.snapshot == snapshot) {
                None => return Err(HookRefused::Gone),
                Some(Current { before: Some(Ok(detail)), .. }) => {
                    return Ok(HookReport { detail: detail.clone() });
                }
                Some(Current { before: Some(Err(why)), .. }) => return Err(HookRefused::Failed(why.clone())),
                Some(_) => state = self.wait(state),
            }
        }
    }

    /// Whether what the hook before this snapshot did still holds.
    pub fn holds(&self, snapshot: Uuid) -> bool {
        self.state().current.as_ref().is_some_and(|current| {
            current.about.snapshot == snapshot && matches!(current.before, Some(Ok(_))) && !current.called
        })
    }

    /// Has the hook after a snapshot run, and says what became of it. It may be asked for again.
    ///
    /// # Errors
    /// [`HookRefused::Unknown`]; a hook before that snapshot is refused from then on.
    pub fn after(&self, snapshot: Uuid) -> Result<HookReport, HookRefused> {
        let mut state = self.state();
        loop {
            if let Some((_, detail)) = state.ended.iter().find(|(ended, _)| *ended == snapshot) {
                return Ok(HookReport { detail: detail.clone() });
            }
            match state.current.as_mut().filter(|current| current.about.snapshot == snapshot) {
                Some(current) => current.called = true,
                None => {
                    remember(&mut state.ended, snapshot, "nothing was begun".to_owned());
                    return Err(HookRefused::Unknown);
                }
            }
            self.changed.notify_all();
            state = self.wait(state);
        }
    }

    /// The life of one: the hook before, the wait, the hook after.
    fn keep(&self, note: &Note) {
        let outcome = match &note.hooks.before {
            Some(hook) => run(hook, Moment::Before, &note.about).map(Some),
            None => Ok(None),
        };
        let failed = outcome.is_err();
        let told = match outcome {
            Ok(Some(took)) => Ok(tell(&Ok(took))),
            Ok(None) => Ok("there is no hook before".to_owned()),
            Err(why) => Err(why.to_string()),
        };
        let mut state = self.state();
        if let Some(current) = &mut state.current {
            current.before = Some(told);
        }
        self.changed.notify_all();
        let waits = |state: &mut State| state.current.as_ref().is_some_and(|current| !current.called);
        let patience = if failed { Nanos::ZERO } else { self.patience };
        let (mut state, waited) = self
            .changed
            .wait_timeout_while(state, patience.to_std(), waits)
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = &mut state.current {
            current.called = true;
        }
        drop(state);
        let why = match (failed, waited.timed_out()) {
            (true, _) => "the hook before failed; ",
            (false, true) => "nobody asked for it in time; ",
            (false, false) => "",
        };
        self.end(note, why);
    }

    fn end(&self, note: &Note, why: &str) {
        let About { snapshot, name, .. } = &note.about;
        let outcome = note.hooks.after.as_ref().map(|hook| run(hook, Moment::After, &note.about));
        let told = match &outcome {
            Some(outcome) => tell(outcome),
            None => "there is no hook after".to_owned(),
        };
        if let Some(Err(error)) = &outcome {
            tracing::error!(%snapshot, name, "{error}");
        }
        if let Err(error) = fs::remove_file(self.path(note.about.snapshot)) {
            tracing::error!(%snapshot, name, %error, "the note stays: its hook will run again");
        }
        let mut state = self.state();
        state.current = None;
        remember(&mut state.ended, note.about.snapshot, format!("{why}{told}"));
        self.changed.notify_all();
    }

    /// Durable when this returns.
    fn write(&self, note: &Note) -> io::Result<()> {
        let path = self.path(note.about.snapshot);
        let unfinished = path.with_extension("new");
        let mut file = File::create(&unfinished)?;
        file.write_all(&serde_json::to_vec(note)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        File::open(&self.notes)?.sync_all()
    }

    fn path(&self, snapshot: Uuid) -> PathBuf {
        self.notes.join(format!("{snapshot}.json"))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(ended: &mut VecDeque<(Uuid, String)>, snapshot: Uuid, detail: String) {
    if ended.len() >= REMEMBERED {
        ended.pop_front();
    }
    ended.push_back((snapshot, detail));
}

/// What a daemon that died has left. One that cannot be read is left alone: nothing was started before it was whole.
fn owed(notes: &Path) -> io::Result<Vec<Note>> {
    let mut owed = Vec::new();
    for entry in fs::read_dir(notes)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            match serde_json::from_slice(&fs::read(&path)?) {
                Ok(note) => owed.push(note),
                Err(error) => tracing::error!(path = %path.display(), %error, "not a note of a hook"),
            }
        }
    }
    Ok(owed)
}

/// The routes.
pub fn routes(sessions: Arc<Sessions>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(hooks_hold))
        .routes(routes!(before_hook))
        .routes(routes!(after_hook))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(sessions)
}

type Answer<T> = Result<Json<T>, Refusal>;

#[utoipa::path(get, path = "/v1/hooks/{snapshot}")]
async fn hooks_hold(
    Shared(sessions): Shared<Arc<Sessions>>,
    Segments(snapshot): Segments<Uuid>,
) -> Json<bool> {
    Json(sessions.holds(snapshot))
}

#[utoipa::path(post, path = "/v1/hooks/{snapshot}/before")]
async fn before_hook(
    Shared(sessions): Shared<Arc<Sessions>>,
    Segments(snapshot): Segments<Uuid>,
    JsonBody(order): JsonBody<BeforeOrder>,
) -> Answer<HookReport> {
    blocking(move || sessions.before(snapshot, order)).await
}

#[utoipa::path(post, path = "/v1/hooks/{snapshot}/after")]
async fn after_hook(
    Shared(sessions): Shared<Arc<Sessions>>,
    Segments(snapshot): Segments<Uuid>,
) -> Answer<HookReport> {
    blocking(move || sessions.after(snapshot)).await
}

async fn blocking(
    work: impl FnOnce() -> Result<HookReport, HookRefused> + Send + 'static,
) -> Answer<HookReport> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(Json(result?)),
        Err(panic) => Err(Refusal::new(500, format!("the host failed at this hook: {panic}"))),
    }
}

#[cfg(test)]
mod tests;
