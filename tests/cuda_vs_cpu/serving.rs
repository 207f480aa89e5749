//! Layers while serving: bias, residual, gate and adapter inside of the product's kernel, against f64
//! and by bits for any number of rows.

use half::bf16;
use puna::autograd::{Cx, Mode, Var};
use puna::cuda::Gpu;
use puna::cuda::quant::QuantMatrix;
use puna::kernels::{Device, Scratch};
use puna::ops::{self, Linear, Lora};
use puna::rng::Rng;
use puna::tensor::{
    Buffer, CudaMatrix, DType, Home, Matrix, MatrixData, Params, Pool, Values, Vector,
};
use puna_cpu::quant::{BlockType, decode_row, encode_row};
use std::sync::Arc;

use crate::support::{EPS_BF16, EPS_F32, Failures, gpu, normals, to_bf16, to_f64};

/// Whole blocks of a quantised row, and no whole tiles.
const DIM: usize = 96;
const HIDDEN: usize = 160;
const RANK: usize = 8;
/// One row, few, more than the kernels for few rows take, and a tail behind a tile.
const ROWS: [usize; 4] = [1, 5, 17, 70];
const SCALE: f32 = 0.5;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stored {
    F32,
    Bf16,
    /// Q8_0, adapters in bf16.
    Quant,
}

/// A weight [n, k] on the device, and as f64.
struct Weight {
    matrix: Matrix,
    values: Vec<f64>,
}

impl Weight {
    fn new(gpu: &Gpu, rng: &mut Rng, [n, k]: [usize; 2], stored: Stored) -> Weight {
        let values: Vec<f32> = normals(rng, n * k).iter().map(|x| 0.1 * x).collect();
        let low = to_bf16(&values);
        let is_adapter = n == RANK || k == RANK;
        let (data, values) = match stored {
            Stored::F32 => (CudaMatrix::F32(gpu.upload(&values).unwrap()), to_f64(&values)),
            Stored::Quant if !is_adapter => {
                let (block, mut decoded) = (BlockType::Q8_0, vec![0.0; n * k]);
                let mut bytes = vec![0; n * block.row_bytes(k)];
                encode_row(block, &mut bytes, &values);
                decode_row(block, &mut decoded, &bytes);
                let matrix = QuantMatrix::from_blocks(gpu, block, [n, k], &bytes).unwrap();
                (CudaMatrix::Quant(matrix), to_f64(&decoded))
            }
            Stored::Bf16 | Stored::Quant => {
                let values = low.iter().map(|x| f64::from(x.to_f32())).collect();
                (CudaMatrix::Bf16(gpu.upload(&low).unwrap()), values)
            }
        };
        Weight { matrix: Matrix { n, k, data: MatrixData::Cuda(Arc::new(data)) }, values }
    }
}

struct Layers {
    device: Device,
    params: Params,
    pool: Pool,
    /// Of DIM to HIDDEN, with and without bias.
    up: Weight,
    gate: Weight,
    bias: Vec<f32>,
    /// HIDDEN to DIM.
    down: Weight,
    a: Weight,
    b: Weight,
}

impl Layers {
    fn new(stored: Stored) -> Option<Layers> {
        let mut device = Device::new(1).unwrap();
        let gpu = Arc::new(gpu()?);
        let mut rng = Rng::new(31, 0);
        let mut weight = |shape| Weight::new(&gpu, &mut rng, shape, stored);
        let (up, gate) = (weight([HIDDEN, DIM]), weight([HIDDEN, DIM]));
        let (down, a, b) = (weight([DIM, HIDDEN]), weight([RANK, DIM]), weight([HIDDEN, RANK]));
        let bias = normals(&mut Rng::new(32, 0), HIDDEN);
        let pool = Pool::at(Home::Cuda(Arc::clone(&gpu)));
        device.gpu = Some(gpu);
        let params = Params::default();
        Some(Layers { device, params, pool, up, gate, bias, down, a, b })
    }

    fn bias(&self) -> Vector {
        let values = Values::from_host(&self.device.home(), Buffer::from_slice(&self.bias));
        Vector::Fixed(Arc::new(values.unwrap()))
    }

    /// What `work` makes of `x`, rows of `width`.
    fn serve<'w>(
        &'w self,
        exact: bool,
        x: &[f32],
        width: usize,
        work: impl Fn(&mut Cx<'_, 'w>, Var<'w>) -> Vec<f32>,
    ) -> Vec<f32> {
        let (mut scratch, mode) = (Scratch::default(), Mode::Serve { exact });
        let mut cx = Cx::new(&self.device, &self.pool, &self.params, &mut scratch, mode);
        let mut rows = self.pool.take(DType::F32, x.len() / width, width).unwrap();
        rows.write(x).unwrap();
        work(&mut cx, Var::fixed(rows))
    }
}

fn read(out: &Var<'_>) -> Vec<f32> {
    out.rows.read(&mut vec![]).unwrap().to_vec()
}

/// `x wᵀ` and the sums of the products' sizes, from x as `round` leaves it.
fn product(x: &[f32], w: &Weight, round: impl Fn(f32) -> f64) -> (Vec<f64>, Vec<f64>) {
    let k = w.matrix.k;
    let x: Vec<f64> = x.iter().map(|&x| round(x)).collect();
    let pairs = x.chunks(k).flat_map(|x| w.values.chunks(k).map(move |w| x.iter().zip(w)));
    pairs
        .map(|pairs| {
            let terms = pairs.map(|(x, w)| x * round(*w as f32));
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + f64::abs(term)))
        })
        .unzip()
}

fn rounding(low: bool) -> impl Fn(f32) -> f64 + Copy {
    move |x| if low { bf16::from_f32(x).to_f64() } else { x.into() }
}

/// Runs rows together and compares with `want`; then alone, which gives the same bits.
fn check(
    failures: &mut Failures,
    case: &str,
    run: impl Fn(&[f32]) -> Vec<f32>,
    width: usize,
    want: impl Fn(&[f32]) -> (Vec<f64>, Vec<f64>),
) {
    for m in ROWS {
        let x = normals(&mut Rng::new(33, m as u64), m * width);
        let (case, got, (want, size)) = (format!("{case}, {m} rows"), run(&x), want(&x));
        failures.compare(&case, &got, &want, |i| size[i]);
        let n = got.len() / m;
        for row in [0, m / 2, m - 1] {
            let alone = run(&x[row * width..(row + 1) * width]);
            failures.compare_bits(&format!("{case}: row {row}"), &got[row * n..][..n], &alone);
        }
    }
}

const CASES: [(Stored, bool); 5] = [
    (Stored::Bf16, false),
    (Stored::Bf16, true),
    (Stored::F32, false),
    (Stored::Quant, false),
    (Stored::Quant, true),
];

/// Roundings of a sum of k terms and of what follows.
fn terms(k: usize) -> f64 {
    2.0 * (k as f64 + 4.0) * EPS_F32
}

#[test]
fn bias_is_added_by_the_product() {
    let mut failures = Failures::default();
    for (stored, exact) in CASES {
        let Some(all) = Layers::new(stored) else { return };
        let layer = Linear::new(all.up.matrix.clone(), Some(all.bias()));
        let low = stored != Stored::F32 && !exact;
        let run = |x: &[f32]| {
            all.serve(exact, x, DIM, |cx, x| read(&ops::linear(cx, &x, &layer).unwrap()))
        };
        check(&mut failures, &format!("{stored:?} exact {exact}"), run, DIM, |x| {
            let (sum, size) = product(x, &all.up, rounding(low));
            let bias = all.bias.iter().cycle().map(|&bias| f64::from(bias));
            let want = sum.iter().zip(bias.clone()).map(|(sum, bias)| sum + bias).collect();
            let size = size.iter().zip(bias).map(|(s, bias)| terms(DIM) * (s + bias.abs()));
            (want, size.collect())
        });
    }
    failures.end();
}

#[test]
fn the_residual_is_added_by_the_product_where_nobody_else_holds_it() {
    let mut failures = Failures::default();
    for ((stored, exact), shared) in CASES.into_iter().flat_map(|c| [(c, false), (c, true)]) {
        let Some(all) = Layers::new(stored) else { return };
        let layer = Linear::new(all.down.matrix.clone(), None);
        let low = stored != Stored::F32 && !exact;
        let residual = |x: &[f32]| -> Vec<f32> {
            x.chunks(HIDDEN).flat_map(|row| row[..DIM].iter().map(|x| 3.0 * x)).collect()
        };
        let run = |x: &[f32]| {
            all.serve(exact, x, HIDDEN, |cx, input| {
                let mut sum = cx.take_f32(x.len() / HIDDEN, DIM).unwrap();
                sum.write(&residual(x)).unwrap();
                let other = shared.then(|| sum.clone());
                let out = ops::linear_add(cx, Var::fixed(sum), input, &layer).unwrap();
                if let Some(other) = other {
                    let before = read(&Var::fixed(other));
                    assert_eq!(before, residual(x), "somebody else's rows were changed");
                }
                read(&out)
            })
        };
        let case = format!("{stored:?} exact {exact} shared {shared}");
        check(&mut failures, &case, run, HIDDEN, |x| {
            let (sum, size) = product(x, &all.down, rounding(low));
            let x = to_f64(&residual(x));
            let want = sum.iter().zip(&x).map(|(sum, x)| sum + x).collect();
            let size = size.iter().zip(&x).map(|(s, x)| terms(HIDDEN) * (s + x.abs()));
            (want, size.collect())
        });
    }
    failures.end();
}

#[test]
fn gate_and_up_meet_in_one_kernel() {
    let mut failures = Failures::default();
    for (stored, exact) in CASES {
        let Some(all) = Layers::new(stored) else { return };
        let [gate, up] = [&all.gate, &all.up].map(|w| Linear::new(w.matrix.clone(), None));
        let low = stored != Stored::F32 && !exact;
        let run = |x: &[f32]| {
            all.serve(exact, x, DIM, |cx, x| read(&ops::gated(cx, x, [&gate, &up]).unwrap()))
        };
        check(&mut failures, &format!("{stored:?} exact {exact}"), run, DIM, |x| {
            let (gates, gate_size) = product(x, &all.gate, rounding(low));
            let (ups, up_size) = product(x, &all.up, rounding(low));
            let silu = |x: f64| x / (1.0 + (-x).exp());
            let want = gates.iter().zip(&ups).map(|(gate, up)| silu(*gate) * up).collect();
            // The slope of silu is below 1.1; its own error is 12 epsilons.
            let size = (0..gates.len()).map(|i| {
                let by_gate = 1.1 * terms(DIM) * gate_size[i] * ups[i].abs();
                let by_up = terms(DIM) * up_size[i] * silu(gates[i]).abs();
                by_gate + by_up + 16.0 * EPS_F32 * (silu(gates[i]) * ups[i]).abs()
            });
            (want, size.collect())
        });
    }
    failures.end();
}

#[test]
fn an_adapter_goes_along_with_its_layer() {
    let mut failures = Failures::default();
    for (stored, exact) in CASES {
        let Some(all) = Layers::new(stored) else { return };
        let mut layer = Linear::new(all.up.matrix.clone(), Some(all.bias()));
        let (a, b) = (all.a.matrix.clone(), all.b.matrix.clone());
        layer.loras.push(Lora { a, b, scale: SCALE, dropout: 0.0, key: 0 });
        let low = stored != Stored::F32 && !exact;
        let run = |x: &[f32]| {
            all.serve(exact, x, DIM, |cx, x| read(&ops::linear(cx, &x, &layer).unwrap()))
        };
        check(&mut failures, &format!("{stored:?} exact {exact}"), run, DIM, |x| {
            let (sum, size) = product(x, &all.up, rounding(low));
            let (u, u_size) = product(x, &all.a, rounding(low));
            let low_rank = |u: &[f64]| -> Vec<f64> {
                let rows = u.chunks(RANK).flat_map(|u| {
                    let dot = |b: &[f64]| u.iter().zip(b).map(|(u, b)| u * b).sum::<f64>();
                    all.b.values.chunks(RANK).map(dot)
                });
                rows.map(|x| f64::from(SCALE) * x).collect()
            };
            let sizes = |u: &[f64]| -> Vec<f64> {
                let rows = u.chunks(RANK).flat_map(|u| {
                    let dot = |b: &[f64]| u.iter().zip(b).map(|(u, b)| (u * b).abs()).sum::<f64>();
                    all.b.values.chunks(RANK).map(dot)
                });
                rows.map(|x| f64::from(SCALE) * x).collect()
            };
            let (added, added_size, u_errors) = (low_rank(&u), sizes(&u), sizes(&u_size));
            let bias = |i: usize| f64::from(all.bias[i % HIDDEN]);
            let want = (0..sum.len()).map(|i| sum[i] + added[i] + bias(i)).collect();
            // In bf16 u is rounded once more before it meets b.
            let inner = if low { EPS_BF16 } else { 0.0 };
            let size = (0..sum.len()).map(|i| {
                terms(DIM) * (size[i] + u_errors[i] + bias(i).abs())
                    + (inner + terms(RANK)) * added_size[i]
            });
            (want, size.collect())
        });
    }
    failures.end();
}

#[test]
#[cfg(feature = "cuda-host")]
fn each_is_a_launch_or_two_where_the_weights_are_bf16_or_quantised() {
    let named = |stored| -> Option<Vec<String>> {
        let all = Layers::new(stored)?;
        let gpu = all.device.gpu().unwrap();
        let plain = Linear::new(all.up.matrix.clone(), Some(all.bias()));
        let mut adapted = Linear::new(all.up.matrix.clone(), Some(all.bias()));
        let (a, b) = (all.a.matrix.clone(), all.b.matrix.clone());
        adapted.loras.push(Lora { a, b, scale: SCALE, dropout: 0.0, key: 0 });
        let square = Linear::new(all.down.matrix.clone(), None);
        let pair = [&all.gate, &all.up].map(|w| Linear::new(w.matrix.clone(), None));
        let (few, many) = (vec![0.5; DIM], vec![0.5; 40 * DIM]);
        let names = || {
            let launched = gpu.take_launches();
            let one = |(name, &count): (&&str, &usize)| match count {
                1 => (*name).to_owned(),
                count => format!("{count} {name}"),
            };
            launched.iter().map(one).collect::<Vec<_>>().join(" ")
        };
        let linear = |x: &[f32], layer| {
            gpu.take_launches();
            all.serve(false, x, DIM, |cx, x| read(&ops::linear(cx, &x, layer).unwrap()));
            names()
        };
        let gated = |x: &[f32]| {
            gpu.take_launches();
            let [gate, up] = [&pair[0], &pair[1]];
            all.serve(false, x, DIM, |cx, x| read(&ops::gated(cx, x, [gate, up]).unwrap()));
            names()
        };
        let added = || {
            gpu.take_launches();
            all.serve(false, &[0.5; HIDDEN], HIDDEN, |cx, x| {
                let mut sum = cx.take_f32(1, DIM).unwrap();
                sum.write(&[1.0; DIM]).unwrap();
                read(&ops::linear_add(cx, Var::fixed(sum), x, &square).unwrap())
            });
            names()
        };
        let plain = [linear(&few, &plain), linear(&many, &plain)];
        let adapted = [linear(&few, &adapted), linear(&many, &adapted)];
        let [plain, adapted, gated] = [plain, adapted, [gated(&few), gated(&many)]];
        Some([plain, adapted, gated].into_iter().flatten().chain([added()]).collect())
    };
    let Some(found) = named(Stored::Bf16) else { return };
    let wanted = [
        "skinny_f32_narrow",
        "convert_bf16_f32 matmul_nt_bf16_small",
        "convert_bf16_f32 lora_skinny_narrow lora_skinny_shrink",
        "convert_bf16_f32 lora_bf16_r16",
        "skinny_gated_f32_narrow",
        "convert_bf16_f32 matmul_gated_bf16_small",
        "skinny_f32_narrow",
    ];
    assert_eq!(found, wanted);
    let wanted = [
        "quant_skinny_q8_0",
        "convert_bf16_f32 quant_nt_q8_0_small",
        "convert_bf16_f32 lora_skinny_shrink quant_skinny_q8_0",
        "convert_bf16_f32 lora_q8_0_r16",
        "quant_skinny_gated_q8_0",
        "convert_bf16_f32 2 quant_nt_q8_0_small swiglu_f32_f32",
        "quant_skinny_q8_0",
    ];
    assert_eq!(named(Stored::Quant).unwrap(), wanted);
}
