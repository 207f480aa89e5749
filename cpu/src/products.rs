//! Products of activation rows with several weight matrices of one input: the input is rounded
//! once, and the team splits all output features in one go.

use crate::isa::Isa;
use crate::matmul::{
    Bf16Acts, DenseActs, DenseMatrix, DenseScratch, Nf4Scratch, dense_product, nf4_product,
    wants_bf16,
};
use crate::qmatmul::{
    BLOCK, BlockMeta, PackedMatrix, PanelScratch, QActs, ROWS, panels_product,
    panels_product_exact, quantize,
};
use crate::quant::nf4::Nf4Matrix;
use crate::team::{SharedMut, Team, part};
use std::ops::Range;

/// Output features that one member of the team takes at once: two panels.
const UNIT: usize = 2 * ROWS;
/// From this many rows on the team shares the rounding of activations.
const ROWS_TO_SHARE: usize = 8;

/// A weight matrix [n, k] that products can be computed with.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// Quantised panels.
    Packed(&'a PackedMatrix),
    /// F32, F16 or BF16 elements.
    Dense(DenseMatrix<'a>),
    /// NF4.
    Nf4(&'a Nf4Matrix),
}

impl Weights<'_> {
    /// Output features.
    pub fn n(&self) -> usize {
        match self {
            Weights::Packed(w) => w.n(),
            Weights::Dense(w) => w.n,
            Weights::Nf4(w) => w.n(),
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match self {
            Weights::Packed(w) => w.k(),
            Weights::Dense(w) => w.k,
            Weights::Nf4(w) => w.k(),
        }
    }
}

/// What one member of the team works in.
#[derive(Default)]
struct MemberScratch {
    panels: PanelScratch,
    dense: DenseScratch,
    nf4: Nf4Scratch,
}

/// Buffers of products, grown on first use and then reused.
#[derive(Default)]
pub struct Scratch {
    rounded: QActs,
    bf16: Bf16Acts,
    members: Vec<MemberScratch>,
}

impl Scratch {
    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let bytes = |member: &MemberScratch| {
            member.panels.bytes() + member.dense.bytes() + member.nf4.bytes()
        };
        let members: usize = self.members.iter().map(bytes).sum();
        self.rounded.bytes() + self.bf16.bytes() + members
    }

    /// Bytes held at most after products of up to `m` rows of up to `k` inputs by a team of
    /// `members`, but for those with NF4 weights.
    pub fn most_bytes(m: usize, k: usize, members: usize) -> usize {
        // Codes and what comes with each 32 of them, and BF16. A vector that grew step by step may
        // hold twice what it was asked for.
        let grown = QActs::bytes_of(m, k) + Bf16Acts::bytes_of(m, k);
        2 * (grown + members * PanelScratch::bytes_of(k)) + members * DenseScratch::bytes_of(k)
    }

    /// Bytes that such products with NF4 weights hold besides.
    pub fn most_nf4_bytes(m: usize, k: usize, members: usize) -> usize {
        members * Nf4Scratch::bytes_of(m, k)
    }
}

/// One matrix and where its product goes, [m, n].
pub struct Product<'a> {
    /// The weights.
    pub w: Weights<'a>,
    /// Overwritten.
    pub out: &'a mut [f32],
}

/// `out = x wᵀ` for each product (at most [`MOST`]); `x` is [m, k].
///
/// With `exact`, weights meet the f32 activations unrounded. Without it quantised weights meet
/// int8 activations, and BF16 weights BF16 ones where the machine multiplies those; NF4 weights
/// always meet f32 ones. The same bits for any number of rows and members.
///
/// # Panics
/// When a shape does not fit.
pub fn products(
    isa: Isa,
    team: &Team,
    scratch: &mut Scratch,
    x: &[f32],
    m: usize,
    exact: bool,
    products: &mut [Product<'_>],
) {
    if m == 0 || products.is_empty() {
        return;
    }
    let k = products[0].w.k();
    assert_eq!(x.len(), m * k, "activations [{m}, {k}]");
    for p in products.iter() {
        assert!(p.w.k() == k && p.out.len() == m * p.w.n(), "product [{m}, {}]", p.w.n());
    }
    let low = |w: &Weights<'_>| matches!(w, Weights::Dense(w) if wants_bf16(isa, w.dtype));
    if !exact && products.iter().any(|p| matches!(p.w, Weights::Packed(_))) {
        round(isa, team, &mut scratch.rounded, x, m, k);
    }
    let with_bf16 = !exact && products.iter().any(|p| low(&p.w));
    if with_bf16 {
        scratch.bf16.round(isa, team, x, m, k);
    }
    scratch.members.resize_with(team.len(), MemberScratch::default);

    let (rounded, bf16) = (&scratch.rounded, &scratch.bf16);
    let scratches = SharedMut::new(&mut scratch.members);
    let targets = Targets::new(products);
    let members = team.len();
    team.run(&|member| {
        let mine = part(targets.units, 1, member, members);
        // SAFETY: one scratch a member.
        let scratch = &mut unsafe { scratches.slice(member..member + 1) }[0];
        for (w, out, span) in targets.list.iter().flatten() {
            let (from, to) = (mine.start.max(span.start), mine.end.min(span.end));
            if from >= to {
                continue;
            }
            let units = from - span.start..to - span.start;
            match w {
                Weights::Packed(w) => {
                    let panels = 2 * units.start..(2 * units.end).min(w.n_panels());
                    // SAFETY: a unit, and with it its output columns, belongs to one member.
                    unsafe {
                        if exact {
                            panels_product_exact(isa, out, w, x, panels);
                        } else {
                            panels_product(isa, out, w, rounded, m, panels, &mut scratch.panels);
                        }
                    }
                }
                Weights::Dense(w) => {
                    let rows = units.start * UNIT..(units.end * UNIT).min(w.n);
                    let low = with_bf16 && wants_bf16(isa, w.dtype);
                    let acts = DenseActs { f32: x, bf16: low.then_some(bf16) };
                    // SAFETY: as above.
                    unsafe { dense_product(isa, out, *w, acts, rows, &mut scratch.dense) };
                }
                Weights::Nf4(w) => {
                    let rows = units.start * UNIT..(units.end * UNIT).min(w.n());
                    let MemberScratch { dense, nf4, .. } = scratch;
                    // SAFETY: as above.
                    unsafe { nf4_product(isa, out, w, x, rows, nf4, dense) };
                }
            }
        }
    });
}

/// Matrices that share an input at most: query, key and value.
pub const MOST: usize = 3;

/// Weights, their product, and its work units.
type Target<'a> = (Weights<'a>, SharedMut<'a, f32>, Range<usize>);

/// The products as members see them, with the span of work units of each.
struct Targets<'a> {
    list: [Option<Target<'a>>; MOST],
    units: usize,
}

impl<'a> Targets<'a> {
    fn new(products: &'a mut [Product<'_>]) -> Self {
        assert!(products.len() <= MOST, "{} products, at most {MOST}", products.len());
        let mut targets = Targets { list: [const { None }; MOST], units: 0 };
        for (target, p) in targets.list.iter_mut().zip(products) {
            let start = targets.units;
            targets.units += p.w.n().div_ceil(UNIT);
            *target = Some((p.w, SharedMut::new(p.out), start..targets.units));
        }
        targets
    }
}

/// Rounds `x` [m, k] to int8.
fn round(isa: Isa, team: &Team, acts: &mut QActs, x: &[f32], m: usize, k: usize) {
    acts.resize(m, k);
    let n_blocks = k / BLOCK;
    let (codes, meta) = acts.rows_mut(m);
    let meta: SharedMut<'_, BlockMeta> = SharedMut::new(meta);
    team.split_rows(codes, k, ROWS_TO_SHARE, &|rows, codes| {
        // SAFETY: split_rows hands every row to one member only.
        let meta = unsafe { meta.slice(rows.start * n_blocks..rows.end * n_blocks) };
        quantize(isa, codes, meta, &x[rows.start * k..rows.end * k]);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert;
    use crate::matmul::Dense;
    use crate::testing::Gen;

    #[test]
    fn nf4_weights_count_as_their_decoded_rows() {
        let mut rng = Gen::new(4);
        for isa in Isa::available() {
            for (n, k) in [(70, 192), (33, 77), (1, 64)] {
                let w = rng.normals(n * k);
                let solo = Team::new(1).unwrap();
                let nf4 = Nf4Matrix::of(&solo, &w, [n, k], n % 2 == 0);
                let mut values = vec![0.0; n * k];
                nf4.decode(isa, &mut values, 0);
                let bytes = convert::f32_bytes(&values);
                let dense = DenseMatrix { bytes, dtype: Dense::F32, n, k };
                for m in [1, 5, 40] {
                    let x = rng.normals(m * k);
                    let product = |w: Weights<'_>, threads: usize, exact: bool| {
                        let team = Team::new(threads).unwrap();
                        let mut scratch = Scratch::default();
                        // Beside another matrix, whose units come first.
                        let (mut first, mut out) = (vec![0.0; m * n], vec![f32::NAN; m * n]);
                        let list = &mut [
                            Product { w: Weights::Dense(dense), out: &mut first },
                            Product { w, out: &mut out },
                        ];
                        products(isa, &team, &mut scratch, &x, m, exact, list);
                        let most = Scratch::most_bytes(m, k, threads);
                        let most = most + Scratch::most_nf4_bytes(m, k, threads);
                        assert!(scratch.bytes() <= most, "{} bytes", scratch.bytes());
                        assert!(first.iter().chain(&out).all(|x| x.is_finite()));
                        out
                    };
                    let wanted = product(Weights::Dense(dense), 1, true);
                    for (threads, exact) in [(1, false), (3, false), (2, true)] {
                        let found = product(Weights::Nf4(&nf4), threads, exact);
                        assert!(found == wanted, "{isa} [{m}, {n}, {k}] {threads}");
                    }
                }
            }
        }
    }
}
