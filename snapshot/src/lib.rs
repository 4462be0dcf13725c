//! Cuts volumes on many hosts at one instant, without stopping their I/O, and certifies the cut.

pub mod certificate;
pub mod cut;
pub mod device;
pub mod host;
pub mod nbd;
pub mod orders;
pub mod volume;
