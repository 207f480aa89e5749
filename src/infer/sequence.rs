//! One sequence being written: its tokens and text, how it chooses and when it ends.

use super::generate::GenerateOptions;
use super::sampler::Sampler;
use super::stop::StopMatcher;
use crate::error::Result;
use crate::model::llama::Logits;
use crate::text::{StreamDecoder, Tokenizer};

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The end token or a stop string came.
    Stop,
    /// As many tokens as asked for, or no room left in the context.
    Length,
    /// The caller or the user cancelled.
    Cancelled,
}

impl FinishReason {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// Log-probabilities at one position, from the model's logits before any penalty or filter.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// The token that was chosen.
    pub id: u32,
    /// Its natural log-probability.
    pub logprob: f64,
    /// The most likely tokens with theirs, most likely first (equal ones by id).
    pub top: Vec<(u32, f64)>,
}

impl TokenLogprobs {
    /// Log-softmax (f64) of `logits` at `id` and at the `k` largest.
    pub fn of(logits: &[f32], id: u32, k: usize) -> TokenLogprobs {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        // The k best so far, best first; k is small, so insertion is cheap.
        let mut top: Vec<(u32, f32)> = Vec::with_capacity(k + 1);
        for (id, &logit) in logits.iter().enumerate() {
            if top.len() == k && top.last().is_none_or(|&(_, least)| logit <= least) {
                continue;
            }
            let at = top.partition_point(|&(_, other)| other >= logit);
            top.insert(at, (id as u32, logit));
            top.truncate(k);
        }
        let logprob = |logit: f32| f64::from(logit) - log_sum;
        TokenLogprobs {
            id,
            logprob: logits.get(id as usize).map_or(f64::NEG_INFINITY, |&l| logprob(l)),
            top: top.into_iter().map(|(id, logit)| (id, logprob(logit))).collect(),
        }
    }
}

/// A sequence between its prompt and its end.
pub struct Sequence<'t> {
    /// Ids chosen so far, the end token included.
    pub tokens: Vec<u32>,
    /// Text that may be shown so far: no half character, nothing of a stop string.
    pub text: String,
    /// Set when the sequence has ended.
    pub finish: Option<FinishReason>,
    /// One entry a token where they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
    sampler: Sampler,
    stop: StopMatcher,
    stream: Option<StreamDecoder<'t>>,
    end_ids: Vec<u32>,
    max_new_tokens: usize,
    n_logprobs: Option<usize>,
}

impl<'t> Sequence<'t> {
    /// The `index`-th sequence after `prompt`. Without a tokenizer its text stays empty.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn new(
        options: &GenerateOptions,
        vocab_size: usize,
        prompt: &[u32],
        tokenizer: Option<&'t Tokenizer>,
        index: usize,
    ) -> Result<Sequence<'t>> {
        let mut sampler = Sampler::new(options.sampler, vocab_size, index as u64)?;
        prompt.iter().for_each(|&id| sampler.observe(id));
        Ok(Sequence {
            tokens: Vec::with_capacity(options.max_new_tokens.min(4096)),
            text: String::new(),
            finish: (options.max_new_tokens == 0).then_some(FinishReason::Length),
            logprobs: vec![],
            sampler,
            stop: StopMatcher::new(&options.stop)?,
            stream: tokenizer.map(|t| t.stream(true)),
            end_ids: if options.ignore_eos { vec![] } else { options.end_ids.clone() },
            max_new_tokens: options.max_new_tokens,
            n_logprobs: options.logprobs,
        })
    }

    /// Chooses the next token from `logits` `[vocab_size]`; returns the text that may be shown now
    /// and sets `finish` where the sequence ends with it.
    ///
    /// # Errors
    /// Logits that are not numbers, or a token that cannot be decoded.
    pub fn advance<'l>(&mut self, logits: impl Into<Logits<'l>>) -> Result<String> {
        let logits = logits.into();
        let id = self.sampler.choose(logits)?;
        if let Some(k) = self.n_logprobs {
            self.logprobs.push(TokenLogprobs::of(logits.read()?, id, k));
        }
        self.sampler.observe(id);
        self.tokens.push(id);
        if self.end_ids.contains(&id) {
            return self.end(FinishReason::Stop);
        }
        let piece = match &mut self.stream {
            Some(stream) => stream.push(id)?,
            None => String::new(),
        };
        let shown = self.stop.push(&piece);
        self.text.push_str(&shown.text);
        if shown.stopped {
            self.finish = Some(FinishReason::Stop);
            return Ok(shown.text);
        }
        if self.tokens.len() >= self.max_new_tokens {
            return Ok(shown.text + &self.end(FinishReason::Length)?);
        }
        Ok(shown.text)
    }

    /// Ends the sequence; returns the text that was held back.
    ///
    /// # Errors
    /// Remaining bytes that cannot be decoded.
    pub fn end(&mut self, reason: FinishReason) -> Result<String> {
        let piece = match &mut self.stream {
            Some(stream) => stream.finish()?,
            None => String::new(),
        };
        let mut shown = self.stop.push(&piece);
        self.finish = Some(if shown.stopped { FinishReason::Stop } else { reason });
        shown.text.push_str(&self.stop.finish());
        self.text.push_str(&shown.text);
        Ok(shown.text)
    }

    /// How it chooses.
    pub(super) fn sampler(&self) -> &Sampler {
        &self.sampler
    }

    /// Tokens that it may still get.
    pub(super) fn left(&self) -> usize {
        self.max_new_tokens.saturating_sub(self.tokens.len())
    }

    /// The last token chosen, not yet in the cache while the sequence goes on.
    pub fn last(&self) -> Option<&u32> {
        self.tokens.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::sampler::SamplerConfig;

    fn options() -> GenerateOptions {
        GenerateOptions {
            sampler: SamplerConfig::GREEDY,
            max_new_tokens: 3,
            stop: vec![],
            end_ids: vec![2],
            ignore_eos: false,
            n: 1,
            logprobs: None,
        }
    }

    fn one_hot(id: usize) -> [f32; 5] {
        let mut logits = [0.0; 5];
        logits[id] = 9.0;
        logits
    }

    #[test]
    fn the_end_token_stops_and_is_among_the_tokens() {
        let mut sequence = Sequence::new(&options(), 5, &[1], None, 0).unwrap();
        sequence.advance(&one_hot(4)).unwrap();
        assert_eq!(sequence.finish, None);
        sequence.advance(&one_hot(2)).unwrap();
        assert_eq!(
            (sequence.finish, &sequence.tokens[..]),
            (Some(FinishReason::Stop), &[4, 2][..])
        );
    }

    #[test]
    fn the_end_token_is_ignored_when_told_and_length_ends_it() {
        let ignoring = GenerateOptions { ignore_eos: true, ..options() };
        let mut sequence = Sequence::new(&ignoring, 5, &[1], None, 0).unwrap();
        for _ in 0..3 {
            assert_eq!(sequence.finish, None);
            sequence.advance(&one_hot(2)).unwrap();
        }
        assert_eq!(sequence.finish, Some(FinishReason::Length));
        assert_eq!(sequence.tokens, [2, 2, 2]);
    }

    #[test]
    fn no_tokens_wanted_is_finished_at_once() {
        let none = GenerateOptions { max_new_tokens: 0, ..options() };
        let sequence = Sequence::new(&none, 5, &[1], None, 0).unwrap();
        assert_eq!(sequence.finish, Some(FinishReason::Length));
    }

    #[test]
    fn the_prompt_counts_for_the_repetition_penalty() {
        let mut penalised = options();
        penalised.sampler.repetition_penalty = 10.0;
        let mut sequence = Sequence::new(&penalised, 3, &[1], None, 0).unwrap();
        for _ in 0..2 {
            sequence.advance(&[1.0, 2.0, 0.5]).unwrap();
        }
        assert_eq!(sequence.tokens, [0, 2]);
    }

    #[test]
    fn logprobs_are_the_log_softmax_of_raw_logits() {
        let probabilities = [0.1f64, 0.4, 0.2, 0.2, 0.1];
        let logits: Vec<f32> = probabilities.iter().map(|p| (p.ln() + 3.0) as f32).collect();
        let got = TokenLogprobs::of(&logits, 4, 3);
        assert!((got.logprob - 0.1f64.ln()).abs() < 1e-6);
        let ids: Vec<u32> = got.top.iter().map(|t| t.0).collect();
        assert_eq!(ids, [1, 2, 3], "equal ones by id");
        for (id, logprob) in got.top {
            assert!((logprob - probabilities[id as usize].ln()).abs() < 1e-6);
        }
        assert_eq!(TokenLogprobs::of(&logits, 0, 0).top, []);
        assert_eq!(TokenLogprobs::of(&logits, 0, 99).top.len(), 5);
    }

    #[test]
    fn logprobs_ignore_penalty_and_temperature() {
        let mut asked = GenerateOptions { logprobs: Some(1), ..options() };
        asked.sampler.repetition_penalty = 5.0;
        let mut sequence = Sequence::new(&asked, 2, &[0], None, 0).unwrap();
        sequence.advance(&[2.0, 1.0]).unwrap();
        assert_eq!(sequence.tokens, [1]);
        assert_eq!(sequence.logprobs[0].top[0].0, 0);
        let log_sum = (2f64.exp() + 1f64.exp()).ln();
        assert!((sequence.logprobs[0].logprob - (1.0 - log_sum)).abs() < 1e-12);
    }
}
