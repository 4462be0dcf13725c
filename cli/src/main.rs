//! The program `coeval`.

use std::process::ExitCode;

use clap::Parser;
use coeval_cli::args::groups::GroupCommand;
use coeval_cli::args::{Cli, Command, ScheduleCommand, SnapshotCommand, VolumeCommand};
use coeval_cli::commands::{
    self, Failure, Finding, doctor, export, generate, group, host, life, pki, probe, schedule, server, skew,
    snapshot, volume, watchdog,
};
use coeval_cli::demo;

fn main() -> ExitCode {
    // What it starts (hooks, backends' commands) gets none of the capabilities that a unit gave the daemon. It fails where the
    // kernel has no such set, and then nobody was given one.
    let _ = rustix::thread::clear_ambient_capability_set();
    match run(Cli::parse().command) {
        Ok(Finding::Good) => ExitCode::SUCCESS,
        Ok(Finding::Bad) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("coeval: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<Finding, Failure> {
    match command {
        Command::Demo(args) => {
            // More than one thread: it starts processes and reads volumes in between.
            return tokio::runtime::Runtime::new()?.block_on(commands::until_interrupted(demo::run(&args)));
        }
        Command::Server(args) => wait(server::run(args))?,
        Command::Host(args) => wait(host::run(args))?,
        // Without a runtime: it is small, and locked in memory.
        Command::Watchdog(args) => watchdog::run(&args)?,
        // In one thread and without a runtime, so that it also runs under tools that stand in for libc's sockets.
        Command::Probe(args) => return probe::run(&args),
        Command::Skew(args) => return wait(skew::run(&args)),
        Command::Snapshot(SnapshotCommand::Create(args)) => wait(snapshot::create(args))?,
        Command::Snapshot(SnapshotCommand::List(remote)) => wait(snapshot::list(&remote))?,
        Command::Snapshot(SnapshotCommand::Show(args)) => wait(snapshot::show(&args))?,
        Command::Snapshot(SnapshotCommand::Verify(args)) => return wait(snapshot::verify(&args)),
        Command::Snapshot(SnapshotCommand::Restore(args)) => wait(snapshot::restore(&args))?,
        Command::Snapshot(SnapshotCommand::Export(args)) => wait(export::run(&args))?,
        Command::Snapshot(SnapshotCommand::Delete(args)) => wait(snapshot::delete(&args))?,
        Command::Snapshot(SnapshotCommand::Clone(args)) => wait(life::clone(args))?,
        Command::Volume(VolumeCommand::Import(args)) => wait(life::import(args))?,
        Command::Volume(VolumeCommand::Resize(args)) => wait(life::resize(&args))?,
        Command::Volume(VolumeCommand::Delete(args)) => wait(life::delete(&args))?,
        Command::Volume(VolumeCommand::Create(args)) => wait(volume::create(&args))?,
        Command::Volume(VolumeCommand::Check(args)) => return volume::check(&args),
        Command::Volume(VolumeCommand::List(remote)) => wait(volume::list(&remote))?,
        Command::Volume(VolumeCommand::Quota(args)) => wait(volume::quota(&args))?,
        Command::Volume(VolumeCommand::Label(args)) => wait(group::label(args))?,
        Command::Group(GroupCommand::Create(args)) => wait(group::create(args))?,
        Command::Group(GroupCommand::List(remote)) => wait(group::list(&remote))?,
        Command::Group(GroupCommand::Show(args)) => return wait(group::show(&args)),
        Command::Group(GroupCommand::Delete(args)) => wait(group::delete(&args))?,
        Command::Schedule(ScheduleCommand::Create(args)) => wait(schedule::create(*args))?,
        Command::Schedule(ScheduleCommand::List(remote)) => return wait(schedule::list(&remote)),
        Command::Schedule(ScheduleCommand::Delete(args)) => wait(schedule::delete(&args))?,
        Command::Pki(command) => pki::run(&command)?,
        Command::Doctor(args) => return wait(doctor::run(args)),
        Command::Completions(args) => generate::completions(&args)?,
        Command::Man(args) => generate::man(&args)?,
    }
    Ok(Finding::Good)
}

/// On this thread alone: a control message is soon done, and waking a second thread for it takes as long. What may block
/// has threads of its own.
fn wait<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}
