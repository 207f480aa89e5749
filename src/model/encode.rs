//! Weights as bytes of a file: read in pieces, put into the file's order of rows, rounded.

use half::{bf16, f16};
use puna_cpu::quant;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::model::config::RopePairing;
use crate::model::names::Weight;
use crate::model::row_order::{convert_rows, turned_heads};
use crate::model::source::{WeightSource, row_bytes, rows_and_width};

/// Values of one piece that is read and written at once.
const PIECE: usize = 1 << 22;

/// Values that one thread encodes at once, at least.
const GRAIN: usize = 1 << 14;

/// Largest value of half precision, which also bounds the scales of the block formats.
const MAX_F16: f32 = 65504.0;

/// Hands the bytes of a weight to `put`, piece by piece: element type `dtype`, rows of Q and K in
/// the order of `pairing`. A weight that is held in that type is copied, not rounded again; one
/// that is not there (a bias among others that are) is zeros.
///
/// # Errors
/// What the source and `put` return; [`Error::Config`] for a value that `dtype` cannot hold.
pub fn encode_weight(
    source: &dyn WeightSource,
    weight: Weight,
    dtype: FileDType,
    pairing: RopePairing,
    put: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let config = source.config();
    let (n, width) = rows_and_width(&config.shape(weight));
    let held = source.dtype(weight)?;
    let turned = turned_heads(config, weight).filter(|_| config.rope.pairing != pairing);
    let whole = if turned.is_some() { config.head_dim } else { 1 };
    // A piece is a whole number of heads where their rows change places.
    let step = (PIECE / width / whole).max(1) * whole;
    for start in (0..n).step_by(step) {
        let rows = start..(start + step).min(n);
        let order = |bytes: Vec<u8>| match turned {
            Some(_) => {
                let heads = rows.len() / config.head_dim;
                convert_rows(bytes, heads, config.head_dim, config.rope.pairing, pairing)
            }
            None => bytes,
        };
        let mut bytes = vec![0; rows.len() * row_bytes(dtype, width)];
        let copied = held == Some(dtype) && source.raw_rows(weight, rows.clone(), &mut bytes)?;
        if !copied {
            let mut values = vec![0.0; rows.len() * width];
            if held.is_some() {
                source.rows(weight, rows.clone(), &mut values)?;
            }
            encode(dtype, &mut bytes, &values, width).map_err(|value| {
                Error::config(
                    format!("a value of {weight}"),
                    value,
                    format!("{dtype} cannot hold it"),
                )
            })?;
        }
        // Rows are encoded one by one, so their bytes may change places as they would have.
        put(&order(bytes))?;
    }
    Ok(())
}

/// Encodes rows of `width` values; a value that `dtype` cannot hold is the error.
fn encode(dtype: FileDType, out: &mut [u8], x: &[f32], width: usize) -> Result<(), f32> {
    let refused = x.iter().copied().find(|&x| match dtype {
        FileDType::Block(_) => x.is_nan() || x.abs() > MAX_F16,
        FileDType::F16 => x.is_finite() && f16::from_f32(x).is_infinite(),
        FileDType::BF16 => x.is_finite() && bf16::from_f32(x).is_infinite(),
        FileDType::F32 | FileDType::Other(_) => false,
    });
    if let Some(value) = refused {
        return Err(value);
    }
    let values = GRAIN.next_multiple_of(width);
    let piece = row_bytes(dtype, width) * (values / width);
    out.par_chunks_mut(piece).zip(x.par_chunks(values)).for_each(|(out, x)| match dtype {
        FileDType::Block(block) => quant::encode_row(block, out, x),
        FileDType::F16 => {
            let halves = out.as_chunks_mut().0.iter_mut();
            halves.zip(x).for_each(|(out, &x)| *out = f16::from_f32(x).to_le_bytes());
        }
        FileDType::BF16 => {
            let halves = out.as_chunks_mut().0.iter_mut();
            halves.zip(x).for_each(|(out, &x)| *out = bf16::from_f32(x).to_le_bytes());
        }
        FileDType::F32 | FileDType::Other(_) => {
            let words = out.as_chunks_mut().0.iter_mut();
            words.zip(x).for_each(|(out, &x)| *out = x.to_le_bytes());
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use puna_cpu::quant::BlockType;

    #[test]
    fn values_that_a_type_cannot_hold_are_found() {
        let refused = |dtype, x: f32| {
            let mut row = vec![0.0; 256];
            row[255] = x;
            encode(dtype, &mut vec![0; row_bytes(dtype, 256)], &row, 256).is_err()
        };
        let q8 = FileDType::Block(BlockType::Q8_0);
        assert!(refused(FileDType::F16, 1e5) && refused(FileDType::BF16, f32::MAX));
        assert!(!refused(FileDType::F16, f32::INFINITY) && !refused(FileDType::F32, f32::NAN));
        assert!(refused(q8, f32::NAN) && refused(q8, 1e5) && !refused(q8, 65504.0));
        assert!(!refused(FileDType::F16, 65504.0) && !refused(FileDType::BF16, 1e38));
    }
}
