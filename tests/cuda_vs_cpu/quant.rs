//! Quantised matrices on the device: every format decoded with the CPU's bits, products with the bits
//! of those with the decoded matrix, and near the sums in f64.

use half::{bf16, f16};
use puna::cuda::matmul::{self, Factor, Precision};
use puna::cuda::quant::{Kernel, Product, QuantMatrix, gated, gather, gemm, gemm_by};
use puna::cuda::{Floats, FloatsMut, Gpu, swiglu};
use puna::error::Error;
use puna::rng::Rng;
use puna_cpu::isa::Isa;
use puna_cpu::quant::nf4::Nf4Matrix;
use puna_cpu::quant::{BlockType, decode_row, encode_row};
use puna_cpu::team::Team;
use puna_cpu::testing::Storage;

use crate::matmul::{Kind, Numbers, Sum, bound, normals, rounded, store_error};
use crate::stored::OnDevice;
use crate::support::{Failures, gpu, guarded};

/// A format of weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Form {
    Nf4 { double: bool },
    Block(BlockType),
}

pub(crate) fn forms() -> Vec<Form> {
    let nf4 = [false, true].map(|double| Form::Nf4 { double });
    nf4.into_iter().chain(BlockType::ALL.map(Form::Block)).collect()
}

/// A matrix on the device and the weights that the CPU decodes it to.
pub(crate) struct Weights {
    pub form: Form,
    pub n: usize,
    pub k: usize,
    pub device: QuantMatrix,
    pub values: Vec<f32>,
}

impl Weights {
    pub fn new(gpu: &Gpu, form: Form, [n, k]: [usize; 2], seed: u64) -> Weights {
        let mut rng = Rng::new(seed, (n * k) as u64);
        // Rows of different sizes: scales differ.
        let mut w = normals(&mut rng, n * k);
        w.iter_mut().enumerate().for_each(|(i, w)| *w *= 0.1 + (i / 32 % 7) as f32);
        let mut values = vec![0.0; n * k];
        let device = match form {
            Form::Nf4 { double } => {
                let nf4 = Nf4Matrix::of(&Team::new(1).unwrap(), &w, [n, k], double);
                nf4.decode(Isa::best(), &mut values, 0);
                QuantMatrix::from_nf4(gpu, &nf4).unwrap()
            }
            Form::Block(block) => {
                let mut bytes = vec![0; n * block.row_bytes(k)];
                encode_row(block, &mut bytes, &w);
                decode_row(block, &mut values, &bytes);
                QuantMatrix::from_blocks(gpu, block, [n, k], &bytes).unwrap()
            }
        };
        Weights { form, n, k, device, values }
    }

    /// The decoded matrix as a factor of plain products.
    pub fn numbers(&self, gpu: &Gpu, precision: Precision) -> Numbers {
        Numbers::new(gpu, kind_of(precision), &self.values, self.n, self.k, 0)
    }
}

fn kind_of(precision: Precision) -> Kind {
    match precision {
        Precision::F32 => Kind::F32,
        Precision::Bf16 => Kind::Bf16,
    }
}

/// Lengths of rows: whole blocks, and of NF4 blocks that begin inside of rows.
pub(crate) fn lengths(form: Form) -> &'static [usize] {
    match form {
        Form::Nf4 { .. } => &[64, 320, 40, 65, 129],
        Form::Block(block) if block.block_len() == 32 => &[32, 96, 288],
        Form::Block(_) => &[256, 512],
    }
}

#[test]
fn look_ups_decode_every_weight_as_the_cpu_does() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for form in forms() {
        // The last one has more than the 256 blocks that share a number of doubly quantised scales.
        let many = *lengths(form).iter().max().expect("some lengths");
        for [n, k] in lengths(form).iter().map(|&k| [5, k]).chain([[61, many]]) {
            let table = Weights::new(&gpu, form, [n, k], 4);
            let mut ids: Vec<u32> = (0..table.n as u32).rev().collect();
            ids.extend([0, 3, 3]);
            let device_ids = guarded(&gpu, &ids);
            let want: Vec<f32> = ids
                .iter()
                .flat_map(|&id| table.values[id as usize * table.k..][..table.k].to_vec())
                .collect();
            for (storage, skip) in Storage::ALL.into_iter().flat_map(|s| [(s, 0), (s, 1)]) {
                let mut out = OnDevice::new(&gpu, storage, &vec![3.0; want.len()], skip);
                gather(&gpu, out.floats_mut(), &table.device, device_ids.slice()).unwrap();
                let want: Vec<f32> = match storage {
                    Storage::F32 => want.clone(),
                    Storage::Bf16 => want.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
                };
                let case = format!("{form:?} [{}, {}] {storage:?} +{skip}", table.n, table.k);
                failures.compare_bits(&case, &out.get(), &want);
            }
        }
    }
    failures.end();
}

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    transposed: bool,
    precision: Precision,
    x: Kind,
    skip: usize,
    low: bool,
    acc: bool,
    alpha: f32,
    bias: bool,
    /// Inputs of the second product.
    k2: usize,
}

/// Numbers of a case: x, bias, the second pair, and what is in `out` before.
struct Inputs {
    x: Numbers,
    bias: Numbers,
    u: Numbers,
    b: Numbers,
    old: Vec<f32>,
    /// Outputs of a row, inputs.
    n: usize,
    k: usize,
}

impl Inputs {
    fn new(gpu: &Gpu, w: &Weights, case: &Case, seed: u64) -> Inputs {
        let (n, k) = if case.transposed { (w.n, w.k) } else { (w.k, w.n) };
        let mut rng = Rng::new(seed, 9);
        let mut draw = |kind, rows, cols, skip| {
            Numbers::new(gpu, kind, &normals(&mut rng, rows * cols), rows, cols, skip)
        };
        let x = draw(case.x, case.m, k, case.skip);
        let bias = draw(Kind::F32, 1, n, 0);
        let u = draw(Kind::Bf16, case.m, case.k2, 0);
        let (rows, cols) = if case.transposed { (n, case.k2) } else { (case.k2, n) };
        let b = draw(Kind::Bf16, rows, cols, 0);
        let old = normals(&mut rng, case.m * n);
        Inputs { x, bias, u, b, old, n, k }
    }

    /// Element [i, j] of the first factor of all inputs in a row: the first product's, zeros up to a
    /// multiple of 32, as kernels fill stages up, and the second's.
    fn joined(&self, case: &Case, w: &Weights, gpu: &Gpu) -> (Numbers, Numbers) {
        let (k, k2, n, m) = (self.k, case.k2, self.n, case.m);
        let first = if k2 > 0 { k.next_multiple_of(32) } else { k };
        let all = first + k2;
        let at = |i: usize, j: usize| match j {
            _ if j < k => self.x.values[i * k + j],
            _ if j < first => 0.0,
            _ => self.u.values[i * k2 + j - first],
        };
        let weight = |col: usize, j: usize| match (j, case.transposed) {
            (j, true) if j < k => w.values[col * k + j],
            (j, false) if j < k => w.values[j * n + col],
            (j, _) if j < first => 0.0,
            (j, true) => self.b.values[col * k2 + j - first],
            (j, false) => self.b.values[(j - first) * n + col],
        };
        let left: Vec<f32> = (0..m * all).map(|i| at(i / all, i % all)).collect();
        let right: Vec<f32> = (0..n * all).map(|i| weight(i / all, i % all)).collect();
        let kind = kind_of(case.precision);
        let x = if case.precision == Precision::F32 { Kind::F32 } else { case.x };
        (Numbers::new(gpu, x, &left, m, all, 0), Numbers::new(gpu, kind, &right, n, all, 0))
    }
}

/// Runs `step` once, or twice to add, on an output with sentinels; its f32 values.
fn run(
    gpu: &Gpu,
    case: &Case,
    old: &[f32],
    step: &mut dyn FnMut(FloatsMut<'_>) -> puna::Result<()>,
) -> Option<Vec<f32>> {
    let low: Vec<bf16> = old.iter().map(|&x| bf16::from_f32(x)).collect();
    let mut f32 = guarded(gpu, if case.low { &[] } else { old });
    let mut bf16 = guarded(gpu, if case.low { &low[..] } else { &[] });
    for _ in 0..if case.acc { 2 } else { 1 } {
        let out = match case.low {
            true => FloatsMut::Bf16(bf16.slice_mut()),
            false => FloatsMut::F32(f32.slice_mut()),
        };
        match step(out) {
            Ok(()) => {}
            Err(Error::Unsupported(_)) => return None,
            Err(e) => panic!("{case:?}: {e}"),
        }
    }
    Some(match case.low {
        true => bf16.check().iter().map(|x| x.to_f32()).collect(),
        false => f32.check(),
    })
}

/// A case by each kernel; how many took it.
fn check(gpu: &Gpu, w: &Weights, case: &Case, seed: u64, failures: &mut Failures) -> usize {
    let inputs = Inputs::new(gpu, w, case, seed);
    let (left, right) = inputs.joined(case, w, gpu);
    let &Case { acc, alpha, precision, transposed, .. } = case;
    let bias = || {
        let matmul::Source::F32(x) = inputs.bias.source() else { unreachable!("made as f32") };
        case.bias.then_some(Floats::F32(x))
    };
    // The order of f32's plain kernels for few rows is another: the tiled one's is asked for.
    let plain_kernel = match precision {
        Precision::F32 => matmul::Kernel::Small,
        Precision::Bf16 => matmul::Kernel::Any,
    };
    let plain = run(gpu, case, &inputs.old, &mut |out| {
        let product = matmul::Product::new(precision, out, left.factor(), right.factor().t());
        matmul::gemm_by(gpu, matmul::Product { acc, alpha, bias: bias(), ..product }, plain_kernel)
    });
    let plain = plain.expect("this kernel takes everything");
    let kernels = match precision {
        Precision::F32 => &[Kernel::Chosen][..],
        Precision::Bf16 => &[Kernel::Large, Kernel::Small, Kernel::Skinny, Kernel::Chosen],
    };
    let mut taken = 0;
    for &kernel in kernels {
        let got = run(gpu, case, &inputs.old, &mut |out| {
            let second: Option<[Factor<'_>; 2]> =
                (case.k2 > 0).then(|| [inputs.u.factor(), inputs.b.factor()]);
            let product = Product::nt(precision, out, inputs.x.factor(), &w.device);
            let product = Product { acc, alpha, transposed, second, bias: bias(), ..product };
            gemm_by(gpu, product, kernel)
        });
        let Some(got) = got else { continue };
        taken += 1;
        let name = format!("{:?} [{}, {}] {case:?} by {kernel:?}", w.form, w.n, w.k);
        // The separate sums of f32 are rounded in between, so that only the bound holds.
        if case.k2 == 0 || precision == Precision::Bf16 {
            failures.compare_bits(&name, &got, &plain);
        }
        let sums: Vec<Sum> =
            (0..case.m * inputs.n).map(|i| inputs.sum(case, &left, &right, i)).collect();
        let want: Vec<f64> = sums.iter().map(|sum| sum.value).collect();
        let stores = if acc { 2.0 } else { 1.0 };
        let off = |i: usize| {
            bound(left.values.len() / case.m, sums[i].size)
                + stores * store_error(case.low, sums[i].size)
        };
        failures.compare(&name, &got, &want, off);
        let telling = (0..want.len()).filter(|&i| want[i].abs() > off(i)).count();
        if 2 * telling < want.len() {
            failures.note(format!("{name}: the bound tells {telling} of {}", want.len()));
        }
    }
    taken
}

impl Inputs {
    /// What element `i` of the output should be, and the size of what it is summed from.
    fn sum(&self, case: &Case, left: &Numbers, right: &Numbers, i: usize) -> Sum {
        let (row, col, all) = (i / self.n, i % self.n, left.values.len() / case.m);
        let at = |x: &Numbers, i: usize| f64::from(rounded(case.precision, x.values[i]));
        let sum = Sum::of((0..all).map(|j| (at(left, row * all + j), at(right, col * all + j))));
        let shift = if case.bias { f64::from(self.bias.values[col]) } else { 0.0 };
        let old = match case.low {
            true => bf16::from_f32(self.old[i]).to_f32(),
            false => self.old[i],
        };
        let (before, times) = if case.acc { (f64::from(old), 2.0) } else { (0.0, 1.0) };
        let alpha = f64::from(case.alpha);
        Sum {
            value: before + times * (alpha * sum.value + shift),
            size: before.abs() + times * (alpha.abs() * sum.size + shift.abs()),
        }
    }
}

/// Rows of x, rows of W: one, tails of fragments and of tiles of 64.
const SIZES: [[usize; 2]; 5] = [[1, 7], [3, 65], [16, 1], [17, 40], [65, 33]];

#[test]
fn products_have_the_bits_of_those_with_the_decoded_matrix() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (number, form) in forms().into_iter().enumerate() {
        let mut taken = 0;
        for (i, [m, n]) in SIZES.into_iter().enumerate() {
            let k = lengths(form)[(i + number) % lengths(form).len()];
            let seed = (10 * number + i) as u64;
            let w = Weights::new(&gpu, form, [n, k], seed);
            for transposed in [true, false] {
                // Each choice meets each other over the formats and sizes.
                let turn = |n: usize| (3 * number + 5 * i + usize::from(transposed)) / n;
                let case = Case {
                    m,
                    transposed,
                    precision: Precision::Bf16,
                    x: [Kind::Bf16, Kind::F32][turn(1) % 2],
                    skip: usize::from(turn(2) % 4 == 3),
                    low: turn(3) % 2 == 1,
                    acc: turn(2) % 2 == 1,
                    alpha: [1.0, -0.75][turn(4) % 2],
                    bias: turn(5) % 3 == 1,
                    k2: 0,
                };
                taken += check(&gpu, &w, &case, seed, &mut failures);
                let single = Case { precision: Precision::F32, ..case };
                check(&gpu, &w, &single, seed, &mut failures);
            }
        }
        // Small and chosen always; skinny ones for 3 of the sizes where rows begin with blocks.
        assert!(taken >= 20, "{form:?}: kernels took {taken} cases");
    }
    failures.end();
}

#[test]
fn a_second_product_follows_in_the_same_sums() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let q4_k = Form::Block(BlockType::Q4_K);
    // A rank that is no multiple of a stage; one that kernels do not take, which runs apart.
    for (form, [n, k], k2) in [
        (Form::Nf4 { double: true }, [72, 320], 24),
        (q4_k, [40, 256], 8),
        (Form::Nf4 { double: false }, [40, 72], 16),
    ] {
        let w = Weights::new(&gpu, form, [n, k], 77);
        for m in [5, 70] {
            for transposed in [true, false] {
                let case = Case {
                    m,
                    transposed,
                    precision: Precision::Bf16,
                    x: Kind::Bf16,
                    skip: 0,
                    low: false,
                    acc: m == 70,
                    alpha: 0.5,
                    bias: transposed,
                    k2,
                };
                check(&gpu, &w, &case, 5, &mut failures);
                let single = Case { precision: Precision::F32, x: Kind::F32, ..case };
                check(&gpu, &w, &single, 5, &mut failures);
            }
        }
    }
    failures.end();
}

#[test]
fn wide_blocks_and_long_rows_of_few_rows() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    let sizes = [
        (Form::Nf4 { double: true }, [3464, 64]),
        (Form::Block(BlockType::Q8_0), [3460, 32]),
        // More units than the ring has stages.
        (Form::Nf4 { double: true }, [9, 1728]),
        (Form::Block(BlockType::Q6_K), [9, 2048]),
        (Form::Block(BlockType::Q5_0), [9, 1568]),
    ];
    for (form, [n, k]) in sizes {
        let w = Weights::new(&gpu, form, [n, k], 31);
        let case = Case {
            m: 2,
            transposed: true,
            precision: Precision::Bf16,
            x: Kind::F32,
            skip: 0,
            low: false,
            acc: false,
            alpha: 1.0,
            bias: false,
            k2: 0,
        };
        check(&gpu, &w, &case, 6, &mut failures);
    }
    failures.end();
}

#[test]
fn a_gated_product_is_that_of_the_decoded_matrices() {
    let Some(gpu) = gpu() else { return };
    let mut failures = Failures::default();
    for (i, form) in forms().into_iter().enumerate() {
        let k = lengths(form)[1];
        let (m, n) = ([1, 5, 16][i % 3], [9, 34][i % 2]);
        let [w1, w3] = [1, 2].map(|seed| Weights::new(&gpu, form, [n, k], seed));
        let [plain1, plain3] = [&w1, &w3].map(|w| w.numbers(&gpu, Precision::Bf16));
        let mut rng = Rng::new(8, i as u64);
        let kind = [Kind::Bf16, Kind::F32][i / 2 % 2];
        let x = Numbers::new(&gpu, kind, &normals(&mut rng, m * k), m, k, 0);
        let (mut got, mut want) =
            (guarded(&gpu, &vec![5f32; m * n]), guarded(&gpu, &vec![6f32; m * n]));
        gated(&gpu, FloatsMut::F32(got.slice_mut()), x.factor(), &w1.device, &w3.device).unwrap();
        let (out, any) = (FloatsMut::F32(want.slice_mut()), matmul::Kernel::Any);
        matmul::gated_by(&gpu, out, x.factor(), plain1.factor(), plain3.factor(), any).unwrap();
        let name = format!("{form:?} [{m}, {n}, {k}]");
        failures.compare_bits(&name, &got.check(), &want.check());
        // What more rows take instead.
        let parts = [&w1, &w3].map(|w| {
            let mut out = guarded(&gpu, &vec![7f32; m * n]);
            let to = FloatsMut::F32(out.slice_mut());
            gemm(&gpu, Product::nt(Precision::Bf16, to, x.factor(), &w.device)).unwrap();
            out
        });
        let [gate, up] = parts.each_ref().map(|part| part.slice());
        swiglu::swiglu(&gpu, want.slice_mut().into(), gate.into(), up.into()).unwrap();
        // The gated kernel adds its results to nothing, which makes a zero of either sign positive.
        let want: Vec<f32> = want.check().iter().map(|x| x + 0.0).collect();
        failures.compare_bits(&format!("{name}, parts"), &got.check(), &want);
    }
    failures.end();
}

/// Numbers with some blocks of zeros, denormal ones, ties between codes, and of every size.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut w = normals(&mut Rng::new(seed, len as u64), len);
    for (i, w) in w.iter_mut().enumerate() {
        match i / 64 % 6 {
            1 => *w *= 1e-3,
            2 => *w = 0.0,
            3 => *w *= f32::from_bits(3 + i as u32 / 64),
            // Halfway between codes of a block whose scale is 1.
            4 => *w = [1.0, -0.84809643, 0.03979015, -0.0][i % 4],
            5 => *w *= 1e30,
            _ => {}
        }
    }
    w
}

#[test]
fn the_encoder_of_nf4_has_the_bits_of_the_cpu_s() {
    let Some(gpu) = gpu() else { return };
    let team = Team::new(1).unwrap();
    // Whole blocks, more than the 256 that share a number; blocks that begin inside rows; a short last
    // block; nothing; two pieces.
    let sizes = [[3, 64], [70, 320], [9, 40], [5, 65], [1, 7], [0, 64], [130, 33_001]];
    for [n, k] in sizes {
        // Of the large one once is enough.
        for double in [false, true].into_iter().filter(|double| *double || k < 1000) {
            let w = numbers(n * k, 31);
            let name = format!("[{n}, {k}] double {double}");
            let low: Vec<bf16> = w.iter().map(|&x| bf16::from_f32(x)).collect();
            let half: Vec<f16> =
                w.iter().map(|&x| f16::from_f32(x.clamp(-60000.0, 60000.0))).collect();
            let check = |got: Option<QuantMatrix>, w: Vec<f32>| {
                let got = got.expect("finite weights").contents(&gpu).unwrap();
                let nf4 = Nf4Matrix::of(&team, &w, [n, k], double);
                let want = QuantMatrix::from_nf4(&gpu, &nf4).unwrap().contents(&gpu).unwrap();
                assert!(got == want, "{name}: other bits");
            };
            let of = QuantMatrix::encode_nf4(&gpu, [n, k], double, |first, out: &mut [f32]| {
                out.copy_from_slice(&w[first..][..out.len()]);
                Ok(())
            });
            check(of.unwrap(), w.clone());
            if k > 1000 {
                continue;
            }
            let of = QuantMatrix::encode_nf4(&gpu, [n, k], double, |first, out: &mut [bf16]| {
                out.copy_from_slice(&low[first..][..out.len()]);
                Ok(())
            });
            check(of.unwrap(), low.iter().map(|x| x.to_f32()).collect());
            let of = QuantMatrix::encode_nf4(&gpu, [n, k], double, |first, out: &mut [f16]| {
                out.copy_from_slice(&half[first..][..out.len()]);
                Ok(())
            });
            check(of.unwrap(), half.iter().map(|x| x.to_f32()).collect());
        }
    }
}

#[test]
fn the_encoder_of_nf4_tells_of_weights_that_are_not_finite() {
    let Some(gpu) = gpu() else { return };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for double in [false, true] {
            let fill = |first: usize, out: &mut [f32]| {
                assert_eq!(first, 0);
                out.fill(0.5);
                out[200] = bad;
                Ok(())
            };
            let of = QuantMatrix::encode_nf4(&gpu, [4, 64], double, fill).unwrap();
            assert!(of.is_none(), "{bad}");
        }
    }
}

#[test]
fn a_matrix_takes_hardly_more_bytes_than_its_blocks() {
    let Some(gpu) = gpu() else { return };
    for form in forms() {
        let w = Weights::new(&gpu, form, [33, 512], 1);
        let (bytes, name) = match form {
            Form::Nf4 { double } => (Nf4Matrix::bytes_of(33, 512, double), "NF4"),
            Form::Block(block) => (33 * block.row_bytes(512), block.name()),
        };
        assert_eq!(w.device.type_name(), name);
        // Q3_K: 12 bytes of scales become 16, and d has two bytes beside it, of 110.
        assert!(w.device.bytes() * 100 <= bytes * 106, "{form:?}: {} of {bytes}", w.device.bytes());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(gpu) = gpu() else { return };
    let bytes = vec![0; 3 * BlockType::Q4_0.row_bytes(64)];
    for shape in [[3, 32], [4, 64], [3, 63]] {
        let made = QuantMatrix::from_blocks(&gpu, BlockType::Q4_0, shape, &bytes);
        assert!(matches!(made, Err(Error::Shape { .. })), "{shape:?}: {made:?}");
    }
    let w = Weights::new(&gpu, Form::Block(BlockType::Q4_1), [3, 64], 1);
    let other = Weights::new(&gpu, Form::Block(BlockType::Q4_0), [3, 64], 1);
    let x = Numbers::new(&gpu, Kind::Bf16, &vec![1.0; 17 * 64], 17, 64, 0);
    let mut out = gpu.alloc::<f32>(17 * 3).unwrap();
    let mut product = |kernel| {
        let to = FloatsMut::F32(out.slice_mut());
        gemm_by(&gpu, Product::nt(Precision::Bf16, to, x.factor(), &w.device), kernel)
    };
    for kernel in [Kernel::Large, Kernel::Skinny] {
        let refused = product(kernel);
        assert!(matches!(refused, Err(Error::Unsupported(_))), "{kernel:?}: {refused:?}");
    }
    product(Kernel::Chosen).unwrap();
    let to = FloatsMut::F32(out.slice_mut());
    let refused = gemm(&gpu, Product::nn(Precision::Bf16, to, x.factor(), &w.device));
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    let short = gpu.alloc::<f32>(2).unwrap();
    let (to, bias) = (FloatsMut::F32(out.slice_mut()), Some(Floats::F32(short.slice())));
    let product = Product::nt(Precision::F32, to, x.factor(), &w.device);
    let refused = gemm(&gpu, Product { bias, ..product });
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    let one = Numbers::new(&gpu, Kind::Bf16, &[1.0; 64], 1, 64, 0);
    let to = FloatsMut::F32(out.slice_mut().range_mut(0..3));
    let refused = gated(&gpu, to, one.factor(), &w.device, &other.device);
    assert!(matches!(refused, Err(Error::Unsupported(_))), "{refused:?}");
    let ids = gpu.upload(&[0u32]).unwrap();
    let to = FloatsMut::F32(out.slice_mut().range_mut(0..3));
    let refused = gather(&gpu, to, &w.device, ids.slice());
    assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
}
