//! The gradients of an adapter's matrices, both at once. Source: `cuda/lora_grads.cu`.

use super::fused::fused_rank;
use crate::Result;
use crate::cuda::matmul::{Factor, Source, size};
use crate::cuda::params::{self, LoraGradsParams};
use crate::cuda::{DeviceSliceMut, Function, Gpu, Launch, Modules, arg, expect_len, u32_of};

/// The kernels.
pub(super) struct Grads {
    /// Ranks up to 16, 64.
    parts: [Function; 2],
    sum: Function,
}

impl Grads {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Grads {
            parts: [modules.function("lora_grads_r16")?, modules.function("lora_grads_r64")?],
            sum: modules.function("lora_grads_sum")?,
        })
    }
}

/// Factors of the gradients: dy [m, n], x [m, k]; u and du [m, r].
pub(super) struct Parts<'a> {
    pub dy: Factor<'a>,
    pub x: Factor<'a>,
    pub u: Factor<'a>,
    pub du: Factor<'a>,
    pub scale: f32,
}

impl Parts<'_> {
    /// Whether the kernels take them.
    pub fn fit(&self) -> bool {
        let Parts { dy, x, u, du, .. } = self;
        let (m, r) = (dy.rows, du.cols);
        let inner = |f: &Factor<'_>| {
            let typed = matches!(f.source, Source::F32(_) | Source::Bf16(_));
            typed && f.is_aligned() && !f.transposed && (f.rows, f.cols) == (m, r)
        };
        let wide = |f: &Factor<'_>| f.is_aligned_bf16() && !f.transposed && f.rows == m;
        fused_rank(r).is_some() && inner(u) && inner(du) && wide(dy) && wide(x)
    }

    /// `da += duᵀ x` [r, k], `db += scale dyᵀ u` [n, r].
    ///
    /// # Errors
    /// When lengths do not fit, or a launch fails.
    pub fn add(
        self,
        gpu: &Gpu,
        da: DeviceSliceMut<'_, f32>,
        db: DeviceSliceMut<'_, f32>,
    ) -> Result<()> {
        let Parts { dy, x, u, du, scale } = self;
        let (m, n, k, r) = (dy.rows, dy.cols, x.cols, du.cols);
        let op = "gradients of an adapter";
        expect_len(op, "da", da.len(), r * k)?;
        expect_len(op, "db", db.len(), n * r)?;
        for (what, one) in [("dy", &dy), ("x", &x), ("u", &u), ("du", &du)] {
            expect_len(op, what, one.source.len(), one.rows * one.cols)?;
        }
        if m == 0 || r * (n + k) == 0 {
            return Ok(());
        }
        let mut p = LoraGradsParams {
            m: size(m)?,
            n: size(n)?,
            k: size(k)?,
            r: size(r)?,
            du_type: du.source.tag(),
            u_type: u.source.tag(),
            scale,
            pad_: 0,
        };
        let n_parts = m.div_ceil(params::LORA_GRADS_ROWS as usize);
        let parts = gpu.alloc::<f32>(n_parts * (n + k) * r)?;
        let tile = params::LORA_GRADS_TILE as usize;
        let (function, room) = match r {
            ..=16 => (&gpu.lora.grads.parts[0], params::LORA_RANK_16),
            _ => (&gpu.lora.grads.parts[1], params::LORA_RANK_64),
        };
        let blocks = n_parts * (n.div_ceil(tile) + k.div_ceil(tile));
        let launch = Launch {
            grid: [u32_of("parts of an adapter's gradients", blocks)?, 1, 1],
            block: params::LORA_GRADS_THREADS,
            shared_bytes: params::MATMUL_STAGES
                * (params::LORA_GRADS_TILE + room)
                * params::MATMUL_BK
                * 2,
        };
        let mut sums = parts.slice().address();
        let [mut x, mut du, mut dy, mut u] = [x, du, dy, u].map(|f| f.source.address());
        let mut args =
            [arg(&mut sums), arg(&mut x), arg(&mut du), arg(&mut dy), arg(&mut u), arg(&mut p)];
        // SAFETY: the lengths of the factors were compared with the sizes in `p` above, and `fit`, which
        // the caller asked, found types, forms and alignment to be the kernel's; the parts were made for
        // these sizes; the arguments are the kernel's.
        unsafe { gpu.launch(function, launch, &mut args)? };
        let threads = params::LORA_GRADS_SUM_THREADS;
        let blocks = ((n + k) * r).div_ceil(threads as usize);
        let grid = [u32_of("blocks of an adapter's gradients", blocks)?, 1, 1];
        let launch = Launch { grid, block: threads, shared_bytes: 0 };
        let (mut da, mut db) = (da.address(), db.address());
        let mut args = [arg(&mut da), arg(&mut db), arg(&mut sums), arg(&mut p)];
        // SAFETY: the lengths of da and db were compared with the sizes in `p`; the parts as above.
        unsafe { gpu.launch(&gpu.lora.grads.sum, launch, &mut args) }
    }
}
