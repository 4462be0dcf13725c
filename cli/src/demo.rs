//! `coeval demo`.

pub mod picture;
pub mod report;
