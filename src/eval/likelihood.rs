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
//! overlap. These are just the tokens that [`windows`] names; each window is scored like a sample.
//! The perplexity is `exp` of the mean over windows of each window's mean: a short last window
//! weighs as much as a long one. Where a last window scores no token at all, Hugging Face's mean
//! over nothing makes the whole NaN; such a window is left out here.

use crate::error::{Error, Result};
use crate::eval::perplexity::{PerplexityOptions, Window, token_nll, windows};
use crate::model::llama::{KvCache, KvType, LogitsFor, Model, Segment, Workspace};
use std::sync::atomic::AtomicBool;

/// Most bytes of logits that one forward pass is asked for.
const LOGITS_BYTES: usize = 64 << 20;

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

/// What a sample, or a window of a text, got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Likelihood {
    /// Negative log-likelihood in nats, summed over the scored tokens.
    pub nll: f64,
    /// How many these are.
    pub tokens: usize,
}

/// A window of a sample or of a text on its way through the model.
struct Job<'a> {
    /// Index of the sample; of a text's windows each counts as one.
    sample: usize,
    /// The window's tokens. All but the last are rows that the model reads.
    tokens: &'a [u32],
    /// The first row whose logits score the token after it; so do all behind it.
    first: usize,
    /// Rows that were read.
    at: usize,
}

impl<'a> Job<'a> {
    /// What `window` scores of `ids`.
    fn new(sample: usize, ids: &'a [u32], window: Window) -> Job<'a> {
        let Window { begin, end, first_scored } = window;
        Job { sample, tokens: &ids[begin..end], first: first_scored - 1 - begin, at: 0 }
    }

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
    for Sample { ids, place, .. } in samples {
        check_ids(ids, place, model.config.vocab_size)?;
    }
    let jobs = jobs(samples, &options)?;
    score(model, ws, jobs, samples.len(), options.kv, cancel, progress)
}

/// Scores windows of a text, all or some of those that [`windows`] names: no value depends on which
/// others are scored. `progress` and `cancel` are as in [`likelihoods`].
///
/// # Errors
/// A reward model, ids beyond the vocabulary, [`Error::Cancelled`], and what the model and
/// `progress` return.
pub fn window_likelihoods(
    model: &Model,
    ws: &mut Workspace,
    ids: &[u32],
    windows: &[Window],
    kv: KvType,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(&[Likelihood]) -> Result<()>,
) -> Result<Vec<Likelihood>> {
    model.check_speaks()?;
    check_ids(ids, "text", model.config.vocab_size)?;
    let jobs = windows.iter().enumerate();
    let jobs = jobs.map(|(index, &window)| Job::new(index, ids, window)).collect();
    score(model, ws, jobs, windows.len(), kv, cancel, progress)
}

/// Scores the jobs of `n` samples, which stand in the samples' order.
fn score(
    model: &Model,
    ws: &mut Workspace,
    mut jobs: Vec<Job<'_>>,
    n: usize,
    kv: KvType,
    cancel: &AtomicBool,
    progress: &mut dyn FnMut(&[Likelihood]) -> Result<()>,
) -> Result<Vec<Likelihood>> {
    let mut found = vec![Likelihood::default(); n];
    let mut caches: Vec<KvCache> = vec![];
    let mut begin = 0;
    loop {
        let n_done = jobs.get(begin).map_or(n, |job| job.sample);
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
                Some(cache) => *cache = model.new_cache(job.rows(), kv)?,
                None => caches.push(model.new_cache(job.rows(), kv)?),
            }
        }
        for scored in [false, true] {
            while pass(model, ws, group, &mut caches, scored, cancel, &mut found)? {}
        }
        begin = end;
    }
}

fn check_ids(ids: &[u32], place: &str, vocab_size: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        None => Ok(()),
        Some(id) => {
            let what = format!("id {id}, wanted less than the vocabulary's {vocab_size}");
            Err(Error::Data { place: place.to_owned(), what })
        }
    }
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
        for one in windows(n, window, stride)? {
            let first_scored = one.first_scored.max(sample.first_scored);
            if first_scored < one.end {
                jobs.push(Job::new(index, &sample.ids, Window { first_scored, ..one }));
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
                one.nll += token_nll(ws.logits(row)?, job.tokens[at + 1])?;
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
    use crate::model::llama::LoadOptions;
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
        assert!((windowed_ppl(&[2.0, 5.0, 9.0]) - (16.0f64 / 3.0).exp()).abs() < 1e-9);
    }

    #[test]
    fn a_window_gets_the_bits_of_its_text_whichever_windows_are_left_to_score() {
        let path = Path::new(builtin::NAME);
        let model = Model::load(path, &LoadOptions::threads(2)).unwrap();
        let mut ws = model.workspace();
        let never = AtomicBool::new(false);
        let Sample { mut ids, .. } = sample(700, 0);
        for options in [options(64, 32), options(100, 100), options(400, 150)] {
            let PerplexityOptions { window, stride, kv } = options;
            let cut = windows(ids.len(), window, stride).unwrap();
            let text = perplexity(&model, &mut ws, &ids, options, &never, &mut |_, _| {});
            let values = text.unwrap().nll;
            let (mut rest, mut wanted) = (&values[..], vec![]);
            for one in &cut {
                let (own, after) = rest.split_at(one.end - one.first_scored);
                wanted.push(Likelihood { nll: own.iter().sum(), tokens: own.len() });
                rest = after;
            }
            assert!(rest.is_empty());
            for from in [0, 1, cut.len() - 1, cut.len()] {
                let mut heard: Vec<Likelihood> = vec![];
                let mut told = |done: &[Likelihood]| -> Result<()> {
                    heard = done.to_vec();
                    Ok(())
                };
                let left = &cut[from..];
                let got =
                    window_likelihoods(&model, &mut ws, &ids, left, kv, &never, &mut told).unwrap();
                assert_eq!(got, wanted[from..], "{window} {stride}, from {from}");
                assert_eq!(heard, got, "{window} {stride}, from {from}");
            }
        }
        ids[1] = 9999;
        let cut = windows(ids.len(), 64, 32).unwrap();
        let mut told = |_: &[Likelihood]| -> Result<()> { Ok(()) };
        let error = window_likelihoods(&model, &mut ws, &ids, &cut, KvType::F32, &never, &mut told);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("text: id 9999"), "{error}");
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
