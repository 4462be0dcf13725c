//! A virtual machine as people have them: a QEMU process with a Linux guest. Its guest serves its disks, or whatever it has,
//! over NBD, so that the causal workload writes to them through the guest's kernel.

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use coeval_cli::workload::Export;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapshot::nbd::{Client, Endpoint};

use crate::filesystem::dies_with_us;
use crate::tools::free_port;

/// Emulated, on a machine that is busy.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);

/// A disk of a machine.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The id of its device.
    pub id: &'static str,
    /// `qcow2` or `raw`, or for a URI `nbd`.
    pub format: &'static str,
    /// The image, or an NBD socket and export, `SOCKET:EXPORT`.
    pub image: PathBuf,
}

/// What a machine has, what its guest runs, and what of that is reached from here.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Its disks.
    pub disks: &'a [Disk],
    /// The script of `tests/vm` that it runs.
    pub script: &'a str,
    /// `name=value`: the script's environment, in words of the kernel's command line.
    pub environment: &'a str,
    /// How many exports it serves, at ports 10809 and following.
    pub exports: u16,
    /// Other ports, each after its protocol, `tcp` or `udp`.
    pub ports: &'a [(&'a str, u16)],
}

/// A running machine; killed when dropped.
#[derive(Debug)]
pub struct Machine {
    process: Child,
    console: PathBuf,
    exports: Vec<u16>,
    /// The ports here that lead to its guest's other ports.
    pub ports: Vec<u16>,
    /// The socket of its QMP monitor.
    pub monitor: PathBuf,
    /// The socket of its guest's agent.
    pub agent: PathBuf,
}

impl Machine {
    /// Whether there is what `tests/vm/prepare` makes.
    pub fn is_prepared() -> bool {
        let home = home();
        ["qemu/qemu-system-x86_64", "initramfs.gz", "kernel/version"]
            .iter()
            .all(|file| home.join(file).exists())
    }

    /// Starts a machine with these disks, and waits until its guest serves them. Its files are in `directory`, named by
    /// `name`.
    ///
    /// # Panics
    /// When it does not start; it needs what `tests/vm/prepare` makes.
    pub fn start(directory: &Path, name: &str, disks: &[Disk]) -> Machine {
        let exports = u16::try_from(disks.len()).unwrap();
        let guest = Guest { disks, script: "serve-disks", environment: "", exports, ports: &[] };
        Machine::with_guest(directory, name, guest)
    }

    /// As [`Machine::start`], with another guest.
    ///
    /// # Panics
    /// As there.
    pub fn with_guest(directory: &Path, name: &str, guest: Guest<'_>) -> Machine {
        let monitor = directory.join(format!("{name}.qmp"));
        let agent = directory.join(format!("{name}.qga"));
        let console = directory.join(format!("{name}.console"));
        let [exports, ports] = [usize::from(guest.exports), guest.ports.len()]
            .map(|many| (0..many).map(|_| free_port()).collect::<Vec<_>>());
        let home = home();
        let version = std::fs::read_to_string(home.join("kernel/version"));
        let version =
            version.unwrap_or_else(|why| panic!("no kernel for a guest ({why}); run tests/vm/prepare"));
        let kernel = home.join(format!("kernel/root/boot/vmlinuz-{}", version.trim()));
        let script =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("vm").join(guest.script).canonicalize().unwrap();
        let mut command = dies_with_us(home.join("qemu/qemu-system-x86_64").to_str().unwrap());
        command.args([
            "-M", "q35", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512", "-display", "none",
        ]);
        command.args(["-no-reboot", "-nodefaults", "-serial", "stdio"]);
        command.args(["-L", "/usr/share/qemu", "-L", "/usr/share/seabios"]);
        command.arg("-kernel").arg(kernel).arg("-initrd").arg(home.join("initramfs.gz"));
        let words = format!("guestscript={} {}", script.display(), guest.environment);
        command.args(["-append", &format!("console=ttyS0 quiet panic=-1 rdinit=/init {words}")]);
        command.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
        command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        let inside =
            (10_809..10_809 + guest.exports).map(|port| ("tcp", port)).chain(guest.ports.iter().copied());
        let forward = |(here, (protocol, there)): (&u16, (&str, u16))| {
            format!(",hostfwd={protocol}:127.0.0.1:{here}-:{there}")
        };
        let forwards: String = exports.iter().chain(&ports).zip(inside).map(forward).collect();
        // A guest that is restricted to what is forwarded cannot answer over UDP.
        let restrict = if guest.ports.iter().any(|(protocol, _)| *protocol == "udp") { "off" } else { "on" };
        command.args(["-netdev", &format!("user,id=net,restrict={restrict}{forwards}")]);
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        for Disk { id, format, image } in guest.disks {
            let image = image.to_str().unwrap();
            if *format == "nbd" {
                let (socket, export) = image.split_once(':').unwrap();
                let node =
                    format!("nbd,node-name={id}-0,server.type=unix,server.path={socket},export={export}");
                command.args(["-blockdev", &format!("driver={node}")]);
            } else {
                command.args(["-blockdev", &format!("driver=file,node-name={id}-f,filename={image}")]);
                command.args(["-blockdev", &format!("driver={format},node-name={id}-0,file={id}-f")]);
            }
            command.args(["-device", &format!("virtio-blk-pci,drive={id}-0,id={id}")]);
        }
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", monitor.display())]);
        let port = format!("socket,id=agent,server=on,wait=off,path={}", agent.display());
        command.args(["-chardev", &port, "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
        let log = File::create(&console).unwrap();
        let errors = log.try_clone().unwrap();
        let process = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap();
        let mut machine = Machine { process, console, exports, ports, monitor, agent };
        machine.await_ready();
        machine
    }

    fn await_ready(&mut self) {
        let step = Duration::from_millis(100);
        for _ in 0..BOOT_PATIENCE.as_millis() / step.as_millis() {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "QEMU ended: {}", self.console());
            if self.disks().iter().all(|disk| Client::connect(&disk.endpoint, &disk.name).is_ok()) {
                return;
            }
            std::thread::sleep(step);
        }
        panic!("the guest serves nothing: {}", self.console());
    }

    /// What its guest has printed.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Its disks as its guest serves them; of another guest, what else it serves.
    pub fn disks(&self) -> Vec<Export> {
        let endpoint = |port: &u16| Endpoint::Tcp((Ipv4Addr::LOCALHOST, *port).into());
        self.exports.iter().map(|port| Export { endpoint: endpoint(port), name: "data".to_owned() }).collect()
    }

    /// Sends a signal to QEMU.
    ///
    /// # Panics
    /// When there is none.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.process.id()).unwrap()), signal).unwrap();
    }

    /// Kills it, as a power failure would.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // An error means that it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn home() -> PathBuf {
    let named = std::env::var_os("VM_DIR").map(PathBuf::from);
    named.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/coeval-vm"))
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
    }
}
