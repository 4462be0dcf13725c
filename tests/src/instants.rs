//! The causal workload on volumes that a test has snapshotted together, whatever keeps them: are their images of one
//! instant?

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use coeval_cli::causal::{Slot, check};
use coeval_cli::workload::{Export, Workload};
use snapshot::nbd::Client;

use crate::eventually;

/// Tokens of the workload.
pub const TOKENS: usize = 6;
const REST: Duration = Duration::from_millis(1);

/// Starts the workload over one volume per host.
///
/// # Panics
/// When one cannot be reached.
pub fn start(volumes: &[Export]) -> Workload {
    Workload::start(volumes, TOKENS, REST).unwrap()
}

/// Waits until a good deal more was written.
///
/// # Panics
/// When the workload meets an error, or stands still.
pub fn write_some(workload: &Workload) {
    let before: u64 = workload.writes().iter().sum();
    eventually(|| {
        assert!(!workload.has_failed(), "the workload met an error");
        let now: u64 = workload.writes().iter().sum();
        if now >= before + 100 { Ok(()) } else { Err(format!("from {before} writes to {now}")) }
    });
}

/// The beginning of a file or device, as much as the workload uses.
///
/// # Panics
/// When it cannot be read.
pub fn head(file: &Path) -> Vec<u8> {
    let mut image = vec![0; Slot::region(TOKENS)];
    File::open(file).unwrap().read_exact_at(&mut image, 0).unwrap();
    image
}

/// The same of an export.
///
/// # Panics
/// When it cannot be read.
pub fn head_of(export: &Export) -> Vec<u8> {
    let mut image = vec![0; Slot::region(TOKENS)];
    Client::connect(&export.endpoint, &export.name).unwrap().read(0, &mut image).unwrap();
    image
}

/// The images of several snapshots, one after the other, each of the same volumes in the workload's order.
#[derive(Debug, Default)]
pub struct Instants(Vec<Vec<Vec<u8>>>);

impl Instants {
    /// Adds the images of a snapshot, which must be a consistent cut.
    ///
    /// # Panics
    /// When they are torn.
    pub fn add(&mut self, snapshot: &str, images: Vec<Vec<u8>>) {
        assert_eq!(check(&images, TOKENS), [], "{snapshot} is torn");
        self.0.push(images);
    }

    /// The images of the snapshot that was added at this place.
    pub fn of(&self, place: usize) -> &[Vec<u8>] {
        &self.0[place]
    }

    /// The control: each volume as it was in the first snapshot, with the others as they were in the last, is torn.
    ///
    /// # Panics
    /// When the check does not see that.
    pub fn assert_mixtures_are_torn(&self) {
        let (first, last) = (self.0.first().unwrap(), self.0.last().unwrap());
        for volume in 0..first.len() {
            let mut mixed = last.clone();
            mixed[volume].clone_from(&first[volume]);
            assert_ne!(check(&mixed, TOKENS), [], "volume {volume} of another instant is not seen");
        }
    }
}
