//! Hosts whose clocks and networks are simulated, so that the truth is known; the exchanges with them go through the
//! server's own code. What the benchmark `coverage` and the simulator share.

#![expect(missing_docs, reason = "a harness's own parts; their fields and small functions say what they are")]

pub mod card;
pub mod clock;
pub mod estimator;
pub mod host;
pub mod machine;
pub mod network;
pub mod scenario;
