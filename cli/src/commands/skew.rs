//! `coeval skew`
