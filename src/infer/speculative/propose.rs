//! Where guesses come from: the text itself, or a smaller model.

use super::{Pace, Speculation};
use crate::error::{Error, Result};
use crate::infer::generate::{Context, prefill};
use crate::infer::sampler::{Sampler, SamplerConfig};
use crate::model::llama::{KvType, LogitsFor, Model, Workspace};
use std::sync::atomic::AtomicBool;

/// The longest ending that is looked for in the text before it.
const LONGEST_MATCH: usize = 4;
/// The shortest: single tokens repeat everywhere.
const SHORTEST_MATCH: usize = 2;

/// A source of guesses, with what came of them.
pub struct Draft {
    source: Source,
    pub(super) most: usize,
    pub(super) pace: Pace,
    /// What it did for the last sequence.
    pub done: Speculation,
}

enum Source {
    Lookup(PromptLookup),
    Model(Box<DraftModel>),
}

impl Draft {
    /// Guesses that the text goes on as it did where it last ended like this; `most` tokens at a
    /// time at most.
    pub fn lookup(most: usize) -> Draft {
        Draft::new(Source::Lookup(PromptLookup), most)
    }

    /// Guesses of a smaller model.
    pub fn model(model: DraftModel, most: usize) -> Draft {
        Draft::new(Source::Model(Box::new(model)), most)
    }

    fn new(source: Source, most: usize) -> Draft {
        // A pass takes no more, whatever was asked for.
        let most = most.min(Model::MAX_ROWS - 1);
        Draft { source, most, pace: Pace::new(most), done: Speculation::default() }
    }

    /// Gets ready for a sequence.
    pub(super) fn begin(&mut self, config: SamplerConfig) -> Result<()> {
        self.pace = Pace::new(self.most);
        self.done = Speculation::default();
        match &mut self.source {
            Source::Lookup(_) => Ok(()),
            Source::Model(model) => model.begin(config),
        }
    }

    /// Puts at most `n` guesses of what follows `ids` into `out`.
    pub(super) fn propose(
        &mut self,
        ids: &[u32],
        n: usize,
        sampler: &Sampler,
        cancel: &AtomicBool,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        out.clear();
        match &mut self.source {
            Source::Lookup(lookup) => {
                lookup.propose(ids, n, out);
                Ok(())
            }
            Source::Model(model) => model.propose(ids, n, sampler, cancel, out),
        }
    }
}

/// Prompt lookup: the longest ending of two to four tokens that stands earlier in the text, and
/// what followed it there the last time.
#[derive(Clone, Copy, Debug, Default)]
pub struct PromptLookup;

impl PromptLookup {
    /// Adds `n` guesses of what follows `ids` to `out`, or none.
    pub fn propose(&self, ids: &[u32], n: usize, out: &mut Vec<u32>) {
        let longest = LONGEST_MATCH.min(ids.len().saturating_sub(1));
        for length in (SHORTEST_MATCH..=longest).rev() {
            let (before, ending) = (&ids[..ids.len() - 1], &ids[ids.len() - length..]);
            let Some(at) = before.windows(length).rposition(|w| w == ending) else { continue };
            for next in at + length..at + length + n {
                // Past the end the text is taken to repeat, guesses included.
                let id = ids.get(next).copied().unwrap_or_else(|| out[next - ids.len()]);
                out.push(id);
            }
            return;
        }
    }
}

/// A smaller model of the same vocabulary, with a context of its own.
pub struct DraftModel {
    model: Model,
    workspace: Workspace,
    context: Context,
    sampler: Option<Sampler>,
}

impl DraftModel {
    /// A draft for `target` whose context has `capacity` positions.
    ///
    /// # Errors
    /// Another vocabulary, or no room for the context.
    pub fn new(model: Model, target: &Model, capacity: usize, kv: KvType) -> Result<DraftModel> {
        same_vocabulary(target, &model)?;
        let context = Context::new(&model, capacity, kv)?;
        let workspace = model.workspace();
        Ok(DraftModel { model, workspace, context, sampler: None })
    }

    fn begin(&mut self, config: SamplerConfig) -> Result<()> {
        self.sampler = Some(Sampler::new(config, self.model.config.vocab_size, 0)?);
        Ok(())
    }

    fn propose(
        &mut self,
        ids: &[u32],
        n: usize,
        target: &Sampler,
        cancel: &AtomicBool,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let DraftModel { model, workspace, context, sampler } = self;
        let Some(sampler) = sampler else { return Ok(()) };
        // The last guess is not computed, so the context needs room for all but one.
        let n = n.min((context.capacity() + 1).saturating_sub(ids.len()));
        if n == 0 {
            return Ok(());
        }
        sampler.follow(target);
        context.keep_common_prefix(ids);
        if !prefill(model, workspace, context, ids, cancel)? {
            return Ok(());
        }
        loop {
            let id = sampler.choose(workspace.row(0))?;
            sampler.observe(id);
            out.push(id);
            if out.len() == n {
                return Ok(());
            }
            if !context.run(model, workspace, &[id], LogitsFor::Last, cancel)? {
                return Ok(());
            }
        }
    }
}

/// Refuses a draft whose ids mean other tokens.
fn same_vocabulary(target: &Model, draft: &Model) -> Result<()> {
    let (wanted, found) = (target.config.vocab_size, draft.config.vocab_size);
    if wanted != found {
        let why = format!("its vocabulary has {found} tokens, the model's {wanted}");
        return Err(Error::config("draft", "its vocabulary", why));
    }
    let (Some(target), Some(draft)) = (&target.text, &draft.text) else { return Ok(()) };
    let differs = |&id: &u32| target.tokenizer.id_to_token(id) != draft.tokenizer.id_to_token(id);
    let Some(id) = (0..wanted as u32).find(differs) else { return Ok(()) };
    let name = |parts: &crate::text::TextParts| {
        parts.tokenizer.id_to_token(id).map_or("nothing".to_owned(), |token| format!("{token:?}"))
    };
    let why = format!("token {id} is {}, the model's is {}", name(draft), name(target));
    Err(Error::config("draft", "its vocabulary", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(ids: &[u32], n: usize) -> Vec<u32> {
        let mut out = vec![];
        PromptLookup.propose(ids, n, &mut out);
        out
    }

    #[test]
    fn the_longest_ending_and_its_last_place_count() {
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2], 3), [3, 4, 9]);
        assert_eq!(guess(&[1, 2, 7, 1, 2, 8, 5, 1, 2], 1), [8], "the later place");
        assert_eq!(guess(&[6, 1, 2, 7, 5, 1, 2, 8, 6, 1, 2], 1), [7], "the longer ending");
        // One token is no ending.
        for ids in [&[1, 2, 3][..], &[5, 9, 5], &[], &[1]] {
            assert!(guess(ids, 4).is_empty(), "{ids:?}");
        }
    }

    #[test]
    fn no_more_is_guessed_than_a_pass_takes() {
        for (asked, most) in [(3, 3), (usize::MAX, Model::MAX_ROWS - 1)] {
            assert_eq!(Draft::lookup(asked).most, most);
        }
    }

    #[test]
    fn what_repeats_goes_on() {
        assert_eq!(guess(&[1, 2, 1, 2], 5), [1, 2, 1, 2, 1]);
        assert_eq!(guess(&[7, 7, 7], 3), [7, 7, 7]);
    }
}
