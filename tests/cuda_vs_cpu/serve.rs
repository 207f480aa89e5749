//! Serving on a GPU: logits, texts and sessions of whole models against the CPU's, and the bits that
//! must not depend on how a text is cut or who shares a pass.

use puna::infer::{
    Context, Draft, FinishReason, GenerateOptions, Generation, Prompts, SamplerConfig, Session,
    SessionOptions, generate, generate_batch, generate_speculative, step_all,
};
use puna::model::llama::{KvType, LoadOptions, LogitsFor, Model, Segment, Workspace};
use puna::rng::Rng;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::support::{fixture, place};

const MODELS: [&str; 7] = [
    "mini-bf16-sharded",
    "mini-dynamic",
    "mini-gqa",
    "mini-headdim-bias",
    "mini-linear",
    "mini-llama3rope",
    "mini-mha",
];
/// f32 arithmetic in another order: the promise of the contract.
const F32_BOUND: f32 = 1e-4;
static NEVER: AtomicBool = AtomicBool::new(false);

fn options(exact: bool) -> LoadOptions {
    LoadOptions { exact, ..LoadOptions::threads(1) }
}

/// The model on the GPU; `None` without one.
fn on_gpu(path: &Path, options: &LoadOptions) -> Option<Model> {
    let options = LoadOptions { place: place()?, ..options.clone() };
    Some(Model::load(path, &options).unwrap())
}

fn on_cpu(path: &Path, options: &LoadOptions) -> Model {
    Model::load(path, options).unwrap()
}

/// Any tokens of a model.
fn tokens(model: &Model, n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed, 0);
    (0..n).map(|_| (rng.uniform() * model.config.vocab_size as f64) as u32).collect()
}

/// Logits of every token, the text cut into pieces of these lengths.
fn logits(model: &Model, kv: KvType, tokens: &[u32], pieces: &[usize]) -> Vec<f32> {
    let (mut ws, mut cache) = (model.workspace(), model.new_cache(tokens.len(), kv).unwrap());
    let (mut at, mut all) = (0, vec![]);
    for &n in pieces {
        let tokens = &tokens[at..at + n];
        let cache = &mut cache;
        let segment = Segment { tokens, cache, logits: LogitsFor::All, rope_len: None };
        model.forward(&mut ws, &mut [segment]).unwrap();
        (0..n).for_each(|row| all.extend_from_slice(ws.logits(row).unwrap()));
        at += n;
    }
    assert_eq!(at, tokens.len());
    all
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// The largest difference over the largest logit.
fn difference(found: &[f32], wanted: &[f32]) -> f32 {
    assert_eq!(found.len(), wanted.len());
    let largest = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
    let off = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
    assert!(found.iter().all(|x| x.is_finite()));
    off.fold(0f32, f32::max) / largest
}

#[test]
fn logits_are_those_of_the_cpu() {
    let mut faults = vec![];
    for name in MODELS {
        let Some(gpu) = on_gpu(&fixture(name), &options(true)) else { return };
        let cpu = on_cpu(&fixture(name), &options(true));
        let tokens = tokens(&cpu, 21, 5);
        let wanted = logits(&cpu, KvType::F32, &tokens, &[21]);
        let off = difference(&logits(&gpu, KvType::F32, &tokens, &[21]), &wanted);
        if off > F32_BOUND {
            faults.push(format!("{name}: {off}"));
        }
    }
    assert!(faults.is_empty(), "{faults:?}");
}

#[test]
fn caches_of_every_type_lose_what_their_type_loses() {
    let path = fixture("mini-gqa");
    let Some(gpu) = on_gpu(&path, &options(true)) else { return };
    let cpu = on_cpu(&path, &options(true));
    let tokens = tokens(&cpu, 40, 6);
    let truth = logits(&cpu, KvType::F32, &tokens, &[40]);
    for kv in [KvType::F16, KvType::Bf16, KvType::Q8_0] {
        let by_cpu = difference(&logits(&cpu, kv, &tokens, &[40]), &truth);
        let by_gpu = difference(&logits(&gpu, kv, &tokens, &[40]), &truth);
        // Tensor cores round queries and probabilities too, to as many bits as the cache has.
        assert!(by_gpu < 4.0 * by_cpu, "{kv:?}: {by_gpu} off, on the CPU {by_cpu}");
        assert!(by_gpu > 0.0, "{kv:?} rounds");
    }
}

#[test]
fn bits_do_not_depend_on_how_a_text_is_cut_nor_on_company() {
    for (name, exact, kv) in [
        ("mini-gqa", false, KvType::F16),
        ("mini-bf16-sharded", false, KvType::Bf16),
        ("mini-headdim-bias", true, KvType::F32),
    ] {
        let Some(model) = on_gpu(&fixture(name), &options(exact)) else { return };
        let ids = tokens(&model, 40, 7);
        let whole = logits(&model, kv, &ids, &[40]);
        for pieces in [&[1usize; 40][..], &[17, 1, 22], &[39, 1]] {
            let cut = logits(&model, kv, &ids, pieces);
            assert_eq!(bits(&cut), bits(&whole), "{name} {pieces:?}");
        }
        // Among others, each of another length.
        let (mut ws, lens) = (model.workspace(), [3usize, 40, 18]);
        let mut caches: Vec<_> =
            lens.iter().map(|&len| model.new_cache(len, kv).unwrap()).collect();
        let mut segments: Vec<Segment<'_>> = caches
            .iter_mut()
            .zip(lens)
            .map(|(cache, len)| {
                let tokens = &ids[..len];
                Segment { tokens, cache, logits: LogitsFor::Last, rope_len: None }
            })
            .collect();
        model.forward(&mut ws, &mut segments).unwrap();
        for (row, len) in lens.into_iter().enumerate() {
            let vocab = model.config.vocab_size;
            let alone = &whole[(len - 1) * vocab..len * vocab];
            assert_eq!(bits(ws.logits(row).unwrap()), bits(alone), "{name}, {len} tokens");
        }
    }
}

fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions {
        sampler: SamplerConfig::GREEDY,
        max_new_tokens: n,
        stop: vec![],
        end_ids: vec![],
        ignore_eos: true,
        n: 1,
        logprobs: None,
    }
}

fn run(model: &Model, prompt: &[u32], options: &GenerateOptions) -> Generation {
    let (mut ws, capacity) = (model.workspace(), prompt.len() + options.max_new_tokens);
    let mut context = Context::new(model, capacity, KvType::F32).unwrap();
    let sink = &mut |_: usize, _: &str| Ok(());
    generate(model, &mut ws, &mut context, prompt, options, &NEVER, sink).unwrap()
}

fn ids(generation: &Generation) -> Vec<Vec<u32>> {
    generation.sequences.iter().map(|one| one.tokens.clone()).collect()
}

#[test]
fn greedy_texts_are_those_of_the_cpu() {
    for name in ["mini-gqa", "mini-dynamic"] {
        let Some(gpu) = on_gpu(&fixture(name), &options(true)) else { return };
        let cpu = on_cpu(&fixture(name), &options(true));
        let prompt = tokens(&cpu, 5, 8);
        let wanted = run(&cpu, &prompt, &greedy(24));
        assert_eq!(ids(&run(&gpu, &prompt, &greedy(24))), ids(&wanted), "{name}");
    }
}

#[test]
fn what_is_drawn_on_the_gpu_is_what_the_cpu_draws() {
    let path = fixture("mini-gqa");
    let Some(gpu) = on_gpu(&path, &options(true)) else { return };
    let cpu = on_cpu(&path, &options(true));
    let prompt = tokens(&cpu, 5, 9);
    let base = SamplerConfig { temperature: 0.8, seed: 3, ..SamplerConfig::GREEDY };
    let settings = [
        base,
        SamplerConfig { top_k: 12, top_p: 0.9, repetition_penalty: 1.3, ..base },
        SamplerConfig { min_p: 0.05, temperature: 1.5, ..base },
        SamplerConfig { temperature: 0.0, repetition_penalty: 1.4, ..base },
    ];
    for sampler in settings {
        let drawn = GenerateOptions { sampler, n: 3, ..greedy(12) };
        let logprobs = GenerateOptions { logprobs: Some(2), ..drawn.clone() };
        let wanted = run(&cpu, &prompt, &drawn);
        assert_eq!(ids(&run(&gpu, &prompt, &drawn)), ids(&wanted), "{sampler:?}");
        // Reading the logits besides changes nothing.
        assert_eq!(ids(&run(&gpu, &prompt, &logprobs)), ids(&wanted), "{sampler:?}");
    }
}

#[test]
fn guesses_change_nothing() {
    let Some(model) = on_gpu(&fixture("mini-gqa"), &options(false)) else { return };
    let prompt: Vec<u32> = [tokens(&model, 6, 10), tokens(&model, 6, 10)].concat();
    let plain = run(&model, &prompt, &greedy(20));
    let mut ws = model.workspace();
    let mut context = Context::new(&model, 32, KvType::F32).unwrap();
    let mut draft = Draft::lookup(4);
    let sink = &mut |_: usize, _: &str| Ok(());
    let options = greedy(20);
    let guessed = generate_speculative(
        &model,
        &mut ws,
        &mut context,
        &mut draft,
        &prompt,
        &options,
        &NEVER,
        sink,
    );
    assert_eq!(ids(&guessed.unwrap()), ids(&plain));
    assert!(draft.done.proposed > 0);
}

#[test]
fn many_prompts_together_are_each_alone() {
    let Some(model) = on_gpu(&fixture("mini-gqa"), &options(false)) else { return };
    let prompts: Vec<Vec<u32>> =
        (0..5).map(|i| tokens(&model, 3 + 4 * i as usize, 20 + i)).collect();
    let options = greedy(9);
    let alone: Vec<_> = prompts.iter().map(|prompt| ids(&run(&model, prompt, &options))).collect();
    let slices: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut found = vec![vec![]; slices.len()];
    let mut ws = model.workspace();
    let mut context = Context::new(&model, 40, KvType::F32).unwrap();
    let all = Prompts { ids: &slices, width: 3, ..Prompts::default() };
    let done = &mut |index: usize, generation: Generation| {
        found[index] = ids(&generation);
        Ok(())
    };
    generate_batch(&model, &mut ws, &mut context, &all, &options, &NEVER, done).unwrap();
    assert_eq!(found, alone);
}

fn session(model: &Arc<Model>, kv_type: KvType) -> Session {
    let options =
        SessionOptions { ctx: 48, kv_type, end_ids: Some(vec![]), ..SessionOptions::default() };
    Session::new(Arc::clone(model), options).unwrap()
}

fn steps(session: &mut Session, n: usize) -> Vec<u32> {
    (0..n).map(|_| session.step().unwrap()).collect()
}

#[test]
fn sessions_are_cut_copied_written_down_and_stepped_together() {
    for kv in [KvType::F16, KvType::Q8_0] {
        let Some(model) = on_gpu(&fixture("mini-mha"), &options(false)) else { return };
        let model = Arc::new(model);
        let prompt = tokens(&model, 9, 11);
        let mut one = session(&model, kv);
        one.prefill(&prompt).unwrap();
        let before = one.logits().unwrap().to_vec();
        let wanted = steps(&mut one, 12);

        let mut saved = vec![];
        let mut other = session(&model, kv);
        other.prefill(&prompt).unwrap();
        assert_eq!(bits(other.logits().unwrap()), bits(&before));
        assert_eq!(steps(&mut other, 5), wanted[..5]);
        other.save(&mut saved).unwrap();
        let mut fork = other.fork().unwrap();
        assert_eq!(steps(&mut other, 7), wanted[5..]);
        assert_eq!(steps(&mut fork, 7), wanted[5..]);
        let mut later = session(&model, kv);
        later.restore(&mut &saved[..]).unwrap();
        assert_eq!(steps(&mut later, 7), wanted[5..]);
        // Back to the prompt, whose last token runs again.
        later.truncate(prompt.len());
        assert_eq!(steps(&mut later, 3), wanted[..3]);

        let mut a = session(&model, kv);
        a.prefill(&prompt).unwrap();
        let mut b = session(&model, kv);
        b.prefill(&prompt[..4]).unwrap();
        let mut alone = b.fork().unwrap();
        for _ in 0..6 {
            assert_eq!(step_all(&mut [&mut a, &mut b]).unwrap(), 2);
        }
        assert_eq!(a.tokens()[prompt.len()..], wanted[..6]);
        assert_eq!(b.tokens()[4..], steps(&mut alone, 6)[..]);
        assert_eq!(a.finish(), None::<FinishReason>);
    }
}

#[test]
fn a_cache_of_the_cpu_is_none_of_the_gpu_s() {
    let path = fixture("mini-gqa");
    let Some(gpu) = on_gpu(&path, &options(true)) else { return };
    let (gpu, cpu) = (Arc::new(gpu), Arc::new(on_cpu(&path, &options(true))));
    let mut saved = vec![];
    let mut one = session(&cpu, KvType::F16);
    one.prefill(&[1, 2, 3]).unwrap();
    one.save(&mut saved).unwrap();
    let refused = session(&gpu, KvType::F16).restore(&mut &saved[..]).unwrap_err();
    assert!(refused.to_string().contains("another model"), "{refused}");
}

#[test]
fn adapters_serve() {
    let path = fixture("mini-gqa");
    let adapters = vec![path.join("lora-all-final")];
    let with = LoadOptions { adapters, ..options(true) };
    let Some(gpu) = on_gpu(&path, &with) else { return };
    let (cpu, plain) = (on_cpu(&path, &with), on_cpu(&path, &options(true)));
    let tokens = tokens(&cpu, 17, 12);
    let wanted = logits(&cpu, KvType::F32, &tokens, &[17]);
    assert!(difference(&logits(&gpu, KvType::F32, &tokens, &[16, 1]), &wanted) < F32_BOUND);
    let without = logits(&plain, KvType::F32, &tokens, &[17]);
    assert!(difference(&without, &wanted) > 10.0 * F32_BOUND, "the adapter does something");
    // Two models of one base are told apart.
    let base = on_gpu(&path, &options(true)).unwrap();
    assert_ne!(gpu.fingerprint().unwrap(), base.fingerprint().unwrap());
}

/// A pass that repeats is recorded and replayed: it gives what its first run gave.
#[test]
fn steps_that_are_replayed_have_the_same_bits() {
    let Some(model) = on_gpu(&fixture("mini-gqa"), &options(false)) else { return };
    let ids = tokens(&model, 30, 13);
    let whole = logits(&model, KvType::F16, &ids, &[30]);
    let (mut ws, mut cache) = (model.workspace(), model.new_cache(30, KvType::F16).unwrap());
    let step = |ws: &mut Workspace, cache: &mut _, at: usize| {
        let tokens = &ids[at..at + 1];
        let segment = Segment { tokens, cache, logits: LogitsFor::Last, rope_len: None };
        model.forward(ws, &mut [segment]).unwrap();
        ws.logits(0).unwrap().to_vec()
    };
    let vocab = model.config.vocab_size;
    for at in 0..30 {
        let found = step(&mut ws, &mut cache, at);
        assert_eq!(bits(&found), bits(&whole[at * vocab..(at + 1) * vocab]), "token {at}");
        if at == 12 {
            // Another pass in between, which takes other memory.
            logits(&model, KvType::F16, &ids, &[29, 1]);
            cache.truncate(10);
            (10..=12).for_each(|at| drop(step(&mut ws, &mut cache, at)));
        }
    }
    assert!(ws.replays() > 20, "{} steps were replayed", ws.replays());
}
