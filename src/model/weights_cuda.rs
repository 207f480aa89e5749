//! Weights on a GPU: copied when a model is opened, piece by piece from the file's pages into memory
//! that the device reads by itself, so that the host holds no second model, and not one tensor twice.

use crate::cuda::quant::{Encodable, QuantMatrix};
use crate::cuda::{DeviceBuffer, Element, Gpu};
use crate::error::{Error, Result};
use crate::model::checkpoint::Checkpoint;
use crate::model::names::{BlockWeight, Weight};
use crate::model::weights::Weights;
use crate::ops::Linear;
use crate::tensor::{CudaMatrix, Home, Matrix, MatrixData, Values, Vector};
use half::{bf16, f16};
use puna_cpu::convert;
use puna_cpu::isa::Isa;
use puna_cpu::matmul::Dense;
use puna_cpu::qmatmul::PackedMatrix;
use std::sync::Arc;

/// Bytes of a piece that is on its way while the next one is read.
const PIECE_BYTES: usize = 8 << 20;

/// Moves what is not trained to the GPU. Quantised weights stay so where their blocks are at hand
/// ([`Weights::load_blocks`]); what was rearranged for the CPU becomes bf16.
///
/// # Errors
/// When the GPU has no room for them, or failed.
pub fn move_weights(weights: &mut Weights, gpu: &Arc<Gpu>) -> Result<()> {
    let home = Home::Cuda(Arc::clone(gpu));
    let tied = same_bytes(&weights.tok_emb, &weights.lm_head.w);
    matrix(&mut weights.tok_emb, gpu)?;
    if tied {
        weights.lm_head.w.data = weights.tok_emb.data.clone();
    }
    linear(&mut weights.lm_head, gpu, &home)?;
    vector(&mut weights.out_norm, &home)?;
    for block in &mut weights.blocks {
        vector(&mut block.attn_norm, &home)?;
        vector(&mut block.ffn_norm, &home)?;
        let linears = [
            &mut block.wq,
            &mut block.wk,
            &mut block.wv,
            &mut block.wo,
            &mut block.w1,
            &mut block.w2,
            &mut block.w3,
        ];
        for one in linears {
            linear(one, gpu, &home)?;
        }
    }
    Ok(())
}

/// Encodes the linear layers of the blocks in NF4 on the GPU, from the checkpoint's own numbers as
/// [`Weights::load_blocks`] leaves them; with `double_quant` their scales too. The CPU's bits.
///
/// # Errors
/// Weights that are not finite; when the GPU has no room, or failed.
pub fn encode_layers(
    weights: &mut Weights,
    gpu: &Gpu,
    checkpoint: &Checkpoint,
    double_quant: bool,
) -> Result<()> {
    use BlockWeight::*;
    for (layer, block) in weights.blocks.iter_mut().enumerate() {
        let matrices = [
            (&mut block.wq.w, Wq),
            (&mut block.wk.w, Wk),
            (&mut block.wv.w, Wv),
            (&mut block.wo.w, Wo),
            (&mut block.w1.w, W1),
            (&mut block.w2.w, W2),
            (&mut block.w3.w, W3),
        ];
        for (w, name) in matrices {
            let tensor = checkpoint.weight(Weight::Block(layer, name))?;
            let MatrixData::Dense(bytes, kind) = &w.data else {
                let what = format!("{}: encoding {w:?} in NF4", tensor.name);
                return Err(Error::Unsupported(what));
            };
            let (bytes, shape) = (bytes.as_slice(), [w.n, w.k]);
            let encoded = match kind {
                Dense::F32 => nf4(gpu, shape, double_quant, bytes, f32::from_le_bytes)?,
                Dense::BF16 => nf4(gpu, shape, double_quant, bytes, bf16::from_le_bytes)?,
                Dense::F16 => nf4(gpu, shape, double_quant, bytes, f16::from_le_bytes)?,
            };
            let encoded = encoded.ok_or_else(|| {
                let what = format!("{}: a weight that is not finite", tensor.name);
                Error::format(checkpoint.files.path_of(tensor), what)
            })?;
            w.data = MatrixData::Cuda(Arc::new(CudaMatrix::Quant(encoded)));
        }
    }
    Ok(())
}

/// A matrix encoded from numbers as they lie in a file; `None` where one is not finite.
fn nf4<T: Encodable, const SIZE: usize>(
    gpu: &Gpu,
    shape: [usize; 2],
    double_quant: bool,
    bytes: &[u8],
    of: fn([u8; SIZE]) -> T,
) -> Result<Option<QuantMatrix>> {
    let numbers = bytes.as_chunks::<SIZE>().0;
    QuantMatrix::encode_nf4(gpu, shape, double_quant, |first, out| {
        out.iter_mut().zip(&numbers[first..]).for_each(|(x, &b)| *x = of(b));
        Ok(())
    })
}

/// Whether two matrices share their memory.
fn same_bytes(a: &Matrix, b: &Matrix) -> bool {
    match (&a.data, &b.data) {
        (MatrixData::Dense(a, _), MatrixData::Dense(b, _)) => {
            std::ptr::eq(a.as_slice(), b.as_slice())
        }
        (MatrixData::Blocks(a, _), MatrixData::Blocks(b, _)) => {
            std::ptr::eq(a.as_slice(), b.as_slice())
        }
        (MatrixData::Packed(a), MatrixData::Packed(b)) => Arc::ptr_eq(a, b),
        _ => false,
    }
}

fn linear(layer: &mut Linear, gpu: &Gpu, home: &Home) -> Result<()> {
    matrix(&mut layer.w, gpu)?;
    if let Some(bias) = &mut layer.bias {
        vector(bias, home)?;
    }
    for lora in &mut layer.loras {
        matrix(&mut lora.a, gpu)?;
        matrix(&mut lora.b, gpu)?;
    }
    Ok(())
}

fn vector(v: &mut Vector, home: &Home) -> Result<()> {
    if let Vector::Fixed(values) = v {
        let mut moved = Values::zeros(home, values.len())?;
        moved.write(&values.read()?)?;
        *values = Arc::new(moved);
    }
    Ok(())
}

fn matrix(w: &mut Matrix, gpu: &Gpu) -> Result<()> {
    let moved = match &w.data {
        // Parameters move by themselves; what is there already stays.
        MatrixData::Param(_) | MatrixData::Cuda(_) => return Ok(()),
        MatrixData::Dense(bytes, kind) => {
            let bytes = bytes.as_slice();
            match kind {
                Dense::F32 => {
                    let of = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    CudaMatrix::F32(dense(gpu, bytes, of)?)
                }
                Dense::BF16 => {
                    let of = |b: &[u8]| bf16::from_le_bytes([b[0], b[1]]);
                    CudaMatrix::Bf16(dense(gpu, bytes, of)?)
                }
                Dense::F16 => {
                    let of = |b: &[u8]| f16::from_le_bytes([b[0], b[1]]);
                    CudaMatrix::F16(dense(gpu, bytes, of)?)
                }
            }
        }
        MatrixData::Nf4(nf4) => CudaMatrix::Quant(QuantMatrix::from_nf4(gpu, nf4)?),
        MatrixData::Blocks(bytes, block) => {
            let shape = [w.n, w.k];
            CudaMatrix::Quant(QuantMatrix::from_blocks(gpu, *block, shape, bytes.as_slice())?)
        }
        MatrixData::Packed(packed) => decoded(packed, [w.n, w.k], gpu)?,
    };
    w.data = MatrixData::Cuda(Arc::new(moved));
    Ok(())
}

/// Numbers as they lie in a file.
fn dense<T: Element>(gpu: &Gpu, bytes: &[u8], of: fn(&[u8]) -> T) -> Result<DeviceBuffer<T>> {
    let size = size_of::<T>();
    let (len, piece_len) = (bytes.len() / size, PIECE_BYTES / size);
    let mut out = gpu.alloc::<T>(len)?;
    gpu.upload_pieces(&mut out.slice_mut(), piece_len, |index, piece| {
        let from = &bytes[index * piece_len * size..];
        piece.iter_mut().zip(from.chunks_exact(size)).for_each(|(x, b)| *x = of(b));
        Ok(())
    })?;
    Ok(out)
}

/// A matrix in the CPU's panels as bf16.
fn decoded(w: &PackedMatrix, [n, k]: [usize; 2], gpu: &Gpu) -> Result<CudaMatrix> {
    let mut out = gpu.alloc::<bf16>(n * k)?;
    let isa = Isa::best();
    let mut wide = vec![0.0; k];
    let rows = (PIECE_BYTES / (2 * k).max(1)).max(1);
    gpu.upload_pieces(&mut out.slice_mut(), rows * k, |index, piece| {
        for (row, low) in (index * rows..).zip(piece.chunks_exact_mut(k)) {
            w.decode_row(&mut wide, row);
            convert::f32_to_bf16(isa, low, &wide);
        }
        Ok(())
    })?;
    Ok(CudaMatrix::Bf16(out))
}
