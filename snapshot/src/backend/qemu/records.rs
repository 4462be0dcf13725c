//! What the backend knows of a machine's snapshots: a small file beside its overlays, replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::backend::BackendError;

const FILE: &str = "snapshots.json";

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Records {
    /// The number that the next overlays get. No number is used twice.
    pub next: u64,
    /// The disks together, as of the last snapshot, in bytes.
    pub size: u64,
    /// Oldest first.
    pub snapshots: Vec<Snapshot>,
    /// One that is being taken. Written before its overlays are made.
    pub pending: Option<Pending>,
    /// Two images that are being merged. Written before that begins.
    pub merging: Option<Merging>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    pub name: String,
    /// One for each disk.
    pub images: Vec<Image>,
}

/// A disk as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Image {
    pub disk: String,
    /// The image and those below it, down to the base.
    pub chain: Vec<PathBuf>,
    /// The first one's.
    pub format: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    pub snapshot: String,
    pub size: u64,
    pub overlays: Vec<Overlay>,
}

/// An image that is to be put on top of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Overlay {
    /// What it goes on top of: the snapshot, once it is there.
    pub below: Image,
    pub file: PathBuf,
    /// Its block node; that of the file underneath has an `f` behind it.
    pub node: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Merging {
    pub disk: String,
    /// Is written into the lower one and left out then.
    pub upper: PathBuf,
    pub lower: PathBuf,
    pub lower_format: String,
    /// The upper one's block node.
    pub node: String,
}

impl Records {
    /// Reads them; empty ones if there are none.
    pub(super) fn load(directory: &Path) -> Result<Records, BackendError> {
        let path = directory.join(FILE);
        let failed = BackendError::at(format!("cannot read {}", path.display()));
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from).map_err(failed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Records::default()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes them durably, in place of those before.
    pub(super) fn save(&self, directory: &Path) -> Result<(), BackendError> {
        let path = directory.join(FILE);
        let draft = directory.join(format!("{FILE}.new"));
        let write = || {
            let mut file = File::create(&draft)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&draft, &path)?;
            sync_directory(directory)
        };
        write().map_err(BackendError::at(format!("cannot write {}", path.display())))
    }

    /// Follows a merge: what was in the upper image is in the lower one now.
    pub(super) fn merged(&mut self, merging: &Merging) {
        let images = self.snapshots.iter_mut().flat_map(|snapshot| &mut snapshot.images);
        let pending = self.pending.iter_mut().flat_map(|pending| &mut pending.overlays);
        for image in images.chain(pending.map(|overlay| &mut overlay.below)) {
            if image.chain.first() == Some(&merging.upper) {
                image.format.clone_from(&merging.lower_format);
            }
            image.chain.retain(|file| *file != merging.upper);
        }
    }
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(chain: &[&str]) -> Image {
        Image {
            disk: "vda".to_owned(),
            chain: chain.iter().map(PathBuf::from).collect(),
            format: "qcow2".to_owned(),
        }
    }

    #[test]
    fn they_are_as_they_were_written() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(Records::load(directory.path()).unwrap(), Records::default());
        let snapshots = vec![Snapshot { name: "s".to_owned(), images: vec![image(&["1", "0"])] }];
        let records = Records { next: 7, size: 1, snapshots, pending: None, merging: None };
        records.save(directory.path()).unwrap();
        records.save(directory.path()).unwrap();
        assert_eq!(Records::load(directory.path()).unwrap(), records);
        fs::write(directory.path().join(FILE), "{").unwrap();
        assert!(Records::load(directory.path()).is_err(), "damaged ones are not taken for none");
    }

    #[test]
    fn a_merged_image_is_looked_for_where_it_went() {
        let snapshots =
            ["a", "b", "c"].iter().zip([image(&["0"]), image(&["1", "0"]), image(&["2", "1", "0"])]);
        let snapshots =
            snapshots.map(|(name, image)| Snapshot { name: (*name).to_owned(), images: vec![image] });
        let mut records = Records { snapshots: snapshots.skip(1).collect(), ..Records::default() };
        records.merged(&Merging {
            disk: "vda".to_owned(),
            upper: "1".into(),
            lower: "0".into(),
            lower_format: "raw".to_owned(),
            node: "n".to_owned(),
        });
        assert_eq!(records.snapshots[0].images[0], Image { format: "raw".to_owned(), ..image(&["0"]) });
        assert_eq!(records.snapshots[1].images[0], image(&["2", "0"]));
    }
}
