//! Puna: a LLaMA engine written from scratch. The floors and rooms of this crate are drawn in
//! `ARCHITECTURE.md`; `tests/suite/floors.rs` keeps imports going downward only.
#![deny(unsafe_code)]

pub mod align;
pub mod autograd;
pub mod cli;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
// Calls of the driver and launches: src/cuda/mod.rs says what makes them safe.
pub mod cuda;
pub mod data;
pub mod error;
pub mod eval;
pub mod format;
pub mod infer;
pub mod kernels;
pub mod model;
pub mod ops;
pub mod rng;
pub mod tensor;
pub mod text;
pub mod train;

pub use error::{Error, Result};
