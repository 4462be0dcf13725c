//! Debian's `ptp4l`, as the machine that runs nothing of ours.

use std::fs::File;
use std::path::Path;
use std::process::Child;

use serde_json::Value;

use crate::namespaces::Namespace;

/// Killed when dropped.
pub struct Ptp4l(pub Child);

impl Ptp4l {
    /// Answers on `eth0` by the machine's own clock, which it leaves alone.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn start(place: &Namespace, directory: &Path, mechanism: &[&str]) -> Self {
        let log = File::options().create(true).append(true).open(directory.join("ptp4l.log")).unwrap();
        let mut command = place.command("ptp4l");
        command.args(["-4", "-S", "-i", "eth0", "--free_running=1", "--slaveOnly=1", "-m"]).args(mechanism);
        // Its control socket is a file, which network namespaces do not separate.
        command.arg(format!("--uds_address={}", directory.join("ptp4l").display()));
        Ptp4l(command.stdout(log).spawn().unwrap())
    }
}

impl Drop for Ptp4l {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Both run on this machine's clock. Far more than a loaded machine adds to a round trip within one kernel, and far
/// less than an offset that is computed wrongly.
const SENSIBLE_NS: i64 = 10_000_000;

/// Zero is the truth, since it is one kernel's clock.
///
/// # Panics
/// When the bound does not cover it, or is too wide to tell.
pub fn assert_covers_zero(offset: &Value, half: &Value) {
    let (offset, half) = (offset.as_i64().unwrap(), half.as_i64().unwrap());
    assert!((0..SENSIBLE_NS).contains(&half), "± {half} ns");
    assert!(offset.abs() <= half, "{offset} ± {half} ns lacks the truth");
}
