//! How many tokens a second, single and in a prompt, for a whole model of a known shape?
//!
//! `cargo bench --features criterion --bench decode [-- FILTER]`. Weights are random;
//! `PUNA_BENCH_THREADS` sets the threads (1 unless given). Criterion's elements are tokens.

use criterion::{Criterion, Throughput};
use puna::infer::{Session, SessionOptions};
use puna::model::llama::{LoadOptions, Model};
use puna::model::shapes;
use std::sync::Arc;

const CASES: [(&str, &str); 4] = [
    ("smollm2-135m", "Q4_0"),
    ("tinyllama-1.1b", "Q4_0"),
    ("tinyllama-1.1b", "Q4_K"),
    ("tinyllama-1.1b", "Q8_0"),
];
const PROMPT: usize = 512;
const DEPTH: usize = 2048;

/// Whether one pass over a prompt gives the bits that two give, or speed would mean nothing.
fn assert_same_bits(model: &Arc<Model>, ids: &[u32]) {
    let logits = |parts: &[&[u32]]| {
        let mut session = Session::new(Arc::clone(model), options()).expect("a session");
        parts.iter().for_each(|part| session.prefill(part).expect("it runs"));
        session.logits().expect("they are there").to_vec()
    };
    assert!(logits(&[&ids[..40]]) == logits(&[&ids[..17], &ids[17..40]]));
}

fn options() -> SessionOptions {
    SessionOptions { ctx: DEPTH + 64, end_ids: Some(vec![]), ..SessionOptions::default() }
}

fn main() {
    let threads = std::env::var("PUNA_BENCH_THREADS").ok().and_then(|n| n.parse().ok());
    let threads = threads.unwrap_or(1);
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let dir = tempfile::tempdir().expect("a folder");
    for (name, type_name) in CASES {
        let shape = shapes::named(name).expect("it is known");
        let path = dir.path().join(format!("{name}-{type_name}.gguf"));
        let dtype = shapes::dtype_named(type_name).expect("it is known");
        shape.save(&path, dtype, 0).expect("room for the file");
        let model = Arc::new(Model::load(&path, &LoadOptions::threads(threads)).expect("it loads"));
        let vocab = shape.vocab_size as u32;
        let ids: Vec<u32> = (0..DEPTH as u32).map(|i| (7 + i * 31) % vocab).collect();
        assert_same_bits(&model, &ids);
        let mut session = Session::new(Arc::clone(&model), options()).expect("a session");
        let mut group = criterion.benchmark_group(format!("{name} {type_name} x{threads}"));
        group.throughput(Throughput::Elements(PROMPT as u64));
        group.bench_function(format!("prompt of {PROMPT}"), |b| {
            b.iter(|| {
                session.truncate(0);
                session.prefill(&ids[..PROMPT]).expect("it runs");
            });
        });
        group.throughput(Throughput::Elements(1));
        for depth in [1, DEPTH] {
            session.truncate(0);
            session.prefill(&ids[..depth]).expect("it runs");
            session.step().expect("a token");
            group.bench_function(format!("a token at {depth}"), |b| {
                b.iter(|| {
                    session.truncate(depth);
                    session.prefill(&[5]).expect("it runs");
                });
            });
        }
        group.finish();
        std::fs::remove_file(&path).expect("it was written here");
    }
    criterion.final_summary();
}
