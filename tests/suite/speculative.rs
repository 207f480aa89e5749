//! Promise: a draft changes how fast tokens come, never which: the same tokens, the same bits of
//! their log-probabilities, from the model's own distribution.

use crate::support::engine::{append, load};
use crate::support::fixture;
use crate::support::program::puna;
use puna::infer::{
    Context, Draft, DraftModel, GenerateOptions, Generated, SamplerConfig, Speculation, generate,
    generate_speculative,
};
use puna::model::llama::{KvType, LoadOptions, Model};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// A prompt that repeats itself, so that a look-up finds something.
const PROMPT: [u32; 12] = [5, 9, 14, 77, 5, 9, 14, 31, 5, 9, 14, 77];

fn options(sampler: SamplerConfig, max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions {
        sampler,
        max_new_tokens,
        stop: vec![],
        end_ids: vec![2],
        ignore_eos: true,
        n: 1,
        logprobs: Some(2),
    }
}

fn sampled(temperature: f32, top_k: usize, seed: u64) -> SamplerConfig {
    SamplerConfig { temperature, top_k, seed, ..SamplerConfig::GREEDY }
}

/// The only sequence of a run; with a draft through it.
fn run(
    model: &Model,
    draft: Option<&mut Draft>,
    options: &GenerateOptions,
    ctx: usize,
) -> Generated {
    let mut context = Context::new(model, ctx, KvType::F32).unwrap();
    let (mut ws, cancel) = (model.workspace(), AtomicBool::new(false));
    let sink = &mut |_: usize, _: &str| Ok(());
    let all = match draft {
        None => generate(model, &mut ws, &mut context, &PROMPT, options, &cancel, sink),
        Some(draft) => generate_speculative(
            model,
            &mut ws,
            &mut context,
            draft,
            &PROMPT,
            options,
            &cancel,
            sink,
        ),
    };
    all.unwrap().sequences.remove(0)
}

fn draft_model(name: &str, target: &Model, most: usize) -> Draft {
    let options = LoadOptions { exact: true, ..LoadOptions::threads(1) };
    let model = target.load_beside(&fixture::dir(name), &options).unwrap();
    Draft::model(DraftModel::new(model, target, 96, KvType::F32).unwrap(), most)
}

#[test]
fn tokens_and_bits_are_those_of_plain_decoding() {
    let penalised = SamplerConfig { repetition_penalty: 1.3, top_p: 0.9, ..sampled(0.8, 0, 5) };
    let samplers = [
        SamplerConfig::GREEDY,
        SamplerConfig { repetition_penalty: 1.2, ..SamplerConfig::GREEDY },
        sampled(0.3, 0, 1),
        sampled(1.0, 40, 2),
        SamplerConfig { min_p: 0.05, ..sampled(1.5, 0, 3) },
        penalised,
    ];
    let mut total = Speculation::default();
    // The second model's rotations change with the length of the text, from 24 tokens on.
    for (name, other) in [("mini-linear", "mini-llama3rope"), ("mini-dynamic", "mini-linear")] {
        let model = load(&fixture::dir(name), 1, true);
        let mut drafts = [
            Draft::lookup(8),
            draft_model(other, &model, 5),
            draft_model(name, &model, 8),
            draft_model(name, &model, 1),
        ];
        for sampler in samplers {
            let options = options(sampler, 40);
            let wanted = run(&model, None, &options, 64);
            for draft in &mut drafts {
                let got = run(&model, Some(draft), &options, 64);
                assert_eq!(got.tokens, wanted.tokens, "{name} {sampler:?}");
                assert_eq!(got.logprobs, wanted.logprobs, "{name} {sampler:?}");
                assert_eq!(got.finish_reason, wanted.finish_reason);
                let done = draft.done;
                assert_eq!((done.tokens, wanted.tokens.len()), (39, 40), "one is the prompt's");
                total.proposed += done.proposed;
                total.accepted += done.accepted;
            }
            // With equal logits and equal random numbers every guess is right.
            if name == "mini-linear" {
                let done = drafts[2].done;
                assert!(done.proposed > 20 && done.accepted == done.proposed, "{done:?}");
                assert!(done.steps < 12, "{done:?}");
            }
        }
    }
    assert!(total.accepted > 0 && total.accepted < total.proposed, "both outcomes: {total:?}");
}

#[test]
fn ends_are_those_of_plain_decoding() {
    let model = load(&fixture::dir("mini-linear"), 1, true);
    let long = run(&model, None, &options(SamplerConfig::GREEDY, 30), 64).tokens;
    for at in [3, 7, 12, 20] {
        // An end token, the number asked for, and a context that is full.
        let ending = GenerateOptions {
            end_ids: vec![long[at]],
            ignore_eos: false,
            ..options(SamplerConfig::GREEDY, 30)
        };
        let short = options(SamplerConfig::GREEDY, at);
        let cases = [(ending, 64), (short, 64), (options(SamplerConfig::GREEDY, 30), 12 + at)];
        for (options, ctx) in cases {
            let wanted = run(&model, None, &options, ctx);
            for mut draft in [Draft::lookup(8), draft_model("mini-linear", &model, 8)] {
                let got = run(&model, Some(&mut draft), &options, ctx);
                assert_eq!(got.tokens, wanted.tokens, "{at} {ctx}");
                assert_eq!(got.finish_reason, wanted.finish_reason, "{at} {ctx}");
            }
        }
    }
}

#[test]
fn a_context_goes_on_after_a_cancelled_run() {
    let model = load(&fixture::dir("mini-linear"), 1, true);
    let options = options(SamplerConfig::GREEDY, 30);
    let wanted = run(&model, None, &options, 64).tokens;
    let mut context = Context::new(&model, 64, KvType::F32).unwrap();
    let (mut ws, cancel) = (model.workspace(), AtomicBool::new(false));
    let mut draft = draft_model("mini-linear", &model, 6);
    let mut n_shown = 0;
    let mut sink = |_: usize, _: &str| {
        n_shown += 1;
        if n_shown == 9 {
            cancel.store(true, Ordering::Relaxed);
        }
        Ok(())
    };
    let first = generate_speculative(
        &model,
        &mut ws,
        &mut context,
        &mut draft,
        &PROMPT,
        &options,
        &cancel,
        &mut sink,
    )
    .unwrap();
    assert!(first.cancelled());
    let begun = &first.sequences[0].tokens;
    assert!(begun.len() >= 9 && wanted.starts_with(begun), "{begun:?}");
    let text = [&PROMPT[..], begun].concat();
    let rest = GenerateOptions { max_new_tokens: 30 - begun.len(), ..options };
    cancel.store(false, Ordering::Relaxed);
    let second = generate_speculative(
        &model,
        &mut ws,
        &mut context,
        &mut draft,
        &text,
        &rest,
        &cancel,
        &mut |_, _| Ok(()),
    )
    .unwrap();
    assert!(second.n_reused > PROMPT.len(), "{}", second.n_reused);
    assert_eq!([&begun[..], &second.sequences[0].tokens].concat(), wanted);
}

/// Probabilities of the `k` likeliest tokens after `text` at a temperature.
fn distribution(model: &Model, text: &[u32], temperature: f64, k: usize) -> Vec<(u32, f64)> {
    let mut cache = model.new_cache(text.len(), KvType::F32).unwrap();
    let logits = append(model, &mut model.workspace(), &mut cache, text);
    let vocab = model.config.vocab_size;
    let mut last: Vec<(u32, f64)> =
        (0..).zip(&logits[logits.len() - vocab..]).map(|(id, &l)| (id, f64::from(l))).collect();
    last.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    last.truncate(k);
    let top = last[0].1;
    let weights: Vec<f64> = last.iter().map(|x| ((x.1 - top) / temperature).exp()).collect();
    let sum: f64 = weights.iter().sum();
    last.iter().zip(weights).map(|(x, w)| (x.0, w / sum)).collect()
}

#[test]
fn the_models_distribution_is_preserved() {
    const K: usize = 3;
    const RUNS: u64 = 1500;
    let model = load(&fixture::dir("mini-linear"), 1, true);
    // The model itself, a little changed, guesses right now and then.
    let adapters = vec![fixture::dir("mini-linear").join("lora-qv-final")];
    let options = LoadOptions { exact: true, adapters, ..LoadOptions::threads(1) };
    let changed = model.load_beside(&fixture::dir("mini-linear"), &options).unwrap();
    let mut draft = Draft::model(DraftModel::new(changed, &model, 64, KvType::F32).unwrap(), 4);
    let mut guesses = (0, 0);
    for temperature in [0.3f32, 1.0, 1.5] {
        // Every text of four tokens and its probability.
        let mut texts: Vec<(Vec<u32>, f64)> = vec![(vec![], 1.0)];
        for _ in 0..4 {
            let longer = texts.iter().flat_map(|(text, p)| {
                let whole = [&PROMPT[..], text].concat();
                let next = distribution(&model, &whole, f64::from(temperature), K).into_iter();
                next.map(|(id, q)| ([&text[..], &[id]].concat(), p * q)).collect::<Vec<_>>()
            });
            texts = longer.collect();
        }
        let mut counts: HashMap<Vec<u32>, f64> = HashMap::new();
        let (mut proposed, mut accepted) = (0, 0);
        for seed in 0..RUNS {
            let options = self::options(sampled(temperature, K, seed), 4);
            *counts.entry(run(&model, Some(&mut draft), &options, 32).tokens).or_default() += 1.0;
            proposed += draft.done.proposed;
            accepted += draft.done.accepted;
        }
        println!("T = {temperature}: {accepted} of {proposed} guesses right");
        guesses = (guesses.0 + proposed, guesses.1 + accepted);
        // Pearson's statistic; texts that are expected fewer than five times count as one.
        let (mut statistic, mut cells, mut rare) = (0.0, 0, (0.0, 0.0));
        let mut add = |found: f64, wanted: f64| {
            statistic += (found - wanted).powi(2) / wanted;
            cells += 1;
        };
        for (text, p) in &texts {
            let (found, wanted) = (counts.remove(text).unwrap_or(0.0), p * RUNS as f64);
            if wanted < 5.0 {
                rare = (rare.0 + found, rare.1 + wanted);
            } else {
                add(found, wanted);
            }
        }
        assert!(counts.is_empty(), "texts of probability 0: {counts:?}");
        if rare.1 > 0.0 {
            add(rare.0, rare.1.max(1.0));
        }
        let free = f64::from(cells - 1);
        assert!(cells > 3);
        // Mean and deviation of the chi-square distribution; four deviations are one in 10,000.
        let bound = free + 4.0 * (2.0 * free).sqrt();
        assert!(
            statistic < bound,
            "T = {temperature}: {statistic} with {free} free, bound {bound}"
        );
    }
    let (proposed, accepted) = guesses;
    assert!(accepted > 0 && accepted < proposed, "both outcomes: {accepted} of {proposed}");
}

#[test]
fn the_command_reports_and_refuses() {
    let model = fixture::dir("mini-linear");
    let (model, other) = (model.to_str().unwrap(), fixture::dir("mini-llama3rope"));
    let common = ["generate", model, "--tokens", "5,9,14,77,5,9,14", "--ignore-eos", "--json"];
    let with = |more: &[&str]| puna(&[&common[..], &["--max-new-tokens", "24"], more].concat());
    let plain = with(&[]).done().json();
    assert!(plain[0].get("speculation").is_none());
    for more in [
        &["--prompt-lookup"][..],
        &["--draft", model, "--draft-tokens", "3"],
        &["--draft", other.to_str().unwrap(), "--temperature", "0"],
    ] {
        let found = with(more).done().json();
        assert_eq!(found[0]["tokens"], plain[0]["tokens"], "{more:?}");
        let done = &found[0]["speculation"];
        assert_eq!(done["tokens"], 23, "{more:?}: {done}");
        assert!(done["steps"].as_u64() <= Some(23) && done["speed_up"].is_number(), "{done}");
    }
    let refused = with(&["--draft", "builtin"]);
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("vocabulary"), "{}", refused.stderr);
}
