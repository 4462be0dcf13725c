//! Bounds the skew between hosts' clocks by PTP-style four-timestamp exchanges.
//!
//! Pure cores ([`wire`], [`bound`]) take inputs and give decisions; thin shells around them do the sockets, threads and
//! clocks. One module, [`clock`], reads clocks.

pub mod authentication;
pub mod bound;
pub mod clock;
pub mod correction;
pub mod exchange;
pub mod hardware;
pub mod history;
pub mod identity;
pub mod module;
pub mod net_sync;
pub mod phc;
pub mod probe;
pub mod publish;
pub mod random;
pub mod recording;
pub mod report;
pub mod server;
pub mod simulation;
pub mod socket;
pub mod source;
mod sys;
pub mod time;
pub mod translate;
pub mod vmclock;
pub mod wire;
