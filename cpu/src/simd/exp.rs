//! The exponential function of a vector.

use super::Vector;

/// e^x, at most 2 ulp off for normal results (`simd::tests::exp_is_within_two_ulp` holds it).
///
/// Below -104 the result is 0, above 89 infinite; subnormal results are rounded once more. -inf
/// gives exactly 0, NaN gives NaN.
///
/// 1. n = round(x / ln 2), r = x - n ln 2. ln 2 is split in two so that n times its upper part,
///    which has 9 bits, is exact.
/// 2. e^r = 1 + r + r^2 p(r) with |r| <= ln 2 / 2; p interpolates (e^r - 1 - r) / r^2 at the
///    Chebyshev points of degree 5, an error of 1e-8 in e^r.
/// 3. The result is scaled by 2^n.
#[inline(always)]
pub(crate) fn exp<V: Vector>(x: V) -> V {
    const LN2_HI: f32 = 0.691_406_25;
    const LN2_LO: f32 = 0.001_740_930_6;
    const P: [f32; 5] = [0.5, 0.166_665_77, 0.041_666_554, 0.008_363_203, 0.001_392_621_3];
    // A NaN in the second operand of `min` and `max` stays.
    let x = V::splat(89.0).min(V::splat(-105.0).max(x));
    let n = x.mul(V::splat(std::f32::consts::LOG2_E)).round();
    let r = n.mul_add(V::splat(-LN2_HI), x);
    let r = n.mul_add(V::splat(-LN2_LO), r);
    let mut p = V::splat(P[4]);
    for c in [P[3], P[2], P[1], P[0]] {
        p = p.mul_add(r, V::splat(c));
    }
    let tail = r.mul(r).mul_add(p, r);
    V::splat(1.0).add(tail).scale_pow2(n)
}
