//! Where the weights of a model that is to be written come from: a checkpoint, a checkpoint with an
//! adapter added, or what a trainer holds.

use std::ops::Range;

use half::{bf16, f16};
use puna_cpu::quant;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::format::FileDType;
use crate::format::peft::{AdapterFile, LoraPair};
use crate::model::adapter::target_of;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::{Config, Head};
use crate::model::names::{BlockWeight, Weight};

/// The weights of a model, by rows. A matrix `[n, k]` has n rows of k values; a vector `[n]` has n
/// rows of one value. Rows of Q and K are in the order of `config().rope.pairing`.
pub trait WeightSource: Sync {
    /// The model's configuration.
    fn config(&self) -> &Config;

    /// The element type in which a weight is held; `None` for a weight that is not there.
    ///
    /// # Errors
    /// A weight that cannot be used.
    fn dtype(&self, weight: Weight) -> Result<Option<FileDType>>;

    /// Rows of a weight as f32, row after row. Overwrites `out`.
    ///
    /// # Errors
    /// A weight that is not there or cannot be read.
    fn rows(&self, weight: Weight, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// The bytes of these rows as they are held, where they are the weight itself: `false` (and
    /// `out` as it was) where a weight is computed.
    ///
    /// # Errors
    /// A weight that is not there or cannot be read.
    fn raw_rows(&self, weight: Weight, rows: Range<usize>, out: &mut [u8]) -> Result<bool>;
}

impl Config {
    /// The shape of a weight, outermost first.
    pub fn shape(&self, weight: Weight) -> Vec<usize> {
        use BlockWeight::*;
        let (q_rows, kv_rows) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        match weight {
            Weight::TokEmb | Weight::LmHead => vec![self.vocab_size, self.dim],
            Weight::Score => vec![1, self.dim],
            Weight::OutNorm => vec![self.dim],
            Weight::Block(_, w) => match w {
                AttnNorm | FfnNorm | Bo | B2 => vec![self.dim],
                Wq => vec![q_rows, self.dim],
                Wk | Wv => vec![kv_rows, self.dim],
                Wo => vec![self.dim, q_rows],
                W1 | W3 => vec![self.hidden_dim, self.dim],
                W2 => vec![self.dim, self.hidden_dim],
                Bq => vec![q_rows],
                Bk | Bv => vec![kv_rows],
                B1 | B3 => vec![self.hidden_dim],
            },
        }
    }

    /// The weights that such a model has, in the order of the computation; tied embeddings come
    /// once.
    pub fn weights(&self) -> impl Iterator<Item = Weight> {
        let (attention_bias, mlp_bias) = (self.attention_bias, self.mlp_bias);
        let (tied, head) = (self.tie_embeddings, self.head);
        Weight::all(self.n_layers).filter(move |weight| match weight {
            Weight::Block(_, w) if w.is_attention_bias() => attention_bias,
            Weight::Block(_, w) if w.is_mlp_bias() => mlp_bias,
            Weight::LmHead => !tied && head == Head::Tokens,
            Weight::Score => head == Head::Score,
            _ => true,
        })
    }
}

/// Rows and values of a row; see [`WeightSource`].
pub(super) fn rows_and_width(shape: &[usize]) -> (usize, usize) {
    (shape.first().copied().unwrap_or(1), shape.get(1).copied().unwrap_or(1))
}

/// Bytes of a row of `width` values, a whole number of blocks.
pub(super) fn row_bytes(dtype: FileDType, width: usize) -> usize {
    width / dtype.block_len() * dtype.block_bytes()
}

impl Checkpoint {
    /// The bytes of some rows of a weight.
    fn read_rows(
        &self,
        weight: Weight,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(FileDType, usize)> {
        let Some(tensor) = self.weight_opt(weight)? else {
            return Err(Error::format(&self.path, format!("{weight} is not there")));
        };
        let (n, width) = rows_and_width(&tensor.shape);
        let bytes = row_bytes(tensor.dtype, width);
        if rows.end > n || out.len() != rows.len() * bytes {
            return Err(Error::Shape {
                op: format!("reading {weight}"),
                expected: format!("rows of 0..{n}, {bytes} bytes each"),
                got: format!("rows {rows:?} into {} bytes", out.len()),
            });
        }
        self.files.read_at(tensor, rows.start * bytes, out)?;
        Ok((tensor.dtype, width))
    }
}

impl WeightSource for Checkpoint {
    fn config(&self) -> &Config {
        &self.config
    }

    fn dtype(&self, weight: Weight) -> Result<Option<FileDType>> {
        Ok(self.weight_opt(weight)?.map(|tensor| tensor.dtype))
    }

    fn rows(&self, weight: Weight, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let Some(dtype) = WeightSource::dtype(self, weight)? else {
            return Err(Error::format(&self.path, format!("{weight} is not there")));
        };
        let (_, width) = rows_and_width(&self.config.shape(weight));
        let mut bytes = vec![0; rows.len() * row_bytes(dtype, width)];
        self.read_rows(weight, rows, &mut bytes)?;
        decode(dtype, &bytes, width, out);
        Ok(())
    }

    fn raw_rows(&self, weight: Weight, rows: Range<usize>, out: &mut [u8]) -> Result<bool> {
        self.read_rows(weight, rows, out)?;
        Ok(true)
    }
}

/// Values that one thread takes at once, at least.
const GRAIN: usize = 1 << 14;

/// Widens rows of `width` values; the lengths agree.
fn decode(dtype: FileDType, bytes: &[u8], width: usize, out: &mut [f32]) {
    // Whole rows, so that the blocks of a row stay together.
    let values = GRAIN.next_multiple_of(width);
    let piece = row_bytes(dtype, width) * (values / width);
    out.par_chunks_mut(values).zip(bytes.par_chunks(piece)).for_each(|(out, bytes)| match dtype {
        FileDType::Block(block) => quant::decode_row(block, out, bytes),
        FileDType::F16 => {
            let halves = bytes.as_chunks().0.iter();
            out.iter_mut().zip(halves).for_each(|(x, &b)| *x = f16::from_le_bytes(b).to_f32());
        }
        FileDType::BF16 => {
            let halves = bytes.as_chunks().0.iter();
            out.iter_mut().zip(halves).for_each(|(x, &b)| *x = bf16::from_le_bytes(b).to_f32());
        }
        // Other types are refused when a checkpoint is opened.
        FileDType::F32 | FileDType::Other(_) => {
            let words = bytes.as_chunks().0.iter();
            out.iter_mut().zip(words).for_each(|(x, &b)| *x = f32::from_le_bytes(b));
        }
    });
}

/// A checkpoint with an adapter added to its weights: `W + scale B A`, in f32.
pub struct Merged<'a> {
    base: &'a Checkpoint,
    adapter: &'a AdapterFile,
    config: Config,
}

impl<'a> Merged<'a> {
    /// The sum; the adapter was read for this checkpoint.
    pub fn new(base: &'a Checkpoint, adapter: &'a AdapterFile) -> Merged<'a> {
        let mut config = base.config.clone();
        if adapter.score.is_some() {
            config.head = Head::Score;
        }
        Merged { base, adapter, config }
    }

    /// Whether the adapter changes a weight.
    pub fn touches(&self, weight: Weight) -> bool {
        self.pair(weight).is_some()
    }

    fn pair(&self, weight: Weight) -> Option<&LoraPair> {
        let (layer, target) = target_of(weight)?;
        self.adapter.get(layer, target)
    }
}

impl WeightSource for Merged<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn dtype(&self, weight: Weight) -> Result<Option<FileDType>> {
        match (weight, &self.adapter.score) {
            (Weight::Score, Some(_)) => Ok(Some(FileDType::F32)),
            (Weight::LmHead, Some(_)) => Ok(None),
            _ => WeightSource::dtype(self.base, weight),
        }
    }

    fn rows(&self, weight: Weight, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        if let (Weight::Score, Some(score)) = (weight, &self.adapter.score) {
            out.copy_from_slice(score);
            return Ok(());
        }
        self.base.rows(weight, rows.clone(), out)?;
        let Some(LoraPair { a, b, .. }) = self.pair(weight) else { return Ok(()) };
        let (r, scale) = (self.adapter.spec.r, self.adapter.spec.scale());
        let width = a.len() / r;
        let b = b.get(rows.start * r..rows.end * r).unwrap_or_default();
        out.par_chunks_mut(width).zip(b.par_chunks(r)).for_each(|(row, b)| {
            let mut delta = vec![0.0f32; width];
            for (&b, a) in b.iter().zip(a.chunks(width)) {
                delta.iter_mut().zip(a).for_each(|(d, &a)| *d += b * a);
            }
            row.iter_mut().zip(&delta).for_each(|(w, &d)| *w += scale * d);
        });
        Ok(())
    }

    fn raw_rows(&self, weight: Weight, rows: Range<usize>, out: &mut [u8]) -> Result<bool> {
        match self.pair(weight) {
            Some(_) => Ok(false),
            None if weight == Weight::Score && self.adapter.score.is_some() => Ok(false),
            None => self.base.raw_rows(weight, rows, out),
        }
    }
}
