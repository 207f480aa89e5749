//! The many-row kernel: two panels unpacked to bytes, then tiles of six rows of activations.
//!
//! ```text
//! for part of the inputs, for part of the rows      whose activations stay in the second level
//!   for pair of panels                              unpacked once
//!     for smaller part of the inputs                whose codes stay in the first level
//!       for tile of six rows                        sums in registers, results kept in `out`
//! ```

use super::codec::{Codec, id_of};
use super::{begin, fetch_ahead, fold, quad};
use crate::qmatmul::acts::{BlockMeta, QActs};
use crate::qmatmul::layout::{BLOCK, CODES, GROUPS, Layout, ROWS, VECTOR};
use crate::quant::BlockType;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of activations of one tile of the many-row kernel: with two panels, 12 accumulators of
/// each kind leave room for the operands in 32 registers.
const TILE: usize = 6;
/// Blocks of inputs at most whose codes of two panels stay in the first-level cache: 1.5 KiB each.
const NEAR_BLOCKS: usize = 16;
/// Blocks of inputs at most that are unpacked at once.
const FAR_BLOCKS: usize = 64;
/// Bytes of activations, codes and metas, that stay in the second-level cache beside them.
const ACTS_BYTES: usize = 768 << 10;

/// `range` in equal parts of at most `most`.
fn parts(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let n_parts = range.len().div_ceil(most).max(1);
    let step = range.len().div_ceil(n_parts).max(1);
    range.clone().step_by(step).map(move |from| from..(from + step).min(range.end))
}

/// The parts of a product that its caller goes through, outermost first: blocks of inputs, and rows
/// of activations.
pub fn cut(n_blocks: usize, m: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    parts(0..n_blocks, FAR_BLOCKS).flat_map(move |blocks| {
        let rows = ACTS_BYTES / (blocks.len() * (BLOCK + size_of::<BlockMeta>()));
        let rows = (rows / TILE).max(1) * TILE;
        (0..m).step_by(rows).map(move |from| (blocks.clone(), from..(from + rows).min(m)))
    })
}

/// The sums of a whole tile, which the six-row kernels take.
#[inline(always)]
fn as_six<const M: usize>(sums: &mut [[__m512i; 2]; M]) -> Option<&mut [[__m512i; 2]; TILE]> {
    sums.as_mut_slice().try_into().ok()
}

/// Two panels unpacked: for each block, codes [panel 2][group 8][row 16][input 4] and scales
/// [panel 2][half 2][row 16], minima likewise.
#[derive(Default)]
pub struct Scratch {
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
}

impl Scratch {
    /// Makes room for `n_blocks` blocks; allocates only when it grows.
    pub fn resize(&mut self, n_blocks: usize) {
        if self.codes.len() < n_blocks * 2 * CODES {
            self.codes.resize(n_blocks * 2 * CODES, 0);
            self.scales.resize(n_blocks * 4 * ROWS, 0.0);
            self.mins.resize(n_blocks * 4 * ROWS, 0.0);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
fn fill<const B: u8>(
    scratch: &mut Scratch,
    panel: &[u8],
    which: usize,
    n_blocks: usize,
    blocks: Range<usize>,
) {
    let layout = Codec::<B>::LAYOUT;
    let n = blocks.len();
    assert!(panel.len() >= layout.panel_bytes(n_blocks) && which < 2 && blocks.end <= n_blocks);
    assert!(scratch.codes.len() >= n * 2 * CODES);
    assert!(scratch.scales.len() >= n * 4 * ROWS && scratch.mins.len() >= n * 4 * ROWS);
    for (i, b) in blocks.enumerate() {
        // SAFETY: b < n_blocks, so inside the panel; i < n, so inside the scratch.
        unsafe {
            let p = panel.as_ptr();
            let at = layout.at(n_blocks, b);
            fetch_ahead::<B>(p.add(at.codes));
            let w = Codec::<B>::codes(p.add(at.codes));
            let to = scratch.codes.as_mut_ptr().add((2 * i + which) * CODES);
            for (g, w) in w.into_iter().enumerate() {
                _mm512_storeu_si512(to.add(g * VECTOR).cast(), w);
            }
            let (scale, min) = Codec::<B>::scales(p.add(at.scales), p.add(at.header));
            let at = (2 * i + which) * 2 * ROWS;
            for h in 0..2 {
                _mm512_storeu_ps(scratch.scales.as_mut_ptr().add(at + h * ROWS), scale[h]);
                _mm512_storeu_ps(scratch.mins.as_mut_ptr().add(at + h * ROWS), min[h]);
            }
        }
    }
}

/// One group for two panels: six rows of activations at `a`, `a + k`, ..., `b = a + 3k`, ...
macro_rules! group_of_two_panels {
    ($w:literal, $x:literal) => {
        concat!(
            "vmovdqu64 {w0}, zmmword ptr [{c} + ",
            $w,
            "]\n",
            "vmovdqu64 {w1}, zmmword ptr [{c} + 512 + ",
            $w,
            "]\n",
            "vpbroadcastd {x}, dword ptr [{a} + ",
            $x,
            "]\n",
            "vpdpbusd {s00}, {w0}, {x}\n",
            "vpdpbusd {s01}, {w1}, {x}\n",
            "vpbroadcastd {y}, dword ptr [{a} + {k} + ",
            $x,
            "]\n",
            "vpdpbusd {s10}, {w0}, {y}\n",
            "vpdpbusd {s11}, {w1}, {y}\n",
            "vpbroadcastd {x}, dword ptr [{a} + 2 * {k} + ",
            $x,
            "]\n",
            "vpdpbusd {s20}, {w0}, {x}\n",
            "vpdpbusd {s21}, {w1}, {x}\n",
            "vpbroadcastd {y}, dword ptr [{b} + ",
            $x,
            "]\n",
            "vpdpbusd {s30}, {w0}, {y}\n",
            "vpdpbusd {s31}, {w1}, {y}\n",
            "vpbroadcastd {x}, dword ptr [{b} + {k} + ",
            $x,
            "]\n",
            "vpdpbusd {s40}, {w0}, {x}\n",
            "vpdpbusd {s41}, {w1}, {x}\n",
            "vpbroadcastd {y}, dword ptr [{b} + 2 * {k} + ",
            $x,
            "]\n",
            "vpdpbusd {s50}, {w0}, {y}\n",
            "vpdpbusd {s51}, {w1}, {y}\n",
        )
    };
}

/// One group of each half of a block, one panel: the halves' sums apart.
macro_rules! group_of_two_halves {
    ($w:literal, $x:literal) => {
        concat!(
            "vmovdqu64 {w0}, zmmword ptr [{c} + ",
            $w,
            "]\n",
            "vmovdqu64 {w1}, zmmword ptr [{c} + 256 + ",
            $w,
            "]\n",
            "vpdpbusd {s00}, {w0}, dword ptr [{a} + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s01}, {w1}, dword ptr [{a} + 16 + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s10}, {w0}, dword ptr [{a} + {k} + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s11}, {w1}, dword ptr [{a} + {k} + 16 + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s20}, {w0}, dword ptr [{a} + 2 * {k} + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s21}, {w1}, dword ptr [{a} + 2 * {k} + 16 + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s30}, {w0}, dword ptr [{b} + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s31}, {w1}, dword ptr [{b} + 16 + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s40}, {w0}, dword ptr [{b} + {k} + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s41}, {w1}, dword ptr [{b} + {k} + 16 + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s50}, {w0}, dword ptr [{b} + 2 * {k} + ",
            $x,
            "]{{1to16}}\n",
            "vpdpbusd {s51}, {w1}, dword ptr [{b} + 2 * {k} + 16 + ",
            $x,
            "]{{1to16}}\n",
        )
    };
}

/// Runs groups of six rows with the sums in registers that the compiler may not move: it would
/// otherwise load weights early and spill the accumulators of every block.
macro_rules! six_rows {
    ($sums:expr, $c:expr, $a:expr, $k:expr, [$($group:expr),* $(,)?] $(, $y:ident)?) => {{
        let [[s00, s01], [s10, s11], [s20, s21], [s30, s31], [s40, s41], [s50, s51]] = $sums;
        // Scratch registers need a type to get a vector's name.
        let mut _scratch: __m512i;
        asm!(
            $($group,)*
            c = in(reg) $c,
            a = in(reg) $a,
            b = in(reg) $a.add(3 * $k),
            k = in(reg) $k,
            w0 = out(zmm_reg) _scratch,
            w1 = out(zmm_reg) _scratch,
            $(x = out(zmm_reg) _scratch, $y = out(zmm_reg) _scratch,)?
            s00 = inout(zmm_reg) *s00, s01 = inout(zmm_reg) *s01,
            s10 = inout(zmm_reg) *s10, s11 = inout(zmm_reg) *s11,
            s20 = inout(zmm_reg) *s20, s21 = inout(zmm_reg) *s21,
            s30 = inout(zmm_reg) *s30, s31 = inout(zmm_reg) *s31,
            s40 = inout(zmm_reg) *s40, s41 = inout(zmm_reg) *s41,
            s50 = inout(zmm_reg) *s50, s51 = inout(zmm_reg) *s51,
            options(nostack, readonly, preserves_flags),
        );
    }};
}

/// Adds a block's products of six rows of activations (`k` apart, first at `a`) to `sums`
/// [row][panel], codes of the two panels 512 bytes apart.
///
/// # Safety
/// AVX-512 F and VNNI; `c` holds the codes of two panels, each row the codes of a block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
unsafe fn six_rows_two_panels(
    sums: &mut [[__m512i; 2]; TILE],
    c: *const u8,
    a: *const i8,
    k: usize,
) {
    // SAFETY: by this function's contract; only memory that it names is read.
    unsafe {
        six_rows!(
            sums,
            c,
            a,
            k,
            [
                group_of_two_panels!("0", "0"),
                group_of_two_panels!("64", "4"),
                group_of_two_panels!("128", "8"),
                group_of_two_panels!("192", "12"),
                group_of_two_panels!("256", "16"),
                group_of_two_panels!("320", "20"),
                group_of_two_panels!("384", "24"),
                group_of_two_panels!("448", "28"),
            ],
            y
        );
    }
}

/// Likewise for one panel, `sums` being [row][half of the block].
///
/// # Safety
/// As there, for one panel.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
unsafe fn six_rows_two_halves(
    sums: &mut [[__m512i; 2]; TILE],
    c: *const u8,
    a: *const i8,
    k: usize,
) {
    // SAFETY: by this function's contract; only memory that it names is read.
    unsafe {
        six_rows!(
            sums,
            c,
            a,
            k,
            [
                group_of_two_halves!("0", "0"),
                group_of_two_halves!("64", "4"),
                group_of_two_halves!("128", "8"),
                group_of_two_halves!("192", "12"),
            ]
        );
    }
}

/// One tile: `M` rows from `first` on, two panels, the inputs of `blocks`, into
/// `out[m * stride + 0..32]`; sums of earlier blocks are taken from there.
///
/// # Safety
/// `out` points to room for the tile; `scratch` holds blocks `filled` of two panels, among them
/// `blocks`, which are blocks of the activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[allow(clippy::too_many_arguments, reason = "a tile's address in four tables")]
unsafe fn tile<const HALVES: bool, const MINS: bool, const M: usize>(
    out: *mut f32,
    stride: usize,
    scratch: &Scratch,
    acts: &QActs,
    first: usize,
    shift: u32,
    columns: usize,
    filled: usize,
    blocks: Range<usize>,
) {
    let k = acts.n_blocks() * BLOCK;
    let rows: [*const i8; M] = std::array::from_fn(|m| acts.codes(first + m).as_ptr());
    let metas: [*const BlockMeta; M] = std::array::from_fn(|m| acts.meta(first + m).as_ptr());
    let shift = _mm_cvtsi32_si128(shift as i32);
    let masks = [columns.min(ROWS), columns.saturating_sub(ROWS)].map(|n| ((1u32 << n) - 1) as u16);
    let mut acc = [[_mm512_setzero_ps(); 2]; M];
    if blocks.start > 0 {
        for (m, acc) in acc.iter_mut().enumerate() {
            for p in 0..2 {
                // SAFETY: the mask keeps the load inside the tile's columns, for which the caller
                // vouches.
                acc[p] = unsafe {
                    _mm512_maskz_loadu_ps(masks[p], out.wrapping_add(m * stride + p * ROWS))
                };
            }
        }
    }
    for b in blocks {
        // SAFETY: block b is in the scratch and in each row of activations (the caller's promise),
        // which lie k apart; the features are enabled here.
        unsafe {
            let i = b - filled;
            let w = scratch.codes.as_ptr().add(2 * i * CODES);
            let load = |v: &Vec<f32>, p: usize, h: usize| {
                _mm512_loadu_ps(v.as_ptr().add((4 * i + 2 * p + h) * ROWS))
            };
            let both = |v: &Vec<f32>, p: usize| {
                let first = load(v, p, 0);
                [first, if HALVES { load(v, p, 1) } else { first }]
            };
            if HALVES {
                for p in 0..2 {
                    let mut sums = [[_mm512_setzero_si512(); 2]; M];
                    for m in 0..M {
                        sums[m] = begin::<HALVES, MINS>(&*metas[m].add(b), shift);
                    }
                    let w = w.add(p * CODES);
                    if let Some(six) = as_six(&mut sums) {
                        six_rows_two_halves(six, w, rows[0].add(b * BLOCK), k);
                    } else {
                        for g in 0..GROUPS {
                            let v = _mm512_loadu_si512(w.add(g * VECTOR).cast());
                            for m in 0..M {
                                let a = quad(rows[m].add(b * BLOCK + 4 * g));
                                let sum = &mut sums[m][g / 4];
                                *sum = _mm512_dpbusd_epi32(*sum, v, a);
                            }
                        }
                    }
                    let (scale, min) = (both(&scratch.scales, p), both(&scratch.mins, p));
                    for m in 0..M {
                        let meta = &*metas[m].add(b);
                        acc[m][p] = fold::<HALVES, MINS>(acc[m][p], sums[m], scale, min, meta);
                    }
                }
            } else {
                let mut sums = [[_mm512_setzero_si512(); 2]; M];
                for m in 0..M {
                    sums[m] = begin::<HALVES, MINS>(&*metas[m].add(b), shift);
                }
                if let Some(six) = as_six(&mut sums) {
                    six_rows_two_panels(six, w, rows[0].add(b * BLOCK), k);
                } else {
                    for g in 0..GROUPS {
                        for p in 0..2 {
                            let v = _mm512_loadu_si512(w.add(p * CODES + g * VECTOR).cast());
                            for m in 0..M {
                                let a = quad(rows[m].add(b * BLOCK + 4 * g));
                                sums[m][p] = _mm512_dpbusd_epi32(sums[m][p], v, a);
                            }
                        }
                    }
                }
                for p in 0..2 {
                    let (scale, min) = (both(&scratch.scales, p), both(&scratch.mins, p));
                    for m in 0..M {
                        let meta = &*metas[m].add(b);
                        let sums = [sums[m][p]; 2];
                        acc[m][p] = fold::<HALVES, MINS>(acc[m][p], sums, scale, min, meta);
                    }
                }
            }
        }
    }
    for (m, acc) in acc.iter().enumerate() {
        for p in 0..2 {
            // SAFETY: the mask keeps the store inside the tile's columns, for which the caller
            // vouches.
            unsafe {
                _mm512_mask_storeu_ps(out.wrapping_add(m * stride + p * ROWS), masks[p], acc[p]);
            }
        }
    }
}

/// One part of [`cut`] for the panels at `panels` (one or two): what the inputs of `blocks` add to
/// the results of `rows` of the activations, into `out[row * stride + 0..columns]`. Parts of the
/// inputs come in order; the first overwrites.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ and VNNI; `out` points to room for `rows.end` rows of `columns` results,
/// `stride` apart, that nobody else uses now; `columns` is at most 16 per panel.
#[allow(clippy::too_many_arguments)] // the address of a tile, which no struct would explain better
pub unsafe fn panels_many(
    block: BlockType,
    out: *mut f32,
    stride: usize,
    columns: usize,
    panels: [Option<&[u8]>; 2],
    scratch: &mut Scratch,
    acts: &QActs,
    blocks: Range<usize>,
    rows: Range<usize>,
) {
    let n_blocks = acts.n_blocks();
    assert!(blocks.end <= n_blocks, "blocks {blocks:?} of {n_blocks}");
    scratch.resize(blocks.len());
    for (which, panel) in panels.into_iter().enumerate() {
        let Some(panel) = panel else { continue };
        macro_rules! fill_as {
            ($($t:ident),*) => {
                match block {
                    $(BlockType::$t => {
                        const B: u8 = id_of(BlockType::$t);
                        // SAFETY: the caller vouches for the features.
                        unsafe { fill::<B>(scratch, panel, which, n_blocks, blocks.clone()) }
                    })*
                }
            };
        }
        fill_as!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K);
    }
    let layout = Layout::of(block);
    let shift = layout.offset_shift.unwrap_or(0);
    let filled = blocks.start;
    let firsts = || rows.clone().step_by(TILE);
    for (near, first) in parts(blocks, NEAR_BLOCKS).flat_map(|b| firsts().map(move |f| (b.clone(), f)))
    {
        let to = out.wrapping_add(first * stride);
        macro_rules! tile_as {
            ($halves:expr, $mins:expr, $m:expr) => {
                // SAFETY: the scratch was filled above with these blocks; room in `out` for rows
                // first and following, and the features, are the caller's promise.
                unsafe {
                    tile::<$halves, $mins, $m>(
                        to, stride, scratch, acts, first, shift, columns, filled, near,
                    )
                }
            };
        }
        macro_rules! by_rows {
            ($halves:expr, $mins:expr) => {
                match (rows.end - first).min(TILE) {
                    1 => tile_as!($halves, $mins, 1),
                    2 => tile_as!($halves, $mins, 2),
                    3 => tile_as!($halves, $mins, 3),
                    4 => tile_as!($halves, $mins, 4),
                    5 => tile_as!($halves, $mins, 5),
                    _ => tile_as!($halves, $mins, 6),
                }
            };
        }
        match (layout.half_scales, layout.offset_shift.is_none()) {
            (false, false) => by_rows!(false, false),
            (false, true) => by_rows!(false, true),
            (true, false) => by_rows!(true, false),
            (true, true) => by_rows!(true, true),
        }
    }
}
