//! A way between two virtual interfaces on which every frame takes so much longer: a network as between buildings, where
//! the kernel has no netem.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use timesync::clock::{ServerClock, exact_sleeps};
use timesync::time::{Nanos, Server, Time};

/// Larger than any frame of an interface with the usual MTU.
const FRAME: usize = 2048;

/// How soon it notices that it is to stop.
const LONGEST_WAIT: Nanos = Nanos::from_millis(50);

/// Carries frames both ways until it is dropped.
#[derive(Debug)]
pub struct Distance {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Distance {
    /// Between two interfaces, as [`crate::sys::open_tap`] makes them: no frame takes less than `delay`.
    ///
    /// # Errors
    /// When there is no thread.
    pub fn between(near: File, far: File, delay: Nanos) -> io::Result<Distance> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let ends = [End { tap: near, waiting: VecDeque::new() }, End { tap: far, waiting: VecDeque::new() }];
        let carry = move || carry(ends, delay, &stopped);
        let thread = std::thread::Builder::new().name("distance".to_owned()).spawn(carry)?;
        Ok(Distance { stop, thread: Some(thread) })
    }
}

impl Drop for Distance {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct End {
    tap: File,
    /// What came in here and waits to leave at the other end. The delay is constant, so first in is first out.
    waiting: VecDeque<(Time<Server>, Vec<u8>)>,
}

fn carry(mut ends: [End; 2], delay: Nanos, stop: &AtomicBool) {
    exact_sleeps();
    let clock = ServerClock;
    let mut buffer = [0; FRAME];
    while !stop.load(Ordering::Relaxed) {
        for end in &mut ends {
            while let Ok(length) = end.tap.read(&mut buffer) {
                end.waiting.push_back((clock.now() + delay, buffer[..length].to_vec()));
            }
        }
        for from in 0..2 {
            while let Some((_, frame)) = ends[from].waiting.pop_front_if(|(due, _)| *due <= clock.now()) {
                // An error is what a network does: it loses the frame.
                let _ = ends[1 - from].tap.write(&frame);
            }
        }
        let next = ends.iter().filter_map(|end| end.waiting.front().map(|(due, _)| *due)).min();
        let wait = next.map_or(LONGEST_WAIT, |due| due - clock.now()).to_std().min(LONGEST_WAIT.to_std());
        let mut taps = [&ends[0], &ends[1]].map(|end| PollFd::new(end.tap.as_fd(), PollFlags::POLLIN));
        let _ = ppoll(&mut taps, Some(TimeSpec::from_duration(wait)), None);
    }
}
