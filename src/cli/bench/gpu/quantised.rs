//! Products of one token with quantised weights: a buffer, looks at the result, the time.

use super::numbers::{EPS_F32, expect, get};
use super::{Bench, Bound, Job};
use crate::cuda::matmul::{Factor, Precision};
use crate::cuda::quant::{Product, QuantMatrix, gemm};
use crate::error::{Error, Result};
use crate::kernels::Device;
use half::{bf16, f16};
use puna_cpu::isa::Isa;
use puna_cpu::quant::nf4::Nf4Matrix;
use puna_cpu::quant::{BlockType, decode_row};

/// Rows that differ; the others repeat them, so that a large matrix is made in no time.
const ROWS: usize = 64;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// NF4 with f32 scales.
    Nf4,
    /// GGUF's Q4_K.
    Q4K,
}

/// A matrix [n, k], and its rows that differ as the CPU decodes them.
fn matrix(
    bench: &Bench<'_>,
    stored: Stored,
    n: usize,
    k: usize,
) -> Result<(QuantMatrix, Vec<f32>)> {
    let (gpu, rows) = (bench.gpu, ROWS.min(n));
    let mut values = vec![0.0; rows * k];
    // A fraction of i times the golden ratio: spread evenly, and no two rows alike.
    let spread = |i: usize| (i as f64 * 0.618_033_988_749_895).fract();
    match stored {
        Stored::Nf4 => {
            let own: Vec<f32> = (0..rows * k).map(|i| spread(i) as f32 - 0.5).collect();
            let nf4 = Nf4Matrix::of(&Device::new(1)?.cpu.team, &own, [rows, k], false);
            nf4.decode(Isa::best(), &mut values, 0);
            let encoded = QuantMatrix::encode_nf4(gpu, [n, k], false, |first, out: &mut [f32]| {
                for (i, x) in (first..).zip(out) {
                    *x = own[i / k % rows * k + i % k];
                }
                Ok(())
            })?;
            // All are at most a half: what finds another is a device that computes wrongly.
            let wrong = || Error::Cuda {
                what: "encoding a matrix in NF4".into(),
                why: "a scale is not finite, and all weights are".into(),
            };
            Ok((encoded.ok_or_else(wrong)?, values))
        }
        Stored::Q4K => {
            let block = BlockType::Q4_K;
            let row_bytes = block.row_bytes(k);
            let mut own: Vec<u8> =
                (0..rows * row_bytes).map(|i| (256.0 * spread(i)) as u8).collect();
            for block in own.chunks_exact_mut(block.block_bytes()) {
                block[..2].copy_from_slice(&f16::from_f32(0.001).to_le_bytes());
                block[2..4].copy_from_slice(&f16::from_f32(0.01).to_le_bytes());
            }
            for (row, bytes) in values.chunks_exact_mut(k).zip(own.chunks_exact(row_bytes)) {
                decode_row(block, row, bytes);
            }
            let all: Vec<u8> = own.iter().copied().cycle().take(n * row_bytes).collect();
            Ok((QuantMatrix::from_blocks(gpu, block, [n, k], &all)?, values))
        }
    }
}

/// `out [1, n] = x wᵀ`, x and out f32, w [n, k].
pub fn token(bench: &mut Bench<'_>, stored: Stored, n: usize, k: usize) -> Result<()> {
    let gpu = bench.gpu;
    let (w, rows) = matrix(bench, stored, n, k)?;
    let x = bench.pool.take::<f32>(gpu, k)?;
    let mut out = gpu.alloc::<f32>(n)?;
    let factor = Factor::plain(x.floats(), 1, k);
    gemm(gpu, Product::nt(Precision::Bf16, out.slice_mut().into(), factor, &w))?;
    let kind = w.type_name().to_lowercase();
    let name = format!("matmul nt {kind} 1 x {n} x {k}");
    let low = |x: f64| bf16::from_f32(x as f32).to_f64();
    for at in bench.pool.some(n) {
        let row = &rows[at % (rows.len() / k) * k..][..k];
        let terms = row.iter().enumerate().map(|(l, &w)| low(w.into()) * low(bench.pool.at(&x, l)));
        let (wanted, sizes) = terms.fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()));
        let tolerance = k as f64 * EPS_F32 * sizes;
        expect(&name, at, get(gpu, out.slice(), at)?, wanted, tolerance)?;
    }
    let amount = w.bytes() as f64 + 4.0 * (k + n) as f64;
    let job = Job { op: format!("quantised {kind} 1 {n} {k}"), name, amount, bound: Bound::Copy };
    bench.measure(job, &mut || {
        gemm(gpu, Product::nt(Precision::Bf16, out.slice_mut().into(), factor, &w))
    })
}
