//! Likelihood of the samples of a set, and LMFlow's perplexity.
//!
//! **Samples.** A sample's value is the sum over its scored tokens: all of a text but its first
//! token, which nothing predicts, or an output behind its input. A sample that is longer than the
//! window is cut as [`windows`] cuts it, and each window scores what of its share is to be scored.
//! Short samples share forward passes; a value does not depend on the company.
//!
//! **LMFlow's perplexity** follows Hugging Face's recipe for models of fixed length: windows from
//! `begin` = 0, stride, ... to `end` = min(`begin` + window, n). The last `trg_len` tokens of each,
//! `end` less the previous `end`, have labels. The loss shifts labels by one place, so the first
//! token of a window never counts even where it has a label: the first window scores `trg_len` - 1
//! tokens, the others `trg_len`, or one less where stride and window are equal and windows do not
//! overlap. These are just the tokens that [`windows`] names, so its values need only be cut up.
//! The perplexity is `exp` of the mean over windows of each window's mean: a short last window
//! weighs as much as a long one. Where a last window scores no token at all, Hugging Face's mean
//! over nothing makes the whole NaN; such a window is left out here.

use crate::error::{Error, Result};
use crate::eval::perplexity::{PerplexityOptions, Window, token_nll, windows};
use crate::model::llama::{KvCache, LogitsFor, Model, Segment, Workspace};
use std::sync::atomic::AtomicBool;

/// Most bytes of logits that one forward pass is asked for.
const LOGITS_BYTES: usize = 64 << 20;

/// The mean of each of `windows`, whose scored tokens have the values `nll`, in order.
///
/// # Panics
/// When the windows do not score as many tokens as there are values.
pub fn window_means(nll: &[f64], windows: &[Window]) -> Vec<f64> {
    let scored = |window: &Window| window.end - window.first_scored;
    let total: usize = windows.iter().map(scored).sum();
    assert_eq!(nll.len(), total, "values, and tokens that the windows score");
    let mut rest = nll;
    let mut mean = |window: &Window| {
        let (own, after) = rest.split_at(scored(window));
        rest = after;
        own.iter().sum::<f64>() / own.len() as f64
    };
    windows.iter().map(&mut mean).collect()
}

/// LMFlow's perplexity from the mean of each window.
pub fn windowed_ppl(means: &[f64]) -> f64 {
    (means.iter().sum::<f64>() / means.len() as f64).exp()
}

/// A text whose tokens are scored from some token on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Its ids.
    pub ids: Vec<u32>,
    /// The first token that is scored, if it is not the text's first, which has no prediction.
    pub first_scored: usize,
    /// Where it stands, for people.
    pub place: String,
}

/// What a sample got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likelihood {
    /// Negative log-likelihood in nats, summed over the scored tokens.
    pub nll: f64,
    /// How many these are.
    pub tokens: usize,
}

/// A window of a sample on its way through the model.
struct Job<'a> {
    /// Index of the sample.
    sample: usize,
    /// The window's tokens. All but the last are rows that the model reads.
    tokens: &'a [u32],
    /// The first row whose logits score the token after it; so do all behind it.
    first: usize,
    /// Rows that were read.
    at: usize,
}

impl Job<'_> {
    fn rows(&self) -> usize {
        self.tokens.len() - 1
    }
}

/// How many tokens of a sample are scored.
///
/// # Errors
/// What [`windows`] refuses of window and stride.
pub fn n_scored(sample: &Sample, options: &PerplexityOptions) -> Result<usize> {
    let jobs = jobs(std::slice::from_ref(sample), options)?;
    Ok(jobs.iter().map(|job| job.rows() - job.first).sum())
}

/// Scores every sample; one without a token to score gets 0 of 0 tokens. `progress` hears what the
/// first samples got, as many as are done, between passes and at the end; `cancel` is looked at
/// within each pass.
///
/// # Errors
/// What [`windows`] refuses of window and stride, a reward model, ids beyond the vocabulary,
/// [`Error::Cancelled`], and what the model and `progress` return.
pub fn likelihoods(
    model: &Model,
    ws: &mut Workspace,
    samples: &[Sample],
    options: PerplexityOptions,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(&[Likelihood]) -> Result<()>,
) -> Result<Vec<Likelihood>> {
    model.check_speaks()?;
    check_ids(samples, model.config.vocab_size)?;
    let mut jobs = jobs(samples, &options)?;
    let mut found = vec![Likelihood::default(); samples.len()];
    let mut caches: Vec<KvCache> = vec![];
    let mut begin = 0;
    loop {
        let n_done = jobs.get(begin).map_or(samples.len(), |job| job.sample);
        progress(&found[..n_done])?;
        if begin == jobs.len() {
            return Ok(found);
        }
        let mut n_rows = 0;
        let fits = jobs[begin..].iter().take_while(|job| {
            n_rows += job.rows();
            n_rows <= Model::MAX_ROWS
        });
        let end = begin + fits.count().max(1);
        let group = &mut jobs[begin..end];
        caches.truncate(group.len());
        for (at, job) in group.iter().enumerate() {
            match caches.get_mut(at) {
                Some(cache) if cache.capacity() >= job.rows() => cache.truncate(0),
                Some(cache) => *cache = model.new_cache(job.rows(), options.kv)?,
                None => caches.push(model.new_cache(job.rows(), options.kv)?),
            }
        }
        for scored in [false, true] {
            while pass(model, ws, group, &mut caches, scored, cancel, &mut found)? {}
        }
        begin = end;
    }
}

fn check_ids(samples: &[Sample], vocab_size: usize) -> Result<()> {
    for Sample { ids, place, .. } in samples {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            let what = format!("id {id}, wanted less than the vocabulary's {vocab_size}");
            return Err(Error::Data { place: place.clone(), what });
        }
    }
    Ok(())
}

/// The windows of all samples that score something, sample by sample.
fn jobs<'a>(samples: &'a [Sample], options: &PerplexityOptions) -> Result<Vec<Job<'a>>> {
    let PerplexityOptions { window, stride, .. } = *options;
    // Bad settings are refused whatever the samples are.
    windows(2, window, stride)?;
    let mut jobs = vec![];
    for (index, sample) in samples.iter().enumerate() {
        let n = sample.ids.len();
        if n < 2 {
            continue;
        }
        for Window { begin, end, first_scored } in windows(n, window, stride)? {
            let first_scored = first_scored.max(sample.first_scored);
            if first_scored < end {
                let (tokens, first) = (&sample.ids[begin..end], first_scored - 1 - begin);
                jobs.push(Job { sample: index, tokens, first, at: 0 });
            }
        }
    }
    Ok(jobs)
}

/// One forward pass over as many of the group's next rows as it takes: those that are scored, or
/// those before them, which leave keys and values only. `false` where none is left.
fn pass(
    model: &Model,
    ws: &mut Workspace,
    group: &mut [Job<'_>],
    caches: &mut [KvCache],
    scored: bool,
    cancel: &AtomicBool,
    found: &mut [Likelihood],
) -> Result<bool> {
    let scored_rows = LOGITS_BYTES / (4 * model.config.vocab_size.max(1));
    let (most, logits) = match scored {
        true => (scored_rows.clamp(1, Model::MAX_ROWS), LogitsFor::All),
        false => (Model::MAX_ROWS, LogitsFor::None),
    };
    let mut room = most;
    let mut end = |job: &Job<'_>| {
        let last = if scored { job.rows() } else { job.first };
        let end = last.min(job.at + room);
        room -= end - job.at;
        end
    };
    let ends: Vec<usize> = group.iter().map(&mut end).collect();
    if room == most {
        return Ok(false);
    }
    let mut segments: Vec<Segment<'_>> = vec![];
    for ((job, &end), cache) in group.iter().zip(&ends).zip(caches.iter_mut()) {
        if job.at < end {
            let (tokens, rope_len) = (&job.tokens[job.at..end], Some(job.tokens.len()));
            segments.push(Segment { tokens, cache, logits, rope_len });
        }
    }
    model.forward_unless(ws, &mut segments, cancel)?;
    let mut row = 0;
    for (job, &end) in group.iter_mut().zip(&ends) {
        if scored {
            for at in job.at..end {
                let one = &mut found[job.sample];
                one.nll += token_nll(ws.logits(row), job.tokens[at + 1])?;
                one.tokens += 1;
                row += 1;
            }
        }
        job.at = end;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::perplexity::perplexity;
    use crate::model::builtin;
    use crate::model::llama::{KvType, LoadOptions};
    use std::path::Path;

    fn sample(n: usize, first_scored: usize) -> Sample {
        let ids = (0..n).map(|i| ((i * 37 + n * i * i) % 2000 + 3) as u32).collect();
        Sample { ids, first_scored, place: format!("{n} tokens") }
    }

    fn options(window: usize, stride: usize) -> PerplexityOptions {
        PerplexityOptions { window, stride, kv: KvType::F32 }
    }

    #[test]
    fn means_of_windows_weigh_the_same() {
        let cut = windows(7, 4, 2).unwrap();
        let means = window_means(&[1.0, 2.0, 3.0, 4.0, 6.0, 9.0], &cut);
        assert_eq!(means, [2.0, 5.0, 9.0]);
        assert!((windowed_ppl(&means) - (16.0f64 / 3.0).exp()).abs() < 1e-9);
        assert_eq!(window_means(&[], &[]), [0.0; 0]);
    }

    #[test]
    fn windows_score_their_share_of_what_is_to_be_scored() {
        let samples = [sample(5, 0), sample(1, 0), sample(0, 0), sample(4, 4), sample(20, 11)];
        let found: Vec<_> = jobs(&samples, &options(8, 6))
            .unwrap()
            .iter()
            .map(|job| (job.sample, job.tokens.len(), job.first))
            .collect();
        // Of the last: 0..8 scores nothing, 6..14 from 11 on, 12..20 from 14 on.
        assert_eq!(found, [(0, 5, 0), (4, 8, 4), (4, 8, 1)]);
        assert!(jobs(&[], &options(8, 9)).is_err());
        assert!(jobs(&[], &options(1, 1)).is_err());
    }

    #[test]
    fn a_sample_gets_what_it_gets_alone_and_what_its_text_gets() {
        let path = Path::new(builtin::NAME);
        let model = Model::load(path, &LoadOptions::threads(2)).unwrap();
        let mut ws = model.workspace();
        let never = AtomicBool::new(false);
        let sizes = [(40, 0), (2, 1), (1, 0), (130, 70), (64, 63), (9, 9), (65, 5), (600, 300)];
        let mut samples: Vec<Sample> = sizes.iter().map(|&(n, first)| sample(n, first)).collect();
        samples.extend((0..3).map(|first| sample(300, first)));
        for options in [options(64, 32), options(512, 256)] {
            let mut heard: Vec<Likelihood> = vec![];
            let mut told = |done: &[Likelihood]| -> Result<()> {
                assert!(done.starts_with(&heard), "what is done stays as it is");
                heard = done.to_vec();
                Ok(())
            };
            let together =
                likelihoods(&model, &mut ws, &samples, options, &never, &mut told).unwrap();
            assert_eq!(heard, together);
            for (sample, &got) in samples.iter().zip(&together) {
                let one = std::slice::from_ref(sample);
                let mut heard: Vec<Likelihood> = vec![];
                let mut told = |done: &[Likelihood]| -> Result<()> {
                    heard = done.to_vec();
                    Ok(())
                };
                let alone = likelihoods(&model, &mut ws, one, options, &never, &mut told).unwrap();
                assert_eq!((alone, heard), (vec![got], vec![got]), "{}", sample.place);
                let from = sample.first_scored.max(1);
                assert_eq!(got.tokens, sample.ids.len().saturating_sub(from), "{}", sample.place);
                assert_eq!(n_scored(sample, &options).unwrap(), got.tokens, "{}", sample.place);
                if got.tokens > 0 {
                    let ids = &sample.ids;
                    let text = perplexity(&model, &mut ws, ids, options, &never, &mut |_, _| {});
                    let wanted: f64 = text.unwrap().nll[from - 1..].iter().sum();
                    let off = (got.nll - wanted).abs();
                    assert!(off < 1e-9 * wanted, "{}: {} {wanted}", sample.place, got.nll);
                }
            }
        }
        let bad = [sample(3, 0), Sample { ids: vec![1, 9999], ..sample(2, 0) }];
        let error = likelihoods(&model, &mut ws, &bad, options(8, 4), &never, &mut |_| Ok(()));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("2 tokens: id 9999"), "{error}");
    }
}
