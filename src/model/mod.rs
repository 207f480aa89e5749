//! (interfaces agreed on; bodies being written)

pub mod llama;
