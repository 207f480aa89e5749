//! Times of a generation in the units that are reported: milliseconds and tokens per second.

/// Percentiles of a set of durations, by nearest rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    /// Half of the durations are at most this long.
    pub p50_ms: f64,
    /// 99 of 100 are at most this long.
    pub p99_ms: f64,
    /// 999 of 1000 are at most this long.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Percentiles {
    /// Percentiles of `samples_ms` (which is sorted in place); `None` of an empty set.
    pub fn of(samples_ms: &mut [f64]) -> Option<Percentiles> {
        samples_ms.sort_unstable_by(f64::total_cmp);
        let max_ms = *samples_ms.last()?;
        let rank = |per_mille: usize| {
            // Nearest rank: the smallest value with at least that share at or below it.
            let rank = (samples_ms.len() * per_mille).div_ceil(1000);
            samples_ms[rank.max(1) - 1]
        };
        Some(Percentiles { p50_ms: rank(500), p99_ms: rank(990), p999_ms: rank(999), max_ms })
    }
}

/// What one sequence took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timings {
    /// Time to bring the prompt (what of it was not in the cache) through the model.
    pub prompt_ms: f64,
    /// From the start of the prompt to the first token chosen; `None` where there is no token.
    pub first_token_ms: Option<f64>,
    /// Times between tokens after the first; `None` where there are fewer than two.
    pub token_ms: Option<Percentiles>,
    /// Prompt tokens computed per second.
    pub prompt_tok_per_s: f64,
    /// Tokens after the first, per second; `None` where there are fewer than two.
    pub decode_tok_per_s: Option<f64>,
}

/// Events per second, 0 where no time passed (so that no infinity reaches a JSON file).
pub fn per_second(count: usize, ms: f64) -> f64 {
    if ms > 0.0 { count as f64 * 1000.0 / ms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(Percentiles::of(&mut []), None);
        let one = Percentiles::of(&mut [3.0]).unwrap();
        assert_eq!(one, Percentiles { p50_ms: 3.0, p99_ms: 3.0, p999_ms: 3.0, max_ms: 3.0 });
        let mut thousand: Vec<f64> = (1..=1000).rev().map(f64::from).collect();
        let all = Percentiles::of(&mut thousand).unwrap();
        let wanted = Percentiles { p50_ms: 500.0, p99_ms: 990.0, p999_ms: 999.0, max_ms: 1000.0 };
        assert_eq!(all, wanted);
    }

    #[test]
    fn rates_are_finite() {
        assert_eq!(per_second(10, 500.0), 20.0);
        assert_eq!(per_second(10, 0.0), 0.0);
    }
}
