//! Pools and volumes of the device mapper and of LVM, on loop devices. By root, on a kernel that has them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use coeval_cli::workload::Export;
use snapshot::backend::dm_thin::{DmThin, DmThinOptions};
use snapshot::nbd::{Client, Endpoint};

use crate::eventually;
use crate::filesystem::dies_with_us;
use crate::tools::{finish, run};

const VOLUME_SECTORS: u64 = (16 << 20) / 512;

/// A block device over a file.
#[derive(Debug)]
struct Loop {
    device: String,
}

impl Loop {
    fn new(directory: &Path, name: &str, size: &str) -> Loop {
        let file = directory.join(name);
        run(Command::new("truncate").args(["-s", size]).arg(&file));
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Loop { device: device.trim().to_owned() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // What is in use goes when it no longer is.
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

/// Runs `dmsetup`.
///
/// # Panics
/// When it fails.
pub fn dmsetup(arguments: &[&str]) -> String {
    run(Command::new("dmsetup").args(arguments))
}

/// A pool of the device mapper with one thin volume, number 0, called `thin0`.
// Fields are dropped in this order.
#[derive(Debug)]
pub struct Pool {
    devices: Vec<String>,
    data: Loop,
    metadata: Loop,
    directory: tempfile::TempDir,
}

impl Pool {
    /// Makes one.
    ///
    /// # Panics
    /// When that fails.
    #[expect(clippy::new_without_default, reason = "it does much, and may fail")]
    pub fn new() -> Pool {
        let directory = tempfile::tempdir().unwrap();
        let (metadata, data) =
            (Loop::new(directory.path(), "metadata", "8M"), Loop::new(directory.path(), "data", "256M"));
        let mut pool = Pool { devices: Vec::new(), data, metadata, directory };
        pool.create();
        dmsetup(&["message", "pool", "0", "create_thin 0"]);
        pool.map("thin0", 0);
        pool
    }

    fn create(&mut self) {
        let table = format!("0 {} thin-pool {} {} 128 0", 256 << 11, self.metadata.device, self.data.device);
        dmsetup(&["create", "pool", "--table", &table]);
        self.devices.push("pool".to_owned());
    }

    /// Shows a device of the pool under /dev/mapper.
    ///
    /// # Panics
    /// When there is none of this number.
    pub fn map(&mut self, name: &str, number: u64) -> PathBuf {
        let table = format!("0 {VOLUME_SECTORS} thin /dev/mapper/pool {number}");
        dmsetup(&["create", name, "--table", &table]);
        self.devices.insert(0, name.to_owned());
        Path::new("/dev/mapper").join(name)
    }

    /// The backend over a device of the pool.
    ///
    /// # Panics
    /// When there is no device mapper.
    pub fn backend(&self, device: &str) -> DmThin {
        DmThin::new(DmThinOptions { device: device.to_owned(), directory: self.books(device) }).unwrap()
    }

    /// Where that keeps which numbers are its own.
    pub fn books(&self, device: &str) -> PathBuf {
        self.directory.path().join(format!("{device}-numbers"))
    }

    /// Shows a snapshot under /dev/mapper.
    ///
    /// # Panics
    /// When there is none of this name.
    pub fn map_snapshot(&mut self, device: &str, snapshot: &str) -> PathBuf {
        let books = std::fs::read(self.books(device).join("thin.json")).unwrap();
        let books: serde_json::Value = serde_json::from_slice(&books).unwrap();
        let taken = books["snapshots"].as_array().unwrap();
        let number = taken.iter().find(|taken| taken["name"] == snapshot).unwrap()["number"].as_u64();
        self.map(&format!("{device}-{snapshot}"), number.unwrap())
    }

    /// The numbers of the pool's devices, by its own metadata. Everything else of it is taken down for that.
    ///
    /// # Panics
    /// When that fails.
    pub fn numbers(&mut self) -> Vec<String> {
        for device in self.devices.drain(..) {
            // Some were removed before.
            let _ = finish(Command::new("dmsetup").args(["remove", "--retry", &device]));
        }
        let listed =
            run(Command::new("thin_ls").args(["--no-headers", "-o", "DEV"]).arg(&self.metadata.device));
        let numbers = listed.split_whitespace().map(ToOwned::to_owned).collect();
        self.create();
        self.map("thin0", 0);
        numbers
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for device in &self.devices {
            let _ = Command::new("dmsetup").args(["remove", "--retry", device]).status();
        }
    }
}

/// An LVM volume group `vg` with a thin volume `thin` and a thick one, `thick`, of 64 MiB each.
#[derive(Debug)]
pub struct Lvm {
    _disk: Loop,
    _directory: tempfile::TempDir,
}

impl Lvm {
    /// Makes one.
    ///
    /// # Panics
    /// When that fails.
    #[expect(clippy::new_without_default, reason = "it does much, and may fail")]
    pub fn new() -> Lvm {
        let directory = tempfile::tempdir().unwrap();
        let disk = Loop::new(directory.path(), "disk", "512M");
        run(Command::new("vgcreate").args(["-q", "vg", &disk.device]));
        let lvm = Lvm { _disk: disk, _directory: directory };
        run(Command::new("lvcreate").args(["-q", "-y", "-L", "128M", "-T", "vg/pool"]));
        run(Command::new("lvcreate").args(["-q", "-y", "-V", "64M", "-T", "vg/pool", "-n", "thin"]));
        run(Command::new("lvcreate").args(["-q", "-y", "-L", "64M", "-n", "thick", "vg"]));
        lvm
    }
}

impl Drop for Lvm {
    fn drop(&mut self) {
        let _ = Command::new("vgremove").args(["-q", "-f", "-y", "vg"]).status();
    }
}

/// A device or file, as the workload reaches it: written through the kernel, bypassing its cache.
#[derive(Debug)]
pub struct Served {
    server: Child,
    /// Where it is served.
    pub export: Export,
}

impl Served {
    /// Serves one. Its socket is in `directory`.
    ///
    /// # Panics
    /// When it is not served.
    pub fn new(directory: &Path, name: &str, file: &Path) -> Served {
        let socket = directory.join(format!("{name}.nbd"));
        let mut command = dies_with_us("qemu-nbd");
        command.args(["--format=raw", "--cache=none", "--aio=threads", "--persistent", "--shared=64"]);
        command.args(["--export-name=data", "--socket"]).arg(&socket).arg(file);
        let server = command.spawn().unwrap();
        let export = Export { endpoint: Endpoint::Unix(socket), name: "data".to_owned() };
        eventually(|| Client::connect(&export.endpoint, &export.name).map(|_| ()));
        Served { server, export }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
