//! CPU kernels of Puna. Slices in, slices out: no tensors, files or devices.
//!
//! Every kernel takes an [`Isa`](isa::Isa) and computes the same bits for any number of threads
//! of its [`Team`](team::Team). `reference` (feature "reference") holds the plain f64 loops that
//! the tests measure the kernels against.

// Kernels walk several arrays by one index; an iterator over one of them hides which.
#![allow(clippy::needless_range_loop)]

pub mod attention;
pub mod buffer;
pub mod convert;
pub mod cross_entropy;
pub mod dropout;
pub mod elementwise;
pub mod embedding;
pub mod flash;
pub mod floats;
pub mod gemm;
pub mod isa;
pub mod limits;
pub mod matmul;
pub mod optim;
pub mod products;
pub mod qmatmul;
pub mod quant;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
pub mod rms_norm;
pub mod rope;
pub mod share;
pub mod simd;
pub mod softmax;
pub mod swiglu;
pub mod team;
#[cfg(any(test, feature = "reference"))]
pub mod testing;
