//! Attention of new rows over sequences' caches, and the caches: in the machine's memory or on a GPU.

use super::{Device, Scratch};
use crate::error::Result;
use crate::tensor::Home;
pub use puna_cpu::attention::{AttentionArgs, KvLayer, KvShape, KvType, ScratchArgs};

#[cfg(feature = "cuda")]
use crate::cuda::attention::{Plan, Scores, Segment, Settings, Split, Workspace};
#[cfg(feature = "cuda")]
use crate::cuda::{Gpu, kv::KvPages};
#[cfg(feature = "cuda")]
use crate::tensor::Rows;
#[cfg(feature = "cuda")]
use std::sync::Arc;

/// Keys and values of one layer of one sequence.
pub enum Cache {
    /// In the machine's memory.
    Host(KvLayer),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Cuda(KvPages, Arc<Gpu>),
}

impl Cache {
    /// Room for `capacity` positions.
    ///
    /// # Errors
    /// When a GPU has no room, or no kernels for this shape.
    ///
    /// # Panics
    /// Never; where the machine has no memory, it is `None`.
    pub fn new(home: &Home, shape: KvShape, capacity: usize) -> Result<Option<Cache>> {
        match home {
            Home::Host => Ok(KvLayer::try_new(shape, capacity).map(Cache::Host)),
            #[cfg(feature = "cuda")]
            Home::Cuda(gpu) => {
                let pages = KvPages::new(gpu, shape, capacity)?;
                Ok(Some(Cache::Cuda(pages, Arc::clone(gpu))))
            }
        }
    }

    /// Bytes of such a cache.
    pub fn bytes_of(home: &Home, shape: KvShape, capacity: usize) -> usize {
        match home {
            Home::Host => shape.bytes(capacity),
            #[cfg(feature = "cuda")]
            Home::Cuda(_) => KvPages::bytes_of(shape, capacity),
        }
    }

    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        match self {
            Cache::Host(layer) => layer.bytes(),
            #[cfg(feature = "cuda")]
            Cache::Cuda(pages, _) => pages.bytes(),
        }
    }

    /// Bytes that attention reads of a position.
    pub fn position_bytes(&self) -> usize {
        match self {
            Cache::Host(layer) => layer.bytes() / layer.capacity(),
            #[cfg(feature = "cuda")]
            Cache::Cuda(pages, _) => pages.bytes() / pages.capacity(),
        }
    }

    /// A cache of `capacity` positions with the first `len` of this one; `None` where the machine has
    /// no memory.
    ///
    /// # Errors
    /// When a GPU has no room, or failed.
    pub fn fork(&self, capacity: usize, len: usize) -> Result<Option<Cache>> {
        match self {
            Cache::Host(layer) => Ok(KvLayer::try_new(layer.shape(), capacity).map(|mut copy| {
                copy.copy_from(layer, len);
                Cache::Host(copy)
            })),
            #[cfg(feature = "cuda")]
            Cache::Cuda(pages, gpu) => {
                let mut copy = KvPages::new(gpu, pages.shape(), capacity)?;
                copy.copy_from(gpu, pages, len)?;
                Ok(Some(Cache::Cuda(copy, Arc::clone(gpu))))
            }
        }
    }

    /// Hands out the bytes of the first `len` positions, piece by piece. They mean something to a
    /// cache of the same kind only.
    ///
    /// # Errors
    /// The first that `f` returns; when a GPU failed.
    pub fn save(&self, len: usize, f: &mut impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        match self {
            Cache::Host(layer) => layer.save(len, f),
            #[cfg(feature = "cuda")]
            Cache::Cuda(pages, gpu) => pages.save(gpu, len, f),
        }
    }

    /// Has the first `len` positions filled with what [`Cache::save`] handed out.
    ///
    /// # Errors
    /// As [`Cache::save`]; the positions then hold anything.
    pub fn restore(
        &mut self,
        len: usize,
        f: &mut impl FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        match self {
            Cache::Host(layer) => layer.restore(len, f),
            #[cfg(feature = "cuda")]
            Cache::Cuda(pages, gpu) => pages.restore(gpu, len, f),
        }
    }

    /// The layer in the machine's memory.
    ///
    /// # Errors
    /// When it lies elsewhere.
    pub fn host_mut(&mut self) -> Result<&mut KvLayer> {
        match self {
            Cache::Host(layer) => Ok(layer),
            #[cfg(feature = "cuda")]
            Cache::Cuda(..) => {
                let why = "a cache lies on a GPU".into();
                Err(crate::Error::Device { wanted: "cpu".into(), why })
            }
        }
    }
}

/// Consecutive rows of a pass that belong to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Position of the first row.
    pub first_pos: usize,
    /// How many rows.
    pub n_rows: usize,
}

/// What attention over the caches of a GPU knows of a pass before the pass begins: where its rows and
/// their caches are, in memory that stays where it is as long as passes repeat.
#[cfg(feature = "cuda")]
#[derive(Default)]
pub struct Pass {
    plan: Option<Plan>,
    workspace: Workspace,
}

#[cfg(feature = "cuda")]
impl Pass {
    /// Gets ready for rows of sequences, whose `caches` are those of the first layer in the spans'
    /// order, then the next layer's. Returns whether the kernels of the last pass, launched as they
    /// were, would compute this one.
    ///
    /// # Errors
    /// When a position lies beyond its cache, a cache lies elsewhere, or the GPU has no room.
    pub fn prepare(
        &mut self,
        gpu: &Gpu,
        n_heads: usize,
        spans: &[Span],
        caches: &[&Cache],
    ) -> Result<bool> {
        let pages = caches.iter().map(|cache| match cache {
            Cache::Cuda(pages, _) => Ok(pages),
            Cache::Host(_) => {
                let why = "a cache lies in the machine's memory".into();
                Err(crate::Error::Device { wanted: "cuda".into(), why })
            }
        });
        let pages: Vec<&KvPages> = pages.collect::<Result<_>>()?;
        let segments: Vec<Segment> =
            spans.iter().map(|&Span { first_pos, n_rows }| Segment { first_pos, n_rows }).collect();
        let shape = pages.first().map(|cache| cache.shape());
        if let Some(plan) = &mut self.plan
            && plan.fits(&segments)
            && shape == Some(plan.shape())
        {
            plan.update(gpu, &segments, &pages)?;
            return Ok(true);
        }
        // The old one's memory may serve the new one.
        self.plan = None;
        let settings = Settings { n_heads, room: 0, split: Split::Auto };
        let plan = Plan::new(gpu, settings, &segments, &pages)?;
        self.workspace.reserve(gpu, &plan)?;
        self.plan = Some(plan);
        Ok(false)
    }

    /// Appends a layer's keys and values [m, n_kv_heads * head_dim] to the caches and attends over
    /// them; `out` and `q` are [m, n_heads * head_dim].
    ///
    /// # Errors
    /// When nothing was prepared, shapes do not fit it, or a launch fails.
    pub fn attend(
        &mut self,
        gpu: &Gpu,
        layer: usize,
        scale: f32,
        window: Option<usize>,
        out: &mut Rows,
        [q, k, v]: [&Rows; 3],
    ) -> Result<()> {
        let Some(plan) = &self.plan else {
            let why = "attention over caches that were not prepared".into();
            return Err(crate::Error::Device { wanted: "cuda".into(), why });
        };
        let (k, v) = (k.floats().cuda()?, v.floats().cuda()?);
        crate::cuda::attention::append(gpu, plan, layer, k, v)?;
        let (out, q) = (out.floats_mut().cuda()?, q.floats().cuda()?);
        let scores = Scores { scale, window };
        crate::cuda::attention::attend(gpu, plan, layer, out, q, scores, &mut self.workspace)
    }

    /// Bytes of partial results.
    pub fn bytes(&self) -> usize {
        self.workspace.bytes()
    }
}

/// `out = softmax(q kᵀ * scale) v` for each row and head; `out` and `q` are
/// [t, n_heads * head_dim]; the rows' own keys and values are already in the cache.
pub fn attention(
    device: &Device,
    scratch: &mut Scratch,
    args: &AttentionArgs<'_>,
    out: &mut [f32],
    q: &[f32],
) {
    let cpu = &device.cpu;
    puna_cpu::attention::attention(cpu.isa, &cpu.team, args, out, q, &mut scratch.attention);
}

/// Appends rows of keys and values at `first_pos` and on.
pub fn append(device: &Device, kv: &mut KvLayer, first_pos: usize, k: &[f32], v: &[f32]) {
    let shape = kv.shape();
    let width = shape.n_kv_heads * shape.head_dim;
    for (i, (k, v)) in k.chunks_exact(width).zip(v.chunks_exact(width)).enumerate() {
        kv.append(device.cpu.isa, first_pos + i, k, v);
    }
}
