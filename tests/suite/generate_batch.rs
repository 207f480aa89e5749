//! Many prompts at once give each sequence the tokens that it gets alone.

use crate::support::toy;
use puna::Error;
use puna::infer::{
    Context, FinishReason, GenerateOptions, Generation, Prompts, SamplerConfig, generate,
    generate_batch,
};
use puna::model::llama::{KvType, LoadOptions, Model};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

const TEXTS: [&str; 7] =
    ["with a", "The b", "with a", "a much longer prompt than the others", "x", "The", "with"];
/// The longest prompt fits, its answer does not.
const CAPACITY: usize = 40;

fn toy_model() -> Model {
    let dir = tempfile::tempdir().unwrap();
    toy::make(dir.path());
    Model::load(dir.path(), &LoadOptions::threads(2)).unwrap()
}

fn prompts(model: &Model) -> Vec<Vec<u32>> {
    let tokenizer = &model.text.as_ref().unwrap().tokenizer;
    TEXTS.iter().map(|text| tokenizer.encode(text, true, true).unwrap()).collect()
}

fn options(n: usize) -> GenerateOptions {
    GenerateOptions {
        sampler: SamplerConfig { temperature: 1.0, seed: 3, ..SamplerConfig::GREEDY },
        max_new_tokens: 28,
        stop: vec!["ing".into()],
        end_ids: (0..16).collect(),
        ignore_eos: false,
        n,
        logprobs: None,
    }
}

/// What every prompt gets, `width` sequences at a time.
fn batch(model: &Model, ids: &[&[u32]], width: usize, n: usize) -> BTreeMap<usize, Generation> {
    let mut ws = model.workspace();
    let mut context = Context::new(model, CAPACITY, KvType::F16).unwrap();
    let mut all = BTreeMap::new();
    let mut done = |index, generation| {
        assert!(all.insert(index, generation).is_none(), "prompt {index} came twice");
        Ok(())
    };
    let prompts = Prompts { ids, width, ..Prompts::default() };
    let never = AtomicBool::new(false);
    generate_batch(model, &mut ws, &mut context, &prompts, &options(n), &never, &mut done).unwrap();
    all
}

fn tokens(generation: &Generation) -> Vec<(&[u32], &str, FinishReason)> {
    let parts = generation.sequences.iter();
    parts.map(|one| (&one.tokens[..], &one.text[..], one.finish_reason)).collect()
}

#[test]
fn every_width_gives_the_same_tokens() {
    let model = toy_model();
    let ids = prompts(&model);
    let ids: Vec<&[u32]> = ids.iter().map(|ids| &ids[..]).collect();
    for n in [1, 3] {
        let alone = batch(&model, &ids, 1, n);
        assert_eq!(alone.len(), TEXTS.len());
        let reasons = alone.values().flat_map(|g| &g.sequences).map(|s| s.finish_reason);
        let stopped = reasons.filter(|&reason| reason == FinishReason::Stop).count();
        assert!(stopped > 0 && stopped < n * TEXTS.len(), "{stopped} of n {n} stopped");
        assert!(alone.values().any(|generation| generation.context_full));
        for width in [2, 3, 5, 64] {
            for (index, generation) in &batch(&model, &ids, width, n) {
                let (got, wanted) = (tokens(generation), tokens(&alone[index]));
                assert_eq!(got, wanted, "prompt {index}, width {width}, n {n}");
            }
        }
    }
}

#[test]
fn a_prompt_five_times_is_five_sequences_of_it() {
    let model = toy_model();
    let prompt = &prompts(&model)[0];
    let mut ws = model.workspace();
    let mut context = Context::new(&model, CAPACITY, KvType::F16).unwrap();
    let never = AtomicBool::new(false);
    let mut sink = |_: usize, _: &str| Ok(());
    let together =
        generate(&model, &mut ws, &mut context, prompt, &options(5), &never, &mut sink).unwrap();
    let separate = batch(&model, &[&prompt[..]; 5], 4, 1);
    for (index, wanted) in tokens(&together).into_iter().enumerate() {
        assert_eq!(tokens(&separate[&index]), [wanted], "sequence {index}");
    }
}

#[test]
fn what_ended_before_a_cancellation_was_handed_over() {
    let model = toy_model();
    let ids = prompts(&model);
    let ids: Vec<&[u32]> = ids.iter().map(|ids| &ids[..]).collect();
    let cancel = AtomicBool::new(false);
    let mut ws = model.workspace();
    let mut context = Context::new(&model, CAPACITY, KvType::F16).unwrap();
    let mut n_done = 0;
    let mut done = |_, _| {
        n_done += 1;
        cancel.store(true, Ordering::Relaxed);
        Ok(())
    };
    let prompts = Prompts { ids: &ids, width: 1, ..Prompts::default() };
    let end =
        generate_batch(&model, &mut ws, &mut context, &prompts, &options(1), &cancel, &mut done);
    assert!(matches!(end, Err(Error::Cancelled)), "{end:?}");
    assert_eq!(n_done, 1);
}

#[test]
fn a_prompt_that_cannot_run_is_refused_before_the_work() {
    let model = toy_model();
    let mut ws = model.workspace();
    let mut context = Context::new(&model, CAPACITY, KvType::F16).unwrap();
    let mut done = |_, _| panic!("nothing was to be done");
    for bad in [&[][..], &[9999], &[1; CAPACITY + 1]] {
        let prompts = Prompts { ids: &[&[1], bad], width: 2, ..Prompts::default() };
        let never = AtomicBool::new(false);
        let end =
            generate_batch(&model, &mut ws, &mut context, &prompts, &options(1), &never, &mut done);
        assert!(end.is_err(), "{bad:?}");
    }
}
