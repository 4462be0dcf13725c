//! The deterministic simulator: one seed is one world of hosts, a server, clients and whatever goes wrong.
//!
//! The product's own code runs in it: coordinator, catalogue, control plane, host service, keepers, volumes, the
//! time-sync server's record and bounds. `docs/simulator.md` says what is modelled instead.

pub mod aims;
pub mod check;
pub mod faults;
pub mod fibers;
pub mod history;
pub mod hosts;
pub mod run;
pub mod server;
pub mod status;
pub mod wire;
pub mod workload;
pub mod world;

pub use aims::Aim;
pub use run::{Report, Wanted, run};
