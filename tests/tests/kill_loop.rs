//! `kill -9` of a host again and again, under fio and under a writer that counts, with snapshots taken meanwhile. Twenty
//! times; `COEVAL_KILLS` says how often instead, and `COEVAL_SEED` which moments to take.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Host};
use harness::acknowledged::Acknowledged;
use harness::eventually;
use harness::filesystem::{Attached, dies_with_us, with_own_mounts};
use harness::tools::{ask, command, finish, from_environment, one_host, seed, stop_all};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapshot::nbd::{Client, Endpoint};
use timesync::random::Random;

/// fio's volume, and the counting writer's.
const VOLUMES: [&str; 2] = ["disk", "counter"];

/// A snapshot is kept for so many kills.
const KEPT: usize = 3;

#[test]
fn nothing_acknowledged_is_lost_and_no_snapshot_changes() {
    with_own_mounts(|| {
        let kills: u32 = from_environment("COEVAL_KILLS").unwrap_or(20);
        let mut random = Random(seed());
        let mut cluster = one_host(&[]);
        for volume in VOLUMES {
            ask(&cluster, &["volume", "create", &format!("a/{volume}"), "8MiB"]);
        }
        let files = tempfile::tempdir().unwrap();
        let disk = Attached::new(&cluster.hosts[0].nbd_socket, "disk", &files.path().join("disk"));
        let mut fio = Fio::start(&disk.file);
        let mut acknowledged = Acknowledged::default();
        let mut kept: VecDeque<Snapshot> = VecDeque::new();
        for number in 0..kills {
            let during = format!("during{number}");
            let client = open(&cluster.hosts[0], "counter");
            std::thread::scope(|scope| {
                scope.spawn(|| acknowledged.write_on(client));
                // It may succeed or fail: what counts is that it is what the list says of it.
                scope.spawn(|| finish(command(&cluster).args(["snapshot", "create", &during])));
                std::thread::sleep(Duration::from_micros(random.below(300_000) as u64));
                cluster.hosts[0].daemon.signal(Signal::SIGKILL).unwrap();
            });
            cluster.restart_host(0).unwrap();

            acknowledged.assert_held_by(&mut open(&cluster.hosts[0], "counter"));
            for snapshot in &kept {
                assert_eq!(*snapshot, Snapshot::read(&cluster, &snapshot.name));
            }
            if state(&cluster, &during) == "complete" {
                kept.push_back(Snapshot::read(&cluster, &during));
            }
            let after = format!("after{number}");
            // The server has to learn of the host's new run first.
            eventually(|| {
                let created = finish(command(&cluster).args(["snapshot", "create", &after]));
                created
                    .status
                    .success()
                    .then_some(())
                    .ok_or(String::from_utf8_lossy(&created.stderr).into_owned())
            });
            kept.push_back(Snapshot::read(&cluster, &after));
            fio.assert_goes_on();
            while kept.len() > KEPT {
                let oldest = kept.pop_front().unwrap();
                let report = ask(&cluster, &["snapshot", "verify", &oldest.name]);
                assert_eq!((&report["verdict"], &report["intact"]), (&"consistent".into(), &true.into()));
                ask(&cluster, &["snapshot", "delete", &oldest.name]);
            }
        }
        fio.stop();
        drop(disk);
        stop_all(cluster);
    });
}

/// What the server's list says of a snapshot, which no longer is being taken.
fn state(cluster: &Cluster, name: &str) -> String {
    let rows = ask(cluster, &["snapshot", "list"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name);
    let state = row.map_or("failed", |row| row["state"].as_str().unwrap());
    assert!(matches!(state, "complete" | "failed"), "{name} is {state}");
    state.to_owned()
}

fn open(host: &Host, export: &str) -> Client {
    Client::connect(&Endpoint::Unix(host.nbd_socket.clone()), export).unwrap()
}

/// What a snapshot held when it was read.
#[derive(PartialEq)]
struct Snapshot {
    name: String,
    contents: Vec<Vec<u8>>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "what {} held at some time", self.name)
    }
}

impl Snapshot {
    fn read(cluster: &Cluster, name: &str) -> Snapshot {
        let read = |volume: &&str| {
            let mut client = open(&cluster.hosts[0], &format!("{volume}@{name}"));
            let mut content = vec![0; usize::try_from(client.size()).unwrap()];
            for (number, part) in content.chunks_mut(1 << 20).enumerate() {
                client.read((number as u64) << 20, part).unwrap();
            }
            content
        };
        Snapshot { name: name.to_owned(), contents: VOLUMES.iter().map(read).collect() }
    }
}

/// fio, which writes blocks at random and verifies each within the next few dozen; killed when dropped.
struct Fio(Child);

impl Fio {
    fn start(file: &Path) -> Fio {
        let mut command = dies_with_us("fio");
        command.args(["--name=test", "--ioengine=psync", "--rw=randwrite", "--bs=4k", "--thread"]);
        // Two writers in two halves of the file, round after round.
        command.args(["--numjobs=2", "--size=2m", "--offset_increment=2m", "--time_based", "--runtime=1d"]);
        command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_backlog=32"]);
        let log = std::fs::File::create(file.with_extension("fio")).unwrap();
        // It leaves files with what it would verify next.
        command.current_dir(file.parent().unwrap());
        Fio(command.arg(format!("--filename={}", file.display())).stdout(log).spawn().unwrap())
    }

    /// Waits until it has written more than now. It ends when it meets an error or finds other data than it wrote.
    fn assert_goes_on(&mut self) {
        let before = self.written();
        eventually(|| {
            assert_eq!(self.0.try_wait().unwrap(), None, "fio ended");
            let now = self.written();
            if now > before + 64 * 4096 {
                Ok(())
            } else {
                Err(format!("fio went from {before} to {now} bytes"))
            }
        });
    }

    fn written(&self) -> u64 {
        let counters = std::fs::read_to_string(format!("/proc/{}/io", self.0.id())).unwrap();
        counters.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap().parse().unwrap()
    }

    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGINT).unwrap();
        // What it ends with when a signal ends it and there was no error.
        assert_eq!(self.0.wait().unwrap().code(), Some(128));
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
