//! linuxptp's ptp4l with the kernel's stamps, free running. It states an offset and no bound.

use harness::namespaces::Network;
use tempfile::TempDir;

use super::process::{Client, Process, received};
use super::{Cpu, Failure, Times, Turn, follow};

/// With peer delays both ends measure: what the answering end receives is a request, a response and its follow-up.
const PACKETS_OF_PEER_DELAY: u64 = 3;

/// One turn, with delays measured end to end or from peer to peer.
pub fn turn(network: &Network, peer_delay: bool, times: Times) -> Result<Turn, Failure> {
    let [here, there] = &network.hosts[..] else { unreachable!("a pair") };
    let directory = TempDir::new()?;
    let socket = |name: &str| directory.path().join(name).display().to_string();
    let start = |place, name: &str, more: &[&str]| {
        let delay = if peer_delay { "-P" } else { "-E" };
        let socket = format!("--uds_address={}", socket(name));
        let mut arguments = vec!["-4", "-S", delay, "-i", "eth0", "-m", "--free_running=1", &socket];
        // 2^-6 s: 64 a second.
        arguments.extend([
            "--logSyncInterval=-6",
            "--logMinDelayReqInterval=-6",
            "--logMinPdelayReqInterval=-6",
        ]);
        arguments.extend(["--logAnnounceInterval=-2"]);
        arguments.extend(more);
        Process::start(place, "ptp4l", arguments, &directory.path().join(format!("{name}.log")))
    };
    let answering = start(there, "answering", &[])?;
    let measuring = start(here, "measuring", &["--slaveOnly=1"])?;
    let cpu = || {
        let packets = received(there)?;
        let exchanges = if peer_delay { packets / PACKETS_OF_PEER_DELAY } else { packets };
        Ok(Cpu { exchanges, measuring: measuring.cpu()?, answering: answering.cpu()? })
    };
    // The client's own socket is in the directory too; it talks to nobody but this ptp4l.
    let [own, daemon] = [socket("client"), socket("measuring")];
    let client = || Client::start(here, &["pmc", "-u", "-b", "0", "-i", &own, "-s", &daemon]);
    follow(times, cpu, client, |client, turn| {
        let mut offset = None;
        // The offset comes first; whether there is a master at all, some lines later.
        let present = client.ask("GET TIME_STATUS_NP", |line| {
            offset = offset.or_else(|| line.strip_prefix("master_offset")?.trim().parse::<i64>().ok());
            line.strip_prefix("gmPresent").map(|word| word.trim() == "true")
        })?;
        let offset = offset.filter(|_| present).ok_or("it has no master")?;
        turn.errors.push(offset.abs());
        Ok(())
    })
}
