//! Systems of their own on this machine, as far as their programs can tell: each has systemd, namespaces of every kind, and
//! this machine's root under an overlay of its own, in memory. What they do is gone with them.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::eventually;
use crate::namespaces::Namespace;
use crate::shell::Shell;
use crate::tools::finish;

/// Becomes systemd, in a root of its own. Arguments: a directory to work in, the host's name, and one that it shares.
/// What is the kernel's as a whole is read-only, and the clock cannot be set.
const BOOT: &str = r#"
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p run/wire mnt/old
mount --bind "$3" run/wire
echo "$2" >etc/hostname
# Where this machine is a container, it forbids packages to start and stop daemons.
rm -f usr/sbin/policy-rc.d
: >etc/machine-id
pivot_root . mnt/old
cd /
umount -l /mnt/old
exec env -i container=booted PATH=/usr/sbin:/usr/bin:/sbin:/bin setpriv --bounding-set=-sys_time,-sys_module,-sys_boot \
  /lib/systemd/systemd --unit=basic.target
"#;

/// A system that runs; ended when dropped, with all that runs on it.
#[derive(Debug)]
pub struct Booted {
    unshare: Child,
    init: String,
    _directory: tempfile::TempDir,
}

impl Booted {
    /// Boots a system of this name in the namespace, which nothing else is to use. What is in the directory `shared` lies
    /// below `/run/wire`.
    ///
    /// # Panics
    /// When it does not come up: it needs root, systemd and cgroup2.
    pub fn start(place: &Namespace, name: &str, shared: &Path) -> Booted {
        let directory = tempfile::tempdir().unwrap();
        // Nothing of it is left if the test is killed.
        let mut command = place.command("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--pid",
            "--mount",
            "--uts",
            "--ipc",
            "--cgroup",
            "--fork",
            "--kill-child",
        ]);
        command.args(["bash", "-c", BOOT, "boot"]).arg(directory.path()).arg(name).arg(shared);
        let unshare = command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = eventually(|| {
            let children = std::fs::read_to_string(&children).map_err(|why| why.to_string())?;
            let is_systemd = |pid: &&str| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n")
            };
            children.split_whitespace().find(is_systemd).map(str::to_owned).ok_or("no systemd".to_owned())
        });
        let booted = Booted { unshare, init, _directory: directory };
        eventually(|| {
            let state = finish(booted.command("systemctl").arg("is-system-running"));
            let state = String::from_utf8_lossy(&state.stdout).into_owned();
            // Degraded: some service of this machine's does not work in a system such as this.
            if ["running\n", "degraded\n"].contains(&&*state) { Ok(()) } else { Err(state) }
        });
        booted
    }

    /// A command that runs there, as root, in `/`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.init, "env", "-i", "HOME=/root"]);
        command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").arg(program);
        command
    }

    /// A root shell there, in `/root`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn shell(&self) -> Shell {
        let mut command = self.command("bash");
        command.args(["--norc", "-s"]);
        let mut shell = Shell::start(command);
        assert_eq!(shell.type_in("cd /root").0, 0);
        shell
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Its end is systemd's, and systemd's that of all others there. Errors mean that it has ended already.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
