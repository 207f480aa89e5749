//! Negative log-likelihood of a text in sliding windows.
//!
//! Window `b..e` begins at 0, `stride`, 2 `stride`, ... and ends at `min(b + window, n)`. It
//! scores the tokens from `max(previous e, b + 1)` to `e - 1`, each from its predecessors inside
//! the window, and the last window is the first that reaches `n`. So every token but the first is
//! scored once, and all but those of the first window have at least `window - stride`
//! predecessors (with `stride` = `window` also the first token of each window goes unscored). A
//! window is computed anew from its beginning: nothing is shared between windows.

use crate::error::{Error, Result};
use crate::model::llama::{KvType, LogitsFor, Model, Segment, Workspace};
use std::sync::atomic::{AtomicBool, Ordering};

/// Most bytes of logits that one forward pass is asked for.
const LOGITS_BYTES: usize = 64 << 20;

/// One window of a text of `n` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First token of the window.
    pub begin: usize,
    /// One past its last token.
    pub end: usize,
    /// First token that it scores; it scores all from there to its end.
    pub first_scored: usize,
}

/// The windows of a text of `n` tokens.
///
/// # Errors
/// A text of fewer than two tokens, a window below 2, a stride of 0 or beyond the window.
pub fn windows(n: usize, window: usize, stride: usize) -> Result<Vec<Window>> {
    if n < 2 {
        return Err(Error::Data {
            place: "text".into(),
            what: format!("{n} tokens, wanted at least 2: the first one is never scored"),
        });
    }
    if window < 2 {
        return Err(Error::config("window", window, "wanted at least 2"));
    }
    if stride == 0 || stride > window {
        return Err(Error::config("stride", stride, format!("wanted 1 to the window's {window}")));
    }
    let mut all = vec![];
    let (mut begin, mut previous_end) = (0, 0);
    loop {
        let end = n.min(begin + window);
        let first_scored = previous_end.max(begin + 1);
        if first_scored < end {
            all.push(Window { begin, end, first_scored });
        }
        if end == n {
            return Ok(all);
        }
        (begin, previous_end) = (begin + stride, end);
    }
}

/// Score of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Perplexity {
    /// Negative log-likelihood in nats of every scored token, in order.
    pub nll: Vec<f64>,
}

impl Perplexity {
    /// Mean over the scored tokens, in nats.
    pub fn mean(&self) -> f64 {
        self.nll.iter().sum::<f64>() / self.nll.len() as f64
    }

    /// `exp` of the mean.
    pub fn ppl(&self) -> f64 {
        self.mean().exp()
    }

    /// Number of scored tokens.
    pub fn tokens(&self) -> usize {
        self.nll.len()
    }
}

/// How to score.
#[derive(Clone, Copy, Debug)]
pub struct PerplexityOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Distance of two windows' beginnings.
    pub stride: usize,
    /// Storage of keys and values.
    pub kv: KvType,
}

/// Scores `tokens`. `progress` hears after every forward pass how many tokens are scored, of how
/// many; `cancel` is looked at before each.
///
/// # Errors
/// What [`windows`] refuses, ids beyond the vocabulary, [`Error::Cancelled`], and what the model
/// returns.
pub fn perplexity(
    model: &Model,
    ws: &mut Workspace,
    tokens: &[u32],
    options: PerplexityOptions,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Perplexity> {
    model.check_speaks()?;
    let vocab_size = model.config.vocab_size;
    if let Some(at) = tokens.iter().position(|&id| id as usize >= vocab_size) {
        return Err(Error::Data {
            place: format!("text token {at}"),
            what: format!("id {}, wanted less than the vocabulary's {vocab_size}", tokens[at]),
        });
    }
    let all = windows(tokens.len(), options.window, options.stride)?;
    let total = all.iter().map(|w| w.end - w.first_scored).sum();
    let mut cache = model.new_cache(options.window.min(tokens.len()), options.kv)?;
    let mut nll = Vec::with_capacity(total);
    for window in all {
        cache.truncate(0);
        for pass in passes(window, vocab_size, Model::MAX_ROWS) {
            if cancel.load(Ordering::Relaxed) {
                return Err(Error::Cancelled);
            }
            let logits = if pass.scored { LogitsFor::All } else { LogitsFor::None };
            let rope_len = Some(window.end - window.begin);
            let segment = Segment {
                tokens: &tokens[pass.begin..pass.end],
                cache: &mut cache,
                logits,
                rope_len,
            };
            model.forward(ws, &mut [segment])?;
            if pass.scored {
                for (row, position) in (pass.begin..pass.end).enumerate() {
                    nll.push(token_nll(ws.logits(row)?, tokens[position + 1])?);
                }
                progress(nll.len(), total);
            }
        }
    }
    Ok(Perplexity { nll })
}

/// Rows of one forward pass; with `scored`, every row's logits score the token after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pass {
    begin: usize,
    end: usize,
    scored: bool,
}

/// Cuts the inputs of a window (all its tokens but the last) into passes of at most `max_rows`,
/// fewer where the logits of a large vocabulary would fill more than [`LOGITS_BYTES`].
fn passes(window: Window, vocab_size: usize, max_rows: usize) -> Vec<Pass> {
    let scored_rows = (LOGITS_BYTES / (4 * vocab_size.max(1))).clamp(1, max_rows);
    let first = window.first_scored - 1;
    let cut = |begin: usize, end: usize, rows: usize, scored: bool| {
        (begin..end).step_by(rows).map(move |begin| Pass {
            begin,
            end: end.min(begin + rows),
            scored,
        })
    };
    cut(window.begin, first, max_rows, false)
        .chain(cut(first, window.end - 1, scored_rows, true))
        .collect()
}

/// `-log softmax(logits)[target]`, in f64; the largest logit is subtracted so that no exponential
/// overflows.
pub(super) fn token_nll(logits: &[f32], target: u32) -> Result<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let nll = f64::from(max) + sum.ln() - f64::from(logits[target as usize]);
    if nll.is_nan() {
        return Err(Error::Data {
            place: "logits".into(),
            what: "NaN or infinity among them, wanted finite numbers".into(),
        });
    }
    Ok(nll)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn triples(n: usize, window: usize, stride: usize) -> Vec<(usize, usize, usize)> {
        let all = windows(n, window, stride).unwrap();
        all.iter().map(|w| (w.begin, w.end, w.first_scored)).collect()
    }

    #[test]
    fn windows_are_those_of_the_reference() {
        let wanted = [
            (0, 48, 1),
            (32, 80, 48),
            (64, 112, 80),
            (96, 144, 112),
            (128, 176, 144),
            (160, 200, 176),
        ];
        assert_eq!(triples(200, 48, 32), wanted);
        assert_eq!(triples(10, 48, 32), [(0, 10, 1)]);
        assert_eq!(triples(2, 2, 1), [(0, 2, 1)]);
    }

    #[test]
    fn every_token_but_the_first_is_scored_once_where_windows_overlap() {
        for n in [2, 3, 17, 64, 65] {
            for window in [2, 3, 16, 64] {
                for stride in 1..window {
                    let scored: Vec<usize> = windows(n, window, stride)
                        .unwrap()
                        .iter()
                        .flat_map(|w| w.first_scored..w.end)
                        .collect();
                    assert_eq!(scored, (1..n).collect::<Vec<_>>(), "{n} {window} {stride}");
                }
            }
        }
    }

    #[test]
    fn without_overlap_the_first_token_of_a_window_is_not_scored() {
        assert_eq!(triples(8, 4, 4), [(0, 4, 1), (4, 8, 5)]);
        assert_eq!(triples(5, 4, 4), [(0, 4, 1)], "a window of one token scores nothing");
    }

    #[test]
    fn bad_settings_are_refused() {
        assert!(windows(1, 4, 2).is_err());
        assert!(windows(9, 1, 1).is_err());
        assert!(windows(9, 4, 0).is_err());
        assert!(windows(9, 4, 5).is_err());
    }

    #[test]
    fn passes_cover_the_inputs_and_ask_only_for_what_is_scored() {
        let window = Window { begin: 10, end: 30, first_scored: 21 };
        let got = passes(window, 100, 8);
        let wanted = [(10, 18, false), (18, 20, false), (20, 28, true), (28, 29, true)];
        let got: Vec<_> = got.iter().map(|p| (p.begin, p.end, p.scored)).collect();
        assert_eq!(got, wanted);
        let large = passes(Window { begin: 0, end: 513, first_scored: 1 }, 128_256, 512);
        assert!(large.iter().all(|p| (p.end - p.begin) * 128_256 * 4 <= LOGITS_BYTES));
        assert_eq!(large.iter().map(|p| p.end - p.begin).sum::<usize>(), 512);
    }

    #[test]
    fn nll_is_exact_for_large_logits_and_refuses_nan() {
        let got = token_nll(&[1000.0, 1000.0, 0.0], 0).unwrap();
        assert!((got - 2f64.ln()).abs() < 1e-12);
        assert!(token_nll(&[0.0, f32::NAN], 0).is_err());
        assert!(token_nll(&[0.0, f32::INFINITY], 0).is_err());
        let score = Perplexity { nll: vec![1.0, 3.0] };
        assert_eq!((score.mean(), score.tokens()), (2.0, 2));
        assert!((score.ppl() - 2f64.exp()).abs() < 1e-12);
    }
}
