//! Eight f32 lanes in plain Rust, and the rounding that the encoders share.
//!
//! The searches of the K formats sum in index order within a sub-block, so one sub-block cannot be
//! vectorised without changing bits. Eight sub-blocks side by side can: each lane does exactly
//! what a scalar loop over its sub-block would do. Written as loops over fixed arrays, which
//! compile to vector instructions of whatever width the target has.

use std::ops::{Add, Div, Mul, Neg, Sub};

/// Lanes of [`F32x8`].
pub const LANES: usize = 8;

/// Eight f32 numbers, one a sub-block.
#[derive(Clone, Copy, Debug)]
pub struct F32x8(pub [f32; LANES]);

/// A truth value a lane: all bits set or none.
#[derive(Clone, Copy, Debug)]
pub struct Mask8([u32; LANES]);

impl F32x8 {
    pub const ZERO: F32x8 = F32x8([0.0; LANES]);

    pub fn splat(value: f32) -> F32x8 {
        F32x8([value; LANES])
    }

    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> F32x8 {
        F32x8(std::array::from_fn(|g| f(self.0[g])))
    }

    #[inline(always)]
    fn zip(self, other: F32x8, f: impl Fn(f32, f32) -> f32) -> F32x8 {
        F32x8(std::array::from_fn(|g| f(self.0[g], other.0[g])))
    }

    #[inline(always)]
    pub fn abs(self) -> F32x8 {
        self.map(f32::abs)
    }

    #[inline(always)]
    pub fn sqrt(self) -> F32x8 {
        self.map(f32::sqrt)
    }

    /// [`nearest`] of every lane, held between `low` and `high`. The numbers stay small integers,
    /// exact in f32.
    #[inline(always)]
    pub fn code(self, low: f32, high: f32) -> F32x8 {
        self.map(|v| {
            let n = nearest(v) as f32;
            let n = if n < low { low } else { n };
            if n > high { high } else { n }
        })
    }

    #[inline(always)]
    pub fn gt(self, other: F32x8) -> Mask8 {
        Mask8(std::array::from_fn(|g| ((self.0[g] > other.0[g]) as u32).wrapping_neg()))
    }

    #[inline(always)]
    pub fn eq(self, other: F32x8) -> Mask8 {
        Mask8(std::array::from_fn(|g| ((self.0[g] == other.0[g]) as u32).wrapping_neg()))
    }
}

impl Mask8 {
    #[inline(always)]
    pub fn and(self, other: Mask8) -> Mask8 {
        Mask8(std::array::from_fn(|g| self.0[g] & other.0[g]))
    }

    #[inline(always)]
    pub fn not(self) -> Mask8 {
        Mask8(self.0.map(|m| !m))
    }

    /// `yes` where the mask is set, else `no`.
    #[inline(always)]
    pub fn pick(self, yes: F32x8, no: F32x8) -> F32x8 {
        F32x8(std::array::from_fn(|g| {
            f32::from_bits((yes.0[g].to_bits() & self.0[g]) | (no.0[g].to_bits() & !self.0[g]))
        }))
    }
}

impl Add for F32x8 {
    type Output = F32x8;
    #[inline(always)]
    fn add(self, other: F32x8) -> F32x8 {
        self.zip(other, |a, b| a + b)
    }
}

impl Sub for F32x8 {
    type Output = F32x8;
    #[inline(always)]
    fn sub(self, other: F32x8) -> F32x8 {
        self.zip(other, |a, b| a - b)
    }
}

impl Mul for F32x8 {
    type Output = F32x8;
    #[inline(always)]
    fn mul(self, other: F32x8) -> F32x8 {
        self.zip(other, |a, b| a * b)
    }
}

impl Div for F32x8 {
    type Output = F32x8;
    #[inline(always)]
    fn div(self, other: F32x8) -> F32x8 {
        self.zip(other, |a, b| a / b)
    }
}

impl Neg for F32x8 {
    type Output = F32x8;
    #[inline(always)]
    fn neg(self) -> F32x8 {
        self.map(|a| -a)
    }
}

/// The integer nearest to `v`, ties to even, for |v| < 2^22.
///
/// 1.5 * 2^23 has a unit in the last place of 1: adding it makes the f32 addition itself round,
/// and leaves the integer, offset by 2^22, in the low 23 bits. Beyond that range, and for NaN, the
/// result is some number within 2^22, the same one that ggml's reference takes.
#[inline(always)]
pub fn nearest(v: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    ((v + MAGIC).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_rounds_ties_to_even() {
        for (v, n) in
            [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (-2.5, -2), (126.51, 127)]
        {
            assert_eq!(nearest(v), n, "{v}");
        }
        assert_eq!(nearest(4_194_303.0), 4_194_303);
        assert_eq!(nearest(-4_194_303.0), -4_194_303);
    }

    #[test]
    fn nearest_of_anything_stays_in_range() {
        for v in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e9] {
            assert!(nearest(v).abs() <= 0x0040_0000, "{v}");
        }
    }

    #[test]
    fn masks_pick_by_lane() {
        let a = F32x8([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        let b = F32x8::splat(3.0);
        assert_eq!(a.gt(b).pick(a, b).0, [3.0, 3.0, 3.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(
            a.eq(b).not().and(b.gt(a)).pick(a, b).0,
            [0.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0]
        );
    }
}
