//! BF16 products of many rows with AVX-512 BF16: both factors are packed, so that a register tile
//! reads two streams from end to end.
//!
//! Rows as they lie in a file are often a multiple of 4 KiB apart; the lines of a tile then fall into
//! the same few sets of the first-level cache and push each other out. Packed, activations are
//! `[m / 6, k / 32, 6, 32]` and the weights of one chunk `[n / 4, len / 32, 4, 32]`, with zeros beyond
//! the ends. Each result is the sum that `matmul` describes: the bits of the unpacked kernels.

use super::{DenseMatrix, DenseScratch, K_CHUNK, ROW_BLOCK};
use crate::buffer::Buffer;
use crate::team::SharedMut;
use half::bf16;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Output features of a tile.
const N: usize = 4;
/// Activation rows of a tile: 24 accumulators leave room for the operands in 32 registers.
pub(super) const M: usize = 6;
/// Inputs of a step: a vector of pairs.
const STEP: usize = 32;

/// Elements that one tile of packed activations takes.
pub(super) const fn tile_len(k: usize) -> usize {
    k.div_ceil(STEP) * M * STEP
}

/// Rounds up to six rows `[., k]` into one tile.
///
/// # Safety
/// AVX-512 F, BW and BF16; `x` holds whole rows, `out` [`tile_len`] elements.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack_acts(out: &mut [bf16], x: &[f32], k: usize) {
    let steps = k.div_ceil(STEP);
    for j in 0..M {
        let row = x.get(j * k..(j + 1) * k);
        for step in 0..steps {
            let low: __m512i = match row {
                None => _mm512_setzero_si512(),
                Some(row) => {
                    let n = (k - step * STEP).min(STEP);
                    let mask = ((1u64 << n) - 1) as u32;
                    let p = row[step * STEP..].as_ptr();
                    // SAFETY: masked to the n inputs of the row that there are.
                    unsafe {
                        let lo = _mm512_maskz_loadu_ps(mask as u16, p);
                        let hi = _mm512_maskz_loadu_ps((mask >> 16) as u16, p.wrapping_add(16));
                        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(hi, lo))
                    }
                }
            };
            let to = &mut out[(step * M + j) * STEP..][..STEP];
            // SAFETY: to holds 32 elements.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), low) };
        }
    }
}

/// Packs inputs `from..from + len` of the output features `rows`.
#[target_feature(enable = "avx512f,avx512bw")]
fn pack_weights(
    out: &mut [bf16],
    w: &DenseMatrix<'_>,
    rows: &Range<usize>,
    from: usize,
    len: usize,
) {
    let steps = len.div_ceil(STEP);
    for i in 0..rows.len().next_multiple_of(N) {
        let to = &mut out[i / N * steps * N * STEP..][..steps * N * STEP];
        let row = (i < rows.len()).then(|| {
            let at = 2 * ((rows.start + i) * w.k + from);
            &w.bytes[at..at + 2 * len]
        });
        for step in 0..steps {
            let v = match row {
                None => _mm512_setzero_si512(),
                Some(row) => {
                    let n = (len - step * STEP).min(STEP);
                    // SAFETY: masked to the n inputs of the row that there are.
                    unsafe {
                        let p = row[2 * step * STEP..].as_ptr();
                        _mm512_maskz_loadu_epi16(((1u64 << n) - 1) as u32, p.cast())
                    }
                }
            };
            let to = &mut to[(step * N + i % N) * STEP..][..STEP];
            // SAFETY: to holds 32 elements.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), v) };
        }
    }
}

/// Columns `rows` of `x wᵀ` into `out` [m, n]; overwrites. `x` is `[m / 6, k / 32, 6, 32]`.
///
/// # Safety
/// AVX-512 F, BW, DQ and BF16; `w` is BF16; `out` holds [m, n], and no other thread uses these
/// columns of it meanwhile.
pub(super) unsafe fn product(
    out: &SharedMut<'_, f32>,
    w: DenseMatrix<'_>,
    x: &[bf16],
    m: usize,
    rows: Range<usize>,
    packed: &mut Buffer<bf16>,
) {
    assert!(x.len() >= m.div_ceil(M) * tile_len(w.k));
    let room = DenseScratch::bytes_of(w.k) / 2;
    if packed.len() < room {
        *packed = Buffer::zeroed(room);
    }
    for block in rows.clone().step_by(ROW_BLOCK) {
        let block = block..(block + ROW_BLOCK).min(rows.end);
        for from in (0..w.k).step_by(K_CHUNK) {
            let len = K_CHUNK.min(w.k - from);
            // SAFETY: this function's contract.
            unsafe {
                pack_weights(packed, &w, &block, from, len);
                chunk(out, &w, x, m, &block, from..from + len, packed);
            }
        }
    }
}

/// One chunk of inputs for all rows.
///
/// # Safety
/// As [`product`]; `packed` holds the chunk.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
unsafe fn chunk(
    out: &SharedMut<'_, f32>,
    w: &DenseMatrix<'_>,
    x: &[bf16],
    m: usize,
    block: &Range<usize>,
    inputs: Range<usize>,
    packed: &[bf16],
) {
    let steps = inputs.len().div_ceil(STEP);
    for t in 0..m.div_ceil(M) {
        let x_at = t * tile_len(w.k) + inputs.start / STEP * M * STEP;
        let x = &x[x_at..x_at + steps * M * STEP];
        // The next tile of activations is brought nearer while this one meets the weights.
        let mut next = x.as_ptr().wrapping_add(tile_len(w.k));
        for (i, at) in block.clone().step_by(N).enumerate() {
            let v = &packed[i * steps * N * STEP..][..steps * N * STEP];
            // SAFETY: both hold that many steps; features by this function's contract.
            let sums = unsafe { tile(v.as_ptr(), x.as_ptr(), next, steps) };
            next = next.wrapping_add(steps * STEP);
            let cols = (block.end - at).min(N);
            for (j, sums) in sums.iter().enumerate().take(m - t * M) {
                let at = (t * M + j) * w.n + at;
                // SAFETY: columns of ours.
                let to = unsafe { out.slice(at..at + cols) };
                if inputs.start > 0 {
                    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
                } else {
                    to.copy_from_slice(&sums[..cols]);
                }
            }
        }
    }
}

/// Four output features by six rows. The loop is assembly, as the compiler would load weights early
/// and spill accumulators.
///
/// # Safety
/// The features; `w` and `x` hold `steps` steps.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512bf16")]
#[inline]
unsafe fn tile(w: *const bf16, x: *const bf16, next: *const bf16, steps: usize) -> [[f32; N]; M] {
    macro_rules! row {
        ($x:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
            concat!(
                "vmovups {xv}, zmmword ptr [{x} + ",
                $x,
                "]\n",
                "vdpbf16ps {",
                $a,
                "}, {w0}, {xv}\n",
                "vdpbf16ps {",
                $b,
                "}, {w1}, {xv}\n",
                "vdpbf16ps {",
                $c,
                "}, {w2}, {xv}\n",
                "vdpbf16ps {",
                $d,
                "}, {w3}, {xv}\n",
            )
        };
    }
    macro_rules! zero {
        ($($a:literal)*) => {
            concat!($("vpxord {", $a, "}, {", $a, "}, {", $a, "}\n",)*)
        };
    }
    let mut a = [[_mm512_setzero_ps(); N]; M];
    let [a0, a1, a2, a3, a4, a5] = &mut a;
    let ([a00, a01, a02, a03], [a10, a11, a12, a13]) = (a0, a1);
    let ([a20, a21, a22, a23], [a30, a31, a32, a33]) = (a2, a3);
    let ([a40, a41, a42, a43], [a50, a51, a52, a53]) = (a4, a5);
    // Scratch registers need a type to get a vector's name.
    let mut _scratch: __m512;
    // SAFETY: reads `steps` steps of both, which the caller vouches for; prefetches of what lies
    // behind are harmless.
    unsafe {
        asm!(
            zero!("a00" "a01" "a02" "a03" "a10" "a11" "a12" "a13"),
            zero!("a20" "a21" "a22" "a23" "a30" "a31" "a32" "a33"),
            zero!("a40" "a41" "a42" "a43" "a50" "a51" "a52" "a53"),
            "2:",
            "vmovups {w0}, zmmword ptr [{w}]",
            "vmovups {w1}, zmmword ptr [{w} + 64]",
            "vmovups {w2}, zmmword ptr [{w} + 128]",
            "vmovups {w3}, zmmword ptr [{w} + 192]",
            "prefetcht0 [{w} + 1024]",
            row!("0", "a00", "a01", "a02", "a03"),
            "prefetcht0 [{w} + 1088]",
            row!("64", "a10", "a11", "a12", "a13"),
            "prefetcht0 [{w} + 1152]",
            row!("128", "a20", "a21", "a22", "a23"),
            "prefetcht0 [{w} + 1216]",
            row!("192", "a30", "a31", "a32", "a33"),
            "prefetcht1 [{next}]",
            row!("256", "a40", "a41", "a42", "a43"),
            row!("320", "a50", "a51", "a52", "a53"),
            "add {w}, 256",
            "add {x}, 384",
            "add {next}, 64",
            "dec {steps}",
            "jnz 2b",
            w = inout(reg) w => _,
            x = inout(reg) x => _,
            next = inout(reg) next => _,
            steps = inout(reg) steps => _,
            w0 = out(zmm_reg) _scratch,
            w1 = out(zmm_reg) _scratch,
            w2 = out(zmm_reg) _scratch,
            w3 = out(zmm_reg) _scratch,
            xv = out(zmm_reg) _scratch,
            a00 = out(zmm_reg) *a00, a01 = out(zmm_reg) *a01,
            a02 = out(zmm_reg) *a02, a03 = out(zmm_reg) *a03,
            a10 = out(zmm_reg) *a10, a11 = out(zmm_reg) *a11,
            a12 = out(zmm_reg) *a12, a13 = out(zmm_reg) *a13,
            a20 = out(zmm_reg) *a20, a21 = out(zmm_reg) *a21,
            a22 = out(zmm_reg) *a22, a23 = out(zmm_reg) *a23,
            a30 = out(zmm_reg) *a30, a31 = out(zmm_reg) *a31,
            a32 = out(zmm_reg) *a32, a33 = out(zmm_reg) *a33,
            a40 = out(zmm_reg) *a40, a41 = out(zmm_reg) *a41,
            a42 = out(zmm_reg) *a42, a43 = out(zmm_reg) *a43,
            a50 = out(zmm_reg) *a50, a51 = out(zmm_reg) *a51,
            a52 = out(zmm_reg) *a52, a53 = out(zmm_reg) *a53,
            options(nostack, readonly),
        );
    }
    // The tree of `avx512::sum_lanes`, two vectors to a register: lane i + lane i + 8, ...
    macro_rules! halves {
        ($a:expr, $b:expr) => {
            _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x44>($a, $b),
                _mm512_shuffle_f32x4::<0xee>($a, $b),
            )
        };
    }
    // ... then neighbours, and those of the next row beside them.
    macro_rules! neighbours {
        ($a:expr, $b:expr) => {
            _mm512_add_ps(_mm512_shuffle_ps::<0x88>($a, $b), _mm512_shuffle_ps::<0xdd>($a, $b))
        };
    }
    macro_rules! row_sums {
        ($a:expr) => {
            neighbours!(halves!($a[0], $a[1]), halves!($a[2], $a[3]))
        };
    }
    let (k0, k1) = (row_sums!(a[0]), row_sums!(a[1]));
    let (k2, k3) = (row_sums!(a[2]), row_sums!(a[3]));
    let (k4, k5) = (row_sums!(a[4]), row_sums!(a[5]));
    let (p, q, r) = (neighbours!(k0, k1), neighbours!(k2, k3), neighbours!(k4, k5));
    // At last the two halves. Lanes: columns 0, 2 of two rows, then columns 1, 3.
    let first =
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(p, q), _mm512_shuffle_f32x4::<0xdd>(p, q));
    let last =
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(r, r), _mm512_shuffle_f32x4::<0xdd>(r, r));
    let order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    let mut out = [[0.0f32; N]; M];
    // SAFETY: out holds 24 numbers.
    unsafe {
        let to = out.as_mut_ptr().cast::<f32>();
        _mm512_storeu_ps(to, _mm512_permutexvar_ps(order, first));
        let last = _mm512_permutexvar_ps(order, last);
        _mm256_storeu_ps(to.add(16), _mm512_castps512_ps256(last));
    }
    out
}
