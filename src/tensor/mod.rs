//! Weight matrices and where their bytes live; parameters and gradients. Activations are plain
//! f32 rows in buffers of the model's workspace.

mod matrix;
mod params;

pub use matrix::{Bytes, Matrix, MatrixData};
pub use params::{Grads, Param, ParamId, Params};
pub use puna_cpu::buffer::Buffer;
