//! What whole-system tests and benchmarks share: the binary, network namespaces, and a cluster of daemons.

pub mod namespaces;
