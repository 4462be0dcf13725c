//! Debian's PostgreSQL: servers on any directory, reached by Unix sockets only.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tempfile::TempDir;

use crate::eventually;
use crate::filesystem::dies_with_us;
use crate::tools::{finish, run};

/// PostgreSQL refuses to run as root.
const USER: &str = "postgres";

/// Small, so that a test of some seconds passes checkpoints and reuses segments of the log.
const SETTINGS: [&str; 5] = [
    "max_wal_size=16MB",
    "min_wal_size=4MB",
    "shared_buffers=16MB",
    "max_prepared_transactions=64",
    "dynamic_shared_memory_type=mmap",
];

/// A running server; ended at once, as by a crash, when dropped.
#[derive(Debug)]
pub struct Postgres {
    server: Child,
    /// Its socket and its log.
    directory: TempDir,
}

impl Postgres {
    /// Makes an empty database cluster at `data`, durably.
    ///
    /// # Panics
    /// When PostgreSQL is missing or refuses.
    pub fn initialise(data: &Path) {
        std::fs::create_dir(data).unwrap();
        give(data);
        let mut command = as_user("initdb");
        command.arg("--pgdata").arg(data);
        command.args([
            "--username",
            USER,
            "--auth=trust",
            "--locale=C",
            "--encoding=UTF8",
            "--wal-segsize=1",
        ]);
        // One sync of everything instead of one for each of a thousand files.
        run(command.arg("--no-sync"));
        run(Command::new("sync").arg("--file-system").arg(data));
    }

    /// Starts a server on `data`, and waits until it has recovered and answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(data: &Path) -> Postgres {
        // A snapshot holds the lock file of the server that ran when it was taken. That it is stale cannot be seen
        // where the number of its process is in use again.
        let _ = std::fs::remove_file(data.join("postmaster.pid"));
        let directory = tempfile::tempdir().unwrap();
        give(directory.path());
        let log = File::create(directory.path().join("log")).unwrap();
        let mut command = as_user("postgres");
        command.arg("-D").arg(data).arg("-k").arg(directory.path()).args(["-c", "listen_addresses="]);
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        let server = command.stderr(log).spawn().unwrap();
        let mut postgres = Postgres { server, directory };
        eventually(|| {
            assert_eq!(postgres.server.try_wait().unwrap(), None, "it ended: {}", postgres.log());
            let asked = finish(postgres.client("psql").args(["--command", "select 1"]));
            asked.status.success().then_some(()).ok_or(String::from_utf8_lossy(&asked.stderr).into_owned())
        });
        postgres
    }

    /// What it logged so far.
    ///
    /// # Panics
    /// When the log cannot be read.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// One of PostgreSQL's clients, to be given its arguments. It is killed when the calling thread ends.
    pub fn client(&self, name: &str) -> Command {
        let mut command = dies_with_us(&program(name).to_string_lossy());
        command.env("PGHOST", self.directory.path()).env("PGUSER", USER).env("PGDATABASE", "postgres");
        command
    }

    /// The answer to a query: lines of fields with `|` in between.
    ///
    /// # Panics
    /// When it fails.
    pub fn query(&self, query: &str) -> String {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        run(psql.args(["--command", query])).trim().to_owned()
    }

    /// Opens a connection that lasts.
    ///
    /// # Panics
    /// When the client cannot be run.
    pub fn session(&self) -> Session {
        let mut psql = self.client("psql");
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (psql.stdin.take().unwrap(), BufReader::new(psql.stdout.take().unwrap()));
        Session { psql, orders, answers }
    }

    /// Checks every table and index of every database.
    ///
    /// # Panics
    /// When one is damaged.
    pub fn check(&self) {
        run(self.client("pg_amcheck").args(["--all", "--install-missing", "--heapallindexed"]));
    }

    /// Ends it in good order.
    ///
    /// # Panics
    /// When it does not end so.
    pub fn stop(mut self) {
        self.signal(Signal::SIGINT);
        let status = self.server.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    fn signal(&self, signal: Signal) {
        // It is a child that nobody has waited for, so it cannot be another process; it may have ended.
        let _ = kill(Pid::from_raw(self.server.id().cast_signed()), signal);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Ok(None) = self.server.try_wait() {
            self.signal(Signal::SIGQUIT);
            let _ = self.server.wait();
        }
    }
}

/// A connection: one statement after the other.
#[derive(Debug)]
pub struct Session {
    psql: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Session {
    /// Runs statements, and returns once they are done.
    ///
    /// # Errors
    /// When one fails, which also ends the session: psql has said why on stderr.
    pub fn run(&mut self, statements: &str) -> std::io::Result<()> {
        writeln!(self.orders, "{statements}\n\\echo done")?;
        for line in (&mut self.answers).lines() {
            if line? == "done" {
                return Ok(());
            }
        }
        Err(std::io::Error::other("psql ended"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.psql.kill();
        let _ = self.psql.wait();
    }
}

/// Debian keeps the programs of each version apart.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.max_by_key(|version| version.file_name().to_string_lossy().parse::<u32>().ok());
    let Some(newest) = newest else {
        panic!("PostgreSQL is missing: `tests/run` installs the Debian packages")
    };
    newest.path().join("bin").join(name)
}

fn as_user(name: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--pdeathsig", "KILL", "--"]);
    command.arg(program(name)).stdin(Stdio::null()).current_dir("/");
    command
}

/// Makes a directory PostgreSQL's own.
fn give(directory: &Path) {
    let user = User::from_name(USER).unwrap().unwrap();
    chown(directory, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o700)).unwrap();
}
