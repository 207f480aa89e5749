//! Plain tiles: up to four rows by sixteen columns, which the compiler may vectorise.

use super::Tile;

const ROWS: usize = 4;

/// A tile of `rows` (1 to 4) by `width` columns, 16 or 8.
///
/// # Safety
/// The operands as the fields of [`Tile`] say.
pub unsafe fn tile(rows: usize, width: usize, tile: &Tile) {
    // SAFETY: this function's contract.
    unsafe { if width == 16 { tile_of::<16>(rows, tile) } else { tile_of::<8>(rows, tile) } }
}

unsafe fn tile_of<const N: usize>(rows: usize, tile: &Tile) {
    let mut sums = [[0.0f32; N]; ROWS];
    for step in 0..tile.steps {
        // SAFETY: unit `step` of the columns exists, by the caller's contract.
        let b = unsafe { tile.b.add(step * tile.b_step).cast::<[f32; N]>().read_unaligned() };
        for (i, sums) in sums[..rows].iter_mut().enumerate() {
            let at = i * tile.a_row + step * tile.a_step;
            // SAFETY: so does that of the rows.
            let x = unsafe { tile.a.add(at).cast::<f32>().read_unaligned() };
            for j in 0..N {
                sums[j] += x * b[j];
            }
        }
    }
    for (i, sums) in sums[..rows].iter().enumerate() {
        // SAFETY: `rows` rows of N results are the caller's.
        let c = unsafe { std::slice::from_raw_parts_mut(tile.c.add(i * tile.c_row), N) };
        for j in 0..N {
            c[j] = if tile.add { c[j] + tile.alpha * sums[j] } else { tile.alpha * sums[j] };
        }
    }
}
