use super::*;
use crate::team::Team;
use half::f16;

fn draw(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    ((*state >> 33) % 2_000_001) as f32 / 1e6 - 1.0
}

fn weights(dtype: Dense, count: usize, state: &mut u64) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = Vec::new();
    let mut values = Vec::new();
    for _ in 0..count {
        let v = draw(state);
        match dtype {
            Dense::F32 => {
                bytes.extend(v.to_le_bytes());
                values.push(v);
            }
            Dense::F16 => {
                bytes.extend(f16::from_f32(v).to_le_bytes());
                values.push(f16::from_f32(v).to_f32());
            }
            Dense::BF16 => {
                bytes.extend(bf16::from_f32(v).to_le_bytes());
                values.push(bf16::from_f32(v).to_f32());
            }
        }
    }
    (bytes, values)
}

fn product(isa: Isa, w: DenseMatrix<'_>, x: &[f32], low: bool, threads: usize) -> Vec<f32> {
    let team = Team::new(threads).unwrap();
    let mut rounded = Bf16Acts::default();
    if low {
        rounded.round(isa, &team, x, x.len() / w.k, w.k);
    }
    let acts = DenseActs { f32: x, bf16: low.then_some(&rounded) };
    let mut out = vec![f32::NAN; x.len() / w.k * w.n];
    let shared = SharedMut::new(&mut out);
    team.split(w.n, ROW_GRAIN, &|_, rows| {
        let mut scratch = DenseScratch::default();
        // SAFETY: each member has its own rows.
        unsafe { dense_product(isa, &shared, w, acts, rows, &mut scratch) }
    });
    out
}

#[test]
fn every_level_and_type_equals_the_plain_sum_of_products() {
    let mut state = 5;
    for isa in Isa::available() {
        for dtype in [Dense::F32, Dense::F16, Dense::BF16] {
            for (n, k) in [(1, 1), (3, 7), (5, 15), (4, 16), (7, 17), (66, 31), (9, 33), (6, 2083)]
            {
                // One byte in front: the file promises no alignment.
                let (mut bytes, values) = weights(dtype, n * k, &mut state);
                bytes.insert(0, 0);
                let w = DenseMatrix { bytes: &bytes[1..], dtype, n, k };
                for m in [1, 2, 4, 5, 6, 7, 13] {
                    let x: Vec<f32> = (0..m * k).map(|_| draw(&mut state)).collect();
                    for low in [false, wants_bf16(isa, dtype)] {
                        let out = product(isa, w, &x, low, 1);
                        for r in 0..m {
                            for c in 0..n {
                                let (mut sum, mut norm) = (0.0f64, 0.0f64);
                                for i in 0..k {
                                    let x = x[r * k + i];
                                    let x = if low { bf16::from_f32(x).to_f32() } else { x };
                                    sum += x as f64 * values[c * k + i] as f64;
                                    norm += (x as f64 * values[c * k + i] as f64).abs();
                                }
                                // Chains of k / 8 roundings at most, then a tree of three.
                                let bound = (k as f64 / 8.0 + 8.0) * f32::EPSILON as f64 * norm;
                                let got = out[r * n + c] as f64;
                                assert!(
                                    (got - sum).abs() <= bound,
                                    "{isa} {dtype:?} [{n},{k}] m={m} ({r},{c}) {got} {sum} ± {bound}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads() {
    let mut state = 6;
    for isa in Isa::available() {
        for dtype in [Dense::F32, Dense::F16, Dense::BF16] {
            let (n, k, m) = (83, 2100, 15);
            let (bytes, _) = weights(dtype, n * k, &mut state);
            let w = DenseMatrix { bytes: &bytes, dtype, n, k };
            let x: Vec<f32> = (0..m * k).map(|_| draw(&mut state)).collect();
            for low in [false, wants_bf16(isa, dtype)] {
                let whole = product(isa, w, &x, low, 1);
                for threads in [2, 3] {
                    assert_eq!(whole, product(isa, w, &x, low, threads), "{isa} {dtype:?}");
                }
                for few in 1..8 {
                    let part = product(isa, w, &x[..few * k], low, 2);
                    assert_eq!(whole[..few * n], part, "{isa} {dtype:?} {few}");
                }
            }
        }
    }
}
