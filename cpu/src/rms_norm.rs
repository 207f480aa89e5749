//! Root-mean-square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467), forward and
//! backward.

use crate::floats::{Floats, FloatsMut};
use crate::isa::Isa;
use crate::simd::{self, Kernel, Sink, Source, Vector};

/// `out = w * (x / sqrt(mean(x^2) + eps))` for every row of `w.len()` elements.
///
/// f32 in, out and in between; the sum of squares runs in four vectors of partial sums, so its
/// order depends on the row's length alone. Overwrites. Error: at most
/// `(n / 32 + 8)` epsilons of each element for rows of n (`tests/elementwise.rs`).
///
/// # Panics
/// When `out` and `x` differ in length or are not whole rows.
pub fn rms_norm(isa: Isa, out: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
    rms_norm_floats(isa, FloatsMut::F32(out), Floats::F32(x), w, eps);
}

/// [`rms_norm`] of numbers stored in either type; a bf16 result is rounded once more.
///
/// # Panics
/// When `out` and `x` differ in length or are not whole rows.
pub fn rms_norm_floats(isa: Isa, out: FloatsMut<'_>, x: Floats<'_>, w: &[f32], eps: f32) {
    assert_eq!(out.len(), x.len(), "rms_norm: out and x differ in length");
    if x.is_empty() {
        return;
    }
    check_rows("rms_norm", x.len(), w.len());
    match (out, x) {
        (FloatsMut::F32(out), Floats::F32(x)) => simd::run(isa, RmsNorm { out, x, w, eps }),
        (FloatsMut::Bf16(out), Floats::Bf16(x)) => simd::run(isa, RmsNorm { out, x, w, eps }),
        (out, x) => simd::run(isa, RmsNorm { out, x, w, eps }),
    }
}

/// The gradients of [`rms_norm`]: with `r = 1 / sqrt(mean(x^2) + eps)` of a row of n elements,
///
/// `dx = r * (w * dout - x * r^2 * sum(w * dout * x) / n)` and `dw = sum over rows(dout * x * r)`.
///
/// Arithmetic in f32; both sums over a row run in four vectors of partial sums. `dx` is
/// overwritten, or added to with `dx_acc`; `dw` is added to, row after row, so callers that share
/// rows among threads hand in one partial `dw` for each fixed block of rows. Error of dx:
/// `(n / 32 + 12)` epsilons of `r * (|w dout| + |x| r^2 sum(|w dout x|) / n)`; of dw:
/// `(n / 32 + rows + 8)` epsilons of the sum's absolute terms; a result stored as bf16 is rounded
/// once more (`tests/gradients_rows.rs`).
///
/// # Panics
/// When the lengths differ or are not whole rows, or `dw` is not as long as `w`.
#[expect(clippy::too_many_arguments, reason = "two results, three inputs, and how to add")]
pub fn rms_norm_bwd(
    isa: Isa,
    dx: FloatsMut<'_>,
    dx_acc: bool,
    dw: Option<&mut [f32]>,
    dout: Floats<'_>,
    x: Floats<'_>,
    w: &[f32],
    eps: f32,
) {
    assert_eq!(dx.len(), x.len(), "rms_norm_bwd: dx and x differ in length");
    assert_eq!(dout.len(), x.len(), "rms_norm_bwd: dout and x differ in length");
    if let Some(dw) = &dw {
        assert_eq!(dw.len(), w.len(), "rms_norm_bwd: dw and w differ in length");
    }
    if x.is_empty() {
        return;
    }
    check_rows("rms_norm_bwd", x.len(), w.len());
    match (dx, dout, x) {
        (FloatsMut::F32(dx), Floats::F32(dout), Floats::F32(x)) => {
            simd::run(isa, RmsNormBwd { dx, dx_acc, dw, dout, x, w, eps });
        }
        (FloatsMut::Bf16(dx), Floats::Bf16(dout), Floats::Bf16(x)) => {
            simd::run(isa, RmsNormBwd { dx, dx_acc, dw, dout, x, w, eps });
        }
        (dx, dout, x) => simd::run(isa, RmsNormBwd { dx, dx_acc, dw, dout, x, w, eps }),
    }
}

fn check_rows(what: &str, len: usize, n: usize) {
    assert!(n > 0 && len.is_multiple_of(n), "{what}: {len} elements are not rows of {n}");
}

struct RmsNorm<'a, O, X> {
    out: O,
    x: X,
    w: &'a [f32],
    eps: f32,
}

impl<O: Sink, X: Source> Kernel for RmsNorm<'_, O, X> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let n = self.w.len();
        for row in 0..self.x.len() / n {
            let range = row * n..(row + 1) * n;
            let (mut out, x) = (self.out.part(range.clone()), self.x.part(range));
            let mean = sum_of_products::<V>(n, |at| (x.load(at), x.load(at))) / n as f32;
            let factor = V::splat(1.0 / (mean + self.eps).sqrt());
            for at in (0..n).step_by(V::LANES) {
                out.store(at, x.load::<V>(at).mul(factor).mul(self.w.load(at)));
            }
        }
    }
}

struct RmsNormBwd<'a, D, G, X> {
    dx: D,
    dx_acc: bool,
    dw: Option<&'a mut [f32]>,
    dout: G,
    x: X,
    w: &'a [f32],
    eps: f32,
}

impl<D: Sink, G: Source, X: Source> Kernel for RmsNormBwd<'_, D, G, X> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(mut self) {
        let (n, w) = (self.w.len(), self.w);
        for row in 0..self.x.len() / n {
            let range = row * n..(row + 1) * n;
            let (dout, x) = (self.dout.part(range.clone()), self.x.part(range.clone()));
            let mut dx = self.dx.part(range);
            let mean = sum_of_products::<V>(n, |at| (x.load(at), x.load(at))) / n as f32;
            let dot =
                sum_of_products::<V>(n, |at| (dout.load::<V>(at).mul(w.load(at)), x.load(at)));
            let r = 1.0 / (mean + self.eps).sqrt();
            // With xhat = x r: dx = r (w dout - xhat mean(w dout xhat)). No power of r above the
            // first is formed, which for tiny rows would be large.
            let (r, mean_dot) = (V::splat(r), V::splat(r * dot / n as f32));
            for at in (0..n).step_by(V::LANES) {
                let (dout, xhat) = (dout.load::<V>(at), x.load::<V>(at).mul(r));
                let inner = dout.mul(w.load(at)).sub(xhat.mul(mean_dot));
                let d = inner.mul(r);
                dx.store(at, if self.dx_acc { dx.load::<V>(at).add(d) } else { d });
                if let Some(dw) = &mut self.dw {
                    dw.store(at, dout.mul_add(xhat, dw.load(at)));
                }
            }
        }
    }
}

/// `sum(a * b)` over n pairs, in four vectors of partial sums.
#[inline(always)]
fn sum_of_products<V: Vector>(n: usize, load: impl Fn(usize) -> (V, V)) -> f32 {
    let mut sums = [V::splat(0.0); 4];
    for quad in (0..n).step_by(4 * V::LANES) {
        for (k, sum) in sums.iter_mut().enumerate() {
            let at = quad + k * V::LANES;
            if at < n {
                let (a, b) = load(at);
                *sum = a.mul_add(b, *sum);
            }
        }
    }
    let [a, b, c, d] = sums;
    a.add(b).add(c.add(d)).sum()
}
