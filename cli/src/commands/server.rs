//! `coeval server`

use std::sync::Arc;

use snapshot::api;
use snapshot::catalogue::Catalogue;
use snapshot::coordinator::{self, Coordinator, Options, Rebuilt};
use snapshot::history::Keeper;
use snapshot::http::{Admits, Connector, Listener};
use snapshot::remote::{HostEndpoint, Limits, RemoteHost};
use snapshot::{dashboard, metrics, server_time, time_keys};
use timesync::identity::Incarnation;
use timesync::server::TimeServer;
use timesync::time::Nanos;

use super::{Failure, daemon};
use crate::args::{DaemonArgs, ServerArgs};
use crate::cluster::ServerReady;
use crate::config::hooks::GroupHookConfig;
use crate::config::{self, ServerConfig};
use crate::keys::{self, Handing};

/// A host that did not answer for so long, at no less than two exchanges a second, has probably lost its key.
const UNHEARD_AFTER: Nanos = Nanos::from_millis(1_500);

/// Runs the time-sync server and the coordinator until a signal stops them.
///
/// # Errors
/// When the configuration is wrong or something it needs cannot be had.
pub async fn run(args: ServerArgs) -> Result<(), Failure> {
    let (simulation, rebuild_catalogue) = (args.simulation, args.rebuild_catalogue);
    let (daemon_args, config) = configure(args)?;
    if rebuild_catalogue {
        return rebuild(&config).await;
    }
    let mut time_config = config.time_server(simulation);
    let handings = keys::assign(&config, &mut time_config)?;
    if daemon_args.check {
        return super::print("the configuration is valid");
    }
    daemon::begin(&daemon_args, config.log_format)?;
    if simulation {
        tracing::warn!(
            "SIMULATION: hosts with simulated clocks are accepted; for demonstrations and tests only"
        );
    }

    daemon::warn_of_expiry(config.tls.as_ref());
    let listener = Listener::bind(config.listen, config.tls.as_ref(), config.insecure)?;
    let catalogue = Arc::new(Catalogue::open(&config.state)?);
    let time = Arc::new(TimeServer::start(&time_config, Incarnation::of_this_process()?)?);
    let options =
        Options { lead: config.cut.lead, attempts: config.cut.attempts, simulation, ..Options::default() };
    let connector = Connector::new(config.tls.as_ref(), config.insecure)?;
    let endpoints = endpoints(&config);
    let coordinator = Coordinator::new(time.clone(), &endpoints, catalogue, &connector, options)?;
    coordinator.set_follow_ups(config.follow_ups());
    coordinator.set_hooks(config.hooks.iter().map(GroupHookConfig::hook).collect());
    coordinator.recover().await?;
    coordinator.keep_schedules();

    for endpoint in &endpoints {
        let host = RemoteHost::new(&connector, endpoint, Limits::default())?;
        tokio::spawn(server_time::keep_telling(time.clone(), host));
    }
    for Handing { host, key } in handings {
        let remote = RemoteHost::new(&connector, &host, options.limits)?;
        let unheard = time.unheard(&host.name);
        tokio::spawn(time_keys::hand_out(remote, key, move || unheard(UNHEARD_AFTER)));
    }

    let history = Arc::new(Keeper::start(Arc::clone(&time), &config.state)?);
    let ready = ServerReady { api: listener.url() };
    let signals = daemon::ready(&ready)?;
    tracing::info!(api = ready.api, hosts = config.hosts.len(), "ready");
    let clocks = api::skew::routes(Arc::clone(&time), history);
    let metrics = metrics::server_router(Arc::clone(&coordinator), time, config.tls.clone());
    let router = api::router(coordinator, clocks).merge(dashboard::router()).merge(metrics);
    daemon::serve(listener, router, Admits::People, signals).await
}

/// The hosts that take orders.
fn endpoints(config: &ServerConfig) -> Vec<HostEndpoint> {
    let hosts = config.hosts.iter().filter_map(|host| {
        let control = host.control.clone()?;
        Some(HostEndpoint { name: host.name.clone(), control, labels: host.labels.clone() })
    });
    hosts.collect()
}

/// Makes the catalogue again from what the hosts keep.
async fn rebuild(config: &ServerConfig) -> Result<(), Failure> {
    let catalogue = Catalogue::open(&config.state)?;
    let connector = Connector::new(config.tls.as_ref(), config.insecure)?;
    let hosts = endpoints(config);
    let hosts = hosts.iter().map(|host| RemoteHost::new(&connector, host, Limits::default()));
    let Rebuilt { standing, doubtful, unknown } =
        coordinator::rebuild(&catalogue, &hosts.collect::<Result<Vec<_>, _>>()?).await?;
    let mut text = format!("{} snapshots stand again\n", standing.len());
    for (name, why) in &doubtful {
        text += &format!("DOUBTFUL {name}: {why}; delete it with `coeval snapshot delete`\n");
    }
    for snapshot in &unknown {
        text += &format!("left alone: {snapshot}, of which no host keeps a certificate\n");
    }
    text += "schedules, groups and labels are not kept by hosts: set them again";
    super::print(&text)
}

/// The configuration file with the flags over it.
fn configure(args: ServerArgs) -> Result<(DaemonArgs, ServerConfig), Failure> {
    let mut config: ServerConfig = match &args.daemon.config {
        Some(path) => config::read(path)?,
        None => ServerConfig::default(),
    };
    config.listen = args.listen.unwrap_or(config.listen);
    config.time.port = args.time_port.unwrap_or(config.time.port);
    config.state = args.state.unwrap_or(config.state);
    config.insecure |= args.daemon.insecure;
    config.log_format = args.daemon.log_format.unwrap_or(config.log_format);
    config.check()?;
    Ok((args.daemon, config))
}
