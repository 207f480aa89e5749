//! Activations rounded to int8 for integer dot products.
//!
//! For each 32 inputs: `d = max|x| / 127`, `q = nearest(x / d)`, ties to even; products with the
//! rounded values are exact in i32. A zero block has d = 0 and q = 0. Values that are not finite
//! give d = NaN, so that they stay visible in the result.

use super::layout::BLOCK;
use crate::isa::{Isa, Level};

/// What a block of 32 rounded activations needs besides its codes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(32))]
pub struct BlockMeta {
    /// Scale.
    pub d: f32,
    /// Scale times the sum of the codes of inputs 0..16, 16..32.
    pub d_sum: [f32; 2],
    /// Scale times the sum of all codes.
    pub d_sum_all: f32,
    /// Minus the sum of the codes of inputs 0..16, 16..32.
    pub neg_sum: [i32; 2],
    /// Minus the sum of all codes.
    pub neg_sum_all: i32,
    /// Fills the 32 bytes.
    pub unused: i32,
}

const _: () = assert!(size_of::<BlockMeta>() == 32);

/// Rounded activations of some rows, [m, k].
#[derive(Default)]
pub struct QActs {
    codes: Vec<i8>,
    meta: Vec<BlockMeta>,
    n_blocks: usize,
}

impl QActs {
    /// Makes room for `m` rows of `k` inputs (a multiple of 32); keeps what it has when that is
    /// enough, so a steady state allocates nothing.
    pub fn resize(&mut self, m: usize, k: usize) {
        assert!(k.is_multiple_of(BLOCK), "inputs {k} must be a multiple of {BLOCK}");
        self.n_blocks = k / BLOCK;
        if self.codes.len() < m * k {
            self.codes.resize(m * k, 0);
            self.meta.resize(m * self.n_blocks, BlockMeta::default());
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.capacity() + self.meta.capacity() * size_of::<BlockMeta>()
    }

    /// Bytes of `m` rows of `k` inputs.
    pub fn bytes_of(m: usize, k: usize) -> usize {
        m * k + m * k.div_ceil(BLOCK) * size_of::<BlockMeta>()
    }

    /// All codes and metas of the first `m` rows, for filling by row.
    pub fn rows_mut(&mut self, m: usize) -> (&mut [i8], &mut [BlockMeta]) {
        let n = m * self.n_blocks;
        (&mut self.codes[..n * BLOCK], &mut self.meta[..n])
    }

    /// Blocks of a row.
    pub fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    /// Codes of row `m`, `[k]`.
    #[inline(always)]
    pub fn codes(&self, m: usize) -> &[i8] {
        let k = self.n_blocks * BLOCK;
        &self.codes[m * k..(m + 1) * k]
    }

    /// Metas of row `m`, [k / 32].
    #[inline(always)]
    pub fn meta(&self, m: usize) -> &[BlockMeta] {
        &self.meta[m * self.n_blocks..(m + 1) * self.n_blocks]
    }
}

/// Rounds `x` (whole blocks) into `codes` and `meta`.
///
/// # Panics
/// When lengths do not fit together.
pub fn quantize(isa: Isa, codes: &mut [i8], meta: &mut [BlockMeta], x: &[f32]) {
    assert!(x.len() == meta.len() * BLOCK && x.len() == codes.len(), "quantize: lengths");
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an Isa of this level exists only where the features were detected.
        Level::Avx512 => unsafe { quantize_avx512(codes, meta, x) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: likewise.
        Level::Avx2 => unsafe { quantize_avx2(codes, meta, x) },
        _ => quantize_plain(codes, meta, x),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn quantize_avx512(codes: &mut [i8], meta: &mut [BlockMeta], x: &[f32]) {
    use std::arch::x86_64::*;
    for ((codes, meta), x) in
        codes.chunks_exact_mut(BLOCK).zip(meta.iter_mut()).zip(x.chunks_exact(BLOCK))
    {
        // SAFETY: chunks of 32 values: two vectors of sixteen lanes.
        let v = unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))] };
        // As integers, magnitudes keep their order, with infinity and NaN above all numbers.
        let magnitude = _mm512_max_epu32(
            _mm512_castps_si512(_mm512_abs_ps(v[0])),
            _mm512_castps_si512(_mm512_abs_ps(v[1])),
        );
        let max = f32::from_bits(_mm512_reduce_max_epu32(magnitude));
        let Some((d, inverse)) = scale_of(max, codes, meta) else { continue };
        let mut sums = [0; 2];
        for h in 0..2 {
            let q = _mm512_cvtps_epi32(_mm512_mul_ps(v[h], _mm512_set1_ps(inverse)));
            sums[h] = _mm512_reduce_add_epi32(q);
            // SAFETY: sixteen codes from 16 h on lie inside the chunk.
            unsafe {
                _mm_storeu_si128(codes.as_mut_ptr().add(16 * h).cast(), _mm512_cvtepi32_epi8(q));
            }
        }
        *meta = BlockMeta::new(d, sums);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn quantize_avx2(codes: &mut [i8], meta: &mut [BlockMeta], x: &[f32]) {
    quantize_plain(codes, meta, x);
}

/// The same code at every level: the compiler vectorises it for the features of its caller.
#[inline(always)]
fn quantize_plain(codes: &mut [i8], meta: &mut [BlockMeta], x: &[f32]) {
    /// Adding and subtracting 1.5 * 2^23 rounds to the nearest integer, ties to even, for
    /// magnitudes below 2^22: the f32 then has no fraction bits left.
    const ROUND: f32 = 12_582_912.0;
    for ((codes, meta), x) in
        codes.chunks_exact_mut(BLOCK).zip(meta.iter_mut()).zip(x.chunks_exact(BLOCK))
    {
        let mut lanes = [0.0f32; 16];
        for (j, lane) in lanes.iter_mut().enumerate() {
            let (a, b) = (x[j].abs(), x[j + 16].abs());
            // Not f32::max: a NaN must win, so that it shows in the result.
            *lane = if a >= b || a.is_nan() { a } else { b };
        }
        let mut width = 8;
        while width > 0 {
            for j in 0..width {
                let (a, b) = (lanes[j], lanes[j + width]);
                lanes[j] = if a >= b || a.is_nan() { a } else { b };
            }
            width /= 2;
        }
        let Some((d, inverse)) = scale_of(lanes[0], codes, meta) else { continue };
        let mut sums = [0i32; 2];
        for h in 0..2 {
            let mut sum = 0i32;
            for j in 16 * h..16 * h + 16 {
                let q = ((x[j] * inverse + ROUND) - ROUND) as i32;
                sum += q;
                codes[j] = q as i8;
            }
            sums[h] = sum;
        }
        *meta = BlockMeta::new(d, sums);
    }
}

impl BlockMeta {
    fn new(d: f32, sums: [i32; 2]) -> BlockMeta {
        let all = sums[0] + sums[1];
        BlockMeta {
            d,
            d_sum: [d * sums[0] as f32, d * sums[1] as f32],
            d_sum_all: d * all as f32,
            neg_sum: [-sums[0], -sums[1]],
            neg_sum_all: -all,
            unused: 0,
        }
    }
}

/// Scale of a block with this largest magnitude, and what to multiply by for the codes. For a
/// magnitude that is not finite the block is done: `None`.
#[inline(always)]
fn scale_of(max: f32, codes: &mut [i8], meta: &mut BlockMeta) -> Option<(f32, f32)> {
    if !max.is_finite() {
        codes.fill(0);
        *meta = BlockMeta {
            d: f32::NAN,
            d_sum: [f32::NAN; 2],
            d_sum_all: f32::NAN,
            ..BlockMeta::default()
        };
        return None;
    }
    // The reciprocal of a subnormal scale would overflow: such a block counts as zero.
    Some((max / 127.0, if max < 1e-35 { 0.0 } else { 127.0 / max }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_of_255_codes_at_every_level() {
        let mut x: Vec<f32> = (0..96).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.731).collect();
        x[32..64].fill(0.0);
        for isa in Isa::available() {
            let (mut codes, mut meta) = (vec![0i8; 96], vec![BlockMeta::default(); 3]);
            quantize(isa, &mut codes, &mut meta, &x);
            for (b, m) in meta.iter().enumerate() {
                let max = x[32 * b..32 * b + 32].iter().fold(0.0f32, |a, v| a.max(v.abs()));
                assert_eq!(m.d, max / 127.0);
                let mut sums = [0i32; 2];
                for j in 0..32 {
                    let (v, q) = (x[32 * b + j], codes[32 * b + j]);
                    // Half a step, plus the rounding of the product with the reciprocal.
                    assert!((v - q as f32 * m.d).abs() <= m.d * 0.50001, "{isa} {v} {q}");
                    sums[j / 16] += q as i32;
                }
                assert_eq!(m.neg_sum, [-sums[0], -sums[1]]);
                assert_eq!(m.neg_sum_all, -sums[0] - sums[1]);
                assert_eq!(m.d_sum_all, m.d * (sums[0] + sums[1]) as f32);
            }
        }
    }

    #[test]
    fn a_nan_or_infinity_stays_visible() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 31] {
                let mut x = vec![1.0f32; 32];
                x[at] = bad;
                let (mut codes, mut meta) = (vec![1i8; 32], vec![BlockMeta::default(); 1]);
                quantize(Isa::best(), &mut codes, &mut meta, &x);
                assert!(meta[0].d.is_nan(), "{bad} at {at}");
            }
        }
    }
}
