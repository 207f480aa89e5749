//! The model that a policy is not to leave: the policy without its adapter, which costs nothing, or
//! the weights that training started from, opened a second time for inference (or shared, where no
//! file holds them).

use crate::data::Row;
use crate::error::{Error, Result};
use crate::model::llama::KvType;
use crate::model::llama::{LoadOptions, LogitsFor, Model, Segment, Workspace};
use crate::model::tune::{Slice, TuneModel};
use crate::train::{Packed, slices};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Most bytes of logits that one pass is asked for.
const LOGITS_BYTES: usize = 64 << 20;

/// Where the reference's log-probabilities come from.
pub enum Reference {
    /// The policy's base, its new adapter switched off.
    Base,
    /// A model of its own.
    Model(Box<(Model, Workspace)>),
}

impl Reference {
    /// That of a policy that was opened from `path`, with the adapter in `adapter` where it goes on
    /// from one: training on from an adapter, the base alone is not what it started from.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn of(policy: &TuneModel, path: &Path, adapter: Option<&Path>) -> Result<Reference> {
        if policy.has_adapter() && adapter.is_none() {
            return Ok(Reference::Base);
        }
        let adapters: Vec<PathBuf> = adapter.map(Path::to_owned).into_iter().collect();
        let options = LoadOptions { exact: true, adapters, ..LoadOptions::default() };
        let model = match adapter {
            Some(dir) if policy.has_encoded_base() => policy.base_with(dir)?,
            _ => policy.model().load_beside(path, &options)?,
        };
        let ws = model.workspace();
        Ok(Reference::Model(Box::new((model, ws))))
    }

    /// Logarithms of the probabilities of the labels, in the order of their positions.
    ///
    /// # Errors
    /// What the models return.
    pub fn log_probs(&mut self, policy: &mut TuneModel, slice: &Slice<'_>) -> Result<Vec<f32>> {
        match self {
            Reference::Base => policy.log_probs(slice, false),
            Reference::Model(both) => {
                let (model, ws) = &mut **both;
                of_model(model, ws, slice)
            }
        }
    }
}

/// Runs each sequence of a slice through a model for inference.
fn of_model(model: &Model, ws: &mut Workspace, slice: &Slice<'_>) -> Result<Vec<f32>> {
    let vocab = model.config.vocab_size;
    let rows = (LOGITS_BYTES / (4 * vocab.max(1))).clamp(1, Model::MAX_ROWS);
    let longest = slice.spans.iter().copied().max().unwrap_or(0);
    let mut cache = model.new_cache(longest.max(1), KvType::F32)?;
    let (mut out, mut start) = (vec![], 0);
    for &len in slice.spans {
        cache.truncate(0);
        let (ids, labels) = (&slice.ids[start..start + len], &slice.labels[start..start + len]);
        start += len;
        for (ids, labels) in ids.chunks(rows).zip(labels.chunks(rows)) {
            let wanted = labels.iter().any(Option::is_some);
            let logits = if wanted { LogitsFor::All } else { LogitsFor::None };
            let rope_len = Some(len);
            let cache = &mut cache;
            model.forward(ws, &mut [Segment { tokens: ids, cache, logits, rope_len }])?;
            let labels = labels.iter().enumerate();
            for (row, label) in labels.filter_map(|(row, label)| Some((row, (*label)?))) {
                out.push(log_prob(ws.logits(row)?, label));
            }
        }
    }
    Ok(out)
}

fn log_prob(logits: &[f32], label: u32) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from((logit - max).exp())).sum();
    (f64::from(logits[label as usize] - max) - sum.ln()) as f32
}

/// Runs rows through `work`, some at a time, which is given the number of the first row and a slice
/// of them; `false` when told to stop meanwhile.
///
/// # Errors
/// What `work` returns.
pub fn each_slice(
    rows: &[Row],
    budget: usize,
    stop: &AtomicBool,
    mut work: impl FnMut(usize, &Slice<'_>) -> Result<()>,
) -> Result<bool> {
    let lens: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
    for range in slices(&lens, budget) {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let packed = Packed::new(&rows[range.clone()]);
        work(range.start, &packed.slice())?;
    }
    Ok(true)
}

/// Cuts values of scored positions into lists, one a sequence of the slice.
///
/// # Errors
/// Another number of values than positions.
pub fn by_sequence(slice: &Slice<'_>, values: &[f32]) -> Result<Vec<Vec<f64>>> {
    let (mut labels, mut rest) = (slice.labels, values);
    let mut out = Vec::with_capacity(slice.spans.len());
    for &len in slice.spans {
        let (own, after) = labels.split_at(len);
        labels = after;
        let n = own.iter().flatten().count();
        if n > rest.len() {
            break;
        }
        let (own, after) = rest.split_at(n);
        rest = after;
        out.push(own.iter().map(|&value| f64::from(value)).collect());
    }
    if out.len() != slice.spans.len() || !rest.is_empty() {
        return Err(Error::Shape {
            op: "values of sequences".into(),
            expected: format!("{}", slice.labels.iter().flatten().count()),
            got: values.len().to_string(),
        });
    }
    Ok(out)
}
