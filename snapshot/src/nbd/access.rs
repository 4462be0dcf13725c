//! What the holder of a certificate may do with a host's exports.
//!
//! | role | live volumes | snapshots |
//! | --- | --- | --- |
//! | operator | read and write | read |
//! | server | read | read |
//! | host, viewer, none | nothing | nothing |
//!
//! A viewer sees that there are volumes, not what is in them.

use std::ops::Range;
use std::sync::Arc;

use crate::device::{Changes, Device, DeviceError, Disconnect, Exports, Outcome, Visit};
use crate::http::{Identity, Role};

/// A host's exports as one client gets them.
pub(super) fn exports_for(identity: Option<&Identity>, exports: Arc<dyn Exports>) -> Arc<dyn Exports> {
    match identity {
        Some(Identity { role: Role::Operator, .. }) => exports,
        Some(Identity { role: Role::Server, .. }) => Arc::new(OnlyReading(exports)),
        Some(Identity { role, name }) => {
            Arc::new(Refused(format!("volumes need an operator's certificate; {name} has that of a {role}")))
        }
        None => Arc::new(Refused(
            "volumes need an operator's certificate; this one carries no role, `coeval pki issue` makes some that do"
                .to_owned(),
        )),
    }
}

struct Refused(String);

impl Exports for Refused {
    fn list(&self) -> Vec<String> {
        Vec::new()
    }

    fn refusal(&self) -> Option<String> {
        Some(self.0.clone())
    }

    fn open(&self, _name: &str) -> Option<Arc<dyn Device>> {
        None
    }
}

struct OnlyReading(Arc<dyn Exports>);

impl Exports for OnlyReading {
    fn list(&self) -> Vec<String> {
        self.0.list()
    }

    fn describe(&self, name: &str) -> Option<String> {
        self.0.describe(name)
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Device>> {
        Some(Arc::new(ReadOnly(self.0.open(name)?)))
    }
}

struct ReadOnly(Arc<dyn Device>);

impl Device for ReadOnly {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Outcome {
        self.0.read(offset, buffer)
    }

    fn write(&self, _offset: u64, _data: &[u8], _fua: bool) -> Outcome {
        Outcome::now(Err(DeviceError::ReadOnly))
    }

    fn write_zeroes(&self, _offset: u64, _length: u64, _may_punch: bool, _fua: bool) -> Outcome {
        Outcome::now(Err(DeviceError::ReadOnly))
    }

    fn write_zeroes_fast(&self, _offset: u64, _length: u64, _may_punch: bool, _fua: bool) -> Outcome {
        Outcome::now(Err(DeviceError::ReadOnly))
    }

    fn trim(&self, _offset: u64, _length: u64, _fua: bool) -> Outcome {
        Outcome::now(Err(DeviceError::ReadOnly))
    }

    fn flush(&self) -> Outcome {
        self.0.flush()
    }

    fn cache(&self, offset: u64, length: u64) -> Outcome {
        self.0.cache(offset, length)
    }

    fn holes(&self, range: Range<u64>, visit: &mut Visit<'_>) -> Outcome {
        self.0.holes(range, visit)
    }

    fn snapshots(&self) -> Vec<String> {
        self.0.snapshots()
    }

    fn changes_since(&self, snapshot: &str) -> Option<Box<dyn Changes>> {
        self.0.changes_since(snapshot)
    }

    fn on_disconnect(&self, disconnect: Disconnect) {
        self.0.on_disconnect(disconnect);
    }
}
