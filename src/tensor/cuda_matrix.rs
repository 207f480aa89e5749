//! Weight matrices on a GPU.

use super::matrix::{Matrix, MatrixData};
use super::params::Params;
use crate::cuda::matmul::{Factor, Source};
use crate::cuda::quant::QuantMatrix;
use crate::cuda::{DeviceBuffer, Element, Floats, Gpu};
use crate::error::{Error, Result};
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

    /// The bytes of its elements, copied from the device.
    ///
    /// # Errors
    /// When the device failed; a quantised matrix.
    pub fn read(&self, gpu: &Gpu) -> Result<Vec<u8>> {
        fn copied<T: Element + Default, const N: usize>(
            gpu: &Gpu,
            x: &DeviceBuffer<T>,
            bytes: impl Fn(T) -> [u8; N],
        ) -> Result<Vec<u8>> {
            let mut all = vec![T::default(); x.len()];
            gpu.download(&x.slice(), &mut all)?;
            Ok(all.into_iter().flat_map(bytes).collect())
        }
        match self {
            CudaMatrix::F32(x) => copied(gpu, x, f32::to_le_bytes),
            CudaMatrix::Bf16(x) => copied(gpu, x, bf16::to_le_bytes),
            CudaMatrix::F16(x) => copied(gpu, x, f16::to_le_bytes),
            CudaMatrix::Quant(x) => Err(Error::Unsupported(format!("{x:?} read back"))),
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
