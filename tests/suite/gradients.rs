//! Every operation's gradient against central differences of its own forward pass, at every
//! instruction set of the machine.
//!
//! The loss is `sum(out * r)` with random `r`. For a step h the difference quotient carries an
//! error of the order h² times the third derivative and eps / h times the loss's rounding; with
//! values of the order of one, h = 1/64 and f32 sums of a few hundred terms both stay below 2e-3 of
//! the gradient's norm, which is the tolerance. A gradient of zero misses it by a factor of 500.

use puna::autograd::{Cx, Dropout, Mode, NodeId, Var, checkpoint, sweep};
use puna::kernels::matmul::Precision;
use puna::kernels::rows::{Pairing, Rotations};
use puna::kernels::{Cpu, Device, Scratch};
use puna::ops::{self, Heads, Linear, Lora};
use puna::rng::Rng;
use puna::tensor::{Grads, Matrix, MatrixData, Param, ParamId, Params, Pool, Vector};
use puna_cpu::buffer::Buffer;
use puna_cpu::isa::Isa;
use puna_cpu::quant::nf4::Nf4Matrix;
use puna_cpu::team::Team;
use std::sync::Arc;

const STEP: f32 = 1.0 / 64.0;
const TOLERANCE: f64 = 2e-3;

/// A device of each level.
fn devices() -> Vec<Device> {
    let cpu = |isa| Cpu { isa, team: Team::new(2).unwrap() };
    Isa::available().into_iter().map(|isa| cpu(isa).into()).collect()
}

fn random(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// Parameters with random values: every input of the function under test is one of them.
struct Inputs {
    params: Params,
    rng: Rng,
}

impl Inputs {
    fn new(seed: u64) -> Inputs {
        Inputs { params: Params::default(), rng: Rng::new(seed, 0) }
    }

    fn push(&mut self, shape: &[usize]) -> ParamId {
        let n = shape.iter().product();
        let value = Buffer::from_slice(&random(&mut self.rng, n)).into();
        let name = format!("input {}", self.params.0.len());
        self.params.push(Param { name, shape: shape.to_vec(), decay: false, value, low: None })
    }

    /// The values of one parameter.
    fn values(&mut self, at: usize) -> &mut [f32] {
        self.params.0[at].value.host_mut().unwrap()
    }

    fn matrix(&mut self, n: usize, k: usize) -> Matrix {
        Matrix { n, k, data: MatrixData::Param(self.push(&[n, k])) }
    }

    fn vector(&mut self, n: usize) -> Vector {
        Vector::Param(self.push(&[n]))
    }
}

/// A parameter as an input value: the rows of a table, whose gradient the table collects.
fn input<'w>(cx: &mut Cx<'_, 'w>, table: &'w Matrix) -> Var<'w> {
    let ids: Vec<u32> = (0..table.n as u32).collect();
    ops::embedding(cx, table, ids[..].into()).unwrap()
}

/// What the function under test refers to besides its parameters.
#[derive(Default)]
struct Fixture {
    tables: Vec<Matrix>,
    vectors: Vec<Vector>,
    layers: Vec<Linear>,
}

/// Compares gradients with difference quotients for all inputs, on every device; twice in a row,
/// so that what adds is seen to add.
fn check<F>(name: &str, mut inputs: Inputs, fixture: Fixture, f: F)
where
    F: for<'w> Fn(&mut Cx<'_, 'w>, &'w Fixture) -> Var<'w>,
{
    for device in devices() {
        let (pool, mut scratch) = (Pool::default(), Scratch::default());
        let mut weights: Vec<f32> = Vec::new();
        let mut value = |params: &Params, rng: &mut Rng| -> f64 {
            let mut scratch = Scratch::default();
            let mode = Mode::Train(Precision::F32);
            let mut cx = Cx::new(&device, &pool, params, &mut scratch, mode);
            cx.dropout = Some(Dropout { key: 7, ..Dropout::default() });
            let out = f(&mut cx, &fixture);
            if weights.is_empty() {
                weights = random(rng, out.rows.f32().len());
            }
            out.rows.f32().iter().zip(&weights).map(|(&x, &r)| f64::from(x) * f64::from(r)).sum()
        };
        let mut quotients = Vec::new();
        for at in 0..inputs.params.0.len() {
            for i in 0..inputs.values(at).len() {
                let x = inputs.values(at)[i];
                let mut sides = [0.0; 2];
                for (side, h) in sides.iter_mut().zip([STEP, -STEP]) {
                    inputs.values(at)[i] = x + h;
                    *side = value(&inputs.params, &mut inputs.rng);
                }
                inputs.values(at)[i] = x;
                quotients.push((sides[0] - sides[1]) / f64::from(2.0 * STEP));
            }
        }
        let mut grads = Grads::zeros(&inputs.params).unwrap();
        for _ in 0..2 {
            let mode = Mode::Train(Precision::F32);
            let mut cx = Cx::new(&device, &pool, &inputs.params, &mut scratch, mode);
            cx.dropout = Some(Dropout { key: 7, ..Dropout::default() });
            cx.record(&mut grads);
            let out = f(&mut cx, &fixture);
            let node: NodeId = out.node.expect("a tracked result");
            let mut seed = cx.take_f32(out.rows.rows(), out.rows.width()).unwrap();
            seed.f32_mut().copy_from_slice(&weights);
            drop(out);
            sweep(&mut cx, vec![(node, seed)]).unwrap();
        }
        let found = grads.0.iter().flat_map(|grad| grad.host().unwrap());
        let found = found.map(|&g| f64::from(g) / 2.0);
        let (mut error, mut norm) = (0.0, 0.0);
        for (found, wanted) in found.zip(&quotients) {
            error += (found - wanted).powi(2);
            norm += wanted.powi(2);
        }
        let relative = (error / norm).sqrt();
        assert!(norm > 0.0 && relative < TOLERANCE, "{name} on {}: {relative:.2e}", device.cpu.isa);
    }
}

#[test]
fn embedding_add_and_scale() {
    let mut inputs = Inputs::new(1);
    let tables = vec![inputs.matrix(5, 6), inputs.matrix(4, 6)];
    let fixture = Fixture { tables, ..Fixture::default() };
    check("embedding, add, scale", inputs, fixture, |cx, fixture| {
        // Token 3 comes twice; x reaches the sum by two ways.
        let x = ops::embedding(cx, &fixture.tables[0], [3, 0, 3, 4][..].into()).unwrap();
        let y = ops::embedding(cx, &fixture.tables[1], [0, 1, 2, 3][..].into()).unwrap();
        let y = ops::scale(cx, y, -0.7).unwrap();
        let sum = ops::add(cx, x.clone(), y).unwrap();
        ops::add(cx, sum, x).unwrap()
    });
}

#[test]
fn rms_norm() {
    // 67 rows: more than one block of partial sums of the weight's gradient.
    for (m, dim) in [(3, 10), (67, 5)] {
        let mut inputs = Inputs::new(2);
        let fixture = Fixture {
            tables: vec![inputs.matrix(m, dim)],
            vectors: vec![inputs.vector(dim)],
            ..Fixture::default()
        };
        check("rms_norm", inputs, fixture, |cx, fixture| {
            let x = input(cx, &fixture.tables[0]);
            ops::rms_norm(cx, &x, &fixture.vectors[0], 1e-5).unwrap()
        });
    }
}

#[test]
fn swiglu() {
    let mut inputs = Inputs::new(3);
    let tables = vec![inputs.matrix(9, 7), inputs.matrix(9, 7)];
    let fixture = Fixture { tables, ..Fixture::default() };
    check("swiglu", inputs, fixture, |cx, fixture| {
        let gate = input(cx, &fixture.tables[0]);
        let up = input(cx, &fixture.tables[1]);
        ops::swiglu(cx, gate, up).unwrap()
    });
}

#[test]
fn linear_with_bias_and_adapters() {
    for dropout in [0.0, 0.3] {
        let mut inputs = Inputs::new(4);
        let tables = vec![inputs.matrix(6, 10)];
        let mut layer = Linear::new(inputs.matrix(7, 10), Some(inputs.vector(7)));
        for key in [1, 2] {
            let (a, b) = (inputs.matrix(3, 10), inputs.matrix(7, 3));
            layer.loras.push(Lora { a, b, scale: 0.5, dropout, key });
        }
        let fixture = Fixture { tables, layers: vec![layer], ..Fixture::default() };
        check("linear", inputs, fixture, |cx, fixture| {
            let x = input(cx, &fixture.tables[0]);
            ops::linear(cx, &x, &fixture.layers[0]).unwrap()
        });
    }
}

#[test]
fn linear_in_nf4_with_an_adapter() {
    // Rows of whole blocks, and rows that share them.
    for (k, double_quant) in [(64, true), (21, false)] {
        let mut inputs = Inputs::new(10);
        let tables = vec![inputs.matrix(6, k)];
        let w = random(&mut inputs.rng, 7 * k);
        let nf4 = Nf4Matrix::of(&Team::new(1).unwrap(), &w, [7, k], double_quant);
        let w = Matrix { n: 7, k, data: MatrixData::Nf4(Arc::new(nf4)) };
        let mut layer = Linear::new(w, None);
        let (a, b) = (inputs.matrix(3, k), inputs.matrix(7, 3));
        layer.loras.push(Lora { a, b, scale: 0.5, dropout: 0.2, key: 1 });
        let fixture = Fixture { tables, layers: vec![layer], ..Fixture::default() };
        check("linear in NF4", inputs, fixture, |cx, fixture| {
            let x = input(cx, &fixture.tables[0]);
            ops::linear(cx, &x, &fixture.layers[0]).unwrap()
        });
    }
}

#[test]
fn a_norm_and_a_gate_that_are_computed_again() {
    let mut inputs = Inputs::new(5);
    let fixture = Fixture {
        tables: vec![inputs.matrix(5, 8)],
        vectors: vec![inputs.vector(8)],
        layers: vec![
            Linear::new(inputs.matrix(6, 8), None),
            Linear::new(inputs.matrix(6, 8), None),
            Linear::new(inputs.matrix(4, 6), None),
        ],
    };
    check("norm, gate, linear", inputs, fixture, |cx, fixture| {
        let x = input(cx, &fixture.tables[0]);
        let h = ops::rms_norm(cx, &x, &fixture.vectors[0], 1e-5).unwrap();
        let [gate, up] = ops::linears(cx, &h, [&fixture.layers[0], &fixture.layers[1]]).unwrap();
        let act = ops::swiglu(cx, gate, up).unwrap();
        ops::linear(cx, &act, &fixture.layers[2]).unwrap()
    });
}

#[test]
fn rope_both_pairings() {
    for pairing in [Pairing::Half, Pairing::Interleaved] {
        let mut inputs = Inputs::new(6);
        let fixture = Fixture { tables: vec![inputs.matrix(5, 12)], ..Fixture::default() };
        let angle = |i: usize| (i as f32 * 0.37, 0.9);
        let cos = (0..15).map(|i| angle(i).0.cos() * angle(i).1).collect();
        let sin = (0..15).map(|i| angle(i).0.sin() * angle(i).1).collect();
        let angles = Arc::new(Rotations::new(cos, sin, 3));
        check("rope", inputs, fixture, move |cx, fixture| {
            let x = input(cx, &fixture.tables[0]);
            ops::rope(cx, x, 6, &angles, pairing).unwrap()
        });
    }
}

#[test]
fn attention_over_packed_sequences() {
    for window in [None, Some(3)] {
        let mut inputs = Inputs::new(7);
        let tables = vec![inputs.matrix(11, 16), inputs.matrix(11, 8), inputs.matrix(11, 8)];
        let fixture = Fixture { tables, ..Fixture::default() };
        let heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 4, window };
        let spans: Arc<[usize]> = [6, 1, 4].into();
        check("attention", inputs, fixture, move |cx, fixture| {
            let qkv = [0, 1, 2].map(|i| input(cx, &fixture.tables[i]));
            ops::attention(cx, heads, qkv, &spans).unwrap()
        });
    }
}

#[test]
fn select_and_checkpoint() {
    let mut inputs = Inputs::new(8);
    let fixture = Fixture {
        tables: vec![inputs.matrix(7, 6)],
        vectors: vec![inputs.vector(6)],
        layers: vec![Linear::new(inputs.matrix(6, 6), None)],
    };
    check("select, checkpoint", inputs, fixture, |cx, fixture| {
        let x = input(cx, &fixture.tables[0]);
        let y = checkpoint(
            cx,
            x,
            Box::new(move |cx, x| {
                let h = ops::rms_norm(cx, &x, &fixture.vectors[0], 1e-5)?;
                let out = ops::linear(cx, &h, &fixture.layers[0])?;
                ops::add(cx, x, out)
            }),
        )
        .unwrap();
        ops::select(cx, y, &Arc::new(vec![1, 2, 5].into())).unwrap()
    });
}

#[test]
fn cross_entropy_with_masked_rows_and_its_head() {
    for device in devices() {
        let mut inputs = Inputs::new(9);
        let (table, head) = (inputs.matrix(6, 5), inputs.matrix(9, 5));
        let labels = [Some(3), None, Some(8), Some(0), None, Some(3)];
        let (pool, scale) = (Pool::default(), 0.25f32);
        let value = |params: &Params| {
            let mut scratch = Scratch::default();
            let mode = Mode::Train(Precision::F32);
            let mut cx = Cx::new(&device, &pool, params, &mut scratch, mode);
            let x = input(&mut cx, &table);
            let (loss, _) = ops::cross_entropy(&mut cx, &x, &head, &labels, 0.0).unwrap();
            assert_eq!(loss.scored, 4);
            loss.nll * f64::from(scale)
        };
        let mut quotients = Vec::new();
        for at in 0..2 {
            for i in 0..inputs.values(at).len() {
                let x = inputs.values(at)[i];
                let mut side = |h: f32| {
                    inputs.values(at)[i] = x + h;
                    value(&inputs.params)
                };
                let slope = (side(STEP) - side(-STEP)) / f64::from(2.0 * STEP);
                inputs.values(at)[i] = x;
                quotients.push(slope);
            }
        }
        let mut grads = Grads::zeros(&inputs.params).unwrap();
        let mut scratch = Scratch::default();
        for _ in 0..2 {
            let mode = Mode::Train(Precision::F32);
            let mut cx = Cx::new(&device, &pool, &inputs.params, &mut scratch, mode);
            cx.record(&mut grads);
            let x = input(&mut cx, &table);
            let (_, node) = ops::cross_entropy(&mut cx, &x, &head, &labels, scale).unwrap();
            let one = cx.take_f32(1, 1).unwrap();
            sweep(&mut cx, vec![(node.unwrap(), one)]).unwrap();
        }
        let found = grads.0.iter().flat_map(|grad| grad.host().unwrap());
        let found = found.map(|&g| f64::from(g) / 2.0);
        let error: f64 = found.zip(&quotients).map(|(a, b)| (a - b).powi(2)).sum();
        let norm: f64 = quotients.iter().map(|q| q * q).sum();
        let relative = (error / norm).sqrt();
        assert!(relative < TOLERANCE, "{}: {relative:.2e}", device.cpu.isa);
    }
}
