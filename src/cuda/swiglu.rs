//! The gated activation of the feed-forward on the device, forward and backward. Source:
//! `cuda/swiglu.cu`, twin of `puna_cpu::swiglu`.

use super::elements::{Pair, by_elements, instance, pairs, wide};
use super::floats::expect_dtype;
use super::params::{self, SwiGluParams};
use super::{Floats, FloatsMut, Gpu, Modules, arg, expect_len};
use crate::Result;

/// The kernels.
pub(crate) struct SwiGlu {
    /// By the type of the result, then of gate and up.
    fwd: [Pair; 2],
    /// By the type of the gradients, of dout, then of gate and up.
    bwd: [[Pair; 2]; 2],
}

impl SwiGlu {
    pub fn load(modules: &Modules) -> Result<Self> {
        let of = |names| pairs(modules, names);
        Ok(SwiGlu {
            fwd: of(["swiglu_f32_f32", "swiglu_f32_bf16", "swiglu_bf16_f32", "swiglu_bf16_bf16"])?,
            bwd: [
                of([
                    "swiglu_bwd_f32_f32_f32",
                    "swiglu_bwd_f32_f32_bf16",
                    "swiglu_bwd_f32_bf16_f32",
                    "swiglu_bwd_f32_bf16_bf16",
                ])?,
                of([
                    "swiglu_bwd_bf16_f32_f32",
                    "swiglu_bwd_bf16_f32_bf16",
                    "swiglu_bwd_bf16_bf16_f32",
                    "swiglu_bwd_bf16_bf16_bf16",
                ])?,
            ],
        })
    }
}

/// `out = gate / (1 + exp(-gate)) * up`, element by element; overwrites.
///
/// `gate` and `up` of one type, `out` of either; f32 in between, a bf16 result rounded once more.
/// Error: 12 epsilons of itself (`tests/cuda_vs_cpu/swiglu.rs`).
///
/// # Errors
/// When lengths or types do not fit each other, or the launch fails.
pub fn swiglu(gpu: &Gpu, out: FloatsMut<'_>, gate: Floats<'_>, up: Floats<'_>) -> Result<()> {
    let op = "swiglu";
    expect_len(op, "out", out.len(), gate.len())?;
    expect_len(op, "up", up.len(), gate.len())?;
    expect_dtype(op, "up", up.dtype(), gate.dtype())?;
    if out.is_empty() {
        return Ok(());
    }
    let [mut to, mut gates, mut ups] = [out.address(), gate.address(), up.address()];
    let mut p =
        SwiGluParams { n: gate.len() as u64, wide: wide(&[to, gates, ups]).into(), pad_: 0 };
    let shape = by_elements("elements of swiglu", gate.len(), params::SWIGLU_THREADS)?;
    let function = &gpu.swiglu.fwd[instance(&out.as_floats())][instance(&gate)];
    let mut args = [arg(&mut to), arg(&mut gates), arg(&mut ups), arg(&mut p)];
    // SAFETY: all three have `n` elements of the instance's types, compared above; `wide` is set by
    // their addresses.
    unsafe { gpu.launch(function, shape, &mut args) }
}

/// The gradients of [`swiglu`]: with `s = 1 / (1 + exp(-gate))`,
///
/// `dup = dout * gate * s` and `dgate = dout * up * s * (1 + gate * (1 - s))`; overwrites both.
///
/// `dgate` and `dup` of one type, `gate` and `up` of one type, `dout` of either. Error of dup: 14
/// epsilons of itself; of dgate: 24 epsilons of `|dout up| s (1 + |gate|)`; a bf16 result is rounded
/// once more (`tests/cuda_vs_cpu/swiglu.rs`).
///
/// # Errors
/// When lengths or types do not fit each other, or the launch fails.
pub fn swiglu_bwd(
    gpu: &Gpu,
    [dgate, dup]: [FloatsMut<'_>; 2],
    dout: Floats<'_>,
    gate: Floats<'_>,
    up: Floats<'_>,
) -> Result<()> {
    let op = "swiglu_bwd";
    let lengths =
        [("dgate", dgate.len()), ("dup", dup.len()), ("gate", gate.len()), ("up", up.len())];
    for (name, len) in lengths {
        expect_len(op, name, len, dout.len())?;
    }
    expect_dtype(op, "dup", dup.dtype(), dgate.dtype())?;
    expect_dtype(op, "up", up.dtype(), gate.dtype())?;
    if dout.is_empty() {
        return Ok(());
    }
    let [mut to_gate, mut to_up] = [dgate.address(), dup.address()];
    let [mut from, mut gates, mut ups] = [dout.address(), gate.address(), up.address()];
    let wide = wide(&[to_gate, to_up, from, gates, ups]);
    let mut p = SwiGluParams { n: dout.len() as u64, wide: wide.into(), pad_: 0 };
    let shape = by_elements("elements of swiglu_bwd", dout.len(), params::SWIGLU_THREADS)?;
    let of_gradients = &gpu.swiglu.bwd[instance(&dgate.as_floats())];
    let function = &of_gradients[instance(&dout)][instance(&gate)];
    let mut args = [
        arg(&mut to_gate),
        arg(&mut to_up),
        arg(&mut from),
        arg(&mut gates),
        arg(&mut ups),
        arg(&mut p),
    ];
    // SAFETY: all five have `n` elements of the instance's types, compared above; `wide` is set by
    // their addresses.
    unsafe { gpu.launch(function, shape, &mut args) }
}
