//! Rows of the embedding table, from every weight type, and the table's gradient.

use super::{Device, Floats, FloatsMut, Listed};
use crate::error::{Error, Result};
use crate::tensor::{Matrix, MatrixData, Params};
use puna_cpu::embedding::embedding_bwd_acc_team;
use puna_cpu::matmul::Dense;
use puna_cpu::{convert, quant};

#[cfg(feature = "cuda")]
use crate::cuda;
#[cfg(feature = "cuda")]
use crate::tensor::OnCuda;

/// `out[i] = table[ids[i]]` as f32; `out` is [ids, k].
///
/// # Errors
/// When an id is not below the table's rows; operands of another device, or one that fails.
pub fn gather(
    device: &Device,
    out: FloatsMut<'_>,
    table: &Matrix,
    params: &Params,
    ids: Listed<'_>,
) -> Result<()> {
    if let Some(id) = ids.list.iter().find(|&&id| id as usize >= table.n) {
        let why = format!("the vocabulary has {} tokens", table.n);
        return Err(Error::config("token id", id, why));
    }
    #[cfg(feature = "cuda")]
    if let (Some(gpu), Some(table_there)) = (device.gpu(), table.on_cuda(params)?) {
        use cuda::embedding::Table;
        use cuda::matmul::Source;
        let factor = match table_there {
            OnCuda::Dense(factor) => factor,
            OnCuda::Quant(table) => {
                let ids = ids.on(gpu)?;
                return cuda::quant::gather(gpu, out.cuda()?, table, ids.slice());
            }
        };
        let from = match factor.source {
            Source::F32(x) => Table::Floats(x.into()),
            Source::Bf16(x) => Table::Floats(x.into()),
            Source::F16(x) => Table::F16(x),
        };
        let ids = ids.on(gpu)?;
        return cuda::embedding::gather(gpu, out.cuda()?, from, table.k, ids.slice());
    }
    let (isa, k, out) = (device.cpu.isa, table.k, out.host_f32()?);
    for (out, &id) in out.chunks_exact_mut(k).zip(ids.list) {
        let row = id as usize;
        match &table.data {
            MatrixData::Packed(w) => w.decode_row(out, row),
            MatrixData::Nf4(w) => w.decode(isa, out, row * k),
            MatrixData::Param(id) => {
                let values = params.get(*id).value.floats().host_f32()?;
                out.copy_from_slice(&values[row * k..(row + 1) * k]);
            }
            MatrixData::Blocks(bytes, block) => {
                let size = block.row_bytes(k);
                quant::decode_row(*block, out, &bytes.as_slice()[row * size..(row + 1) * size]);
            }
            MatrixData::Dense(bytes, dtype) => {
                let size = k * dtype.bytes();
                let bytes = &bytes.as_slice()[row * size..(row + 1) * size];
                match dtype {
                    Dense::F16 => convert::f16_bytes_to_f32(isa, out, bytes),
                    Dense::BF16 => convert::bf16_bytes_to_f32(isa, out, bytes),
                    Dense::F32 => {
                        for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                            *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                        }
                    }
                }
            }
            #[cfg(feature = "cuda")]
            MatrixData::Cuda(_) => {
                let why = "the embedding table lies on a GPU".into();
                return Err(Error::Device { wanted: "cpu".into(), why });
            }
        }
    }
    Ok(())
}

/// `dtable[ids[i]] += dout[i]`, in order of i; `dtable` has rows of `dim` values.
///
/// # Errors
/// Operands of another device, or one that fails.
pub fn gather_bwd_acc(
    device: &Device,
    dtable: FloatsMut<'_>,
    dim: usize,
    ids: &[u32],
    dout: Floats<'_>,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if let Some(gpu) = device.gpu() {
        let (dtable, dout) = (dtable.cuda_f32()?, dout.cuda()?);
        let of = cuda::embedding::Occurrences::new(gpu, ids)?;
        return cuda::embedding::embedding_bwd_acc(gpu, dtable, dim, &of, dout);
    }
    let cpu = &device.cpu;
    embedding_bwd_acc_team(cpu.isa, &cpu.team, dtable.host_f32()?, dim, ids, dout.host()?);
    Ok(())
}
