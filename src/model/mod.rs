//! The LLaMA model: settings, weights, cache, forward pass.

pub mod block;
pub mod checkpoint;
pub mod config;
pub mod kv_cache;
pub mod llama;
pub mod names;
pub mod rope;
pub mod shapes;
pub mod text;
pub mod tune;
mod tune_open;
mod tune_save;
pub mod weights;
