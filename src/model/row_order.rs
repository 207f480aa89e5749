//! The order of the rows of Q and K: Hugging Face's, where RoPE turns `i` with `i + head_dim / 2`,
//! and GGUF's, where it turns neighbours.
//!
//! Row `2 i + s` of a head in GGUF is row `s * head_dim / 2 + i` in Hugging Face. The same holds for
//! biases (rows of width 1) and for the rows of an adapter's B.

use crate::model::config::{Config, RopePairing};
use crate::model::names::{BlockWeight, Weight};

/// Rows in the order of neighbours, from the order of halves. `x` is `[n_heads * head_dim, width]`.
///
/// # Panics
/// When `x` is not a whole number of rows.
pub fn to_interleaved_rows<T: Copy>(x: &[T], n_heads: usize, head_dim: usize) -> Vec<T> {
    reordered(x, n_heads, head_dim, |row| row % 2 * (head_dim / 2) + row / 2)
}

/// Rows in the order of halves, from the order of neighbours; undoes [`to_interleaved_rows`].
///
/// # Panics
/// When `x` is not a whole number of rows.
pub fn to_half_rows<T: Copy>(x: &[T], n_heads: usize, head_dim: usize) -> Vec<T> {
    reordered(x, n_heads, head_dim, |row| row % (head_dim / 2) * 2 + row / (head_dim / 2))
}

/// `from(row)` is the row of the source that becomes row `row` of a head.
fn reordered<T: Copy>(
    x: &[T],
    n_heads: usize,
    head_dim: usize,
    from: impl Fn(usize) -> usize,
) -> Vec<T> {
    let rows = n_heads * head_dim;
    assert!(rows > 0 && x.len().is_multiple_of(rows), "{} values in {rows} rows", x.len());
    let width = x.len() / rows;
    let mut out = Vec::with_capacity(x.len());
    for head in x.chunks(head_dim * width) {
        for row in 0..head_dim {
            let start = from(row) * width;
            out.extend_from_slice(&head[start..start + width]);
        }
    }
    out
}

/// Rows of some heads from one order to the other; unchanged where the orders are the same.
pub(super) fn convert_rows<T: Copy>(
    x: Vec<T>,
    n_heads: usize,
    head_dim: usize,
    from: RopePairing,
    to: RopePairing,
) -> Vec<T> {
    match (from, to) {
        (RopePairing::Half, RopePairing::Interleaved) => to_interleaved_rows(&x, n_heads, head_dim),
        (RopePairing::Interleaved, RopePairing::Half) => to_half_rows(&x, n_heads, head_dim),
        _ => x,
    }
}

/// Number of heads of a weight whose rows RoPE turns; `None` for every other weight.
pub(super) fn turned_heads(config: &Config, weight: Weight) -> Option<usize> {
    match weight {
        Weight::Block(_, BlockWeight::Wq | BlockWeight::Bq) => Some(config.n_heads),
        Weight::Block(_, BlockWeight::Wk | BlockWeight::Bk) => Some(config.n_kv_heads),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_two_heads_change_places_and_back() {
        // Two heads of four rows of width 2; the value tells head, row and column.
        let half: Vec<u32> = (0..2)
            .flat_map(|h| (0..4).flat_map(move |r| (0..2).map(move |c| h * 100 + r * 10 + c)))
            .collect();
        let interleaved = to_interleaved_rows(&half, 2, 4);
        let rows: Vec<u32> = interleaved.iter().step_by(2).copied().collect();
        assert_eq!(rows, [0, 20, 10, 30, 100, 120, 110, 130]);
        assert_eq!(to_half_rows(&interleaved, 2, 4), half);
        // Six rows: the two permutations differ, so that taking one for the other is seen.
        let six: Vec<u32> = (0..6).collect();
        assert_eq!(to_interleaved_rows(&six, 1, 6), [0, 3, 1, 4, 2, 5]);
        assert_eq!(to_half_rows(&six, 1, 6), [0, 2, 4, 1, 3, 5]);
    }
}
