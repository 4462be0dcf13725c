//! Checking a volume that nobody has open, without changing it.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::layer::{BASE, PageFault, data_name, load_map, map_length, map_name};
use super::manifest::{self, Manifest};
use super::map::{Map, State};
use super::storage::{Directory, Disk, StoredFile};
use super::{BLOCK, Volume, VolumeError, check_name, lock_directory};

/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

/// Something that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file, in the volume's directory.
    pub file: String,
    /// Where in it, in bytes.
    pub offset: u64,
    /// Whether data is lost or in doubt. What is not damage is put right when the volume is opened or written to.
    pub damage: bool,
    /// What it is.
    pub what: String,
}

/// What a check looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Layers.
    pub layers: usize,
    /// Named snapshots.
    pub snapshots: usize,
    /// Bytes of data that could be read.
    pub read: u64,
    /// What is not as it should be.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether data is lost or in doubt.
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|finding| finding.damage)
    }

    fn damage(&mut self, file: &str, offset: u64, what: String) {
        self.findings.push(Finding { file: file.to_owned(), offset, damage: true, what });
    }

    fn note(&mut self, file: &str, offset: u64, what: &str) {
        self.findings.push(Finding { file: file.to_owned(), offset, damage: false, what: what.to_owned() });
    }
}

impl Volume {
    /// Checks the manifest, every copy of every page of the maps, and that all data can be read. Whether the data is
    /// what it was, only a snapshot's digest can tell.
    ///
    /// # Errors
    /// If there is no such volume, or a process has it open.
    pub fn check(root: &Path, name: &str) -> Result<CheckReport, VolumeError> {
        check_name(name)?;
        let directory = Directory::new(Arc::new(Disk), root).child(name);
        if !Manifest::exists(&directory) {
            return Err(VolumeError::Missing { name: name.to_owned() });
        }
        let _locked = lock_directory(&directory, name)?;
        let mut report = CheckReport::default();
        let manifest = match Manifest::read(&directory) {
            Ok(manifest) => manifest,
            Err(VolumeError::Corrupt { offset, why, .. }) => {
                report.damage(manifest::FILE, offset, why);
                return Ok(report);
            }
            Err(other) => return Err(other),
        };
        (report.layers, report.snapshots) = (manifest.layers.len(), manifest.snapshots.len());
        for &layer in manifest.layers.keys() {
            check_layer(&directory, layer, manifest.size_of(layer), &mut report);
        }
        for stray in manifest.strays(&directory)? {
            report.note(
                &stray,
                0,
                "it belongs to a change that did not end; it goes when the volume is opened",
            );
        }
        Ok(report)
    }
}

/// A file of the volume, if it is there and as long as it should be.
fn open(
    directory: &Directory,
    name: &str,
    length: u64,
    report: &mut CheckReport,
) -> Option<Box<dyn StoredFile>> {
    let opened = directory.open(name).map_err(|error| error.to_string());
    let found = opened.and_then(|file| Ok((file.length().map_err(|error| error.to_string())?, file)));
    match found {
        Ok((found, file)) if found >= length => {
            if found > length {
                report.note(
                    name,
                    length,
                    "it is longer than it should be; that is cut off when the volume is opened",
                );
            }
            Some(file)
        }
        Ok((found, _)) => {
            report.damage(name, found, format!("it has {found} bytes instead of {length}"));
            None
        }
        Err(why) => {
            report.damage(name, 0, why);
            None
        }
    }
}

fn check_layer(directory: &Directory, layer: u32, size: u64, report: &mut CheckReport) {
    let name = data_name(layer);
    let data = open(directory, &name, size, report);
    let map = Map::new(size / BLOCK);
    if layer == BASE {
        map.set(0..size / BLOCK, State::Data);
    } else {
        let name = map_name(layer);
        if let Some(file) = open(directory, &name, map_length(size / BLOCK), report) {
            let loaded = load_map(&*file, layer, &map, |offset, fault| match fault {
                PageFault::OneCopy => {
                    report.note(
                        &name,
                        offset,
                        "one copy of the map page there is not valid; the other one counts",
                    );
                }
                PageFault::BothCopies => {
                    report.damage(&name, offset, "neither copy of the map page there is valid".to_owned());
                }
            });
            if let Err(error) = loaded {
                report.damage(&name, 0, error.to_string());
            }
        }
    }
    if let Some(data) = data {
        read_all(&*data, &name, &map, report);
    }
}

/// Reads what counts. A hole reads as zeros without being read.
fn read_all(data: &dyn StoredFile, name: &str, map: &Map, report: &mut CheckReport) {
    let mut buffer = vec![0; CHUNK as usize];
    let mut from = 0;
    while let Some((run, state)) = map.next_run(from) {
        let blocks = run.start..run.end.min(run.start + CHUNK / BLOCK);
        from = blocks.end;
        let range = blocks.start * BLOCK..blocks.end * BLOCK;
        if state != State::Data || data.is_hole(&range) {
            continue;
        }
        let chunk = &mut buffer[..(range.end - range.start) as usize];
        match data.read(range.start, chunk) {
            Ok(()) => report.read += chunk.len() as u64,
            Err(error) => report.damage(name, range.start, format!("it cannot be read: {error}")),
        }
    }
}
