//! Conversions between f32 and the 16-bit formats: IEEE binary16 and bfloat16.
//!
//! Widening is exact. Narrowing rounds to nearest even; too large becomes infinite, NaN stays
//! NaN. The `bytes` variants read little-endian elements from a source of any alignment.

use crate::isa::Isa;
use crate::simd::{self, Elem, Kernel, Vector, get, put};
use half::{bf16, f16};

/// The bytes of some numbers, as this machine stores them.
pub fn bf16_bytes(x: &[bf16]) -> &[u8] {
    // SAFETY: bf16 has neither padding nor invalid bytes, u8 no alignment; the length is that of x.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u8>(), size_of_val(x)) }
}

/// The bytes of some numbers, as this machine stores them.
pub fn f32_bytes(x: &[f32]) -> &[u8] {
    // SAFETY: f32 has neither padding nor invalid bytes, u8 no alignment; the length is that of x.
    unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u8>(), size_of_val(x)) }
}

/// `out = x`, exact. Overwrites.
///
/// # Panics
/// When the lengths differ.
pub fn f16_to_f32(isa: Isa, out: &mut [f32], x: &[f16]) {
    assert_eq!(out.len(), x.len(), "f16_to_f32: lengths differ");
    // SAFETY: the slices have one length.
    simd::run(isa, unsafe { Widen::new(out, x.as_ptr()) });
}

/// `out = x`, exact. Overwrites.
///
/// # Panics
/// When the lengths differ.
pub fn bf16_to_f32(isa: Isa, out: &mut [f32], x: &[bf16]) {
    assert_eq!(out.len(), x.len(), "bf16_to_f32: lengths differ");
    // SAFETY: the slices have one length.
    simd::run(isa, unsafe { Widen::new(out, x.as_ptr()) });
}

/// `out` = the f16 numbers in `x`, exact. Overwrites.
///
/// # Panics
/// When `x` is not two bytes an element of `out`.
pub fn f16_bytes_to_f32(isa: Isa, out: &mut [f32], x: &[u8]) {
    assert_eq!(2 * out.len(), x.len(), "f16_bytes_to_f32: two bytes an element");
    // SAFETY: `x` has two bytes for each element of `out`.
    simd::run(isa, unsafe { Widen::new(out, x.as_ptr().cast::<f16>()) });
}

/// `out` = the bf16 numbers in `x`, exact. Overwrites.
///
/// # Panics
/// When `x` is not two bytes an element of `out`.
pub fn bf16_bytes_to_f32(isa: Isa, out: &mut [f32], x: &[u8]) {
    assert_eq!(2 * out.len(), x.len(), "bf16_bytes_to_f32: two bytes an element");
    // SAFETY: `x` has two bytes for each element of `out`.
    simd::run(isa, unsafe { Widen::new(out, x.as_ptr().cast::<bf16>()) });
}

/// `out = x`, rounded to nearest even. Overwrites.
///
/// # Panics
/// When the lengths differ.
pub fn f32_to_f16(isa: Isa, out: &mut [f16], x: &[f32]) {
    assert_eq!(out.len(), x.len(), "f32_to_f16: lengths differ");
    simd::run(isa, Narrow { out, x });
}

/// `out = x`, rounded to nearest even. Overwrites.
///
/// # Panics
/// When the lengths differ.
pub fn f32_to_bf16(isa: Isa, out: &mut [bf16], x: &[f32]) {
    assert_eq!(out.len(), x.len(), "f32_to_bf16: lengths differ");
    simd::run(isa, Narrow { out, x });
}

/// The source is a pointer because it may be unaligned; `new` promises its length.
struct Widen<'a, H> {
    out: &'a mut [f32],
    x: *const H,
}

impl<'a, H> Widen<'a, H> {
    /// # Safety
    /// `out.len()` elements must be readable at `x` while the value lives, at any alignment.
    unsafe fn new(out: &'a mut [f32], x: *const H) -> Self {
        Widen { out, x }
    }
}

impl<H: Elem> Kernel for Widen<'_, H> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let n = self.out.len();
        for (i, out) in self.out.chunks_mut(V::LANES).enumerate() {
            let at = i * V::LANES;
            let v: V = if at + V::LANES <= n {
                // SAFETY: `new` promised n elements, and LANES of them are left.
                unsafe { H::load(self.x.add(at)) }
            } else {
                let mut lanes = [H::ZERO; 16];
                for (j, lane) in lanes[..n - at].iter_mut().enumerate() {
                    // SAFETY: at + j < n, the promised length.
                    *lane = unsafe { self.x.add(at + j).read_unaligned() };
                }
                // SAFETY: LANES is at most 16.
                unsafe { H::load(lanes.as_ptr()) }
            };
            put(out, v);
        }
    }
}

struct Narrow<'a, H> {
    out: &'a mut [H],
    x: &'a [f32],
}

impl<H: Elem> Kernel for Narrow<'_, H> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        for (out, x) in self.out.chunks_mut(V::LANES).zip(self.x.chunks(V::LANES)) {
            put(out, get::<V>(x));
        }
    }
}
