//! Answers under a reward model.

use super::{Asked, Reward};
use crate::data::{Asking, Rules};
use crate::error::{Error, Result};
use crate::eval::reward::scores;
use crate::model::config::Head;
use crate::model::llama::{KvType, Model, Workspace};
use std::sync::atomic::AtomicBool;

/// A reward model. It reads texts, not the ids of the model that wrote them, so its tokenizer may
/// be another one.
pub struct Judge {
    model: Model,
    workspace: Workspace,
    rules: Rules,
    max_length: usize,
    name: String,
    n_cut: usize,
}

impl Judge {
    /// A reward model that sees the last `max_length` tokens of a prompt with its answer, written
    /// by `rules`. It is known by `name`.
    ///
    /// # Errors
    /// A model for tokens, one without tokenizer, a template that is unknown, a length of 0.
    pub fn new(model: Model, rules: Rules, max_length: usize, name: String) -> Result<Judge> {
        if model.config.head != Head::Score {
            let what = format!(
                "{name} as a reward: it is a model for tokens; `puna reward` makes a reward model \
                 of it"
            );
            return Err(Error::Unsupported(what));
        }
        if max_length == 0 {
            return Err(Error::config("max_length", 0, "wanted at least 1"));
        }
        // What this refuses would else be found out only when the first answers are there.
        Asking::new(&rules, model.text.as_ref(), model.config.vocab_size, &name)?;
        let workspace = model.workspace();
        Ok(Judge { model, workspace, rules, max_length, name, n_cut: 0 })
    }
}

impl Reward for Judge {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn scores(&mut self, asked: &[Asked<'_>], cancel: &AtomicBool) -> Result<Vec<f64>> {
        let Judge { model, workspace, rules, max_length, name, n_cut } = self;
        let model: &Model = model;
        let asking = Asking::new(rules, model.text.as_ref(), model.config.vocab_size, name)?;
        let mut texts = Vec::with_capacity(asked.len());
        for one in asked {
            let ids = asking.answered(&one.prompt.question, one.answer);
            let mut ids = ids.map_err(|error| placed(error, &one.prompt.place))?;
            if ids.len() > *max_length {
                // The end stays: the score is read there.
                let n_over = ids.len() - *max_length;
                ids.drain(..n_over);
                *n_cut += 1;
            }
            texts.push(ids);
        }
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let found = scores(model, workspace, &texts, KvType::F32, cancel, &mut |_| Ok(()))?;
        Ok(found.into_iter().map(f64::from).collect())
    }

    fn take_cut(&mut self) -> usize {
        std::mem::take(&mut self.n_cut)
    }
}

fn placed(error: Error, place: &str) -> Error {
    match error {
        Error::Tokenizer(_) | Error::Template(_) => {
            Error::Data { place: place.to_owned(), what: error.to_string() }
        }
        other => other,
    }
}
