//! Scores of texts under a reward model.

use crate::error::{Error, Result};
use crate::model::config::Head;
use crate::model::llama::{KvCache, KvType, LogitsFor, Model, Segment, Workspace};
use std::sync::atomic::{AtomicBool, Ordering};

/// The score of each text, read at its last token. Short texts share a pass; a score does not depend
/// on the company. `progress` hears the scores so far before each pass and at the end; `cancel` is
/// looked at before each pass.
///
/// # Errors
/// A model that is no reward model, an empty text, ids beyond the vocabulary,
/// [`Error::Cancelled`], and what the model and `progress` return.
pub fn scores(
    model: &Model,
    ws: &mut Workspace,
    texts: &[&[u32]],
    kv: KvType,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(&[f32]) -> Result<()>,
) -> Result<Vec<f32>> {
    check(model, texts)?;
    let mut out: Vec<f32> = Vec::with_capacity(texts.len());
    let mut caches: Vec<KvCache> = vec![];
    loop {
        progress(&out)?;
        if out.len() == texts.len() {
            return Ok(out);
        }
        let rest = &texts[out.len()..];
        let mut n_rows = 0;
        let fits = rest.iter().take_while(|text| {
            n_rows += text.len();
            n_rows <= Model::MAX_ROWS
        });
        let group = &rest[..fits.count().max(1)];
        caches.truncate(group.len());
        for (at, text) in group.iter().enumerate() {
            match caches.get_mut(at) {
                Some(cache) if cache.capacity() >= text.len() => cache.truncate(0),
                Some(cache) => *cache = model.new_cache(text.len(), kv)?,
                None => caches.push(model.new_cache(text.len(), kv)?),
            }
        }
        if let [text] = group {
            // All but the last piece leave keys and values only.
            let pieces = text.chunks(Model::MAX_ROWS).collect::<Vec<_>>();
            for (at, piece) in pieces.iter().enumerate() {
                stop(cancel)?;
                let is_last = at + 1 == pieces.len();
                let logits = if is_last { LogitsFor::Last } else { LogitsFor::None };
                let rope_len = Some(text.len());
                let cache = &mut caches[0];
                model.forward(ws, &mut [Segment { tokens: piece, cache, logits, rope_len }])?;
            }
        } else {
            stop(cancel)?;
            let segment = |(text, cache)| {
                let text: &&[u32] = text;
                let rope_len = Some(text.len());
                Segment { tokens: text, cache, logits: LogitsFor::Last, rope_len }
            };
            let mut segments: Vec<Segment<'_>> =
                group.iter().zip(&mut caches).map(segment).collect();
            model.forward(ws, &mut segments[..])?;
        }
        for row in 0..group.len() {
            out.push(ws.logits(row)?[0]);
        }
    }
}

/// Refuses a model that has no scores to give.
///
/// # Errors
/// A model that is no reward model.
pub fn check_scores(model: &Model) -> Result<()> {
    if model.config.head != Head::Score {
        let what = "scores of a model for tokens; `puna reward` makes a reward model of it";
        return Err(Error::Unsupported(what.into()));
    }
    Ok(())
}

fn stop(cancel: &AtomicBool) -> Result<()> {
    if cancel.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
}

fn check(model: &Model, texts: &[&[u32]]) -> Result<()> {
    check_scores(model)?;
    let vocab_size = model.config.vocab_size;
    for (at, text) in texts.iter().enumerate() {
        let fault = |what: String| Err(Error::Data { place: format!("text {at}"), what });
        if text.is_empty() {
            return fault("it has no tokens, wanted at least one".into());
        }
        if let Some(id) = text.iter().find(|&&id| id as usize >= vocab_size) {
            return fault(format!("id {id}, wanted less than the vocabulary's {vocab_size}"));
        }
    }
    Ok(())
}
