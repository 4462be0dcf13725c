//! `coeval completions` and `coeval man`: written from the command line's grammar.

use std::fs;

use clap::CommandFactory;

use super::{Failure, print};
use crate::args::Cli;
use crate::args::doctor::{CompletionsArgs, ManArgs};

/// Prints the script that completes `coeval` in a shell.
///
/// # Errors
/// When stdout is closed.
pub fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "coeval", &mut script);
    print(&String::from_utf8(script)?)
}

/// Writes a man page for every command.
///
/// # Errors
/// When the directory cannot be written.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    fs::create_dir_all(&args.directory)?;
    Ok(clap_mangen::generate_to(Cli::command(), &args.directory)?)
}

#[cfg(test)]
mod tests;
