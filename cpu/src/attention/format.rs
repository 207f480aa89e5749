//! How vectors of keys and values are read from each format.

use super::kv::{BLOCK, GROUP, Pair};
use crate::buffer::Plain;
use crate::simd::Vector;
use half::{bf16, f16};

/// Keys and values of all heads, or after [`head`](Format::head) of one head.
pub(super) trait Format: Copy + Sync {
    /// Dimensions that share a scale.
    const GROUP: usize;
    /// Bytes of a number.
    const BYTES: usize;

    /// The part of one head.
    fn head(self, head: usize, n_kv_heads: usize) -> Self;

    /// The scales of one vector of positions in a group of dimensions.
    /// # Safety
    /// `self` is one head, `block` a block of it, `group` a group of its dimensions, and
    /// `lane + V::LANES <= 16`.
    unsafe fn k_scale<V: Vector>(self, block: usize, group: usize, lane: usize) -> V;

    /// Dimension `d` of the keys at positions `16 * block + lane ..`.
    /// # Safety
    /// As for `k_scale`, whose result for d's group is `scale`, and `d < head_dim`.
    unsafe fn k<V: Vector>(self, block: usize, d: usize, lane: usize, scale: V) -> V;

    /// Dimensions `d..` of the value at `pos`, zeros from `head_dim` on.
    /// # Safety
    /// `self` is one head, `pos` a position of it, and d a multiple of `V::LANES` below the width.
    unsafe fn v<V: Vector>(self, pos: usize, d: usize) -> V;

    /// Where the keys of a block of positions begin, also of one that is not there: for hints.
    fn k_at(self, block: usize) -> *const u8;

    /// Where the value at a position begins, likewise.
    fn v_at(self, pos: usize) -> *const u8;
}

/// A number that is widened by itself.
pub(super) trait Element: Plain {
    /// # Safety
    /// `V::LANES` elements must be readable at `p`.
    unsafe fn widen<V: Vector>(p: *const Self) -> V;
}

impl Element for f16 {
    #[inline(always)]
    unsafe fn widen<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(p) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    unsafe fn widen<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(p) }
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn widen<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p) }
    }
}

fn share<T>(all: &[T], index: usize, parts: usize) -> &[T] {
    let n = all.len() / parts;
    &all[index * n..][..n]
}

/// The formats without scales.
#[derive(Clone, Copy)]
pub(super) struct Unscaled<'a, E> {
    k: &'a [E],
    v: &'a [E],
    head_dim: usize,
    width: usize,
}

impl<'a, E: Element> Unscaled<'a, E> {
    pub(super) fn new(pair: &'a Pair<E>, head_dim: usize, width: usize) -> Self {
        Unscaled { k: &pair.k, v: &pair.v, head_dim, width }
    }
}

impl<E: Element> Format for Unscaled<'_, E> {
    const GROUP: usize = usize::MAX;
    const BYTES: usize = size_of::<E>();

    #[inline(always)]
    fn head(self, head: usize, n_kv_heads: usize) -> Self {
        let (k, v) = (share(self.k, head, n_kv_heads), share(self.v, head, n_kv_heads));
        Unscaled { k, v, ..self }
    }
    #[inline(always)]
    unsafe fn k_scale<V: Vector>(self, _: usize, _: usize, _: usize) -> V {
        V::splat(1.0)
    }
    #[inline(always)]
    unsafe fn k<V: Vector>(self, block: usize, d: usize, lane: usize, _: V) -> V {
        let at = (block * self.head_dim + d) * BLOCK + lane;
        debug_assert!(at + V::LANES <= self.k.len());
        // SAFETY: the caller's promise keeps the vector inside the block.
        unsafe { E::widen(self.k.as_ptr().add(at)) }
    }
    #[inline(always)]
    unsafe fn v<V: Vector>(self, pos: usize, d: usize) -> V {
        let at = pos * self.width + d;
        debug_assert!(at + V::LANES <= self.v.len());
        // SAFETY: the caller's promise keeps the vector inside the row; the width is a multiple
        // of LANES.
        unsafe { E::widen(self.v.as_ptr().add(at)) }
    }
    #[inline(always)]
    fn k_at(self, block: usize) -> *const u8 {
        self.k.as_ptr().wrapping_add(block * self.head_dim * BLOCK).cast()
    }
    #[inline(always)]
    fn v_at(self, pos: usize) -> *const u8 {
        self.v.as_ptr().wrapping_add(pos * self.width).cast()
    }
}

/// `q8_0`: codes and scales.
#[derive(Clone, Copy)]
pub(super) struct Scaled<'a> {
    codes: Unscaled<'a, i8>,
    k_scales: &'a [f32],
    v_scales: &'a [f32],
    groups: usize,
}

impl Element for i8 {
    #[inline(always)]
    unsafe fn widen<V: Vector>(p: *const Self) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_i8(p) }
    }
}

impl<'a> Scaled<'a> {
    pub(super) fn new(
        codes: &'a Pair<i8>,
        scales: &'a Pair<f32>,
        head_dim: usize,
        width: usize,
    ) -> Self {
        Scaled {
            codes: Unscaled::new(codes, head_dim, width),
            k_scales: &scales.k,
            v_scales: &scales.v,
            groups: head_dim.div_ceil(GROUP),
        }
    }
}

impl Format for Scaled<'_> {
    const GROUP: usize = GROUP;
    const BYTES: usize = 1;

    #[inline(always)]
    fn head(self, head: usize, n_kv_heads: usize) -> Self {
        Scaled {
            codes: self.codes.head(head, n_kv_heads),
            k_scales: share(self.k_scales, head, n_kv_heads),
            v_scales: share(self.v_scales, head, n_kv_heads),
            groups: self.groups,
        }
    }
    #[inline(always)]
    unsafe fn k_scale<V: Vector>(self, block: usize, group: usize, lane: usize) -> V {
        let at = (block * self.groups + group) * BLOCK + lane;
        debug_assert!(at + V::LANES <= self.k_scales.len());
        // SAFETY: the caller's promise keeps the vector inside the block's scales.
        unsafe { V::load(self.k_scales.as_ptr().add(at)) }
    }
    #[inline(always)]
    unsafe fn k<V: Vector>(self, block: usize, d: usize, lane: usize, scale: V) -> V {
        // SAFETY: the caller's promise.
        unsafe { self.codes.k(block, d, lane, scale) }.mul(scale)
    }
    #[inline(always)]
    unsafe fn v<V: Vector>(self, pos: usize, d: usize) -> V {
        // A vector never crosses a group: both its start and 32 are multiples of LANES. The last
        // 16 lanes of the width belong to the last group.
        let at = pos * self.groups + d / GROUP;
        debug_assert!(at < self.v_scales.len());
        // SAFETY: the caller's promise on pos and d.
        let scale = unsafe { *self.v_scales.get_unchecked(at) };
        // SAFETY: the caller's promise.
        unsafe { self.codes.v::<V>(pos, d) }.mul(V::splat(scale))
    }
    #[inline(always)]
    fn k_at(self, block: usize) -> *const u8 {
        self.codes.k_at(block)
    }
    #[inline(always)]
    fn v_at(self, pos: usize) -> *const u8 {
        self.codes.v_at(pos)
    }
}
