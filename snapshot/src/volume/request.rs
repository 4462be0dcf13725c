//! The path of a request: where it goes, and what its answer waits for.

use std::ops::Range;
use std::sync::{Arc, PoisonError, TryLockError};
use std::time::Duration;

use super::chain::{self, Chain, Content, blocks_of, put};
use super::layer::{Layer, Ticket};
use super::ranges::RangeSet;
use super::status::{self, ChangedSince};
use super::{BLOCK, Core, Volume, lock};
use crate::cut::{Cut, Epoch};
use crate::device::{Changes, Device, DeviceError, Disconnect, Outcome, Visit};
use crate::mutation::mutated;
use crate::sync::{Mutex, RwLockReadGuard, RwLockWriteGuard, thread};

/// How often a closing of the gate is tried again before it sleeps.
const SPINS: u32 = 200;

/// How requests are dispatched at present.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// The layers, the head last.
    pub chain: Chain,
    /// A cut that requests have to ask. The two topmost layers are then the one being sealed and the next one.
    pub armed: Option<Armed>,
}

/// A cut, and the bytes that its held writes changed.
#[derive(Debug)]
pub(super) struct Armed {
    pub cut: Arc<Cut>,
    held: Mutex<RangeSet>,
}

impl Armed {
    pub(super) fn new(cut: Arc<Cut>) -> Self {
        Armed { cut, held: Mutex::default() }
    }
}

impl Dispatch {
    pub(super) fn new(layers: Vec<Arc<Layer>>) -> Self {
        Dispatch { chain: layers.into(), armed: None }
    }
}

/// Where a request goes.
pub(super) struct Target {
    chain: Chain,
    /// The layer that it changes; it sees those up to this one.
    top: usize,
    /// The cut that its answer waits for.
    pub hold: Option<Arc<Cut>>,
    _ticket: Ticket,
}

impl Target {
    fn layers(&self) -> &[Arc<Layer>] {
        &self.chain[..=self.top]
    }
}

impl Core {
    /// Enters the gate: for the dispatch itself only.
    pub(super) fn dispatcher(&self) -> RwLockReadGuard<'_, Dispatch> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers at present, the head last.
    pub(super) fn chain(&self) -> Chain {
        Arc::clone(&self.dispatcher().chain)
    }

    /// Waits until no request is being dispatched, and keeps new ones from it while the guard lives.
    pub(super) fn close_gate(&self) -> RwLockWriteGuard<'_, Dispatch> {
        loop {
            if let Some(dispatch) = self.close_gate_unless(&mut || false) {
                return dispatch;
            }
        }
    }

    /// The same, or None if the caller gave up. By trying again and again: a writer that waits would stall new requests
    /// behind a descheduled one.
    pub(super) fn close_gate_unless(
        &self,
        give_up: &mut dyn FnMut() -> bool,
    ) -> Option<RwLockWriteGuard<'_, Dispatch>> {
        let mut tries = 0_u32;
        loop {
            match self.gate.try_write() {
                Ok(dispatch) => return Some(dispatch),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if give_up() => return None,
                // A dispatch takes some hundred nanoseconds, unless its thread has lost the processor.
                Err(TryLockError::WouldBlock) if tries < SPINS => std::hint::spin_loop(),
                Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_micros(20)),
            }
            tries = tries.saturating_add(1);
        }
    }

    /// R1: on which side of the cut a request that changes `range` lies.
    ///
    /// The whole request has been received, and it holds its blocks' lock: whoever waited for that lock reads the clock
    /// after the one it waited for, so a part of a block never goes below a part that is there already.
    ///
    /// Why a sealed layer is complete: the request registers on the layer that would be sealed *before* it reads the
    /// clock. The one who seals takes a reading ≥ T first and then waits until nothing is registered. If he misses this
    /// request's registration, it came after his reading; so does its own reading, which is ≥ T then, and the request
    /// is post and leaves that layer alone.
    ///
    /// Why arming is complete when the gate was closed once: a request that found no cut registered inside the gate,
    /// before that, and is pre whatever the clock says. The reading that completes arming is taken after it and must
    /// be < T (`Cut::armed`).
    pub(super) fn dispatch(&self, range: &Range<u64>) -> Target {
        let dispatch = self.dispatcher();
        let chain = Arc::clone(&dispatch.chain);
        let head = chain.len() - 1;
        let Some(armed) = &dispatch.armed else {
            let ticket = chain[head].register();
            return Target { top: head, hold: None, _ticket: ticket, chain };
        };
        #[cfg(feature = "simulation")]
        if mutated!(RegisterAfterReading) {
            let (top, hold) = self.classify_unregistered(armed, head, range);
            drop(dispatch);
            crate::sync::pause();
            return Target { top, hold, _ticket: chain[top].register(), chain };
        }
        let ticket = chain[head - 1].register();
        let reading = self.clock.now();
        #[cfg(feature = "simulation")]
        let reading = match crate::simulation::reading_at_head() {
            Some(at_head) if mutated!(ReadBeforeComplete) => at_head,
            _ => reading,
        };
        match armed.cut.classify(reading) {
            Epoch::Pre => Target { top: head - 1, hold: None, _ticket: ticket, chain },
            Epoch::Post => {
                let ticket = chain[head].register();
                let hold = (!armed.cut.is_released()).then(|| {
                    // R3: before the data becomes visible.
                    lock(&armed.held).insert(range.clone());
                    Arc::clone(&armed.cut)
                });
                Target { top: head, hold, _ticket: ticket, chain }
            }
        }
    }

    /// The mistake that a request registers after its reading, and outside the gate. Inside it, it would do no harm:
    /// whoever seals closes the gate once more before he waits for what is registered.
    #[cfg(feature = "simulation")]
    fn classify_unregistered(
        &self,
        armed: &Armed,
        head: usize,
        range: &Range<u64>,
    ) -> (usize, Option<Arc<Cut>>) {
        if armed.cut.classify(self.clock.now()) == Epoch::Pre {
            return (head - 1, None);
        }
        lock(&armed.held).insert(range.clone());
        (head, (!armed.cut.is_released()).then(|| Arc::clone(&armed.cut)))
    }

    /// R3: the cut that a read of `range` waits for. The data must have been read before the call: what it shows of a
    /// held write was in the set before it could be read. If the cut is gone here, it was released before this, and
    /// the answer leaves later still.
    pub(super) fn held_over(&self, range: &Range<u64>) -> Option<Arc<Cut>> {
        if mutated!(NoReadHold) {
            return None;
        }
        let dispatch = self.dispatcher();
        let armed = dispatch.armed.as_ref()?;
        let held = !armed.cut.is_released() && lock(&armed.held).overlaps(range);
        held.then(|| Arc::clone(&armed.cut))
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
        let range = match self.range(offset, buffer.len() as u64) {
            Ok(range) => range,
            Err(error) => return Outcome::now(Err(error)),
        };
        let early = if mutated!(ReadHoldTooEarly) { Some(self.held_over(&range)) } else { None };
        let chain = self.chain();
        let result = chain::read(&chain, offset, buffer).map_err(DeviceError::from);
        Outcome { result, hold: early.unwrap_or_else(|| self.held_over(&range)) }
    }

    fn change(&self, offset: u64, length: u64, content: Content<'_>, fua: bool) -> Outcome {
        let range = match self.range(offset, length) {
            Ok(range) => range,
            Err(error) => return Outcome::now(Err(error)),
        };
        let whole = range.start.is_multiple_of(BLOCK) && range.end.is_multiple_of(BLOCK);
        let early = if mutated!(LockAfterReading) { Some(self.dispatch(&range)) } else { None };
        let blocks = self.ranges.lock(blocks_of(&range), !whole);
        let target = early.unwrap_or_else(|| self.dispatch(&range));
        let done = put(target.layers(), &range, content).map_err(DeviceError::from);
        let hold = target.hold.clone();
        drop((target, blocks));
        let result = if fua { done.and_then(|()| self.sync()) } else { done };
        Outcome { result, hold }
    }

    /// Makes every write durable that was answered before the call. They may lie in any layer, the one being sealed
    /// too; layers without new writes cost nothing.
    pub(super) fn sync(&self) -> Result<(), DeviceError> {
        self.flushes.run(|| {
            self.chain().iter().rev().enumerate().try_for_each(|(depth, layer)| {
                if mutated!(FlushSkipsSealing) && depth == 1 {
                    return Ok(());
                }
                layer.sync().map_err(DeviceError::from)
            })
        })
    }

    fn range(&self, offset: u64, length: u64) -> Result<Range<u64>, DeviceError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size() => Ok(offset..end),
            _ => Err(DeviceError::Invalid),
        }
    }
}

/// The live volume as one client has it.
#[derive(Debug)]
pub(super) struct Client {
    volume: Arc<Volume>,
    number: u64,
}

impl Client {
    /// None while nobody is let in.
    pub(super) fn new(volume: Arc<Volume>) -> Option<Self> {
        let number = volume.core.clients.enter()?;
        Some(Client { volume, number })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.volume.core.clients.leave(self.number);
    }
}

impl Device for Client {
    fn size(&self) -> u64 {
        self.volume.core.size()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
        self.volume.core.read(offset, buffer)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Outcome {
        self.volume.core.change(offset, data.len() as u64, Content::Data(data), fua)
    }

    fn write_zeroes(&self, offset: u64, length: u64, may_punch: bool, fua: bool) -> Outcome {
        self.volume.core.change(offset, length, Content::Zeros { punch: may_punch }, fua)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> Outcome {
        self.volume.core.change(offset, length, Content::Zeros { punch: true }, fua)
    }

    fn flush(&self) -> Outcome {
        Outcome::now(self.volume.core.sync())
    }

    fn write_zeroes_fast(&self, offset: u64, length: u64, may_punch: bool, fua: bool) -> Outcome {
        if !offset.is_multiple_of(BLOCK) || !length.is_multiple_of(BLOCK) {
            // The rest of a block would have to be read and written.
            return Outcome::now(Err(DeviceError::Unsupported));
        }
        self.volume.core.change(offset, length, Content::FastZeros { punch: may_punch }, fua)
    }

    fn cache(&self, offset: u64, length: u64) -> Outcome {
        Outcome::now(status::prefetch(&self.volume.core.chain(), offset, length))
    }

    fn holes(&self, range: Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        self.volume.core.holes(&range, visit)
    }

    fn snapshots(&self) -> Vec<String> {
        self.volume.core.snapshots_before(None)
    }

    fn changes_since(&self, snapshot: &str) -> Option<Box<dyn Changes>> {
        Some(Box::new(ChangedSince::new(&self.volume.core, None, snapshot)?))
    }

    fn on_disconnect(&self, disconnect: Disconnect) {
        self.volume.core.clients.on_disconnect(self.number, disconnect);
    }
}

/// A snapshot. Nothing changes it, so nothing about it ever waits for a cut.
#[derive(Debug)]
pub(super) struct SnapshotDevice {
    pub layers: Vec<Arc<Layer>>,
    pub size: u64,
    /// None of a damaged volume, of which nothing is deleted.
    pub pin: Option<Pin>,
}

/// Keeps a snapshot from being deleted.
#[derive(Debug)]
pub(super) struct Pin {
    pub core: Arc<Core>,
    pub snapshot: String,
}

impl Pin {
    /// Stands for a pin that the caller has counted.
    pub(super) fn new(core: &Arc<Core>, snapshot: &str) -> Self {
        Pin { core: Arc::clone(core), snapshot: snapshot.to_owned() }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(pins) = lock(&self.core.structure).pins.get_mut(&self.snapshot) {
            *pins -= 1;
        }
    }
}

impl Device for SnapshotDevice {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
        let inside = offset.checked_add(buffer.len() as u64).is_some_and(|end| end <= self.size);
        if !inside {
            return Outcome::now(Err(DeviceError::Invalid));
        }
        Outcome::now(chain::read(&self.layers, offset, buffer).map_err(DeviceError::from))
    }

    fn write(&self, _offset: u64, _data: &[u8], _fua: bool) -> Outcome {
        Outcome::now(Err(DeviceError::ReadOnly))
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _may_punch: bool, _fua: bool) -> Outcome {
        Outcome::now(Err(DeviceError::ReadOnly))
    }

    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> Outcome {
        Outcome::now(Err(DeviceError::ReadOnly))
    }

    fn flush(&self) -> Outcome {
        Outcome::now(Ok(()))
    }

    fn cache(&self, offset: u64, length: u64) -> Outcome {
        Outcome::now(status::prefetch(&self.layers, offset, length))
    }

    fn holes(&self, range: Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        status::snapshot_holes(&self.layers, self.size, &range, visit)
    }

    fn snapshots(&self) -> Vec<String> {
        self.pin.as_ref().map_or_else(Vec::new, |pin| pin.core.snapshots_before(Some(&pin.snapshot)))
    }

    fn changes_since(&self, snapshot: &str) -> Option<Box<dyn Changes>> {
        let pin = self.pin.as_ref()?;
        Some(Box::new(ChangedSince::new(&pin.core, Some(&pin.snapshot), snapshot)?))
    }
}
