//! The LLaMA model: settings, weights, cache, forward pass; and models and adapters as files.

pub mod adapter;
pub mod block;
pub mod builtin;
pub mod checkpoint;
pub mod config;
pub mod convert;
mod encode;
pub mod export;
mod fingerprint;
mod gguf_meta;
pub mod hf_json;
pub mod kv_cache;
pub mod llama;
pub mod logits;
mod memory;
pub mod names;
pub mod panel_cache;
#[cfg(feature = "cuda")]
mod replay;
pub mod rope;
pub mod row_order;
pub mod shapes;
pub mod source;
pub mod text;
pub mod tune;
mod tune_open;
pub mod tune_plan;
mod tune_save;
pub mod weights;
#[cfg(feature = "cuda")]
mod weights_cuda;
