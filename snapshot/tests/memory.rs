//! What a huge volume that is written here and there costs in memory. Alone in its process, which is measured.

use std::fs;
use std::sync::Arc;

use snapshot::cut::{Cause, Cut, Timing};
use snapshot::volume::Volume;
use timesync::clock::HostClock;
use timesync::time::Nanos;

const BLOCK: u64 = 4096;
const SIZE: u64 = 10 << 40;

/// Bytes that the process has ever had in memory at once (`VmHWM` of `proc_pid_status`(5)).
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

#[test]
fn a_gibibyte_of_single_blocks_all_over_ten_tebibytes_fits_into_64_mib() {
    // Half a gigabyte of map goes to the files, a page here and a page there: a disk takes minutes for that.
    let root = tempfile::tempdir_in("/dev/shm").unwrap();
    let clock = HostClock::real();
    let volume = Volume::create(root.path(), "huge", SIZE, clock.clone()).unwrap();
    // Only what lies above a snapshot has a map.
    let cut = volume.prepare("a snapshot").unwrap();
    let at = Arc::new(Cut::new(Timing::Barrier, Nanos::from_millis(100)));
    cut.arm(&at, &mut || false).unwrap();
    at.strike(clock.now());
    at.release(Cause::Abort, clock.now());
    drop(cut);

    let device = volume.attach().unwrap();
    let mut random = 1_u64;
    for number in 0..(1_u64 << 30) / BLOCK {
        // Knuth's MMIX generator; its upper bits are the good ones.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (random >> 32) % (SIZE / BLOCK) * BLOCK;
        // A trimmed block costs the map what a written one does, and the test no disk. Some are written.
        let outcome = if number % 64 == 0 {
            device.write(offset, &[1; BLOCK as usize], false)
        } else {
            device.trim(offset, BLOCK, false)
        };
        outcome.result.unwrap();
    }
    let written = peak().unwrap();
    device.flush().result.unwrap();
    let flushed = peak().unwrap();
    assert!(flushed < 64 << 20, "{} MiB, and {} MiB with a flush", written >> 20, flushed >> 20);
}
