//! PostgreSQL on volumes: what is restored from snapshots recovers as after a power failure, alone and in a group.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use coeval_cli::cluster::{Cluster, Host};
use harness::eventually;
use harness::filesystem::{Attached, Kind, Mounted, with_own_mounts};
use harness::postgres::{Postgres, Session};
use harness::tools::{ask, command, hosts, run, stop_all};
use tempfile::TempDir;
use timesync::random::Random;

const SNAPSHOTS: u32 = 4;
/// Transactions a second.
const RATE: u64 = 200;

/// A directory that PostgreSQL's user may enter.
fn directory() -> TempDir {
    tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap()
}

/// A server on a file system on a volume.
struct Database {
    // Dropped in this order.
    postgres: Postgres,
    mounted: Mounted,
    disk: Attached,
}

impl Database {
    /// Makes one on the volume `data` of a host.
    fn create(cluster: &Cluster, host: &Host, files: &Path) -> Database {
        ask(cluster, &["volume", "create", &format!("{}/data", host.name), "256MiB"]);
        let disk = Attached::new(&host.nbd_socket, "data", &files.join(format!("{}.disk", host.name)));
        Kind::Ext4.make(&disk.file);
        let mounted = Kind::Ext4.mount(&disk.file, &files.join(&host.name));
        let data = mounted.at.join("data");
        Postgres::initialise(&data);
        Database { postgres: Postgres::start(&data), mounted, disk }
    }

    fn stop(self) {
        self.postgres.stop();
        self.mounted.unmount();
        drop(self.disk);
    }
}

/// A clone of a snapshot of a volume, started.
struct Restored {
    // Dropped in this order.
    postgres: Postgres,
    mounted: Mounted,
    disk: Attached,
    volume: String,
}

impl Restored {
    fn start(cluster: &Cluster, host: &Host, snapshot: &str, files: &Path) -> Restored {
        let (data, clone) = (format!("{}/data", host.name), format!("of-{snapshot}"));
        ask(cluster, &["snapshot", "clone", snapshot, "--volume", &data, "--as", &clone]);
        let file = |kind: &str| files.join(format!("{}.{snapshot}.{kind}", host.name));
        let disk = Attached::new(&host.nbd_socket, &clone, &file("disk"));
        let mounted = Kind::Ext4.mount(&disk.file, &file("mounted"));
        let postgres = Postgres::start(&mounted.at.join("data"));
        assert!(postgres.log().contains("automatic recovery in progress"), "{}", postgres.log());
        Restored { postgres, mounted, disk, volume: format!("{}/{clone}", host.name) }
    }

    /// Ends it, and deletes the clone.
    fn stop(self, cluster: &Cluster) {
        self.postgres.stop();
        self.mounted.unmount();
        Kind::Ext4.check(&self.disk.file);
        drop(self.disk);
        run(command(cluster).args(["volume", "delete", &self.volume]));
    }
}

#[test]
fn every_snapshot_recovers_under_pgbench() {
    with_own_mounts(|| {
        let cluster = hosts(&["a"], &[]);
        let files = directory();
        let live = Database::create(&cluster, &cluster.hosts[0], files.path());
        run(live.postgres.client("pgbench").args(["--initialize", "--quiet"]));
        let mut pgbench = live.postgres.client("pgbench");
        // Some rest for small machines; more transactions show no more.
        pgbench.args(["--client=4", &format!("--rate={RATE}"), "--time=3600"]);
        let log = std::fs::File::create(files.path().join("pgbench")).unwrap();
        let mut pgbench = Running(pgbench.stderr(log).spawn().unwrap());
        let committed =
            || live.postgres.query("select count(*) from pgbench_history").parse::<u64>().unwrap();
        // One a second, or as soon as so much happened.
        let (mut last, mut taken) = (0, Vec::new());
        for number in 0..2 * SNAPSHOTS {
            eventually(|| {
                assert_eq!(pgbench.0.try_wait().unwrap(), None, "pgbench ended");
                if committed() >= last + RATE { Ok(()) } else { Err("pgbench stands still") }
            });
            last = committed();
            let name = format!("s{number}");
            assert_eq!(ask(&cluster, &["snapshot", "create", &name])["verdict"], "consistent");
            taken.push((name, last..=committed()));
        }
        for (name, transactions) in taken {
            let restored = Restored::start(&cluster, &cluster.hosts[0], &name, files.path());
            let sums = restored.postgres.query(
                "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
                 (select sum(bbalance) from pgbench_branches), sum(delta), count(*) from pgbench_history",
            );
            let sums: Vec<i64> = sums.split('|').map(|sum| sum.parse().unwrap()).collect();
            assert!(sums[..3].iter().all(|sum| *sum == sums[3]), "the balances differ: {sums:?}");
            let found = sums[4].unsigned_abs();
            assert!(transactions.contains(&found), "{name}: {found} transactions of {transactions:?}");
            restored.postgres.check();
            restored.stop(&cluster);
        }
        drop(pgbench);
        live.stop();
        stop_all(cluster);
    });
}

/// Accounts on each server, and what each holds at first.
const ACCOUNTS: usize = 20;
const BALANCE: i64 = 1000;
const TELLERS: u64 = 4;

#[test]
fn money_between_two_servers_is_neither_lost_nor_made() {
    with_own_mounts(|| {
        let cluster = hosts(&["a", "b"], &[]);
        let files = directory();
        let live: Vec<Database> =
            cluster.hosts.iter().map(|host| Database::create(&cluster, host, files.path())).collect();
        for server in &live {
            server.postgres.query(&format!(
                "create table accounts (id int primary key, balance bigint not null);
                 create table transfers (name text primary key);
                 insert into accounts select id, {BALANCE} from generate_series(0, {ACCOUNTS} - 1) id"
            ));
        }
        let (stop, transfers) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let tellers: Vec<_> = (0..TELLERS)
                .map(|teller| {
                    let sessions = [live[0].postgres.session(), live[1].postgres.session()];
                    let (stop, transfers) = (&stop, &transfers);
                    scope.spawn(move || transfer(teller, sessions, stop, transfers))
                })
                .collect();
            // Also when something below panics, so that the scope can end.
            let _stopping = OnDrop(|| stop.store(true, Ordering::SeqCst));
            let more = |count: u64| {
                let enough = transfers.load(Ordering::SeqCst) + count;
                eventually(|| {
                    assert!(!tellers.iter().any(|teller| teller.is_finished()), "a teller met an error");
                    let now = transfers.load(Ordering::SeqCst);
                    if now >= enough { Ok(()) } else { Err(format!("{now} transfers of {enough}")) }
                });
            };

            let mut in_doubt = 0;
            for number in 0..SNAPSHOTS {
                more(20);
                let name = format!("group{number}");
                assert_eq!(ask(&cluster, &["snapshot", "create", &name])["verdict"], "consistent");
                let (difference, open) = restored_difference(&cluster, &name, &name, files.path());
                assert_eq!(difference, 0, "{name} lost or made money");
                in_doubt += open;
            }
            println!("{in_doubt} transactions were in doubt in {SNAPSHOTS} snapshots");

            // The control: each volume by itself, which is what one does without a group. Money is paid out in one
            // image and has not arrived, or has not been prepared, in the other.
            more(20);
            ask(&cluster, &["snapshot", "create", "first", "--volume", "a/data"]);
            more(20);
            ask(&cluster, &["snapshot", "create", "second", "--volume", "b/data"]);
            let (difference, _) = restored_difference(&cluster, "first", "second", files.path());
            assert_ne!(difference, 0, "images of different instants fit together, so the check sees nothing");
        });
        live.into_iter().for_each(Database::stop);
        stop_all(cluster);
    });
}

/// Moves money from one server to the other again and again, by two-phase commit.
fn transfer(teller: u64, mut sessions: [Session; 2], stop: &AtomicBool, transfers: &AtomicU64) {
    let mut random = Random(teller);
    for number in 0_u64.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("{teller}-{number}");
        // More goes one way, so that images of different instants do not fit together by chance.
        let amounts = if random.chance(0.8) { [-1, 1] } else { [1, -1] };
        for (session, amount) in sessions.iter_mut().zip(amounts) {
            // Each teller has its own accounts: nobody waits for a lock that a prepared transaction holds.
            let account = random.below(ACCOUNTS / TELLERS as usize) as u64 * TELLERS + teller;
            let statements = format!(
                "begin; update accounts set balance = balance + {amount} where id = {account};
                 insert into transfers values ('{name}'); prepare transaction '{name}';"
            );
            session.run(&statements).unwrap();
        }
        for session in &mut sessions {
            session.run(&format!("commit prepared '{name}';")).unwrap();
        }
        transfers.fetch_add(1, Ordering::SeqCst);
    }
}

/// Starts what the two snapshots hold of the two volumes, resolves what is in doubt, and says by how much the sum of
/// all balances is wrong, and how many transactions were in doubt.
fn restored_difference(cluster: &Cluster, on_a: &str, on_b: &str, files: &Path) -> (i64, usize) {
    let restored = [
        Restored::start(cluster, &cluster.hosts[0], on_a, files),
        Restored::start(cluster, &cluster.hosts[1], on_b, files),
    ];
    let names = |number: usize, query: &str| -> Vec<String> {
        restored[number].postgres.query(query).lines().map(str::to_owned).collect()
    };
    let mut in_doubt = 0;
    for (this, other) in [(0, 1), (1, 0)] {
        let done = names(other, "select name from transfers");
        for name in names(this, "select gid from pg_prepared_xacts") {
            // Committed on one side: it was prepared on both, and is to be committed. Committed on neither: the order
            // to commit had no effect yet, and it may be undone on both.
            let verdict = if done.contains(&name) { "commit" } else { "rollback" };
            restored[this].postgres.query(&format!("{verdict} prepared '{name}'"));
            in_doubt += 1;
        }
    }
    let mut sum = 0;
    for server in restored {
        sum += server.postgres.query("select sum(balance) from accounts").parse::<i64>().unwrap();
        server.postgres.check();
        server.stop(cluster);
    }
    (sum - 2 * ACCOUNTS as i64 * BALANCE, in_doubt)
}

/// Does something when it is dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
