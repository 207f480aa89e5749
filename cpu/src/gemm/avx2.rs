//! AVX2 tiles: up to six rows by sixteen columns, whose 12 sums leave room for the operands in 16
//! registers.

use super::Tile;
use std::arch::x86_64::*;

/// A tile of `rows` (1 to 6) by 16 columns if `wide`, else 8.
///
/// # Safety
/// AVX2 and FMA; the operands as the fields of [`Tile`] say.
#[inline]
pub unsafe fn tile(rows: usize, wide: bool, tile: &Tile) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match (rows, wide) {
                // SAFETY: this function's contract.
                $(($rows, true) => unsafe { tile_of::<$rows, 2>(tile) },
                // SAFETY: likewise.
                ($rows, false) => unsafe { tile_of::<$rows, 1>(tile) },)*
                _ => {}
            }
        };
    }
    by_rows!(1 2 3 4 5 6);
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile_of<const M: usize, const N: usize>(tile: &Tile) {
    let mut sums = [[_mm256_setzero_ps(); N]; M];
    let (mut a, mut b) = (tile.a, tile.b);
    // SAFETY: reads `steps` units of `M` rows and `8 N` columns and writes as many results, which
    // the caller vouches for.
    unsafe {
        for _ in 0..tile.steps {
            let mut columns = [_mm256_setzero_ps(); N];
            for j in 0..N {
                columns[j] = _mm256_loadu_ps(b.cast::<f32>().add(8 * j));
            }
            for i in 0..M {
                let x = _mm256_set1_ps(a.add(i * tile.a_row).cast::<f32>().read_unaligned());
                for j in 0..N {
                    sums[i][j] = _mm256_fmadd_ps(columns[j], x, sums[i][j]);
                }
            }
            a = a.wrapping_add(tile.a_step);
            b = b.wrapping_add(tile.b_step);
        }
        let alpha = _mm256_set1_ps(tile.alpha);
        for i in 0..M {
            for j in 0..N {
                let c = tile.c.add(i * tile.c_row + 8 * j);
                let all = if tile.add {
                    _mm256_fmadd_ps(alpha, sums[i][j], _mm256_loadu_ps(c))
                } else {
                    _mm256_mul_ps(alpha, sums[i][j])
                };
                _mm256_storeu_ps(c, all);
            }
        }
    }
}
