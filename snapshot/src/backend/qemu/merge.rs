//! Merging images that no snapshot needs any more into those below them, while the machine runs.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::PathBuf;

use serde_json::json;

use super::chain::{find_node, mergeable};
use super::overlay::{await_job, close, remove_file, run_job};
use super::records::{Merging, Records};
use super::{BackendError, Qemu, Qmp, disk_chain, elsewhere, execute};

/// The one job of this kind.
const JOB: &str = "coeval-merge";

impl Qemu {
    /// Merges whatever can be, and removes overlays that are part of nothing.
    pub(super) fn merge_all(&self, monitor: &mut Qmp, records: &mut Records) -> Result<(), BackendError> {
        for (disk, name) in self.disks(monitor)?.iter().zip(&self.options.disks) {
            self.check_newest(name, &disk_chain(disk)[0])?;
        }
        self.finish_merge(monitor, records)?;
        while let Some(merging) = self.next_merge(monitor, records)? {
            let nodes = execute(monitor, "query-named-block-nodes", json!({"flat": true}))?;
            let node_of = |image: &PathBuf| {
                find_node(&nodes, image)
                    .ok_or_else(|| BackendError(format!("QEMU has not opened {}", image.display())))
            };
            let device = &self.disks(monitor)?[self.index(&merging.disk)?].node;
            let arguments = json!({
                "device": device, "top-node": node_of(&merging.upper)?, "base-node": node_of(&merging.lower)?,
                "auto-dismiss": false,
            });
            records.merging = Some(Merging { node: node_of(&merging.upper)?, ..merging });
            self.save(records)?;
            run_job(monitor, JOB, "block-commit", arguments)?;
            self.finish_merge(monitor, records)?;
        }
        self.remove_left_overs(monitor, records)
    }

    /// Waits for a merge that is under way, and notes it if it came to its end.
    fn finish_merge(&self, monitor: &mut Qmp, records: &mut Records) -> Result<(), BackendError> {
        let Some(merging) = records.merging.clone() else { return Ok(()) };
        // That it failed or was interrupted shows in the chain.
        if let Err(why) = await_job(monitor, JOB) {
            tracing::warn!(%why, "images were not merged");
        }
        let disk = &self.disks(monitor)?[self.index(&merging.disk)?];
        let merged = !disk_chain(disk).contains(&merging.upper);
        if merged {
            records.merged(&merging);
            close(monitor, &merging.node)?;
        }
        records.merging = None;
        self.save(records)?;
        if merged {
            let removed = remove_file(&merging.upper);
            removed.map_err(BackendError::at(format!("cannot remove {}", merging.upper.display())))?;
        }
        Ok(())
    }

    fn next_merge(&self, monitor: &mut Qmp, records: &Records) -> Result<Option<Merging>, BackendError> {
        for (disk, name) in self.disks(monitor)?.iter().zip(&self.options.disks) {
            let chain = disk_chain(disk);
            let images = records.snapshots.iter().flat_map(|snapshot| &snapshot.images);
            let snapshots: BTreeSet<PathBuf> =
                images.filter_map(|image| image.chain.first().cloned()).collect();
            // What was not made here stays as it is: other machines may have it as their base, too.
            let mut kept = elsewhere(records, &chain);
            kept.extend(chain.iter().filter(|image| !self.is_ours(image)).cloned());
            if let Some((upper, lower)) = mergeable(&chain, &snapshots, &kept) {
                let at = chain.iter().position(|image| *image == lower).unwrap_or_default();
                let lower_format = disk.images[at].format.clone();
                let disk = name.clone();
                return Ok(Some(Merging { disk, upper, lower, lower_format, node: String::new() }));
            }
        }
        Ok(None)
    }

    /// Overlays that belong to no disk and to no snapshot: of a restore, or of a machine that ended in the middle of a
    /// snapshot.
    fn remove_left_overs(&self, monitor: &mut Qmp, records: &Records) -> Result<(), BackendError> {
        let mut needed: BTreeSet<PathBuf> = self.disks(monitor)?.iter().flat_map(disk_chain).collect();
        let images = records.snapshots.iter().flat_map(|snapshot| &snapshot.images);
        needed.extend(images.flat_map(|image| image.chain.iter().cloned()));
        needed.extend(
            records.pending.iter().flat_map(|pending| &pending.overlays).map(|overlay| overlay.file.clone()),
        );
        let directory = &self.options.directory;
        let remove = || {
            for entry in std::fs::read_dir(directory)? {
                let file = entry?.path();
                if self.is_ours(&file) && !needed.contains(&file) {
                    remove_file(&file)?;
                }
            }
            Ok(())
        };
        remove().map_err(BackendError::at::<std::io::Error>(format!("cannot tidy {}", directory.display())))
    }

    /// Whether an image is one of the overlays made here, `DISK-NUMBER.qcow2`: no other is ever removed.
    fn is_ours(&self, file: &std::path::Path) -> bool {
        let name = file.file_stem().and_then(OsStr::to_str).and_then(|name| name.rsplit_once('-'));
        file.parent() == Some(self.options.directory.as_path())
            && file.extension() == Some(OsStr::new("qcow2"))
            && name.is_some_and(|(disk, number)| {
                self.options.disks.iter().any(|known| known == disk) && number.parse::<u64>().is_ok()
            })
    }

    fn index(&self, disk: &str) -> Result<usize, BackendError> {
        let found = self.options.disks.iter().position(|known| known == disk);
        found.ok_or_else(|| BackendError(format!("disk {disk} is being merged; put it back into `disks`")))
    }
}
