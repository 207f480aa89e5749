//! Training beside quantised weights on a GPU against the CPU: bases encoded in NF4 and bases that a
//! GGUF file has quantised, which stay so on the device.

use puna::format::FileDType;
use puna::model::convert::quantize;
use puna::model::export::WriteOptions;
use puna::model::tune::{Precision, TuneMethod};
use puna_cpu::quant::BlockType;
use std::path::Path;

use crate::model::{both, compare, compare_low, lora, options, spec};
use crate::support::fixture;

fn qlora(double_quant: bool) -> TuneMethod {
    TuneMethod::QLora { spec: spec(), adapter: None, double_quant }
}

#[test]
fn gradients_beside_nf4_are_those_of_the_cpu() {
    // Both decode the same weights and sum in f32, in other orders: the suite's bound beside
    // transformers.
    compare("mini-gqa", &options(qlora(true), Precision::F32, false), 1e-4);
    compare("mini-gqa", &options(qlora(false), Precision::F32, true), 1e-4);
    // Rows of 42 and 104 weights: blocks begin inside them.
    compare("mini-headdim-bias", &options(qlora(true), Precision::F32, false), 1e-4);
}

#[test]
fn gradients_beside_nf4_in_bf16_are_as_near_to_those_in_f32_as_the_cpu_s() {
    compare_low("mini-gqa", qlora(true), 2.0);
    compare_low("mini-headdim-bias", qlora(true), 2.0);
}

/// A fixture as a GGUF file of this type.
fn quantised(model: &str, block: BlockType, dir: &Path) -> String {
    let from = fixture(model);
    let to = dir.join(format!("{model}-{}.gguf", block.name()));
    quantize(&from, &to, FileDType::Block(block), &WriteOptions::default()).unwrap();
    to.to_str().unwrap().to_owned()
}

#[test]
fn gradients_beside_the_blocks_of_a_file_are_those_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    // The table is tied to the head: looked up, multiplied, and passed by the derivative.
    for block in [BlockType::Q4_0, BlockType::Q8_0] {
        let model = quantised("mini-gqa", block, dir.path());
        compare(&model, &options(lora(), Precision::F32, false), 1e-4);
    }
    let model = quantised("mini-mha", BlockType::Q5_1, dir.path());
    compare_low(&model, lora(), 2.0);
}

#[test]
fn weights_take_as_many_bytes_on_the_device_as_quantised_ones_do() {
    let dir = tempfile::tempdir().unwrap();
    let model = quantised("mini-gqa", BlockType::Q4_0, dir.path());
    let options_q4 = options(lora(), Precision::Bf16, false);
    let Some([_, on_gpu]) = both(&model, &options_q4) else { return };
    assert_eq!(on_gpu.model().weight_type(), "Q4_0");
    let Some([_, on_gpu]) = both("mini-gqa", &options(qlora(true), Precision::Bf16, false)) else {
        return;
    };
    assert_eq!(on_gpu.model().weight_type(), "NF4");
}
