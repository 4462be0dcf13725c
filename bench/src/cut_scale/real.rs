//! Real hosts, all in this process, on loopback: each has a module with a thread and a UDP port of its own, a control
//! plane over HTTPS with certificates on both ends, and a volume. Coordinator, catalogue and time-sync server are the
//! product's own, in this process too. Some hosts have a writer that goes on all the time.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use harness::tls::Authority;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use snapshot::agent;
use snapshot::catalogue::Catalogue;
use snapshot::certificate::Mode;
use snapshot::coordinator::{Coordinator, Options};
use snapshot::host::{HostOptions, HostService};
use snapshot::http::{Admits, Connector, Listener, Role, StopHandle};
use snapshot::messages::{CreateRequest, Manifest, Progress, RequestedMode, Step};
use snapshot::nbd::{self, Endpoint};
use snapshot::orders::CreateVolume;
use snapshot::remote::HostEndpoint;
use tempfile::TempDir;
use timesync::clock::{HostClock, ServerClock};
use timesync::hardware::Timestamps;
use timesync::identity::Incarnation;
use timesync::module::{Module, ModuleConfig};
use timesync::server::{HostConfig, ServerConfig, TimeServer};
use timesync::source::SkewSource;
use timesync::time::Nanos;
use tokio::runtime::Runtime;

use super::{Failure, Row, floor};
use crate::quantiles::Quantiles;
use crate::stall::writer::Writer;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const VOLUME: &str = "data";

/// So many hosts have a writer, whatever there are more.
const WRITERS: usize = 3;
/// A writer's rest between two writes.
const THINK: Duration = Duration::from_micros(200);

const PAUSE: Duration = Duration::from_millis(20);

/// Times snapshots of so many hosts, timed and barrier in turn.
pub fn measure(hosts: u16, snapshots: usize) -> Result<Vec<Row>, Failure> {
    allow_many_files()?;
    let directory = tempfile::tempdir()?;
    let authority = Authority::new();
    let agents = Agents::start(hosts, directory.path(), &authority)?;
    let fleet = Server::start(&agents, directory, &authority)?;
    fleet.wait_for_bounds();
    let writers = agents
        .nbd
        .iter()
        .map(|server| Writer::start(&server.endpoints()[0], VOLUME, THINK))
        .collect::<Result<Vec<_>, Failure>>()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let samples = runtime.block_on(async {
        let mut samples = [Samples::default(), Samples::default(), Samples::default()];
        // The first one opens all connections.
        fleet.sample(&agents, RequestedMode::Timed, &mut samples[0]).await?;
        for _ in 0..snapshots {
            fleet.sample(&agents, RequestedMode::Timed, &mut samples[1]).await?;
            fleet.sample(&agents, RequestedMode::Barrier, &mut samples[2]).await?;
        }
        Ok::<_, Failure>(samples)
    })?;
    // While the writers still write.
    let floor = floor::lateness(hosts.into(), WRITERS, snapshots)?;
    let named = ["first", "timed", "barrier"].into_iter().zip(&samples);
    let rows = named.map(|(mode, samples)| samples.row(hosts.into(), mode, floor)).collect();
    for writer in writers {
        writer.stop()?;
    }
    Ok(rows)
}

/// The hosts.
struct Agents {
    names: Vec<String>,
    controls: Vec<String>,
    modules: Vec<Module>,
    /// Of those with a writer.
    nbd: Vec<nbd::Server>,
    services: Vec<Arc<HostService>>,
    /// Requests to all of them.
    requests: Arc<AtomicU64>,
    /// Serves their control planes until it is dropped.
    _runtime: Runtime,
}

impl Agents {
    fn start(hosts: u16, directory: &Path, authority: &Authority) -> Result<Agents, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let mut agents = Agents {
            names: (1..=hosts).map(|number| format!("host{number}")).collect(),
            controls: Vec::new(),
            modules: Vec::new(),
            nbd: Vec::new(),
            services: Vec::new(),
            requests: Arc::default(),
            _runtime: runtime,
        };
        let incarnation = Incarnation::of_this_process()?;
        for name in agents.names.clone() {
            let options = HostOptions {
                name: name.clone(),
                volumes: directory.join(&name),
                max_stretch: Nanos::from_millis(100),
                import_from: Vec::new(),
                merge_rate: 256 << 20,
            };
            let service = HostService::open(options, incarnation, HostClock::real())?;
            service.create_volume(&CreateVolume { name: VOLUME.to_owned(), size: 2 << 20 })?;
            if agents.nbd.len() < WRITERS {
                let socket = Endpoint::Unix(directory.join(format!("{name}.nbd")));
                let exports = Arc::clone(&service);
                agents.nbd.push(nbd::Server::bind(&[socket], exports, HostClock::real())?);
            }
            let config = ModuleConfig {
                listen: vec![HERE],
                event_port: 0,
                timestamps: Timestamps::Software,
                ..ModuleConfig::default()
            };
            agents.modules.push(Module::start(&config, HostClock::real(), incarnation)?);
            let tls = authority.issue(Role::Host, &name, HERE);
            let listener = Listener::bind(SocketAddr::new(HERE, 0), Some(&tls), false)?;
            agents.controls.push(listener.url());
            let router = agent::router(agent::routes(Arc::clone(&service), false))
                .layer(from_fn_with_state(Arc::clone(&agents.requests), count));
            agents._runtime.spawn(listener.serve(router, Admits::TheServer, StopHandle::new()));
            agents.services.push(service);
        }
        Ok(agents)
    }

    /// Waits until what was deleted is merged.
    async fn settle(&self) {
        let merged =
            |service: &Arc<HostService>| service.describe().volumes.iter().all(|volume| volume.layers <= 3);
        while !self.services.iter().all(merged) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn count(
    State(requests): State<Arc<AtomicU64>>,
    request: Request,
    next: Next,
) -> axum::response::Response {
    requests.fetch_add(1, Ordering::Relaxed);
    next.run(request).await
}

/// The server.
struct Server {
    coordinator: Arc<Coordinator>,
    time: Arc<TimeServer>,
    names: Vec<String>,
    _directory: TempDir,
}

impl Server {
    fn start(agents: &Agents, directory: TempDir, authority: &Authority) -> Result<Server, Failure> {
        let host = |(name, module): (&String, &Module)| HostConfig::new(name.clone(), module.addresses()[0]);
        let config = ServerConfig {
            hosts: agents.names.iter().zip(&agents.modules).map(host).collect(),
            event_port: 0,
            timestamps: Timestamps::Software,
            ..ServerConfig::default()
        };
        config.check()?;
        let time = Arc::new(TimeServer::start(&config, Incarnation::of_this_process()?)?);
        let tls = authority.issue(Role::Server, "server", HERE);
        let connector = Connector::new(Some(&tls), false)?;
        let endpoint = |(name, control): (&String, &String)| HostEndpoint {
            name: name.clone(),
            control: control.clone(),
            ..HostEndpoint::default()
        };
        let endpoints: Vec<_> = agents.names.iter().zip(&agents.controls).map(endpoint).collect();
        let catalogue = Arc::new(Catalogue::open(&directory.path().join("server"))?);
        // Digests read whole volumes later; they are no part of what is measured.
        let options = Options { digests: false, ..Options::default() };
        let coordinator = Coordinator::new(time.clone(), &endpoints, catalogue, &connector, options)?;
        Ok(Server { coordinator, time, names: agents.names.clone(), _directory: directory })
    }

    fn wait_for_bounds(&self) {
        while self.names.iter().any(|name| self.time.observe(name).is_err()) {
            std::thread::sleep(PAUSE);
        }
        // Until windows are as full as they mostly are.
        for _ in 0..16 {
            self.time.burst(&self.names);
        }
    }

    /// Takes a snapshot, looks at it, and deletes it.
    async fn sample(
        &self,
        agents: &Agents,
        mode: RequestedMode,
        samples: &mut Samples,
    ) -> Result<(), Failure> {
        tokio::time::sleep(PAUSE).await;
        let steps = Mutex::new(Vec::new());
        let (requests, exchanges) = (agents.requests.load(Ordering::Relaxed), self.time.totals().exchanges);
        let began = now();
        let noted = |step| {
            if let Ok(mut steps) = steps.lock() {
                steps.push((step, now()));
            }
        };
        let request = CreateRequest { mode, ..CreateRequest::default() };
        let told = |progress: Progress| {
            if let Some(attempt) = progress.attempt {
                noted(attempt.step);
            }
        };
        let manifest = self.coordinator.create(request, told).await?;
        let named = now() - began;
        samples.requests.push(agents.requests.load(Ordering::Relaxed) - requests);
        samples.exchanges.push(self.time.totals().exchanges - exchanges);
        let steps = steps.into_inner().unwrap_or_default();
        samples.add(&manifest, began, named, &steps);
        self.coordinator.delete(&manifest.name).await?;
        agents.settle().await;
        Ok(())
    }
}

#[derive(Default)]
struct Samples {
    certificate: Vec<i64>,
    named: Vec<i64>,
    stretch: Vec<i64>,
    v: Vec<i64>,
    margin: Vec<i64>,
    attempts: usize,
    requests: Vec<u64>,
    exchanges: Vec<u64>,
    /// Of each snapshot, how long each step took.
    steps: Vec<Vec<(Step, i64)>>,
}

impl Samples {
    fn add(&mut self, manifest: &Manifest, began: i64, named: i64, steps: &[(Step, i64)]) {
        self.named.push(named);
        self.attempts += usize::try_from(manifest.attempts).unwrap_or(usize::MAX);
        let certified = steps.iter().rev().find(|(step, _)| *step == Step::Certify);
        self.certificate.extend(certified.map(|(_, at)| at - began));
        let timed = manifest.mode == Some(Mode::Timed);
        self.v.extend(manifest.v_ns.filter(|_| timed).map(Nanos::get));
        self.margin.extend(manifest.margin_ns.map(Nanos::get));
        let written = manifest.hosts.iter().filter(|host| {
            host.host.trim_start_matches("host").parse::<usize>().is_ok_and(|number| number <= WRITERS)
        });
        self.stretch.extend(written.filter_map(|host| Some((host.q_ns? - host.at_ns?).get())));
        let ends = steps.iter().skip(1).map(|(_, at)| *at).chain([began + named]);
        self.steps.push(steps.iter().zip(ends).map(|((step, from), until)| (*step, until - from)).collect());
    }

    fn row(&self, hosts: usize, mode: &'static str, floor: Quantiles) -> Row {
        let median = |samples: &[i64]| Quantiles::of(samples).p50;
        let counted = |samples: &[u64]| {
            let samples: Vec<i64> = samples.iter().map(|count| count.cast_signed()).collect();
            median(&samples).cast_unsigned()
        };
        // Those of one attempt are alike; the others would only blur it.
        let usual = self.steps.iter().map(Vec::len).min().unwrap_or(0);
        let alike: Vec<&Vec<(Step, i64)>> = self.steps.iter().filter(|steps| steps.len() == usual).collect();
        let step = |index: usize| {
            let name = format!("{:?}", alike[0][index].0).to_lowercase();
            (name, median(&alike.iter().map(|steps| steps[index].1).collect::<Vec<_>>()))
        };
        Row {
            hosts,
            kind: "real",
            mode,
            snapshots: self.named.len(),
            attempts: self.attempts,
            certificate_ns: Quantiles::of(&self.certificate),
            named_ns: Quantiles::of(&self.named),
            control_messages: 2 * counted(&self.requests),
            exchanges: counted(&self.exchanges),
            v_ns: (!self.v.is_empty()).then(|| median(&self.v)),
            margin_ns: (!self.margin.is_empty()).then(|| median(&self.margin)),
            stretch_ns: Quantiles::of(&self.stretch),
            floor_ns: Some(floor),
            steps_ns: (0..usual).map(step).collect(),
        }
    }
}

/// A hundred hosts have more files and sockets open than many shells allow.
fn allow_many_files() -> Result<(), Failure> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

pub(super) fn now() -> i64 {
    ServerClock.now().as_nanos()
}
