//! AVX-512 tiles: up to twelve rows by thirty-two columns, whose 24 sums leave room for the
//! operands in 32 registers.

use super::Tile;
use std::arch::asm;
use std::arch::x86_64::*;

/// A tile of `rows` (4, 8 or 12) by 32 columns if `wide`, else 16.
///
/// # Safety
/// AVX-512 F, with `pairs` BF16; the operands as the fields of [`Tile`] say.
#[inline]
pub unsafe fn tile(pairs: bool, rows: usize, wide: bool, tile: &Tile) {
    // SAFETY: this function's contract.
    unsafe {
        match (pairs, wide, rows) {
            (false, true, 12) => f32_12x32(tile),
            (false, true, 8) => f32_8x32(tile),
            (false, true, _) => f32_4x32(tile),
            (false, false, 12) => f32_12x16(tile),
            (false, false, 8) => f32_8x16(tile),
            (false, false, _) => f32_4x16(tile),
            (true, true, 12) => bf16_12x32(tile),
            (true, true, 8) => bf16_8x32(tile),
            (true, true, _) => bf16_4x32(tile),
            (true, false, 12) => bf16_12x16(tile),
            (true, false, 8) => bf16_8x16(tile),
            (true, false, _) => bf16_4x16(tile),
        }
    }
}

/// Asks for the results' lines, which the sums meet at the end.
#[inline(always)]
fn fetch(tile: &Tile, rows: usize, width: usize) {
    for row in 0..rows {
        let c = tile.c.wrapping_add(row * tile.c_row);
        for at in (0..width).step_by(16) {
            // SAFETY: a hint, never a fault.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(at).cast()) };
        }
        // SAFETY: likewise.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(width - 1).cast()) };
    }
}

/// Scales the sums of sixteen columns and stores or adds them.
///
/// # Safety
/// AVX-512 F; sixteen numbers at `c`.
#[inline(always)]
unsafe fn put(c: *mut f32, alpha: __m512, add: bool, sums: __m512) {
    // SAFETY: this function's contract.
    unsafe {
        let all = if add {
            _mm512_fmadd_ps(alpha, sums, _mm512_loadu_ps(c))
        } else {
            _mm512_mul_ps(alpha, sums)
        };
        _mm512_storeu_ps(c, all);
    }
}

/// A tile's function: the loop over its units in assembly, where the sums stay in registers, then
/// the results. `{a}` and `{a6}` are rows 0 and 6 of `a`, `{s}`, `{s3}` and `{s5}` one, three and
/// five rows.
macro_rules! tile_of {
    ($name:ident, $features:literal, $multiply:literal,
     wide: $([$c0:ident $c1:ident $row:literal])*) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(tile: &Tile) {
            // Scratch registers need a type to get a vector's name.
            let mut _scratch: __m512;
            $(let $c0: __m512;
              let $c1: __m512;)*
            fetch(tile, [$($row),*].len(), 32);
            // SAFETY: reads `steps` units of the rows and columns, which the caller vouches for.
            unsafe {
                asm!(
                    concat!(
                        $("vpxord {", stringify!($c0), "}, {", stringify!($c0), "}, {",
                            stringify!($c0), "}\n",
                          "vpxord {", stringify!($c1), "}, {", stringify!($c1), "}, {",
                            stringify!($c1), "}\n",)*
                        "2:\n",
                        "vmovups {b0}, zmmword ptr [{b}]\n",
                        "vmovups {b1}, zmmword ptr [{b} + 64]\n",
                        "add {b}, {bs}\n",
                        "mov {line}, qword ptr [{ahead}]\n",
                        "add {ahead}, 8\n",
                        "prefetcht1 [{line}]\n",
                        $("vbroadcastss {x}, dword ptr [", $row, "]\n",
                          $multiply, " {", stringify!($c0), "}, {b0}, {x}\n",
                          $multiply, " {", stringify!($c1), "}, {b1}, {x}\n",)*
                        "/* {s} {s3} {s5} */\n",
                        "add {a}, {st}\n",
                        "add {a6}, {st}\n",
                        "dec {steps}\n",
                        "jnz 2b\n",
                    ),
                    a = inout(reg) tile.a => _,
                    a6 = inout(reg) tile.a.wrapping_add(6 * tile.a_row) => _,
                    s = in(reg) tile.a_row,
                    s3 = in(reg) 3 * tile.a_row,
                    s5 = in(reg) 5 * tile.a_row,
                    st = in(reg) tile.a_step,
                    b = inout(reg) tile.b => _,
                    bs = in(reg) tile.b_step,
                    steps = inout(reg) tile.steps => _,
                    ahead = inout(reg) tile.ahead => _,
                    line = out(reg) _,
                    b0 = out(zmm_reg) _scratch,
                    b1 = out(zmm_reg) _scratch,
                    x = out(zmm_reg) _scratch,
                    $($c0 = out(zmm_reg) $c0, $c1 = out(zmm_reg) $c1,)*
                    options(nostack, readonly),
                );
                let alpha = _mm512_set1_ps(tile.alpha);
                let mut c = tile.c;
                if tile.add {
                    $(put(c, alpha, true, $c0);
                      put(c.wrapping_add(16), alpha, true, $c1);
                      c = c.wrapping_add(tile.c_row);)*
                } else {
                    $(put(c, alpha, false, $c0);
                      put(c.wrapping_add(16), alpha, false, $c1);
                      c = c.wrapping_add(tile.c_row);)*
                }
                let _ = c;
            }
        }
    };
    ($name:ident, $features:literal, $multiply:literal, narrow: $([$c0:ident $row:literal])*) => {
        #[target_feature(enable = $features)]
        unsafe fn $name(tile: &Tile) {
            let mut _scratch: __m512;
            $(let $c0: __m512;)*
            fetch(tile, [$($row),*].len(), 16);
            // SAFETY: as above.
            unsafe {
                asm!(
                    concat!(
                        $("vpxord {", stringify!($c0), "}, {", stringify!($c0), "}, {",
                            stringify!($c0), "}\n",)*
                        "2:\n",
                        "vmovups {b0}, zmmword ptr [{b}]\n",
                        "add {b}, {bs}\n",
                        "mov {line}, qword ptr [{ahead}]\n",
                        "add {ahead}, 8\n",
                        "prefetcht1 [{line}]\n",
                        $("vbroadcastss {x}, dword ptr [", $row, "]\n",
                          $multiply, " {", stringify!($c0), "}, {b0}, {x}\n",)*
                        "/* {s} {s3} {s5} */\n",
                        "add {a}, {st}\n",
                        "add {a6}, {st}\n",
                        "dec {steps}\n",
                        "jnz 2b\n",
                    ),
                    a = inout(reg) tile.a => _,
                    a6 = inout(reg) tile.a.wrapping_add(6 * tile.a_row) => _,
                    s = in(reg) tile.a_row,
                    s3 = in(reg) 3 * tile.a_row,
                    s5 = in(reg) 5 * tile.a_row,
                    st = in(reg) tile.a_step,
                    b = inout(reg) tile.b => _,
                    bs = in(reg) tile.b_step,
                    steps = inout(reg) tile.steps => _,
                    ahead = inout(reg) tile.ahead => _,
                    line = out(reg) _,
                    b0 = out(zmm_reg) _scratch,
                    x = out(zmm_reg) _scratch,
                    $($c0 = out(zmm_reg) $c0,)*
                    options(nostack, readonly),
                );
                let alpha = _mm512_set1_ps(tile.alpha);
                let mut c = tile.c;
                if tile.add {
                    $(put(c, alpha, true, $c0); c = c.wrapping_add(tile.c_row);)*
                } else {
                    $(put(c, alpha, false, $c0); c = c.wrapping_add(tile.c_row);)*
                }
                let _ = c;
            }
        }
    };
}

/// All sizes of one instruction.
macro_rules! tiles {
    ($features:literal, $multiply:literal, $w12:ident, $w8:ident, $w4:ident, $n12:ident,
     $n8:ident, $n4:ident) => {
        tile_of!($w12, $features, $multiply, wide:
            [c00 c01 "{a}"] [c10 c11 "{a} + {s}"] [c20 c21 "{a} + 2 * {s}"]
            [c30 c31 "{a} + {s3}"] [c40 c41 "{a} + 4 * {s}"] [c50 c51 "{a} + {s5}"]
            [c60 c61 "{a6}"] [c70 c71 "{a6} + {s}"] [c80 c81 "{a6} + 2 * {s}"]
            [c90 c91 "{a6} + {s3}"] [ca0 ca1 "{a6} + 4 * {s}"] [cb0 cb1 "{a6} + {s5}"]);
        tile_of!($w8, $features, $multiply, wide:
            [c00 c01 "{a}"] [c10 c11 "{a} + {s}"] [c20 c21 "{a} + 2 * {s}"]
            [c30 c31 "{a} + {s3}"] [c40 c41 "{a} + 4 * {s}"] [c50 c51 "{a} + {s5}"]
            [c60 c61 "{a6}"] [c70 c71 "{a6} + {s}"]);
        tile_of!($w4, $features, $multiply, wide:
            [c00 c01 "{a}"] [c10 c11 "{a} + {s}"] [c20 c21 "{a} + 2 * {s}"]
            [c30 c31 "{a} + {s3}"]);
        tile_of!($n12, $features, $multiply, narrow:
            [c0 "{a}"] [c1 "{a} + {s}"] [c2 "{a} + 2 * {s}"] [c3 "{a} + {s3}"]
            [c4 "{a} + 4 * {s}"] [c5 "{a} + {s5}"] [c6 "{a6}"] [c7 "{a6} + {s}"]
            [c8 "{a6} + 2 * {s}"] [c9 "{a6} + {s3}"] [ca "{a6} + 4 * {s}"] [cb "{a6} + {s5}"]);
        tile_of!($n8, $features, $multiply, narrow:
            [c0 "{a}"] [c1 "{a} + {s}"] [c2 "{a} + 2 * {s}"] [c3 "{a} + {s3}"]
            [c4 "{a} + 4 * {s}"] [c5 "{a} + {s5}"] [c6 "{a6}"] [c7 "{a6} + {s}"]);
        tile_of!($n4, $features, $multiply, narrow:
            [c0 "{a}"] [c1 "{a} + {s}"] [c2 "{a} + 2 * {s}"] [c3 "{a} + {s3}"]);
    };
}

tiles!("avx512f", "vfmadd231ps", f32_12x32, f32_8x32, f32_4x32, f32_12x16, f32_8x16, f32_4x16);
tiles!(
    "avx512f,avx512bf16",
    "vdpbf16ps",
    bf16_12x32,
    bf16_8x32,
    bf16_4x32,
    bf16_12x16,
    bf16_8x16,
    bf16_4x16
);
