//! Hosts and a time source that do what a test tells them to, behind the real HTTP.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::extract::State;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use tempfile::TempDir;
use timesync::bound::{Assumptions, Window};
use timesync::clock::ServerClock;
use timesync::exchange::StampClass;
use timesync::identity::Incarnation;
use timesync::source::{Observation, SkewSource, Unobserved};
use timesync::time::{Nanos, Server, Time};
use uuid::Uuid;

use super::super::{Coordinator, Options};
use crate::agent::UncoordinatedOrder;
use crate::catalogue::Catalogue;
use crate::certificate::Mode;
use crate::cut::{Cause, Readings, Stretch};
use crate::http::{Admits, Connector, JsonBody, Listener, Refusal, Segments, StopHandle};
use crate::orders::{
    ArmOrder, ArmTiming, Armed, AttemptId, CommitOrder, ContentDigest, HostDescription, PrepareOrder,
    ReleaseOrder, RestoreOrder, RestorePrepared, RestoreSwitched, Sealed, Struck, VolumeDescription,
};
use crate::remote::HostEndpoint;
use crate::simulated::{Clock, Path, incarnation};

/// Long, because nothing in these tests may hang on how busy the machine is.
const MAX_STRETCH: Nanos = Nanos::from_millis(5_000);
/// Long, too: some tests count on the first try. But each timed cut waits for it.
const LEAD: Nanos = Nanos::from_millis(600);

/// What a host does otherwise than it should.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Answer these steps with a status, as often as stated.
    pub fail: HashMap<&'static str, (u16, u32)>,
    /// Never answer this step.
    pub hang: Option<&'static str>,
    /// Report as this run of it.
    pub reports_as: Option<Incarnation>,
    /// Release this many cuts at T instead of at T + V.
    pub early: u32,
    /// Say that somebody reads this snapshot.
    pub in_use: Option<String>,
}

#[derive(Debug)]
struct Cut {
    order: ArmOrder,
    nonce: Option<Uuid>,
    released: bool,
}

#[derive(Debug)]
pub struct FakeHost {
    name: &'static str,
    pub incarnation: Incarnation,
    clock: Clock,
    state: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    script: Script,
    cuts: HashMap<AttemptId, Cut>,
    names: BTreeMap<String, AttemptId>,
    log: Vec<(&'static str, AttemptId)>,
    digest: String,
    record: Option<serde_json::Value>,
}

type Host = State<Arc<FakeHost>>;
type Answer<T> = Result<Json<T>, Refusal>;

impl FakeHost {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.state.lock().unwrap()
    }

    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.inner().script);
    }

    /// Makes it refuse a step with a status, so many times.
    pub fn refuses(&self, step: &'static str, status: u16, times: u32) {
        self.inner().script.fail.insert(step, (status, times));
    }

    /// The names it holds.
    pub fn names(&self) -> Vec<String> {
        self.inner().names.keys().cloned().collect()
    }

    /// How often it was asked for a step.
    pub fn asked(&self, step: &str) -> usize {
        self.inner().log.iter().filter(|(logged, _)| *logged == step).count()
    }

    /// What it was last given to keep.
    pub fn record(&self) -> Option<crate::record::Record> {
        self.inner().record.clone().map(|record| serde_json::from_value(record).unwrap())
    }

    /// Whether nothing of any attempt is left, named or not.
    pub fn is_clean(&self) -> bool {
        let inner = self.inner();
        inner.names.is_empty() && inner.cuts.is_empty()
    }

    /// What an attempt of a server that died has left here.
    pub fn leave_behind(&self, attempt: AttemptId, name: &str) {
        self.inner().names.insert(name.to_owned(), attempt);
    }

    pub fn change_content(&self) {
        self.inner().digest = "changed".to_owned();
    }

    async fn enter(&self, step: &'static str, attempt: AttemptId) -> Result<(), Refusal> {
        let hang = {
            let mut inner = self.inner();
            inner.log.push((step, attempt));
            if let Some((status, times)) = inner.script.fail.get_mut(step)
                && *times > 0
            {
                *times -= 1;
                return Err(Refusal::new(*status, format!("scripted to refuse {step}")));
            }
            inner.script.hang == Some(step)
        };
        if hang {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/v1/host", get(describe))
            .route("/v1/ping", get(async || Json(())))
            .route("/v1/cuts/{attempt}/prepare", post(prepare))
            .route("/v1/cuts/{attempt}/arm", post(arm))
            .route("/v1/cuts/{attempt}/strike", post(strike))
            .route("/v1/cuts/{attempt}/release", post(release))
            .route("/v1/cuts/{attempt}/seal", post(seal))
            .route("/v1/cuts/{attempt}/commit", post(commit))
            .route("/v1/records/{attempt}", post(replace_record))
            .route("/v1/cuts/{attempt}/abort", post(abort))
            .route("/v1/cuts/{attempt}/uncoordinated", post(uncoordinated))
            .route("/v1/restores/{restore}/prepare", post(prepare_restore))
            .route("/v1/restores/{restore}/switch", post(switch_restore))
            .route("/v1/restores/{restore}/give-up", post(give_up_restore))
            .route("/v1/volumes/{volume}/snapshots/{snapshot}", delete(delete_snapshot))
            .route("/v1/volumes/{volume}/snapshots/{snapshot}/digest", get(digest))
            .with_state(self)
    }
}

async fn describe(State(host): Host) -> Answer<HostDescription> {
    host.enter("describe", Uuid::nil()).await?;
    let volume = VolumeDescription {
        name: "data".to_owned(),
        size: 4096,
        snapshots: host.names(),
        in_use: host.inner().script.in_use.iter().cloned().collect(),
        layers: 1,
        allocated: 0,
        clients: 0,
        external: None,
    };
    Ok(Json(HostDescription {
        name: host.name.to_owned(),
        host: host.incarnation,
        max_stretch: MAX_STRETCH,
        volumes: vec![volume],
        unserved: BTreeMap::new(),
        importing: BTreeMap::new(),
        nbd: Vec::new(),
        hooks: None,
    }))
}

async fn prepare(
    State(host): Host,
    Segments(id): Segments<AttemptId>,
    JsonBody(_order): JsonBody<PrepareOrder>,
) -> Answer<()> {
    host.enter("prepare", id).await?;
    Ok(Json(()))
}

async fn arm(
    State(host): Host,
    Segments(id): Segments<AttemptId>,
    JsonBody(order): JsonBody<ArmOrder>,
) -> Answer<Armed> {
    host.enter("arm", id).await?;
    let armed_at = host.clock.reads(ServerClock.now());
    if let ArmTiming::Timed { at, .. } = order.timing
        && armed_at >= at
    {
        return Err(Refusal::new(422, "the order came too late"));
    }
    host.inner().cuts.insert(id, Cut { order, nonce: None, released: false });
    Ok(Json(Armed { host: host.incarnation, armed_at }))
}

async fn strike(State(host): Host, Segments(id): Segments<AttemptId>) -> Answer<Struck> {
    host.enter("strike", id).await?;
    let nonce = Uuid::new_v4();
    match host.inner().cuts.get_mut(&id) {
        Some(cut) => cut.nonce = Some(nonce),
        None => return Err(Refusal::new(410, "no such attempt")),
    }
    Ok(Json(Struck { host: host.incarnation, nonce }))
}

async fn release(
    State(host): Host,
    Segments(id): Segments<AttemptId>,
    JsonBody(order): JsonBody<ReleaseOrder>,
) -> Answer<()> {
    host.enter("release", id).await?;
    let mut inner = host.inner();
    let Some(cut) = inner.cuts.get_mut(&id) else { return Err(Refusal::new(410, "no such attempt")) };
    cut.released = cut.nonce.is_some_and(|nonce| order.nonces.contains(&nonce));
    Ok(Json(()))
}

async fn seal(State(host): Host, Segments(id): Segments<AttemptId>) -> Answer<Sealed> {
    host.enter("seal", id).await?;
    let (at, stretch) = match host.inner().cuts.get(&id).map(|cut| cut.order.timing) {
        Some(ArmTiming::Timed { at, stretch }) => (at, stretch),
        Some(ArmTiming::Barrier) => (host.clock.reads(ServerClock.now()), Nanos::ZERO),
        None => return Err(Refusal::new(410, "no such attempt")),
    };
    while host.clock.reads(ServerClock.now()) < at + stretch {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    let mut inner = host.inner();
    let early = inner.script.early > 0;
    inner.script.early = inner.script.early.saturating_sub(1);
    let reporter = inner.script.reports_as.unwrap_or(host.incarnation);
    let cut = inner.cuts.get(&id).ok_or_else(|| Refusal::new(410, "no such attempt"))?;
    let (mode, released_by) = match cut.order.timing {
        ArmTiming::Timed { .. } => (Mode::Timed, Cause::Time),
        ArmTiming::Barrier if cut.released => (Mode::Barrier, Cause::Barrier),
        ArmTiming::Barrier => (Mode::Barrier, Cause::Timeout),
    };
    let readings = Readings {
        at,
        p: at - Nanos::new(1),
        q: if early { at } else { at + stretch },
        released_by,
        held: 3,
        stretch_ns: Stretch { p50: 1, p99: 2, max: 3 },
    };
    Ok(Json(Sealed {
        host: reporter,
        server: cut.order.server,
        mode,
        readings,
        nonce: cut.nonce,
        externals: Vec::new(),
    }))
}

async fn commit(
    State(host): Host,
    Segments(id): Segments<AttemptId>,
    JsonBody(order): JsonBody<CommitOrder>,
) -> Answer<()> {
    host.enter("commit", id).await?;
    let mut inner = host.inner();
    inner.cuts.remove(&id).ok_or_else(|| Refusal::new(410, "no such attempt"))?;
    inner.names.insert(order.name, id);
    inner.record = order.record;
    Ok(Json(()))
}

async fn replace_record(
    State(host): Host,
    Segments(id): Segments<AttemptId>,
    JsonBody(record): JsonBody<serde_json::Value>,
) -> Answer<()> {
    host.enter("record", id).await?;
    host.inner().record = Some(record);
    Ok(Json(()))
}

async fn abort(State(host): Host, Segments(id): Segments<AttemptId>) -> Answer<()> {
    host.enter("abort", id).await?;
    let mut inner = host.inner();
    inner.cuts.remove(&id);
    inner.names.retain(|_, named| *named != id);
    Ok(Json(()))
}

async fn uncoordinated(
    State(host): Host,
    Segments(id): Segments<AttemptId>,
    JsonBody(order): JsonBody<UncoordinatedOrder>,
) -> Answer<()> {
    host.enter("uncoordinated", id).await?;
    host.inner().names.insert(order.name, id);
    Ok(Json(()))
}

async fn prepare_restore(
    State(host): Host,
    Segments(id): Segments<Uuid>,
    JsonBody(_order): JsonBody<RestoreOrder>,
) -> Answer<RestorePrepared> {
    host.enter("prepare restore", id).await?;
    Ok(Json(RestorePrepared { host: host.incarnation, restored: BTreeMap::new() }))
}

async fn switch_restore(
    State(host): Host,
    Segments(id): Segments<Uuid>,
    JsonBody(order): JsonBody<RestoreOrder>,
) -> Answer<RestoreSwitched> {
    host.enter("switch", id).await?;
    if let Some(kept) = order.keep {
        host.inner().names.insert(kept, id);
    }
    Ok(Json(RestoreSwitched::default()))
}

async fn give_up_restore(State(host): Host, Segments(id): Segments<Uuid>) -> Answer<bool> {
    host.enter("give up", id).await?;
    Ok(Json(true))
}

async fn delete_snapshot(State(host): Host, Segments((_, name)): Segments<(String, String)>) -> Answer<()> {
    host.enter("delete", Uuid::nil()).await?;
    host.inner().names.remove(&name);
    Ok(Json(()))
}

async fn digest(State(host): Host, Segments((_, name)): Segments<(String, String)>) -> Answer<ContentDigest> {
    let inner = host.inner();
    match inner.names.contains_key(&name) {
        true => Ok(Json(ContentDigest { blake3: format!("{name} on {}{}", host.name, inner.digest) })),
        false => Err(Refusal::new(404, "no such snapshot")),
    }
}

/// A time source that knows the hosts' clocks, and says only what honest exchanges would show.
#[derive(Debug)]
pub struct FakeSource {
    incarnation: Incarnation,
    hosts: HashMap<String, (Arc<FakeHost>, Path, Mutex<Window>)>,
}

impl SkewSource for FakeSource {
    fn now(&self) -> Time<Server> {
        ServerClock.now()
    }

    fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn burst(&self, hosts: &[String]) {
        for name in hosts {
            let (host, path, window) = &self.hosts[name];
            // The truth of the next millisecond is as good as the past's, and saves waiting for the answers.
            let until = self.now() + Nanos::from_millis(1);
            host.clock.burst(&mut window.lock().unwrap(), until, *path);
        }
    }

    fn observe(&self, host: &str) -> Result<Observation, Unobserved> {
        let (fake, _, window) = self.hosts.get(host).ok_or_else(|| Unobserved::Unknown(host.to_owned()))?;
        Ok(Observation {
            window: window.lock().unwrap().clone(),
            incarnation: fake.incarnation,
            suspends: 0,
            timestamps: StampClass::Software,
            resets: 0,
        })
    }
}

/// Three hosts with a volume each, and a server.
pub struct Fleet {
    pub hosts: Vec<Arc<FakeHost>>,
    endpoints: Vec<HostEndpoint>,
    source: Arc<FakeSource>,
    pub directory: TempDir,
}

/// Tens of microseconds, about the same both ways.
pub fn near() -> [Path; 3] {
    [Path::micros(20, 21), Path::micros(25, 24), Path::micros(22, 20)]
}

/// Two milliseconds, in opposite directions.
pub fn lopsided() -> [Path; 3] {
    [Path::micros(2_000, 1), Path::micros(1, 2_000), Path::micros(20, 20)]
}

impl Fleet {
    pub fn new(paths: [Path; 3]) -> Self {
        let clocks = [(30_000_000, 40_000), (-45_000_000, -30_000), (0, 10_000)];
        let (mut hosts, mut endpoints, mut known) = (Vec::new(), Vec::new(), HashMap::new());
        let seconds = ServerClock.now().as_nanos() / 1_000_000_000;
        for ((name, (off_now, drift_ppb)), path) in ["a", "b", "c"].into_iter().zip(clocks).zip(paths) {
            let offset = off_now - drift_ppb * seconds;
            let host = Arc::new(FakeHost {
                name,
                incarnation: incarnation(),
                clock: Clock { offset, drift_ppb },
                state: Mutex::default(),
            });
            let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), None, false).unwrap();
            endpoints.push(HostEndpoint {
                name: name.to_owned(),
                control: listener.url(),
                labels: [("letter".to_owned(), name.to_owned())].into(),
            });
            tokio::spawn(listener.serve(Arc::clone(&host).router(), Admits::TheServer, StopHandle::new()));
            let window = Mutex::new(Window::new(Assumptions::default(), 512));
            known.insert(name.to_owned(), (Arc::clone(&host), path, window));
            hosts.push(host);
        }
        let source = Arc::new(FakeSource { incarnation: incarnation(), hosts: known });
        Fleet { hosts, endpoints, source, directory: TempDir::new().unwrap() }
    }

    pub fn catalogue(&self) -> Arc<Catalogue> {
        Arc::new(Catalogue::open(self.directory.path()).unwrap())
    }

    pub fn coordinator(&self, change: impl FnOnce(&mut Options)) -> Arc<Coordinator> {
        let mut options = Options { lead: LEAD, simulation: true, ..Options::default() };
        change(&mut options);
        let source: Arc<dyn SkewSource> = Arc::<FakeSource>::clone(&self.source);
        let connector = Connector::new(None, false).unwrap();
        Coordinator::new(source, &self.endpoints, self.catalogue(), &connector, options).unwrap()
    }

    pub fn all_clean(&self) -> bool {
        self.hosts.iter().all(|host| host.is_clean())
    }

    pub fn asked(&self, step: &str) -> Vec<usize> {
        self.hosts.iter().map(|host| host.asked(step)).collect()
    }
}

/// Waits until `condition` holds; a test that waits for it in vain is killed by its own limit.
pub async fn eventually(mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("the condition holds in the end");
}
