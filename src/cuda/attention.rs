//! Attention of new rows over caches of keys and values: what inference uses. Source:
//! `cuda/attention_*.cu`; twin of `puna_cpu::attention`.
//!
//! A pass makes a [`Plan`] of its rows and their caches, appends each layer's keys and values
//! ([`append`]) and attends over them ([`attend`]). A row has the same bits alone, in a prompt of any
//! split, in any batch and with any pages: positions are cut into chunks of 256 from position 0 on,
//! and merged from left to right, whichever blocks compute them.
//!
//! Bytes that a step of decoding reads of a layer's cache, once for all query heads of a group, for a
//! sequence of s positions (a window: at most that many, rounded out to pages):
//! `2 n_kv_heads s head_dim b`, b being 4 (f32), 2 (f16, bf16) or 1 1/8 (q8_0).

mod kernels;
mod plan;

pub(crate) use kernels::Attention;
pub use plan::{Plan, Segment, Settings, Split};

use super::floats::expect_dtype;
use super::params::{self, AttentionAppendParams, AttentionParams};
use super::{DeviceBuffer, Floats, FloatsMut, Gpu, Launch, aligned, arg, expect_len, u32_of};
use crate::{Error, Result};

/// Memory for partial results: made once, used by every layer of every pass. It grows with the first
/// call that needs more, and never otherwise: later calls of such a plan see the same address.
#[derive(Debug, Default)]
pub struct Workspace {
    partials: Option<DeviceBuffer<f32>>,
}

impl Workspace {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for a plan, and gives up what was there if that was less.
    ///
    /// # Errors
    /// When the device's memory is full.
    pub fn reserve(&mut self, gpu: &Gpu, plan: &Plan) -> Result<()> {
        let wanted = plan.workspace();
        if self.len() < wanted {
            self.partials = None;
            self.partials = Some(gpu.alloc(wanted)?);
        }
        Ok(())
    }

    /// f32 numbers that there is room for.
    fn len(&self) -> usize {
        self.partials.as_ref().map_or(0, DeviceBuffer::len)
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        4 * self.len()
    }
}

fn type_of(x: &Floats<'_>) -> u32 {
    match x {
        Floats::F32(_) => params::MATMUL_F32,
        Floats::Bf16(_) => params::MATMUL_BF16,
    }
}

/// Writes the keys (after RoPE) and values of the plan's rows, each [m, n_kv_heads * head_dim], both
/// f32 or both bf16, into their caches at the segments' positions, as the caches' type has them.
///
/// # Errors
/// When lengths or types do not fit, there is no such layer, or the launch fails.
pub fn append(gpu: &Gpu, plan: &Plan, layer: usize, k: Floats<'_>, v: Floats<'_>) -> Result<()> {
    let shape = plan.shape;
    for (name, x) in [("k", &k), ("v", &v)] {
        let wanted = plan.rows() * shape.n_kv_heads * shape.head_dim;
        expect_len("append to caches", name, x.len(), wanted)?;
        expect_dtype("append to caches", name, x.dtype(), k.dtype())?;
    }
    let mut segments = plan.segments(layer)?;
    if plan.rows() == 0 {
        return Ok(());
    }
    let (most_rows, n_segments) = plan.extent();
    let mut p = AttentionAppendParams {
        n_kv_heads: plan.sizes.n_kv_heads,
        head_dim: plan.sizes.head_dim,
        pitch: plan.sizes.pitch,
        type_: type_of(&k),
    };
    // A warp has a group of a row; the kernel counts them in 32 bits.
    let groups = p.pitch.div_ceil(params::ATTENTION_GROUP) as usize;
    let warps = most_rows.saturating_mul(shape.n_kv_heads).saturating_mul(groups);
    let threads = u32_of("elements of new rows", warps.saturating_mul(32))?;
    let blocks = threads.div_ceil(params::ATTENTION_THREADS);
    let grid = [blocks, u32_of("segments of attention", n_segments)?, 2];
    let (mut k, mut v) = (k.address(), v.address());
    let mut args = [arg(&mut k), arg(&mut v), arg(&mut segments), arg(&mut p)];
    let launch = Launch { grid, block: params::ATTENTION_THREADS, shared_bytes: 0 };
    // SAFETY: k and v have the plan's rows of one type, compared above; the plan's segments cover
    // those rows, their positions lie within caches of this shape, which the plan keeps alive, and
    // no two of them write to one page, as it checked.
    unsafe { gpu.launch(gpu.attention.append(shape.kv_type), launch, &mut args) }
}

/// How scores become weights.
#[derive(Clone, Copy, Debug)]
pub struct Scores {
    /// Factor, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Key j is visible to the query at p when `p - window < j <= p`; `None`: every j <= p.
    pub window: Option<usize>,
}

/// Causal attention of the plan's rows over their caches, which hold every position up to the rows'
/// own:
///
/// `out[i, h] = sum over visible j of softmax_j(scale q[i, h] . k[j, h / group]) v[j, h / group]`
///
/// `out` and `q` are [m, n_heads * head_dim], f32 or bf16 each, queries after RoPE. Overwrites. Sums are
/// f32; an f32 cache has everything in f32, others round queries and exponentials to the 16 bits of
/// f16 (f16 caches) or bf16, where also q8_0's keys and values are rounded. What a cache holds behind
/// the last row does not matter, not even as a NaN; a value of the pass's own rows that is not finite
/// can reach rows before it. Error: `tests/cuda_vs_cpu/attention.rs`.
///
/// # Errors
/// When lengths do not fit, the scale or the window cannot be, there is no such layer, or the launch
/// fails.
pub fn attend(
    gpu: &Gpu,
    plan: &Plan,
    layer: usize,
    out: FloatsMut<'_>,
    q: Floats<'_>,
    scores: Scores,
    workspace: &mut Workspace,
) -> Result<()> {
    let Scores { scale, window } = scores;
    let shape = plan.shape;
    let wanted = plan.rows() * plan.n_heads * shape.head_dim;
    expect_len("attention", "out", out.len(), wanted)?;
    expect_len("attention", "q", q.len(), wanted)?;
    let refuse = |expected: &str, got: String| {
        Err(Error::Shape { op: "attention".into(), expected: expected.into(), got })
    };
    if window == Some(0) {
        return refuse("a window of at least one position", "a window of 0".into());
    }
    if !(scale > 0.0 && scale.is_finite()) {
        return refuse("a finite scale above 0", scale.to_string());
    }
    let mut segments = plan.segments(layer)?;
    workspace.reserve(gpu, plan)?;
    let pairs = shape.head_dim.is_multiple_of(2)
        && out.address().is_multiple_of(2 * out.as_floats().element_bytes() as u64);
    let mut flags = if pairs { params::ATTENTION_PAIRS } else { 0 };
    if aligned(q.address(), shape.head_dim * q.element_bytes()) {
        flags |= params::ATTENTION_Q_VECTORS;
    }
    if matches!(out, FloatsMut::Bf16(_)) {
        flags |= params::ATTENTION_OUT_BF16;
    }
    let (mut to, mut from) = (out.address(), q.address());
    let instance = gpu.attention.instance(shape)?;
    let mut first_partial = 0;
    for (index, group) in plan.groups.iter().enumerate() {
        let n_partials = plan.partials(group);
        let mut partials = workspace.partials.as_ref().map_or(0, |buffer| {
            buffer.slice().range(first_partial..first_partial + n_partials).address()
        });
        first_partial += n_partials;
        let mut p = AttentionParams {
            n_heads: u32_of("heads of attention", plan.n_heads)?,
            n_kv_heads: plan.sizes.n_kv_heads,
            head_dim: plan.sizes.head_dim,
            pitch: plan.sizes.pitch,
            window: window.and_then(|w| u32::try_from(w).ok()).unwrap_or(u32::MAX),
            scale,
            chunks: u32_of("chunks of attention", group.chunks)?,
            tile_rows: u32_of("rows of a tile", group.tile_rows)?,
            width: instance.width,
            q_type: type_of(&q),
            flags,
            pad_: 0,
        };
        let kernel = instance.kernel(group.form);
        let mut tiles = plan.tiles(index);
        let n_tiles = u32_of("tiles of attention", group.n_tiles())?;
        let mut args = [
            arg(&mut to),
            arg(&mut partials),
            arg(&mut from),
            arg(&mut segments),
            arg(&mut tiles),
            arg(&mut p),
        ];
        let (block, shared_bytes) = (params::ATTENTION_THREADS, kernel.shared_bytes);
        let grid = [n_tiles, p.n_kv_heads, p.chunks.max(1)];
        // SAFETY: out and q have the plan's rows, compared above, and `flags` says what their
        // addresses and widths allow; the plan's tiles lie within its segments, these within out and
        // q and within caches of this shape, which it keeps alive; the workspace has room for the
        // partial results of every tile and chunk.
        unsafe { gpu.launch(&kernel.function, Launch { grid, block, shared_bytes }, &mut args) }?;
        if p.chunks == 0 {
            continue;
        }
        let mut args =
            [arg(&mut to), arg(&mut partials), arg(&mut segments), arg(&mut tiles), arg(&mut p)];
        let grid = [n_tiles, p.n_kv_heads, p.tile_rows.div_ceil(block / 32)];
        let launch = Launch { grid, block, shared_bytes: 0 };
        // SAFETY: as above; every chunk that a row of a tile sees has been computed by the launch
        // before, as the plan has room for all.
        unsafe { gpu.launch(&gpu.attention.merge, launch, &mut args) }?;
    }
    Ok(())
}
