//! Which file system a path is on, and on what that one lies: freezing a file system also holds up whatever lies above it,
//! such as a loop device on a file in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// A file system, as the kernel numbers it: `MAJOR:MINOR`. All subvolumes of a btrfs have one.
pub(super) type Device = String;

/// What the kernel says of mounts (proc_pid_mountinfo(5)), by numbers that are the whole machine's. A thread may have mounts of
/// its own; what was opened before it parted, as this program was, is in those of its process.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Table(Vec<Mount>);

/// A line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    id: u64,
    /// The file system.
    pub(super) device: Device,
    /// Where it is mounted.
    pub(super) at: PathBuf,
    /// What it is mounted from.
    source: PathBuf,
}

impl Table {
    pub(super) fn read() -> io::Result<Table> {
        let [of_thread, of_process] =
            ["thread-self", "self"].map(|whose| fs::read_to_string(format!("/proc/{whose}/mountinfo")));
        Ok(Table(of_thread?.lines().chain(of_process?.lines()).filter_map(parse).collect()))
    }

    /// The mount that a path is in.
    pub(super) fn of(&self, path: &Path) -> io::Result<&Mount> {
        let file = fs::File::open(path)?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
        let mount = self.0.iter().find(|mount| Some(mount.id) == id);
        mount.ok_or_else(|| io::Error::other("its file system is not in the table of mounts"))
    }

    /// The file system of a path and all that it lies on: of loop devices the files, of mapped devices those below.
    pub(super) fn all_below(&self, path: &Path) -> io::Result<BTreeSet<Device>> {
        let mut found = BTreeSet::new();
        let mut next = vec![path.to_owned()];
        while let Some(path) = next.pop() {
            let mount = self.of(&path)?;
            if found.insert(mount.device.clone()) {
                // A btrfs has a number that is no device's; then the device is where it is mounted from.
                let mut devices = vec![mount.device.clone()];
                devices.extend(fs::metadata(&mount.source).ok().map(|device| number(device.rdev())));
                while let Some(device) = devices.pop() {
                    let (files, below) = under(&device);
                    next.extend(files);
                    devices.extend(below);
                }
            }
        }
        Ok(found)
    }
}

impl Mount {
    pub(super) fn is_mounted_at(&self, path: &Path) -> bool {
        path.canonicalize().is_ok_and(|path| path == self.at)
    }
}

/// The files and the devices that a block device lies on.
fn under(device: &Device) -> (Option<PathBuf>, Vec<Device>) {
    let directory = Path::new("/sys/dev/block").join(device);
    let line = |path: PathBuf| fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned());
    let file = line(directory.join("loop/backing_file")).map(PathBuf::from).filter(|file| file.exists());
    let slaves = fs::read_dir(directory.join("slaves")).into_iter().flatten().flatten();
    let mut below: Vec<Device> = slaves.filter_map(|slave| line(slave.path().join("dev"))).collect();
    // A partition lies on its disk.
    if directory.join("partition").exists() {
        below.extend(fs::canonicalize(&directory).ok().and_then(|path| line(path.parent()?.join("dev"))));
    }
    (file, below)
}

fn number(device: u64) -> Device {
    format!("{}:{}", major(device), minor(device))
}

/// `36 35 98:0 /root /at rw,noatime master:1 - ext3 /dev/source rw`, with spaces and the like in octal.
fn parse(line: &str) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let mut words = front.split(' ');
    let (id, device, at) = (words.next()?, words.nth(1)?, words.nth(1)?);
    let source = back.split(' ').nth(1)?;
    Some(Mount {
        id: id.parse().ok()?,
        device: device.to_owned(),
        at: unescape(at),
        source: unescape(source),
    })
}

fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (octal, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(octal, character);
    }
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table() {
        let line = "36 35 0:52 /sub /srv/my\\040data rw,noatime shared:1 - btrfs /dev/loop3 rw,subvol=/sub";
        let mount = Mount {
            id: 36,
            device: "0:52".to_owned(),
            at: PathBuf::from("/srv/my data"),
            source: PathBuf::from("/dev/loop3"),
        };
        assert_eq!(parse(line), Some(mount));
        assert_eq!(parse("36 35"), None);
    }

    #[test]
    fn every_path_is_on_some_file_system() {
        let table = Table::read().unwrap();
        assert!(table.of(Path::new("/proc")).unwrap().is_mounted_at(Path::new("/proc")));
        let root = table.of(Path::new("/")).unwrap();
        assert!(table.all_below(Path::new("/")).unwrap().contains(&root.device));
    }
}
