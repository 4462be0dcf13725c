//! `[[backend]]` of a host's configuration: its volumes outside Coeval.

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use snapshot::backend::command::{CommandBackend, CommandOptions};
use snapshot::backend::dm_thin::{DmThin, DmThinOptions};
use snapshot::backend::qemu::{Qemu, QemuOptions};
use snapshot::backend::{Backend, BackendError};
use snapshot::host::ExternalVolume;
use timesync::time::Nanos;

use super::{ConfigError, HostConfig, in_range};
use crate::units::deserialize_duration;

/// A volume outside Coeval, by the kind of what keeps it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BackendConfig {
    /// `kind = "command"`: a file system whose snapshots are taken by a command.
    Command(CommandConfig),
    /// `kind = "qemu"`: a virtual machine's disks.
    Qemu(QemuConfig),
    /// `kind = "dm-thin"`: a thin volume of the device mapper, in a pool that is not LVM's.
    DmThin(DmThinConfig),
}

/// `kind = "command"`. Each command is a list: a program and its arguments, without a shell; `{snapshot}` in them stands for
/// the snapshot's name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// The volume's name, in all reports and orders.
    pub volume: String,
    /// The mount point of the file system, which is frozen while the command runs. Default: it is not frozen, and its
    /// snapshots are taken alone.
    pub freeze: Option<PathBuf>,
    /// It is thawed so long after the freeze began, whatever happens, and the snapshot is void; 10ms ..= 20s. Default 2s.
    #[serde(default = "two_seconds", deserialize_with = "deserialize_duration")]
    pub deadline: Nanos,
    /// Takes a snapshot.
    pub snapshot: Vec<String>,
    /// Prints the snapshots' names, one a line.
    pub list: Vec<String>,
    /// How a line of `list` reads for a snapshot, such as `tank/data@{snapshot}`. Default `{snapshot}`.
    #[serde(default = "whole_line")]
    pub entry: String,
    /// Deletes a snapshot.
    pub delete: Vec<String>,
    /// Puts the volume back to a snapshot. Default: that is not done here.
    pub restore: Option<Vec<String>>,
    /// After the thaw: makes a snapshot survive a loss of power, where `snapshot` does not do so. Default: nothing.
    pub sync: Option<Vec<String>>,
}

impl From<CommandConfig> for CommandOptions {
    fn from(config: CommandConfig) -> Self {
        CommandOptions {
            freeze: config.freeze,
            snapshot: config.snapshot,
            list: config.list,
            entry: config.entry,
            delete: config.delete,
            restore: config.restore,
            sync: config.sync,
        }
    }
}

/// `kind = "qemu"`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuConfig {
    /// The volume's name, in all reports and orders.
    pub volume: String,
    /// The socket of a QMP monitor that nobody else uses.
    pub qmp: PathBuf,
    /// The ids of the disks' devices, as in `-device virtio-blk-pci,id=vda`.
    pub disks: Vec<String>,
    /// Where overlays, links and records are.
    pub directory: PathBuf,
    /// The machine runs again so long after it was stopped, whatever happens, and the snapshot is void; 10ms ..= 20s.
    /// Default 2s.
    #[serde(default = "two_seconds", deserialize_with = "deserialize_duration")]
    pub deadline: Nanos,
}

/// `kind = "dm-thin"`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DmThinConfig {
    /// The volume's name, in all reports and orders.
    pub volume: String,
    /// The device's name under /dev/mapper.
    pub device: String,
    /// Where it is kept which of the pool's devices are Coeval's; not on the volume.
    pub directory: PathBuf,
    /// The device is resumed so long after it was suspended, whatever happens, and the snapshot is void; 10ms ..= 20s.
    /// Default 2s.
    #[serde(default = "two_seconds", deserialize_with = "deserialize_duration")]
    pub deadline: Nanos,
}

fn two_seconds() -> Nanos {
    Nanos::from_millis(2_000)
}

fn whole_line() -> String {
    "{snapshot}".to_owned()
}

impl BackendConfig {
    fn volume(&self) -> &str {
        match self {
            BackendConfig::Command(config) => &config.volume,
            BackendConfig::Qemu(config) => &config.volume,
            BackendConfig::DmThin(config) => &config.volume,
        }
    }

    fn deadline(&self) -> Nanos {
        match self {
            BackendConfig::Command(config) => config.deadline,
            BackendConfig::Qemu(config) => config.deadline,
            BackendConfig::DmThin(config) => config.deadline,
        }
    }

    /// `ours`: what the daemon and its watchdog cannot do without.
    fn backend(&self, ours: &[PathBuf]) -> Result<Arc<dyn Backend>, BackendError> {
        match self {
            BackendConfig::Command(config) => {
                Ok(Arc::new(CommandBackend::new(config.clone().into(), ours.to_vec())?))
            }
            BackendConfig::Qemu(QemuConfig { qmp, disks, directory, .. }) => {
                let (monitor, disks, directory) = (qmp.clone(), disks.clone(), directory.clone());
                Ok(Arc::new(Qemu::new(QemuOptions { monitor, disks, directory })?))
            }
            BackendConfig::DmThin(DmThinConfig { device, directory, .. }) => {
                let (device, directory) = (device.clone(), directory.clone());
                Ok(Arc::new(DmThin::new(DmThinOptions { device, directory })?))
            }
        }
    }
}

impl HostConfig {
    /// The volumes outside Coeval.
    ///
    /// # Errors
    /// The first thing that is wrong with one, in one sentence.
    pub fn externals(&self) -> Result<Vec<ExternalVolume>, ConfigError> {
        let ours = [self.volumes.clone()];
        let external = |config: &BackendConfig| {
            let name = config.volume();
            let deadline = config.deadline();
            let invalid = |why| ConfigError::Invalid(format!("backend of volume {name}: {why}"));
            in_range("deadline (in ns)", deadline.get(), 10_000_000, 20_000_000_000)
                .map_err(|why| invalid(why.to_string()))?;
            let backend = config.backend(&ours).map_err(|why| invalid(why.to_string()))?;
            Ok::<_, ConfigError>(ExternalVolume { name: name.to_owned(), backend, deadline })
        };
        self.backends.iter().map(external).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::*;

    const BTRFS: &str = r#"
        [[backend]]
        kind = "command"
        volume = "www"
        freeze = "/srv/www"
        snapshot = ["btrfs", "subvolume", "snapshot", "-r", "/images/www", "/images/.snapshots/{snapshot}"]
        list = ["ls", "/images/.snapshots"]
        delete = ["btrfs", "subvolume", "delete", "/images/.snapshots/{snapshot}"]
    "#;

    fn externals(text: &str) -> Result<Vec<ExternalVolume>, String> {
        let config: HostConfig = parse(text, Path::new("h.toml")).map_err(|error| error.to_string())?;
        config.externals().map_err(|error| error.to_string())
    }

    #[test]
    fn a_backend_by_configuration_alone() {
        let externals = externals(BTRFS).unwrap();
        assert_eq!((externals[0].name.as_str(), externals[0].deadline), ("www", two_seconds()));
        assert!(self::externals("").unwrap().is_empty());
    }

    #[test]
    fn each_configuration_of_the_documentation_is_one_and_short() {
        let pages =
            [include_str!("../../../docs/backends.md"), include_str!("../../../docs/backends-dm-thin.md")];
        let blocks = pages.iter().flat_map(|page| page.split("```toml\n").skip(1));
        let blocks: Vec<&str> = blocks.filter_map(|block| block.split("```").next()).collect();
        assert!(blocks.len() >= 10, "{}", blocks.len());
        for block in blocks {
            let config =
                parse::<HostConfig>(block, Path::new("h.toml")).unwrap_or_else(|why| panic!("{block}{why}"));
            assert_eq!(config.backends.len(), 1);
            assert!(block.lines().count() < 20, "{block}");
            // Whether it can be had depends on the machine.
            if matches!(config.backends[0], BackendConfig::Command(_)) {
                config.externals().unwrap_or_else(|why| panic!("{block}{why}"));
            }
        }
    }

    #[test]
    fn a_virtual_machine_is_its_disks_in_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let text = format!(
            "[[backend]]\nkind = \"qemu\"\nvolume = \"web\"\nqmp = \"/run/web.qmp\"\ndisks = [\"vda\"]\n\
             directory = {:?}\n",
            directory.path().join("web")
        );
        assert_eq!(externals(&text).unwrap()[0].name, "web");
        assert!(
            externals(&text.replace("disks = [\"vda\"]", "disks = []")).unwrap_err().contains("no disks")
        );
        assert!(externals(&text.replace("qmp", "qpm")).unwrap_err().contains("qpm"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let refused = |from: &str, to: &str| externals(&BTRFS.replace(from, to)).unwrap_err();
        assert!(refused("\"command\"", "\"tape\"").contains("tape"));
        assert!(refused("freeze =", "freze =").contains("freze"));
        assert!(refused("volume = \"www\"", "volume = \"www\"\ndeadline = \"1ms\"").contains("volume www"));
        assert!(
            refused("list = [\"ls\", \"/images/.snapshots\"]", "list = []").contains("list names no program")
        );
    }
}
