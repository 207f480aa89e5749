//! Weight matrices and where their bytes live; parameters and gradients; activations and their
//! pool.

#[cfg(feature = "cuda")]
mod cuda_matrix;
mod matrix;
mod params;
mod rows;
mod values;
mod view;

#[cfg(feature = "cuda")]
pub use cuda_matrix::{CudaMatrix, OnCuda};
pub use matrix::{Bytes, Matrix, MatrixData, Vector};
pub use params::{Grads, Low, Param, ParamId, Params};
pub use puna_cpu::buffer::Buffer;
pub use rows::{DType, Pool, Rows, size_class};
pub use values::{Halves, Home, Number, Numbers, Values};
pub use view::{Floats, FloatsMut};
