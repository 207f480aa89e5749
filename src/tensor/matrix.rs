//! A weight matrix [n, k]: rearranged panels of a quantised format, NF4 that was made of a
//! checkpoint's elements, elements used in place from the file they lie in, or a parameter that
//! training changes.

use crate::tensor::params::{ParamId, Params};
use crate::tensor::values::Values;
use crate::tensor::view::Floats;
use puna_cpu::convert;
use puna_cpu::matmul::{Dense, DenseMatrix};
use puna_cpu::qmatmul::PackedMatrix;
use puna_cpu::quant::BlockType;
use puna_cpu::quant::nf4::Nf4Matrix;
use std::fmt;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use crate::tensor::cuda_matrix::CudaMatrix;

/// Bytes that somebody else owns and keeps alive: a mapped file's tensor, or a buffer.
#[derive(Clone)]
pub struct Bytes(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Bytes {
    /// Shares `owner`'s bytes.
    pub fn new(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Bytes(Arc::new(owner))
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// How a matrix is stored.
#[derive(Clone)]
pub enum MatrixData {
    /// Quantised, in panels for the kernels.
    Packed(Arc<PackedMatrix>),
    /// NF4 codes and scales.
    Nf4(Arc<Nf4Matrix>),
    /// F32, F16 or BF16 elements, row-major.
    Dense(Bytes, Dense),
    /// Quantised, as the file stores it: good for looking rows up, not for products.
    Blocks(Bytes, BlockType),
    /// F32 values that an optimiser owns.
    Param(ParamId),
    /// Elements on a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaMatrix>),
}

/// A weight of one dimension: a norm or a bias. Clones share the values.
#[derive(Clone)]
pub enum Vector {
    /// Values of the checkpoint.
    Fixed(Arc<Values>),
    /// Values that an optimiser owns.
    Param(ParamId),
}

impl Vector {
    /// The values; `params` are those of the same model.
    pub fn values<'a>(&'a self, params: &'a Params) -> &'a Values {
        match self {
            Vector::Fixed(values) => values,
            Vector::Param(id) => &params.get(*id).value,
        }
    }

    /// The values, for a kernel.
    pub fn floats<'a>(&'a self, params: &'a Params) -> Floats<'a> {
        self.values(params).floats()
    }

    /// The parameter that it is, if it is trained.
    pub fn param(&self) -> Option<ParamId> {
        match self {
            Vector::Fixed(_) => None,
            Vector::Param(id) => Some(*id),
        }
    }
}

/// A weight matrix [n, k]; `y = x wᵀ`.
#[derive(Clone)]
pub struct Matrix {
    /// Output features.
    pub n: usize,
    /// Input features.
    pub k: usize,
    /// The weights.
    pub data: MatrixData,
}

impl Matrix {
    /// The element type's name, as GGUF spells it where it has it.
    pub fn type_name(&self) -> &'static str {
        match &self.data {
            MatrixData::Packed(w) => w.block().name(),
            MatrixData::Nf4(_) => "NF4",
            MatrixData::Blocks(_, block) => block.name(),
            MatrixData::Dense(_, Dense::F32) | MatrixData::Param(_) => "F32",
            MatrixData::Dense(_, Dense::F16) => "F16",
            MatrixData::Dense(_, Dense::BF16) => "BF16",
            #[cfg(feature = "cuda")]
            MatrixData::Cuda(w) => w.type_name(),
        }
    }

    /// Bytes that a product with this matrix reads.
    pub fn bytes(&self) -> usize {
        match &self.data {
            MatrixData::Packed(w) => w.bytes(),
            MatrixData::Nf4(w) => w.bytes(),
            MatrixData::Dense(bytes, _) | MatrixData::Blocks(bytes, _) => bytes.as_slice().len(),
            MatrixData::Param(_) => self.n * self.k * size_of::<f32>(),
            #[cfg(feature = "cuda")]
            MatrixData::Cuda(w) => w.bytes(),
        }
    }

    /// The parameter that it is, if it is trained.
    pub fn param(&self) -> Option<ParamId> {
        match self.data {
            MatrixData::Param(id) => Some(id),
            _ => None,
        }
    }

    /// The view that dense kernels of the CPU take; `None` for quantised data and for what lives
    /// elsewhere. `params` are those of the same model.
    pub fn dense<'a>(&'a self, params: &'a Params) -> Option<DenseMatrix<'a>> {
        let (bytes, dtype) = match &self.data {
            MatrixData::Dense(bytes, dtype) => (bytes.as_slice(), *dtype),
            MatrixData::Param(id) => {
                (convert::f32_bytes(params.get(*id).value.host()?), Dense::F32)
            }
            MatrixData::Packed(_) | MatrixData::Nf4(_) | MatrixData::Blocks(..) => return None,
            #[cfg(feature = "cuda")]
            MatrixData::Cuda(_) => return None,
        };
        Some(DenseMatrix { bytes, dtype, n: self.n, k: self.k })
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix[{}, {}] {}", self.n, self.k, self.type_name())
    }
}
