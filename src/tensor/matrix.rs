//! A weight matrix [n, k]: rearranged panels of a quantised format, or elements used in place
//! from the file they lie in.

use puna_cpu::matmul::{Dense, DenseMatrix};
use puna_cpu::qmatmul::PackedMatrix;
use puna_cpu::quant::BlockType;
use std::fmt;
use std::sync::Arc;

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
    /// F32, F16 or BF16 elements, row-major.
    Dense(Bytes, Dense),
    /// Quantised, as the file stores it: good for looking rows up, not for products.
    Blocks(Bytes, BlockType),
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
    /// The element type's name, as GGUF spells it.
    pub fn type_name(&self) -> &'static str {
        match &self.data {
            MatrixData::Packed(w) => w.block().name(),
            MatrixData::Blocks(_, block) => block.name(),
            MatrixData::Dense(_, Dense::F32) => "F32",
            MatrixData::Dense(_, Dense::F16) => "F16",
            MatrixData::Dense(_, Dense::BF16) => "BF16",
        }
    }

    /// Bytes that a product with this matrix reads.
    pub fn bytes(&self) -> usize {
        match &self.data {
            MatrixData::Packed(w) => w.bytes(),
            MatrixData::Dense(bytes, _) | MatrixData::Blocks(bytes, _) => bytes.as_slice().len(),
        }
    }

    /// The view that dense kernels take; `None` for quantised data.
    pub fn dense(&self) -> Option<DenseMatrix<'_>> {
        match &self.data {
            MatrixData::Dense(bytes, dtype) => {
                Some(DenseMatrix { bytes: bytes.as_slice(), dtype: *dtype, n: self.n, k: self.k })
            }
            _ => None,
        }
    }
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix[{}, {}] {}", self.n, self.k, self.type_name())
    }
}
