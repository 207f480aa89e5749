//! Guessed tokens through the model in one pass, and back to where it would have chosen otherwise.

use super::Draft;
use crate::error::{Error, Result};
use crate::infer::generate::{
    Clock, Context, GenerateOptions, Generation, Sink, check_prompt, finished, prefill,
};
use crate::infer::sequence::{FinishReason, Sequence};
use crate::model::config::RopeScaling;
use crate::model::llama::{LogitsFor, Model, Workspace};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// [`generate()`](crate::infer::generate()) for one sequence, with a draft: the same tokens and
/// text, the logits with the same bits, in fewer passes. `draft.done` tells how it went.
///
/// # Errors
/// Those of `generate`; more than one sequence.
#[allow(clippy::too_many_arguments, reason = "those of generate and the draft")]
pub fn generate_speculative(
    model: &Model,
    ws: &mut Workspace,
    context: &mut Context,
    draft: &mut Draft,
    prompt: &[u32],
    options: &GenerateOptions,
    cancel: &AtomicBool,
    sink: &mut Sink<'_>,
) -> Result<Generation> {
    model.check_speaks()?;
    let vocab_size = model.config.vocab_size;
    check_prompt(prompt, vocab_size, context.capacity())?;
    if options.n != 1 {
        return Err(Error::config("n", options.n, "a draft continues one sequence"));
    }
    let tokenizer = model.text.as_ref().map(|parts| &parts.tokenizer);
    let mut sequence = Sequence::new(options, vocab_size, prompt, tokenizer, 0)?;
    draft.begin(options.sampler)?;
    let mut clock = Clock::start(options);
    let n_reused = context.keep_common_prefix(prompt);
    let whole_prompt = prefill(model, ws, context, prompt, cancel)?;
    clock.prompt_done(prompt.len() - n_reused);
    if whole_prompt {
        if sequence.finish.is_none() {
            sink(0, &sequence.advance(ws.row(0))?)?;
        }
        clock.first_token();
    }
    let mut context_full = false;
    let mut text = prompt.to_vec();
    text.extend(sequence.last());
    let mut rows = Vec::with_capacity(draft.most + 1);
    let mut guesses = Vec::with_capacity(draft.most);
    while sequence.finish.is_none() {
        if !whole_prompt || cancel.load(Ordering::Relaxed) {
            sink(0, &sequence.end(FinishReason::Cancelled)?)?;
            break;
        }
        let room = context.capacity() - context.used();
        if room == 0 {
            context_full = true;
            sink(0, &sequence.end(FinishReason::Length)?)?;
            break;
        }
        let Some(&last) = sequence.last() else { break };
        let start = Instant::now();
        // The pass gives one token more than was guessed.
        let most = sequence.left().min(room).saturating_sub(1).min(guessable(model, context));
        let n = draft.pace.next().min(most);
        guesses.clear();
        if n > 0 {
            draft.propose(&text, n, sequence.sampler(), cancel, &mut guesses)?;
        }
        rows.clear();
        rows.push(last);
        rows.extend_from_slice(&guesses);
        if !context.run(model, ws, &rows, LogitsFor::All, cancel)? {
            continue;
        }
        let mut accepted = 0;
        loop {
            sink(0, &sequence.advance(ws.row(accepted))?)?;
            clock.token();
            text.extend(sequence.last());
            let right = guesses.get(accepted).is_some_and(|guess| sequence.last() == Some(guess));
            if !right || sequence.finish.is_some() {
                break;
            }
            accepted += 1;
        }
        context.truncate(context.used() - (guesses.len() - accepted));
        draft.pace.note(guesses.len(), accepted);
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        draft.done.add(guesses.len(), accepted, accepted + 1, ms);
    }
    let sequences = vec![finished(sequence, &clock)];
    Ok(Generation { sequences, n_reused, context_full })
}

/// Guesses that may share a pass: all of them, but none where rotations depend on how long the
/// text is, as every token of a pass is then turned as the last one is.
fn guessable(model: &Model, context: &Context) -> usize {
    let longest = Model::MAX_ROWS - 1;
    match model.config.rope.scaling {
        RopeScaling::Dynamic { max_seq_len, .. } => {
            longest.min(max_seq_len.saturating_sub(context.used() + 1))
        }
        _ => longest,
    }
}
