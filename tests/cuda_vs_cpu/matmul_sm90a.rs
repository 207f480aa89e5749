//! Products by the warp groups of compute capability 9.0 against plain sums in f64, and beside the
//! kernels that every device has. On the harness they hold to our reading of the manual only.

use puna::cuda::matmul::{Kernel, Precision, Product, gemm_by};
use puna::cuda::{FloatsMut, Gpu};
use puna::error::Error;
use puna::rng::Rng;

use crate::matmul::{Case, EPS, Kind, Numbers, check};
use crate::support::{gpu, hopper};

/// Tails on each side, more stages than the ring has, more tiles than a block takes at once, sizes
/// that are whole. n or m that is no multiple of 8 is for the forms that have it across.
const SIZES: [[usize; 3]; 11] = [
    [1, 8, 8],
    [64, 256, 64],
    [128, 256, 256],
    [129, 264, 72],
    [72, 65, 40],
    [65, 72, 136],
    [16, 8, 1304],
    [136, 520, 200],
    [300, 600, 72],
    [385, 40, 328],
    [8, 1032, 16],
];

fn check_all(kernel: Kernel, sizes: &[[usize; 3]]) -> usize {
    let Some(gpu) = hopper() else { return usize::MAX };
    let (mut taken, mut seed) = (0, 0);
    for &[m, n, k] in sizes {
        for form in 0..4 {
            seed += 1;
            let case = Case {
                m,
                n,
                k,
                a: (Kind::Bf16, form / 2 == 1),
                b: (Kind::Bf16, form % 2 == 1),
                skip: 0,
                precision: Precision::Bf16,
                alpha: if seed % 2 == 0 { 1.0 } else { -0.75 },
                bias: [None, Some(Kind::F32), Some(Kind::Bf16)][seed as usize % 3],
            };
            taken += usize::from(check(&gpu, &case, kernel, seed));
        }
    }
    taken
}

#[test]
fn wgmma_products_are_the_sum_of_products() {
    // One form.
    assert!(check_all(Kernel::Wgmma, &SIZES) >= SIZES.len());
}

#[test]
fn tma_products_are_the_sum_of_products_in_every_form() {
    // Of 44, those whose stored rows are a multiple of 8.
    assert!(check_all(Kernel::Tma, &SIZES) >= 32);
}

/// The bits of `x wᵀ`, of the first `rows` rows of x.
fn bits(gpu: &Gpu, kernel: Kernel, x: &Numbers, w: &Numbers, [rows, n, k]: [usize; 3]) -> Vec<f32> {
    let first = Numbers::new(gpu, Kind::Bf16, &x.values[..rows * k], rows, k, 0);
    let mut out = gpu.upload(&vec![0f32; rows * n]).unwrap();
    let to = FloatsMut::F32(out.slice_mut());
    let product = Product::new(Precision::Bf16, to, first.factor(), w.factor().t());
    gemm_by(gpu, product, kernel).unwrap();
    let mut got = vec![0f32; rows * n];
    gpu.download(&out.slice(), &mut got).unwrap();
    got
}

#[test]
fn warp_groups_give_rows_the_same_bits_in_any_company() {
    let Some(gpu) = hopper() else { return };
    let mut rng = Rng::new(5, 0);
    let [m, n, k] = [200, 264, 392];
    let x = Numbers::random(&gpu, &mut rng, Kind::Bf16, m, k);
    let w = Numbers::random(&gpu, &mut rng, Kind::Bf16, n, k);
    let whole = bits(&gpu, Kernel::Tma, &x, &w, [m, n, k]);
    for rows in [1, 3, 64, 65, 129] {
        let few = bits(&gpu, Kernel::Tma, &x, &w, [rows, n, k]);
        assert!(whole[..rows * n] == few, "{rows} rows");
    }
    assert!(whole == bits(&gpu, Kernel::Wgmma, &x, &w, [m, n, k]), "the other copies");
    // What the smaller instruction gives is as near; whether it is the same is for a GPU to say, and
    // has to be known before `Kernel::Chosen` may mix the two.
    let small = bits(&gpu, Kernel::Large, &x, &w, [m, n, k]);
    let differ = whole.iter().zip(&small).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    println!("wgmma and mma differ in the bits of {differ} of {} results", whole.len());
    for i in 0..m * n {
        let term = |j| f64::from(x.values[i / n * k + j]) * f64::from(w.values[i % n * k + j]);
        let size: f64 = (0..k).map(|j| term(j).abs()).sum();
        let distance = f64::from(whole[i] - small[i]).abs();
        assert!(distance <= 2.0 * (k + 8) as f64 * EPS * size, "[{i}]");
    }
}

#[test]
fn warp_groups_are_refused_by_name_where_they_are_not() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(2, 2);
    let x = Numbers::random(&gpu, &mut rng, Kind::Bf16, 8, 16);
    let mut out = gpu.alloc::<f32>(64).unwrap();
    let elsewhere = gpu.properties().capability != (9, 0);
    for kernel in [Kernel::Wgmma, Kernel::Tma] {
        let to = FloatsMut::F32(out.slice_mut());
        let product = Product::new(Precision::Bf16, to, x.factor(), x.factor().t());
        let result = gemm_by(&gpu, product, kernel);
        match result {
            Err(Error::Unsupported(why)) if elsewhere => assert!(why.contains("9.0"), "{why}"),
            other => assert!(other.is_ok() && !elsewhere, "{kernel:?}: {other:?}"),
        }
    }
}

#[test]
fn warp_groups_refuse_factors_that_they_cannot_read() {
    let Some(gpu) = hopper() else { return };
    let mut rng = Rng::new(2, 2);
    let refused = |kernel, a: &Numbers, b: &Numbers, n: usize, transposed| {
        let mut out = gpu.alloc::<f32>(8 * n).unwrap();
        let b = if transposed { b.factor().t() } else { b.factor() };
        let product = Product::new(Precision::Bf16, FloatsMut::F32(out.slice_mut()), a.factor(), b);
        matches!(gemm_by(&gpu, product, kernel), Err(Error::Unsupported(_)))
    };
    let mut draw = |kind, rows, cols| Numbers::random(&gpu, &mut rng, kind, rows, cols);
    let (x, y) = (draw(Kind::Bf16, 8, 16), draw(Kind::Bf16, 16, 8));
    let (odd, odd_x) = (draw(Kind::Bf16, 16, 7), draw(Kind::Bf16, 8, 7));
    let (wide, none) = (draw(Kind::F32, 8, 16), draw(Kind::Bf16, 8, 0));
    for kernel in [Kernel::Wgmma, Kernel::Tma] {
        assert!(refused(kernel, &wide, &x, 8, true), "{kernel:?}: f32");
        assert!(refused(kernel, &odd_x, &odd_x, 8, true), "{kernel:?}: 7 inputs");
        assert!(refused(kernel, &x, &odd, 7, false), "{kernel:?}: rows of 7");
        assert!(refused(kernel, &none, &none, 8, true), "{kernel:?}: no inputs");
    }
    assert!(refused(Kernel::Wgmma, &x, &y, 8, false), "a form that it has not");
    assert!(!refused(Kernel::Tma, &x, &y, 8, false));
}
