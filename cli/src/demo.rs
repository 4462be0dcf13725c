//! `coeval demo`.

pub mod picture;
