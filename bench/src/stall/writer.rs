//! A writer at queue depth 1 that notes when each of its writes began and ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use snapshot::nbd::{Client, Endpoint};

use super::{Failure, now};

pub const BLOCK: u64 = 4096;
/// Small: every cut syncs what was written since the last one, and a slow disk would be all that is measured.
pub const SIZE: u64 = 2 << 20;

/// The longest of `writes` that was under way at any time in between.
pub fn worst(writes: &[(i64, i64)], from: i64, until: i64) -> i64 {
    let overlapping = writes.iter().filter(|(began, ended)| *began <= until && *ended >= from);
    overlapping.map(|(began, ended)| ended - began).max().unwrap_or(0)
}

/// Writes 4 KiB blocks all over a volume, one at a time.
pub struct Writer {
    stop: Arc<AtomicBool>,
    /// When each write began and ended.
    writes: Arc<Mutex<Vec<(i64, i64)>>>,
    thread: JoinHandle<Result<(), Failure>>,
}

impl Writer {
    /// Starts one on an export, that thinks for so long between two writes.
    pub fn start(endpoint: &Endpoint, export: &str, think: Duration) -> Result<Self, Failure> {
        let mut client = Client::connect(endpoint, export)?;
        Writer::on(think, move |offset, data| Ok(client.write(offset, data, false)?))
    }

    /// Starts one on whatever `write` writes to.
    pub fn on(
        think: Duration,
        mut write: impl FnMut(u64, &[u8]) -> Result<(), Failure> + Send + 'static,
    ) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let writes = Arc::new(Mutex::new(Vec::new()));
        let (stopping, recorded) = (Arc::clone(&stop), Arc::clone(&writes));
        let thread = std::thread::Builder::new().name("writer".to_owned()).spawn(move || {
            let (mut block, data) = (0_u64, [0x5a; BLOCK as usize]);
            while !stopping.load(Ordering::Relaxed) {
                // A stride that is coprime to the number of blocks reaches them all, scattered.
                block = (block + 1_663) % (SIZE / BLOCK);
                let began = now();
                write(block * BLOCK, &data)?;
                let written = (began, now());
                recorded.lock().unwrap_or_else(PoisonError::into_inner).push(written);
                if !think.is_zero() {
                    std::thread::sleep(think);
                }
            }
            Ok(())
        })?;
        Ok(Writer { stop, writes, thread })
    }

    /// The writes since the last call.
    pub fn drain(&self) -> Vec<(i64, i64)> {
        std::mem::take(&mut self.writes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends it.
    pub fn stop(self) -> Result<(), Failure> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
