//! What the simulator of `tests/` needs of this crate beyond what a program does. Only with the feature `simulation`.

use std::cell::Cell;

use timesync::time::{Host, Time};

pub use crate::http::Carry;
pub use crate::mutation::{Mutation, is as mutated, mutate};
pub use crate::sync::{Driver, block_on, drive};
pub use crate::volume::simulated::SimulatedDisk;

thread_local! {
    static AT_HEAD: Cell<Option<Time<Host>>> = const { Cell::new(None) };
}

/// For [`Mutation::ReadBeforeComplete`]: what the clock read when the head of the request came that is executed next.
pub fn set_reading_at_head(reading: Option<Time<Host>>) {
    AT_HEAD.set(reading);
}

pub(crate) fn reading_at_head() -> Option<Time<Host>> {
    AT_HEAD.take()
}
