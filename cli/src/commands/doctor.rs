//! `coeval doctor`

mod gather;

use serde::Serialize;

use super::{Failure, Finding as Outcome, connect, print, print_json};
use crate::args::doctor::DoctorArgs;
use crate::doctor::{Facts, Finding, Level, judge};

#[derive(Serialize)]
struct Report<'a> {
    findings: &'a [Finding],
    /// How many of them fail,
    fail: usize,
    /// and how many are warnings.
    warn: usize,
}

/// Looks, and says what it found; bad if something fails.
///
/// # Errors
/// When stdout is closed or a client cannot be made.
pub async fn run(args: DoctorArgs) -> Result<Outcome, Failure> {
    let facts = if args.fleet {
        Facts { fleet: Some(gather::fleet(&connect(&args.remote)?).await), ..Facts::default() }
    } else {
        let (host, server) = (args.host_config.clone(), args.server_config.clone());
        tokio::task::spawn_blocking(move || gather::here(host.as_deref(), server.as_deref())).await?
    };
    let findings = judge(&facts);
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (fail, warn) = (count(Level::Fail), count(Level::Warn));
    if args.remote.json {
        print_json(&Report { findings: &findings, fail, warn })?;
    } else {
        print(&describe(&findings, fail, warn))?;
    }
    Ok(if fail == 0 { Outcome::Good } else { Outcome::Bad })
}

fn describe(findings: &[Finding], fail: usize, warn: usize) -> String {
    let mut text = String::new();
    for Finding { about, level, what, todo } in findings {
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "WARN",
            Level::Fail => "FAIL",
        };
        text += &format!("{level:<4}  {about:<8}  {what}\n");
        if let Some(todo) = todo {
            text += &format!("                → {todo}\n");
        }
    }
    text += &match (fail, warn) {
        (0, 0) => "nothing to do".to_owned(),
        (0, warn) => format!("{warn} to look at"),
        (fail, warn) => format!("{fail} to see to, {warn} to look at"),
    };
    text
}
