//! How sure a mean over instances is, and whether two models that answered the same instances
//! really differ.
//!
//! The interval is the percentile bootstrap (Efron 1979): means of resamples with replacement, and
//! the middle 95 % of these. The test is Fisher's randomisation test for pairs: if the models were
//! alike, each difference might as well have had the other sign, so it counts for how many choices
//! of signs the sum is at least as far from 0 as the one seen. Same seed, same numbers.

use crate::rng::Rng;

/// Resamples of an interval.
const RESAMPLES: usize = 1000;

/// Share of the resampled means that the interval holds.
const COVERAGE: f64 = 0.95;

/// Drawn choices of signs.
const FLIPS: usize = 10_000;

/// Up to this many differences other than 0, all choices of signs are tried: at most 4096.
const MOST_ENUMERATED: usize = 12;

/// Streams of the seed.
const RESAMPLE_STREAM: u64 = 0;
const FLIP_STREAM: u64 = 1;

/// A 95 % confidence interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// Two models on the same instances.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Paired {
    /// Mean of the first less mean of the second.
    pub difference: f64,
    /// Of the difference.
    pub interval: Interval,
    /// Probability of a difference at least as large, of either sign, if the models were alike.
    pub p_value: f64,
    /// Instances on which the first has the larger value.
    pub wins: usize,
    /// Instances on which the second has.
    pub losses: usize,
    /// Instances on which the values are equal.
    pub ties: usize,
}

/// A 95 % confidence interval of the mean of `values`. None for fewer than two values, which tell
/// nothing about their spread.
pub fn interval(values: &[f64], seed: u64) -> Option<Interval> {
    let n = values.len();
    if n < 2 {
        return None;
    }
    let mut rng = Rng::new(seed, RESAMPLE_STREAM);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            // The product may round up to n.
            let mut draw = || values[((rng.uniform() * n as f64) as usize).min(n - 1)];
            (0..n).map(|_| draw()).sum::<f64>() / n as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let outside = (1.0 - COVERAGE) / 2.0;
    Some(Interval { low: quantile(&means, outside), high: quantile(&means, 1.0 - outside) })
}

/// The value below which a share of `sorted` lies, on the line between its two neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// Compares `a` with `b`, the values of two models on the same instances in the same order. None
/// for lists of different lengths or of fewer than two values.
pub fn paired(a: &[f64], b: &[f64], seed: u64) -> Option<Paired> {
    if a.len() != b.len() {
        return None;
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    let interval = interval(&differences, seed)?;
    let wins = differences.iter().filter(|d| **d > 0.0).count();
    let losses = differences.iter().filter(|d| **d < 0.0).count();
    Some(Paired {
        difference: differences.iter().sum::<f64>() / differences.len() as f64,
        interval,
        p_value: sign_flip_p(&differences, seed),
        wins,
        losses,
        ties: differences.len() - wins - losses,
    })
}

/// The share of choices of signs whose sum is at least as far from 0 as that of `differences`.
fn sign_flip_p(differences: &[f64], seed: u64) -> f64 {
    // A difference of 0 has no sign: with it, every choice would only be counted twice.
    let differences: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let seen = differences.iter().sum::<f64>().abs();
    // Sums that are equal on paper may differ in their last bits, as their terms come with other
    // signs: such a difference must not decide.
    let slack = 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let reaches = |sum: f64| sum.abs() >= seen - slack;
    if differences.len() <= MOST_ENUMERATED {
        let choices = 1u32 << differences.len();
        let hits = (0..choices).filter(|signs| reaches(signed_sum(&differences, *signs))).count();
        return hits as f64 / f64::from(choices);
    }
    let mut rng = Rng::new(seed, FLIP_STREAM);
    let mut hits = 0;
    for _ in 0..FLIPS {
        let parts = differences.chunks(32);
        hits += usize::from(reaches(parts.map(|part| signed_sum(part, rng.next_u32())).sum()));
    }
    // The choice that was seen is one too, so that no p is 0.
    (hits + 1) as f64 / (FLIPS + 1) as f64
}

/// The sum of up to 32 terms, those negated whose bit is set.
fn signed_sum(terms: &[f64], signs: u32) -> f64 {
    let signed = |(bit, term): (usize, &f64)| if (signs >> bit) & 1 == 1 { -term } else { *term };
    terms.iter().enumerate().map(signed).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_has_no_interval() {
        assert_eq!(interval(&[], 1), None);
        assert_eq!(interval(&[3.0], 1), None);
        assert_eq!(interval(&[3.0, 3.0], 1), Some(Interval { low: 3.0, high: 3.0 }));
        assert_eq!(paired(&[1.0, 2.0], &[1.0], 1), None);
        assert_eq!(paired(&[], &[], 1), None);
    }

    #[test]
    fn same_seed_same_numbers() {
        let values: Vec<f64> = (0..30).map(|n| f64::from(n * n % 17)).collect();
        let zeros = vec![0.0; 30];
        assert_eq!(interval(&values, 4), interval(&values, 4));
        assert_ne!(interval(&values, 4), interval(&values, 5));
        assert_eq!(paired(&values, &zeros, 4), paired(&values, &zeros, 4));
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let sorted = [0.0, 1.0, 2.0, 4.0];
        for (share, wanted) in [(0.0, 0.0), (0.5, 1.5), (1.0, 4.0), (5.0 / 6.0, 3.0)] {
            assert!((quantile(&sorted, share) - wanted).abs() < 1e-12, "{share}");
        }
        assert_eq!(quantile(&[7.0], 0.3), 7.0);
    }

    #[test]
    fn interval_of_a_share_is_that_of_the_binomial() {
        // Standard error 0.025, so 0.5 +- 0.049; 1000 resamples tell the ends to about 0.002.
        let values: Vec<f64> = (0..400).map(|n| f64::from(n % 2)).collect();
        let found = interval(&values, 1).unwrap();
        assert!((found.low - 0.451).abs() < 0.01, "{found:?}");
        assert!((found.high - 0.549).abs() < 0.01, "{found:?}");
    }

    #[test]
    fn interval_covers_the_true_mean() {
        let mut rng = Rng::new(11, 0);
        let sets = 60;
        let covered = (0..sets)
            .filter(|set| {
                let values: Vec<f64> = (0..30).map(|_| 2.0 + rng.normal()).collect();
                let found = interval(&values, *set).unwrap();
                assert!(found.low < found.high);
                found.low <= 2.0 && 2.0 <= found.high
            })
            .count();
        // About 93 % for 30 values; 48 of 60 lies nearly four standard deviations below.
        assert!(covered >= 48, "{covered} of {sets}");
    }

    #[test]
    fn few_differences_are_counted_out() {
        // Sums of +-1 +-2 +-3: two of eight reach 6; all but the two zeros reach 2.
        assert_eq!(sign_flip_p(&[1.0, 2.0, 3.0], 1), 0.25);
        assert_eq!(sign_flip_p(&[1.0, -2.0, 3.0], 1), 0.75);
        assert_eq!(sign_flip_p(&[1.0, 2.0, -3.0], 1), 1.0);
        assert_eq!(sign_flip_p(&[0.0, 5.0, 0.0], 1), 1.0);
        assert_eq!(sign_flip_p(&[], 1), 1.0);
        assert_eq!(sign_flip_p(&[0.1; 12], 1), 2.0 / 4096.0);
        // 0.1 + 0.2 - 0.3 is not 0 in floats, and its last bits depend on the signs.
        assert_eq!(sign_flip_p(&[0.1, 0.2, -0.3], 1), 1.0);
    }

    #[test]
    fn drawn_signs_agree_with_counting() {
        // 13 differences of 1, -1 four times: |sum| >= 5 for 2 (C(13,0) + .. + C(13,4)) of 8192.
        let mut differences = [1.0; 13];
        differences[..4].fill(-1.0);
        let exact = 2.0 * f64::from(1 + 13 + 78 + 286 + 715) / 8192.0;
        // Five standard deviations of 10,000 draws are 0.022.
        let found = sign_flip_p(&differences, 1);
        assert!((found - exact).abs() < 0.022, "{found}, wanted {exact}");
    }

    #[test]
    fn a_clear_difference_is_told_from_none() {
        let mut rng = Rng::new(2, 0);
        let b: Vec<f64> = (0..100).map(|_| rng.normal()).collect();
        let a: Vec<f64> = b.iter().map(|b| b + 0.5 + 0.2 * rng.normal()).collect();
        let found = paired(&a, &b, 1).unwrap();
        assert_eq!(found.p_value, 1.0 / 10_001.0);
        assert!((found.difference - 0.5).abs() < 0.1, "{found:?}");
        assert!(found.interval.low > 0.3 && found.interval.high < 0.7, "{found:?}");
        assert!(found.wins > 90 && found.wins + found.losses == 100, "{found:?}");
        let other = paired(&b, &a, 1).unwrap();
        assert_eq!((other.wins, other.losses), (found.losses, found.wins));
        assert_eq!(other.difference, -found.difference);

        let same = paired(&a, &a, 1).unwrap();
        assert_eq!((same.p_value, same.difference), (1.0, 0.0));
        assert_eq!((same.wins, same.losses, same.ties), (0, 0, 100));
        assert_eq!(same.interval, Interval { low: 0.0, high: 0.0 });
    }
}
