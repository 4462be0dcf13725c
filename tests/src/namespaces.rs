//! Hosts in network namespaces on one bridge: each has its own interface, address and ports, real UDP and TCP between
//! them, and one kernel's clock (so the true skew between them is zero).

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};
use timesync::time::Nanos;

use crate::distance::Distance;
use crate::sys::open_tap;

static NETWORKS: AtomicU32 = AtomicU32::new(0);

/// Namespaces that reach each other through a bridge; removed when dropped, by then nothing should run in them.
#[derive(Debug)]
pub struct Network {
    switch: String,
    /// The hosts, in the order of the names given.
    pub hosts: Vec<Namespace>,
}

/// One host of a [`Network`].
#[derive(Clone, Debug)]
pub struct Namespace {
    /// The namespace's name, for `ip netns`.
    pub name: String,
    /// Its address on its interface `eth0`.
    pub address: IpAddr,
}

impl Network {
    /// Makes a namespace for each of so many hosts (at most 250), with addresses 10.77.0.1 and following.
    ///
    /// # Errors
    /// When `ip` fails: it needs root, and Debian's package iproute2.
    pub fn new(hosts: u8) -> io::Result<Network> {
        remove_strays();
        let prefix = format!("coeval{}-{}", std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
        let switch = format!("{prefix}-switch");
        // Made first, so that whatever fails below, dropping it cleans up.
        let mut network = Network { switch: switch.clone(), hosts: Vec::new() };
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for number in 1..=hosts {
            let name = format!("{prefix}-{number}");
            let address = Ipv4Addr::new(10, 77, 0, number);
            network.hosts.push(Namespace { name: name.clone(), address: address.into() });
            let port = format!("port{number}");
            ip(&["netns", "add", &name])?;
            ip(&[
                "-n", &switch, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name,
            ])?;
            ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
            ip(&["-n", &name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &name, "address", "add", &format!("{address}/24"), "dev", "eth0"])?;
        }
        Ok(network)
    }

    /// Makes two namespaces with one virtual Ethernet between them and no bridge: as near as two hosts can be.
    ///
    /// # Errors
    /// As [`Network::new`].
    pub fn pair() -> io::Result<Network> {
        let mut network = Network::new(0)?;
        let prefix = network.switch.trim_end_matches("-switch").to_owned();
        for number in 1..=2 {
            let address = Ipv4Addr::new(10, 77, 0, number);
            let name = format!("{prefix}-{number}");
            network.hosts.push(Namespace { name: name.clone(), address: address.into() });
            ip(&["netns", "add", &name])?;
            ip(&["-n", &name, "link", "set", "lo", "up"])?;
        }
        let [a, b] = [&network.hosts[0].name, &network.hosts[1].name];
        ip(&["-n", a, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b])?;
        for host in &network.hosts {
            ip(&["-n", &host.name, "link", "set", "eth0", "up"])?;
            ip(&["-n", &host.name, "address", "add", &format!("{}/24", host.address), "dev", "eth0"])?;
        }
        Ok(network)
    }
}

impl Network {
    /// Pulls a host's cable at the switch, or puts it in again. The host keeps its address.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn plug(&self, host: usize, up: bool) -> io::Result<()> {
        let port = format!("port{}", host + 1);
        ip(&["-n", &self.switch, "link", "set", &port, if up { "up" } else { "down" }])
    }
}

impl Network {
    /// Moves a host away: every frame to it and from it takes so much longer, as long as the result lives. Nothing may
    /// run on the host yet.
    ///
    /// # Errors
    /// When `ip` fails, or an interface cannot be made.
    pub fn move_away(&self, host: usize, delay: Nanos) -> io::Result<Distance> {
        let (place, port) = (&self.hosts[host], format!("port{}", host + 1));
        let switch = Namespace { name: self.switch.clone(), address: Ipv4Addr::UNSPECIFIED.into() };
        // Its other end `eth0` goes with it.
        ip(&["-n", &self.switch, "link", "delete", &port])?;
        let near = place.inside(|| open_tap("eth0"))??;
        let far = switch.inside(|| open_tap(&port))??;
        ip(&["-n", &self.switch, "link", "set", &port, "master", "br0", "up"])?;
        ip(&["-n", &place.name, "link", "set", "eth0", "up"])?;
        ip(&["-n", &place.name, "address", "add", &format!("{}/24", place.address), "dev", "eth0"])?;
        Distance::between(near, far, delay)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.hosts.iter().map(|host| &host.name).chain([&self.switch]) {
            // Goes on with the others; one that was never made is no loss.
            let _ = ip(&["netns", "delete", name]);
        }
    }
}

impl Namespace {
    /// What a command line must begin with to run here.
    pub fn launcher(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// A command that runs here. It becomes the program itself, so its process id is the program's.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `work` on a thread inside; sockets that it opens stay inside.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&namespace, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Removes namespaces of processes that were killed before they could.
fn remove_strays() {
    let names =
        std::fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter_map(|name| name.into_string().ok()) {
        let owner = name.strip_prefix("coeval").and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            // Somebody else may be removing it too.
            let _ = ip(&["netns", "delete", &name]);
        }
    }
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ip {} failed: {} (it needs root)", arguments.join(" "), stderr.trim())))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_host_that_was_moved_away_is_reached_later() {
        let network = Network::new(2).unwrap();
        let delay = Nanos::from_millis(5);
        let distance = network.move_away(0, delay).unwrap();
        let bind = |host: &Namespace| host.inside(|| UdpSocket::bind((host.address, 0)).unwrap()).unwrap();
        let (a, b) = (bind(&network.hosts[0]), bind(&network.hosts[1]));
        for socket in [&a, &b] {
            socket.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        }
        let mut buffer = [0; 8];
        for _ in 0..10 {
            let sent = timesync::clock::raw_now();
            a.send_to(b"hello", b.local_addr().unwrap()).unwrap();
            let (_, sender) = b.recv_from(&mut buffer).unwrap();
            assert!(timesync::clock::raw_now() - sent >= delay);
            b.send_to(b"back", sender).unwrap();
            a.recv_from(&mut buffer).unwrap();
            assert!(timesync::clock::raw_now() - sent >= delay + delay);
        }
        drop(distance);
    }

    #[test]
    fn hosts_reach_each_other_and_are_gone_afterwards() {
        let network = Network::new(2).unwrap();
        let names: Vec<String> = network.hosts.iter().map(|host| host.name.clone()).collect();
        let bind = |host: &Namespace| host.inside(|| UdpSocket::bind((host.address, 0)).unwrap()).unwrap();
        let (a, b) = (bind(&network.hosts[0]), bind(&network.hosts[1]));
        b.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        a.send_to(b"hello", b.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 8];
        let (length, sender) = b.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], sender), (&b"hello"[..], a.local_addr().unwrap()));
        drop(network);
        for name in names {
            assert!(!std::path::Path::new("/run/netns").join(name).exists());
        }
    }
}
