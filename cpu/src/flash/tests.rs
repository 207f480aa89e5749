//! Forward and backward against the f64 reference, at every level and in both stored types.

use super::*;
use crate::floats::{Floats, FloatsMut};
use crate::isa::Isa;
use crate::reference::{
    AttentionRowsShape, attention_rows, attention_rows_bwd, attention_rows_bwd_sizes,
};
use crate::team::Team;
use crate::testing::{EPS, Gen, compare};
use half::bf16;

/// A block of numbers in either type.
#[derive(Clone, Debug)]
enum Block {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Block {
    fn new(x: &[f32], low: bool) -> Self {
        match low {
            false => Block::F32(x.to_vec()),
            true => Block::Bf16(x.iter().map(|&x| bf16::from_f32(x)).collect()),
        }
    }

    /// Numbers that an overwriting kernel must not leave.
    fn junk(n: usize, low: bool) -> Self {
        Block::new(&vec![777.0; n], low)
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Block::F32(x) => Floats::F32(x),
            Block::Bf16(x) => Floats::Bf16(x),
        }
    }

    fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Block::F32(x) => FloatsMut::F32(x),
            Block::Bf16(x) => FloatsMut::Bf16(x),
        }
    }

    fn to_f32(&self) -> Vec<f32> {
        match self {
            Block::F32(x) => x.clone(),
            Block::Bf16(x) => x.iter().map(|x| x.to_f32()).collect(),
        }
    }

    fn to_f64(&self) -> Vec<f64> {
        self.to_f32().into_iter().map(f64::from).collect()
    }
}

#[derive(Clone, Debug)]
struct Case {
    heads: [usize; 2],
    head_dim: usize,
    window: Option<usize>,
    spans: Vec<usize>,
    /// Factor of the queries.
    size: f32,
}

struct Inputs {
    q: Block,
    k: Block,
    v: Block,
    dout: Block,
}

#[derive(Clone)]
struct Outputs {
    out: Block,
    lse: Vec<f32>,
    grads: [Block; 3],
}

impl Outputs {
    /// Everything, for comparison of bits.
    fn bits(&self) -> Vec<u32> {
        let blocks = [&self.out, &self.grads[0], &self.grads[1], &self.grads[2]];
        let blocks = blocks.into_iter().flat_map(|block| block.to_f32());
        blocks.chain(self.lse.iter().copied()).map(f32::to_bits).collect()
    }
}

impl Case {
    fn shape(&self) -> Shape<'_> {
        Shape {
            n_heads: self.heads[0],
            n_kv_heads: self.heads[1],
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            spans: &self.spans,
        }
    }

    fn t(&self) -> usize {
        self.spans.iter().sum()
    }

    fn inputs(&self, seed: u64, low: bool) -> Inputs {
        let mut data = Gen::new(seed);
        let [n, m] = self.heads.map(|heads| self.t() * heads * self.head_dim);
        let q: Vec<f32> = data.normals(n).iter().map(|x| x * self.size).collect();
        Inputs {
            q: Block::new(&q, low),
            k: Block::new(&data.normals(m), low),
            v: Block::new(&data.normals(m), low),
            dout: Block::new(&data.normals(n), low),
        }
    }

    fn run(&self, isa: Isa, team: &Team, inputs: &Inputs, scratch: &mut Scratch) -> Outputs {
        let low = matches!(inputs.q, Block::Bf16(_));
        let shape = self.shape();
        let [n, m] = self.heads.map(|heads| self.t() * heads * self.head_dim);
        let Inputs { q, k, v, dout } = inputs;
        let (q, k, v) = (q.floats(), k.floats(), v.floats());
        let mut out = Block::junk(n, low);
        let mut lse = vec![777.0; self.t() * self.heads[0]];
        forward(isa, team, &shape, out.floats_mut(), &mut lse, q, k, v, scratch);
        let mut grads = [n, m, m].map(|n| Block::junk(n, low));
        let [dq, dk, dv] = &mut grads;
        let (dq, dk, dv) = (dq.floats_mut(), dk.floats_mut(), dv.floats_mut());
        let (dout, o) = (dout.floats(), out.floats());
        backward(isa, team, &shape, dq, dk, dv, dout, q, k, v, o, &lse, scratch);
        Outputs { out, lse, grads }
    }

    /// Holds `got` to the reference.
    ///
    /// With u half an epsilon: a score of absolute terms A is off by (head_dim + 2) u A, and a
    /// probability by that of its score, that of its row's normaliser, and u A for each of the
    /// two subtractions. Slopes carry the errors of p, dp and d. Sums over n terms add n u. A
    /// stored bf16 is off by 2^-9, twice of which is allowed, and d by as much of its terms.
    fn check(&self, isa: Isa, inputs: &Inputs, got: &Outputs) -> Result<(), String> {
        let low = matches!(inputs.q, Block::Bf16(_));
        let Inputs { q, k, v, dout } = inputs;
        let (q, k, v, dout) = (q.to_f64(), k.to_f64(), v.to_f64(), dout.to_f64());
        let shape = AttentionRowsShape {
            n_heads: self.heads[0],
            n_kv_heads: self.heads[1],
            head_dim: self.head_dim,
            scale: self.shape().scale.into(),
            window: self.window,
            spans: &self.spans,
        };
        let most = |x: &[f64]| x.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        let norm = |x: &[f64]| {
            let norms = x.chunks(self.head_dim).map(|x| x.iter().map(|x| x * x).sum::<f64>());
            norms.fold(0.0, f64::max).sqrt()
        };
        let score = norm(&q) * norm(&k) * shape.scale;
        let longest = self.spans.iter().max().copied().unwrap_or(0).min(self.window.unwrap_or(999));
        let terms = longest * self.heads[0] / self.heads[1];
        let u = EPS / 2.0;
        let exponent = (self.head_dim + 4) as f64 * score;
        let rel = u * (4.0 * exponent + 2.0 * terms as f64 + 2.0 * self.head_dim as f64 + 32.0);
        let stored = if low { 2f64.powi(-8) } else { 0.0 };

        let [out, lse] = attention_rows(&shape, &q, &k, &v);
        let positive: Vec<f64> = v.iter().map(|v| v.abs()).collect();
        let [out_sizes, _] = attention_rows(&shape, &q, &k, &positive);
        let grads = attention_rows_bwd(&shape, &dout, &q, &k, &v);
        let sizes = attention_rows_bwd_sizes(&shape, &dout, &q, &k, &v);

        let lse_tol = u * (2.0 * exponent + terms as f64 + 16.0) + u * most(&lse);
        let mut results = vec![("lse", compare(&got.lse, &lse, |_| lse_tol))];
        let tol = |i: usize| rel * out_sizes[i] + stored * out[i].abs();
        results.push(("out", compare(&got.out.to_f32(), &out, tol)));
        for (which, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
            let (want, size) = (&grads[which], &sizes[which]);
            let through_d = if which < 2 { stored / 2.0 } else { 0.0 };
            let tol = |i: usize| (rel + through_d) * size[i] + stored * want[i].abs() + 1e-30;
            results.push((name, compare(&got.grads[which].to_f32(), want, tol)));
            // A row that sees itself alone has no slope.
            if longest > 1 && compare(&vec![0.0; want.len()], want, tol).is_ok() {
                results.push((name, Err("zeros would do".into())));
            }
        }
        let mut failures = String::new();
        for (name, result) in results {
            if let Err(message) = result {
                failures += &format!("{isa}, bf16 {low}, {self:?}, {name}: {message}\n");
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(failures) }
    }
}

fn case(heads: [usize; 2], head_dim: usize, window: Option<usize>, spans: &[usize]) -> Case {
    Case { heads, head_dim, window, spans: spans.to_vec(), size: 1.0 }
}

fn check_all(cases: &[Case]) {
    let team = Team::new(2).unwrap();
    // One scratch for all: what a call leaves must not matter to the next.
    let mut scratch = Scratch::new();
    let mut failures = String::new();
    for (seed, case) in cases.iter().enumerate() {
        for low in [false, true] {
            let inputs = case.inputs(seed as u64, low);
            for isa in Isa::available() {
                let got = case.run(isa, &team, &inputs, &mut scratch);
                if let Err(message) = case.check(isa, &inputs, &got) {
                    failures += &message;
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn both_passes_agree_with_the_reference() {
    check_all(&[
        case([1, 1], 8, None, &[1]),
        case([2, 1], 8, None, &[]),
        case([2, 1], 12, None, &[5]),
        case([2, 2], 16, None, &[0, 17, 0]),
        case([4, 2], 24, None, &[1, 33, 2, 64, 65]),
        case([3, 1], 64, None, &[150]),
        case([9, 3], 64, None, &[7, 90]),
        case([8, 1], 12, None, &[40, 1, 1, 30]),
        case([1, 1], 8, None, &[300]),
        case([5, 1], 7, None, &[70]),
    ]);
}

#[test]
fn windows_agree_with_the_reference() {
    check_all(&[
        case([2, 1], 8, Some(1), &[9, 3]),
        case([4, 2], 16, Some(2), &[70, 20]),
        case([3, 1], 24, Some(64), &[200, 1]),
        case([2, 2], 12, Some(100), &[330]),
        case([6, 2], 64, Some(65), &[140]),
        case([2, 1], 8, Some(usize::MAX), &[20]),
    ]);
}

#[test]
fn large_scores_neither_overflow_nor_lose_their_row() {
    let sized = |size: f32, case: Case| Case { size, ..case };
    check_all(&[
        sized(300.0, case([2, 1], 8, None, &[100])),
        sized(300.0, case([2, 2], 12, Some(30), &[90])),
        sized(1e-3, case([3, 1], 16, None, &[80])),
    ]);
}

#[test]
fn more_heads_share_a_kv_head_than_a_block_has_rows() {
    check_all(&[case([200, 1], 8, None, &[9])]);
}

/// Cases that are large enough to be shared among the members of a team.
fn shared_cases() -> [Case; 3] {
    [
        case([6, 2], 24, None, &[300, 1, 45]),
        case([9, 3], 64, None, &[140]),
        case([4, 2], 16, Some(70), &[400, 30]),
    ]
}

#[test]
fn the_bits_are_the_same_for_any_team() {
    for case in shared_cases() {
        assert!(members(&Plan::new(&case.shape()), 2, 3) == 3, "{case:?} is too small");
        for low in [false, true] {
            let inputs = case.inputs(3, low);
            for isa in Isa::available() {
                let mut results = [1, 2, 3].map(|threads| {
                    let team = Team::new(threads).unwrap();
                    case.run(isa, &team, &inputs, &mut Scratch::new()).bits()
                });
                let first = std::mem::take(&mut results[0]);
                assert!(results[1..].iter().all(|bits| *bits == first), "{isa}, {case:?}");
            }
        }
    }
}

/// `block` with the numbers of some of its `t` rows replaced.
fn with_rows(block: &Block, t: usize, rows: std::ops::Range<usize>, value: f32) -> Block {
    let mut x = block.to_f32();
    let dim = x.len() / t;
    x[rows.start * dim..rows.end * dim].fill(value);
    Block::new(&x, matches!(block, Block::Bf16(_)))
}

#[test]
fn spans_do_not_see_each_other() {
    let case = case([6, 2], 24, None, &[70, 130, 50]);
    let (t, mine) = (case.t(), 70..200);
    let team = Team::new(2).unwrap();
    let mut scratch = Scratch::new();
    for isa in Isa::available() {
        let inputs = case.inputs(9, false);
        let before = case.run(isa, &team, &inputs, &mut scratch);
        let alone = Case { spans: vec![130], ..case.clone() };
        let cut = |block: &Block| {
            let x = block.to_f32();
            let dim = x.len() / t;
            x[mine.start * dim..mine.end * dim].to_vec()
        };
        let part = |block: &Block| Block::new(&cut(block), false);
        let Inputs { q, k, v, dout } = &inputs;
        let own = Inputs { q: part(q), k: part(k), v: part(v), dout: part(dout) };
        let own = alone.run(isa, &team, &own, &mut scratch);
        for value in [5.0, f32::NAN] {
            let other = |block: &Block| {
                with_rows(&with_rows(block, t, 0..mine.start, value), t, mine.end..t, value)
            };
            let changed = Inputs { q: other(q), k: other(k), v: other(v), dout: other(dout) };
            let after = case.run(isa, &team, &changed, &mut scratch);
            let pairs = [(&before.out, &after.out, &own.out)].into_iter();
            let grads = (0..3).map(|i| (&before.grads[i], &after.grads[i], &own.grads[i]));
            for (which, (before, after, own)) in pairs.chain(grads).enumerate() {
                assert_ne!(before.to_f32(), after.to_f32(), "{isa}: nothing changed in {which}");
                assert_eq!(cut(before), cut(after), "{isa}: block {which} with {value}");
                assert_eq!(cut(before), own.to_f32(), "{isa}: block {which} by itself");
            }
        }
    }
}

#[test]
fn later_rows_do_not_reach_earlier_ones() {
    let case = case([4, 2], 16, None, &[150]);
    let t = case.t();
    let team = Team::new(1).unwrap();
    for isa in Isa::available() {
        let inputs = case.inputs(4, false);
        let before = case.run(isa, &team, &inputs, &mut Scratch::new());
        let Inputs { q, k, v, dout } = &inputs;
        let later = |block: &Block| with_rows(block, t, 101..t, 3.0);
        let changed = Inputs { q: later(q), k: later(k), v: later(v), dout: dout.clone() };
        let after = case.run(isa, &team, &changed, &mut Scratch::new());
        let rows =
            |block: &Block, n: usize| block.to_f32()[..n * block.to_f32().len() / t].to_vec();
        assert_eq!(rows(&before.out, 101), rows(&after.out, 101), "{isa}");
        assert_ne!(rows(&before.out, 102), rows(&after.out, 102), "{isa}");
    }
}

#[test]
fn scratch_reports_what_it_holds() {
    let case = case([9, 3], 64, None, &[140]);
    let mut scratch = Scratch::new();
    assert_eq!(scratch.bytes(), 0);
    let team = Team::new(1).unwrap();
    case.run(Isa::best(), &team, &case.inputs(1, false), &mut scratch);
    let bytes = scratch.bytes();
    assert!((100_000..4_000_000).contains(&bytes), "{bytes}");
    case.run(Isa::best(), &team, &case.inputs(2, false), &mut scratch);
    assert_eq!(scratch.bytes(), bytes, "a second call grows nothing");
}
