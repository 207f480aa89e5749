//! Layers with adapters whose weights are quantised: the bits of those with the decoded matrix.

use half::bf16;
use puna::cuda::lora::{
    Adapters, Gradients, Layer, RowAdapters, Weight, backward, forward, forward_rows,
};
use puna::cuda::matmul::{self, Factor, Precision, Product};
use puna::cuda::{Floats, FloatsMut, Gpu};
use puna::rng::Rng;
use puna_cpu::quant::BlockType;

use crate::matmul::{Kind, Numbers};
use crate::quant::{Form, Weights, forms, lengths};
use crate::support::{Failures, gpu, guarded};

/// Rows, outputs, rank.
const SIZES: [[usize; 3]; 7] = [
    [1, 8, 8],
    [16, 34, 16],
    [3, 130, 64],
    [17, 8, 16],
    [130, 136, 24],
    [129, 9, 64],
    [40, 200, 40],
];

/// Whether a layer with bf16 factors around this weight is one kernel.
fn is_fused(form: Form, k: usize) -> bool {
    let common = [BlockType::Q4_0, BlockType::Q8_0, BlockType::Q4_K, BlockType::Q6_K];
    match form {
        Form::Nf4 { .. } => k.is_multiple_of(64),
        Form::Block(block) => common.contains(&block),
    }
}

/// The weight twice, and what meets it.
struct Data {
    w: Weights,
    plain: Numbers,
    x: Numbers,
    a: Numbers,
    b: Numbers,
    bias: Numbers,
}

impl Data {
    fn new(
        gpu: &Gpu,
        form: Form,
        [m, n, k, r]: [usize; 4],
        kind: Kind,
        precision: Precision,
    ) -> Data {
        let w = Weights::new(gpu, form, [n, k], 3);
        let plain = w.numbers(gpu, precision);
        let mut rng = Rng::new(21, (m * n * k * r) as u64);
        let mut draw = |kind, rows, cols| Numbers::random(gpu, &mut rng, kind, rows, cols);
        let (x, a, b) = (draw(kind, m, k), draw(kind, r, k), draw(kind, n, r));
        Data { w, plain, x, a, b, bias: draw(Kind::F32, 1, n) }
    }

    fn layer<'a>(&'a self, w: Weight<'a>, precision: Precision) -> Layer<'a> {
        let bias = match self.bias.source() {
            matmul::Source::F32(bias) => Some(Floats::F32(bias)),
            _ => unreachable!("drawn as f32"),
        };
        let (a, b) = (self.a.factor(), self.b.factor());
        Layer { w, bias, a, b, scale: 0.75, precision }
    }
}

/// y and u of a layer.
fn run(gpu: &Gpu, data: &Data, low: bool, layer: &Layer<'_>) -> (Vec<f32>, Vec<f32>) {
    let (m, n, r) = (data.x.rows, data.w.n, data.a.rows);
    let mut y32 = guarded(gpu, &vec![9f32; if low { 0 } else { m * n }]);
    let mut y16 = guarded(gpu, &vec![bf16::ONE; if low { m * n } else { 0 }]);
    let mut u = guarded(gpu, &vec![9f32; m * r]);
    let y = match low {
        true => FloatsMut::Bf16(y16.slice_mut()),
        false => FloatsMut::F32(y32.slice_mut()),
    };
    forward(gpu, y, u.slice_mut(), data.x.factor(), layer).unwrap();
    let y = match low {
        true => y16.check().iter().map(|y| y.to_f32()).collect(),
        false => y32.check(),
    };
    (y, u.check())
}

/// The same from separate products with the decoded matrix.
fn apart(gpu: &Gpu, data: &Data, low: bool, layer: &Layer<'_>) -> (Vec<f32>, Vec<f32>) {
    let (m, n, r) = (data.x.rows, data.w.n, data.a.rows);
    let mut y32 = guarded(gpu, &vec![9f32; if low { 0 } else { m * n }]);
    let mut y16 = guarded(gpu, &vec![bf16::ONE; if low { m * n } else { 0 }]);
    let mut u = guarded(gpu, &vec![9f32; m * r]);
    let (x, p) = (data.x.factor(), layer.precision);
    {
        let mut y = match low {
            true => FloatsMut::Bf16(y16.slice_mut()),
            false => FloatsMut::F32(y32.slice_mut()),
        };
        let first = Product::new(p, y.reborrow(), x, data.plain.factor().t());
        matmul::gemm(gpu, Product { bias: layer.bias, ..first }).unwrap();
        let to = FloatsMut::F32(u.slice_mut());
        matmul::gemm(gpu, Product::new(p, to, x, layer.a.t())).unwrap();
        let inner = Factor::plain(Floats::F32(u.slice()), m, r);
        let (acc, alpha) = (true, layer.scale);
        let last = Product::new(p, y, inner, layer.b.t());
        matmul::gemm(gpu, Product { acc, alpha, ..last }).unwrap();
    }
    let y = match low {
        true => y16.check().iter().map(|y| y.to_f32()).collect(),
        false => y32.check(),
    };
    (y, u.check())
}

#[test]
fn a_layer_has_the_bits_of_that_with_the_decoded_matrix() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for form in forms() {
        for (i, [m, n, r]) in SIZES.into_iter().enumerate() {
            let ks = lengths(form);
            let k = ks[i % ks.len()];
            let data = Data::new(&gpu, form, [m, n, k, r], Kind::Bf16, Precision::Bf16);
            let (low, p) = (i % 2 == 1, Precision::Bf16);
            let got = run(&gpu, &data, low, &data.layer(Weight::Quant(&data.w.device), p));
            let stored = data.layer(Weight::Stored(data.plain.factor()), p);
            let want = match is_fused(form, k) {
                true => run(&gpu, &data, low, &stored),
                false => apart(&gpu, &data, low, &stored),
            };
            let name = format!("{form:?} [{m}, {n}, {k}] rank {r}");
            failures.compare_bits(&format!("{name} y"), &got.0, &want.0);
            failures.compare_bits(&format!("{name} u"), &got.1, &want.1);
        }
    }
    failures.end();
}

#[test]
fn other_ranks_and_types_take_products_of_their_own() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for form in [Form::Nf4 { double: true }, Form::Block(BlockType::Q4_K)] {
        let k = lengths(form)[1];
        for (kind, precision) in [(Kind::F32, Precision::Bf16), (Kind::F32, Precision::F32)] {
            for [m, n, r] in [[5, 34, 16], [40, 24, 5], [20, 9, 72]] {
                // In f32 few rows have an order of their own, so only the kernel of tiles.
                let m = if precision == Precision::F32 { m.max(20) } else { m };
                let data = Data::new(&gpu, form, [m, n, k, r], kind, precision);
                let layer = data.layer(Weight::Quant(&data.w.device), precision);
                let got = run(&gpu, &data, false, &layer);
                let want = apart(&gpu, &data, false, &layer);
                let name = format!("{form:?} {precision:?} [{m}, {n}, {k}] rank {r}");
                failures.compare_bits(&format!("{name} y"), &got.0, &want.0);
                failures.compare_bits(&format!("{name} u"), &got.1, &want.1);
            }
        }
    }
    failures.end();
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for form in [Form::Nf4 { double: false }, Form::Block(BlockType::Q4_K)] {
        let (m, n, k, r) = (131, 40, lengths(form)[1], 16);
        let mut data = Data::new(&gpu, form, [m, n, k, r], Kind::Bf16, Precision::Bf16);
        let of = |data: &Data| {
            run(&gpu, data, false, &data.layer(Weight::Quant(&data.w.device), Precision::Bf16))
        };
        let many = of(&data);
        let row = data.x.values[130 * k..].to_vec();
        data.x = Numbers::new(&gpu, Kind::Bf16, &row, 1, k, 0);
        let one = of(&data);
        failures.compare_bits(&format!("{form:?} y"), &one.0, &many.0[130 * n..]);
        failures.compare_bits(&format!("{form:?} u"), &one.1, &many.1[130 * r..]);
    }
    failures.end();
}

#[test]
fn gradients_have_the_bits_of_those_with_the_decoded_matrix() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for form in forms() {
        for (i, [m, n, r]) in [[40, 40, 8], [130, 72, 16], [5, 136, 24]].into_iter().enumerate() {
            let (p, ks) = (Precision::Bf16, lengths(form));
            let k = ks[i % ks.len()];
            let data = Data::new(&gpu, form, [m, n, k, r], Kind::Bf16, p);
            let mut rng = Rng::new(22, i as u64);
            let dy = Numbers::random(&gpu, &mut rng, Kind::Bf16, m, n);
            let u = Numbers::random(&gpu, &mut rng, Kind::F32, m, r);
            let all = |layer: &Layer<'_>| {
                let (mut da, mut db) =
                    (guarded(&gpu, &vec![1f32; r * k]), guarded(&gpu, &vec![2f32; n * r]));
                let mut dx = guarded(&gpu, &vec![3f32; m * k]);
                let mut du = guarded(&gpu, &vec![bf16::ONE; m * r]);
                let grads = Gradients {
                    da: Some(da.slice_mut()),
                    db: Some(db.slice_mut()),
                    dx: Some(FloatsMut::F32(dx.slice_mut())),
                    dx_acc: i != 1,
                };
                let (dy, x, u) = (dy.factor(), data.x.factor(), u.factor());
                backward(&gpu, grads, FloatsMut::Bf16(du.slice_mut()), dy, x, u, layer).unwrap();
                [da.check(), db.check(), dx.check()]
            };
            let got = all(&data.layer(Weight::Quant(&data.w.device), p));
            let want = all(&data.layer(Weight::Stored(data.plain.factor()), p));
            for (what, (got, want)) in ["da", "db", "dx"].iter().zip(got.iter().zip(&want)) {
                let name = format!("{form:?} [{m}, {n}, {k}] rank {r} {what}");
                failures.compare_bits(&name, got, want);
            }
        }
    }
    failures.end();
}

#[test]
fn rows_with_adapters_of_their_own_meet_quantised_weights() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (form, m) in [(Form::Nf4 { double: true }, 5), (Form::Block(BlockType::Q4_K), 30)] {
        let (n, k, r) = (40, lengths(form)[1], 16);
        let data = Data::new(&gpu, form, [m, n, k, 3 * r], Kind::Bf16, Precision::Bf16);
        let b = Numbers::random(&gpu, &mut Rng::new(23, 1), Kind::Bf16, 3 * n, r);
        let list: Vec<_> = (0..m).map(|i| [Some(2), None, Some(0), Some(1)][i % 4]).collect();
        let rows = RowAdapters::new(&gpu, &list, 3).unwrap();
        let scales = gpu.upload(&[2.0, -0.5, 0.3]).unwrap();
        let of = |w: Weight<'_>, b: &Numbers, a: &Numbers| {
            let mut y = guarded(&gpu, &vec![9f32; m * n]);
            let mut u = guarded(&gpu, &vec![9f32; m * r]);
            let adapters = Adapters { a: a.source(), b: b.source(), scales: scales.slice(), r };
            let (to, x) = (FloatsMut::F32(y.slice_mut()), data.x.factor());
            forward_rows(&gpu, to, u.slice_mut(), x, w, None, &adapters, &rows).unwrap();
            u.check();
            y.check()
        };
        let got = of(Weight::Quant(&data.w.device), &b, &data.a);
        // Adapters of f32 take the same way around a stored weight.
        let wide = |x: &Numbers| Numbers::new(&gpu, Kind::F32, &x.values, x.rows, x.cols, 0);
        let want = of(Weight::Stored(data.plain.factor()), &wide(&b), &wide(&data.a));
        failures.compare_bits(&format!("{form:?}"), &got, &want);
    }
    failures.end();
}
