//! Means, spreads, and how sure a ratio of two speeds is.

/// The mean; 0 of none.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// Standard deviation of a sample (divided by n - 1); 0 of a single value.
pub fn deviation(values: &[f64]) -> f64 {
    let m = mean(values);
    let sum: f64 = values.iter().map(|v| (v - m).powi(2)).sum();
    if values.len() < 2 { 0.0 } else { (sum / (values.len() - 1) as f64).sqrt() }
}

/// The median; `None` of none.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    (n > 0).then(|| (sorted[n / 2] + sorted[(n - 1) / 2]) / 2.0)
}

/// Two-sided 95 % points of Student's t for 1, 2, ... degrees of freedom.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
];
/// The same beyond the table, a little too wide.
const T_95_BEYOND: f64 = 2.042;

/// How much faster one sample is than another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// New over old, of the geometric means.
    pub ratio: f64,
    /// 95 % confidence interval; `None` where a side has a single value, which tells no spread.
    pub interval: Option<(f64, f64)>,
}

impl Ratio {
    /// Of two samples of numbers above 0, neither empty. The interval is Welch's, of the
    /// difference of the logarithms, so that a ratio and its inverse are judged alike; its degrees
    /// of freedom are rounded down.
    pub fn new(old: &[f64], new: &[f64]) -> Ratio {
        let logs = |values: &[f64]| values.iter().map(|v| v.ln()).collect::<Vec<f64>>();
        let (old, new) = (logs(old), logs(new));
        let difference = mean(&new) - mean(&old);
        let ratio = difference.exp();
        if old.len() < 2 || new.len() < 2 {
            return Ratio { ratio, interval: None };
        }
        // Variance of a mean, and its part of the degrees of freedom.
        let part = |logs: &[f64]| {
            let v = deviation(logs).powi(2) / logs.len() as f64;
            (v, v * v / (logs.len() - 1) as f64)
        };
        let ((a, a2), (b, b2)) = (part(&old), part(&new));
        let half = if a + b > 0.0 {
            // A hair more, so that rounding does not take a whole degree away.
            let freedom = ((a + b).powi(2) / (a2 + b2) + 1e-9).floor().max(1.0) as usize;
            let t = T_95.get(freedom - 1).copied().unwrap_or(T_95_BEYOND);
            t * (a + b).sqrt()
        } else {
            0.0
        };
        let interval = Some(((difference - half).exp(), (difference + half).exp()));
        Ratio { ratio, interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_of_a_sample() {
        assert_eq!((mean(&[2.0, 4.0]), deviation(&[2.0, 4.0])), (3.0, 2f64.sqrt()));
        assert_eq!(deviation(&[2.0]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!((median(&[1.0, 4.0]), median(&[])), (Some(2.5), None));
    }

    /// Reckoned by hand: logarithms 0 and 2 against 1 and 3, each of variance 2, so a standard
    /// error of sqrt(2), 2 degrees of freedom, t = 4.303.
    #[test]
    fn welch_by_hand() {
        let e = |x: f64| x.exp();
        let got = Ratio::new(&[e(0.0), e(2.0)], &[e(1.0), e(3.0)]);
        assert!((got.ratio - e(1.0)).abs() < 1e-9);
        let (low, high) = got.interval.unwrap();
        let half = 4.303 * 2f64.sqrt();
        assert!((low.ln() - (1.0 - half)).abs() < 1e-9 && (high.ln() - (1.0 + half)).abs() < 1e-9);
    }

    #[test]
    fn a_ratio_and_its_inverse_are_judged_alike() {
        let (a, b) = ([10.0, 11.0, 10.5], [12.0, 12.5, 13.0, 12.2]);
        let (ab, ba) = (Ratio::new(&a, &b), Ratio::new(&b, &a));
        let ((low, high), (low_back, high_back)) = (ab.interval.unwrap(), ba.interval.unwrap());
        assert!((ab.ratio * ba.ratio - 1.0).abs() < 1e-12);
        assert!((low * high_back - 1.0).abs() < 1e-12 && (high * low_back - 1.0).abs() < 1e-12);
        assert!(low < ab.ratio && ab.ratio < high && low > 1.0);
    }

    #[test]
    fn equal_values_have_no_width_and_single_ones_no_interval() {
        let same = Ratio::new(&[2.0, 2.0], &[4.0, 4.0, 4.0]);
        let (low, high) = same.interval.unwrap();
        assert!((low - 2.0).abs() < 1e-12 && (high - 2.0).abs() < 1e-12);
        assert_eq!(Ratio::new(&[2.0], &[4.0, 4.0]).interval, None);
    }
}
