use super::layout::Layout;
use super::*;
use crate::team::{SharedMut, Team};
use half::f16;

const ALL: [BlockType; 10] = [
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q8_0,
    BlockType::Q2_K,
    BlockType::Q3_K,
    BlockType::Q4_K,
    BlockType::Q5_K,
    BlockType::Q6_K,
];

/// A small linear congruential generator: the tests need variety, not quality.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn float(&mut self) -> f32 {
        (self.next() % 2_000_001) as f32 / 1e6 - 1.0
    }
}

/// Random blocks: any bits are codes, but the f16 fields must be finite and small.
fn random_rows(block: BlockType, n: usize, k: usize, draws: &mut Draws) -> Vec<u8> {
    let halves: &[usize] = match block {
        BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 => &[0],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4_K | BlockType::Q5_K => &[0, 2],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q3_K => &[108],
        BlockType::Q6_K => &[208],
    };
    let mut rows = vec![0u8; n * block.row_bytes(k)];
    for bytes in rows.chunks_exact_mut(block.block_bytes()) {
        for byte in bytes.iter_mut() {
            *byte = draws.next() as u8;
        }
        for &at in halves {
            let value = f16::from_f32(draws.float() * 0.02);
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
    }
    rows
}

fn activations(isa: Isa, x: &[f32], k: usize) -> QActs {
    let mut acts = QActs::default();
    let m = x.len() / k;
    acts.resize(m, k);
    let (codes, meta) = acts.rows_mut(m);
    quantize(isa, codes, meta, x);
    acts
}

fn product(isa: Isa, w: &PackedMatrix, acts: &QActs, m: usize, threads: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * w.n()];
    let shared = SharedMut::new(&mut out);
    let team = Team::new(threads).unwrap();
    team.split(w.n_panels(), PANEL_GRAIN, &|_, panels| {
        let mut scratch = PanelScratch::default();
        // SAFETY: each member has its own panels.
        unsafe { panels_product(isa, &shared, w, acts, m, panels, &mut scratch) };
    });
    out
}

#[test]
fn packing_loses_nothing() {
    let mut draws = Draws(1);
    for block in ALL {
        for n in [1, 5, 16, 19] {
            let k = 2 * block.block_len();
            let rows = random_rows(block, n, k, &mut draws);
            let packed = PackedMatrix::from_blocks(block, n, k, &rows);
            for (r, bytes) in rows.chunks_exact(block.row_bytes(k)).enumerate() {
                let (mut ours, mut theirs) = (vec![0.0f32; k], vec![0.0f32; k]);
                packed.decode_row(&mut ours, r);
                crate::quant::decode_row(block, &mut theirs, bytes);
                for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
                    // The two may round a product and a sum in another order: 4 units in the
                    // last place of the larger part.
                    let bound = 4.0 * f32::EPSILON * 0.02 * 64.0 * 64.0;
                    assert!((a - b).abs() <= bound, "{block:?} row {r} weight {i}: {a} {b}");
                }
            }
        }
    }
}

#[test]
fn every_level_equals_the_plain_sum_of_products() {
    let mut draws = Draws(2);
    for isa in Isa::available() {
        for block in ALL {
            for (n, k) in [(1, 1), (15, 2), (16, 1), (17, 3), (33, 1), (48, 2)] {
                let k = k * block.block_len();
                let rows = random_rows(block, n, k, &mut draws);
                let w = PackedMatrix::from_blocks(block, n, k, &rows);
                for m in [1, 2, 3, 5, 8, 9, 13] {
                    let x: Vec<f32> = (0..m * k).map(|_| draws.float()).collect();
                    let acts = activations(isa, &x, k);
                    let out = product(isa, &w, &acts, m, 1);
                    let mut row = vec![0.0f32; k];
                    for c in 0..n {
                        w.decode_row(&mut row, c);
                        for r in 0..m {
                            let (mut sum, mut norm) = (0.0f64, 0.0f64);
                            for (i, w) in row.iter().enumerate() {
                                let meta = &acts.meta(r)[i / BLOCK];
                                let a = acts.codes(r)[i] as f64 * meta.d as f64;
                                sum += *w as f64 * a;
                                // Offsets and minima enter as parts of their own.
                                norm += (w.abs() as f64 + 0.02 * 64.0 * 16.0) * a.abs();
                            }
                            let got = out[r * n + c] as f64;
                            // A few roundings per block, each relative to the parts' size.
                            let bound = 4.0 * f32::EPSILON as f64 * norm + 1e-12;
                            assert!(
                                (got - sum).abs() <= bound,
                                "{isa} {block:?} [{n},{k}] m={m} ({r},{c}): {got} {sum} ± {bound}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_a_batch_and_on_any_number_of_threads() {
    let mut draws = Draws(3);
    for isa in Isa::available() {
        for block in ALL {
            let (n, k, m) = (71, 3 * block.block_len(), 23);
            let rows = random_rows(block, n, k, &mut draws);
            let w = PackedMatrix::from_blocks(block, n, k, &rows);
            let x: Vec<f32> = (0..m * k).map(|_| draws.float()).collect();
            let whole = product(isa, &w, &activations(isa, &x, k), m, 1);
            for threads in [2, 3] {
                assert_eq!(whole, product(isa, &w, &activations(isa, &x, k), m, threads));
            }
            for few in [1, 2, 3, 4, 5, 6, 7, 8, 9, 11] {
                let part = activations(isa, &x[..few * k], k);
                assert_eq!(whole[..few * n], product(isa, &w, &part, few, 2), "{isa} {block:?}");
            }
        }
    }
}

#[test]
fn exact_products_follow_f32_activations() {
    let mut draws = Draws(4);
    for isa in Isa::available() {
        for block in ALL {
            let (n, k, m) = (20, block.block_len(), 66);
            let rows = random_rows(block, n, k, &mut draws);
            let w = PackedMatrix::from_blocks(block, n, k, &rows);
            let x: Vec<f32> = (0..m * k).map(|_| draws.float()).collect();
            let mut out = vec![f32::NAN; m * n];
            // SAFETY: one thread.
            unsafe {
                panels_product_exact(isa, &SharedMut::new(&mut out), &w, &x, 0..w.n_panels());
            }
            let mut row = vec![0.0f32; k];
            for c in 0..n {
                w.decode_row(&mut row, c);
                for (r, x) in x.chunks_exact(k).enumerate() {
                    let sum: f64 = row.iter().zip(x).map(|(w, x)| *w as f64 * *x as f64).sum();
                    let norm: f64 =
                        row.iter().zip(x).map(|(w, x)| (*w as f64 * *x as f64).abs()).sum();
                    // k roundings of partial sums, each below the sum of magnitudes.
                    let bound = k as f64 * f32::EPSILON as f64 * norm;
                    assert!((out[r * n + c] as f64 - sum).abs() <= bound, "{isa} {block:?}");
                }
            }
        }
    }
}

#[test]
fn panels_take_little_more_than_the_blocks() {
    for block in ALL {
        let k = 2048;
        let packed = Layout::of(block).panel_bytes(k / BLOCK) as f64;
        let blocks = (ROWS * block.row_bytes(k)) as f64;
        // Widened scales of the k-quants are the only addition: 148 bytes for 144 at Q4_K.
        assert!(packed / blocks < 1.22, "{block:?}: {packed} for {blocks} bytes");
    }
}

/// Kept panels are known by [`PACKING`]. Where this fails the layout has changed: give PACKING
/// another number, and this test the new sums.
#[test]
fn the_layout_has_its_number() {
    let fnv = |bytes: &[u8]| {
        bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        })
    };
    let sums = BlockType::ALL.map(|block| {
        let (n, k) = (19, 512);
        let bytes: Vec<u8> = (0..n * block.row_bytes(k)).map(|i| (i * 7 + i / 256) as u8).collect();
        fnv(PackedMatrix::from_blocks(block, n, k, &bytes).panels())
    });
    let known = [
        2631153303574456445,
        9964754607997330317,
        14222935200982736477,
        18270575935489237297,
        8946032311371458445,
        8868743465974028983,
        18402760709023747042,
        3371908639255592126,
        5913227832234151016,
        15865728298538024604,
    ];
    assert_eq!((PACKING, sums), (1, known));
}
