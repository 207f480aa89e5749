//! Sessions: what they choose, when they end, how they are cancelled, saved and refused.

use crate::decode_parity::first_difference;
use crate::support::engine::{append, load};
use crate::support::{fixture, toy};
use puna::Error;
use puna::infer::{
    Context, FinishReason, GenerateOptions, SamplerConfig, Session, SessionOptions, generate,
    step_all,
};
use puna::model::llama::{Batch, KvCache, KvType, LoadOptions, LogitsFor, Model, Segment};
use puna::model::llama::{Team, TeamOptions};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn mini() -> Arc<Model> {
    Arc::new(load(&fixture::dir("mini-gqa"), 2, false))
}

fn toy_model() -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    toy::make(dir.path());
    Arc::new(load(dir.path(), 2, false))
}

fn options(ctx: usize) -> SessionOptions {
    SessionOptions { ctx, end_ids: Some(vec![]), ..SessionOptions::default() }
}

fn session(model: &Arc<Model>, options: SessionOptions) -> Session {
    Session::new(Arc::clone(model), options).unwrap()
}

fn steps(session: &mut Session, n: usize) {
    for _ in 0..n {
        session.step().unwrap();
    }
}

#[test]
fn model_and_session_go_to_other_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Model>();
    sent::<Session>();
}

#[test]
fn a_session_writes_what_generate_writes() {
    let model = toy_model();
    let ids = model.tokenizer().unwrap().encode("with a", true, true).unwrap();
    for (temperature, penalty) in [(0.0, 1.0), (0.9, 1.0), (1.2, 1.4)] {
        let sampler = SamplerConfig {
            temperature,
            repetition_penalty: penalty,
            top_p: 0.9,
            seed: 4,
            ..SamplerConfig::GREEDY
        };
        let stop = vec!["ing".to_owned(), "q".to_owned()];
        let whole = GenerateOptions {
            sampler,
            max_new_tokens: 40,
            stop: stop.clone(),
            end_ids: (0..8).collect(),
            ignore_eos: false,
            n: 1,
            logprobs: None,
        };
        let (mut ws, never) = (model.workspace(), AtomicBool::new(false));
        let mut context = Context::new(&model, 64, KvType::F16).unwrap();
        let mut sink = |_: usize, _: &str| Ok(());
        let wanted =
            generate(&model, &mut ws, &mut context, &ids, &whole, &never, &mut sink).unwrap();
        let wanted = &wanted.sequences[0];
        let mut session = session(
            &model,
            SessionOptions {
                sampler,
                stop,
                max_new_tokens: 40,
                end_ids: Some((0..8).collect()),
                ..options(64)
            },
        );
        session.prefill(&ids).unwrap();
        while session.finish().is_none() {
            session.step().unwrap();
        }
        assert_eq!(session.tokens()[ids.len()..], wanted.tokens);
        assert_eq!(session.text(), wanted.text);
        assert_eq!(session.finish(), Some(wanted.finish_reason));
    }
}

#[test]
fn a_sequence_ends_by_length_and_by_a_full_context_and_goes_on_after_a_cut() {
    let model = mini();
    let mut one = session(&model, SessionOptions { max_new_tokens: 3, ..options(32) });
    assert!(matches!(one.step(), Err(Error::Data { .. })), "an empty session has nothing to say");
    assert!(matches!(one.logits(), Err(Error::Data { .. })));
    one.prefill(&[1, 2, 3]).unwrap();
    steps(&mut one, 3);
    assert_eq!(one.finish(), Some(FinishReason::Length));
    let refused = one.step().unwrap_err().to_string();
    assert!(refused.contains("has ended (length)"), "{refused}");
    one.prefill(&[4]).unwrap();
    assert_eq!(one.finish(), None);

    let mut full = session(&model, options(8));
    full.prefill(&[1, 2, 3, 4, 5, 6]).unwrap();
    while full.finish().is_none() {
        full.step().unwrap();
    }
    // The token that the last position is chosen after does not fit any more.
    assert_eq!((full.tokens().len(), full.finish()), (9, Some(FinishReason::Length)));
    assert!(matches!(full.prefill(&[1]), Err(Error::ContextFull { needed: 10, capacity: 8 })));
    assert!(matches!(full.prompt(&[9; 9]), Err(Error::ContextFull { .. })));
    let seventh = full.tokens()[6];
    full.truncate(6);
    assert_eq!(full.step().unwrap(), seventh);
    assert!(matches!(full.prefill(&[]), Err(Error::Data { .. })));
    let beyond = model.config.vocab_size as u32;
    assert!(matches!(full.prefill(&[1, beyond]), Err(Error::Data { .. })));
    assert_eq!(full.step().unwrap_or(0), full.tokens()[7]);
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let model = mini();
    let refused = |options| Session::new(Arc::clone(&model), options).err().unwrap().to_string();
    assert!(refused(options(0)).contains("ctx = 0"));
    for ctx in [usize::MAX, usize::MAX / 64, 1 << 50] {
        assert!(refused(options(ctx)).contains("ctx ="), "{ctx}");
        assert!(ctx < usize::MAX / 64 || model.memory(ctx, KvType::F16).is_err());
    }
    let hot = SamplerConfig { temperature: f32::NAN, ..SamplerConfig::GREEDY };
    assert!(refused(SessionOptions { sampler: hot, ..options(8) }).contains("temperature"));
    let stop = vec!["x".to_owned()];
    assert!(refused(SessionOptions { stop, ..options(8) }).contains("tokenizer"));
    let (mut one, mut other) = (session(&model, options(8)), session(&mini(), options(8)));
    assert!(step_all(&mut [&mut one, &mut other]).is_err(), "models differ");
    assert_eq!(step_all(&mut [&mut one]).unwrap(), 0, "nothing to continue");
    assert_eq!(step_all(&mut []).unwrap(), 0);
}

/// Segments that are cancelled at the n-th look.
struct Impatient<'a, 'c> {
    segments: &'a mut [Segment<'c>],
    looks: &'a Cell<usize>,
    patience: usize,
}

impl Batch for Impatient<'_, '_> {
    fn segments(&mut self) -> impl Iterator<Item = Segment<'_>> {
        self.segments.segments()
    }

    fn cancelled(&self) -> bool {
        self.looks.set(self.looks.get() + 1);
        self.looks.get() > self.patience
    }
}

#[test]
fn a_pass_can_be_given_up_before_every_block_and_leaves_no_trace() {
    let model = mini();
    let n_layers = model.config.n_layers;
    let (first, second) = ([5, 6, 7, 8, 9], [10, 11, 12]);
    let mut ws = model.workspace();
    let fresh = || model.new_cache(16, KvType::F16).unwrap();
    let mut plain = fresh();
    append(&model, &mut ws, &mut plain, &first);
    let wanted = append(&model, &mut ws, &mut plain, &second);
    for patience in 0..=n_layers + 1 {
        let mut cache: KvCache = fresh();
        append(&model, &mut ws, &mut cache, &first);
        let looks = Cell::new(0);
        let logits = LogitsFor::All;
        let segment = Segment { tokens: &second, cache: &mut cache, logits, rope_len: None };
        let mut segments = [segment];
        let mut batch = Impatient { segments: &mut segments, looks: &looks, patience };
        let pass = model.forward_batch(&mut ws, &mut batch);
        // Once before every block, once before the head.
        assert_eq!(looks.get(), (patience + 1).min(n_layers + 1));
        assert_eq!(matches!(pass, Err(Error::Cancelled)), patience <= n_layers, "{patience}");
        if pass.is_ok() {
            continue;
        }
        assert_eq!(cache.len(), first.len());
        let got = append(&model, &mut ws, &mut cache, &second);
        assert_eq!(first_difference(&got, &wanted), None, "after {patience} blocks");
    }
}

#[test]
fn cancelling_a_running_call_leaves_the_session_as_it_was() {
    let model = Arc::new(Model::load("builtin".as_ref(), &LoadOptions::threads(1)).unwrap());
    let vocab = model.config.vocab_size as u32;
    let prompt: Vec<u32> = (0..4000).map(|i| i * 17 % vocab).collect();
    let mut one = session(&model, options(4096));
    one.prefill(&[1, 2, 3]).unwrap();
    let mut plain = one.fork().unwrap();
    let wanted = (plain.step().unwrap(), plain.step().unwrap());
    let handle = one.cancel_handle();
    let returned = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(5));
            handle.cancel();
            let asked = Instant::now();
            while !returned.load(Ordering::Relaxed) {
                assert!(asked.elapsed() < Duration::from_secs(20), "it goes on");
                std::thread::yield_now();
            }
        });
        assert!(matches!(one.prefill(&prompt), Err(Error::Cancelled)));
        returned.store(true, Ordering::Relaxed);
    });
    assert!(handle.is_cancelled() && one.is_cancelled());
    assert!(matches!(one.step(), Err(Error::Cancelled)), "until it is resumed");
    assert_eq!((one.tokens(), one.finish()), (&[1, 2, 3][..], None));
    one.resume();
    assert_eq!((one.step().unwrap(), one.step().unwrap()), wanted);
}

#[test]
fn a_cancelled_session_drops_out_of_common_steps() {
    let model = mini();
    let mut three = [[1, 2, 3], [4, 5, 6], [7, 8, 9]].map(|prompt| {
        let mut one = session(&model, options(32));
        one.prefill(&prompt).unwrap();
        one
    });
    three[1].cancel_handle().cancel();
    let [a, b, c] = &mut three;
    for _ in 0..4 {
        assert_eq!(step_all(&mut [&mut *a, &mut *b, &mut *c]).unwrap(), 2);
    }
    b.resume();
    for _ in 0..4 {
        assert_eq!(step_all(&mut [&mut *b, &mut *c]).unwrap(), 2);
    }
    for (one, prompt) in three.iter().zip([[1, 2, 3], [4, 5, 6], [7, 8, 9]]) {
        let mut alone = session(&model, options(32));
        alone.prefill(&prompt).unwrap();
        while alone.tokens().len() < one.tokens().len() {
            alone.step().unwrap();
        }
        assert_eq!(one.tokens(), alone.tokens());
    }
    assert_eq!(three.map(|one| one.tokens().len()), [7, 7, 11]);
}

#[test]
fn no_more_memory_is_held_than_was_declared() {
    let mut report = vec![];
    for name in ["mini-gqa", "mini-bf16-sharded", "mini-headdim-bias", "builtin"] {
        let path = if name == "builtin" { name.into() } else { fixture::dir(name) };
        for threads in [1, 3] {
            let model = Arc::new(load(&path, threads, false));
            for (ctx, kv_type) in [(40, KvType::F16), (700, KvType::Q8_0), (1300, KvType::F32)] {
                let declared = model.memory(ctx, kv_type).unwrap();
                assert!(declared.weights_bytes >= model.bytes_per_token());
                let mut one = session(&model, SessionOptions { kv_type, ..options(ctx) });
                let prompt: Vec<u32> = (0..ctx as u32 - 10).map(|i| i % 90 + 3).collect();
                one.prefill(&prompt).unwrap();
                steps(&mut one, 5);
                let most = declared.cache_bytes + declared.workspace_bytes;
                let held = one.bytes();
                if !(held <= most && most < 4 * held) {
                    report.push(format!("{name} {threads} threads {ctx}: {held} of {most}"));
                }
            }
        }
    }
    assert!(report.is_empty(), "{}", report.join("\n"));
}

#[test]
fn every_damage_to_a_saved_session_is_refused() {
    let model = mini();
    let mut one = session(&model, options(16));
    one.prefill(&[5, 6, 7, 8]).unwrap();
    one.step().unwrap();
    let mut saved = vec![];
    one.save(&mut saved).unwrap();
    let wanted = one.step().unwrap();
    let mut other = session(&model, options(16));
    let mut restore = |bytes: &[u8]| {
        other.prefill(&[1, 2]).unwrap();
        let restored = other.restore(&mut &bytes[..]);
        let next = restored.is_ok().then(|| other.step().unwrap());
        if restored.is_err() {
            assert!(other.tokens().is_empty() && other.last_logits().unwrap().is_none());
        }
        other.truncate(0);
        (restored.err().map(|error| error.to_string()), next)
    };
    assert_eq!(restore(&saved), (None, Some(wanted)));
    let mut accepted = vec![];
    // Header and tail bit by bit, what lies between byte by byte.
    for at in 0..saved.len() {
        let bits = if at < 160 || at + 16 > saved.len() { 0..8 } else { 3..4 };
        for bit in bits {
            let mut bytes = saved.clone();
            bytes[at] ^= 1 << bit;
            if restore(&bytes).0.is_none() {
                accepted.push(format!("byte {at} bit {bit}"));
            }
        }
    }
    for len in (0..saved.len()).filter(|len| *len < 300 || len % 7 == 0) {
        let (error, _) = restore(&saved[..len]);
        if !error.is_some_and(|error| error.contains("ends early")) {
            accepted.push(format!("the first {len} bytes"));
        }
    }
    // The counts of ids, of cached positions and of new tokens begin behind 51 bytes.
    for (place, lie) in [(51, u64::MAX), (51, 18), (59, 17), (59, 1 << 40), (67, 99)] {
        let mut bytes = saved.clone();
        bytes[place..place + 8].copy_from_slice(&lie.to_le_bytes());
        let (error, _) = restore(&bytes);
        if !error.is_some_and(|error| error.contains("room for")) {
            accepted.push(format!("{lie} at byte {place}"));
        }
    }
    assert!(accepted.is_empty(), "{accepted:?}");
}

#[test]
fn a_saved_session_fits_its_own_model_and_type_only() {
    let model = mini();
    let mut one = session(&model, options(16));
    one.prefill(&[5, 6, 7, 8]).unwrap();
    let mut saved = vec![];
    one.save(&mut saved).unwrap();
    let refused = |model: &Arc<Model>, options| {
        let mut other = session(model, options);
        other.restore(&mut &saved[..]).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let other = Arc::new(load(&fixture::dir("mini-mha"), 1, false));
    assert!(refused(&other, options(16)).contains("another model"));
    let exact = Arc::new(load(&fixture::dir("mini-gqa"), 1, true));
    assert!(refused(&exact, options(16)).contains("another model"));
    let wide = SessionOptions { kv_type: KvType::F32, ..options(16) };
    assert!(refused(&model, wide).contains("a cache of type f16, this session's is f32"));
    assert!(refused(&model, options(2)).contains("4 tokens, this session has room for 3"));
    assert_eq!(refused(&model, options(4)), "");
}

#[test]
fn text_and_stop_strings_go_on_after_saving() {
    let model = toy_model();
    let settings = SessionOptions {
        sampler: SamplerConfig { temperature: 1.0, seed: 8, ..SamplerConfig::GREEDY },
        max_new_tokens: 24,
        text: true,
        ..options(64)
    };
    let mut one = session(&model, settings.clone());
    one.prefill(&model.tokenizer().unwrap().encode("The b", true, true).unwrap()).unwrap();
    while one.finish().is_none() {
        let mut saved = vec![];
        one.save(&mut saved).unwrap();
        let mut other = session(&model, settings.clone());
        other.restore(&mut &saved[..]).unwrap();
        assert_eq!(other.text(), one.text());
        assert_eq!(one.step().unwrap(), other.step().unwrap());
        assert_eq!((other.text(), other.finish()), (one.text(), one.finish()));
    }
    assert!(!one.text().is_empty());
}

#[test]
fn lent_threads_give_the_same_bits() {
    let path = fixture::dir("mini-gqa");
    let mut plain = session(&mini(), options(32));
    plain.prefill(&[5, 6, 7, 8]).unwrap();
    let (team, seats) = Team::lent(&TeamOptions::threads(3)).unwrap();
    let model = Model::load_with_team(&path, &LoadOptions::default(), team).unwrap();
    let mut lent = session(&Arc::new(model), options(32));
    lent.prefill(&[5, 6, 7, 8]).unwrap();
    assert_eq!(first_difference(lent.logits().unwrap(), plain.logits().unwrap()), None);
    std::thread::scope(|scope| {
        seats.into_iter().for_each(|seat| drop(scope.spawn(move || seat.work())));
        for _ in 0..10 {
            assert_eq!(lent.step().unwrap(), plain.step().unwrap());
        }
        drop(lent);
    });
}

#[test]
fn a_team_that_cannot_be_is_refused_with_its_reason() {
    let team = TeamOptions { cores: Some(vec![1023]), ..TeamOptions::threads(2) };
    let options = LoadOptions { team, ..LoadOptions::default() };
    let refused = Model::load(&fixture::dir("mini-gqa"), &options).err().unwrap();
    assert!(matches!(refused, Error::Device { .. }), "{refused}");
    assert!(refused.to_string().contains("core 1023"), "{refused}");
}
