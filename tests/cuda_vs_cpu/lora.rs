//! Layers with adapters on the device against plain sums in f64: the fused kernel and the separate
//! products, several adapters in a batch, and all gradients.

use half::bf16;
use puna::cuda::lora::{
    Adapters, Gradients, Layer, RowAdapters, Weight, backward, forward, forward_rows,
};
use puna::cuda::matmul::{Factor, Precision};
use puna::cuda::{Floats, FloatsMut, Gpu};
use puna::error::Error;
use puna::rng::Rng;

use crate::matmul::{EPS, Kind, Numbers, Sum, bound, normals, rounded, store_error};
use crate::support::{gpu, guarded};

/// Sizes of a layer.
#[derive(Clone, Copy, Debug)]
struct Size {
    m: usize,
    n: usize,
    k: usize,
    r: usize,
}

/// A layer's numbers; `a` and `b` of adapter i are the i-th [r, k] and [n, r] of their stacks.
struct Data {
    size: Size,
    x: Numbers,
    w: Numbers,
    a: Numbers,
    b: Numbers,
    bias: Numbers,
}

const SCALES: [f32; 3] = [2.0, -0.5, 0.3];

impl Data {
    /// Weights and x in bf16, adapters in `kind`.
    fn new(gpu: &Gpu, size: Size, kind: Kind, adapters: usize) -> Data {
        let Size { m, n, k, r } = size;
        let mut rng = Rng::new(11, (m * n * k * r) as u64);
        let mut draw = |kind, rows, cols| Numbers::random(gpu, &mut rng, kind, rows, cols);
        Data {
            size,
            x: draw(Kind::Bf16, m, k),
            w: draw(Kind::Bf16, n, k),
            a: draw(kind, adapters * r, k),
            b: draw(kind, adapters * n, r),
            bias: draw(Kind::F32, 1, n),
        }
    }

    /// Row `row` of x times row `j` of A of an adapter.
    fn u(&self, p: Precision, row: usize, adapter: usize, j: usize) -> Sum {
        let Size { k, r, .. } = self.size;
        let value = |x: &Numbers, i: usize| f64::from(rounded(p, x.values[i]));
        let a_row = (adapter * r + j) * k;
        Sum::of((0..k).map(|i| (value(&self.x, row * k + i), value(&self.a, a_row + i))))
    }

    /// What y [row, col] should be, and how far it may be off: `low` where u is rounded to bf16 on
    /// its way to B.
    fn y(
        &self,
        p: Precision,
        low: bool,
        row: usize,
        col: usize,
        adapter: Option<usize>,
    ) -> (f64, f64) {
        let Size { n, k, r, .. } = self.size;
        let value = |x: &Numbers, i: usize| f64::from(rounded(p, x.values[i]));
        let terms = (0..k).map(|i| (value(&self.x, row * k + i), value(&self.w, col * k + i)));
        let plain = Sum::of(terms);
        let bias = f64::from(self.bias.values[col]);
        let (mut want, mut size, mut off) = (plain.value + bias, plain.size + bias.abs(), 0.0);
        if let Some(adapter) = adapter {
            let scale = f64::from(SCALES[adapter]);
            for j in 0..r {
                let b = scale * value(&self.b, (adapter * n + col) * r + j);
                let u = self.u(p, row, adapter, j);
                want += b * u.value;
                size += (b * u.value).abs();
                // u's own error, and half a unit of bf16's last of 8 bits for s u.
                let rounding = if low { u.value.abs() / 256.0 } else { 0.0 };
                off += b.abs() * (bound(k, u.size) + rounding);
            }
        }
        (want, off + bound(k + r, size))
    }
}

const SIZES: [Size; 6] = [
    Size { m: 1, n: 8, k: 8, r: 8 },
    Size { m: 130, n: 136, k: 72, r: 16 },
    Size { m: 70, n: 40, k: 264, r: 24 },
    Size { m: 129, n: 200, k: 40, r: 64 },
    Size { m: 33, n: 9, k: 16, r: 40 },
    Size { m: 20, n: 24, k: 13, r: 3 },
];

#[test]
fn a_layer_with_an_adapter_is_the_sum_of_both_products() {
    let Some(gpu) = gpu() else { return };
    for size in SIZES {
        for (kind, precision) in [
            (Kind::Bf16, Precision::Bf16),
            (Kind::F32, Precision::Bf16),
            (Kind::F32, Precision::F32),
        ] {
            let Size { m, n, k, r } = size;
            let data = Data::new(&gpu, size, kind, 1);
            for low in [false, true] {
                let mut y32 = guarded(&gpu, &vec![9f32; if low { 0 } else { m * n }]);
                let mut y16 = guarded(&gpu, &vec![bf16::ONE; if low { m * n } else { 0 }]);
                let mut u = guarded(&gpu, &vec![9f32; m * r]);
                let layer = Layer {
                    w: Weight::Stored(data.w.factor()),
                    bias: Some(bias_of(&data)),
                    a: data.a.factor(),
                    b: data.b.factor(),
                    scale: SCALES[0],
                    precision,
                };
                let y = match low {
                    true => FloatsMut::Bf16(y16.slice_mut()),
                    false => FloatsMut::F32(y32.slice_mut()),
                };
                forward(&gpu, y, u.slice_mut(), data.x.factor(), &layer).unwrap();
                for (i, &got) in u.check().iter().enumerate() {
                    let want = data.u(precision, i / r, 0, i % r);
                    let error = (f64::from(got) - want.value).abs();
                    assert!(error <= bound(k, want.size), "{size:?} {kind:?} u[{i}] = {got}");
                }
                let got: Vec<f32> = match low {
                    true => y16.check().iter().map(|x| x.to_f32()).collect(),
                    false => y32.check(),
                };
                for (i, &got) in got.iter().enumerate() {
                    let rounds = precision == Precision::Bf16;
                    let (want, off) = data.y(precision, rounds, i / n, i % n, Some(0));
                    // Separate products store y in between, before the adapter is added.
                    let plain = data.y(precision, rounds, i / n, i % n, None).0;
                    let off = off + store_error(low, want.abs()) + store_error(low, plain.abs());
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= off, "{size:?} {kind:?} {precision:?} {low} y[{i}] = {got}");
                }
            }
        }
    }
}

fn bias_of(data: &Data) -> Floats<'_> {
    match data.bias.source() {
        puna::cuda::matmul::Source::F32(x) => Floats::F32(x),
        _ => unreachable!("drawn as f32"),
    }
}

/// y [m, n] of [`forward_rows`].
fn rows_forward(gpu: &Gpu, data: &Data, list: &[Option<usize>]) -> Vec<f32> {
    let Size { n, k, r, .. } = data.size;
    let m = list.len();
    let rows = RowAdapters::new(gpu, list, SCALES.len()).unwrap();
    let scales = gpu.upload(&SCALES).unwrap();
    let x = Numbers::new(gpu, data.x.kind, &data.x.values[..m * k], m, k, 0);
    let adapters = Adapters { a: data.a.source(), b: data.b.source(), scales: scales.slice(), r };
    let mut y = guarded(gpu, &vec![9f32; m * n]);
    let mut u = guarded(gpu, &vec![9f32; m * r]);
    let to = FloatsMut::F32(y.slice_mut());
    let bias = Some(bias_of(data));
    let (x, w) = (x.factor(), Weight::Stored(data.w.factor()));
    forward_rows(gpu, to, u.slice_mut(), x, w, bias, &adapters, &rows).unwrap();
    u.check();
    y.check()
}

/// Adapters of rows in no order, some rows without.
fn mixed(m: usize) -> Vec<Option<usize>> {
    (0..m).map(|i| [Some(2), None, Some(0), Some(1), Some(0)][i * i % 5]).collect()
}

#[test]
fn rows_of_a_batch_have_adapters_of_their_own() {
    let Some(gpu) = gpu() else { return };
    for size in [
        Size { m: 1, n: 8, k: 8, r: 8 },
        Size { m: 16, n: 40, k: 264, r: 16 },
        Size { m: 16, n: 131, k: 31, r: 5 },
        Size { m: 300, n: 136, k: 40, r: 32 },
        Size { m: 40, n: 9, k: 13, r: 7 },
    ] {
        for kind in [Kind::Bf16, Kind::F32] {
            let data = Data::new(&gpu, size, kind, SCALES.len());
            let list = mixed(size.m);
            let got = rows_forward(&gpu, &data, &list);
            for (i, &got) in got.iter().enumerate() {
                let (row, col) = (i / size.n, i % size.n);
                // x and W are bf16 already, so only u may be rounded, by the fused kernel.
                let (exact, off) = data.y(Precision::F32, true, row, col, list[row]);
                let error = (f64::from(got) - exact).abs();
                assert!(error <= off, "{size:?} {kind:?} [{row}, {col}]: {got}, want {exact}");
            }
        }
    }
}

#[test]
fn a_row_with_an_adapter_has_the_same_bits_in_any_company() {
    let Some(gpu) = gpu() else { return };
    // Aligned bf16, one of them wide; then what takes separate products.
    for (kind, n, k, r) in [
        (Kind::Bf16, 40, 264, 16),
        (Kind::Bf16, 3456, 24, 24),
        (Kind::F32, 40, 264, 16),
        (Kind::Bf16, 40, 136, 5),
    ] {
        let size = Size { m: if n > 1000 { 20 } else { 300 }, n, k, r };
        let data = Data::new(&gpu, size, kind, SCALES.len());
        let list = mixed(size.m);
        let bits = |list: &[Option<usize>]| -> Vec<u32> {
            rows_forward(&gpu, &data, list).iter().map(|x| x.to_bits()).collect()
        };
        let whole = bits(&list);
        for m in [1, 2, 5, 11, 16, 17, 129] {
            let m = m.min(size.m);
            assert!(whole[..m * n] == bits(&list[..m]), "{size:?} {kind:?}: {m} rows");
        }
        // A row without an adapter beside others has the bits of the plain product.
        let none = bits(&vec![None; 16]);
        assert!(none[n..2 * n] == whole[n..2 * n] && list[1].is_none(), "{size:?} {kind:?}");
    }
}

#[test]
fn gradients_of_a_layer_with_an_adapter() {
    let Some(gpu) = gpu() else { return };
    for size in SIZES {
        for (kind, precision) in [
            (Kind::Bf16, Precision::Bf16),
            (Kind::F32, Precision::Bf16),
            (Kind::F32, Precision::F32),
        ] {
            check_gradients(&gpu, size, kind, precision);
        }
    }
}

#[test]
fn gradients_of_rows_in_several_parts() {
    let Some(gpu) = gpu() else { return };
    for size in [
        Size { m: 1100, n: 136, k: 72, r: 16 },
        Size { m: 513, n: 8, k: 264, r: 40 },
        Size { m: 512, n: 40, k: 8, r: 8 },
    ] {
        check_gradients(&gpu, size, Kind::Bf16, Precision::Bf16);
    }
}

/// All gradients, twice over: da, db and dx are added to.
fn check_gradients(gpu: &Gpu, size: Size, kind: Kind, precision: Precision) {
    let Size { m, n, k, r } = size;
    let data = Data::new(gpu, size, kind, 1);
    let mut rng = Rng::new(12, m as u64);
    let dy = Numbers::random(gpu, &mut rng, Kind::Bf16, m, n);
    let u = Numbers::random(gpu, &mut rng, Kind::F32, m, r);
    let scale = SCALES[2];
    let layer = Layer {
        w: Weight::Stored(data.w.factor()),
        bias: None,
        a: data.a.factor(),
        b: data.b.factor(),
        scale,
        precision,
    };
    let (old_a, old_b) = (normals(&mut rng, r * k), normals(&mut rng, n * r));
    let old_x = normals(&mut rng, m * k);
    let low = kind == Kind::Bf16;
    let mut da = guarded(gpu, &old_a);
    let mut db = guarded(gpu, &old_b);
    let mut dx = guarded(gpu, &old_x);
    let mut du16 = guarded(gpu, &vec![bf16::ONE; if low { m * r } else { 0 }]);
    let mut du32 = guarded(gpu, &vec![1f32; if low { 0 } else { m * r }]);
    for _ in 0..2 {
        let du = match low {
            true => FloatsMut::Bf16(du16.slice_mut()),
            false => FloatsMut::F32(du32.slice_mut()),
        };
        let grads = Gradients {
            da: Some(da.slice_mut()),
            db: Some(db.slice_mut()),
            dx: Some(FloatsMut::F32(dx.slice_mut())),
            dx_acc: true,
        };
        backward(gpu, grads, du, dy.factor(), data.x.factor(), u.factor(), &layer).unwrap();
    }
    let value = |x: &Numbers, i: usize| f64::from(rounded(precision, x.values[i]));
    let scale = f64::from(scale);
    // du as the next products see it: rounded to bf16 or not.
    let du: Vec<Sum> = (0..m * r)
        .map(|i| {
            let (row, j) = (i / r, i % r);
            let sum = Sum::of((0..n).map(|c| (value(&dy, row * n + c), value(&data.b, c * r + j))));
            Sum { value: scale * sum.value, size: scale * sum.size }
        })
        .collect();
    let rounding = |x: f64| if precision == Precision::Bf16 { x.abs() / 256.0 } else { 0.0 };
    let off_of = |du: &Sum| bound(n, du.size) + rounding(du.value);
    let name = format!("{size:?} {kind:?} {precision:?}");
    let far = |got: f32, want: f64, off: f64, what: &str| {
        let error = (f64::from(got) - want).abs();
        assert!(error <= off, "{name} {what}: got {got}, want {want}, bound {off}");
    };
    for (i, &got) in db.check().iter().enumerate() {
        let (col, j) = (i / r, i % r);
        let sum = Sum::of((0..m).map(|row| (value(&dy, row * n + col), value(&u, row * r + j))));
        let old = f64::from(old_b[i]);
        let want = old + 2.0 * scale * sum.value;
        far(got, want, bound(m, old.abs() + 2.0 * scale.abs() * sum.size), "db");
    }
    for (i, &got) in da.check().iter().enumerate() {
        let (j, col) = (i / k, i % k);
        let (mut sum, mut off) = (Sum::default(), 0.0);
        for row in 0..m {
            let (du, x) = (&du[row * r + j], value(&data.x, row * k + col));
            sum.value += du.value * x;
            sum.size += (du.value * x).abs();
            off += off_of(du) * x.abs();
        }
        let old = f64::from(old_a[i]);
        let off = 2.0 * off + bound(m, old.abs() + 2.0 * sum.size);
        far(got, old + 2.0 * sum.value, off, "da");
    }
    for (i, &got) in dx.check().iter().enumerate() {
        let (row, col) = (i / k, i % k);
        let mut sum =
            Sum::of((0..n).map(|c| (value(&dy, row * n + c), value(&data.w, c * k + col))));
        let mut off = 0.0;
        for j in 0..r {
            let (du, a) = (&du[row * r + j], value(&data.a, j * k + col));
            sum.value += du.value * a;
            sum.size += (du.value * a).abs();
            off += off_of(du) * a.abs();
        }
        let old = f64::from(old_x[i]);
        let off = 2.0 * off + bound(n + r, old.abs() + 2.0 * sum.size);
        far(got, old + 2.0 * sum.value, off + EPS * old.abs(), "dx");
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let Some(gpu) = gpu() else { return };
    let refused = RowAdapters::new(&gpu, &[Some(0), Some(3)], 3);
    assert!(matches!(refused, Err(Error::Shape { .. })));
    let size = Size { m: 4, n: 8, k: 8, r: 8 };
    let data = Data::new(&gpu, size, Kind::Bf16, 1);
    let mut y = gpu.alloc::<f32>(size.m * size.n).unwrap();
    let mut u = gpu.alloc::<f32>(size.m * size.r).unwrap();
    let layer = |a, b| Layer {
        w: Weight::Stored(data.w.factor()),
        bias: None,
        a,
        b,
        scale: 1.0,
        precision: Precision::Bf16,
    };
    let narrow = Factor { rows: 4, cols: 16, ..data.a.factor() };
    for layer in [layer(narrow, data.b.factor()), layer(data.a.factor(), narrow)] {
        let to = FloatsMut::F32(y.slice_mut());
        let refused = forward(&gpu, to, u.slice_mut(), data.x.factor(), &layer);
        assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    }
}
