//! Weights on a GPU: copied when a model is opened, one tensor at a time, so that the host holds no
//! second model.

use crate::cuda::Gpu;
use crate::cuda::quant::QuantMatrix;
use crate::error::Result;
use crate::model::weights::Weights;
use crate::ops::Linear;
use crate::tensor::{CudaMatrix, Home, Matrix, MatrixData, Values, Vector};
use half::bf16;
use puna_cpu::convert;
use puna_cpu::isa::Isa;
use puna_cpu::matmul::Dense;
use puna_cpu::qmatmul::PackedMatrix;
use std::sync::Arc;

/// Rows that are decoded before they are copied.
const ROWS: usize = 256;

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
        MatrixData::Dense(bytes, Dense::F32) => {
            let numbers = bytes.as_slice().chunks_exact(4);
            let of = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            CudaMatrix::F32(gpu.upload(&numbers.map(of).collect::<Vec<f32>>())?)
        }
        MatrixData::Dense(bytes, Dense::BF16) => {
            let numbers = bytes.as_slice().chunks_exact(2);
            let of = |b: &[u8]| bf16::from_le_bytes([b[0], b[1]]);
            CudaMatrix::Bf16(gpu.upload(&numbers.map(of).collect::<Vec<bf16>>())?)
        }
        MatrixData::Dense(bytes, Dense::F16) => {
            let numbers = bytes.as_slice().chunks_exact(2);
            let of = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]);
            CudaMatrix::F16(gpu.upload(&numbers.map(of).collect::<Vec<half::f16>>())?)
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

/// A matrix in the CPU's panels as bf16.
fn decoded(w: &PackedMatrix, [n, k]: [usize; 2], gpu: &Gpu) -> Result<CudaMatrix> {
    let mut out = gpu.alloc::<bf16>(n * k)?;
    let isa = Isa::best();
    let mut wide = vec![0.0; k];
    let mut low = vec![bf16::ZERO; ROWS.min(n) * k];
    for first in (0..n).step_by(ROWS) {
        let rows = first..(first + ROWS).min(n);
        for row in rows.clone() {
            w.decode_row(&mut wide, row);
            let at = (row - first) * k;
            convert::f32_to_bf16(isa, &mut low[at..at + k], &wide);
        }
        let len = rows.len() * k;
        let to = first * k;
        gpu.write(&mut out.slice_mut().range_mut(to..to + len), &low[..len])?;
    }
    Ok(CudaMatrix::Bf16(out))
}
