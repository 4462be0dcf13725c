//! What is full is full for the write alone. In a process of its own, because the limit is the process's: files that
//! may not grow past a length stand in for a file system without space.

use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use snapshot::cut::{Cause, Cut, Timing};
use snapshot::device::DeviceError;
use snapshot::volume::Volume;
use timesync::clock::HostClock;
use timesync::time::Nanos;

const SIZE: u64 = 1 << 20;

#[test]
fn a_full_disk_fails_the_write_and_nothing_else() {
    // Otherwise the kernel kills the process for writing past the limit.
    SigSet::from(Signal::SIGXFSZ).thread_block().unwrap();
    let root = tempfile::tempdir().unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    let limit = |bytes| setrlimit(Resource::RLIMIT_FSIZE, bytes, hard).unwrap();

    let clock = HostClock::real();
    let volume = Volume::create(root.path(), "v", SIZE, clock.clone()).unwrap();
    let device = volume.attach().unwrap();
    assert_eq!(device.write(0, &[1; 8192], true).result, Ok(()));
    let attempt = volume.prepare("taking a snapshot").unwrap();
    let cut = Arc::new(Cut::new(Timing::Barrier, Nanos::from_millis(100)));
    attempt.arm(&cut, &mut || false).unwrap();
    {
        let _closed = attempt.close_gate();
        cut.strike(clock.now());
    }
    cut.release(Cause::Barrier, clock.now());

    limit(SIZE / 2);
    assert_eq!(device.write(SIZE / 2, &[2; 4096], false).result, Err(DeviceError::NoSpace));
    assert_eq!(device.write(SIZE / 2 + 100, &[2; 100], true).result, Err(DeviceError::NoSpace));
    // The write that reaches past the end of what there is room for, and those beside it.
    assert_eq!(device.write(SIZE / 2 - 4096, &[2; 8192], false).result, Err(DeviceError::NoSpace));
    assert_eq!(device.write(4096, &[3; 4096], true).result, Ok(()));
    assert_eq!(device.flush().result, Ok(()));
    assert!(volume.prepare("x").is_err(), "one at a time");
    assert!(attempt.wait_drained(&mut || false));
    attempt.seal().unwrap();
    attempt.disarm();
    attempt.commit("s", uuid::Uuid::nil()).unwrap();
    assert!(volume.prepare("x").is_err(), "no room for another layer");
    assert_eq!(volume.describe().layers, 2);
    limit(hard);

    assert_eq!(device.write(SIZE / 2, &[4; 4096], true).result, Ok(()));
    drop(volume.prepare("x").unwrap());
    drop((device, volume));
    let volume = Volume::open(root.path(), "v", clock).unwrap();
    let byte = |offset| {
        let mut byte = [0];
        assert_eq!(volume.attach().unwrap().read(offset, &mut byte).result, Ok(()));
        byte[0]
    };
    assert_eq!((byte(0), byte(4096), byte(SIZE / 2), byte(SIZE / 2 + 4096)), (1, 3, 4, 0));
    let mut taken = vec![0; SIZE as usize];
    assert_eq!(volume.snapshot_device("s").unwrap().read(0, &mut taken).result, Ok(()));
    assert!(taken[..8192].iter().all(|&byte| byte == 1) && taken[8192..].iter().all(|&byte| byte == 0));
}
