//! `coeval host`

use std::ffi::OsString;
use std::sync::Arc;

use snapshot::agent;
use snapshot::backend::watchdog::WatchdogProgram;
use snapshot::hooks::host::{self as hooks, Sessions};
use snapshot::host::{HostOptions, HostService};
use snapshot::http::{Admits, Listener};
use snapshot::nbd::{self, Endpoint};
use snapshot::{metrics, server_time, time_keys};
use timesync::authentication::Keyring;
use timesync::clock::HostClock;
use timesync::identity::Incarnation;
use timesync::module::{Module, ModuleConfig};
use timesync::publish::{Outlets, PublisherThread};

use super::{Failure, daemon};
use crate::args::HostArgs;
use crate::cluster::HostReady;
use crate::config::{self, HostConfig};
use crate::keys;

/// Runs a host until a signal stops it.
///
/// # Errors
/// When the configuration is wrong or something it needs cannot be had.
pub async fn run(args: HostArgs) -> Result<(), Failure> {
    let simulate = args.simulate_clock.clone();
    let watchdog = watchdog(simulate.as_deref());
    let (daemon_args, config) = configure(args)?;
    let clock = match simulate {
        None => HostClock::real(),
        Some(spec) => HostClock::simulated(spec.parse()?),
    };
    let outlets = Outlets {
        clockbound: config.publish.clockbound.clone(),
        chrony_sock: config.publish.chrony_sock.clone(),
    };
    let publishes = outlets != Outlets::default();
    if publishes && clock.is_simulated() {
        return Err(
            "a simulated clock's bound is not published; leave out --simulate-clock or [publish]".into()
        );
    }
    let time_key = config.time_key.as_deref().map(keys::read).transpose()?;
    if daemon_args.check {
        return super::print("the configuration is valid");
    }
    daemon::begin(&daemon_args, config.log_format)?;
    if clock.is_simulated() {
        tracing::warn!("THE CLOCK IS SIMULATED: for demonstrations and tests only");
    }

    let incarnation = Incarnation::of_this_process()?;
    daemon::warn_of_expiry(config.tls.as_ref());
    let listener = Listener::bind(config.listen, config.tls.as_ref(), config.insecure)?;
    let options = HostOptions {
        name: config.name.clone(),
        volumes: config.volumes.clone(),
        max_stretch: config.max_stretch,
        import_from: config.import_from.clone(),
        merge_rate: config.merge_rate,
    };
    let service = HostService::open(options, incarnation, clock.clone())?;
    service.serve_externals(config.externals()?, &watchdog)?;
    let exports = Arc::clone(&service);
    let nbd_server = nbd::Server::bind_with_tls(&config.nbd, exports, clock.clone(), config.tls.as_ref())?;
    let endpoints: Vec<String> = nbd_server.endpoints().iter().map(uri).collect();
    service.set_nbd_endpoints(endpoints.clone());
    let simulation = clock.is_simulated();
    let module_config = ModuleConfig {
        listen: vec![config.time.ip()],
        event_port: config.time.port(),
        timestamps: config.timestamps,
        domain: config.domain,
    };
    let keyring = Arc::new(Keyring::new(time_key));
    let module = Module::start_authenticated(&module_config, Arc::clone(&keyring), clock, incarnation)?;
    let described = Arc::clone(&service);
    let metrics =
        metrics::host_router(Arc::clone(&service), Arc::clone(nbd_server.traffic()), config.tls.clone());
    let mut routes = agent::routes(service, simulation);
    if config.tls.is_some() {
        routes = routes.merge(time_keys::routes(keyring));
    }
    // Also without any: those that a former configuration had may be owed.
    let sessions = Sessions::open(
        &config.volumes.join(".hooks"),
        config.hooks.hooks(),
        config.hooks.patience,
        incarnation,
    )?;
    if !config.hooks.hooks().is_empty() {
        described.set_hooks(sessions.limits());
    }
    routes = routes.merge(hooks::routes(sessions));
    let publisher = if publishes {
        let max_drift_ppb = config.publish.max_drift_ppm.saturating_mul(1_000);
        let publisher = PublisherThread::start(&outlets, incarnation, max_drift_ppb, module.suspends())?;
        let publisher = Arc::new(publisher);
        routes = routes.merge(server_time::routes(Arc::clone(&publisher)));
        Some(publisher)
    } else {
        None
    };
    let time = *module.addresses().first().ok_or("the time module listens nowhere")?;

    let ready = HostReady { control: listener.url(), time, nbd: endpoints };
    let signals = daemon::ready(&ready)?;
    tracing::info!(name = config.name, control = ready.control, time = %ready.time, nbd = ?ready.nbd, "ready");
    daemon::serve(listener, agent::router(routes).merge(metrics), Admits::TheServer, signals).await?;
    // What was published ends in good order.
    drop(publisher);
    // The NBD server first: its clients see the end of the stream, and no request is under way when the rest goes.
    drop(nbd_server);
    drop(module);
    Ok(())
}

/// This very program, also when its file was replaced since; its clock is the daemon's.
fn watchdog(simulate: Option<&str>) -> WatchdogProgram {
    let mut words: Vec<OsString> = vec!["/proc/self/exe".into(), "watchdog".into()];
    words.extend(simulate.map(|spec| OsString::from(format!("--simulate-clock={spec}"))));
    WatchdogProgram(words)
}

/// The configuration file with the flags over it.
fn configure(args: HostArgs) -> Result<(crate::args::DaemonArgs, HostConfig), Failure> {
    let mut config: HostConfig = match &args.daemon.config {
        Some(path) => config::read(path)?,
        None => HostConfig::default(),
    };
    config.name = args.name.unwrap_or(config.name);
    config.listen = args.listen.unwrap_or(config.listen);
    config.time = args.time.unwrap_or(config.time);
    config.volumes = args.volumes.unwrap_or(config.volumes);
    config.max_stretch = args.max_stretch.unwrap_or(config.max_stretch);
    if !args.import_from.is_empty() {
        config.import_from = args.import_from;
    }
    if !args.nbd.is_empty() {
        config.nbd = args.nbd;
    }
    config.insecure |= args.daemon.insecure;
    config.log_format = args.daemon.log_format.unwrap_or(config.log_format);
    config.check()?;
    Ok((args.daemon, config))
}

/// An endpoint as an NBD URI (NetworkBlockDevice/nbd, `doc/uri.md`), without the export's name.
fn uri(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp(address) => format!("nbd://{address}"),
        Endpoint::Tls(address) => format!("nbds://{address}"),
        Endpoint::Unix(path) => format!("nbd+unix:///?socket={}", path.display()),
    }
}
