//! A deterministic generator, so that a seed is a run.

/// `SplitMix64`.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Another generator, independent of this one.
    pub fn split(&mut self) -> Self {
        Random(self.bits())
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2f64.powi(-53)
    }

    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Whole nanoseconds in low .. high.
    pub fn nanos(&mut self, low: i64, high: i64) -> i64 {
        low + ((high - low) as f64 * self.unit()) as i64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Exponential with the given mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Lomax with the tail exponent 1.5: its mean is finite, its variance is not.
    pub fn heavy(&mut self, scale: f64) -> f64 {
        scale * ((1.0 - self.unit()).powf(-1.0 / 1.5) - 1.0)
    }
}
