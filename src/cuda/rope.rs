//! Rotary position embedding on the device. Source: `cuda/rope.cu`, twin of `puna_cpu::rope`.

use super::elements::{Pair, instance, pair, rows_of, wide};
use super::params::{self, RopeParams};
use super::{DeviceSlice, FloatsMut, Gpu, Launch, Modules, arg, expect_len, u32_of};
use crate::{Error, Result};

pub use puna_cpu::rope::Pairing;

/// The kernels.
pub(crate) struct Rope {
    half: Pair,
    interleaved: Pair,
}

impl Rope {
    pub fn load(modules: &Modules) -> Result<Self> {
        Ok(Rope {
            half: pair(modules, ["rope_half_f32", "rope_half_bf16"])?,
            interleaved: pair(modules, ["rope_interleaved_f32", "rope_interleaved_bf16"])?,
        })
    }
}

/// Angles of some rows' rotations.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Cosines, [m, half].
    pub cos: DeviceSlice<'a, f32>,
    /// Sines, [m, half].
    pub sin: DeviceSlice<'a, f32>,
    /// Values of a row: rotated dimensions / 2.
    pub half: usize,
}

/// Rotates the heads of each row of `x` [m, width], whole heads of `head_dim`, by its angles:
/// `(a, b) = (a cos - b sin, b cos + a sin)` for each pair, or with `inverse` back, which is the
/// gradient.
///
/// The first `2 half` elements of each head are overwritten, the others stay. f32 in between; a bf16
/// result is rounded once more. Error: 2 epsilons of `|a| + |b|` (`tests/cuda_vs_cpu/rope.rs`).
///
/// # Errors
/// When shapes do not fit each other, or the launch fails.
pub fn rope(
    gpu: &Gpu,
    x: FloatsMut<'_>,
    width: usize,
    head_dim: usize,
    angles: Angles<'_>,
    pairing: Pairing,
    inverse: bool,
) -> Result<()> {
    let Angles { cos, sin, half } = angles;
    if x.is_empty() {
        return Ok(());
    }
    let rows = rows_of("rope", x.len(), width)?;
    let n_heads = rows_of("rope, heads", width, head_dim)?;
    // Not 2 * half, which could overflow.
    if half > head_dim / 2 {
        return Err(Error::Shape {
            op: "rope, angles".into(),
            expected: format!("at most {} pairs in a head of {head_dim}", head_dim / 2),
            got: format!("{half} pairs"),
        });
    }
    expect_len("rope", "cos", cos.len(), rows * half)?;
    expect_len("rope", "sin", sin.len(), rows * half)?;
    if half == 0 {
        return Ok(());
    }
    let together = params::ROPE_PAIRS as usize;
    let whole = half.is_multiple_of(together) && head_dim.is_multiple_of(together);
    let wide = whole && wide(&[x.address(), cos.address(), sin.address()]);
    let threads_of_row = n_heads * half / if wide { together } else { 1 };
    let block = params::ROPE_THREADS;
    // The kernel counts a row's pairs in 32 bits.
    let blocks_of_row = u32_of("pairs of a row of rope", threads_of_row)?.div_ceil(block);
    let grid = [u32_of("rows of rope", rows)?, blocks_of_row, 1];
    let mut p = RopeParams {
        n_heads: u32_of("heads of rope", n_heads)?,
        head_dim: u32_of("elements of a head of rope", head_dim)?,
        half: half as u32,
        sign: if inverse { -1.0 } else { 1.0 },
        wide: wide.into(),
    };
    let function = match pairing {
        Pairing::Half => &gpu.rope.half[instance(&x.as_floats())],
        Pairing::Interleaved => &gpu.rope.interleaved[instance(&x.as_floats())],
    };
    let (mut to, mut cos, mut sin) = (x.address(), cos.address(), sin.address());
    let mut args = [arg(&mut to), arg(&mut cos), arg(&mut sin), arg(&mut p)];
    // SAFETY: `x` has `rows` rows of `n_heads` heads of `head_dim` of the instance's type and each
    // table `rows` times `half`, with 2 half <= head_dim, all checked above; `wide` says what the
    // addresses and sizes allow.
    unsafe { gpu.launch(function, Launch { grid, block, shared_bytes: 0 }, &mut args) }
}
