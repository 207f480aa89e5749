//! Every kernel family against f64 references, on a GPU or on the host harness (`PUNA_CUDA`, see
//! `support::gpu`). One line a family, sorted.

mod stored;
mod support;

mod attention;
mod commands;
mod cross_entropy;
mod elementwise;
mod embedding;
mod flash;
mod flash_sm90a;
mod harness;
mod kv;
mod lora;
mod lora_quant;
mod matmul;
mod matmul_sm90a;
mod memory;
mod model;
mod optim;
mod qlora;
mod quant;
mod rms_norm;
mod rope;
mod sample;
mod serve;
mod serving;
mod steps;
mod swiglu;
