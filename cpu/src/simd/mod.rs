//! A vector of f32 lanes at every level, and the one place where a level's functions are entered.
//!
//! A kernel is a struct of named arguments that implements `Kernel` over any `Vector`; `run`
//! picks the vector of an [`Isa`]. The vector types are private to this folder and reach a kernel
//! only through `run`, so a kernel that holds one runs on a machine that has its instructions.
//!
//! `Kernel::run` and every generic helper below it must be `#[inline(always)]`: the instructions
//! of a level are available only in code inlined into that level's `#[target_feature]` function.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod elem;
mod exp;
mod portable;

pub(crate) use elem::{Elem, Sink, Source};
pub(crate) use exp::exp;

use crate::isa::{Isa, Level};
use half::{bf16, f16};
use std::ops::Range;

/// `LANES` numbers of type f32 (8 or 16). Operations round once each, to nearest even.
///
/// Loads and stores take pointers of any alignment. Reductions combine lanes in a fixed order.
pub(crate) trait Vector: Copy {
    /// Runs a part of a kernel as a function of its own, never inlined: for register tiles, which
    /// the compiler allocates better, and far faster, one by one.
    fn enter<K: Kernel>(kernel: K) -> K::Out;

    /// Number of lanes: a divisor of 16.
    const LANES: usize;
    /// How many rows a register tile of the attention kernel holds at most: 8 or 4.
    const TILE_ROWS: usize;

    /// The same number in all lanes.
    fn splat(x: f32) -> Self;
    /// # Safety
    /// `LANES` f32 must be readable at `p`.
    unsafe fn load(p: *const f32) -> Self;
    /// # Safety
    /// `LANES` f32 must be writable at `p`.
    unsafe fn store(self, p: *mut f32);
    /// # Safety
    /// `LANES` f16 must be readable at `p`.
    unsafe fn load_f16(p: *const f16) -> Self;
    /// Rounds to nearest even; too large becomes infinite.
    /// # Safety
    /// `LANES` f16 must be writable at `p`.
    unsafe fn store_f16(self, p: *mut f16);
    /// # Safety
    /// `LANES` bf16 must be readable at `p`.
    unsafe fn load_bf16(p: *const bf16) -> Self;
    /// Rounds to nearest even; NaN stays NaN.
    /// # Safety
    /// `LANES` bf16 must be writable at `p`.
    unsafe fn store_bf16(self, p: *mut bf16);
    /// # Safety
    /// `LANES` i8 must be readable at `p`.
    unsafe fn load_i8(p: *const i8) -> Self;

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    fn sqrt(self) -> Self;
    /// `self * b + c`: rounded once on AVX2 and AVX-512, twice on the portable level.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// `if self > other { self } else { other }`, so a NaN in either gives `other`.
    fn max(self, other: Self) -> Self;
    /// `if self < other { self } else { other }`, so a NaN in either gives `other`.
    fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    fn round(self) -> Self;
    /// `self * 2^n` for integers `n` in -160..=160, also where `2^n` is not a normal number.
    fn scale_pow2(self, n: Self) -> Self;
    /// The lanes in `lanes` (within 0..=LANES), `other` elsewhere.
    fn keep(self, lanes: Range<usize>, other: Self) -> Self;
    /// Sum of the lanes: upper half added to lower half, until one is left.
    fn sum(self) -> f32;
    /// The largest lane.
    fn max_lane(self) -> f32;
    /// Even and odd elements of the `2 * LANES` elements `(self, next)`.
    fn unzip(self, next: Self) -> (Self, Self);
    /// The inverse of `unzip`.
    fn zip(self, odd: Self) -> (Self, Self);
}

/// A computation written once for all levels.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// Computes; implementors mark it `#[inline(always)]`.
    fn run<V: Vector>(self) -> Self::Out;
}

/// Runs `kernel` with the vectors of `isa`.
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) -> K::Out {
    match isa.level() {
        Level::Portable => run_portable(kernel),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where detection found its features.
        Level::Avx2 => unsafe { run_avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` of this level exists only where detection found its features.
        Level::Avx512 => unsafe { run_avx512(kernel) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => run_portable(kernel),
    }
}

#[inline(never)]
fn run_portable<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<portable::F32x8>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn run_avx2<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<avx2::F32x8>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
#[inline(never)]
fn run_avx512<K: Kernel>(kernel: K) -> K::Out {
    kernel.run::<avx512::F32x16>()
}

/// Up to `LANES` elements, `fill` in the lanes beyond.
#[inline(always)]
pub(crate) fn get_or<V: Vector>(x: &[f32], fill: f32) -> V {
    if x.len() >= V::LANES {
        // SAFETY: the slice holds LANES elements.
        return unsafe { V::load(x.as_ptr()) };
    }
    let mut lanes = [fill; 16];
    lanes[..x.len()].copy_from_slice(x);
    // SAFETY: LANES is at most 16.
    unsafe { V::load(lanes.as_ptr()) }
}

/// Asks for the cache line of an address, whatever the address is: a hint, never a fault.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint; SSE is part of the architecture.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Up to `LANES` elements of any type, zeros in the lanes beyond.
#[inline(always)]
pub(crate) fn get<V: Vector>(x: &[impl Elem]) -> V {
    load_or_zero(x)
}

#[inline(always)]
fn load_or_zero<V: Vector, E: Elem>(x: &[E]) -> V {
    if x.len() >= V::LANES {
        // SAFETY: the slice holds LANES elements.
        return unsafe { E::load(x.as_ptr()) };
    }
    let mut lanes = [E::ZERO; 16];
    lanes[..x.len()].copy_from_slice(x);
    // SAFETY: LANES is at most 16.
    unsafe { E::load(lanes.as_ptr()) }
}

/// The first lanes of `v`, as many as `out` takes.
#[inline(always)]
pub(crate) fn put<V: Vector>(out: &mut [impl Elem], v: V) {
    store_first(out, v);
}

#[inline(always)]
fn store_first<V: Vector, E: Elem>(out: &mut [E], v: V) {
    if out.len() >= V::LANES {
        // SAFETY: the slice holds LANES elements.
        return unsafe { E::store(v, out.as_mut_ptr()) };
    }
    let mut lanes = [E::ZERO; 16];
    // SAFETY: LANES is at most 16.
    unsafe { E::store(v, lanes.as_mut_ptr()) };
    out.copy_from_slice(&lanes[..out.len()]);
}

#[cfg(test)]
mod tests;
