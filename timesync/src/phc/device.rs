//! Reads a PHC and `CLOCK_MONOTONIC_RAW` together.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;

use super::{History, Phc, PhcReading};
use crate::clock::Clocks;
use crate::sys;
use crate::time::{Nanos, Raw, Span, Time};
use crate::translate::{self, ClockReading};

/// How the kernel compares a PHC with the system's clocks, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Both are latched at one instant, by PCIe's precision time measurement.
    Precise,
    /// The PHC is read between two readings of the raw clock (Linux 6.12 and later).
    ExtendedRaw,
    /// The PHC is read between two readings of `CLOCK_REALTIME`.
    Extended,
    /// The same, but what the driver does besides reading the PHC lies between them, too.
    Basic,
}

/// Precision time measurement takes both ways over the PCIe link for equally long; what they differ by is no more.
const PRECISE_ERROR: Nanos = Nanos::new(100);
/// The narrowest of so many readings counts. Each takes the processor 1 to 2 µs.
const SAMPLES: u32 = 3;
/// A card that is busy is asked so often.
const TRIES: usize = 3;

/// A PHC and its latest readings.
#[derive(Debug)]
pub struct Device {
    file: File,
    method: Method,
    clocks: Clocks,
    /// What was read.
    pub history: History,
}

impl Device {
    /// Opens /dev/ptp`index` and finds out how it can be read best. Its oscillator and the raw clock's differ by at most
    /// `tolerance_ppb`.
    ///
    /// # Errors
    /// The system's: there is no such clock, or no permission, or no way to read it.
    pub fn open(index: u32, tolerance_ppb: u32) -> io::Result<Self> {
        let path = format!("/dev/ptp{index}");
        // Nothing is ever written. Before Linux 6.15, the frequency was told only to those who might set it.
        let options = |write| OpenOptions::new().read(true).write(write).open(&path);
        let file = options(true).or_else(|_| options(false))?;
        let history = History::new(tolerance_ppb);
        let mut device = Device { file, method: Method::Basic, clocks: Clocks::new()?, history };
        let methods = [Method::Precise, Method::ExtendedRaw, Method::Extended, Method::Basic];
        for method in methods {
            device.method = method;
            if device.read().is_ok() {
                return Ok(device);
            }
        }
        // The last method's reason is the most telling: every card knows that one.
        device.read().map(|_| device)
    }

    /// How it is read.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Reads both clocks and adds that to the history. Returns whether a step was noticed. Some microseconds.
    ///
    /// # Errors
    /// The system's: the card is gone.
    pub fn read(&mut self) -> io::Result<bool> {
        let first = self.frequency_ppb()?;
        let mut tries = 0;
        let (phc, raw) = loop {
            tries += 1;
            match self.compare() {
                Err(error) if tries < TRIES && error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
                result => break result?,
            }
        };
        let frequency_ppb = (first, self.frequency_ppb()?);
        Ok(self.history.push(PhcReading { phc, raw, frequency_ppb }))
    }

    /// The frequency that it is set to, in ppb off nominal.
    fn frequency_ppb(&self) -> io::Result<i64> {
        let scaled = sys::phc_frequency(self.file.as_fd())?;
        // Whole ppb are enough: the tolerance of the oscillators is a hundred thousand times as much.
        Ok(i64::try_from((i128::from(scaled) * 1_000) >> 16).unwrap_or(i64::MAX))
    }

    fn compare(&mut self) -> io::Result<(Time<Phc>, Span<Raw>)> {
        let fd = self.file.as_fd();
        match self.method {
            Method::Precise => {
                let offset = sys::phc_precise(fd)?;
                let raw = time(offset.sys_monoraw);
                Ok((time(offset.device), Span { earliest: raw - PRECISE_ERROR, latest: raw + PRECISE_ERROR }))
            }
            Method::ExtendedRaw => {
                let offset = sys::phc_extended(fd, SAMPLES, libc::CLOCK_MONOTONIC_RAW)?;
                let samples = offset.ts.iter().take(SAMPLES as usize);
                let spans = samples.map(|[before, phc, after]| {
                    // Either clock may be just short of the next nanosecond.
                    (time(*phc), Span { earliest: time(*before), latest: time(*after) + Nanos::new(1) })
                });
                narrowest(spans)
            }
            Method::Extended => {
                let before = self.clocks.read();
                let offset = sys::phc_extended(fd, SAMPLES, libc::CLOCK_REALTIME)?;
                let after = self.clocks.read();
                let samples =
                    offset.ts.iter().take(SAMPLES as usize).map(|[first, phc, last]| (*first, *phc, *last));
                narrowest(on_raw_clock(samples, &before, &after))
            }
            Method::Basic => {
                let before = self.clocks.read();
                let offset = sys::phc_basic(fd, SAMPLES)?;
                let after = self.clocks.read();
                let samples = offset.ts.windows(3).step_by(2).take(SAMPLES as usize);
                let samples = samples.map(|all| (all[0], all[1], all[2]));
                narrowest(on_raw_clock(samples, &before, &after))
            }
        }
    }
}

fn narrowest(samples: impl Iterator<Item = (Time<Phc>, Span<Raw>)>) -> io::Result<(Time<Phc>, Span<Raw>)> {
    let ordered = samples.filter(|(_, raw)| raw.earliest <= raw.latest);
    // None: CLOCK_REALTIME was set in between.
    ordered.min_by_key(|(_, raw)| raw.width()).ok_or_else(|| io::ErrorKind::Interrupted.into())
}

/// PHC readings between two of `CLOCK_REALTIME` each, as readings between instants of the raw clock.
fn on_raw_clock(
    samples: impl Iterator<Item = (libc::ptp_clock_time, libc::ptp_clock_time, libc::ptp_clock_time)>,
    before: &ClockReading,
    after: &ClockReading,
) -> impl Iterator<Item = (Time<Phc>, Span<Raw>)> {
    samples.filter_map(|(first, phc, last)| {
        let earliest = translate::translate(time(first), before, after)?.earliest;
        let latest = translate::translate(time(last), before, after)?.latest;
        Some((time(phc), Span { earliest, latest }))
    })
}

fn time<T>(at: libc::ptp_clock_time) -> Time<T> {
    Time::from_nanos(at.sec.saturating_mul(1_000_000_000).saturating_add(i64::from(at.nsec)))
}
