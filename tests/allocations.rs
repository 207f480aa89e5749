//! After load and first step nothing is allocated, on any thread: decoding, further prompts no longer
//! than the longest before, several sessions together; greedy and with every sampling step.
//!
//! A program of its own, since the allocator is global, with one test, since it counts for all.
//! Memory that is mapped directly does not pass the allocator; that a session's bytes stay the same
//! shows that there was none.

use puna::infer::{SamplerConfig, Session, SessionOptions, step_all};
use puna::model::llama::{KvType, LoadOptions, Model};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The system's allocator, counting what is asked of it while it is told to.
struct Counting;

static ARMED: AtomicBool = AtomicBool::new(false);
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn count() {
    if ARMED.load(Ordering::SeqCst) {
        COUNT.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promise.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `f` and whoever runs meanwhile allocates.
fn allocations(f: impl FnOnce()) -> usize {
    COUNT.store(0, Ordering::SeqCst);
    ARMED.store(true, Ordering::SeqCst);
    f();
    ARMED.store(false, Ordering::SeqCst);
    COUNT.load(Ordering::SeqCst)
}

const CTX: usize = 320;
/// Steps after it cross a boundary of attention's chunks of 256 positions.
const PROMPT: usize = 240;

fn samplers() -> [(&'static str, SamplerConfig); 4] {
    let greedy = SamplerConfig::GREEDY;
    let sampled = SamplerConfig { temperature: 0.8, seed: 1, ..greedy };
    let all = SamplerConfig { top_k: 40, top_p: 0.9, repetition_penalty: 1.3, ..sampled };
    [
        ("greedy", greedy),
        ("greedy with a penalty", SamplerConfig { repetition_penalty: 1.2, ..greedy }),
        ("top-p over the whole vocabulary", SamplerConfig { top_p: 0.97, min_p: 0.01, ..sampled }),
        ("temperature, top-k, top-p, penalty", all),
    ]
}

fn ids(model: &Model, n: usize, from: u32) -> Vec<u32> {
    (0..n as u32).map(|i| (from + i * 31) % model.config.vocab_size as u32).collect()
}

fn steps(session: &mut Session, n: usize) {
    for _ in 0..n {
        session.step().expect("a token");
    }
}

/// What is done to a session while it is counted.
type Case<'a> = &'a dyn Fn(&mut Session);

fn check(name: &str, model: &Arc<Model>, kv_type: KvType, failures: &mut Vec<String>) {
    for (how, sampler) in samplers() {
        let options = SessionOptions {
            ctx: CTX,
            kv_type,
            sampler,
            end_ids: Some(vec![]),
            ..SessionOptions::default()
        };
        let (first, second) = (ids(model, PROMPT, 3), ids(model, PROMPT - 23, 8));
        let mut session = Session::new(Arc::clone(model), options).expect("a session");
        session.prefill(&first).expect("the prompt runs");
        steps(&mut session, 1);
        let bytes = session.bytes();
        // Across the boundary of a chunk, and again from the beginning.
        let cases: [(&str, Case<'_>); 4] = [
            ("steps", &|s| steps(s, 30)),
            ("a second prompt", &|s| assert_eq!(s.prompt(&second).expect("it runs"), 0)),
            ("steps after it", &|s| steps(s, 20)),
            ("a third behind it", &|s| s.prefill(&second[..7]).expect("it runs")),
        ];
        for (what, case) in cases {
            let n = allocations(|| case(&mut session));
            if n != 0 || session.bytes() != bytes {
                let now = session.bytes();
                failures.push(format!("{name}, {how}, {what}: {n}; {bytes} bytes, then {now}"));
            }
        }
    }
    together(name, model, failures);
}

/// Several sessions in one pass.
fn together(name: &str, model: &Arc<Model>, failures: &mut Vec<String>) {
    let options = SessionOptions { ctx: 200, end_ids: Some(vec![]), ..SessionOptions::default() };
    let mut all: Vec<Session> = (0..3)
        .map(|i| {
            let mut one = Session::new(Arc::clone(model), options.clone()).expect("a session");
            one.prefill(&ids(model, 10 + i, 5)).expect("the prompt runs");
            one
        })
        .collect();
    let mut sessions: Vec<&mut Session> = all.iter_mut().collect();
    for _ in 0..2 {
        assert_eq!(step_all(&mut sessions).expect("tokens"), 3);
    }
    let n = allocations(|| {
        for _ in 0..20 {
            step_all(&mut sessions).expect("tokens");
        }
    });
    if n != 0 {
        failures.push(format!("{name}, three sessions together: {n}"));
    }
}

#[test]
fn nothing_is_allocated_after_the_first_step() {
    // What counts nothing proves nothing.
    assert!(allocations(|| drop(std::hint::black_box(Box::new(1u8)))) >= 1);
    let threads = std::thread::spawn(|| {
        while !ARMED.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        drop(std::hint::black_box(vec![1u8; 100]));
    });
    let elsewhere = allocations(|| {
        while COUNT.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    });
    threads.join().expect("the other thread ends");
    assert!(elsewhere >= 1, "an allocation of another thread was not seen");

    let fixture =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let models: [(&str, PathBuf, KvType); 4] = [
        ("built-in", "builtin".into(), KvType::F16),
        ("F32", fixture("mini-gqa"), KvType::Q8_0),
        ("BF16", fixture("mini-bf16-sharded"), KvType::Bf16),
        ("dynamic RoPE", fixture("mini-dynamic"), KvType::F32),
    ];
    let mut failures = vec![];
    for (name, path, kv_type) in models {
        for threads in [1, 2] {
            let model = Model::load(&path, &LoadOptions::threads(threads)).expect("it loads");
            check(&format!("{name}, {threads} threads"), &Arc::new(model), kv_type, &mut failures);
        }
    }
    assert!(failures.is_empty(), "{} cases:\n{}", failures.len(), failures.join("\n"));
}
