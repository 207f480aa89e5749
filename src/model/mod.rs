//! (interfaces agreed on; bodies being written)

pub mod checkpoint;
pub mod config;
pub mod llama;
pub mod names;
pub mod rope;
