//! What each command does.

mod daemon;
pub mod doctor;
pub mod export;
pub mod generate;
pub mod group;
pub mod host;
pub mod life;
pub mod pki;
pub mod probe;
pub mod schedule;
pub mod server;
pub mod skew;
pub mod snapshot;
pub mod volume;
pub mod watchdog;

use std::io::{self, Write};

use ::snapshot::client::ServerClient;
use ::snapshot::http::{Connector, HttpError};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Remote;

/// Why a command failed: one sentence for stderr.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How a command that could be carried out went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// All is well.
    Good,
    /// What was to be checked is not as it should be; the output says how.
    Bad,
}

/// A client for the server that the flags name.
///
/// # Errors
/// When the URL or the certificates are of no use.
pub fn connect(remote: &Remote) -> Result<ServerClient, HttpError> {
    ServerClient::new(&Connector::new(remote.tls().as_ref(), remote.insecure)?, &remote.server)
}

/// Prints a result as JSON on one line.
///
/// # Errors
/// When stdout is closed.
pub fn print_json<T: Serialize>(result: &T) -> Result<(), Failure> {
    print(&serde_json::to_string(result)?)
}

/// Prints text.
///
/// # Errors
/// When stdout is closed.
pub fn print(text: &str) -> Result<(), Failure> {
    Ok(writeln!(io::stdout().lock(), "{}", text.trim_end())?)
}

/// A value that serialises to a word, as that word.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "-".to_owned(),
    }
}

/// Does `work` unless SIGINT or SIGTERM comes first; what `work` holds is then dropped, which cleans up.
///
/// # Errors
/// Those of `work`, or that it was interrupted.
pub async fn until_interrupted<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        result = work => result,
        _ = terminate.recv() => Err("terminated".into()),
        _ = interrupt.recv() => Err("interrupted".into()),
    }
}
