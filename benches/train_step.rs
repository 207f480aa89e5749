//! How long is a training step (forward, backward, AdamW) on SmolLM2-135M's shape?
//!
//! `cargo bench --features criterion --bench train_step [-- FILTER]`. Weights are random, a step is one
//! row of 512 tokens; `PUNA_BENCH_THREADS` sets the threads (1 unless given). Elements are tokens.

use criterion::{Criterion, Throughput};
use puna::autograd::Dropout;
use puna::model::shapes;
use puna::model::tune::{LoraSpec, Precision, Slice, TuneMethod, TuneModel, TuneOptions};
use puna::tensor::Grads;
use puna::train::Holder;
use puna::train::optimizer::{OptimArgs, make};

const ROW: usize = 512;
/// Small, so that the weights stay what they are however many steps are timed.
const LEARNING_RATE: f32 = 1e-6;

fn lora() -> TuneMethod {
    let spec = LoraSpec {
        r: 8,
        alpha: 16.0,
        dropout: 0.0,
        targets: LoraSpec::DEFAULT_TARGETS.to_vec(),
        use_rslora: false,
    };
    TuneMethod::Lora { spec, adapter: None }
}

fn main() {
    let threads = std::env::var("PUNA_BENCH_THREADS").ok().and_then(|n| n.parse().ok());
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let shape = shapes::named("smollm2-135m").expect("it is known");
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.gguf");
    let dtype = shapes::dtype_named("F32").expect("it is known");
    shape.save(&path, dtype, 0).expect("room for the file");
    let ids: Vec<u32> = (0..ROW as u32).map(|i| (7 + i * 31) % shape.vocab_size as u32).collect();
    let labels: Vec<Option<u32>> = ids[1..].iter().copied().map(Some).chain([None]).collect();
    let slice = Slice { ids: &ids, labels: &labels, spans: &[ROW], sources: &[] };
    let mut group = criterion.benchmark_group("smollm2-135m, a row of 512");
    group.throughput(Throughput::Elements(ROW as u64));
    for (name, method) in [("full", TuneMethod::Full), ("lora q,v", lora())] {
        for (type_name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
            let options = TuneOptions {
                threads: threads.unwrap_or(1),
                precision,
                method: method.clone(),
                gradient_checkpointing: false,
                score: false,
                value: false,
                seed: 0,
            };
            let mut model = TuneModel::open(&path, &options).expect("it opens");
            let mut optimizer =
                make("adamw", &OptimArgs::default(), model.params()).expect("it is known");
            let mut grads = Grads::zeros(model.params()).expect("room");
            group.bench_function(format!("{name} {type_name}"), |b| {
                b.iter(|| {
                    grads.clear().expect("it is there");
                    let wanted = Some((&mut grads, 1.0 / (ROW - 1) as f32));
                    let run = model.run(&slice, wanted, Dropout::default()).expect("it runs");
                    // A model that knows nothing: near the logarithm of the vocabulary.
                    let loss = run.nll / (ROW - 1) as f64;
                    assert!((8.0..16.0).contains(&loss), "{loss}");
                    let step = model.with_params(|device, params| {
                        optimizer.step(device, params, &grads, LEARNING_RATE, 1.0)
                    });
                    step.expect("it steps");
                });
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
