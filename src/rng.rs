//! Seeded random numbers: ChaCha8, so that a seed gives the same draws on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// A seeded generator. Same seed, same stream: same draws, everywhere.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// A generator for `seed`; `stream` separates uses of one seed (one per sequence).
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut inner = ChaCha8Rng::seed_from_u64(seed);
        inner.set_stream(stream);
        Rng(inner)
    }

    /// How far the stream has been drawn, for [`Rng::go_to`].
    pub fn position(&self) -> u128 {
        self.0.get_word_pos()
    }

    /// Goes on from a [`Rng::position`] of the same seed and stream.
    pub fn go_to(&mut self, position: u128) {
        self.0.set_word_pos(position);
    }

    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Standard normal, by the polar method of Box and Muller's formula (the cosine half).
    pub fn normal(&mut self) -> f64 {
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_draws_and_streams_differ() {
        let (mut a, mut b, mut c) = (Rng::new(7, 0), Rng::new(7, 0), Rng::new(7, 1));
        let (x, y, z) = (a.uniform(), b.uniform(), c.uniform());
        assert_eq!(x, y);
        assert_ne!(x, z);
    }

    #[test]
    fn a_stream_goes_on_from_any_position() {
        let mut rng = Rng::new(3, 9);
        for _ in 0..37 {
            let position = rng.position();
            let (first, second) = (rng.next_u32(), rng.uniform());
            let mut other = Rng::new(3, 9);
            other.go_to(position);
            assert_eq!((first, second), (other.next_u32(), other.uniform()));
        }
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut rng = Rng::new(1, 0);
        let n = 100_000;
        let draws: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        // Five standard errors: 5 / sqrt(n), and 5 * sqrt(2 / n) for the variance.
        assert!(mean.abs() < 0.016, "mean {mean}");
        assert!((var - 1.0).abs() < 0.0224, "variance {var}");
    }
}
