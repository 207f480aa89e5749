//! What several tests share.

pub mod data;
pub mod engine;
pub mod fixture;
pub mod gguf;
pub mod program;
pub mod toy;
pub mod train;
