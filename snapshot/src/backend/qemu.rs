//! Backend `qemu`: the disks of a running virtual machine, over QMP.
//!
//! A disk is a chain of images. Beforehand, an empty overlay is made for each; the machine is stopped; one QMP transaction
//! puts all the overlays on top, so that what was the top of each chain is the snapshot; the machine goes on. Nothing slow
//! happens while it stands still.
//!
//! The directory holds the overlays, `snapshots.json`, and for each disk a link by its name to the newest image. The
//! machine has to be started by that link, since every snapshot changes which image is the newest. Order of writes:
//!
//! 1. `snapshots.json` names the overlays, so that whatever happens somebody knows of them.
//! 2. The overlays are made and synced; then the links are put to them. That is right before the overlay is on top, too:
//!    while it is empty, it reads as the image below.
//! 3. The transaction.
//! 4. `snapshots.json` names the snapshot.
//!
//! After a crash between any two of these the link leads to all that was acknowledged, whichever image that went to.
//! Images that no snapshot needs any more are written into the ones below them (`block-commit`), see
//! [`chain::mergeable`].

mod chain;
mod machine;
mod merge;
mod overlay;
mod records;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::PoisonError;
use std::time::Duration;

use serde_json::{Value, json};
use timesync::time::Nanos;

use super::qmp::{Qmp, QmpError};
use super::{Backend, BackendError, Description, Held, Pause};
use crate::sync::{Mutex, MutexGuard};
use chain::{Disk, find_disk};
pub use machine::Machine;
use overlay::{link, link_to};
use records::{Image, Overlay, Pending, Records, Snapshot, sync_directory};

/// How long a command may take that is not waited for in a pause.
const LIMIT: Nanos = Nanos::from_millis(10_000);

/// How long a monitor may take to greet; what another of our connections needs to be gone is in it.
const GREETING: Nanos = Nanos::from_millis(2_000);

/// What the backend is told about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuOptions {
    /// The socket of a QMP monitor that nobody else uses.
    pub monitor: PathBuf,
    /// The ids of the disks' devices, as in `-device virtio-blk-pci,id=vda`.
    pub disks: Vec<String>,
    /// Where overlays, links and records are. QEMU must be able to write there.
    pub directory: PathBuf,
}

/// A virtual machine. Its disks are snapshotted together.
#[derive(Debug)]
pub struct Qemu {
    options: QemuOptions,
    session: Mutex<Option<Session>>,
}

/// From `prepare` to the end of an attempt.
#[derive(Debug)]
struct Session {
    snapshot: String,
    /// The watchdog has the same connection.
    monitor: Qmp,
    /// The transaction that takes the snapshot.
    actions: Vec<Value>,
}

impl Qemu {
    /// Over a machine that need not run yet.
    ///
    /// # Errors
    /// When the directory cannot be made, or what is in it cannot be read.
    pub fn new(options: QemuOptions) -> Result<Self, BackendError> {
        let distinct: BTreeSet<&String> = options.disks.iter().collect();
        if distinct.is_empty() || distinct.len() != options.disks.len() {
            return Err(BackendError(
                "`disks` names no disks, or one twice; give the ids of their devices".to_owned(),
            ));
        }
        let directory = &options.directory;
        let made = std::fs::create_dir_all(directory).and_then(|()| directory.canonicalize());
        let directory = made.map_err(BackendError::at(format!("cannot use {}", directory.display())))?;
        Records::load(&directory)?;
        Ok(Qemu { options: QemuOptions { directory, ..options }, session: Mutex::default() })
    }

    fn connect(&self) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.options.monitor, GREETING)
    }

    fn records(&self) -> Result<Records, BackendError> {
        Records::load(&self.options.directory)
    }

    fn save(&self, records: &Records) -> Result<(), BackendError> {
        records.save(&self.options.directory)
    }

    fn session(&self) -> MutexGuard<'_, Option<Session>> {
        // Whoever panicked left a connection or none.
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disks as QEMU has them now.
    fn disks(&self, monitor: &mut Qmp) -> Result<Vec<Disk>, BackendError> {
        let described = execute(monitor, "query-block", json!({}))?;
        let find = |name: &String| find_disk(&described, name).map_err(BackendError);
        self.options.disks.iter().map(find).collect()
    }

    /// Checks that a disk was not started with an image that it had before: what is written to it changes snapshots.
    fn check_newest(&self, disk: &str, top: &Path) -> Result<(), BackendError> {
        let link = link(&self.options.directory, disk);
        match link.canonicalize() {
            Ok(newest) if newest != top => Err(BackendError(format!(
                "the virtual machine was started with {}, which is not disk {disk}'s newest image; shut it down and start it with {}",
                top.display(),
                link.display()
            ))),
            // There is none before the first snapshot.
            _ => Ok(()),
        }
    }

    /// The name of an overlay that is to be made.
    fn new_file(&self, disk: &str, number: u64) -> Result<PathBuf, BackendError> {
        let file = self.options.directory.join(format!("{disk}-{number}.qcow2"));
        match file.symlink_metadata() {
            Ok(_) => Err(BackendError(format!("{} is in the way; move it elsewhere", file.display()))),
            Err(_) => Ok(file),
        }
    }

    /// Overlays for these disks, not yet made.
    fn plan(&self, snapshot: &str, number: u64, disks: &[Disk]) -> Result<Pending, BackendError> {
        let mut overlays = Vec::new();
        for (at, (disk, name)) in disks.iter().zip(&self.options.disks).enumerate() {
            let chain = disk_chain(disk);
            self.check_newest(name, &chain[0])?;
            let below = Image { disk: name.clone(), chain, format: disk.images[0].format.clone() };
            overlays.push(Overlay {
                below,
                file: self.new_file(name, number)?,
                node: format!("coeval-{number}-{at}"),
            });
        }
        let size = disks.iter().map(|disk| disk.size).sum();
        Ok(Pending { snapshot: snapshot.to_owned(), size, overlays })
    }

    /// Undoes what is left of a snapshot that came to nothing. An overlay that did get on top stays: it holds what was
    /// written since.
    fn drop_pending(&self, records: &mut Records) -> Result<(), BackendError> {
        let Some(pending) = records.pending.clone() else { return Ok(()) };
        match self.connect() {
            Ok(mut monitor) => {
                let disks = self.disks(&mut monitor)?;
                for (overlay, disk) in pending.overlays.iter().zip(&disks) {
                    if !disk_chain(disk).contains(&overlay.file) {
                        overlay::remove(&mut monitor, &self.options.directory, overlay)?;
                    }
                }
            }
            // Whether they got on top nobody can tell any more; it will be started with them, and either is right.
            Err(error) if error.is_not_there() => {}
            Err(error) => return Err(BackendError(error.to_string())),
        }
        records.pending = None;
        self.save(records)
    }

    fn create_overlays(
        &self,
        monitor: &mut Qmp,
        pending: &Pending,
        disks: &[Disk],
    ) -> Result<(), BackendError> {
        for (overlay, disk) in pending.overlays.iter().zip(disks) {
            overlay::create(monitor, overlay, disk)?;
        }
        let directory = &self.options.directory;
        let failed = BackendError::at(format!("cannot make links in {}", directory.display()));
        let link_all = || {
            sync_directory(directory)?;
            for overlay in &pending.overlays {
                link_to(directory, &overlay.below.disk, &overlay.file)?;
            }
            sync_directory(directory)
        };
        link_all().map_err(failed)
    }
}

impl Backend for Qemu {
    fn describe(&self) -> Result<Description, BackendError> {
        let mut size = self.records()?.size;
        if size == 0 && self.session().is_none() {
            let mut monitor = self.connect().map_err(|error| BackendError(error.to_string()))?;
            size = self.disks(&mut monitor)?.iter().map(|disk| disk.size).sum();
        }
        Ok(Description { kind: "qemu", size, used: 0, pauses: true })
    }

    fn list(&self) -> Result<Vec<String>, BackendError> {
        Ok(self.records()?.snapshots.into_iter().map(|snapshot| snapshot.name).collect())
    }

    fn prepare(&self, snapshot: &str) -> Result<Option<Held>, BackendError> {
        let mut session = self.session();
        *session = None;
        let mut records = self.records()?;
        if records.snapshots.iter().any(|taken| taken.name == snapshot) {
            return Err(BackendError(format!("there is a snapshot {snapshot} already; choose another name")));
        }
        self.drop_pending(&mut records)?;
        let mut monitor = self.connect().map_err(|error| BackendError(error.to_string()))?;
        machine::check_running(&mut monitor, LIMIT).map_err(BackendError)?;
        let disks = self.disks(&mut monitor)?;
        let pending = self.plan(snapshot, records.next, &disks)?;
        records.next += 1;
        records.pending = Some(pending.clone());
        self.save(&records)?;
        let made = self.create_overlays(&mut monitor, &pending, &disks);
        let shared =
            made.and_then(|()| monitor.share().map_err(BackendError::at("cannot share a connection")));
        match shared {
            Ok(shared) => {
                let on_top = |(overlay, disk): (&Overlay, &Disk)| json!({"type": "blockdev-snapshot", "data": {"node": disk.node, "overlay": overlay.node}});
                let actions = pending.overlays.iter().zip(&disks).map(on_top).collect();
                *session = Some(Session { snapshot: snapshot.to_owned(), monitor, actions });
                let pause = Pause::Machine { monitor: self.options.monitor.clone() };
                Ok(Some(Held::new(pause, shared)))
            }
            Err(why) => {
                drop(monitor);
                // If that fails, the next prepare does it.
                let _ = self.drop_pending(&mut records);
                Err(why)
            }
        }
    }

    fn cut(&self, snapshot: &str, within: Duration) -> Result<(), BackendError> {
        let mut session = self.session();
        let Some(Session { monitor, actions, .. }) =
            session.as_mut().filter(|session| session.snapshot == snapshot)
        else {
            return Err(BackendError(format!("snapshot {snapshot} was not prepared")));
        };
        let limit = Nanos::new(i64::try_from(within.as_nanos()).unwrap_or(i64::MAX));
        let cut = monitor.execute("transaction", json!({"actions": actions}), limit);
        cut.map(|_| ()).map_err(|error| BackendError(error.to_string()))
    }

    /// Stopping the machine has flushed its disks already.
    fn seal(&self, snapshot: &str) -> Result<(), BackendError> {
        *self.session() = None;
        let mut records = self.records()?;
        let Some(pending) = records.pending.take_if(|pending| pending.snapshot == snapshot) else {
            return Err(BackendError(format!("snapshot {snapshot} was not taken")));
        };
        let images = pending.overlays.into_iter().map(|overlay| overlay.below).collect();
        records.size = pending.size;
        records.snapshots.push(Snapshot { name: snapshot.to_owned(), images });
        self.save(&records)
    }

    fn discard(&self, snapshot: &str) -> Result<(), BackendError> {
        *self.session() = None;
        let mut records = self.records()?;
        if records.pending.as_ref().is_some_and(|pending| pending.snapshot == snapshot) {
            self.drop_pending(&mut records)?;
        }
        self.delete(snapshot)
    }

    fn delete(&self, snapshot: &str) -> Result<(), BackendError> {
        let mut records = self.records()?;
        if records.snapshots.iter().any(|taken| taken.name == snapshot) {
            records.snapshots.retain(|taken| taken.name != snapshot);
            self.save(&records)?;
        }
        // The snapshot is gone; that its space comes back may wait until the machine runs again.
        match self.connect() {
            Ok(mut monitor) => self.merge_all(&mut monitor, &mut records),
            Err(error) if error.is_not_there() => Ok(()),
            Err(error) => Err(BackendError(error.to_string())),
        }
    }

    fn restore(&self, snapshot: &str) -> Result<(), BackendError> {
        let mut records = self.records()?;
        let directory = &self.options.directory;
        let Some(taken) = records.snapshots.iter().find(|taken| taken.name == snapshot).cloned() else {
            return Err(BackendError(format!("there is no snapshot {snapshot}")));
        };
        match self.connect() {
            Err(error) if error.is_not_there() => {}
            Err(error) => return Err(BackendError(error.to_string())),
            Ok(_) => {
                return Err(BackendError(format!(
                    "the virtual machine runs; shut it down, restore again, and start it with the disks in {}",
                    directory.display()
                )));
            }
        }
        self.drop_pending(&mut records)?;
        let number = records.next;
        records.next += 1;
        self.save(&records)?;
        let mut made = Vec::new();
        for image in &taken.images {
            let file = self.new_file(&image.disk, number)?;
            qemu_img_create(&file, image)?;
            made.push((image.disk.clone(), file));
        }
        let link_all = || {
            sync_directory(directory)?;
            made.iter().try_for_each(|(disk, file)| link_to(directory, disk, file))?;
            sync_directory(directory)
        };
        link_all().map_err(BackendError::at(format!("cannot make links in {}", directory.display())))
    }
}

/// A disk's images by their real names, the top one first.
fn disk_chain(disk: &Disk) -> Vec<PathBuf> {
    let real = |image: &chain::Image| image.file.canonicalize().unwrap_or_else(|_| image.file.clone());
    disk.images.iter().map(real).collect()
}

/// The images of all snapshots that are not part of these chains, with what is below them.
fn elsewhere(records: &Records, here: &[PathBuf]) -> BTreeSet<PathBuf> {
    let images = records.snapshots.iter().flat_map(|snapshot| &snapshot.images);
    let others = images.filter(|image| image.chain.first().is_none_or(|file| !here.contains(file)));
    others.flat_map(|image| image.chain.iter().cloned()).collect()
}

/// An empty image over another one, made durable, while no QEMU has either open.
fn qemu_img_create(file: &Path, over: &Image) -> Result<(), BackendError> {
    let below = over.chain.first().ok_or_else(|| BackendError("a snapshot without an image".to_owned()))?;
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", &over.format, "-b"]).arg(below).arg(file);
    let output = command.output().map_err(BackendError::at("cannot run qemu-img"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(BackendError(format!("qemu-img: {}", said.trim())));
    }
    let synced = std::fs::File::open(file).and_then(|file| file.sync_all());
    synced.map_err(BackendError::at(format!("cannot sync {}", file.display())))
}

fn execute(monitor: &mut Qmp, command: &str, arguments: Value) -> Result<Value, BackendError> {
    monitor.execute(command, arguments, LIMIT).map_err(|error| BackendError(error.to_string()))
}
