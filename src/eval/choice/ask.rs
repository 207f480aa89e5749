//! Log-probabilities of continuations: what a model is asked.

use crate::error::{Error, Result};
use crate::eval::perplexity::token_nll;
use crate::model::llama::{KvCache, KvType, LogitsFor, Model, Segment, Workspace};

/// Asks one model. What two texts in a row have in common at their beginning is computed once:
/// the answers to a question, and questions behind the same examples.
pub struct Asker<'m> {
    model: &'m Model,
    ws: Workspace,
    cache: KvCache,
    /// The tokens whose keys and values the cache holds.
    known: Vec<u32>,
    capacity: usize,
}

impl<'m> Asker<'m> {
    /// Texts of at most `capacity` tokens.
    ///
    /// # Errors
    /// A reward model; no memory.
    pub fn new(model: &'m Model, capacity: usize, kv: KvType) -> Result<Asker<'m>> {
        model.check_speaks()?;
        let cache = model.new_cache(capacity, kv)?;
        Ok(Asker { model, ws: model.workspace(), cache, known: vec![], capacity })
    }

    /// The summed log-probability of `tokens[n_context..]` behind the tokens before. A text that is
    /// too long loses its beginning.
    ///
    /// # Errors
    /// Nothing before or nothing after `n_context`, ids beyond the vocabulary, a continuation that
    /// is too long by itself, and what the model returns.
    pub fn log_prob(&mut self, tokens: &[u32], n_context: usize) -> Result<f64> {
        let fault = |what: String| Err(Error::Data { place: "continuation".into(), what });
        if n_context == 0 || n_context >= tokens.len() {
            return fault(format!(
                "{n_context} tokens before it of {}, wanted some before and some after",
                tokens.len()
            ));
        }
        let vocab_size = self.model.config.vocab_size;
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return fault(format!("id {id}, wanted less than the vocabulary's {vocab_size}"));
        }
        // The last token predicts nothing.
        let inputs = tokens.len() - 1;
        let lost = inputs.saturating_sub(self.capacity);
        if lost >= n_context {
            let n = tokens.len() - n_context;
            return fault(format!("{n} tokens, wanted at most {}", self.capacity));
        }
        let (tokens, scored) = (&tokens[lost..], n_context - lost - 1);
        let inputs = &tokens[..tokens.len() - 1];
        let common = self.known.iter().zip(inputs).take_while(|(a, b)| a == b).count().min(scored);
        self.known.clear();
        self.cache.truncate(common);
        for piece in inputs[common..scored].chunks(Model::MAX_ROWS) {
            self.forward(piece, LogitsFor::None, inputs.len())?;
        }
        let (mut sum, mut at) = (0.0, scored);
        for piece in inputs[scored..].chunks(Model::MAX_ROWS) {
            self.forward(piece, LogitsFor::All, inputs.len())?;
            for row in 0..piece.len() {
                sum -= token_nll(self.ws.logits(row)?, tokens[at + 1])?;
                at += 1;
            }
        }
        self.known.extend_from_slice(inputs);
        Ok(sum)
    }

    fn forward(&mut self, tokens: &[u32], logits: LogitsFor, len: usize) -> Result<()> {
        let Asker { model, ws, cache, .. } = self;
        model.forward(ws, &mut [Segment { tokens, cache, logits, rope_len: Some(len) }])
    }
}
