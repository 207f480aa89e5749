//! Choosing the next token from logits: a value with its own random stream and buffers.
//!
//! The steps and their order are those of transformers: repetition penalty, temperature, top-k,
//! top-p, min-p, draw. Equal scores are ordered by id, lowest first, so top-k keeps exactly `k`
//! candidates. After [`Sampler::new`] nothing is allocated.

use crate::error::{Error, Result};
use crate::model::llama::{Choice, Logits};
use crate::rng::Rng;
use std::cmp::Ordering;

/// How to choose tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplerConfig {
    /// Divides the logits; 0 takes the most likely token (greedy).
    pub temperature: f32,
    /// Keep only this many most likely tokens; 0: all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens with at least this probability; 1: all.
    pub top_p: f32,
    /// Drop tokens less likely than this fraction of the most likely one; 0: none.
    pub min_p: f32,
    /// Logits of ids seen in prompt or output: divided by it if positive, else multiplied; 1: off.
    pub repetition_penalty: f32,
    /// Seed of the draws; each sequence of a run takes its own stream.
    pub seed: u64,
}

impl SamplerConfig {
    /// Always the most likely token, no penalty.
    pub const GREEDY: SamplerConfig = SamplerConfig {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 0,
    };

    /// Whether the draws do not matter.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Checks the range of every setting.
    ///
    /// # Errors
    /// The first setting out of range, by name.
    pub fn validate(&self) -> Result<()> {
        let refuse = |field: &str, value: f32, why: &str| Err(Error::config(field, value, why));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "wanted 0 (greedy) or more");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "wanted more than 0, at most 1 (off)");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", self.min_p, "wanted 0 (off) to 1");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return refuse(
                "repetition_penalty",
                self.repetition_penalty,
                "wanted more than 0 (1: off)",
            );
        }
        Ok(())
    }
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// Penalised logit; after the temperature step, its distance to the largest (at most 0).
    score: f32,
    /// `exp(score)`, not normalised.
    weight: f32,
}

/// Most likely first; equal scores by id.
fn by_score(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

/// Where a sampler's random stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draws {
    /// Seed of the stream.
    pub seed: u64,
    /// Which of the seed's streams.
    pub stream: u64,
    /// How far it has been drawn.
    pub position: u128,
}

/// Chooses tokens for one sequence.
#[derive(Debug)]
pub struct Sampler {
    config: SamplerConfig,
    rng: Rng,
    stream: u64,
    /// Work space, [vocab_size] at most.
    candidates: Vec<Candidate>,
    /// Ids of prompt and output, [vocab_size]; empty while the penalty is off.
    seen: Vec<bool>,
    vocab_size: usize,
}

impl Clone for Sampler {
    fn clone(&self) -> Sampler {
        Sampler {
            config: self.config,
            rng: self.rng.clone(),
            stream: self.stream,
            // Contents are work space; the room is what counts.
            candidates: Vec::with_capacity(self.candidates.capacity()),
            seen: self.seen.clone(),
            vocab_size: self.vocab_size,
        }
    }
}

impl Sampler {
    /// A sampler for logits of `vocab_size`; `stream` separates the sequences of one seed.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn new(config: SamplerConfig, vocab_size: usize, stream: u64) -> Result<Sampler> {
        config.validate()?;
        let penalty = config.repetition_penalty != 1.0;
        Ok(Sampler {
            config,
            rng: Rng::new(config.seed, stream),
            stream,
            candidates: Vec::with_capacity(if config.is_greedy() { 0 } else { vocab_size }),
            seen: vec![false; if penalty { vocab_size } else { 0 }],
            vocab_size,
        })
    }

    /// The settings.
    pub fn config(&self) -> &SamplerConfig {
        &self.config
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.candidates.capacity() * size_of::<Candidate>() + self.seen.capacity()
    }

    /// Where the random stream stands.
    pub fn draws(&self) -> Draws {
        let (seed, stream) = (self.config.seed, self.stream);
        Draws { seed, stream, position: self.rng.position() }
    }

    /// Draws from there on.
    pub fn set_draws(&mut self, draws: Draws) {
        (self.config.seed, self.stream) = (draws.seed, draws.stream);
        self.rng = Rng::new(draws.seed, draws.stream);
        self.rng.go_to(draws.position);
    }

    /// Forgets which tokens were observed.
    pub fn forget(&mut self) {
        self.seen.fill(false);
    }

    /// Notes a token of prompt or output for the repetition penalty.
    pub fn observe(&mut self, id: u32) {
        if let Some(seen) = self.seen.get_mut(id as usize) {
            *seen = true;
        }
    }

    /// Takes over the random stream of `other` and the ids that it has seen, so that both choose
    /// alike from equal logits.
    pub fn follow(&mut self, other: &Sampler) {
        self.rng.clone_from(&other.rng);
        self.seen.clone_from(&other.seen);
    }

    /// The next token, chosen where the logits are: on a GPU by the same steps, whose exponentials
    /// may differ in the last place.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; a GPU that failed.
    pub fn choose(&mut self, logits: Logits<'_>) -> Result<u32> {
        let Sampler { config, rng, seen, .. } = self;
        let SamplerConfig { temperature, top_k, top_p, min_p, repetition_penalty, .. } = *config;
        let choice = || {
            let uniform = if temperature == 0.0 { 0.0 } else { rng.uniform() };
            Choice { temperature, top_k, top_p, min_p, repetition_penalty, uniform }
        };
        match logits.choose(choice, seen)? {
            Some(id) => Ok(id),
            None => self.sample(logits.read()?),
        }
    }

    /// The next token. Logits of minus infinity are never chosen.
    ///
    /// # Errors
    /// Logits of another length, NaN or plus infinity among them, or nothing but minus infinity.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        check_logits(logits, self.vocab_size)?;
        if self.config.is_greedy() {
            return self.most_likely(logits);
        }
        self.candidates.clear();
        for id in 0..logits.len() {
            let score = self.penalised(logits, id);
            if score > f32::NEG_INFINITY {
                self.candidates.push(Candidate { id: id as u32, score, weight: 0.0 });
            }
        }
        let SamplerConfig { temperature, top_k, top_p, min_p, .. } = self.config;
        // Dividing by a positive temperature keeps the order, so top-k may come first and saves
        // most exponentials.
        let by_k = top_k > 0 && top_k < self.candidates.len();
        if by_k {
            self.candidates.select_nth_unstable_by(top_k - 1, by_score);
            self.candidates.truncate(top_k);
            self.candidates.sort_unstable_by(by_score);
        }
        let max = self.candidates.iter().map(|c| c.score).fold(f32::NEG_INFINITY, f32::max);
        for candidate in &mut self.candidates {
            // The largest is subtracted first: a tiny temperature gives -inf, not infinity.
            candidate.score = (candidate.score - max) / temperature;
            candidate.weight = candidate.score.exp();
        }
        if top_p < 1.0 {
            self.keep_top_p(f64::from(top_p));
        }
        if min_p > 0.0 {
            // The most likely candidate has weight exp(0) = 1.
            self.candidates.retain(|c| c.weight >= min_p);
        }
        self.draw()
    }

    /// The logit of `id` after the repetition penalty.
    fn penalised(&self, logits: &[f32], id: usize) -> f32 {
        let logit = logits[id];
        if self.seen.get(id).copied().unwrap_or(false) {
            let penalty = self.config.repetition_penalty;
            if logit < 0.0 { logit * penalty } else { logit / penalty }
        } else {
            logit
        }
    }

    fn most_likely(&self, logits: &[f32]) -> Result<u32> {
        let (mut best, mut best_score) = (None, f32::NEG_INFINITY);
        for id in 0..logits.len() {
            let score = self.penalised(logits, id);
            if score > best_score {
                (best, best_score) = (Some(id as u32), score);
            }
        }
        best.ok_or_else(nothing_left)
    }

    /// Keeps a candidate while the more likely ones together stay below `top_p`. Sorts only as
    /// far as needed.
    fn keep_top_p(&mut self, top_p: f64) {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let (mut sorted, mut block, mut before) = (0, 128, 0.0);
        while sorted < self.candidates.len() {
            let rest = &mut self.candidates[sorted..];
            let block_len = block.min(rest.len());
            if block_len < rest.len() {
                rest.select_nth_unstable_by(block_len - 1, by_score);
            }
            rest[..block_len].sort_unstable_by(by_score);
            for (i, candidate) in rest[..block_len].iter().enumerate() {
                if before >= top_p * total && sorted + i > 0 {
                    self.candidates.truncate(sorted + i);
                    return;
                }
                before += f64::from(candidate.weight);
            }
            sorted += block_len;
            block *= 4;
        }
    }

    /// Draws one candidate in proportion to its weight.
    fn draw(&mut self) -> Result<u32> {
        let total: f64 = self.candidates.iter().map(|c| f64::from(c.weight)).sum();
        let target = self.rng.uniform() * total;
        let mut sum = 0.0;
        for candidate in &self.candidates {
            sum += f64::from(candidate.weight);
            if sum > target {
                return Ok(candidate.id);
            }
        }
        // Rounding of `target` alone can lead here: the last one that has any weight.
        let last = self.candidates.iter().rev().find(|c| c.weight > 0.0);
        last.map(|c| c.id).ok_or_else(nothing_left)
    }
}

fn check_logits(logits: &[f32], vocab_size: usize) -> Result<()> {
    if logits.len() != vocab_size {
        return Err(Error::Shape {
            op: "sample".into(),
            expected: format!("[{vocab_size}]"),
            got: format!("[{}]", logits.len()),
        });
    }
    match logits.iter().position(|&l| l.is_nan() || l == f32::INFINITY) {
        Some(id) => Err(Error::Data {
            place: "logits".into(),
            what: format!("token {id} has {}, wanted a finite number", logits[id]),
        }),
        None => Ok(()),
    }
}

fn nothing_left() -> Error {
    Error::Data { place: "logits".into(), what: "every token has minus infinity".into() }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
