//! The LLaMA model: settings, weights, cache, forward pass.

pub mod kv_cache;
pub mod llama;
pub mod weights;
