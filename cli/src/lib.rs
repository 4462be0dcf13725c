//! The command line of Coeval, and the parts of its demonstration that tests and benchmarks use too.

pub mod causal;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod relay;
pub mod table;
pub mod units;
