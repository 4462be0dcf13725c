//! The command line of Coeval, and the parts of its demonstration that tests and benchmarks use too.

pub mod args;
pub mod causal;
pub mod cluster;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod keys;
pub mod picture;
pub mod pki;
pub mod progress;
pub mod relay;
pub mod table;
pub mod units;
pub mod workload;
