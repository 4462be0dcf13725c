//! The command line's grammar: doctor, completions and man pages.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::Remote;

/// `coeval doctor`
#[derive(Debug, Args)]
#[command(
    after_help = "Without --fleet it looks at this machine, and at /etc/coeval/host.toml and /etc/coeval/server.toml \
                  where they exist. Changes nothing. Ends with status 1 where something fails."
)]
pub struct DoctorArgs {
    /// Ask the server about the whole fleet instead: clocks, hosts, volumes, and what a snapshot would be like
    #[arg(long, conflicts_with_all = ["host_config", "server_config"])]
    pub fleet: bool,
    /// A `coeval host`'s configuration to look at
    #[arg(long, value_name = "FILE")]
    pub host_config: Option<PathBuf>,
    /// A `coeval server`'s configuration to look at: whether its hosts can be reached from here, too
    #[arg(long, value_name = "FILE")]
    pub server_config: Option<PathBuf>,
    /// How to reach the server.
    #[command(flatten)]
    pub remote: Remote,
}

/// `coeval completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: Shell,
}

/// `coeval man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The directory to write the pages to
    pub directory: PathBuf,
}
