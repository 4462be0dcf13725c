//! Cuts volumes on many hosts at one instant, without stopping their I/O, and certifies the cut.

pub mod agent;
pub mod api;
pub mod backend;
pub mod catalogue;
pub mod certificate;
pub mod client;
pub mod coordinator;
pub mod cut;
pub mod dashboard;
pub mod device;
pub mod digest;
pub mod export;
pub mod follow_ups;
pub mod groups;
pub mod history;
pub mod hooks;
pub mod host;
pub mod http;
pub mod messages;
pub mod metrics;
mod mutation;
pub mod nbd;
pub mod operations;
pub mod orders;
pub mod record;
pub mod remote;
pub mod schedule;
pub mod server_time;
#[cfg(feature = "simulation")]
pub mod simulation;
mod sync;
mod sys;
pub mod time_keys;
pub mod volume;

#[cfg(test)]
mod simulated;
