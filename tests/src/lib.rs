//! What whole-system tests and benchmarks share: the binary, network namespaces, and a cluster of daemons in them.

pub mod namespaces;

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use coeval_cli::cluster::{Cluster, Place};
use coeval_cli::daemon::DaemonError;
use namespaces::{Namespace, Network};

/// The release binary, brought up to date by the first call.
///
/// # Panics
/// When it cannot be built: nothing that needs it could run.
pub fn coeval() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--locked", "--package", "coeval"])
            .current_dir(&workspace)
            .status();
        assert!(built.is_ok_and(|status| status.success()), "the binary `coeval` cannot be built");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
        target.join("release/coeval")
    })
}

/// A server and hosts, each in a network namespace of its own, with this machine's real clock.
#[derive(Debug)]
pub struct Fleet {
    /// The daemons. Killed before the network goes.
    pub cluster: Cluster,
    /// The namespaces: the server's first, then the hosts'.
    pub network: Network,
}

impl Fleet {
    /// Starts hosts of these names, and a server, each with these flags.
    ///
    /// # Errors
    /// When namespaces cannot be made (that needs root) or a daemon does not start.
    pub fn start(names: &[&str], host_flags: &[&str], server_flags: &[&str]) -> Result<Fleet, DaemonError> {
        let members = u8::try_from(names.len() + 1).map_err(io::Error::other)?;
        let network = Network::new(members)?;
        let place = |namespace: &Namespace, flags: &[&str]| Place {
            address: namespace.address,
            launcher: namespace.launcher(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        };
        let hosts: Vec<(&str, Place)> = names
            .iter()
            .zip(&network.hosts[1..])
            .map(|(name, namespace)| (*name, place(namespace, host_flags)))
            .collect();
        let server = place(&network.hosts[0], server_flags);
        let cluster = Cluster::start(coeval(), &hosts, &server, |_, address| Ok(address))?;
        Ok(Fleet { cluster, network })
    }

    /// The server's namespace: clients of its API run there.
    pub fn server_namespace(&self) -> &Namespace {
        &self.network.hosts[0]
    }

    /// A `coeval` command that talks to the server, to be given its arguments.
    pub fn command(&self) -> Command {
        let mut command = self.server_namespace().command(coeval());
        command.env("COEVAL_SERVER", &self.cluster.api);
        command
    }
}
