//! Weight matrices on a GPU.

use super::matrix::{Matrix, MatrixData};
use super::params::Params;
use crate::cuda::matmul::{Factor, Source};
use crate::cuda::quant::QuantMatrix;
use crate::cuda::{DeviceBuffer, Floats};
use crate::error::Result;
use half::{bf16, f16};

/// A matrix [n, k]: elements, row-major, or quantised.
pub enum CudaMatrix {
    /// Single precision.
    F32(DeviceBuffer<f32>),
    /// Its upper half.
    Bf16(DeviceBuffer<bf16>),
    /// Half precision.
    F16(DeviceBuffer<f16>),
    /// NF4, or one of GGUF's formats.
    Quant(QuantMatrix),
}

/// A matrix on a GPU as products take it.
#[derive(Clone, Copy)]
pub enum OnCuda<'a> {
    /// Its elements.
    Dense(Factor<'a>),
    /// Decoded on the way.
    Quant(&'a QuantMatrix),
}

impl CudaMatrix {
    /// The element type's name, as GGUF spells it.
    pub fn type_name(&self) -> &'static str {
        match self {
            CudaMatrix::F32(_) => "F32",
            CudaMatrix::Bf16(_) => "BF16",
            CudaMatrix::F16(_) => "F16",
            CudaMatrix::Quant(x) => x.type_name(),
        }
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        match self {
            CudaMatrix::F32(x) => 4 * x.len(),
            CudaMatrix::Bf16(x) => 2 * x.len(),
            CudaMatrix::F16(x) => 2 * x.len(),
            CudaMatrix::Quant(x) => x.bytes(),
        }
    }
}

impl Matrix {
    /// The matrix [n, k], where it lies on a GPU. A parameter is its f32 values.
    ///
    /// # Errors
    /// None yet: lengths were checked when the matrix was made.
    pub fn on_cuda<'a>(&'a self, params: &'a Params) -> Result<Option<OnCuda<'a>>> {
        let source = match &self.data {
            MatrixData::Cuda(matrix) => match &**matrix {
                CudaMatrix::F32(x) => Source::F32(x.slice()),
                CudaMatrix::Bf16(x) => Source::Bf16(x.slice()),
                CudaMatrix::F16(x) => Source::F16(x.slice()),
                CudaMatrix::Quant(x) => return Ok(Some(OnCuda::Quant(x))),
            },
            MatrixData::Param(id) => match params.get(*id).value.floats() {
                super::Floats::Cuda(Floats::F32(x)) => Source::F32(x),
                super::Floats::Cuda(Floats::Bf16(x)) => Source::Bf16(x),
                super::Floats::Host(_) => return Ok(None),
            },
            _ => return Ok(None),
        };
        let factor = Factor { source, rows: self.n, cols: self.k, transposed: false };
        Ok(Some(OnCuda::Dense(factor)))
    }
}
