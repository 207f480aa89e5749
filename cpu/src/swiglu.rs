//! The gated activation of the feed-forward block (Shazeer 2020, arXiv 2002.05202).

use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector, exp, get, put};

/// `out = gate / (1 + exp(-gate)) * up`, element by element.
///
/// f32 throughout. Overwrites. Stable for every finite gate: where `exp(-gate)` overflows, the
/// quotient is the zero that the true value, below 3e-37, is next to. Error: 6 ulp
/// (`tests/elementwise.rs`).
///
/// # Panics
/// When the lengths differ.
pub fn swiglu(isa: Isa, out: &mut [f32], gate: &[f32], up: &[f32]) {
    assert_eq!(out.len(), gate.len(), "swiglu: out and gate differ in length");
    assert_eq!(out.len(), up.len(), "swiglu: out and up differ in length");
    simd::run(isa, SwiGlu { out, gate, up });
}

struct SwiGlu<'a> {
    out: &'a mut [f32],
    gate: &'a [f32],
    up: &'a [f32],
}

impl Kernel for SwiGlu<'_> {
    type Out = ();
    #[inline(always)]
    fn run<V: Vector>(self) {
        let one = V::splat(1.0);
        let inputs = self.gate.chunks(V::LANES).zip(self.up.chunks(V::LANES));
        for (out, (gate, up)) in self.out.chunks_mut(V::LANES).zip(inputs) {
            let gate = get::<V>(gate);
            let silu = gate.div(one.add(exp(V::splat(0.0).sub(gate))));
            put(out, silu.mul(get(up)));
        }
    }
}
