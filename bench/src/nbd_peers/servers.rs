//! The servers: each with its own files, started, filled, counted and ended.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use coeval_cli::cluster::{Cluster, Place};
use harness::tools;
use nix::time::ClockId;
use nix::unistd::Pid;
use snapshot::device::{Device, Exports, Outcome};
use snapshot::nbd::{self, Client, Endpoint};
use tempfile::TempDir;
use timesync::clock::HostClock;

use super::Failure;
use super::jobs::{Export, Top, fio};

/// The export's name, everywhere.
const NAME: &str = "data";
/// More clients than any job has.
const CLIENTS: u32 = 16;

/// Where everybody's files are.
pub struct Site {
    directory: TempDir,
    /// Of each volume or file, in bytes.
    pub size: u64,
    /// Of the requests that they are written with at first, in fio's terms.
    fill: String,
}

impl Site {
    pub fn new(size: u64, fill: &str) -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("nbd-peers-").tempdir()?;
        Ok(Site { directory, size, fill: fill.to_owned() })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// A program, in one of its settings.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    Null,
    Nbdkit,
    NbdkitOneThread,
    NbdServer,
    QemuNbdUring,
    QemuNbdThreads,
    QemuStorageDaemon,
    Qcow2,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Ours,
        Kind::Null,
        Kind::Nbdkit,
        Kind::NbdkitOneThread,
        Kind::NbdServer,
        Kind::QemuNbdUring,
        Kind::QemuNbdThreads,
        Kind::QemuStorageDaemon,
        Kind::Qcow2,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Ours => "coeval",
            Kind::Null => "null",
            Kind::Nbdkit => "nbdkit file",
            Kind::NbdkitOneThread => "nbdkit file -t 1",
            Kind::NbdServer => "nbd-server",
            Kind::QemuNbdUring => "qemu-nbd io_uring",
            Kind::QemuNbdThreads => "qemu-nbd threads",
            Kind::QemuStorageDaemon => "qemu-storage-daemon",
            Kind::Qcow2 => "qemu-nbd qcow2",
        }
    }

    /// Whether it is what people would use instead of ours.
    pub fn is_peer(self) -> bool {
        !matches!(self, Kind::Ours | Kind::Null)
    }

    /// Only ours and qcow2 have snapshots.
    pub fn takes_part(self, chain: usize) -> bool {
        match self {
            Kind::Ours => true,
            Kind::Qcow2 => chain > 0,
            _ => chain == 0,
        }
    }
}

/// Says which programs are missing.
pub fn check_programs() -> Result<(), Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let present = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).exists());
    let needed = ["fio", "nbdkit", "nbd-server", "qemu-nbd", "qemu-img", "qemu-storage-daemon", "setpriv"];
    let missing: Vec<&str> = needed.into_iter().filter(|name| !present(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = "fio nbdkit nbd-server qemu-utils qemu-system-common util-linux";
    Err(format!("nbd-peers needs {}: apt-get install {packages}", missing.join(", ")).into())
}

/// A running server.
pub struct Server {
    pub kind: Kind,
    pub chain: usize,
    serving: Serving,
    socket: PathBuf,
    /// Whether every block of the topmost layer has been written.
    written: bool,
}

enum Serving {
    Ours(Box<Cluster>),
    /// In this process.
    Null(#[expect(dead_code, reason = "it serves until it is dropped")] nbd::Server),
    Peer(Process),
}

impl Server {
    /// Starts it, and writes its files: all of them, and a share of the blocks again above each snapshot.
    pub fn start(site: &Site, kind: Kind, chain: usize) -> Result<Self, Failure> {
        let socket = site.file(&format!("{chain} {}.sock", kind.name()).replace(' ', "-"));
        let serving = match kind {
            Kind::Ours => Serving::Ours(Box::new(ours(site)?)),
            Kind::Null => Serving::Null(null(site, &socket)?),
            _ => Serving::Peer(peer(site, kind, 0, &socket)?),
        };
        let mut server = Server { kind, chain, serving, socket, written: false };
        if let Serving::Ours(cluster) = &server.serving {
            server.socket.clone_from(&cluster.hosts[0].nbd_socket);
        }
        if kind != Kind::Null {
            server.write_all(site)?;
        }
        for layer in 1..=chain {
            server.add_layer(site, layer)?;
            let share = site.size / (chain as u64 + 1);
            server.fill(
                &["--rw=randwrite", "--bs=4k", "--iodepth=16", &format!("--randseed={layer}")],
                site,
                share,
            )?;
        }
        server.await_digests();
        Ok(server)
    }

    pub fn export(&self) -> Export<'_> {
        Export { name: NAME, socket: &self.socket }
    }

    /// Brings about what a job wants on top. Jobs that want the layers as they were made come before all others.
    pub fn make_top(&mut self, site: &Site, top: Top) -> Result<(), Failure> {
        match top {
            Top::AsMade => {}
            Top::Fresh => self.renew_top(site)?,
            // Like the file without snapshots: written in full, and from one end to the other.
            Top::Written if !self.written && self.kind != Kind::Null => {
                self.renew_top(site)?;
                self.write_all(site)?;
            }
            Top::Written => {}
        }
        Ok(())
    }

    /// Puts an empty layer in the place of the topmost one.
    fn renew_top(&mut self, site: &Site) -> Result<(), Failure> {
        if let Serving::Ours(cluster) = &self.serving {
            tools::ask(cluster, &["snapshot", "delete", &format!("s{}", self.chain)]);
        }
        self.await_merges();
        self.add_layer(site, self.chain)?;
        self.await_merges();
        self.await_digests();
        Ok(())
    }

    /// Waits until no two of our layers are left to be merged: one for each snapshot, and one on top.
    fn await_merges(&self) {
        let Serving::Ours(cluster) = &self.serving else { return };
        let merged = || {
            let layers = tools::ask(cluster, &["volume", "list"])[0]["volumes"][0]["layers"].as_u64();
            if layers == Some(self.chain as u64 + 1) { Ok(()) } else { Err(format!("{layers:?} layers")) }
        };
        harness::eventually(merged);
    }

    /// Waits until our snapshots have been read in the background, which takes processor time that no layer costs.
    fn await_digests(&self) {
        let Serving::Ours(cluster) = &self.serving else { return };
        for layer in 1..=self.chain {
            let read = || {
                let shown = tools::ask(cluster, &["snapshot", "show", &format!("s{layer}")]);
                let digest = &shown["manifest"]["hosts"][0]["volumes"][0]["digest"];
                if digest.is_string() { Ok(()) } else { Err(format!("s{layer} has no digest")) }
            };
            harness::eventually(read);
        }
    }

    /// The processor time that it has used, of children that have ended too.
    pub fn cpu(&self) -> Result<Duration, Failure> {
        match &self.serving {
            Serving::Ours(cluster) => own_cpu(cluster.hosts[0].daemon.id()),
            // Its children are the clients.
            Serving::Null(_) => own_cpu(std::process::id()),
            Serving::Peer(process) => Ok(own_cpu(process.id())? + children_cpu(process.id())?),
        }
    }

    /// Has everything written back, so that nobody's turn pays for the one before.
    pub fn flush(&self) -> Result<(), Failure> {
        let mut client = Client::connect(&Endpoint::Unix(self.socket.clone()), NAME)?;
        client.flush()?;
        Ok(client.disconnect()?)
    }

    /// Takes a snapshot, or puts an image on top of the topmost one.
    fn add_layer(&mut self, site: &Site, layer: usize) -> Result<(), Failure> {
        self.written = false;
        match &mut self.serving {
            Serving::Ours(cluster) => {
                tools::ask(cluster, &["snapshot", "create", &format!("s{layer}")]);
            }
            Serving::Null(_) => {}
            Serving::Peer(process) => {
                process.end();
                *process = peer(site, self.kind, layer, &self.socket)?;
            }
        }
        Ok(())
    }

    fn write_all(&mut self, site: &Site) -> Result<(), Failure> {
        let block = format!("--bs={}", site.fill);
        self.fill(&["--rw=write", &block, "--iodepth=16"], site, site.size)?;
        self.written = true;
        Ok(())
    }

    fn fill(&self, arguments: &[&str], site: &Site, bytes: u64) -> Result<(), Failure> {
        let size =
            [format!("--size={}", site.size), format!("--io_size={bytes}"), "--end_fsync=1".to_owned()];
        let arguments: Vec<String> =
            arguments.iter().map(|&argument| argument.to_owned()).chain(size).collect();
        fio(&self.export(), &arguments)?;
        Ok(())
    }
}

fn ours(site: &Site) -> Result<Cluster, Failure> {
    let (host, server) = (Place::loopback(&[]), Place::loopback(&[]));
    let cluster = Cluster::start(harness::coeval(), &[("a", host)], &server, |_, address| Ok(address))?;
    tools::ask(&cluster, &["volume", "create", &format!("a/{NAME}"), &site.size.to_string()]);
    Ok(cluster)
}

fn null(site: &Site, socket: &Path) -> Result<nbd::Server, Failure> {
    let exports = Arc::new(Nothing { size: site.size });
    Ok(nbd::Server::bind(&[Endpoint::Unix(socket.to_owned())], exports, HostClock::real())?)
}

/// Answers without touching data.
#[derive(Clone, Copy)]
struct Nothing {
    size: u64,
}

impl Exports for Nothing {
    fn list(&self) -> Vec<String> {
        vec![NAME.to_owned()]
    }

    fn open(&self, _name: &str) -> Option<Arc<dyn Device>> {
        Some(Arc::new(*self))
    }
}

impl Device for Nothing {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, _offset: u64, _buffer: &mut [u8]) -> Outcome {
        Outcome::now(Ok(()))
    }

    fn write(&self, _offset: u64, _data: &[u8], _fua: bool) -> Outcome {
        Outcome::now(Ok(()))
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _may_punch: bool, _fua: bool) -> Outcome {
        Outcome::now(Ok(()))
    }

    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> Outcome {
        Outcome::now(Ok(()))
    }

    fn flush(&self) -> Outcome {
        Outcome::now(Ok(()))
    }
}

/// Starts a peer on its image number `layer`, which it makes anew: empty, above the one before.
fn peer(site: &Site, kind: Kind, layer: usize, socket: &Path) -> Result<Process, Failure> {
    let image = |layer: usize| site.file(&format!("{}.{layer}", kind.name().replace(' ', "-")));
    let file = image(layer);
    if layer == 0 {
        File::create(&file)?.set_len(site.size)?;
    } else {
        let format = if layer == 1 { "raw" } else { "qcow2" };
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", format, "-b"]).arg(image(layer - 1)).arg(&file);
        tools::run(&mut create);
    }
    let pid_file = site.file("pid");
    let clients = CLIENTS.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    match kind {
        Kind::Nbdkit | Kind::NbdkitOneThread => {
            command.args(["nbdkit", "-f", "-e", NAME, "-U"]).arg(socket);
            if kind == Kind::NbdkitOneThread {
                command.args(["-t", "1"]);
            }
            command.arg("file").arg(&file);
        }
        Kind::NbdServer => {
            let config = site.file("nbd-server.conf");
            // It insists on a port besides the socket.
            let text = format!(
                "[generic]\nunixsock = {}\nlistenaddr = 127.0.0.1\nport = {}\n\
                 [{NAME}]\nexportname = {}\nflush = true\nfua = true\n",
                socket.display(),
                tools::free_port(),
                file.display()
            );
            std::fs::write(&config, text)?;
            // It only stays in the foreground for a single client.
            command.args(["nbd-server", "-C"]).arg(config).arg("-p").arg(&pid_file);
        }
        Kind::QemuStorageDaemon => {
            let blockdev = format!("driver=file,node-name=file,filename={}", file.display());
            let server = format!("addr.type=unix,addr.path={},max-connections={clients}", socket.display());
            let export = format!("type=nbd,id=export,node-name=file,name={NAME},writable=on");
            command.args(["qemu-storage-daemon", "--blockdev", &blockdev, "--nbd-server", &server]);
            command.args(["--export", &export]);
        }
        _ => {
            let format = if layer == 0 { "raw" } else { "qcow2" };
            let aio = if kind == Kind::QemuNbdUring { "io_uring" } else { "threads" };
            command.args(["qemu-nbd", "-t", "--cache=writeback", "-f", format, "--aio", aio]);
            command.args(["-e", &clients, "-x", NAME, "-k"]).arg(socket).arg(&file);
        }
    }
    let mut process = Process::start(&mut command, socket, &site.file("log"))?;
    if kind == Kind::NbdServer {
        let daemon = || std::fs::read_to_string(&pid_file)?.trim().parse().map_err(std::io::Error::other);
        process.daemon = Some(harness::eventually(daemon));
    }
    Ok(process)
}

/// A process, killed when dropped. One in the foreground is killed by the kernel if this process dies first.
struct Process {
    child: Child,
    /// Where it went to the background.
    daemon: Option<u32>,
}

impl Process {
    /// Starts it and waits until it listens.
    fn start(command: &mut Command, socket: &Path, log: &Path) -> Result<Self, Failure> {
        // What an earlier one left behind.
        let _ = std::fs::remove_file(socket);
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut process = Process { child: command.spawn()?, daemon: None };
        let listens = || match process.child.try_wait() {
            Ok(Some(status)) if !status.success() => Ok(Err(status)),
            _ => UnixStream::connect(socket).map(|_| Ok(())),
        };
        match harness::eventually(listens) {
            Ok(()) => Ok(process),
            Err(status) => {
                let program = command.get_args().nth(2).unwrap_or(OsStr::new("")).display();
                Err(format!("{program}: {status}: {}", std::fs::read_to_string(log)?).into())
            }
        }
    }

    fn id(&self) -> u32 {
        self.daemon.unwrap_or(self.child.id())
    }

    fn end(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(daemon) = self.daemon {
            let _ = Command::new("kill").arg(daemon.to_string()).status();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// User and system time of a process, exactly: of its threads, those that have ended too.
fn own_cpu(pid: u32) -> Result<Duration, Failure> {
    Ok(ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()))?.now()?.into())
}

/// The same of its children, in hundredths of a second (`proc_pid_stat`(5), fields 16 and 17): nbd-server has a
/// process for each client.
fn children_cpu(pid: u32) -> Result<Duration, Failure> {
    // Linux counts in hundredths of a second here, whatever its own tick is.
    const TICK: Duration = Duration::from_millis(10);
    // They count once they have ended.
    let none = || match std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        Ok(children) if !children.trim().is_empty() => Err(format!("{children} still run")),
        _ => Ok(()),
    };
    harness::eventually(none);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may hold spaces.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(13);
    let ticks: u32 = fields.take(2).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(TICK * ticks)
}
