//! Same bits, over random schedules: for any number of threads, any
//! company in a batch, any cut of a prompt, with a prefix used again, after saving, after a fork.
//!
//! Each sequence is a prompt and its greedy continuation, with the logits of every position from one
//! plain pass on one thread. A schedule leads several sessions through them by random moves; whatever
//! logits a session holds meanwhile must be those of its position, bit for bit.

use crate::decode_parity::{first_difference, random_draft};
use crate::support::engine::{append, load};
use crate::support::fixture;
use puna::format::FileDType;
use puna::infer::{SamplerConfig, Session, SessionOptions, step_all};
use puna::model::llama::{KvType, Model};
use puna::rng::Rng;
use puna_cpu::quant::BlockType;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SCHEDULES: u64 = 24;
const MOVES: usize = 25;
/// Long enough for several attention tiles and both kernels of few and of many rows.
const PROMPTS: [usize; 4] = [3, 17, 40, 75];
const NEW_TOKENS: usize = 20;
const CTX: usize = 100;

/// A sequence and its logits, [tokens, vocab].
struct Known {
    ids: Vec<u32>,
    prompt: usize,
    logits: Vec<f32>,
}

fn below(rng: &mut Rng, n: usize) -> usize {
    rng.next_u32() as usize % n
}

/// Prompts of which each begins like the one before it, and what the model says after them.
fn known(model: &Model, kv: KvType) -> Vec<Known> {
    let mut rng = Rng::new(77, 0);
    let vocab = model.config.vocab_size;
    let mut common: Vec<u32> = vec![];
    PROMPTS
        .iter()
        .map(|&prompt| {
            let mut ids = common.clone();
            ids.extend((ids.len()..prompt).map(|_| rng.next_u32() % vocab as u32));
            common = ids[..2 * prompt / 3].to_vec();
            let (mut ws, mut cache) = (model.workspace(), model.new_cache(CTX, kv).unwrap());
            let mut logits = append(model, &mut ws, &mut cache, &ids);
            for _ in 0..NEW_TOKENS {
                let last = &logits[logits.len() - vocab..];
                // The first of equal ones, as the sampler takes.
                let best = (0..vocab).rev().max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
                ids.push(best as u32);
                logits.extend(append(model, &mut ws, &mut cache, &[best as u32]));
            }
            Known { ids, prompt, logits }
        })
        .collect()
}

/// A session and the sequence that it follows.
struct Walker {
    session: Session,
    sequence: usize,
    /// Which of the models, and so how many threads.
    model: usize,
}

struct Schedule<'a> {
    models: &'a [Arc<Model>],
    known: &'a [Known],
    kv: KvType,
    rng: Rng,
    walkers: Vec<Walker>,
    log: Vec<String>,
}

impl Schedule<'_> {
    fn options(&self) -> SessionOptions {
        SessionOptions { ctx: CTX, kv_type: self.kv, end_ids: Some(vec![]), ..Default::default() }
    }

    fn begin(&mut self) {
        let sequence = below(&mut self.rng, self.known.len());
        let model = below(&mut self.rng, self.models.len());
        let session = Session::new(Arc::clone(&self.models[model]), self.options()).unwrap();
        self.log.push(format!("walker {} follows {sequence}", self.walkers.len()));
        self.walkers.push(Walker { session, sequence, model });
    }

    fn step(&mut self) {
        let at = below(&mut self.rng, self.walkers.len());
        let what = below(&mut self.rng, 9);
        let chunk = 1 + below(&mut self.rng, if what == 0 { 40 } else { 6 });
        let walker = &mut self.walkers[at];
        let known = &self.known[walker.sequence];
        let len = walker.session.tokens().len();
        let end = (len + chunk).min(known.ids.len());
        self.log.push(format!("{at}: move {what}, {chunk} tokens, at {len}"));
        match what {
            // Past the prompt or inside it: a piece of what is known.
            0 | 1 if len < end => walker.session.prefill(&known.ids[len..end]).unwrap(),
            2 | 3 if len >= known.prompt && len < known.ids.len() => {
                assert_eq!(walker.session.step().unwrap(), known.ids[len]);
            }
            4 => self.together(at),
            5 => {
                // Another sequence, as far as there is something in common.
                walker.sequence = below(&mut self.rng, self.known.len());
                let known = &self.known[walker.sequence];
                let n = 1 + below(&mut self.rng, known.ids.len());
                walker.session.prompt(&known.ids[..n]).unwrap();
            }
            6 => {
                walker.session.truncate(below(&mut self.rng, len + 1));
                if !walker.session.tokens().is_empty() {
                    walker.session.logits().unwrap();
                }
            }
            7 => {
                let mut saved = vec![];
                walker.session.save(&mut saved).unwrap();
                let model = below(&mut self.rng, self.models.len());
                let options = self.options();
                let mut later = Session::new(Arc::clone(&self.models[model]), options).unwrap();
                // What it held before must leave no trace.
                later.prefill(&[1, 2, 3]).unwrap();
                later.restore(&mut &saved[..]).unwrap();
                let walker = &mut self.walkers[at];
                (walker.session, walker.model) = (later, model);
            }
            _ => {
                let fork = walker.session.fork().unwrap();
                let (sequence, model) = (walker.sequence, walker.model);
                let original = std::mem::replace(&mut walker.session, fork);
                if self.walkers.len() < 4 {
                    self.walkers.push(Walker { session: original, sequence, model });
                }
            }
        }
    }

    /// Steps everyone who is past a prompt and on the same model, in one pass.
    fn together(&mut self, at: usize) {
        let model = self.walkers[at].model;
        let known = self.known;
        let mut wanted = vec![];
        let mut sessions: Vec<&mut Session> = vec![];
        for Walker { session, sequence, model: own } in &mut self.walkers {
            let (len, known) = (session.tokens().len(), &known[*sequence]);
            if *own == model && len >= known.prompt && len < known.ids.len() {
                wanted.push(known.ids[len]);
                sessions.push(session);
            }
        }
        assert_eq!(step_all(&mut sessions).unwrap(), wanted.len());
        let got: Vec<u32> = sessions.iter().map(|s| *s.tokens().last().unwrap()).collect();
        assert_eq!(got, wanted);
    }

    fn check(&self) -> Result<(), String> {
        for (i, Walker { session, sequence, .. }) in self.walkers.iter().enumerate() {
            let Known { ids, logits, .. } = &self.known[*sequence];
            let tokens = session.tokens();
            if tokens != &ids[..tokens.len()] {
                return Err(format!("walker {i} has other tokens"));
            }
            let Some(got) = session.last_logits().unwrap() else { continue };
            // After a step the last token has not run.
            let rows: Vec<&[f32]> = logits.chunks_exact(got.len()).collect();
            let places = [tokens.len(), tokens.len() - 1].into_iter().filter(|&n| n > 0);
            let differences: Vec<String> =
                places.filter_map(|n| first_difference(got, rows[n - 1])).collect();
            if differences.len() == 2 || differences.len() == 1 && tokens.len() == 1 {
                return Err(format!("walker {i} at {}: {}", tokens.len(), differences[0]));
            }
        }
        Ok(())
    }
}

fn run(path: &Path, kv: KvType, seed: u64) {
    let models: Vec<Arc<Model>> =
        [1, 2, 3, 4].map(|threads| Arc::new(load(path, threads, false))).into();
    let known = known(&models[0], kv);
    let mut failures = vec![];
    for index in 0..SCHEDULES {
        let rng = Rng::new(seed, index);
        let walkers = vec![];
        let mut schedule =
            Schedule { models: &models, known: &known, kv, rng, walkers, log: vec![] };
        (0..3).for_each(|_| schedule.begin());
        for _ in 0..MOVES {
            schedule.step();
            if let Err(what) = schedule.check() {
                failures.push(format!("schedule {index}: {what}\n{}", schedule.log.join("\n")));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "{} of {SCHEDULES}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn bits_do_not_depend_on_the_schedule_with_dense_weights() {
    run(&fixture::dir("mini-gqa"), KvType::F16, 1);
}

#[test]
fn bits_do_not_depend_on_the_schedule_with_quantised_weights() {
    let scratch = tempfile::tempdir().unwrap();
    let path: PathBuf = scratch.path().join("model.gguf");
    random_draft().write(&path, FileDType::Block(BlockType::Q4_0));
    run(&path, KvType::Q8_0, 2);
}

/// The same draws, wherever the sequence was meanwhile.
#[test]
fn a_sampled_sequence_survives_saving_forking_and_company() {
    let path = fixture::dir("mini-gqa");
    let models: Vec<Arc<Model>> =
        [1, 2, 3, 4].map(|threads| Arc::new(load(&path, threads, false))).into();
    let sampler = SamplerConfig {
        temperature: 1.3,
        top_k: 60,
        top_p: 0.95,
        min_p: 0.001,
        repetition_penalty: 1.2,
        seed: 9,
    };
    let options = SessionOptions {
        ctx: CTX,
        sampler,
        stream: 5,
        end_ids: Some(vec![]),
        ..Default::default()
    };
    let new = |model: usize| Session::new(Arc::clone(&models[model]), options.clone()).unwrap();
    let prompt = [7, 8, 9, 10, 11];
    let mut straight = new(0);
    straight.prefill(&prompt).unwrap();
    for _ in 0..40 {
        straight.step().unwrap();
    }
    for seed in 0..8 {
        let mut rng = Rng::new(seed, 1);
        let mut at = below(&mut rng, 4);
        let mut session = new(at);
        session.prefill(&prompt).unwrap();
        while session.tokens().len() < straight.tokens().len() {
            match below(&mut rng, 4) {
                0 => {
                    let mut saved = vec![];
                    session.save(&mut saved).unwrap();
                    at = below(&mut rng, 4);
                    session = new(at);
                    session.restore(&mut &saved[..]).unwrap();
                }
                1 => session = session.fork().unwrap(),
                2 => {
                    let mut other = new(at);
                    other.prefill(&[3, 2, 1]).unwrap();
                    step_all(&mut [&mut other, &mut session]).unwrap();
                }
                _ => {
                    session.step().unwrap();
                }
            }
        }
        assert_eq!(session.tokens(), straight.tokens(), "seed {seed}");
    }
}
