//! Quantiles, and what a coverage that was seen proves.

use statrs::distribution::{Beta, ContinuousCDF};

/// The sample that a share `quantile` of all is not above; none of none.
pub fn quantile(samples: &mut [f64], quantile: f64) -> Option<f64> {
    samples.sort_unstable_by(f64::total_cmp);
    let last = samples.len().checked_sub(1)?;
    samples.get((last as f64 * quantile).round() as usize).copied()
}

/// The true coverage is at least this, at 95 %, where `misses` of `of` independent queries missed (C. J. Clopper and
/// E. S. Pearson, The use of confidence or fiducial limits, 1934).
pub fn coverage_at_least(misses: u64, of: u64) -> f64 {
    if misses >= of {
        return 0.0;
    }
    let covered = of - misses;
    Beta::new(covered as f64, (misses + 1) as f64).map_or(0.0, |beta| beta.inverse_cdf(0.05))
}
