//! What each command does.

pub mod snapshot;
pub mod volume;

use std::io::{self, Write};

use serde::Serialize;

use crate::api::{Api, ApiError};
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
/// [`ApiError::Http`].
pub fn connect(remote: &Remote) -> Result<Api, ApiError> {
    Api::new(&remote.server, remote.tls().as_ref(), remote.insecure)
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
