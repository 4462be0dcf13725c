//! What goes wrong, and when: after so many control messages, of any kind or of one, which is at any step of an attempt.

use snapshot::simulation::SimulatedDisk;
use timesync::random::Random;

use super::world::{World, world};
use super::{hosts, server, wire};

/// A fault.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// A host's daemon is killed, and started again.
    KillHost(usize),
    /// A host's machine loses its power.
    LosePower(usize),
    /// A host's daemon is stopped for so many ns.
    StopHost(usize, i64),
    /// The server is killed, and started again.
    KillServer,
    /// The server is stopped for so many ns.
    StopServer(i64),
    /// A host is cut off from the servers for so many ns.
    CutOff(usize, Partition, i64),
    /// A host's disk is full for a moment.
    FullDisk(usize, usize),
    /// Another server takes a snapshot of the same volumes.
    SecondServer,
}

/// What does not pass any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partition {
    /// Orders to the host.
    There,
    /// Its answers.
    Back,
    /// Nothing, exchanges of timestamps included.
    Both,
}

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// After so many control messages.
    Message(u64),
    /// After so many orders of this step.
    Order(&'static str, u64),
    /// While the cut waits that this order to arm is for, the so many-th,
    Armed(u64),
    /// or between the end of its stretch and its sealing.
    Released(u64),
}

/// How long a host takes from the end of a stretch to the sealing, about.
const CATCHING_UP: i64 = 11_000_000;

/// Draws what goes wrong in a world.
pub fn draw(hosts: usize, random: &mut Random) -> Vec<(When, Fault)> {
    let count = 1 + random.below(4);
    (0..count)
        .map(|_| {
            let host = random.below(hosts);
            let time = (100_000.0 * 4_000_f64.powf(random.unit())) as i64;
            let fault = match random.below(9) {
                0 | 1 => Fault::KillHost(host),
                2 => Fault::LosePower(host),
                3 => Fault::StopHost(host, time),
                4 => Fault::KillServer,
                5 => Fault::StopServer(time),
                6 => {
                    let partition = [Partition::There, Partition::Back, Partition::Both][random.below(3)];
                    Fault::CutOff(host, partition, time)
                }
                7 => Fault::FullDisk(host, random.below(12)),
                _ => Fault::SecondServer,
            };
            let when = if random.chance(0.5) {
                When::Message(1 + random.below(hosts * 18) as u64)
            } else {
                let nth = 1 + random.below(hosts * 2) as u64;
                match random.below(5) {
                    0 => When::Armed(nth),
                    1 => When::Released(nth),
                    _ => When::Order(wire::STEPS[random.below(wire::STEPS.len())], nth),
                }
            };
            (when, fault)
        })
        .collect()
}

/// The faults that a control message brings: the so many-th of all, and of its step. `stretch_ends`: in how many ns, if it
/// is an order to arm.
pub fn due(message: u64, step: &'static str, order: u64, stretch_ends: Option<i64>) {
    let world = world();
    let is_due = |(when, _): &(When, Fault)| match *when {
        When::Message(nth) => nth == message,
        When::Order(of, nth) => of == step && nth == order,
        When::Armed(nth) | When::Released(nth) => nth == order && stretch_ends.is_some(),
    };
    let (due, rest) = world.due.take().into_iter().partition::<Vec<_>, _>(is_due);
    *world.due.borrow_mut() = rest;
    for (when, fault) in due {
        let delay = world.random(|random| match (when, stretch_ends) {
            (When::Armed(_), Some(end)) => random.nanos(200_000, end.max(400_000)),
            (When::Released(_), Some(end)) => end + random.nanos(-100_000, CATCHING_UP),
            // At once, or at any time until long after the step.
            _ => (10_000.0 * 3_000_f64.powf(random.unit())) as i64,
        });
        world.fibers.after(delay, move || strike(fault));
    }
}

/// Makes it happen.
pub fn strike(fault: Fault) {
    let world = world();
    if world.calm.get() {
        return;
    }
    world.note(|| format!("FAULT: {fault:?}"));
    let back = world.random(|random| 500_000.0 * 800_f64.powf(random.unit())) as i64;
    let back = back.min(world.setting.longest_absence);
    match fault {
        Fault::KillHost(host) => {
            hosts::kill(host, SimulatedDisk::after_kill);
            wire::reset(host);
            world.fibers.after(back, move || restart(host));
        }
        Fault::LosePower(host) => lose_power(host, back),
        Fault::StopHost(host, time) => {
            let process = world.hosts[host].borrow().daemon.as_ref().map(|daemon| daemon.process);
            if let Some(process) = process {
                stop(process, time);
            }
        }
        Fault::StopServer(time) => {
            let process = world.servers[0].borrow().as_ref().map(|server| server.process);
            if let Some(process) = process {
                stop(process, time);
            }
        }
        Fault::KillServer => {
            let Some(killed) = server::kill(0) else { return };
            let (run, catalogue) = (killed.run, std::sync::Arc::clone(&killed.catalogue));
            world.dead_servers.borrow_mut().push(killed);
            world.fibers.after(back, move || {
                if super::world::world().servers[0].borrow().is_none() {
                    server::start(0, run + 1, Some(catalogue));
                }
            });
        }
        Fault::CutOff(host, partition, time) => {
            let until = world.fibers.now() + time;
            let mut state = world.hosts[host].borrow_mut();
            if partition != Partition::Back {
                state.cut_off.0 = until;
            }
            if partition != Partition::There {
                state.cut_off.1 = until;
            }
            if partition == Partition::Both {
                state.timing.cut_off_until = until;
            }
        }
        Fault::FullDisk(host, operations) => {
            let mut state = world.hosts[host].borrow_mut();
            state.disk.fail_after(operations);
            (state.ailing, state.fragile) = (true, true);
        }
        Fault::SecondServer => {
            if world.servers[1].borrow().is_none() {
                server::start(1, 0, None);
                let request = super::run::request("other", &mut world.random(Random::split), false);
                let process = world.new_process();
                world.operators.set(world.operators.get() + 1);
                let take = move || {
                    super::run::take(1, "other", request);
                    let world = super::world::world();
                    world.operators.set(world.operators.get() - 1);
                };
                world.fibers.start(process, "second operator", Box::new(take));
            }
        }
    }
}

/// A host's machine loses its power, and comes back after a time.
pub fn lose_power(host: usize, back: i64) {
    cut_power(host);
    world().fibers.after(back, move || restart(host));
}

/// A host's machine loses its power.
pub fn cut_power(host: usize) {
    let world = world();
    let (mut random, kept) = world.random(|random| (random.split(), random.below(9) as u64));
    world.hosts[host].borrow_mut().fragile = true;
    hosts::kill(host, move |disk| disk.after_power_loss(random.split(), kept));
}

fn restart(host: usize) {
    hosts::start(host);
}

/// Stops a process, and lets it go on after a time.
pub fn stop(process: usize, time: i64) {
    let world = world();
    world.fibers.freeze(process);
    world.stopped.borrow_mut().push(process);
    world.fibers.after(time, move || go_on(process));
}

fn go_on(process: usize) {
    let world = world();
    let stopped = world.stopped.borrow().contains(&process);
    world.stopped.borrow_mut().retain(|other| *other != process);
    // One that was killed meanwhile stays dead.
    if stopped && !is_dead(&world, process) {
        world.fibers.thaw(process);
    }
}

fn is_dead(world: &World, process: usize) -> bool {
    world.graveyard.borrow().iter().any(|daemon| daemon.process == process)
        || world.dead_servers.borrow().iter().any(|server| server.process == process)
}

/// Ends all that goes wrong.
pub fn end() {
    let world = world();
    world.calm.set(true);
    world.fibers.calm_down();
    let stopped: Vec<_> = world.stopped.borrow().clone();
    stopped.into_iter().for_each(go_on);
    for host in 0..world.hosts.len() {
        let ailing = {
            let mut state = world.hosts[host].borrow_mut();
            state.cut_off = (0, 0);
            state.timing.cut_off_until = 0;
            std::mem::take(&mut state.ailing)
        };
        if ailing {
            // After a failed sync, a layer takes no further one until its volume is opened anew.
            world.hosts[host].borrow().disk.fail_after(usize::MAX);
            hosts::kill(host, SimulatedDisk::after_kill);
            wire::reset(host);
        }
        restart(host);
    }
    if world.servers[0].borrow().is_none() {
        let dead = world.dead_servers.borrow();
        let last = dead.iter().rfind(|server| server.run < 100_000);
        if let Some((run, catalogue)) =
            last.map(|last| (last.run + 1, std::sync::Arc::clone(&last.catalogue)))
        {
            drop(dead);
            server::start(0, run, Some(catalogue));
        }
    }
}
