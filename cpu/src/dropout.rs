//! Dropout (Srivastava et al. 2014) whose mask is a function of a key and a position, so nothing
//! is saved for the backward pass and the bits do not depend on how work is split.

use crate::floats::{Floats, FloatsMut};
use crate::isa::Isa;
use crate::simd::{self, Kernel, Sink, Source, Vector, get};

/// `out[i] = x[i] / (1 - p)` where element `first + i` of the mask of `key` is kept, else
/// `x[i] * 0`; each is kept with probability 1 - p.
///
/// The mask is a hash of key and position: the same call gives the same mask, and the backward
/// pass is this function on the gradient of `out`. Arithmetic in f32, one product; p is met to
/// 2^-32. Overwrites.
///
/// # Panics
/// When the lengths differ or p is not in [0, 1).
pub fn dropout(isa: Isa, out: FloatsMut<'_>, x: Floats<'_>, p: f32, key: u64, first: u64) {
    assert_eq!(out.len(), x.len(), "dropout: lengths differ");
    let mask = Mask::new(p, key);
    match (out, x) {
        (FloatsMut::F32(out), Floats::F32(x)) => simd::run(isa, Dropout { out, x, mask, first }),
        (FloatsMut::F32(out), Floats::Bf16(x)) => simd::run(isa, Dropout { out, x, mask, first }),
        (FloatsMut::Bf16(out), Floats::F32(x)) => simd::run(isa, Dropout { out, x, mask, first }),
        (FloatsMut::Bf16(out), Floats::Bf16(x)) => simd::run(isa, Dropout { out, x, mask, first }),
    }
}

/// The mask of a key, in the numbers that a kernel on any device makes it from.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// The key, its bits spread.
    pub key: u64,
    /// Elements whose hash is below are dropped.
    pub limit: u32,
    /// What the others are multiplied with.
    pub factor: f32,
}

impl Mask {
    /// The mask of `key` that drops with probability `p`.
    ///
    /// # Panics
    /// When p is not in [0, 1).
    pub fn new(p: f32, key: u64) -> Mask {
        assert!((0.0..1.0).contains(&p), "dropout: probability {p} is not in [0, 1)");
        // p < 1 in f32 is at most 1 - 2^-24, so the product is below 2^32.
        let limit = (f64::from(p) * 4_294_967_296.0).round() as u32;
        let factor = (1.0 / (1.0 - f64::from(p))) as f32;
        Mask { key: spread(key), limit, factor }
    }

    /// What element `at` is multiplied with.
    ///
    /// The lower half of the position and of the key make a first hash, the upper halves change it
    /// and it is hashed again: two keys whose lower halves differ in a few bits would otherwise
    /// have one mask in another order.
    #[inline(always)]
    fn factor(&self, at: u64) -> f32 {
        let low = mix(at as u32 ^ self.key as u32);
        let hash = mix(low.wrapping_add((at >> 32) as u32) ^ (self.key >> 32) as u32);
        if hash >= self.limit { self.factor } else { 0.0 }
    }
}

/// A bijection of 32 bits in which every bit depends on every other: the last steps of MurmurHash3
/// (Appleby, public domain).
#[inline(always)]
fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    x = x.wrapping_mul(0xc2b2_ae35);
    x ^ x >> 16
}

/// The same for 64 bits, so that keys that are counters give unlike halves: the output function of
/// SplitMix64 (Steele, Lea and Flood 2014).
fn spread(key: u64) -> u64 {
    let mut x = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

struct Dropout<O, X> {
    out: O,
    x: X,
    mask: Mask,
    first: u64,
}

impl<O: Sink, X: Source> Kernel for Dropout<O, X> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        for at in (0..self.x.len()).step_by(V::LANES) {
            let mut factors = [0.0f32; 16];
            for (j, factor) in factors.iter_mut().enumerate().take(V::LANES) {
                *factor = self.mask.factor(self.first.wrapping_add((at + j) as u64));
            }
            self.out.store(at, self.x.load::<V>(at).mul(get(&factors)));
        }
    }
}
