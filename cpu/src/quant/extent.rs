//! Extent of a block of 32: what the scales of the plain formats are made of. NaN is passed over.
//!
//! Minima and maxima need no order, so they are taken in eight lanes.

use super::BLOCK;
use super::lanes::LANES;

/// The largest magnitude; 0 if there is none.
pub fn largest(x: &[f32; BLOCK]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for part in x.as_chunks::<LANES>().0 {
        for (lane, v) in lanes.iter_mut().zip(part) {
            *lane = if *lane < v.abs() { v.abs() } else { *lane };
        }
    }
    lanes.into_iter().fold(0.0, |a, b| if a < b { b } else { a })
}

/// The first weight of the largest magnitude, with its sign; 0 if there is none.
pub fn extreme(x: &[f32; BLOCK]) -> f32 {
    let largest = largest(x);
    x.iter().copied().find(|v| v.abs() == largest).unwrap_or(0.0)
}

/// Smallest and largest weight.
pub fn range(x: &[f32; BLOCK]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::MAX; LANES], [f32::MIN; LANES]);
    for part in x.as_chunks::<LANES>().0 {
        for g in 0..LANES {
            low[g] = if part[g] < low[g] { part[g] } else { low[g] };
            high[g] = if part[g] > high[g] { part[g] } else { high[g] };
        }
    }
    let min = low.into_iter().fold(f32::MAX, |a, b| if b < a { b } else { a });
    let max = high.into_iter().fold(f32::MIN, |a, b| if b > a { b } else { a });
    (min, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_both_ends_wherever_they_are() {
        for at in 0..BLOCK {
            let mut x = [0.25; BLOCK];
            x[at] = -3.0;
            x[(at + 5) % BLOCK] = 2.0;
            assert_eq!(range(&x), (-3.0, 2.0), "{at}");
            assert_eq!((extreme(&x), largest(&x)), (-3.0, 3.0), "{at}");
        }
    }

    #[test]
    fn the_first_of_equal_magnitudes_gives_the_sign() {
        let mut x = [0.0; BLOCK];
        (x[9], x[10]) = (1.0, -1.0);
        assert_eq!(extreme(&x), 1.0);
        x[2] = -1.0;
        assert_eq!(extreme(&x), -1.0);
    }

    #[test]
    fn nan_is_passed_over() {
        let mut x = [f32::NAN; BLOCK];
        assert_eq!(extreme(&x), 0.0);
        x[17] = -2.0;
        assert_eq!((extreme(&x), range(&x)), (-2.0, (-2.0, -2.0)));
    }
}
