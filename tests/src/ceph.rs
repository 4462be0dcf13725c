//! A Ceph cluster on this machine's loopback: one monitor, one OSD that keeps everything in memory, and a pool `pool` with
//! an image `www`, which a FUSE mount shows as a file.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use uuid::Uuid;

use crate::eventually;
use crate::filesystem::dies_with_us;
use crate::tools::{free_port, run};

/// A running cluster; ended when dropped. Nothing is to be mounted from the image then.
#[derive(Debug)]
pub struct Ceph {
    // The image's, the OSD's and the monitor's, in the order in which they are to end.
    daemons: Vec<Child>,
    images: PathBuf,
    directory: tempfile::TempDir,
}

impl Ceph {
    /// Starts one, with an image of 64 MiB.
    ///
    /// # Panics
    /// When it does not start.
    #[expect(clippy::new_without_default, reason = "it does much, and may fail")]
    pub fn new() -> Ceph {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let [cluster, osd] = [(); 2].map(|()| Uuid::new_v4().to_string());
        let (home, address) = (directory.path().display(), format!("[v2:127.0.0.1:{}]", free_port()));
        // Nobody is let in by a key: who may write in /tmp may do all this. A disk that others have filled is none of its
        // business.
        let config = format!(
            "[global]\nfsid = {cluster}\nmon host = {address}\npublic addr = 127.0.0.1\n\
             auth cluster required = none\nauth service required = none\nauth client required = none\n\
             mon allow pool size one = true\nosd pool default size = 1\nosd pool default min size = 1\n\
             osd pool default pg autoscale mode = off\nosd crush chooseleaf type = 0\nosd objectstore = memstore\n\
             mon data = {home}/mon\nosd data = {home}/osd\nmon data avail crit = 1\nmon data avail warn = 1\n\
             run dir = {home}\nadmin socket = {home}/$name.$pid\nlog file = {home}/$name.log\n"
        );
        std::fs::write(at("ceph.conf"), config).unwrap();
        ["mon", "osd", "images"].iter().for_each(|name| std::fs::create_dir(at(name)).unwrap());
        // For configurations that name a program.
        let rbd = format!("#!/bin/sh\nexec rbd --conf {home}/ceph.conf \"$@\"\n");
        std::fs::write(at("rbd"), rbd).unwrap();
        std::fs::set_permissions(at("rbd"), PermissionsExt::from_mode(0o755)).unwrap();

        let mut ceph = Ceph { daemons: Vec::new(), images: at("images"), directory };
        let map = ceph.directory.path().join("map");
        run(Command::new("monmaptool")
            .args(["--create", "--fsid", &cluster, "--addv", "a", &address])
            .arg(&map));
        run(ceph.command("ceph-mon").args(["--mkfs", "--id", "a", "--monmap"]).arg(&map));
        ceph.start("ceph-mon", &["-f", "--id", "a"]);
        run(ceph.command("ceph").args(["osd", "new", &osd, "0"]).stdin(Stdio::null()));
        run(ceph.command("ceph-osd").args(["--mkfs", "--id", "0", "--osd-uuid", &osd]));
        ceph.start("ceph-osd", &["-f", "--id", "0"]);
        run(ceph.command("ceph").args(["osd", "pool", "create", "pool", "8"]));
        run(ceph.command("rbd").args(["pool", "init", "pool"]));
        run(ceph.command("rbd").args(["create", "--size", "64M", "pool/www"]));
        let images = ceph.images.clone();
        ceph.start("rbd-fuse", &["-f", "-p", "pool", images.to_str().unwrap()]);
        eventually(|| std::fs::metadata(ceph.image()).map(|_| ()));
        ceph
    }

    /// A program of Ceph's, that talks to this cluster.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.directory.path().join("ceph.conf"));
        command
    }

    fn start(&mut self, program: &str, arguments: &[&str]) {
        let mut command = dies_with_us(program);
        command.arg("-c").arg(self.directory.path().join("ceph.conf")).args(arguments);
        let log = std::fs::File::create(self.directory.path().join(program)).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.insert(0, command.spawn().unwrap());
    }

    /// The image, as a file.
    pub fn image(&self) -> PathBuf {
        self.images.join("www")
    }

    /// `rbd` for this cluster.
    pub fn rbd(&self) -> PathBuf {
        self.directory.path().join("rbd")
    }

    /// Copies a snapshot of the image to a new file.
    ///
    /// # Panics
    /// When that fails.
    pub fn export(&self, snapshot: &str, to: &Path) {
        run(self.command("rbd").args(["export", "--no-progress", &format!("pool/www@{snapshot}")]).arg(to));
    }
}

impl Drop for Ceph {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.images).status();
        for daemon in &mut self.daemons {
            // Errors mean that it has ended already.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
