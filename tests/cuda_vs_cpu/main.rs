//! Every kernel family against f64 references, on a GPU or on the host harness (`PUNA_CUDA`, see
//! `support::gpu`). One line a family, sorted.

mod stored;
mod support;

mod cross_entropy;
mod elementwise;
mod embedding;
mod flash;
mod flash_sm90a;
mod harness;
mod lora;
mod matmul;
mod matmul_sm90a;
mod model;
mod optim;
mod rms_norm;
mod rope;
mod sample;
mod swiglu;
