//! Weight matrices and where their bytes live. Activations are plain f32 rows in buffers of the
//! model's workspace.

mod matrix;

pub use matrix::{Bytes, Matrix, MatrixData};
