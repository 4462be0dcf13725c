//! Overlays: made by QEMU itself, so that what it opens is what it may open.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::chain::Disk;
use super::records::{Overlay, sync_directory};
use super::{BackendError, Qmp, execute};
use crate::sync::thread::sleep;

/// Between two looks at a job.
const POLL: Duration = Duration::from_millis(2);

/// Makes an empty image over a disk's top one and opens it, attached to nothing.
pub(super) fn create(monitor: &mut Qmp, overlay: &Overlay, disk: &Disk) -> Result<(), BackendError> {
    let (file, file_node) = (&overlay.file, format!("{}f", overlay.node));
    let job = |what: &str| format!("{}-{what}", overlay.node);
    let options = json!({"driver": "file", "filename": file, "size": 0});
    run_job(monitor, &job("file"), "blockdev-create", json!({"options": options}))?;
    // As the disk's present image is opened.
    let cache = json!({"direct": disk.direct, "no-flush": disk.no_flush});
    let node = json!({
        "driver": "file", "node-name": file_node, "filename": file, "discard": "unmap", "cache": cache,
    });
    execute(monitor, "blockdev-add", node)?;
    let options = json!({
        "driver": "qcow2", "file": file_node, "size": disk.size,
        "backing-file": overlay.below.chain[0], "backing-fmt": overlay.below.format,
    });
    run_job(monitor, &job("image"), "blockdev-create", json!({"options": options}))?;
    let node = json!({
        "driver": "qcow2", "node-name": overlay.node, "file": file_node, "backing": Value::Null,
        "discard": "unmap", "cache": cache,
    });
    execute(monitor, "blockdev-add", node)?;
    let synced = File::open(file).and_then(|file| file.sync_all());
    synced.map_err(BackendError::at(format!("cannot sync {}", file.display())))
}

/// Removes an overlay that is on top of nothing: the link leads to the image below again, before the file is gone.
pub(super) fn remove(monitor: &mut Qmp, directory: &Path, overlay: &Overlay) -> Result<(), BackendError> {
    close(monitor, &overlay.node)?;
    let unlink = || {
        // Only where it leads there already: before the first snapshot there is none.
        if link(directory, &overlay.below.disk).canonicalize().is_ok_and(|newest| newest == overlay.file) {
            link_to(directory, &overlay.below.disk, &overlay.below.chain[0])?;
            sync_directory(directory)?;
        }
        remove_file(&overlay.file)
    };
    unlink().map_err(BackendError::at(format!("cannot remove {}", overlay.file.display())))
}

/// Closes an overlay that is part of no disk any more. One that QEMU has opened by itself, or never had, it closes itself.
pub(super) fn close(monitor: &mut Qmp, node: &str) -> Result<(), BackendError> {
    for node in [node.to_owned(), format!("{node}f")] {
        match monitor.execute("blockdev-del", json!({"node-name": node}), super::LIMIT) {
            Err(super::QmpError::Refused { .. }) | Ok(_) => {}
            Err(error) => return Err(BackendError(error.to_string())),
        }
    }
    Ok(())
}

/// Runs a job of QEMU's to its end.
pub(super) fn run_job(
    monitor: &mut Qmp,
    id: &str,
    command: &str,
    mut arguments: Value,
) -> Result<(), BackendError> {
    arguments["job-id"] = json!(id);
    execute(monitor, command, arguments)?;
    await_job(monitor, id)
}

/// Waits until a job has ended; one that is not there has.
pub(super) fn await_job(monitor: &mut Qmp, id: &str) -> Result<(), BackendError> {
    loop {
        let jobs = execute(monitor, "query-jobs", json!({}))?;
        let Some(job) = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == id)) else {
            return Ok(());
        };
        if job["status"] == "concluded" {
            let failure = job["error"].as_str().map(ToOwned::to_owned);
            execute(monitor, "job-dismiss", json!({"id": id}))?;
            return failure.map_or(Ok(()), |why| Err(BackendError(format!("QEMU's job {id}: {why}"))));
        }
        sleep(POLL);
    }
}

/// The link that a disk is started by.
pub(super) fn link(directory: &Path, disk: &str) -> PathBuf {
    directory.join(disk)
}

/// Puts a disk's link to an image, in one step.
pub(super) fn link_to(directory: &Path, disk: &str, image: &Path) -> io::Result<()> {
    let draft = directory.join(format!("{disk}.new"));
    remove_file(&draft)?;
    std::os::unix::fs::symlink(image, &draft)?;
    fs::rename(draft, link(directory, disk))
}

/// Removes a file; one that is not there counts as removed.
pub(super) fn remove_file(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
