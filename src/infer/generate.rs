//! The generation loop: prompt in chunks, then all sequences together, one token a step.

use super::SamplerConfig;
use super::sequence::{FinishReason, Sequence, TokenLogprobs};
use super::timing::{Percentiles, Timings, per_second};
use crate::error::{Error, Result};
use crate::model::llama::{KvCache, KvType, LogitsFor, Model, Segment, Workspace};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What to generate and when to end.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Most tokens a sequence may get.
    pub max_new_tokens: usize,
    /// Strings that end a sequence; they are not part of its text.
    pub stop: Vec<String>,
    /// Tokens that end a sequence; the one that came is part of its tokens, not of its text.
    pub end_ids: Vec<u32>,
    /// Go on past the end tokens.
    pub ignore_eos: bool,
    /// Number of sequences from the one prompt, each with its own random stream.
    pub n: usize,
    /// Log-probabilities of each token and of this many most likely ones.
    pub logprobs: Option<usize>,
}

/// A key/value cache together with the ids whose keys and values lie in it.
pub struct Context {
    cache: KvCache,
    ids: Vec<u32>,
}

impl Context {
    /// An empty context of `capacity` positions.
    ///
    /// # Errors
    /// A cache that cannot be had.
    pub fn new(model: &Model, capacity: usize, kv: KvType) -> Result<Context> {
        Ok(Context { cache: model.new_cache(capacity, kv)?, ids: Vec::with_capacity(capacity) })
    }

    /// Positions in all.
    pub fn capacity(&self) -> usize {
        self.cache.capacity()
    }

    /// Bytes that it takes when it is full.
    pub fn bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Positions taken.
    pub fn used(&self) -> usize {
        self.ids.len()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.cache.truncate(0);
    }

    /// Keeps what `prompt` has in common with the context, at most all but its last token (whose
    /// logits are needed); returns the number of positions kept.
    pub(super) fn keep_common_prefix(&mut self, prompt: &[u32]) -> usize {
        let kept = common_prefix(&self.ids, prompt).min(self.cache.len());
        self.truncate(kept);
        kept
    }

    /// Forgets everything from position `len` on.
    pub(super) fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.cache.truncate(len);
    }

    /// Brings the next tokens through the model; `false` where that was cancelled and nothing has
    /// changed.
    pub(super) fn run(
        &mut self,
        model: &Model,
        ws: &mut Workspace,
        tokens: &[u32],
        logits: LogitsFor,
        cancel: &AtomicBool,
    ) -> Result<bool> {
        let segment = Segment { tokens, cache: &mut self.cache, logits, rope_len: None };
        let done = was_done(model.forward_unless(ws, &mut [segment], cancel))?;
        if done {
            self.ids.extend_from_slice(tokens);
        }
        Ok(done)
    }

    /// A copy of the cache that goes on independently.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub(super) fn fork_cache(&self) -> Result<KvCache> {
        self.cache.fork()
    }
}

/// Length of the common beginning of `known` and `prompt` without the last token of `prompt`.
fn common_prefix(known: &[u32], prompt: &[u32]) -> usize {
    let wanted = &prompt[..prompt.len().saturating_sub(1)];
    known.iter().zip(wanted).take_while(|(a, b)| a == b).count()
}

/// One finished sequence.
#[derive(Clone, Debug)]
pub struct Generated {
    /// Ids chosen, the end token included.
    pub tokens: Vec<u32>,
    /// Their text without special tokens, cut before a stop string.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// One entry a token where they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    /// What it took.
    pub timings: Timings,
}

/// All sequences of one prompt.
#[derive(Clone, Debug)]
pub struct Generation {
    /// The sequences, in order.
    pub sequences: Vec<Generated>,
    /// Prompt tokens that were in the cache already.
    pub n_reused: usize,
    /// Whether some sequence ended because the context was full.
    pub context_full: bool,
}

impl Generation {
    /// Whether some sequence was cancelled.
    pub fn cancelled(&self) -> bool {
        self.sequences.iter().any(|s| s.finish_reason == FinishReason::Cancelled)
    }
}

/// Receives text as it becomes showable: index of the sequence, the new piece.
pub type Sink<'a> = dyn FnMut(usize, &str) -> Result<()> + 'a;

/// Continues `prompt` by `options.n` sequences. What `context` has in common with the prompt is
/// not computed again; afterwards it holds the prompt and the first sequence. `cancel` is looked
/// at before every block of the model: a pass that it ends leaves no trace.
///
/// # Errors
/// An empty prompt, ids beyond the vocabulary, a prompt longer than the context, settings out of
/// range, and whatever the model or the sink returns.
pub fn generate(
    model: &Model,
    ws: &mut Workspace,
    context: &mut Context,
    prompt: &[u32],
    options: &GenerateOptions,
    cancel: &AtomicBool,
    sink: &mut Sink<'_>,
) -> Result<Generation> {
    model.check_speaks()?;
    let vocab_size = model.config.vocab_size;
    check_prompt(prompt, vocab_size, context.capacity())?;
    let tokenizer = model.text.as_ref().map(|parts| &parts.tokenizer);
    let mut sequences = (0..options.n)
        .map(|index| Sequence::new(options, vocab_size, prompt, tokenizer, index))
        .collect::<Result<Vec<_>>>()?;
    let mut clock = Clock::start(options);
    let n_reused = context.keep_common_prefix(prompt);
    let whole_prompt = prefill(model, ws, context, prompt, cancel)?;
    clock.prompt_done(prompt.len() - n_reused);
    if whole_prompt {
        for (index, sequence) in sequences.iter_mut().enumerate() {
            if sequence.finish.is_none() {
                sink(index, &sequence.advance(ws.row(0))?)?;
            }
        }
        clock.first_token();
    }
    let n_forks = if whole_prompt { options.n.saturating_sub(1) } else { 0 };
    let mut forks = (0..n_forks).map(|_| context.cache.fork()).collect::<Result<Vec<_>>>()?;
    let mut context_full = false;
    loop {
        for (index, sequence) in sequences.iter_mut().enumerate() {
            let cache = if index == 0 { Some(&context.cache) } else { forks.get(index - 1) };
            let full = cache.is_some_and(|c| c.len() >= c.capacity());
            if sequence.finish.is_none() && cancel.load(Ordering::Relaxed) {
                sink(index, &sequence.end(FinishReason::Cancelled)?)?;
            } else if sequence.finish.is_none() && full {
                context_full = true;
                sink(index, &sequence.end(FinishReason::Length)?)?;
            }
        }
        if sequences.iter().all(|sequence| sequence.finish.is_some()) {
            break;
        }
        if decode_step(model, ws, context, &mut forks, &mut sequences, cancel, sink)? {
            clock.token();
        }
    }
    let sequences = sequences.into_iter().map(|sequence| finished(sequence, &clock)).collect();
    Ok(Generation { sequences, n_reused, context_full })
}

pub(super) fn check_prompt(prompt: &[u32], vocab_size: usize, capacity: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::Data {
            place: "prompt".into(),
            what: "it has no tokens, wanted at least one".into(),
        });
    }
    if let Some(at) = prompt.iter().position(|&id| id as usize >= vocab_size) {
        return Err(Error::Data {
            place: format!("prompt token {at}"),
            what: format!("id {}, wanted less than the vocabulary's {vocab_size}", prompt[at]),
        });
    }
    if prompt.len() > capacity {
        return Err(Error::ContextFull { needed: prompt.len(), capacity });
    }
    Ok(())
}

/// Brings what the context lacks of `prompt` through the model, the logits of its last token into
/// row 0; `false` where it was cancelled before the end.
pub(super) fn prefill(
    model: &Model,
    ws: &mut Workspace,
    context: &mut Context,
    prompt: &[u32],
    cancel: &AtomicBool,
) -> Result<bool> {
    while context.ids.len() < prompt.len() {
        let begin = context.ids.len();
        let end = prompt.len().min(begin + Model::MAX_ROWS);
        let logits = if end == prompt.len() { LogitsFor::Last } else { LogitsFor::None };
        let tokens = &prompt[begin..end];
        let segment =
            Segment { tokens, cache: &mut context.cache, logits, rope_len: Some(prompt.len()) };
        if !was_done(model.forward_unless(ws, &mut [segment], cancel))? {
            return Ok(false);
        }
        context.ids.extend_from_slice(tokens);
    }
    Ok(true)
}

/// Whether a pass was done: `false` where it was cancelled.
fn was_done(pass: Result<()>) -> Result<bool> {
    match pass {
        Ok(()) => Ok(true),
        Err(Error::Cancelled) => Ok(false),
        Err(error) => Err(error),
    }
}

/// One forward pass over the last token of every sequence that goes on, then their next tokens;
/// `false` where it was cancelled and nothing has changed.
fn decode_step(
    model: &Model,
    ws: &mut Workspace,
    context: &mut Context,
    forks: &mut [KvCache],
    sequences: &mut [Sequence<'_>],
    cancel: &AtomicBool,
    sink: &mut Sink<'_>,
) -> Result<bool> {
    if let [sequence] = &mut *sequences
        && let Some(&token) = sequence.last()
    {
        // The usual case: nothing is collected on the heap.
        if !context.run(model, ws, &[token], LogitsFor::Last, cancel)? {
            return Ok(false);
        }
        sink(0, &sequence.advance(ws.row(0))?)?;
        return Ok(true);
    }
    let Context { cache, ids } = context;
    let caches = std::iter::once(cache).chain(forks.iter_mut());
    let mut segments: Vec<Segment<'_>> = sequences
        .iter()
        .zip(caches)
        .filter(|(sequence, _)| sequence.finish.is_none())
        .filter_map(|(sequence, cache)| {
            let tokens = std::slice::from_ref(sequence.last()?);
            Some(Segment { tokens, cache, logits: LogitsFor::Last, rope_len: None })
        })
        .collect();
    if !was_done(model.forward_unless(ws, &mut segments, cancel))? {
        return Ok(false);
    }
    if let Some(first) = sequences.first().filter(|sequence| sequence.finish.is_none()) {
        ids.extend(first.last());
    }
    let going_on = sequences.iter_mut().enumerate().filter(|(_, s)| s.finish.is_none());
    for (row, (index, sequence)) in going_on.enumerate() {
        sink(index, &sequence.advance(ws.row(row))?)?;
    }
    Ok(true)
}

/// Times of the steps that all sequences share.
pub(super) struct Clock {
    start: Instant,
    prompt_ms: f64,
    n_prompt: usize,
    first_token_ms: f64,
    last: Instant,
    /// Time of each token after the first.
    token_ms: Vec<f64>,
}

impl Clock {
    pub(super) fn start(options: &GenerateOptions) -> Clock {
        let start = Instant::now();
        let token_ms = Vec::with_capacity(options.max_new_tokens.min(65_536));
        Clock { start, prompt_ms: 0.0, n_prompt: 0, first_token_ms: 0.0, last: start, token_ms }
    }

    pub(super) fn prompt_done(&mut self, n_prompt: usize) {
        self.n_prompt = n_prompt;
        self.prompt_ms = ms_since(self.start);
    }

    pub(super) fn first_token(&mut self) {
        self.first_token_ms = ms_since(self.start);
        self.last = Instant::now();
    }

    pub(super) fn token(&mut self) {
        self.token_ms.push(ms_since(self.last));
        self.last = Instant::now();
    }

    /// Timings of a sequence of `n_tokens`, all of which took part in the first steps.
    fn timings(&self, n_tokens: usize) -> Timings {
        let steps = n_tokens.saturating_sub(1).min(self.token_ms.len());
        let mut token_ms = self.token_ms[..steps].to_vec();
        let total: f64 = token_ms.iter().sum();
        Timings {
            prompt_ms: self.prompt_ms,
            first_token_ms: (n_tokens > 0).then_some(self.first_token_ms),
            token_ms: Percentiles::of(&mut token_ms),
            prompt_tok_per_s: per_second(self.n_prompt, self.prompt_ms),
            decode_tok_per_s: (steps > 0).then(|| per_second(steps, total)),
        }
    }
}

fn ms_since(instant: Instant) -> f64 {
    instant.elapsed().as_secs_f64() * 1000.0
}

pub(super) fn finished(sequence: Sequence<'_>, clock: &Clock) -> Generated {
    Generated {
        timings: clock.timings(sequence.tokens.len()),
        finish_reason: sequence.finish.unwrap_or(FinishReason::Cancelled),
        tokens: sequence.tokens,
        text: sequence.text,
        logprobs: sequence.logprobs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_prompt_token_is_always_computed() {
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 3]), 2);
        assert_eq!(common_prefix(&[1, 2, 3], &[1, 2, 3, 4]), 3);
        assert_eq!(common_prefix(&[1, 9], &[1, 2, 3]), 1);
        assert_eq!(common_prefix(&[], &[1]), 0);
        assert_eq!(common_prefix(&[1], &[]), 0);
    }

    #[test]
    fn prompts_that_cannot_run_are_refused() {
        assert!(check_prompt(&[], 10, 10).is_err());
        let error = check_prompt(&[1, 10], 10, 10).unwrap_err().to_string();
        assert!(error.contains("token 1") && error.contains("id 10"), "{error}");
        assert!(matches!(
            check_prompt(&[1; 11], 10, 10),
            Err(Error::ContextFull { needed: 11, capacity: 10 })
        ));
        assert!(check_prompt(&[1; 10], 10, 10).is_ok());
    }

    #[test]
    fn timings_of_a_short_sequence_use_its_own_steps() {
        let clock = Clock {
            start: Instant::now(),
            prompt_ms: 50.0,
            n_prompt: 10,
            first_token_ms: 51.0,
            last: Instant::now(),
            token_ms: vec![1.0, 2.0, 30.0],
        };
        let timings = clock.timings(3);
        assert_eq!(timings.prompt_tok_per_s, 200.0);
        assert_eq!(timings.token_ms.unwrap().max_ms, 2.0);
        assert!((timings.decode_tok_per_s.unwrap() - 2000.0 / 3.0).abs() < 1e-9);
        assert_eq!(clock.timings(1).token_ms, None);
        assert_eq!(clock.timings(0).first_token_ms, None);
    }
}
