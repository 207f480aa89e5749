//! Many prompts at once: all sequences that go on share each forward pass, and the next prompt
//! begins as soon as there is room for its sequences.
//!
//! A sequence gets the tokens that it would get alone: the model computes each row the same way
//! whoever shares the batch, and each sequence has a random stream of its own.

use super::generate::{
    Clock, Context, GenerateOptions, Generation, check_prompt, finished, prefill,
};
use super::sequence::{FinishReason, Sequence};
use crate::error::{Error, Result};
use crate::model::llama::{KvCache, LogitsFor, Model, Segment, Workspace};
use std::sync::atomic::{AtomicBool, Ordering};

/// Receives what was written for a prompt: index of the prompt, its sequences.
pub type Done<'a> = dyn FnMut(usize, Generation) -> Result<()> + 'a;

/// One prompt being answered.
struct Group<'t> {
    /// Index of the prompt.
    index: usize,
    sequences: Vec<Sequence<'t>>,
    /// One a sequence.
    caches: Vec<KvCache>,
    clock: Clock,
    n_reused: usize,
    context_full: bool,
}

impl Group<'_> {
    fn running(&self) -> usize {
        self.sequences.iter().filter(|sequence| sequence.finish.is_none()).count()
    }

    /// Ends the sequences whose context is full.
    fn end_full(&mut self) -> Result<()> {
        for (sequence, cache) in self.sequences.iter_mut().zip(&self.caches) {
            if sequence.finish.is_none() && cache.len() >= cache.capacity() {
                self.context_full = true;
                sequence.end(FinishReason::Length)?;
            }
        }
        Ok(())
    }

    fn finish(self) -> (usize, Generation) {
        let Group { index, sequences, clock, n_reused, context_full, .. } = self;
        let sequences = sequences.into_iter().map(|one| finished(one, &clock)).collect();
        (index, Generation { sequences, n_reused, context_full })
    }
}

/// What to continue, and how much of it at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prompts<'a> {
    /// Ids of each prompt.
    pub ids: &'a [&'a [u32]],
    /// Sequences at a time; those of one prompt are always together.
    pub width: usize,
    /// The number of each prompt, which chooses its random streams; none: its index.
    pub numbers: &'a [usize],
    /// Most tokens of each prompt's sequences; none: what the options say.
    pub lengths: &'a [usize],
}

/// Continues every prompt by `options.n` sequences and hands over each prompt's when all of them
/// have ended, which may be out of order. Prompts begin in order; what a prompt has in common with
/// the one before it is not computed again. Sequence `i` of prompt number `p` draws from the random
/// stream `p * n + i`. `context` serves to read the prompts; all caches have its capacity.
///
/// # Errors
/// [`Error::Cancelled`] where `cancel` was set, and as [`generate`](super::generate()).
pub fn generate_batch(
    model: &Model,
    ws: &mut Workspace,
    context: &mut Context,
    prompts: &Prompts<'_>,
    options: &GenerateOptions,
    cancel: &AtomicBool,
    done: &mut Done<'_>,
) -> Result<()> {
    for prompt in prompts.ids {
        check_prompt(prompt, model.config.vocab_size, context.capacity())?;
    }
    let room = |groups: &[Group<'_>], running: usize| {
        running == 0 && groups.is_empty()
            || groups.len() < prompts.width && running + options.n <= prompts.width
    };
    let mut waiting = prompts.ids.iter().enumerate();
    let mut groups: Vec<Group<'_>> = vec![];
    loop {
        let mut running: usize = groups.iter().map(Group::running).sum();
        while room(&groups, running) {
            let Some((index, prompt)) = waiting.next() else { break };
            let length = prompts.lengths.get(index);
            let mut own = options.clone();
            own.max_new_tokens = length.copied().unwrap_or(options.max_new_tokens);
            let number = prompts.numbers.get(index).copied().unwrap_or(index);
            let group = begin(model, ws, context, prompt, (index, number), &own, cancel)?;
            running += group.running();
            groups.push(group);
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        groups.iter_mut().try_for_each(Group::end_full)?;
        for group in groups.extract_if(.., |group| group.running() == 0) {
            let (index, generation) = group.finish();
            done(index, generation)?;
        }
        if groups.is_empty() && waiting.len() == 0 {
            return Ok(());
        }
        step(model, ws, &mut groups, cancel)?;
    }
}

/// Reads a prompt and chooses the first token of each of its sequences.
fn begin<'m>(
    model: &'m Model,
    ws: &mut Workspace,
    context: &mut Context,
    prompt: &[u32],
    (index, number): (usize, usize),
    options: &GenerateOptions,
    cancel: &AtomicBool,
) -> Result<Group<'m>> {
    let tokenizer = model.text.as_ref().map(|parts| &parts.tokenizer);
    model.check_speaks()?;
    let vocab_size = model.config.vocab_size;
    let stream = |i| number * options.n + i;
    let mut sequences = (0..options.n)
        .map(|i| Sequence::new(options, vocab_size, prompt, tokenizer, stream(i)))
        .collect::<Result<Vec<_>>>()?;
    let mut clock = Clock::start(options);
    let n_reused = context.keep_common_prefix(prompt);
    if !prefill(model, ws, context, prompt, cancel)? {
        return Err(Error::Cancelled);
    }
    clock.prompt_done(prompt.len() - n_reused);
    for sequence in sequences.iter_mut().filter(|sequence| sequence.finish.is_none()) {
        sequence.advance(ws.row(0))?;
    }
    clock.first_token();
    let caches = (0..options.n).map(|_| context.fork_cache()).collect::<Result<_>>()?;
    Ok(Group { index, sequences, caches, clock, n_reused, context_full: false })
}

/// One forward pass over the last token of every sequence that goes on, then their next tokens.
fn step(
    model: &Model,
    ws: &mut Workspace,
    groups: &mut [Group<'_>],
    cancel: &AtomicBool,
) -> Result<()> {
    let mut segments: Vec<Segment<'_>> = groups
        .iter_mut()
        .flat_map(|group| group.sequences.iter().zip(&mut group.caches))
        .filter(|(sequence, _)| sequence.finish.is_none())
        .filter_map(|(sequence, cache)| {
            let tokens = std::slice::from_ref(sequence.last()?);
            Some(Segment { tokens, cache, logits: LogitsFor::Last, rope_len: None })
        })
        .collect();
    if segments.is_empty() {
        return Ok(());
    }
    model.forward_unless(ws, &mut segments, cancel)?;
    let going_on = groups.iter_mut().flat_map(|group| &mut group.sequences);
    for (row, sequence) in going_on.filter(|sequence| sequence.finish.is_none()).enumerate() {
        sequence.advance(ws.row(row))?;
    }
    groups.iter_mut().for_each(|group| group.clock.token());
    Ok(())
}
