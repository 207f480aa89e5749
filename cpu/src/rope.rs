//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), applied to one token.

use crate::floats::FloatsMut;
use crate::isa::Isa;
use crate::simd::{self, Elem, Kernel, Vector, get, put};

/// Which two elements of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Elements 2j and 2j + 1: GGUF and Meta's own files.
    Interleaved,
    /// Elements j and j + rope_dim / 2: Hugging Face files.
    Half,
}

/// Rotates pair j of every head by the angle whose cosine and sine are `cos[j]` and `sin[j]`:
/// `(a, b) = (a cos - b sin, b cos + a sin)`.
///
/// x is one token, `[n_heads, head_dim]`, f32. The first `rope_dim = 2 * cos.len()` elements of
/// each head are overwritten, the others stay. Error: 2 epsilons of `|a| + |b|`
/// (`tests/elementwise.rs`).
///
/// # Panics
/// When `cos` and `sin` differ in length, `rope_dim > head_dim`, or x is not whole heads.
pub fn rope(isa: Isa, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], pairing: Pairing) {
    rope_floats(isa, FloatsMut::F32(x), head_dim, cos, sin, pairing, false);
}

/// [`rope`] of a token stored in either type, forth, or back with `inverse`: the rotation by the
/// opposite angles, which is also what takes the gradient of the result to that of x.
///
/// Arithmetic in f32; a bf16 result is rounded once more (`tests/gradients_rows.rs`).
///
/// # Panics
/// As [`rope`].
pub fn rope_floats(
    isa: Isa,
    x: FloatsMut<'_>,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    pairing: Pairing,
    inverse: bool,
) {
    assert_eq!(cos.len(), sin.len(), "rope: cos and sin differ in length");
    assert!(2 * cos.len() <= head_dim, "rope: {} pairs in a head of {head_dim}", cos.len());
    if x.is_empty() {
        return;
    }
    assert!(
        head_dim > 0 && x.len().is_multiple_of(head_dim),
        "rope: {} elements are not heads of {head_dim}",
        x.len()
    );
    let sign = if inverse { -1.0 } else { 1.0 };
    match (x, pairing) {
        (FloatsMut::F32(x), Pairing::Half) => {
            simd::run(isa, Half { x, head_dim, cos, sin, sign });
        }
        (FloatsMut::F32(x), Pairing::Interleaved) => {
            simd::run(isa, Interleaved { x, head_dim, cos, sin, sign });
        }
        (FloatsMut::Bf16(x), Pairing::Half) => {
            simd::run(isa, Half { x, head_dim, cos, sin, sign });
        }
        (FloatsMut::Bf16(x), Pairing::Interleaved) => {
            simd::run(isa, Interleaved { x, head_dim, cos, sin, sign });
        }
    }
}

#[inline(always)]
fn rotate<V: Vector>(a: V, b: V, cos: V, sin: V) -> (V, V) {
    (a.mul(cos).sub(b.mul(sin)), b.mul(cos).add(a.mul(sin)))
}

struct Half<'a, E> {
    x: &'a mut [E],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    sign: f32,
}

impl<E: Elem> Kernel for Half<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let (pairs, sign) = (self.cos.len(), V::splat(self.sign));
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let (first, second) = head[..2 * pairs].split_at_mut(pairs);
            let x = first.chunks_mut(V::LANES).zip(second.chunks_mut(V::LANES));
            let angles = self.cos.chunks(V::LANES).zip(self.sin.chunks(V::LANES));
            for ((a, b), (cos, sin)) in x.zip(angles) {
                let sin = get::<V>(sin).mul(sign);
                let (new_a, new_b) = rotate::<V>(get(a), get(b), get(cos), sin);
                put(a, new_a);
                put(b, new_b);
            }
        }
    }
}

struct Interleaved<'a, E> {
    x: &'a mut [E],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    sign: f32,
}

impl<E: Elem> Kernel for Interleaved<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let (rope_dim, sign) = (2 * self.cos.len(), V::splat(self.sign));
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let x = head[..rope_dim].chunks_mut(2 * V::LANES);
            let angles = self.cos.chunks(V::LANES).zip(self.sin.chunks(V::LANES));
            for (x, (cos, sin)) in x.zip(angles) {
                let (lower, upper) = x.split_at_mut(x.len().min(V::LANES));
                let (a, b) = get::<V>(lower).unzip(get(upper));
                let (a, b) = rotate::<V>(a, b, get(cos), get::<V>(sin).mul(sign));
                let (new_lower, new_upper) = a.zip(b);
                put(lower, new_lower);
                put(upper, new_upper);
            }
        }
    }
}
