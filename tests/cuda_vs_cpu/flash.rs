//! Attention inside packed sequences on the device against f64: both types, every width, tails of
//! tiles, windows, grouped heads, gradients; bits that do not depend on company.

use half::bf16;
use puna::cuda::flash::{Forward, Plan, Saved, Shape, backward, forward, forward_by};
use puna::cuda::{DeviceBuffer, Floats, FloatsMut, Gpu};
use puna::error::Error;
use puna::rng::Rng;
use puna_cpu::reference::{
    AttentionRowsShape, attention_rows, attention_rows_bwd, attention_rows_bwd_sizes,
};

use crate::support::{
    EPS_BF16, Failures, Guarded, from_bf16, gpu, guarded, normals, to_bf16, to_f64,
};

/// The machine epsilon of f32, twice a rounding: tensor cores may cut off what does not fit.
const EPS: f64 = f32::EPSILON as f64;

#[derive(Clone, Debug)]
pub struct Case {
    pub heads: [usize; 2],
    pub head_dim: usize,
    pub window: Option<usize>,
    pub spans: Vec<usize>,
    /// Factor of the queries.
    pub size: f32,
}

pub fn case(heads: [usize; 2], head_dim: usize, window: Option<usize>, spans: &[usize]) -> Case {
    Case { heads, head_dim, window, spans: spans.to_vec(), size: 1.0 }
}

/// How rows and dout are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    F32,
    Bf16,
    /// bf16 rows, f32 dout.
    Mixed,
}

const KINDS: [Kind; 3] = [Kind::F32, Kind::Bf16, Kind::Mixed];

/// Numbers of one of the types, with sentinels behind.
enum Block<'g> {
    F32(Guarded<'g, f32>),
    Bf16(Guarded<'g, bf16>),
}

impl<'g> Block<'g> {
    fn new(gpu: &'g Gpu, low: bool, x: &[f32]) -> Self {
        if low { Block::Bf16(guarded(gpu, &to_bf16(x))) } else { Block::F32(guarded(gpu, x)) }
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Block::F32(x) => Floats::F32(x.slice()),
            Block::Bf16(x) => Floats::Bf16(x.slice()),
        }
    }

    fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Block::F32(x) => FloatsMut::F32(x.slice_mut()),
            Block::Bf16(x) => FloatsMut::Bf16(x.slice_mut()),
        }
    }

    fn check(&self) -> Vec<f32> {
        match self {
            Block::F32(x) => x.check(),
            Block::Bf16(x) => from_bf16(&x.check()),
        }
    }
}

#[derive(Clone)]
pub struct Inputs {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub dout: Vec<f32>,
}

#[derive(Clone)]
pub struct Outputs {
    pub out: Vec<f32>,
    pub lse: Vec<f32>,
    /// Of q, k and v.
    pub grads: [Vec<f32>; 3],
}

impl Case {
    pub fn shape(&self) -> Shape<'_> {
        Shape {
            n_heads: self.heads[0],
            n_kv_heads: self.heads[1],
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            spans: &self.spans,
        }
    }

    pub fn t(&self) -> usize {
        self.spans.iter().sum()
    }

    /// Numbers that the kind holds exactly.
    pub fn inputs(&self, seed: u64, kind: Kind) -> Inputs {
        let mut rng = Rng::new(seed, 0);
        let mut draw = |heads: usize, size: f32, low: bool| -> Vec<f32> {
            let x = normals(&mut rng, self.t() * heads * self.head_dim);
            let x: Vec<f32> = x.iter().map(|x| x * size).collect();
            if low { from_bf16(&to_bf16(&x)) } else { x }
        };
        let low = kind != Kind::F32;
        Inputs {
            q: draw(self.heads[0], self.size, low),
            k: draw(self.heads[1], 1.0, low),
            v: draw(self.heads[1], 1.0, low),
            dout: draw(self.heads[0], 1.0, kind == Kind::Bf16),
        }
    }

    fn run(&self, gpu: &Gpu, inputs: &Inputs, kind: Kind) -> Outputs {
        self.run_by(gpu, inputs, kind, Forward::Chosen)
    }

    /// Forward by this kernel, backward from what it left.
    pub fn run_by(&self, gpu: &Gpu, inputs: &Inputs, kind: Kind, by: Forward) -> Outputs {
        let low = kind != Kind::F32;
        let plan = Plan::new(gpu, &self.shape(), low).unwrap();
        let block = |x: &[f32]| Block::new(gpu, low, x);
        let (q, k, v) = (block(&inputs.q), block(&inputs.k), block(&inputs.v));
        // What an overwriting kernel must not leave.
        let mut out = block(&vec![777.0; inputs.q.len()]);
        let mut lse = guarded(gpu, &vec![777.0; self.t() * self.heads[0]]);
        let rows = [q.floats(), k.floats(), v.floats()];
        forward_by(gpu, &plan, out.floats_mut(), lse.slice_mut(), rows, by).unwrap();
        let dout = Block::new(gpu, kind == Kind::Bf16, &inputs.dout);
        let mut grads =
            [&inputs.q, &inputs.k, &inputs.v].map(|x| guarded(gpu, &vec![777.0; x.len()]));
        let saved = Saved {
            q: q.floats(),
            k: k.floats(),
            v: v.floats(),
            out: out.floats(),
            lse: lse.slice(),
        };
        let to = grads.each_mut().map(|x| x.slice_mut());
        backward(gpu, &plan, to, dout.floats(), saved).unwrap();
        Outputs { out: out.check(), lse: lse.check(), grads: grads.map(|x| x.check()) }
    }

    /// Holds `got` to the reference.
    ///
    /// A score of absolute terms A is off by (head_dim + 2) EPS A, and a probability by that of its
    /// score, of its row's normaliser, and EPS A for each of the two subtractions; sums over n terms
    /// add n EPS. On tensor cores probabilities, and their slopes, are also off by EPS_BF16 where they
    /// meet a third factor; so is d, through the stored out. A dout of f32 is rounded twice: where
    /// it meets values, and inside of d.
    pub fn check(&self, failures: &mut Failures, inputs: &Inputs, kind: Kind, got: &Outputs) {
        let low = kind != Kind::F32;
        let [q, k, v, dout] = [&inputs.q, &inputs.k, &inputs.v, &inputs.dout].map(|x| to_f64(x));
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
        let exponent = (self.head_dim + 4) as f64 * norm(&q) * norm(&k) * shape.scale;
        let longest = self.spans.iter().max().copied().unwrap_or(0);
        let longest = longest.min(self.window.unwrap_or(usize::MAX));
        let terms = longest * self.heads[0] / self.heads[1];
        let rel = EPS * (4.0 * exponent + 2.0 * (terms + self.head_dim) as f64 + 32.0);
        let inside = if low { EPS_BF16 } else { 0.0 };
        let name = |what: &str| format!("{kind:?}, {self:?}, {what}");

        let [out, lse] = attention_rows(&shape, &q, &k, &v);
        let positive: Vec<f64> = v.iter().map(|v| v.abs()).collect();
        let [out_size, _] = attention_rows(&shape, &q, &k, &positive);
        let lse_tol = EPS * (2.0 * exponent + terms as f64 + 16.0 + most(&lse));
        failures.compare(&name("lse"), &got.lse, &lse, |_| lse_tol);
        let tol = |i: usize| (rel + inside) * out_size[i] + inside * out[i].abs() + 1e-30;
        failures.compare(&name("out"), &got.out, &out, tol);

        let grads = attention_rows_bwd(&shape, &dout, &q, &k, &v);
        let sizes = attention_rows_bwd_sizes(&shape, &dout, &q, &k, &v);
        for (which, what) in ["dq", "dk", "dv"].into_iter().enumerate() {
            let (want, size) = (&grads[which], &sizes[which]);
            let through_d = if which < 2 { inside } else { 0.0 };
            let dout = if kind == Kind::Mixed { 2.0 * inside } else { 0.0 };
            let tol = |i: usize| (rel + inside + through_d + dout) * size[i] + 1e-30;
            failures.compare(&name(what), &got.grads[which], want, tol);
            // A row that sees itself alone has no slope.
            let zeros_do = want.iter().enumerate().all(|(i, want)| want.abs() <= tol(i));
            if longest > 1 && zeros_do {
                failures.note(format!("{}: zeros would do", name(what)));
            }
        }
    }
}

fn check_all(cases: &[Case], kinds: &[Kind]) {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (seed, case) in cases.iter().enumerate() {
        for &kind in kinds {
            let inputs = case.inputs(seed as u64, kind);
            let got = case.run(&gpu, &inputs, kind);
            case.check(&mut failures, &inputs, kind, &got);
        }
    }
    failures.end();
}

#[test]
fn flash_agrees_with_the_reference_at_every_tail_of_a_tile() {
    check_all(
        &[
            case([1, 1], 64, None, &[1]),
            case([2, 1], 64, None, &[]),
            case([2, 2], 16, None, &[0, 17, 0]),
            case([1, 1], 64, None, &[1, 63, 64, 65, 2]),
            case([1, 1], 64, None, &[31, 33, 127, 129]),
        ],
        &KINDS,
    );
}

#[test]
fn flash_agrees_with_the_reference_at_every_width_of_a_head() {
    let widths = [8, 32, 64, 72, 80, 96, 128, 136, 160, 256];
    let cases = widths.map(|width| case([2, 1], width, None, &[37, 1, 66]));
    check_all(&cases, &KINDS);
}

#[test]
fn flash_takes_heads_that_are_no_multiple_of_8() {
    let widths = [1, 7, 12, 33, 100, 130];
    let cases = widths.map(|width| case([2, 1], width, None, &[34, 5]));
    check_all(&cases, &KINDS);
}

#[test]
fn flash_agrees_with_the_reference_for_every_ratio_of_heads() {
    let ratios = [[3, 3], [3, 1], [6, 2], [4, 1], [8, 1], [9, 3]];
    let cases = ratios.map(|heads| case(heads, 64, None, &[7, 40]));
    check_all(&cases, &KINDS);
}

#[test]
fn flash_agrees_with_the_reference_for_every_window() {
    let windows = [1, 2, 31, 32, 33, 63, 64, 65, 100, usize::MAX];
    let cases = windows.map(|window| case([2, 1], 64, Some(window), &[150, 20]));
    check_all(&cases, &[Kind::F32, Kind::Bf16]);
    check_all(
        &[case([1, 1], 128, Some(40), &[200]), case([1, 1], 256, Some(40), &[130])],
        &[Kind::F32, Kind::Bf16],
    );
}

#[test]
fn flash_neither_overflows_nor_loses_rows_of_large_scores() {
    let sized = |size: f32, case: Case| Case { size, ..case };
    check_all(
        &[
            sized(100.0, case([2, 1], 8, None, &[100])),
            sized(100.0, case([1, 1], 64, Some(30), &[90])),
            sized(1e-3, case([3, 1], 16, None, &[80])),
        ],
        &[Kind::F32, Kind::Bf16],
    );
}

/// `x` with the numbers of some of its `t` rows replaced.
pub fn with_rows(x: &[f32], t: usize, rows: std::ops::Range<usize>, value: f32) -> Vec<f32> {
    let mut x = x.to_vec();
    let dim = x.len() / t;
    x[rows.start * dim..rows.end * dim].fill(value);
    x
}

#[test]
fn flash_gives_a_sequence_the_same_bits_alone_and_packed() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (kind, head_dim) in [(Kind::F32, 24), (Kind::Bf16, 24), (Kind::Mixed, 80)] {
        let packed = case([4, 2], head_dim, None, &[70, 130, 50]);
        let (t, mine) = (packed.t(), 70..200);
        let alone = Case { spans: vec![130], ..packed.clone() };
        let cut = |x: &Vec<f32>| {
            let dim = x.len() / t;
            x[mine.start * dim..mine.end * dim].to_vec()
        };
        let inputs = packed.inputs(9, kind);
        let Inputs { q, k, v, dout } = &inputs;
        let own = Inputs { q: cut(q), k: cut(k), v: cut(v), dout: cut(dout) };
        let own = alone.run(&gpu, &own, kind);
        for value in [None, Some(5.0), Some(f32::NAN)] {
            let other = |x: &Vec<f32>| match value {
                None => x.clone(),
                Some(value) => {
                    with_rows(&with_rows(x, t, 0..mine.start, value), t, mine.end..t, value)
                }
            };
            let changed = Inputs { q: other(q), k: other(k), v: other(v), dout: other(dout) };
            let got = packed.run(&gpu, &changed, kind);
            let name = |what: &str| format!("{kind:?}, beside {value:?}, {what}");
            failures.compare_bits(&name("out"), &cut(&got.out), &own.out);
            for (i, what) in ["dq", "dk", "dv"].into_iter().enumerate() {
                failures.compare_bits(&name(what), &cut(&got.grads[i]), &own.grads[i]);
            }
            let lse: Vec<f32> = got.lse.chunks(t).flat_map(|x| x[mine.clone()].to_vec()).collect();
            failures.compare_bits(&name("lse"), &lse, &own.lse);
        }
    }
    failures.end();
}

#[test]
fn flash_hides_later_rows_from_earlier_ones() {
    let Some(gpu) = gpu() else { return };
    let case = case([4, 2], 16, None, &[150]);
    for kind in [Kind::F32, Kind::Bf16] {
        let inputs = case.inputs(4, kind);
        let before = case.run(&gpu, &inputs, kind).out;
        let later = |x: &Vec<f32>| with_rows(x, 150, 101..150, 3.0);
        let Inputs { q, k, v, dout } = &inputs;
        let changed = Inputs { q: later(q), k: later(k), v: later(v), dout: dout.clone() };
        let after = case.run(&gpu, &changed, kind).out;
        let dim = before.len() / 150;
        assert_eq!(before[..101 * dim], after[..101 * dim], "{kind:?}");
        assert_ne!(before[..102 * dim], after[..102 * dim], "{kind:?}");
    }
}

#[test]
fn flash_refuses_what_it_cannot_compute() {
    let Some(gpu) = gpu() else { return };
    let good = case([4, 2], 16, None, &[5]);
    let plan = |change: &dyn Fn(&mut Shape<'_>), low: bool| -> String {
        let mut shape = good.shape();
        change(&mut shape);
        let refused = Plan::new(&gpu, &shape, low).err().expect("a refusal");
        refused.to_string()
    };
    assert!(plan(&|s| s.n_heads = 3, true).contains("3 heads over 2 KV heads"));
    assert!(plan(&|s| s.n_kv_heads = 0, true).contains("4 heads over 0 KV heads"));
    assert!(plan(&|s| s.head_dim = 0, true).contains("width 0"));
    assert!(plan(&|s| s.head_dim = 264, true).contains("heads of 264"));
    assert!(plan(&|s| s.head_dim = 257, false).contains("heads of 257"));
    assert!(plan(&|s| s.window = Some(0), true).contains("a window of 0"));
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(plan(&|s| s.scale = scale, true).contains("scale"), "{scale}");
    }
    let long = [usize::MAX, 2];
    let endless = Shape { spans: &long, ..good.shape() };
    assert!(Plan::new(&gpu, &endless, true).is_err());

    let plan = Plan::new(&gpu, &good.shape(), true).unwrap();
    let low = |n: usize| -> DeviceBuffer<bf16> { gpu.alloc(n).unwrap() };
    let attempt = |n_out: usize, n_lse: usize, n_q: usize, n_k: usize, skip: usize| {
        let (mut out, q, k) = (low(n_out), low(skip + n_q), low(n_k));
        let mut lse = gpu.alloc::<f32>(n_lse).unwrap();
        let q = Floats::Bf16(q.slice().range(skip..skip + n_q));
        let k = Floats::Bf16(k.slice());
        forward(&gpu, &plan, FloatsMut::Bf16(out.slice_mut()), lse.slice_mut(), [q, k, k])
    };
    let (n, m) = (5 * 64, 5 * 32);
    let message = |result: Result<(), Error>| result.expect_err("a refusal").to_string();
    assert!(message(attempt(n - 1, 20, n, m, 0)).contains("out"));
    assert!(message(attempt(n, 21, n, m, 0)).contains("lse"));
    assert!(message(attempt(n, 20, n + 1, m, 0)).contains("q"));
    assert!(message(attempt(n, 20, n, m - 16, 0)).contains("k"));
    assert!(message(attempt(n, 20, n, m, 1)).contains("multiples of 16"));
    let (mut out, k) = (gpu.alloc::<f32>(n).unwrap(), low(m));
    let mut lse = gpu.alloc::<f32>(20).unwrap();
    let (q, k) = (low(n), Floats::Bf16(k.slice()));
    let q = Floats::Bf16(q.slice());
    let out = FloatsMut::F32(out.slice_mut());
    assert!(message(forward(&gpu, &plan, out, lse.slice_mut(), [q, k, k])).contains("f32"));
}
