//! Attention inside packed sequences on the device, forward and backward: what training uses.
//! Source: `cuda/flash_fwd.cu`, `cuda/flash_bwd.cu`, `cuda/flash_f32.cu`; twin of `puna_cpu::flash`.
//!
//! A sequence has the same bits whatever it is packed with, and however often it is computed: blocks
//! are cut by a sequence's length alone, and no two of them add to the same number.

mod hopper;

use super::floats::expect_dtype;
use super::params::{self, FlashParams, FlashPrepareParams, FlashTile};
use super::{
    DeviceBuffer, DeviceSlice, DeviceSliceMut, Floats, FloatsMut, Function, Gpu, Launch, Modules,
    aligned, arg, expect_len, u32_of,
};
use crate::{Error, Result};
use half::bf16;
use std::cmp::Reverse;

pub use hopper::Forward;
pub use puna_cpu::flash::Shape;

/// A kernel, and what a block of it takes.
struct Kernel {
    function: Function,
    /// Rows that a block owns.
    rows: u32,
    shared_bytes: u32,
}

/// The kernels for heads of one width.
struct Instance {
    /// Of a tile's rows: heads are at most as wide.
    width: u32,
    /// Blocks that share the columns of dk and dv.
    parts: u32,
    forward: Kernel,
    dq: Kernel,
    dkdv: Kernel,
}

/// The kernels.
pub(crate) struct Flash {
    /// For heads of whole chunks of 16 bytes, narrow to wide.
    bf16: [Instance; 5],
    /// For heads of any width.
    bf16_any: [Instance; 3],
    f32: [Instance; 3],
    prepare: Prepare,
    /// `None` on devices of another kind.
    hopper: Option<hopper::Hopper>,
}

/// By the types of dout and of the rows.
struct Prepare {
    f32: Function,
    bf16: Function,
    f32_bf16: Function,
}

/// Names of the kernels of an instance: forward, dq, dk and dv.
type Names = [&'static str; 3];

impl Flash {
    pub fn load(modules: &Modules) -> Result<Self> {
        let bf16 = |width, names| bf16_instance(modules, width, names);
        let f32 = |width, names| f32_instance(modules, width, names);
        Ok(Flash {
            bf16: [
                bf16(64, ["flash_fwd_bf16_64", "flash_bwd_dq_bf16_64", "flash_bwd_dkdv_bf16_64"])?,
                bf16(80, ["flash_fwd_bf16_80", "flash_bwd_dq_bf16_80", "flash_bwd_dkdv_bf16_80"])?,
                bf16(96, ["flash_fwd_bf16_96", "flash_bwd_dq_bf16_96", "flash_bwd_dkdv_bf16_96"])?,
                bf16(
                    128,
                    ["flash_fwd_bf16_128", "flash_bwd_dq_bf16_128", "flash_bwd_dkdv_bf16_128"],
                )?,
                bf16(
                    256,
                    ["flash_fwd_bf16_256", "flash_bwd_dq_bf16_256", "flash_bwd_dkdv_bf16_256"],
                )?,
            ],
            bf16_any: [
                bf16(
                    64,
                    [
                        "flash_fwd_bf16_any_64",
                        "flash_bwd_dq_bf16_any_64",
                        "flash_bwd_dkdv_bf16_any_64",
                    ],
                )?,
                bf16(
                    128,
                    [
                        "flash_fwd_bf16_any_128",
                        "flash_bwd_dq_bf16_any_128",
                        "flash_bwd_dkdv_bf16_any_128",
                    ],
                )?,
                bf16(
                    256,
                    [
                        "flash_fwd_bf16_any_256",
                        "flash_bwd_dq_bf16_any_256",
                        "flash_bwd_dkdv_bf16_any_256",
                    ],
                )?,
            ],
            f32: [
                f32(64, ["flash_fwd_f32_64", "flash_bwd_dq_f32_64", "flash_bwd_dkdv_f32_64"])?,
                f32(128, ["flash_fwd_f32_128", "flash_bwd_dq_f32_128", "flash_bwd_dkdv_f32_128"])?,
                f32(256, ["flash_fwd_f32_256", "flash_bwd_dq_f32_256", "flash_bwd_dkdv_f32_256"])?,
            ],
            prepare: Prepare {
                f32: modules.function("flash_bwd_prepare_f32")?,
                bf16: modules.function("flash_bwd_prepare_bf16")?,
                f32_bf16: modules.function("flash_bwd_prepare_f32_bf16")?,
            },
            hopper: hopper::Hopper::load(modules)?,
        })
    }

    /// The narrowest instance for heads of this width.
    fn instance(&self, dtype: &'static str, head_dim: usize) -> Result<&Instance> {
        let instances = match dtype {
            "f32" => &self.f32[..],
            _ if head_dim.is_multiple_of(8) => &self.bf16[..],
            _ => &self.bf16_any[..],
        };
        instances
            .iter()
            .find(|instance| instance.width as usize >= head_dim)
            .ok_or_else(|| Error::Unsupported(format!("heads of {head_dim} on a GPU: at most 256")))
    }
}

/// Tiles of bf16; the sizes are those of `cuda/flash_*.cu`.
fn bf16_instance(modules: &Modules, width: u32, names: Names) -> Result<Instance> {
    let (wide, narrow) = (width > 128, width <= 64);
    let row_bytes = 2 * width;
    let fwd_rows = if wide { params::FLASH_FWD_ROWS_256 } else { params::FLASH_FWD_ROWS };
    let dkdv_rows = if narrow { params::FLASH_DKDV_ROWS_64 } else { params::FLASH_DKDV_ROWS };
    let stages = if wide { params::FLASH_BWD_STAGES_256 } else { params::FLASH_BWD_STAGES };
    let step = stages * 2 * params::FLASH_BWD_STEP;
    let kernel = |name, rows, shared_bytes| -> Result<Kernel> {
        Ok(Kernel { function: modules.function(name)?, rows, shared_bytes })
    };
    let fwd_bytes = (fwd_rows + 2 * params::FLASH_FWD_KEYS) * row_bytes;
    let dq_bytes = (2 * params::FLASH_DQ_ROWS + step) * row_bytes;
    let dkdv_bytes = (2 * dkdv_rows + step) * row_bytes + step * 4;
    Ok(Instance {
        width,
        parts: width.div_ceil(params::FLASH_DKDV_COLS),
        forward: kernel(names[0], fwd_rows, fwd_bytes)?,
        dq: kernel(names[1], params::FLASH_DQ_ROWS, dq_bytes)?,
        dkdv: kernel(names[2], dkdv_rows, dkdv_bytes)?,
    })
}

/// Tiles of f32.
fn f32_instance(modules: &Modules, width: u32, names: Names) -> Result<Instance> {
    let rows = if width > 128 { params::FLASH_F32_ROWS_256 } else { params::FLASH_F32_ROWS };
    let tile = 4 * rows * (width + params::FLASH_F32_PAD);
    let square = 4 * rows * (rows + 1);
    let kernel = |name, shared_bytes| -> Result<Kernel> {
        Ok(Kernel { function: modules.function(name)?, rows, shared_bytes })
    };
    Ok(Instance {
        width,
        parts: 1,
        forward: kernel(names[0], 3 * tile + square)?,
        dq: kernel(names[1], 4 * tile + square)?,
        dkdv: kernel(names[2], 4 * tile + 2 * square)?,
    })
}

/// Rows of a packed sequence that one block owns, and what it goes over.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tile {
    start: usize,
    len: usize,
    first: usize,
    /// Rows of the other side.
    cost: usize,
}

/// The tiles of `rows` rows, costliest first, so that no long one begins when all others have ended.
/// `keys`: the rows are keys and go over queries.
fn tiles(spans: &[usize], rows: usize, window: usize, keys: bool) -> Vec<Tile> {
    let (mut tiles, mut start) = (vec![], 0);
    for &len in spans {
        for first in (0..len).step_by(rows) {
            let end = (first + rows).min(len);
            let cost = if keys {
                (end - 1).saturating_add(window).min(len) - first
            } else {
                end - (first + 1).saturating_sub(window)
            };
            tiles.push(Tile { start, len, first, cost });
        }
        start += len;
    }
    tiles.sort_by_key(|tile| Reverse(tile.cost));
    tiles
}

/// Some of a plan's tiles on the device: `FlashTile`s, four numbers each.
#[derive(Clone, Copy)]
struct Tiles {
    first: usize,
    count: u32,
}

const _: () = assert!(size_of::<FlashTile>() == 16);

impl Tiles {
    /// Adds the fields of the tiles of `rows` rows to those that are uploaded.
    fn add(fields: &mut Vec<u32>, shape: &Shape<'_>, kernel: &Kernel, keys: bool) -> Result<Self> {
        let window = shape.window.unwrap_or(usize::MAX);
        let tiles = tiles(shape.spans, kernel.rows as usize, window, keys);
        let first = fields.len() / 4;
        // Below 2^31, as `Plan::new` checked their sum.
        fields.extend(
            tiles
                .iter()
                .flat_map(|tile| [tile.start as u32, tile.len as u32, tile.first as u32, 0]),
        );
        Ok(Tiles { first, count: u32_of("tiles of attention", tiles.len())? })
    }
}

/// How the rows of a batch of packed sequences are cut into blocks: made once for a batch and used
/// by every layer, forward and backward.
pub struct Plan {
    t: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    dtype: &'static str,
    params: FlashParams,
    tiles: DeviceBuffer<u32>,
    forward: Tiles,
    dq: Tiles,
    dkdv: Tiles,
}

impl Plan {
    /// For rows of this shape, f32 or bf16.
    ///
    /// # Errors
    /// When a size is 0 or too large, heads do not divide, the scale is not above 0, or the device
    /// has no memory.
    pub fn new(gpu: &Gpu, shape: &Shape<'_>, as_bf16: bool) -> Result<Plan> {
        let &Shape { n_heads, n_kv_heads, head_dim, scale, window, spans } = shape;
        let refuse = |expected: &str, got: String| {
            Err(Error::Shape { op: "attention".into(), expected: expected.into(), got })
        };
        if n_kv_heads == 0 || n_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return refuse(
                "query heads that are a multiple of the KV heads",
                format!("{n_heads} heads over {n_kv_heads} KV heads"),
            );
        }
        if head_dim == 0 {
            return refuse("heads of at least one element", "heads of width 0".into());
        }
        if window == Some(0) {
            return refuse("a window of at least one position", "a window of 0".into());
        }
        if !(scale > 0.0 && scale.is_finite()) {
            return refuse("a finite scale above 0", scale.to_string());
        }
        let t = spans.iter().try_fold(0usize, |sum, &len| sum.checked_add(len));
        // Positions are counted in 31 bits, with room for a tile behind the last.
        let Some(t) = t.filter(|&t| t < (1 << 31) - 1024) else {
            return refuse("sequences of less than 2^31 tokens in all", format!("{t:?}"));
        };
        let dtype = if as_bf16 { "bf16" } else { "f32" };
        let instance = gpu.flash.instance(dtype, head_dim)?;
        let params = FlashParams {
            t: u32_of("rows of attention", t)?,
            n_heads: u32_of("heads of attention", n_heads)?,
            n_kv_heads: u32_of("heads of attention", n_kv_heads)?,
            head_dim: u32_of("width of a head", head_dim)?,
            window: window.and_then(|w| u32::try_from(w).ok()).unwrap_or(u32::MAX),
            scale,
            flags: 0,
            pad_: 0,
        };
        let mut fields = vec![];
        let forward = Tiles::add(&mut fields, shape, &instance.forward, false)?;
        let dq = Tiles::add(&mut fields, shape, &instance.dq, false)?;
        let dkdv = Tiles::add(&mut fields, shape, &instance.dkdv, true)?;
        Ok(Plan {
            t,
            n_heads,
            n_kv_heads,
            head_dim,
            dtype,
            params,
            tiles: gpu.upload(&fields)?,
            forward,
            dq,
            dkdv,
        })
    }

    /// Rows of all sequences.
    pub fn rows(&self) -> usize {
        self.t
    }

    fn check_len(&self, name: &str, len: usize, heads: usize) -> Result<()> {
        expect_len("attention", name, len, self.t * heads * self.head_dim)
    }

    /// Queries, keys, values and others like them: their lengths, their type.
    fn check_rows(&self, rows: &[(&str, &Floats<'_>, usize)]) -> Result<()> {
        for &(name, x, heads) in rows {
            self.check_len(name, x.len(), heads)?;
            expect_dtype("attention", name, x.dtype(), self.dtype)?;
        }
        Ok(())
    }

    /// Whether rows of heads from these addresses on are 16-byte aligned.
    ///
    /// # Errors
    /// When they are not, though the instance for their width needs them to be.
    fn vectors(&self, addresses: &[u64]) -> Result<bool> {
        let bytes = if self.dtype == "f32" { 4 } else { 2 };
        let all = addresses.iter().all(|&address| aligned(address, self.head_dim * bytes));
        if self.dtype == "f32" || all || !self.head_dim.is_multiple_of(8) {
            return Ok(all);
        }
        Err(Error::Shape {
            op: "attention".into(),
            expected: "bf16 rows at addresses that are multiples of 16".into(),
            got: format!("{addresses:x?}"),
        })
    }

    /// Where some of its tiles lie.
    fn address(&self, tiles: Tiles) -> u64 {
        let first = 4 * tiles.first;
        self.tiles.slice().range(first..first + 4 * tiles.count as usize).address()
    }

    fn params(&self, vectors: bool, pairs: bool) -> FlashParams {
        let flags = if vectors { params::FLASH_VECTORS } else { 0 }
            | if pairs { params::FLASH_PAIRS } else { 0 };
        FlashParams { flags, ..self.params }
    }

    fn launch(&self, kernel: &Kernel, tiles: &Tiles, heads: u32, parts: u32) -> Launch {
        let grid = [heads, tiles.count, parts];
        Launch { grid, block: params::FLASH_THREADS, shared_bytes: kernel.shared_bytes }
    }
}

/// Causal attention of every row over its own sequence:
///
/// `out[i, h] = sum over j of exp(scale q[i, h] . k[j, h / group] - lse[h, i]) v[j, h / group]`
///
/// over the keys j that i sees. `out` and `q` are [t, n_heads * head_dim], `k` and `v`
/// [t, n_kv_heads * head_dim], all of the plan's type, queries and keys after RoPE; `lse` is
/// [n_heads, t]: the logarithm of the sum of the exponentials, which [`backward`] takes. Overwrites.
/// f32 inside; bf16 rounds exponentials where they meet values. Error: `tests/cuda_vs_cpu/flash.rs`.
///
/// # Errors
/// When lengths, types or alignment do not fit, or the launch fails.
pub fn forward(
    gpu: &Gpu,
    plan: &Plan,
    out: FloatsMut<'_>,
    lse: DeviceSliceMut<'_, f32>,
    rows: [Floats<'_>; 3],
) -> Result<()> {
    forward_by(gpu, plan, out, lse, rows, Forward::Chosen)
}

/// [`forward`] by a kernel that the caller names, for tests.
///
/// # Errors
/// As [`forward`], and when the device has no such kernel for this plan.
pub fn forward_by(
    gpu: &Gpu,
    plan: &Plan,
    out: FloatsMut<'_>,
    lse: DeviceSliceMut<'_, f32>,
    [q, k, v]: [Floats<'_>; 3],
    by: Forward,
) -> Result<()> {
    let (n, m) = (plan.n_heads, plan.n_kv_heads);
    plan.check_rows(&[("out", &out.as_floats(), n), ("q", &q, n), ("k", &k, m), ("v", &v, m)])?;
    expect_len("attention", "lse", lse.len(), plan.t * n)?;
    if plan.t == 0 {
        return Ok(());
    }
    let vectors = plan.vectors(&[out.address(), q.address(), k.address(), v.address()])?;
    if let Some(kernel) = hopper::kernel(gpu, plan, by)? {
        // SAFETY: the lengths and types were compared with the plan's above.
        return unsafe {
            hopper::forward(gpu, plan, kernel, out.address(), lse.as_slice(), [q, k, v])
        };
    }
    let (mut to, mut sums) = (out.address(), lse.address());
    let (mut q, mut k, mut v) = (q.address(), k.address(), v.address());
    let mut p = plan.params(vectors, false);
    let mut tiles = plan.address(plan.forward);
    let mut args = [
        arg(&mut to),
        arg(&mut sums),
        arg(&mut q),
        arg(&mut k),
        arg(&mut v),
        arg(&mut tiles),
        arg(&mut p),
    ];
    let kernel = &gpu.flash.instance(plan.dtype, plan.head_dim)?.forward;
    let shape = plan.launch(kernel, &plan.forward, p.n_heads, 1);
    // SAFETY: every buffer's length and type was compared with the plan's above, and the tiles
    // cover the plan's rows; `vectors` refused rows that the instance cannot read.
    unsafe { gpu.launch(&kernel.function, shape, &mut args) }
}

/// What [`backward`] reads of the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Queries.
    pub q: Floats<'a>,
    /// Keys.
    pub k: Floats<'a>,
    /// Values.
    pub v: Floats<'a>,
    /// The result.
    pub out: Floats<'a>,
    /// Logarithms of the sums of exponentials.
    pub lse: DeviceSlice<'a, f32>,
}

/// Gradients of [`forward`]'s queries, keys and values, f32, laid out as those; `dout` is f32 or of
/// the plan's type. Overwrites. Probabilities are computed again from `lse`; a bf16 plan rounds
/// `dout`, probabilities and their slopes to bf16 where they meet another factor.
///
/// # Errors
/// When lengths, types or alignment do not fit, or a launch fails.
pub fn backward(
    gpu: &Gpu,
    plan: &Plan,
    [dq, dk, dv]: [DeviceSliceMut<'_, f32>; 3],
    dout: Floats<'_>,
    saved: Saved<'_>,
) -> Result<()> {
    let Saved { q, k, v, out, lse } = saved;
    let (n, m) = (plan.n_heads, plan.n_kv_heads);
    plan.check_rows(&[("q", &q, n), ("k", &k, m), ("v", &v, m), ("out", &out, n)])?;
    for (name, len, heads) in [("dq", dq.len(), n), ("dk", dk.len(), m), ("dv", dv.len(), m)] {
        plan.check_len(name, len, heads)?;
    }
    plan.check_len("dout", dout.len(), n)?;
    expect_len("attention", "lse", lse.len(), plan.t * n)?;
    if plan.t == 0 {
        return Ok(());
    }
    let d = gpu.alloc::<f32>(plan.t * n)?;
    let rounds = (dout.dtype(), plan.dtype) == ("f32", "bf16");
    let rounded = gpu.alloc::<bf16>(if rounds { dout.len() } else { 0 })?;
    prepare(gpu, plan, &d, &rounded, dout, out)?;

    let mut dout = if rounds { rounded.slice().address() } else { dout.address() };
    let (mut q, mut k, mut v) = (q.address(), k.address(), v.address());
    let (mut lse, mut d) = (lse.address(), d.slice().address());
    let (mut dq, mut dk, mut dv) = (dq.address(), dk.address(), dv.address());
    let vectors = plan.vectors(&[dout, q, k, v])?;
    let pairs = plan.head_dim.is_multiple_of(2) && [dq, dk, dv].iter().all(|a| a.is_multiple_of(8));
    let mut p = plan.params(vectors, pairs);
    let instance = gpu.flash.instance(plan.dtype, plan.head_dim)?;

    let mut tiles = plan.address(plan.dq);
    let mut args = [
        arg(&mut dq),
        arg(&mut dout),
        arg(&mut q),
        arg(&mut k),
        arg(&mut v),
        arg(&mut lse),
        arg(&mut d),
        arg(&mut tiles),
        arg(&mut p),
    ];
    let shape = plan.launch(&instance.dq, &plan.dq, plan.params.n_heads, 1);
    // SAFETY: every buffer's length and type was compared with the plan's above; dout is f32 in an
    // f32 plan, as `prepare` checked, else bf16, its own or rounded; d has a number a row and head;
    // the tiles cover the plan's rows; `vectors` refused rows that the instance cannot read.
    unsafe { gpu.launch(&instance.dq.function, shape, &mut args) }?;

    let mut tiles = plan.address(plan.dkdv);
    let mut args = [
        arg(&mut dk),
        arg(&mut dv),
        arg(&mut dout),
        arg(&mut q),
        arg(&mut k),
        arg(&mut v),
        arg(&mut lse),
        arg(&mut d),
        arg(&mut tiles),
        arg(&mut p),
    ];
    let shape = plan.launch(&instance.dkdv, &plan.dkdv, plan.params.n_kv_heads, instance.parts);
    // SAFETY: as above.
    unsafe { gpu.launch(&instance.dkdv.function, shape, &mut args) }
}

/// `d[h, i] = dout[i, h] . out[i, h]`, and dout rounded to bf16 into `rounded` where it has room.
fn prepare(
    gpu: &Gpu,
    plan: &Plan,
    d: &DeviceBuffer<f32>,
    rounded: &DeviceBuffer<bf16>,
    dout: Floats<'_>,
    out: Floats<'_>,
) -> Result<()> {
    let kernels = &gpu.flash.prepare;
    let kernel = match (dout.dtype(), plan.dtype) {
        ("f32", "f32") => &kernels.f32,
        ("bf16", "bf16") => &kernels.bf16,
        ("f32", _) => &kernels.f32_bf16,
        (got, wanted) => return expect_dtype("attention", "dout", got, wanted),
    };
    let (mut d, mut low) = (d.slice().address(), rounded.slice().address());
    let fours = |address: u64, bytes: usize| address.is_multiple_of(4 * bytes as u64);
    let packs = plan.head_dim.is_multiple_of(4)
        && fours(dout.address(), dout.element_bytes())
        && fours(out.address(), out.element_bytes());
    let mut p = FlashPrepareParams {
        rows: plan.t as u64,
        n_heads: plan.params.n_heads,
        head_dim: plan.params.head_dim,
        packs: packs.into(),
        pad_: 0,
    };
    let block = params::FLASH_PREPARE_THREADS;
    let blocks = (plan.t * plan.n_heads).div_ceil(block as usize / 32);
    let shape =
        Launch { grid: [u32_of("rows of attention", blocks)?, 1, 1], block, shared_bytes: 0 };
    let (mut dout, mut out) = (dout.address(), out.address());
    let mut args = [arg(&mut d), arg(&mut low), arg(&mut dout), arg(&mut out), arg(&mut p)];
    // SAFETY: dout and out have t rows of n_heads heads, compared by the caller, of the types that
    // chose the kernel; d has a number for each row and head; `rounded` is as long as dout where
    // dout is f32 and rows are bf16; `packs` says what addresses and width allow.
    unsafe { gpu.launch(kernel, shape, &mut args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once_and_the_costliest_come_first() {
        for (spans, window) in [
            (vec![300, 0, 1, 64, 65], usize::MAX),
            (vec![200, 7], 50),
            (vec![5], 1),
            (vec![], usize::MAX),
        ] {
            for keys in [false, true] {
                let tiles = tiles(&spans, 64, window, keys);
                let mut seen = vec![0; spans.iter().sum()];
                for tile in &tiles {
                    let end = (tile.first + 64).min(tile.len);
                    seen[tile.start + tile.first..tile.start + end]
                        .iter_mut()
                        .for_each(|n| *n += 1);
                }
                assert!(seen.iter().all(|&n| n == 1), "{spans:?} {keys}: {tiles:?}");
                assert!(tiles.is_sorted_by_key(|tile| Reverse(tile.cost)), "{tiles:?}");
            }
        }
    }

    #[test]
    fn a_tile_costs_the_rows_that_it_goes_over() {
        let tile = |spans: &[usize], window, keys| tiles(spans, 64, window, keys)[0];
        assert_eq!(
            tile(&[130], usize::MAX, false),
            Tile { start: 0, len: 130, first: 128, cost: 130 }
        );
        assert_eq!(
            tile(&[130], usize::MAX, true),
            Tile { start: 0, len: 130, first: 0, cost: 130 }
        );
        // Keys 64 - 9 to 127, seen by a window of 10; queries up to 63 + 9.
        assert_eq!(tile(&[128], 10, false), Tile { start: 0, len: 128, first: 64, cost: 73 });
        assert_eq!(tile(&[128], 10, true), Tile { start: 0, len: 128, first: 0, cost: 73 });
    }
}
