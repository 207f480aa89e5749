//! Rows of the embedding table, from every weight type, and the table's gradient.

use super::{Cpu, Floats};
use crate::error::{Error, Result};
use crate::tensor::{Matrix, MatrixData, Params};
use puna_cpu::embedding::embedding_bwd_acc_team;
use puna_cpu::matmul::Dense;
use puna_cpu::{convert, quant};

/// `out[i] = table[ids[i]]` as f32; `out` is [ids.len(), k].
///
/// # Errors
/// When an id is not below the table's rows.
pub fn gather(
    cpu: &Cpu,
    out: &mut [f32],
    table: &Matrix,
    params: &Params,
    ids: &[u32],
) -> Result<()> {
    let k = table.k;
    for (out, &id) in out.chunks_exact_mut(k).zip(ids) {
        let row = id as usize;
        if row >= table.n {
            return Err(Error::Config {
                field: "token id".into(),
                value: id.to_string(),
                why: format!("the vocabulary has {} tokens", table.n),
            });
        }
        match &table.data {
            MatrixData::Packed(w) => w.decode_row(out, row),
            MatrixData::Param(id) => {
                out.copy_from_slice(&params.get(*id).value[row * k..(row + 1) * k]);
            }
            MatrixData::Blocks(bytes, block) => {
                let size = block.row_bytes(k);
                quant::decode_row(*block, out, &bytes.as_slice()[row * size..(row + 1) * size]);
            }
            MatrixData::Dense(bytes, dtype) => {
                let size = k * dtype.bytes();
                let bytes = &bytes.as_slice()[row * size..(row + 1) * size];
                match dtype {
                    Dense::F16 => convert::f16_bytes_to_f32(cpu.isa, out, bytes),
                    Dense::BF16 => convert::bf16_bytes_to_f32(cpu.isa, out, bytes),
                    Dense::F32 => {
                        for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                            *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                        }
                    }
                }
            }
        }
    }
    Ok(())
}

/// `dtable[ids[i]] += dout[i]`, in order of i; `dtable` has rows of `dim` values.
pub fn gather_bwd_acc(cpu: &Cpu, dtable: &mut [f32], dim: usize, ids: &[u32], dout: Floats<'_>) {
    embedding_bwd_acc_team(cpu.isa, &cpu.team, dtable, dim, ids, dout);
}
