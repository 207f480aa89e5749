//! Weights of a checkpoint, ready for the kernels: quantised matrices are read in pieces and
//! rearranged by all threads, dense ones stay in the mapped file (or are read and rounded to
//! bf16, or encoded in NF4), vectors become f32.

use crate::error::{Error, Result};
use crate::format::{FileDType, TensorFile, TensorInfo};
use crate::kernels::Cpu;
use crate::model::adapter::target_of;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::Head;
use crate::model::names::{BlockWeight, Weight};
use crate::model::panel_cache::{self, PanelCache};
use crate::ops::Linear;
use crate::tensor::{Buffer, Bytes, Matrix, MatrixData, Values, Vector};
use half::bf16;
use puna_cpu::convert;
use puna_cpu::isa::Isa;
use puna_cpu::matmul::Dense;
use puna_cpu::qmatmul::{PackedMatrix, ROWS, pack_panels};
use puna_cpu::quant::nf4::Nf4Matrix;
use puna_cpu::quant::{self, BlockType};
use std::cell::RefCell;
use std::sync::{Arc, Mutex};

/// Bytes of a file that one thread holds while it rearranges them.
const PIECE_BYTES: usize = 1 << 20;

/// One transformer block.
pub struct Block {
    /// Norm before attention, `[dim]`.
    pub attn_norm: Vector,
    /// Query.
    pub wq: Linear,
    /// Key.
    pub wk: Linear,
    /// Value.
    pub wv: Linear,
    /// Attention's output.
    pub wo: Linear,
    /// Norm before the feed-forward, `[dim]`.
    pub ffn_norm: Vector,
    /// Gate.
    pub w1: Linear,
    /// Down.
    pub w2: Linear,
    /// Up.
    pub w3: Linear,
}

/// All weights of a model.
pub struct Weights {
    /// Embedding table, [vocab, dim].
    pub tok_emb: Matrix,
    /// The blocks, first to last.
    pub blocks: Vec<Block>,
    /// Norm before the head, `[dim]`.
    pub out_norm: Vector,
    /// Output head, [vocab, dim]; shares the table's memory when tied. Of a reward model [1, dim].
    pub lm_head: Linear,
}

/// A tensor of a mapped file, kept alive with it.
struct Mapped {
    file: Arc<TensorFile>,
    tensor: TensorInfo,
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        // Checked when it was made; the mapping does not change.
        self.file.bytes(&self.tensor).unwrap_or(&[])
    }
}

/// bf16 numbers as the bytes of a weight.
struct Low(Buffer<bf16>);

impl AsRef<[u8]> for Low {
    fn as_ref(&self) -> &[u8] {
        convert::bf16_bytes(&self.0)
    }
}

struct Loader<'a> {
    cpu: &'a Cpu,
    checkpoint: &'a Checkpoint,
    /// Whether F32 matrices become bf16.
    narrow: bool,
    /// Whether linear layers of blocks become NF4, and if so, whether scales are quantised too.
    nf4: Option<bool>,
    /// Whether quantised matrices stay the file's blocks, which a GPU multiplies.
    blocks: bool,
    /// Whether linear layers of blocks keep the file's type, from which a GPU encodes them.
    encoded: bool,
    /// Panels that need not be made.
    cache: Option<&'a PanelCache>,
    /// Quantised matrices by the names of their tensors, as they come.
    packed: RefCell<Vec<(String, Arc<PackedMatrix>)>>,
}

/// Values of the checkpoint as a weight in the machine's memory.
fn fixed(values: Vec<f32>) -> Vector {
    Vector::Fixed(Arc::new(Values::from(Buffer::from_slice(&values))))
}

impl Weights {
    /// Loads all weights of an opened checkpoint.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or type, or cannot be read.
    pub fn load(cpu: &Cpu, checkpoint: &Checkpoint) -> Result<Weights> {
        Weights::load_as(cpu, checkpoint, false)
    }

    /// Loads weights whose panels are kept in a file beside the model's: taken from there, or made
    /// and written there. Models without quantised weights have no such file.
    ///
    /// # Errors
    /// As [`Weights::load`], and when the file cannot be written.
    pub fn load_cached(cpu: &Cpu, checkpoint: &Checkpoint) -> Result<Weights> {
        let Some(path) = panel_cache::path_of(checkpoint) else {
            return Weights::load(cpu, checkpoint);
        };
        let key = panel_cache::key_of(&checkpoint.path)?;
        let cache = PanelCache::open(&path, &key);
        if let Some(cache) = &cache {
            cache.bring_in(cpu);
        }
        let loader = Loader { cache: cache.as_ref(), ..Loader::new(cpu, checkpoint) };
        let weights = loader.weights()?;
        let made = loader.packed.into_inner();
        if !made.is_empty() {
            panel_cache::write(&path, &key, &made)?;
        }
        Ok(weights)
    }

    /// Likewise; with `narrow`, F32 matrices are read in pieces and rounded to bf16: what products
    /// in bf16 use, in half the memory.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load_as(cpu: &Cpu, checkpoint: &Checkpoint, narrow: bool) -> Result<Weights> {
        Loader { narrow, ..Loader::new(cpu, checkpoint) }.weights()
    }

    /// Likewise; the linear layers of the blocks are read in pieces and encoded in NF4, with
    /// `double_quant` their scales too. The table, the head, norms and biases stay what they are.
    ///
    /// # Errors
    /// As [`Weights::load`]; layers that are quantised already, weights that are not finite.
    pub fn load_nf4(
        cpu: &Cpu,
        checkpoint: &Checkpoint,
        narrow: bool,
        double_quant: bool,
    ) -> Result<Weights> {
        refuse_quantised(checkpoint)?;
        Loader { narrow, nf4: Some(double_quant), ..Loader::new(cpu, checkpoint) }.weights()
    }

    /// Weights to be moved to a GPU: quantised matrices stay the blocks of the mapped file, and are
    /// good for look-ups only until then. With `encoded`, linear layers of the blocks, which are to be
    /// encoded there, stay as the file has them, whatever `narrow` says.
    ///
    /// # Errors
    /// As [`Weights::load`]; with `encoded`, layers that are quantised already.
    pub fn load_blocks(
        cpu: &Cpu,
        checkpoint: &Checkpoint,
        narrow: bool,
        encoded: bool,
    ) -> Result<Weights> {
        if encoded {
            refuse_quantised(checkpoint)?;
        }
        Loader { narrow, blocks: true, encoded, ..Loader::new(cpu, checkpoint) }.weights()
    }

    /// Bytes that computing one token reads: every matrix once, of the table (unless tied) one
    /// row.
    pub fn bytes_per_token(&self) -> usize {
        self.multiplied().map(Matrix::bytes).sum()
    }

    /// The element type that most bytes of the multiplied matrices have, as GGUF spells it.
    pub fn main_type(&self) -> &'static str {
        let mut types: Vec<(&'static str, usize)> = vec![];
        for matrix in self.multiplied() {
            let name = matrix.type_name();
            match types.iter_mut().find(|(found, _)| *found == name) {
                Some((_, bytes)) => *bytes += matrix.bytes(),
                None => types.push((name, matrix.bytes())),
            }
        }
        types.into_iter().max_by_key(|(_, bytes)| *bytes).map_or("F32", |(name, _)| name)
    }

    /// The matrices that every token is multiplied with.
    fn multiplied(&self) -> impl Iterator<Item = &Matrix> {
        let blocks = self.blocks.iter();
        blocks
            .flat_map(|b| [&b.wq, &b.wk, &b.wv, &b.wo, &b.w1, &b.w2, &b.w3].map(|l| &l.w))
            .chain([&self.lm_head.w])
    }
}

/// Refuses layers that are quantised already. Looked for first: what comes before a layer may take
/// its time.
fn refuse_quantised(checkpoint: &Checkpoint) -> Result<()> {
    for weight in checkpoint.config.weights().filter(|&weight| target_of(weight).is_some()) {
        let tensor = checkpoint.weight(weight)?;
        if let FileDType::Block(block) = tensor.dtype {
            let why = format!(
                "{} of {} is {} already; --method lora trains an adapter on such weights as \
                 they are",
                tensor.name,
                checkpoint.path.display(),
                block.name()
            );
            return Err(Error::config("method", "qlora", why));
        }
    }
    Ok(())
}

/// What went wrong in a thread of the team.
#[derive(Default)]
struct Failure(Mutex<Option<Error>>);

impl Failure {
    fn set(&self, error: Error) {
        *self.0.lock().unwrap_or_else(|poison| poison.into_inner()) = Some(error);
    }

    /// `value`, if nothing went wrong.
    fn or<T>(self, value: T) -> Result<T> {
        match self.0.into_inner().unwrap_or_else(|poison| poison.into_inner()) {
            Some(error) => Err(error),
            None => Ok(value),
        }
    }
}

impl<'a> Loader<'a> {
    fn new(cpu: &'a Cpu, checkpoint: &'a Checkpoint) -> Self {
        let packed = RefCell::default();
        let (narrow, blocks, encoded) = (false, false, false);
        Loader { cpu, checkpoint, narrow, nf4: None, blocks, encoded, cache: None, packed }
    }

    fn weights(&self) -> Result<Weights> {
        let (loader, checkpoint) = (self, self.checkpoint);
        let tied = checkpoint.config.tie_embeddings;
        let tok_emb = loader.matrix(Weight::TokEmb, tied)?;
        let lm_head = match checkpoint.config.head {
            Head::Score => loader.matrix(Weight::Score, true)?,
            Head::Tokens if tied => tok_emb.clone(),
            Head::Tokens => loader.matrix(Weight::LmHead, true)?,
        };
        let blocks = (0..checkpoint.config.n_layers)
            .map(|layer| {
                let linear = |w: BlockWeight, bias: BlockWeight| -> Result<Linear> {
                    let w = loader.matrix(Weight::Block(layer, w), true)?;
                    let bias = loader.vector_opt(Weight::Block(layer, bias))?;
                    Ok(Linear::new(w, bias.map(fixed)))
                };
                use BlockWeight::*;
                Ok(Block {
                    attn_norm: fixed(loader.vector(Weight::Block(layer, AttnNorm))?),
                    wq: linear(Wq, Bq)?,
                    wk: linear(Wk, Bk)?,
                    wv: linear(Wv, Bv)?,
                    wo: linear(Wo, Bo)?,
                    ffn_norm: fixed(loader.vector(Weight::Block(layer, FfnNorm))?),
                    w1: linear(W1, B1)?,
                    w2: linear(W2, B2)?,
                    w3: linear(W3, B3)?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let out_norm = fixed(loader.vector(Weight::OutNorm)?);
        Ok(Weights { tok_emb, blocks, out_norm, lm_head: Linear::new(lm_head, None) })
    }

    /// A matrix; `multiplied` says whether products are computed with it.
    fn matrix(&self, weight: Weight, multiplied: bool) -> Result<Matrix> {
        let tensor = self.checkpoint.weight(weight)?;
        let [n, k] = tensor.shape[..] else {
            return Err(Error::Shape {
                op: tensor.name.clone(),
                expected: "a matrix".into(),
                got: format!("{:?}", tensor.shape),
            });
        };
        let dense =
            |dtype| -> Result<MatrixData> { Ok(MatrixData::Dense(self.mapped(tensor)?, dtype)) };
        if let (Some(double_quant), Some(_)) = (self.nf4, target_of(weight)) {
            let data = MatrixData::Nf4(Arc::new(self.nf4(tensor, [n, k], double_quant)?));
            return Ok(Matrix { n, k, data });
        }
        let keeps = self.encoded && target_of(weight).is_some();
        let data = match tensor.dtype {
            FileDType::F32 if self.narrow && !keeps => {
                let low = Low(self.narrowed(tensor, n, k)?);
                MatrixData::Dense(Bytes::new(low), Dense::BF16)
            }
            FileDType::F32 => dense(Dense::F32)?,
            FileDType::F16 => dense(Dense::F16)?,
            FileDType::BF16 => dense(Dense::BF16)?,
            FileDType::Block(block) if multiplied && !self.blocks => {
                MatrixData::Packed(self.packed(tensor, block, n, k)?)
            }
            FileDType::Block(block) => MatrixData::Blocks(self.mapped(tensor)?, block),
            FileDType::Other(name) => {
                return Err(Error::Unsupported(format!("{}: weights of type {name}", tensor.name)));
            }
        };
        Ok(Matrix { n, k, data })
    }

    fn mapped(&self, tensor: &TensorInfo) -> Result<Bytes> {
        let file = Arc::clone(&self.checkpoint.files);
        file.bytes(tensor)?;
        Ok(Bytes::new(Mapped { file, tensor: tensor.clone() }))
    }

    /// Reads and rearranges a quantised matrix piece by piece, each thread its own panels, so
    /// that the file's copy never lies in memory whole.
    fn packed(
        &self,
        tensor: &TensorInfo,
        block: BlockType,
        n: usize,
        k: usize,
    ) -> Result<Arc<PackedMatrix>> {
        if let Some(matrix) = self.cache.and_then(|cache| cache.get(&tensor.name, block, n, k)) {
            return Ok(Arc::new(matrix));
        }
        let matrix = Arc::new(self.pack(tensor, block, n, k)?);
        self.packed.borrow_mut().push((tensor.name.clone(), Arc::clone(&matrix)));
        Ok(matrix)
    }

    fn pack(
        &self,
        tensor: &TensorInfo,
        block: BlockType,
        n: usize,
        k: usize,
    ) -> Result<PackedMatrix> {
        let mut matrix = PackedMatrix::zeroed(block, n, k);
        let row_bytes = block.row_bytes(k);
        let panel_bytes = matrix.panel_bytes();
        let panels_at_once = (PIECE_BYTES / (ROWS * row_bytes)).max(1);
        let failure = Failure::default();
        let files = &self.checkpoint.files;
        self.cpu.team.split_rows(matrix.panels_mut(), panel_bytes, 2, &|panels, bytes| {
            let mut piece = vec![0u8; panels_at_once * ROWS * row_bytes];
            for (i, out) in bytes.chunks_mut(panels_at_once * panel_bytes).enumerate() {
                let first = (panels.start + i * panels_at_once) * ROWS;
                let rows = (out.len() / panel_bytes * ROWS).min(n - first);
                let piece = &mut piece[..rows * row_bytes];
                if let Err(error) = files.read_at(tensor, first * row_bytes, piece) {
                    return failure.set(error);
                }
                pack_panels(block, out, piece, k);
            }
        });
        failure.or(matrix)
    }

    /// Reads an F32 matrix piece by piece and rounds it, each thread its own rows: the file's pages
    /// are not touched, so they take no memory of this process.
    fn narrowed(&self, tensor: &TensorInfo, n: usize, k: usize) -> Result<Buffer<bf16>> {
        let mut low = Buffer::<bf16>::zeroed(n * k);
        let rows_at_once = (PIECE_BYTES / (4 * k.max(1))).max(1);
        let failure = Failure::default();
        let files = &self.checkpoint.files;
        self.cpu.team.split_rows(&mut low, k, 2, &|rows, out| {
            let mut bytes = vec![0u8; rows_at_once * 4 * k];
            let mut wide = vec![0.0f32; rows_at_once * k];
            for (i, out) in out.chunks_mut(rows_at_once * k).enumerate() {
                let first = rows.start + i * rows_at_once;
                let bytes = &mut bytes[..4 * out.len()];
                if let Err(error) = files.read_at(tensor, first * 4 * k, bytes) {
                    return failure.set(error);
                }
                for (x, &b) in wide.iter_mut().zip(bytes.as_chunks().0) {
                    *x = f32::from_le_bytes(b);
                }
                convert::f32_to_bf16(self.cpu.isa, out, &wide[..out.len()]);
            }
        });
        failure.or(low)
    }

    /// Reads a matrix piece by piece and encodes it, each thread its own blocks.
    fn nf4(
        &self,
        tensor: &TensorInfo,
        [n, k]: [usize; 2],
        double_quant: bool,
    ) -> Result<Nf4Matrix> {
        let failure = Failure::default();
        let files = &self.checkpoint.files;
        let (size, isa) = (tensor.dtype.block_bytes(), self.cpu.isa);
        let matrix = Nf4Matrix::encode(&self.cpu.team, [n, k], double_quant, &|first, out| {
            let mut bytes = vec![0u8; size * out.len()];
            let read = files.read_at(tensor, size * first, &mut bytes);
            if let Err(error) = read.and_then(|()| widen(isa, tensor, out, &bytes)) {
                failure.set(error);
            }
        });
        let matrix = failure.or(matrix)?;
        if !matrix.is_finite() {
            let what = format!("{}: a weight that is not finite", tensor.name);
            return Err(Error::format(files.path_of(tensor), what));
        }
        Ok(matrix)
    }

    fn vector(&self, weight: Weight) -> Result<Vec<f32>> {
        self.widened(self.checkpoint.weight(weight)?)
    }

    fn vector_opt(&self, weight: Weight) -> Result<Option<Vec<f32>>> {
        self.checkpoint.weight_opt(weight)?.map(|tensor| self.widened(tensor)).transpose()
    }

    fn widened(&self, tensor: &TensorInfo) -> Result<Vec<f32>> {
        // Read, not mapped: a touched page of a map brings its neighbours along.
        let mut bytes = vec![0u8; tensor.len];
        self.checkpoint.files.read_at(tensor, 0, &mut bytes)?;
        let mut out = vec![0.0f32; tensor.n_elements()];
        widen(self.cpu.isa, tensor, &mut out, &bytes)?;
        Ok(out)
    }
}

/// Elements of a tensor as f32; overwrites `out`.
fn widen(isa: Isa, tensor: &TensorInfo, out: &mut [f32], bytes: &[u8]) -> Result<()> {
    match tensor.dtype {
        FileDType::F32 => {
            for (out, b) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        FileDType::F16 => convert::f16_bytes_to_f32(isa, out, bytes),
        FileDType::BF16 => convert::bf16_bytes_to_f32(isa, out, bytes),
        FileDType::Block(block) => quant::decode_row(block, out, bytes),
        FileDType::Other(name) => {
            return Err(Error::Unsupported(format!("{}: values of type {name}", tensor.name)));
        }
    }
    Ok(())
}
