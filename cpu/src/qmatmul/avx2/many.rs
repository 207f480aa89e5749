//! The many-row kernel: a panel unpacked to bytes, then tiles of four rows of activations.

use super::codec::{Codec, LANES};
use super::{begin, fold, groups_at_once};
use crate::qmatmul::acts::{BlockMeta, QActs};
use crate::qmatmul::fetch_ahead;
use crate::qmatmul::layout::{BLOCK, GROUPS, ROWS, VECTOR, id_of};
use crate::qmatmul::unpack::Unpacked;
use crate::quant::BlockType;
use std::arch::asm;
use std::arch::x86_64::*;

/// Rows of activations of one tile: with sixteen rows of weights, eight accumulators leave room
/// for the operands in sixteen registers.
const TILE: usize = 4;

/// Unpacks a panel; 8-bit codes become signed.
#[target_feature(enable = "avx2,fma,f16c")]
fn fill<const B: u8>(blocks: &mut [Unpacked], panel: &[u8]) {
    let (layout, n_blocks) = (Codec::<B>::LAYOUT, blocks.len());
    assert!(panel.len() >= layout.panel_bytes(n_blocks));
    for (b, to) in blocks.iter_mut().enumerate() {
        // SAFETY: b is a block of the panel, by the assertion; stores stay inside `to`'s arrays.
        unsafe {
            let p = panel.as_ptr();
            let at = layout.at(n_blocks, b);
            fetch_ahead(&layout, p, b);
            for v in 0..2 {
                let w = Codec::<B>::codes(p.add(at.codes), v);
                for (g, mut w) in w.into_iter().enumerate() {
                    if groups_at_once(Codec::<B>::BLOCK_TYPE) == 0 {
                        w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
                    }
                    let to = to.codes.as_mut_ptr().add(g * VECTOR + v * VECTOR / 2);
                    _mm256_storeu_si256(to.cast(), w);
                }
                let (scale, min) = Codec::<B>::scales(p.add(at.scales), p.add(at.header), v);
                for h in 0..2 {
                    _mm256_storeu_ps(to.scales[h].as_mut_ptr().add(v * LANES), scale[h]);
                    _mm256_storeu_ps(to.mins[h].as_mut_ptr().add(v * LANES), min[h]);
                }
            }
        }
    }
}

/// One group for sixteen rows of weights: four rows of activations at `a`, `a + k`, `a + 2k`,
/// `a + 3k` = `b`. Products are added to i16 sums.
macro_rules! group {
    ($w:literal, $x:literal) => {
        concat!(
            group!(@codes $w),
            group!(@row "{a} + ", $x, "{s00}", "{s01}"),
            group!(@row "{a} + {k} + ", $x, "{s10}", "{s11}"),
            group!(@row "{a} + 2 * {k} + ", $x, "{s20}", "{s21}"),
            group!(@row "{b} + ", $x, "{s30}", "{s31}"),
        )
    };
    (@codes $w:literal) => {
        concat!(
            "vmovdqu {w0}, ymmword ptr [{c} + ", $w, "]\n",
            "vmovdqu {w1}, ymmword ptr [{c} + 32 + ", $w, "]\n",
        )
    };
    (@row $row:literal, $x:literal, $s0:literal, $s1:literal) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [", $row, $x, "]\n",
            "vpmaddubsw {t}, {w0}, {x}\n",
            "vpmaddubsw {x}, {w1}, {x}\n",
            "vpaddw ", $s0, ", ", $s0, ", {t}\n",
            "vpaddw ", $s1, ", ", $s1, ", {x}\n",
        )
    };
}

/// Likewise for signed 8-bit codes: the sign of a weight moves to the activation, and each
/// group's products are widened to the i32 sums.
macro_rules! signed_group {
    ($w:literal, $x:literal) => {
        concat!(
            group!(@codes $w),
            "vpabsb {u0}, {w0}\n",
            "vpabsb {u1}, {w1}\n",
            signed_group!(@row "{a} + ", $x, "{s00}", "{s01}"),
            signed_group!(@row "{a} + {k} + ", $x, "{s10}", "{s11}"),
            signed_group!(@row "{a} + 2 * {k} + ", $x, "{s20}", "{s21}"),
            signed_group!(@row "{b} + ", $x, "{s30}", "{s31}"),
        )
    };
    (@row $row:literal, $x:literal, $s0:literal, $s1:literal) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [", $row, $x, "]\n",
            "vpsignb {t}, {x}, {w0}\n",
            "vpsignb {x}, {x}, {w1}\n",
            "vpmaddubsw {t}, {u0}, {t}\n",
            "vpmaddubsw {x}, {u1}, {x}\n",
            "vpmaddwd {t}, {t}, {ones}\n",
            "vpmaddwd {x}, {x}, {ones}\n",
            "vpaddd ", $s0, ", ", $s0, ", {t}\n",
            "vpaddd ", $s1, ", ", $s1, ", {x}\n",
        )
    };
}

/// Runs groups of four rows with the sums in registers that the compiler may not move: it would
/// otherwise spill them at every group.
macro_rules! four_rows {
    ($sums:expr, $c:expr, $a:expr, $k:expr, [$($group:expr),* $(,)?] $(, $u0:ident $u1:ident $ones:expr)?) => {{
        let [[s00, s01], [s10, s11], [s20, s21], [s30, s31]] = $sums;
        // Scratch registers need a type to get a vector's name.
        let mut _scratch: __m256i;
        asm!(
            $($group,)*
            c = in(reg) $c,
            a = in(reg) $a,
            b = in(reg) $a.add(3 * $k),
            k = in(reg) $k,
            w0 = out(ymm_reg) _scratch,
            w1 = out(ymm_reg) _scratch,
            x = out(ymm_reg) _scratch,
            t = out(ymm_reg) _scratch,
            $($u0 = out(ymm_reg) _scratch, $u1 = out(ymm_reg) _scratch, ones = in(ymm_reg) $ones,)?
            s00 = inout(ymm_reg) *s00, s01 = inout(ymm_reg) *s01,
            s10 = inout(ymm_reg) *s10, s11 = inout(ymm_reg) *s11,
            s20 = inout(ymm_reg) *s20, s21 = inout(ymm_reg) *s21,
            s30 = inout(ymm_reg) *s30, s31 = inout(ymm_reg) *s31,
            options(nostack, readonly, preserves_flags),
        );
    }};
}

/// Adds the products of `groups` (2, 4 or 8) groups of a block to i16 `sums` [row][eight rows of
/// weights]; of a whole block of signed codes (`groups` 0) to i32 `sums`. Codes of a group are 64
/// bytes apart from `c` on, rows of activations `k` from `a` on.
///
/// # Safety
/// AVX2; `c` and the rows hold that many groups.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn add_groups(
    sums: &mut [[__m256i; 2]; TILE],
    groups: usize,
    c: *const u8,
    a: *const i8,
    k: usize,
) {
    // SAFETY: by this function's contract; only memory that it names is read.
    unsafe {
        match groups {
            2 => four_rows!(sums, c, a, k, [group!("0", "0"), group!("64", "4")]),
            4 => four_rows!(
                sums,
                c,
                a,
                k,
                [group!("0", "0"), group!("64", "4"), group!("128", "8"), group!("192", "12")]
            ),
            8 => four_rows!(
                sums,
                c,
                a,
                k,
                [
                    group!("0", "0"),
                    group!("64", "4"),
                    group!("128", "8"),
                    group!("192", "12"),
                    group!("256", "16"),
                    group!("320", "20"),
                    group!("384", "24"),
                    group!("448", "28"),
                ]
            ),
            _ => four_rows!(
                sums,
                c,
                a,
                k,
                [
                    signed_group!("0", "0"),
                    signed_group!("64", "4"),
                    signed_group!("128", "8"),
                    signed_group!("192", "12"),
                    signed_group!("256", "16"),
                    signed_group!("320", "20"),
                    signed_group!("384", "24"),
                    signed_group!("448", "28"),
                ],
                u0 u1 _mm256_set1_epi16(1)
            ),
        }
    }
}

/// The sums of a whole tile, which the four-row kernels take.
#[inline(always)]
fn as_four<const M: usize>(sums: &mut [[__m256i; 2]; M]) -> Option<&mut [[__m256i; 2]; TILE]> {
    sums.as_mut_slice().try_into().ok()
}

/// Integer sums [row][eight rows of weights] over `n` groups of a block, `k` being the distance of
/// rows of activations.
///
/// # Safety
/// AVX2; `c` points to the codes of the first group, each of `rows` to its activations.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn tile_sums<const B: u8, const M: usize>(
    c: *const u8,
    rows: [*const i8; M],
    k: usize,
    n: usize,
) -> [[__m256i; 2]; M] {
    // SAFETY: groups are below `n`, so loads stay inside what the caller vouches for.
    unsafe {
        let zero = [[_mm256_setzero_si256(); 2]; M];
        let ones = _mm256_set1_epi16(1);
        let run = groups_at_once(Codec::<B>::BLOCK_TYPE).min(n);
        let mut sums = zero;
        if let Some(four) = as_four(&mut sums)
            && run == 0
        {
            add_groups(four, 0, c, rows[0], k);
            return sums;
        }
        let mut g = 0;
        while g < n {
            let mut pending = zero;
            if let Some(four) = as_four(&mut pending) {
                add_groups(four, run, c.add(g * VECTOR), rows[0].add(4 * g), k);
            } else {
                for i in g..g + run.max(1) {
                    for v in 0..2 {
                        let w = c.add(i * VECTOR + v * VECTOR / 2);
                        let w = _mm256_loadu_si256(w.cast());
                        for m in 0..M {
                            let x = rows[m].add(4 * i).cast::<i32>().read_unaligned();
                            let x = _mm256_set1_epi32(x);
                            let pairs = if run == 0 {
                                _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                            } else {
                                _mm256_maddubs_epi16(w, x)
                            };
                            pending[m][v] = _mm256_add_epi16(pending[m][v], pairs);
                        }
                    }
                }
            }
            for m in 0..M {
                for v in 0..2 {
                    let quads = _mm256_madd_epi16(pending[m][v], ones);
                    sums[m][v] = if g == 0 { quads } else { _mm256_add_epi32(sums[m][v], quads) };
                }
            }
            g += run.max(1);
        }
        sums
    }
}

/// One tile: `M` rows from `first` on, into `out[m * stride + 0..columns]`.
///
/// # Safety
/// `out` points to room for the tile.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const B: u8, const M: usize>(
    out: *mut f32,
    stride: usize,
    columns: usize,
    blocks: &[Unpacked],
    acts: &QActs,
    first: usize,
) {
    assert!(blocks.len() == acts.n_blocks() && columns <= ROWS);
    let rows: [*const i8; M] = std::array::from_fn(|m| acts.codes(first + m).as_ptr());
    let metas: [*const BlockMeta; M] = std::array::from_fn(|m| acts.meta(first + m).as_ptr());
    let halves = Codec::<B>::LAYOUT.half_scales;
    let k = acts.n_blocks() * BLOCK;
    let mut acc = [[_mm256_setzero_ps(); 2]; M];
    for (b, block) in blocks.iter().enumerate() {
        // SAFETY: b is a block of each row of activations, by the assertion; eight lanes from 0
        // or 8 on lie inside the sixteen; the features are enabled here.
        unsafe {
            let mut at = rows;
            for row in &mut at {
                *row = row.add(b * BLOCK);
            }
            let c = block.codes.as_ptr();
            let n = if halves { GROUPS / 2 } else { GROUPS };
            let s0 = tile_sums::<B, M>(c, at, k, n);
            let s1 = if halves {
                for row in &mut at {
                    *row = row.add(BLOCK / 2);
                }
                tile_sums::<B, M>(c.add(n * VECTOR), at, k, n)
            } else {
                s0
            };
            for v in 0..2 {
                let lanes = |x: &[[f32; ROWS]; 2]| {
                    let load = |h: usize| _mm256_loadu_ps(x[h].as_ptr().add(v * LANES));
                    [load(0), load(1)]
                };
                let (scale, min) = (lanes(&block.scales), lanes(&block.mins));
                for m in 0..M {
                    let meta = &*metas[m].add(b);
                    let sums = begin::<B>([s0[m][v], s1[m][v]], meta);
                    acc[m][v] = fold::<B>(acc[m][v], sums, scale, min, meta);
                }
            }
        }
    }
    for (m, acc) in acc.iter().enumerate() {
        let mut row = [0.0f32; ROWS];
        // SAFETY: `row` is twice eight lanes; the tile's columns are the caller's promise.
        unsafe {
            _mm256_storeu_ps(row.as_mut_ptr(), acc[0]);
            _mm256_storeu_ps(row.as_mut_ptr().add(LANES), acc[1]);
            out.add(m * stride).copy_from_nonoverlapping(row.as_ptr(), columns);
        }
    }
}

/// Results of `m` rows of activations for one panel, into `out[row * stride + 0..columns]`.
/// `blocks` is room for the panel, unpacked.
///
/// # Safety
/// AVX2, FMA and F16C; `out` points to room for `m` rows of `columns` results, at most 16,
/// `stride` apart, that nobody else uses now.
#[allow(clippy::too_many_arguments)] // the address of a tile, which no struct would explain better
pub unsafe fn panel_many(
    block: BlockType,
    out: *mut f32,
    stride: usize,
    columns: usize,
    panel: &[u8],
    blocks: &mut [Unpacked],
    acts: &QActs,
    m: usize,
) {
    macro_rules! by_type {
        ($($t:ident),*) => {
            match block {
                $(BlockType::$t => {
                    const B: u8 = id_of(BlockType::$t);
                    // SAFETY: features and room are the caller's promise; rows first.. of m.
                    unsafe {
                        fill::<B>(blocks, panel);
                        for first in (0..m).step_by(TILE) {
                            let to = out.add(first * stride);
                            match m - first {
                                1 => tile::<B, 1>(to, stride, columns, blocks, acts, first),
                                2 => tile::<B, 2>(to, stride, columns, blocks, acts, first),
                                3 => tile::<B, 3>(to, stride, columns, blocks, acts, first),
                                _ => tile::<B, 4>(to, stride, columns, blocks, acts, first),
                            }
                        }
                    }
                })*
            }
        };
    }
    by_type!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K);
}
