//! The hard bound.
