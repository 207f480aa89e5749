//! Eight lanes in plain Rust, in loops that a compiler vectorises.

use super::{Kernel, Vector};
use half::{bf16, f16};
use std::ops::Range;

#[derive(Clone, Copy)]
#[repr(align(32))]
pub(super) struct F32x8([f32; 8]);

#[inline(always)]
fn each(f: impl Fn(usize) -> f32) -> F32x8 {
    let mut out = [0.0; 8];
    for (i, lane) in out.iter_mut().enumerate() {
        *lane = f(i);
    }
    F32x8(out)
}

/// Exponent and fraction moved to their places in an f32, then scaled by the difference of the
/// exponents' biases, 2^112: exact, subnormals included, and without a branch.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((112 + 127) << 23);
    // The largest exponent stands for infinities and NaN.
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(magnitude.to_bits() | special | (bits & 0x8000) << 16)
}

impl Vector for F32x8 {
    #[inline(always)]
    fn enter<K: Kernel>(kernel: K) -> K::Out {
        super::run_portable(kernel)
    }

    const LANES: usize = 8;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        F32x8([x; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller gives 8 readable elements.
        F32x8(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller gives 8 writable elements.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> Self {
        // SAFETY: the caller gives 8 readable elements.
        let x = unsafe { p.cast::<[f16; 8]>().read_unaligned() };
        each(|i| widen_f16(x[i].to_bits()))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut f16) {
        let x = self.0.map(f16::from_f32_const);
        // SAFETY: the caller gives 8 writable elements.
        unsafe { p.cast::<[f16; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> Self {
        // SAFETY: the caller gives 8 readable elements.
        let x = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        each(|i| f32::from_bits(u32::from(x[i]) << 16))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut bf16) {
        let x = self.0.map(bf16::from_f32);
        // SAFETY: the caller gives 8 writable elements.
        unsafe { p.cast::<[bf16; 8]>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: the caller gives 8 readable elements.
        let x = unsafe { p.cast::<[i8; 8]>().read_unaligned() };
        each(|i| f32::from(x[i]))
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        each(|i| self.0[i] + other.0[i])
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        each(|i| self.0[i] - other.0[i])
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        each(|i| self.0[i] * other.0[i])
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        each(|i| self.0[i] / other.0[i])
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        each(|i| self.0[i].sqrt())
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // Not `f32::mul_add`, which is a library call on machines without the instruction.
        each(|i| self.0[i] * b.0[i] + c.0[i])
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        each(|i| if self.0[i] > other.0[i] { self.0[i] } else { other.0[i] })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        each(|i| if self.0[i] < other.0[i] { self.0[i] } else { other.0[i] })
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding and taking away 1.5 * 2^23 leaves no room for a fraction; larger numbers have
        // none to begin with.
        const MAGIC: f32 = 12_582_912.0;
        each(|i| {
            let x = self.0[i];
            if x.abs() < 4_194_304.0 { (x + MAGIC) - MAGIC } else { x }
        })
    }
    #[inline(always)]
    fn scale_pow2(self, n: Self) -> Self {
        // In two factors, each a normal number.
        each(|i| {
            let n = n.0[i] as i32;
            let first = n >> 1;
            let pow2 = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
            self.0[i] * pow2(first) * pow2(n - first)
        })
    }
    #[inline(always)]
    fn keep(self, lanes: Range<usize>, other: Self) -> Self {
        each(|i| if lanes.contains(&i) { self.0[i] } else { other.0[i] })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let x = self.0;
        let [a, b, c, d] = [x[0] + x[4], x[1] + x[5], x[2] + x[6], x[3] + x[7]];
        (a + c) + (b + d)
    }
    #[inline(always)]
    fn max_lane(self) -> f32 {
        self.0.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    fn unzip(self, next: Self) -> (Self, Self) {
        let at = |i: usize| if i < 8 { self.0[i] } else { next.0[i - 8] };
        (each(|i| at(2 * i)), each(|i| at(2 * i + 1)))
    }
    #[inline(always)]
    fn zip(self, odd: Self) -> (Self, Self) {
        let at = |i: usize| if i.is_multiple_of(2) { self.0[i / 2] } else { odd.0[i / 2] };
        (each(at), each(|i| at(i + 8)))
    }
}
