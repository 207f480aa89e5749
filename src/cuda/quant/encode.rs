//! Weights to NF4 on the device, with the codes and scales of `puna_cpu::quant::nf4`. Source:
//! `cuda/nf4_encode.cu`.

use super::super::params::{self, Nf4EncodeParams};
use super::super::{DeviceSlice, Element, Function, Gpu, Launch, Modules, arg, u32_of};
use super::matrix::{QuantMatrix, rows_at_once};
use super::planes::{self, Nf4Scales};
use crate::{Error, Result};
use half::{bf16, f16};
use puna_cpu::quant::nf4::Nested;

/// The kernels.
pub(crate) struct Encode {
    scales: Function,
    codes: Function,
}

impl Encode {
    pub(super) fn load(modules: &Modules) -> Result<Self> {
        Ok(Encode {
            scales: modules.function("nf4_scales")?,
            codes: modules.function("nf4_codes")?,
        })
    }
}

/// A type that weights are encoded from.
pub trait Encodable: Element {
    /// The kernels' number of it.
    const TAG: u32;
}

impl Encodable for f32 {
    const TAG: u32 = params::MATMUL_F32;
}

impl Encodable for bf16 {
    const TAG: u32 = params::MATMUL_BF16;
}

impl Encodable for f16 {
    const TAG: u32 = params::MATMUL_F16;
}

impl QuantMatrix {
    /// Encodes a matrix [n, k] whose weights `fill` gives, some rows at a time: from weight `first` of
    /// the flat matrix on, as many as there is room for. The bits of
    /// [`Nf4Matrix::encode`](puna_cpu::quant::nf4::Nf4Matrix::encode); `None` where a weight is not
    /// finite.
    ///
    /// # Errors
    /// The first of `fill`'s; when the device has no room, or fails.
    pub fn encode_nf4<T: Encodable>(
        gpu: &Gpu,
        [n, k]: [usize; 2],
        double_quant: bool,
        mut fill: impl FnMut(usize, &mut [T]) -> Result<()>,
    ) -> Result<Option<QuantMatrix>> {
        let overflow = || Error::Unsupported(format!("a matrix of {n} x {k} weights"));
        let len = n.checked_mul(k).ok_or_else(overflow)?;
        let format = planes::nf4_format(k, double_quant);
        let mut matrix = QuantMatrix::empty(gpu, format, [n, k])?;
        // Whole blocks, whatever a row is.
        let rows = rows_at_once(k).next_multiple_of(planes::NF4_BLOCK).min(n);
        let mut piece = gpu.alloc::<T>(rows * k)?;
        let scales = gpu.alloc::<f32>(len.div_ceil(planes::NF4_BLOCK))?;
        for first in (0..if k == 0 { 0 } else { n }).step_by(rows.max(1)) {
            let rows = rows.min(n - first);
            let mut piece = piece.slice_mut().range_mut(0..rows * k);
            gpu.upload_pieces(&mut piece, rows * k, |_, out| fill(first * k, out))?;
            let block = first * k / planes::NF4_BLOCK;
            let blocks = block..(block + (rows * k).div_ceil(planes::NF4_BLOCK));
            let of = scales.slice().range(blocks);
            encode(gpu, piece.as_slice().address(), T::TAG, of, [rows, k], matrix.codes_at(first))?;
        }
        let mut found = vec![0.0; scales.len()];
        gpu.download(&scales.slice(), &mut found)?;
        if !found.iter().all(|scale| scale.is_finite()) {
            return Ok(None);
        }
        let nested = double_quant.then(|| Nested::encode(&found));
        let scale = |block: usize| nested.as_ref().map_or(found[block], |n| n.scale(block));
        matrix.put_nf4_scales(gpu, &Nf4Scales { nested: nested.as_ref(), scale: &scale })?;
        Ok(Some(matrix))
    }
}

/// Scales and codes of rows that begin with a block.
fn encode(
    gpu: &Gpu,
    mut from: u64,
    type_: u32,
    scales: DeviceSlice<'_, f32>,
    [rows, k]: [usize; 2],
    mut codes: u64,
) -> Result<()> {
    let mut p =
        Nf4EncodeParams { rows: i64::from(super::size(rows)?), cols: super::size(k)?, type_ };
    let threads = params::NF4_ENCODE_THREADS as usize;
    let launch = |n: usize| -> Result<Launch> {
        let grid = [u32_of("blocks of the NF4 encoder", n)?, 1, 1];
        Ok(Launch { grid, block: params::NF4_ENCODE_THREADS, shared_bytes: 0 })
    };
    let kernels = &gpu.quant.encode;
    let mut to = scales.address();
    let mut args = [arg(&mut to), arg(&mut from), arg(&mut p)];
    let warps = launch(scales.len().div_ceil(threads / 32))?;
    // SAFETY: the caller's rows are [rows, k] of the type and begin with a block, for each of whose
    // blocks there is a scale; the arguments are the kernel's.
    unsafe { gpu.launch(&kernels.scales, warps, &mut args)? };
    let mut args = [arg(&mut codes), arg(&mut from), arg(&mut to), arg(&mut p)];
    let bytes = launch((rows * planes::code_bytes(k)).div_ceil(threads))?;
    // SAFETY: as above; behind `codes` are those rows of the matrix' plane.
    unsafe { gpu.launch(&kernels.codes, bytes, &mut args) }
}
