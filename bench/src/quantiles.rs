//! What several benchmarks say of their samples.

use serde::Serialize;

/// Of samples: the median, the 99th percentile and the greatest; all 0 where there are none.
#[derive(Clone, Copy, Default, Serialize)]
pub struct Quantiles {
    pub p50: i64,
    pub p99: i64,
    pub max: i64,
}

impl Quantiles {
    /// Those of `samples`, in any order.
    pub fn of(samples: &[i64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let at =
            |percent: usize| sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or(0);
        Quantiles { p50: at(50), p99: at(99), max: at(100) }
    }
}
