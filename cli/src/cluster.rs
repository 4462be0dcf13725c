//! A server and its hosts as child processes in one temporary directory: for the demonstration, tests and benchmarks.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};
use snapshot::http::TlsFiles;
use tempfile::TempDir;

use crate::daemon::{Daemon, DaemonError};

/// What `coeval host` prints when it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReady {
    /// The URL for the coordinator.
    pub control: String,
    /// Where it answers time exchanges.
    pub time: SocketAddr,
    /// Where its NBD server listens, as NBD URIs without the export's name.
    pub nbd: Vec<String>,
}

/// What `coeval server` prints when it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerReady {
    /// The URL for clients.
    pub api: String,
}

/// Where a daemon runs, and with what besides its configuration.
#[derive(Clone, Debug)]
pub struct Place {
    /// The address it listens on.
    pub address: IpAddr,
    /// What its command line begins with, such as `ip netns exec NAME`.
    pub launcher: Vec<String>,
    /// Flags after its own ones.
    pub flags: Vec<String>,
    /// What its configuration file ends with: sections of TOML.
    pub config: String,
    /// Its certificates; none: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// A host: more lines for its entry in the server's configuration.
    pub entry: String,
}

impl Place {
    /// This machine's loopback, with these flags.
    pub fn loopback(flags: &[&str]) -> Place {
        Place {
            address: Ipv4Addr::LOCALHOST.into(),
            launcher: Vec::new(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            config: String::new(),
            tls: None,
            entry: String::new(),
        }
    }

    /// The line of a configuration file that says whom it talks to.
    fn security(&self) -> String {
        match &self.tls {
            Some(TlsFiles { cert, key, ca }) => {
                format!("tls = {{ cert = {cert:?}, key = {key:?}, ca = {ca:?} }}\n")
            }
            None => "insecure = true\n".to_owned(),
        }
    }
}

/// A running host.
#[derive(Debug)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub ready: HostReady,
    /// The Unix socket of its NBD server.
    pub nbd_socket: PathBuf,
    /// The process.
    pub daemon: Daemon,
}

/// A server and its hosts. All are killed, and their directory removed, when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The hosts.
    pub hosts: Vec<Host>,
    /// The server.
    pub server: Daemon,
    /// Where the server's API is.
    pub api: String,
    // Last, so that it is removed after the processes are gone.
    directory: TempDir,
}

impl Cluster {
    /// Starts hosts, then a server that knows them. Its exchanges with a host go to the address that `route` gives for
    /// the host's number and own address: through a relay, or straight.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn start(
        program: &Path,
        hosts: &[(&str, Place)],
        server: &Place,
        mut route: impl FnMut(usize, SocketAddr) -> std::io::Result<SocketAddr>,
    ) -> Result<Cluster, DaemonError> {
        let directory = tempfile::Builder::new().prefix("coeval-").tempdir()?;
        let started = hosts
            .iter()
            .map(|(name, place)| start_host(program, directory.path(), name, place))
            .collect::<Result<Vec<Host>, DaemonError>>()?;
        let mut config = format!(
            "listen = \"{0}:0\"\nstate = {1:?}\n{2}[time]\nport = 0\n",
            server.address,
            directory.path().join("server"),
            server.security(),
        );
        for (number, (host, (_, place))) in started.iter().zip(hosts).enumerate() {
            let time = route(number, host.ready.time)?;
            config += &format!(
                "[[host]]\nname = {:?}\ntime = \"{time}\"\ncontrol = {:?}\n{}",
                host.name, host.ready.control, place.entry
            );
        }
        config += &server.config;
        let daemon = start_daemon(program, "server", directory.path(), "server", server, &config)?;
        let ready: ServerReady = daemon.ready()?;
        Ok(Cluster { hosts: started, server: daemon, api: ready.api, directory })
    }

    /// The server's state directory.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("server")
    }

    /// Starts the server again on the same state, after killing it if it still runs.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn restart_server(&mut self) -> Result<(), DaemonError> {
        self.server.restart()?;
        let ready: ServerReady = self.server.ready()?;
        self.api = ready.api;
        Ok(())
    }

    /// Starts a host again on the same volumes, after killing it if it still runs. The server finds it only where
    /// flags fix its ports.
    ///
    /// # Errors
    /// [`DaemonError`].
    pub fn restart_host(&mut self, number: usize) -> Result<(), DaemonError> {
        let host = &mut self.hosts[number];
        host.daemon.restart()?;
        host.ready = host.daemon.ready()?;
        Ok(())
    }
}

fn start_host(program: &Path, directory: &Path, name: &str, place: &Place) -> Result<Host, DaemonError> {
    let nbd_socket = directory.join(format!("{name}.nbd"));
    let config = format!(
        "name = {name:?}\nlisten = \"{0}:0\"\ntime = \"{0}:0\"\nvolumes = {1:?}\n\
         nbd = [\"unix://{2}\", \"tcp://{0}:0\"{4}]\n{3}{5}{6}",
        place.address,
        directory.join(name),
        nbd_socket.display(),
        place.security(),
        if place.tls.is_some() { format!(", \"tls://{}:0\"", place.address) } else { String::new() },
        // The workload's own NBD client speaks no TLS.
        if place.tls.is_some() { "insecure = true\n" } else { "" },
        place.config,
    );
    let daemon = start_daemon(program, "host", directory, name, place, &config)?;
    let ready = daemon.ready()?;
    Ok(Host { name: name.to_owned(), ready, nbd_socket, daemon })
}

fn start_daemon(
    program: &Path,
    role: &str,
    directory: &Path,
    name: &str,
    place: &Place,
    config: &str,
) -> Result<Daemon, DaemonError> {
    let file = directory.join(format!("{name}.toml"));
    std::fs::write(&file, config)?;
    let mut line = place.launcher.iter().map(Path::new).chain([program]);
    let mut command = Command::new(line.next().unwrap_or(program));
    command.args(line).arg(role).arg("--config").arg(file).arg("--with-parent").args(&place.flags);
    Daemon::start(command, &directory.join(format!("{name}.log")))
}
