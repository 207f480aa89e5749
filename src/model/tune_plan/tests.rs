use super::*;
use crate::autograd::Dropout;
use crate::format::peft::{LoraSpec, Target};
use crate::model::tune::{Slice, TuneModel};
use crate::model::weights::Weights;
use crate::tensor::Grads;
use std::path::Path;

fn lora(targets: &[Target], dropout: f32) -> TuneMethod {
    let spec = LoraSpec { r: 4, alpha: 8.0, dropout, targets: targets.to_vec(), use_rslora: false };
    TuneMethod::Lora { spec, adapter: None }
}

fn qlora(targets: &[Target], dropout: f32, double_quant: bool) -> TuneMethod {
    match lora(targets, dropout) {
        TuneMethod::Lora { spec, adapter } => TuneMethod::QLora { spec, adapter, double_quant },
        other => other,
    }
}

/// Sequences of `longest` tokens, of which each scores all but its last.
fn run(model: &mut TuneModel, n: usize, longest: usize) {
    let ids: Vec<u32> = (0..n as u32).map(|i| i * 7 % 100 + 3).collect();
    let label = |i: usize| (!(i + 1).is_multiple_of(longest) && i + 1 < n).then(|| ids[i + 1]);
    let labels: Vec<Option<u32>> = (0..n).map(label).collect();
    let mut spans = vec![longest; n / longest];
    spans.extend(Some(n % longest).filter(|&rest| rest > 0));
    let mut grads = Grads::zeros(model.params()).expect("room");
    let slice = Slice { ids: &ids, labels: &labels, spans: &spans, sources: &[] };
    model.run(&slice, Some((&mut grads, 1.0)), Dropout::default()).expect("a pass");
}

#[test]
fn the_walk_takes_what_the_pass_takes() {
    use Target::{W1, W2, Wq, Wv};
    let methods = [
        TuneMethod::Full,
        lora(&[Wq, Wv], 0.0),
        lora(&[Wq, Wv], 0.1),
        lora(&Target::ALL, 0.0),
        lora(&Target::ALL, 0.1),
        lora(&[W1, W2], 0.1),
        qlora(&Target::ALL, 0.1, true),
        qlora(&[Wq, W2], 0.0, false),
    ];
    for fixture in ["mini-gqa", "mini-headdim-bias"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        for method in &methods {
            for precision in [Precision::F32, Precision::Bf16] {
                for gradient_checkpointing in [false, true] {
                    let method = method.clone();
                    let options = TuneOptions {
                        threads: 1,
                        precision,
                        method,
                        gradient_checkpointing,
                        seed: 1,
                        score: false,
                        value: false,
                    };
                    let mut model = TuneModel::open(&dir, &options).expect("a fixture");
                    let slice = SliceSize { tokens: 96, longest: 40 };
                    run(&mut model, slice.tokens, slice.longest);
                    let reserved = model.pool.bytes();
                    for tokens in [60, 17, 95] {
                        run(&mut model, tokens, 30);
                        assert_eq!(model.pool.bytes(), reserved, "{tokens}: {options:?}");
                    }
                    let planned = activations(model.config(), &options, slice);
                    assert_eq!(planned.reserved(), model.pool.bytes(), "{fixture}: {options:?}");
                    assert!(planned.written() <= planned.reserved());
                    let kernels = kernels(model.config(), &options, slice);
                    let held = model.scratch.bytes() as u64;
                    assert!(held < kernels + (1 << 20), "{held} of {kernels}: {options:?}");
                }
            }
        }
    }
}

#[test]
fn panels_have_the_planned_size() {
    use puna_cpu::quant::BlockType;
    for (n, k) in [(16, 256), (30, 512), (576, 1536)] {
        for block in [BlockType::Q4_0, BlockType::Q4_K, BlockType::Q6_K] {
            let made = PackedMatrix::zeroed(block, n, k).bytes();
            assert_eq!(PackedMatrix::bytes_of(block, n, k), made);
        }
    }
}

#[test]
fn a_frozen_base_holds_what_is_planned_for_it() {
    for (fixture, nf4) in [("mini-gqa", true), ("mini-headdim-bias", false), ("mini-mha", true)] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        let bytes = WeightBytes::of(&Checkpoint::open(&dir).expect("a fixture")).expect("sizes");
        let cpu = crate::kernels::Cpu::new(1).expect("a thread");
        let checkpoint = Checkpoint::open(&dir).expect("a fixture");
        for precision in [Precision::F32, Precision::Bf16] {
            let narrow = matches!(precision, Precision::Bf16);
            let weights = match nf4 {
                true => Weights::load_nf4(&cpu, &checkpoint, narrow, true),
                false => Weights::load_as(&cpu, &checkpoint, narrow),
            };
            let weights = weights.expect("weights");
            let planned = bytes.frozen(precision, nf4.then_some(true));
            let table = if checkpoint.config.tie_embeddings { 0 } else { weights.tok_emb.bytes() };
            let held = weights.bytes_per_token() + table;
            assert_eq!(planned - bytes.vectors, held as u64, "{fixture} {precision:?}");
        }
    }
}

#[test]
fn absurd_sizes_do_not_overflow() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mini-gqa");
    let config = Checkpoint::open(&dir).expect("a fixture").config;
    let options = TuneOptions {
        threads: 1,
        precision: Precision::F32,
        method: TuneMethod::Full,
        gradient_checkpointing: false,
        score: false,
        value: false,
        seed: 1,
    };
    let weights = WeightBytes { f32: u64::MAX / 2, ..WeightBytes::default() };
    let slice = SliceSize { tokens: usize::MAX / 2, longest: usize::MAX / 2 };
    let run = RunSize { slice, state_bytes: 8, n_tokens: 0 };
    assert!(memory_plan(&config, &weights, &options, &run).total() > 1 << 60);
}
