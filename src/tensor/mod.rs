//! Weight matrices and where their bytes live; parameters and gradients; activations and their
//! pool.

mod matrix;
mod params;
mod rows;

pub use matrix::{Bytes, Matrix, MatrixData, Vector};
pub use params::{Grads, Param, ParamId, Params};
pub use puna_cpu::buffer::Buffer;
pub use rows::{DType, Pool, Rows, size_class};
