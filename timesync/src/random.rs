//! A deterministic generator: a seed is a run. For simulations, tests and workloads, never for secrets.

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), begun with its seed.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// 64 bits, each 0 or 1 alike.
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

    /// Below `end`, all alike as long as that is far below 2^64.
    ///
    /// # Panics
    /// When `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.bits() % end as u64) as usize
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 2f64.powi(-53)
    }

    /// Uniform in [low, high).
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Whole nanoseconds in low .. high, which are less than 2^52 apart to be all alike.
    pub fn nanos(&mut self, low: i64, high: i64) -> i64 {
        low + ((high - low) as f64 * self.unit()) as i64
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Exponential with this mean.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    /// Lomax with the tail exponent 1.5: its mean is finite, its variance is not.
    pub fn heavy(&mut self, scale: f64) -> f64 {
        scale * ((1.0 - self.unit()).powf(-1.0 / 1.5) - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_published_generator() {
        // The reference implementation's first values for the seed 1234567.
        let mut random = Random(1_234_567);
        let first = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(first.map(|_| random.bits()), first);
    }
}
