//! The many-row kernel: two panels unpacked to bytes, then tiles of six rows of activations.

use super::codec::Codec;
use super::{add_scaled, begin, fold, quad, scaled};
use crate::qmatmul::acts::{BlockMeta, QActs};
use crate::qmatmul::fetch_ahead;
use crate::qmatmul::layout::{BLOCK, CODES, GROUPS, Layout, ROWS, VECTOR, id_of};
use crate::quant::BlockType;
use std::arch::asm;
use std::arch::x86_64::*;

/// Rows of activations of one tile of the many-row kernel: with two panels, 12 accumulators of
/// each kind leave room for the operands in 32 registers.
const TILE: usize = 6;

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
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.codes.capacity() + 4 * (self.scales.capacity() + self.mins.capacity())
    }

    /// Bytes of `n_blocks` blocks.
    pub const fn bytes_of(n_blocks: usize) -> usize {
        n_blocks * (2 * CODES + 2 * 4 * 4 * ROWS)
    }

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
fn fill<const B: u8>(scratch: &mut Scratch, panel: &[u8], which: usize, n_blocks: usize) {
    let layout = Codec::<B>::LAYOUT;
    assert!(panel.len() >= layout.panel_bytes(n_blocks) && which < 2);
    assert!(scratch.codes.len() >= n_blocks * 2 * CODES);
    assert!(
        scratch.scales.len() >= n_blocks * 4 * ROWS && scratch.mins.len() >= n_blocks * 4 * ROWS
    );
    for b in 0..n_blocks {
        // SAFETY: b < n_blocks: inside the panel and inside the scratch, by the assertions.
        unsafe {
            let p = panel.as_ptr();
            let at = layout.at(n_blocks, b);
            fetch_ahead(&layout, p, b);
            let w = Codec::<B>::codes(p.add(at.codes));
            let to = scratch.codes.as_mut_ptr().add((2 * b + which) * CODES);
            for (g, w) in w.into_iter().enumerate() {
                _mm512_storeu_si512(to.add(g * VECTOR).cast(), w);
            }
            let (scale, min) = Codec::<B>::scales(p.add(at.scales), p.add(at.header));
            let at = (2 * b + which) * 2 * ROWS;
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

/// Runs groups of six rows with the sums in registers that the compiler may not move: it would
/// otherwise load weights early and spill the accumulators of every block.
macro_rules! six_rows {
    ($sums:expr, $c:expr, $a:expr, $k:expr, [$($group:expr),* $(,)?]) => {{
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
            x = out(zmm_reg) _scratch,
            y = out(zmm_reg) _scratch,
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
            ]
        );
    }
}

/// Likewise for the four groups of half a block.
///
/// # Safety
/// As there, for half a block: `c` and `a` point to the first code of the half.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
#[inline]
unsafe fn six_rows_half_block(
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
            ]
        );
    }
}

/// One tile: `M` rows from `first` on, two panels, into `out[m * stride + 0..32]`.
///
/// # Safety
/// `out` points to room for the tile; `scratch` holds two panels of the activations' width.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<const HALVES: bool, const MINS: bool, const M: usize>(
    out: *mut f32,
    stride: usize,
    scratch: &Scratch,
    acts: &QActs,
    first: usize,
    shift: u32,
    columns: usize,
) {
    let n_blocks = acts.n_blocks();
    let k = n_blocks * BLOCK;
    let rows: [*const i8; M] = std::array::from_fn(|m| acts.codes(first + m).as_ptr());
    let metas: [*const BlockMeta; M] = std::array::from_fn(|m| acts.meta(first + m).as_ptr());
    let shift = _mm_cvtsi32_si128(shift as i32);
    let mut acc = [[_mm512_setzero_ps(); 2]; M];
    for b in 0..n_blocks {
        // SAFETY: b < n_blocks: inside the scratch (the caller's promise) and inside each row of
        // activations, which lie k apart; the features are enabled here.
        unsafe {
            let w = scratch.codes.as_ptr().add(2 * b * CODES);
            let load = |v: &Vec<f32>, p: usize, h: usize| {
                _mm512_loadu_ps(v.as_ptr().add((4 * b + 2 * p + h) * ROWS))
            };
            let both = |v: &Vec<f32>, p: usize| {
                let first = load(v, p, 0);
                [first, if HALVES { load(v, p, 1) } else { first }]
            };
            if HALVES {
                // The first half's part of a block waits, scaled, for the second's: both panels
                // go through a half together, because a group of two takes 8 loads for 12
                // products where the two halves of one panel take 14.
                let mut t = [[_mm512_setzero_ps(); 2]; M];
                // Written out: a loop over the halves would be kept, and its state with it in
                // memory.
                macro_rules! half {
                    ($h:literal) => {
                        let mut sums = [[_mm512_setzero_si512(); 2]; M];
                        for m in 0..M {
                            sums[m] = [begin::<HALVES, MINS>(&*metas[m].add(b), shift)[$h]; 2];
                        }
                        let w = w.add($h * CODES / 2);
                        let at = b * BLOCK + $h * BLOCK / 2;
                        if let Some(six) = as_six(&mut sums) {
                            six_rows_half_block(six, w, rows[0].add(at), k);
                        } else {
                            for g in 0..GROUPS / 2 {
                                for p in 0..2 {
                                    let v = w.add(p * CODES + g * VECTOR);
                                    let v = _mm512_loadu_si512(v.cast());
                                    for m in 0..M {
                                        let a = quad(rows[m].add(at + 4 * g));
                                        sums[m][p] = _mm512_dpbusd_epi32(sums[m][p], v, a);
                                    }
                                }
                            }
                        }
                        for p in 0..2 {
                            let scale = load(&scratch.scales, p, $h);
                            for m in 0..M {
                                t[m][p] = scaled(t[m][p], sums[m][p], scale, $h);
                            }
                        }
                    };
                }
                half!(0);
                half!(1);
                for p in 0..2 {
                    let mins = both(&scratch.mins, p);
                    for m in 0..M {
                        let meta = &*metas[m].add(b);
                        acc[m][p] = add_scaled::<HALVES, MINS>(acc[m][p], t[m][p], mins, meta);
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
    let masks = [columns.min(ROWS), columns.saturating_sub(ROWS)].map(|n| ((1u32 << n) - 1) as u16);
    for (m, acc) in acc.iter().enumerate() {
        for p in 0..2 {
            // SAFETY: the mask keeps the store inside the tile's columns, for which the caller
            // vouches.
            unsafe { _mm512_mask_storeu_ps(out.add(m * stride + p * ROWS), masks[p], acc[p]) };
        }
    }
}

/// Results of `m` rows of activations for the panels at `panels` (one or two), into
/// `out[row * stride + 0..columns]`.
///
/// # Safety
/// AVX-512 F, BW, VL, DQ and VNNI; `out` points to room for `m` rows of `columns` results,
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
    m: usize,
) {
    let n_blocks = acts.n_blocks();
    scratch.resize(n_blocks);
    for (which, panel) in panels.into_iter().enumerate() {
        let Some(panel) = panel else { continue };
        macro_rules! fill_as {
            ($($t:ident),*) => {
                match block {
                    $(BlockType::$t => {
                        const B: u8 = id_of(BlockType::$t);
                        // SAFETY: the caller vouches for the features.
                        unsafe { fill::<B>(scratch, panel, which, n_blocks) }
                    })*
                }
            };
        }
        fill_as!(Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K);
    }
    let layout = Layout::of(block);
    let shift = layout.offset_shift.unwrap_or(0);
    let mut first = 0;
    while first < m {
        let rows = (m - first).min(TILE);
        // SAFETY: rows first..first + rows are inside `out` by the caller's promise.
        let to = unsafe { out.add(first * stride) };
        macro_rules! by_rows {
            ($halves:expr, $mins:expr) => {
                // SAFETY: the scratch was filled above for this width; room in `out` and the
                // features are the caller's promise.
                unsafe {
                    match rows {
                        1 => tile::<$halves, $mins, 1>(
                            to, stride, scratch, acts, first, shift, columns,
                        ),
                        2 => tile::<$halves, $mins, 2>(
                            to, stride, scratch, acts, first, shift, columns,
                        ),
                        3 => tile::<$halves, $mins, 3>(
                            to, stride, scratch, acts, first, shift, columns,
                        ),
                        4 => tile::<$halves, $mins, 4>(
                            to, stride, scratch, acts, first, shift, columns,
                        ),
                        5 => tile::<$halves, $mins, 5>(
                            to, stride, scratch, acts, first, shift, columns,
                        ),
                        _ => tile::<$halves, $mins, 6>(
                            to, stride, scratch, acts, first, shift, columns,
                        ),
                    }
                }
            };
        }
        match (layout.half_scales, layout.offset_shift.is_none()) {
            (false, false) => by_rows!(false, false),
            (false, true) => by_rows!(false, true),
            (true, false) => by_rows!(true, false),
            (true, true) => by_rows!(true, true),
        }
        first += rows;
    }
}
