//! Products on the device against plain sums in f64: every kernel, form, type and tail; bits that do
//! not depend on company.

use half::{bf16, f16};
use puna::cuda::matmul::{
    Factor, Kernel, Precision, Product, Source, gated_by, gemm, gemm_by, gemm_two,
};
use puna::cuda::{DeviceBuffer, Floats, FloatsMut, Gpu};
use puna::error::Error;
use puna::rng::Rng;

use crate::support::{gpu, guarded};

/// The machine epsilon of f32: twice the rounding of one operation, as tensor cores may cut off what
/// does not fit instead of rounding it.
pub const EPS: f64 = f32::EPSILON as f64;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    F32,
    Bf16,
    F16,
}

const KINDS: [Kind; 3] = [Kind::F32, Kind::Bf16, Kind::F16];

/// Numbers on the device as one of the types stores them, and their values.
pub struct Numbers {
    pub values: Vec<f32>,
    pub kind: Kind,
    pub rows: usize,
    pub cols: usize,
    f32: DeviceBuffer<f32>,
    bf16: DeviceBuffer<bf16>,
    f16: DeviceBuffer<f16>,
    /// Elements in front of them, which break the alignment.
    skip: usize,
}

impl Numbers {
    pub fn new(
        gpu: &Gpu,
        kind: Kind,
        values: &[f32],
        rows: usize,
        cols: usize,
        skip: usize,
    ) -> Self {
        assert_eq!(values.len(), rows * cols);
        let padded: Vec<f32> = [vec![7.0; skip], values.to_vec()].concat();
        let low: Vec<bf16> = padded.iter().map(|&x| bf16::from_f32(x)).collect();
        let half: Vec<f16> = padded.iter().map(|&x| f16::from_f32(x)).collect();
        let values = match kind {
            Kind::F32 => padded[skip..].to_vec(),
            Kind::Bf16 => low[skip..].iter().map(|x| x.to_f32()).collect(),
            Kind::F16 => half[skip..].iter().map(|x| x.to_f32()).collect(),
        };
        let when = |yes: bool| if yes { padded.len() } else { 0 };
        Numbers {
            f32: gpu.upload(&padded[..when(kind == Kind::F32)]).unwrap(),
            bf16: gpu.upload(&low[..when(kind == Kind::Bf16)]).unwrap(),
            f16: gpu.upload(&half[..when(kind == Kind::F16)]).unwrap(),
            values,
            kind,
            rows,
            cols,
            skip,
        }
    }

    pub fn random(gpu: &Gpu, rng: &mut Rng, kind: Kind, rows: usize, cols: usize) -> Self {
        let values = normals(rng, rows * cols);
        Numbers::new(gpu, kind, &values, rows, cols, 0)
    }

    pub fn source(&self) -> Source<'_> {
        let range = self.skip..self.skip + self.rows * self.cols;
        match self.kind {
            Kind::F32 => Source::F32(self.f32.slice().range(range)),
            Kind::Bf16 => Source::Bf16(self.bf16.slice().range(range)),
            Kind::F16 => Source::F16(self.f16.slice().range(range)),
        }
    }

    pub fn factor(&self) -> Factor<'_> {
        Factor::plain(self.source(), self.rows, self.cols)
    }

    fn turned(&self, transposed: bool) -> Factor<'_> {
        if transposed { self.factor().t() } else { self.factor() }
    }

    /// Element [row, col] of the factor or of its transpose, as a product of `precision` sees it.
    fn at(&self, precision: Precision, transposed: bool, row: usize, col: usize) -> f64 {
        let i = if transposed { col * self.cols + row } else { row * self.cols + col };
        f64::from(rounded(precision, self.values[i]))
    }
}

pub fn normals(rng: &mut Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

pub fn rounded(precision: Precision, x: f32) -> f32 {
    match precision {
        Precision::F32 => x,
        Precision::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// A sum of products and the sum of their sizes, which its error is measured by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    pub value: f64,
    pub size: f64,
}

impl Sum {
    pub fn of(terms: impl Iterator<Item = (f64, f64)>) -> Sum {
        terms.fold(Sum::default(), |sum, (a, b)| Sum {
            value: sum.value + a * b,
            size: sum.size + (a * b).abs(),
        })
    }
}

/// How far a sum of `k` products may be off: a rounding an input and a few more, each of a partial
/// sum no larger than `size`.
pub fn bound(k: usize, size: f64) -> f64 {
    (k + 8) as f64 * EPS * size
}

/// What storing adds to the error: half a unit of the last of bf16's 8 bits.
pub fn store_error(bf16: bool, size: f64) -> f64 {
    if bf16 { size / 256.0 + 1e-38 } else { 1e-38 }
}

pub struct Case {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Types, and whether factors are transposed.
    pub a: (Kind, bool),
    pub b: (Kind, bool),
    pub skip: usize,
    pub precision: Precision,
    pub alpha: f32,
    pub bias: Option<Kind>,
}

/// Computes the case by one kernel into f32 and bf16, overwriting once and adding twice; whether the
/// kernel takes it.
pub fn check(gpu: &Gpu, case: &Case, kernel: Kernel, seed: u64) -> bool {
    let &Case { m, n, k, a, b, skip, precision, alpha, bias } = case;
    let mut rng = Rng::new(seed, 0);
    let mut draw = |(kind, transposed): (Kind, bool), rows: usize, cols: usize| {
        let (rows, cols) = if transposed { (cols, rows) } else { (rows, cols) };
        Numbers::new(gpu, kind, &normals(&mut rng, rows * cols), rows, cols, skip)
    };
    let (left, right) = (draw(a, m, k), draw(b, k, n));
    let bias = bias.map(|kind| draw((kind, false), 1, n));
    let name = format!(
        "{kernel:?} {precision:?} [{m}, {n}, {k}] {a:?} {b:?} skip {skip} alpha {alpha} bias {}",
        bias.is_some()
    );
    let old = normals(&mut rng, m * n);
    for low in [false, true] {
        for acc in [false, true] {
            let old: Vec<f32> = match low {
                true => old.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
                false => old.clone(),
            };
            let mut f32 = guarded(gpu, if low { &[] } else { &old[..] });
            let as_bf16: Vec<bf16> = old.iter().map(|&x| bf16::from_f32(x)).collect();
            let mut bf16 = guarded(gpu, if low { &as_bf16[..] } else { &[] });
            let times = if acc { 2 } else { 1 };
            for _ in 0..times {
                let out = match low {
                    true => FloatsMut::Bf16(bf16.slice_mut()),
                    false => FloatsMut::F32(f32.slice_mut()),
                };
                let bias = bias.as_ref().map(|bias| match bias.source() {
                    Source::F32(x) => Floats::F32(x),
                    Source::Bf16(x) => Floats::Bf16(x),
                    Source::F16(_) => unreachable!("a bias is f32 or bf16"),
                });
                let (a, b) = (left.turned(a.1), right.turned(b.1));
                let product = Product { acc, alpha, bias, ..Product::new(precision, out, a, b) };
                match gemm_by(gpu, product, kernel) {
                    Ok(()) => {}
                    Err(Error::Unsupported(_)) => return false,
                    Err(e) => panic!("{name}: {e}"),
                }
            }
            let got = match low {
                true => bf16.check().iter().map(|x| x.to_f32()).collect(),
                false => f32.check(),
            };
            let mut telling = 0;
            for i in 0..m * n {
                let (row, col) = (i / n, i % n);
                let sum =
                    Sum::of((0..k).map(|j| {
                        (left.at(precision, a.1, row, j), right.at(precision, b.1, j, col))
                    }));
                let shift = bias.as_ref().map_or(0.0, |bias| f64::from(bias.values[col]));
                let before = if acc { f64::from(old[i]) } else { 0.0 };
                let times = f64::from(times);
                let want = before + times * (f64::from(alpha) * sum.value + shift);
                let size = before.abs() + times * (f64::from(alpha).abs() * sum.size + shift.abs());
                let bound = bound(k, size) + times * store_error(low, size);
                let error = (f64::from(got[i]) - want).abs();
                assert!(
                    error <= bound,
                    "{name} bf16 {low} acc {acc} [{row}, {col}]: got {}, want {want}, bound {bound}",
                    got[i]
                );
                telling += usize::from(times * (f64::from(alpha) * sum.value).abs() > bound);
            }
            // For most elements the bound tells the product from none at all.
            assert!(k == 0 || 2 * telling >= m * n, "{name}: {telling} of {}", m * n);
        }
    }
    true
}

const SIZES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 8, 8],
    [16, 64, 32],
    [17, 65, 40],
    [64, 64, 64],
    [72, 136, 104],
    [129, 136, 72],
    [136, 72, 264],
    [5, 33, 264],
    [3, 7, 13],
    [130, 72, 1],
    [8, 8, 304],
    [16, 31, 1027],
    [2, 3456, 24],
];

#[test]
fn every_kernel_form_type_and_tail_is_the_sum_of_products() {
    let Some(gpu) = gpu() else { return };
    let all = [
        (Precision::Bf16, vec![Kernel::Large, Kernel::Small, Kernel::Any, Kernel::Skinny]),
        (Precision::F32, vec![Kernel::Large, Kernel::Small, Kernel::Matvec]),
    ];
    let mut seed = 0;
    for (precision, kernels) in all {
        for kernel in kernels {
            let mut cases = 0;
            for [m, n, k] in SIZES {
                for form in 0..4 {
                    seed += 1;
                    // bf16 pairs most often: other types meet each other in the sweep below.
                    let kind = |turn: u64| match seed / turn % 3 {
                        0 if precision == Precision::F32 => Kind::F32,
                        2 if kernel == Kernel::Any => Kind::F32,
                        _ => Kind::Bf16,
                    };
                    let case = Case {
                        m,
                        n,
                        k,
                        a: (kind(1), form / 2 == 1),
                        b: (kind(3), form % 2 == 1),
                        skip: 0,
                        precision,
                        alpha: if seed % 2 == 0 { 1.0 } else { -0.75 },
                        bias: [None, Some(Kind::F32), Some(Kind::Bf16)][seed as usize % 3],
                    };
                    cases += usize::from(check(&gpu, &case, kernel, seed));
                }
            }
            assert!(cases >= 5, "{kernel:?} {precision:?} took {cases} cases");
        }
    }
}

#[test]
fn factors_of_every_type_and_alignment() {
    let Some(gpu) = gpu() else { return };
    let mut seed = 100;
    for precision in [Precision::Bf16, Precision::F32] {
        for a in KINDS {
            for b in KINDS {
                for skip in [0, 1] {
                    for [m, n, k] in [[21, 40, 48], [7, 12, 72]] {
                        seed += 1;
                        let form = seed as usize % 4;
                        let (a, b) = ((a, form / 2 == 1), (b, form % 2 == 1));
                        let case = Case { m, n, k, a, b, skip, precision, alpha: 0.5, bias: None };
                        assert!(check(&gpu, &case, Kernel::Chosen, seed));
                        // x w^T, which the kernels for few rows compute.
                        let (a, b) = ((a.0, false), (b.0, true));
                        assert!(check(&gpu, &Case { a, b, ..case }, Kernel::Chosen, seed));
                    }
                }
            }
        }
    }
}

/// The product `x wᵀ` of the first rows of x by one kernel.
fn product_bits(
    gpu: &Gpu,
    precision: Precision,
    kernel: Kernel,
    x: &Numbers,
    w: &Numbers,
    rows: usize,
) -> Vec<u32> {
    let first = Numbers::new(gpu, x.kind, &x.values[..rows * x.cols], rows, x.cols, 0);
    let mut out = gpu.upload(&vec![0f32; rows * w.rows]).unwrap();
    let to = FloatsMut::F32(out.slice_mut());
    let product = Product::new(precision, to, first.factor(), w.factor().t());
    gemm_by(gpu, Product { alpha: 0.3, ..product }, kernel).unwrap();
    let mut got = vec![0f32; rows * w.rows];
    gpu.download(&out.slice(), &mut got).unwrap();
    got.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_row_has_the_same_bits_in_any_company_and_from_any_bf16_kernel() {
    let Some(gpu) = gpu() else { return };
    for (n, k, kind) in [(72, 264, Kind::Bf16), (3456, 40, Kind::Bf16), (40, 136, Kind::F32)] {
        let mut rng = Rng::new(5, k as u64);
        let m = if n > 1000 { 33 } else { 140 };
        let x = Numbers::random(&gpu, &mut rng, kind, m, k);
        let w = Numbers::random(&gpu, &mut rng, Kind::Bf16, n, k);
        let bits = |kernel, rows| product_bits(&gpu, Precision::Bf16, kernel, &x, &w, rows);
        let whole = bits(Kernel::Any, m);
        if kind == Kind::Bf16 {
            assert!(whole == bits(Kernel::Small, m), "small tiles");
            assert!(whole == bits(Kernel::Large, m), "large tiles");
        }
        for rows in [1, 2, 3, 8, 9, 15, 16, 17, 31] {
            assert!(whole[..rows * n] == bits(Kernel::Chosen, rows), "{rows} rows of [{n}, {k}]");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_f32_on_either_side_of_sixteen_rows() {
    let Some(gpu) = gpu() else { return };
    for kind in KINDS {
        for (n, k) in [(50, 300), (9, 1027)] {
            let mut rng = Rng::new(6, k as u64);
            let x = Numbers::random(&gpu, &mut rng, Kind::F32, 140, k);
            let w = Numbers::random(&gpu, &mut rng, kind, n, k);
            let bits = |kernel, rows| product_bits(&gpu, Precision::F32, kernel, &x, &w, rows);
            let few = bits(Kernel::Matvec, 16);
            for rows in [1, 2, 4, 5, 7, 8, 9, 13] {
                assert!(few[..rows * n] == bits(Kernel::Chosen, rows), "{kind:?} {rows} rows");
            }
            let many = bits(Kernel::Large, 140);
            for rows in [17, 64, 65] {
                assert!(many[..rows * n] == bits(Kernel::Chosen, rows), "{kind:?} {rows} rows");
            }
            assert!(many[..3 * n] == bits(Kernel::Small, 3), "one chain for few and many");
        }
    }
}

#[test]
fn gated_products_are_silu_of_one_times_the_other() {
    let Some(gpu) = gpu() else { return };
    let kernels = [Kernel::Large, Kernel::Small, Kernel::Any, Kernel::Skinny, Kernel::Chosen];
    for kernel in kernels {
        let mut cases = 0;
        for [m, n, k] in
            [[1, 8, 8], [16, 40, 264], [17, 65, 40], [70, 136, 72], [140, 70, 104], [3, 7, 13]]
        {
            for kind in [Kind::Bf16, Kind::F32] {
                let mut rng = Rng::new(8, (m * n) as u64);
                let x = Numbers::random(&gpu, &mut rng, kind, m, k);
                let w1 = Numbers::random(&gpu, &mut rng, Kind::Bf16, n, k);
                let w3 = Numbers::random(&gpu, &mut rng, Kind::Bf16, n, k);
                for low in [false, true] {
                    let mut f32 = guarded(&gpu, &vec![9f32; if low { 0 } else { m * n }]);
                    let mut bf16 = guarded(&gpu, &vec![bf16::ONE; if low { m * n } else { 0 }]);
                    let out = match low {
                        true => FloatsMut::Bf16(bf16.slice_mut()),
                        false => FloatsMut::F32(f32.slice_mut()),
                    };
                    let (x_, w1_, w3_) = (x.factor(), w1.factor(), w3.factor());
                    match gated_by(&gpu, out, x_, w1_, w3_, kernel) {
                        Ok(()) => cases += 1,
                        Err(Error::Unsupported(_)) => continue,
                        Err(e) => panic!("{kernel:?}: {e}"),
                    }
                    let got: Vec<f32> = match low {
                        true => bf16.check().iter().map(|x| x.to_f32()).collect(),
                        false => f32.check(),
                    };
                    for (i, &got) in got.iter().enumerate() {
                        let p = Precision::Bf16;
                        let sum = |w: &Numbers| {
                            let term = |j| (x.at(p, false, i / n, j), w.at(p, false, i % n, j));
                            Sum::of((0..k).map(term))
                        };
                        let (gate, up) = (sum(&w1), sum(&w3));
                        let silu = gate.value / (1.0 + (-gate.value).exp());
                        let want = silu * up.value;
                        // silu's slope is below 1.1; its own arithmetic adds a few roundings.
                        let off = 1.1 * bound(k, gate.size) * (up.value.abs() + bound(k, up.size))
                            + silu.abs() * bound(k, up.size)
                            + 8.0 * EPS * want.abs();
                        let off = off + store_error(low, want.abs());
                        let error = (f64::from(got) - want).abs();
                        assert!(error <= off, "{kernel:?} [{m}, {n}, {k}] {kind:?} {low} ({i})");
                    }
                }
            }
        }
        assert!(cases >= 4, "{kernel:?} took {cases} cases");
    }
}

#[test]
fn two_products_share_a_result() {
    let Some(gpu) = gpu() else { return };
    // A rank as an adapter has, tails of tiles, and one that takes two launches.
    for [m, n, k, k2] in [[70, 136, 104, 16], [129, 264, 40, 8], [17, 72, 64, 64], [20, 9, 13, 4]] {
        let mut rng = Rng::new(9, (m * n) as u64);
        let mut draw = |rows, cols| Numbers::random(&gpu, &mut rng, Kind::Bf16, rows, cols);
        let (a, b, a2, b2) = (draw(m, k), draw(k, n), draw(m, k2), draw(k2, n));
        let old = normals(&mut rng, m * n);
        for acc in [false, true] {
            let mut out = guarded(&gpu, &old);
            let times = if acc { 2 } else { 1 };
            for _ in 0..times {
                let to = FloatsMut::F32(out.slice_mut());
                let (first, second) = ([a.factor(), b.factor()], [a2.factor(), b2.factor()]);
                gemm_two(&gpu, to, acc, 0.5, first, second).unwrap();
            }
            let got = out.check();
            for i in 0..m * n {
                let p = Precision::Bf16;
                let one = (0..k).map(|j| (a.at(p, false, i / n, j), b.at(p, false, j, i % n)));
                let two = (0..k2).map(|j| (a2.at(p, false, i / n, j), b2.at(p, false, j, i % n)));
                let sum = Sum::of(one.chain(two));
                let before = if acc { f64::from(old[i]) } else { 0.0 };
                let times = f64::from(times);
                let want = before + times * 0.5 * sum.value;
                let size = before.abs() + times * 0.5 * sum.size;
                let error = (f64::from(got[i]) - want).abs();
                assert!(error <= bound(k + k2, size), "[{m}, {n}, {k}, {k2}] acc {acc} ({i})");
            }
        }
    }
}

#[test]
fn empty_products_and_empty_sums() {
    let Some(gpu) = gpu() else { return };
    for precision in [Precision::Bf16, Precision::F32] {
        for (m, n, k) in [(0, 4, 3), (4, 0, 3), (2, 3, 0), (20, 8, 0)] {
            let mut rng = Rng::new(1, 1);
            let a = Numbers::random(&gpu, &mut rng, Kind::Bf16, m, k);
            let b = Numbers::random(&gpu, &mut rng, Kind::Bf16, n, k);
            for acc in [false, true] {
                let mut out = guarded(&gpu, &vec![5f32; m * n]);
                let to = FloatsMut::F32(out.slice_mut());
                let product = Product::new(precision, to, a.factor(), b.factor().t());
                gemm(&gpu, Product { acc, ..product }).unwrap();
                let want = if acc { 5.0 } else { 0.0 };
                assert!(out.check().iter().all(|&x| x == want), "[{m}, {n}, {k}] acc {acc}");
            }
        }
    }
}

#[test]
fn shapes_and_kernels_that_do_not_fit_are_refused() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(2, 2);
    let x = Numbers::random(&gpu, &mut rng, Kind::F32, 3, 4);
    let mut out = gpu.alloc::<f32>(9).unwrap();
    let to = FloatsMut::F32(out.slice_mut());
    let refused = gemm(&gpu, Product::new(Precision::F32, to, x.factor(), x.factor()));
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    let mut short = gpu.alloc::<f32>(8).unwrap();
    let to = FloatsMut::F32(short.slice_mut());
    let refused = gemm(&gpu, Product::new(Precision::F32, to, x.factor(), x.factor().t()));
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    let to = FloatsMut::F32(out.slice_mut());
    let tensor = Product::new(Precision::Bf16, to, x.factor(), x.factor().t());
    let refused = gemm_by(&gpu, tensor, Kernel::Large);
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    let to = FloatsMut::F32(out.slice_mut());
    let bias = Some(Floats::F32(x.f32.slice()));
    let product = Product::new(Precision::F32, to, x.factor(), x.factor().t());
    let refused = gemm(&gpu, Product { bias, ..product });
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
}
