use super::*;
use crate::matmul::Dense;
use crate::quant::{BlockType, encode_row};
use crate::reference;
use crate::testing::Gen;
use half::{bf16, f16};

/// Numbers as one of the sources stores them, and their values.
struct Numbers {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    bytes: Vec<u8>,
    packed: Option<PackedMatrix>,
    nf4: Option<Nf4Matrix>,
    kind: Kind,
    rows: usize,
    cols: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F32,
    Bf16,
    Bytes(Dense),
    Blocks(BlockType),
    /// And whether scales are quantised too.
    Nf4(bool),
}

const KINDS: [Kind; 5] = [
    Kind::F32,
    Kind::Bf16,
    Kind::Bytes(Dense::F32),
    Kind::Bytes(Dense::F16),
    Kind::Bytes(Dense::BF16),
];

impl Numbers {
    fn new(rng: &mut Gen, kind: Kind, rows: usize, cols: usize) -> Numbers {
        let mut f32 = rng.normals(rows * cols);
        let mut numbers = Numbers {
            f32: vec![],
            bf16: vec![],
            bytes: vec![0],
            packed: None,
            nf4: None,
            kind,
            rows,
            cols,
        };
        match kind {
            Kind::F32 => {}
            Kind::Bf16 => {
                numbers.bf16 = f32.iter().map(|&x| bf16::from_f32(x)).collect();
                f32 = numbers.bf16.iter().map(|x| x.to_f32()).collect();
            }
            // One byte in front of the bytes: no alignment is promised.
            Kind::Bytes(Dense::F32) => {
                numbers.bytes.extend(f32.iter().flat_map(|x| x.to_le_bytes()));
            }
            Kind::Bytes(Dense::F16) => {
                let half: Vec<f16> = f32.iter().map(|&x| f16::from_f32(x)).collect();
                numbers.bytes.extend(half.iter().flat_map(|x| x.to_le_bytes()));
                f32 = half.iter().map(|x| x.to_f32()).collect();
            }
            Kind::Bytes(Dense::BF16) => {
                let half: Vec<bf16> = f32.iter().map(|&x| bf16::from_f32(x)).collect();
                numbers.bytes.extend(half.iter().flat_map(|x| x.to_le_bytes()));
                f32 = half.iter().map(|x| x.to_f32()).collect();
            }
            Kind::Blocks(block) => {
                let mut blocks = vec![0u8; rows * block.row_bytes(cols)];
                for (to, row) in
                    blocks.chunks_exact_mut(block.row_bytes(cols)).zip(f32.chunks(cols))
                {
                    encode_row(block, to, row);
                }
                let packed = PackedMatrix::from_blocks(block, rows, cols, &blocks);
                for (r, row) in f32.chunks_mut(cols).enumerate() {
                    packed.decode_row(row, r);
                }
                numbers.packed = Some(packed);
            }
            Kind::Nf4(double_quant) => {
                let team = Team::new(1).unwrap();
                let nf4 = Nf4Matrix::of(&team, &f32, [rows, cols], double_quant);
                nf4.decode(Isa::PORTABLE, &mut f32, 0);
                numbers.nf4 = Some(nf4);
            }
        }
        numbers.f32 = f32;
        numbers
    }

    fn factor(&self, transposed: bool) -> Factor<'_> {
        let (rows, cols) = (self.rows, self.cols);
        let factor = match self.kind {
            Kind::F32 => Factor::plain(Floats::F32(&self.f32), rows, cols),
            Kind::Bf16 => Factor::plain(Floats::Bf16(&self.bf16), rows, cols),
            Kind::Bytes(dtype) => {
                Factor::dense(DenseMatrix { bytes: &self.bytes[1..], dtype, n: rows, k: cols })
            }
            Kind::Blocks(_) => Factor::packed(self.packed.as_ref().expect("blocks are packed")),
            Kind::Nf4(_) => Factor::nf4(self.nf4.as_ref().expect("codes are made")),
        };
        if transposed { factor.t() } else { factor }
    }

    /// The values of the factor or of its transpose, row-major, as a product of `precision` sees
    /// them.
    fn values(&self, precision: Precision, transposed: bool) -> Vec<f32> {
        let round = |x: f32| match precision {
            Precision::F32 => x,
            Precision::Bf16 => bf16::from_f32(x).to_f32(),
        };
        if !transposed {
            return self.f32.iter().map(|&x| round(x)).collect();
        }
        let at = |i: usize| self.f32[i % self.rows * self.cols + i / self.rows];
        (0..self.f32.len()).map(|i| round(at(i))).collect()
    }
}

/// Stored numbers of a logical [rows, cols] factor.
fn draw(rng: &mut Gen, kind: Kind, rows: usize, cols: usize, transposed: bool) -> Numbers {
    if transposed {
        Numbers::new(rng, kind, cols, rows)
    } else {
        Numbers::new(rng, kind, rows, cols)
    }
}

/// One case: twice the product into f32 and bf16 results, with and without adding.
#[derive(Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    a: (Kind, bool),
    b: (Kind, bool),
    alpha: f32,
}

fn check(
    isa: Isa,
    team: &Team,
    scratch: &mut Scratch,
    precision: Precision,
    case: &Case,
    seed: u64,
) {
    let &Case { m, n, k, alpha, .. } = case;
    let mut rng = Gen::new(seed);
    let a = draw(&mut rng, case.a.0, m, k, case.a.1);
    let b = draw(&mut rng, case.b.0, k, n, case.b.1);
    let (left, right) = (a.values(precision, case.a.1), b.values(precision, !case.b.1));
    let mut want = vec![0.0; m * n];
    reference::matmul(&mut want, &left, &right, k);
    let size = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<f32>>();
    let mut norm = vec![0.0; m * n];
    reference::matmul(&mut norm, &size(&left), &size(&right), k);

    let old = rng.normals(m * n);
    for acc in [false, true] {
        let times = if acc { 2.0 } else { 1.0 };
        let mut out = old.clone();
        let mut low: Vec<bf16> = old.iter().map(|&x| bf16::from_f32(x)).collect();
        for _ in 0..times as usize {
            let (a, b) = (a.factor(case.a.1), b.factor(case.b.1));
            gemm(isa, team, scratch, precision, FloatsMut::F32(&mut out), acc, alpha, a, b);
            gemm(isa, team, scratch, precision, FloatsMut::Bf16(&mut low), acc, alpha, a, b);
        }
        for i in 0..m * n {
            let product = f64::from(alpha) * times * want[i];
            let (before, low_before) = if acc {
                (f64::from(old[i]), f64::from(bf16::from_f32(old[i]).to_f32()))
            } else {
                (0.0, 0.0)
            };
            // A rounding an input and a few for the chunks, each of a partial sum.
            let part = times * f64::from(alpha.abs()) * norm[i];
            let bound = (k + 8) as f64 * f64::from(f32::EPSILON) * (part + before.abs());
            let error = (f64::from(out[i]) - product - before).abs();
            assert!(
                error <= bound,
                "{isa} {precision:?} {case:?} acc {acc} ({i}): {error} {bound}"
            );
            // Each product is rounded once more.
            let largest = (part + low_before.abs()).max(1e-30);
            let step = times * largest / 256.0;
            let error = (f64::from(low[i].to_f32()) - product - low_before).abs();
            assert!(error <= bound + step, "{isa} {precision:?} {case:?} acc {acc} ({i}) bf16");
        }
    }
}

#[test]
fn every_level_size_and_orientation_equals_the_plain_sum_of_products() {
    let sizes = [1, 7, 8, 16, 17, 33, 100, 257];
    let team = Team::new(2).unwrap();
    for isa in Isa::available() {
        let mut scratch = Scratch::default();
        let mut seed = 0u64;
        for m in sizes {
            for n in sizes {
                for k in sizes {
                    // Largest sizes two at a time only: the reference takes its time.
                    if m * n * k > 300_000 {
                        continue;
                    }
                    for precision in [Precision::F32, Precision::Bf16] {
                        seed += 1;
                        let pick = |by: u64| (seed / by % 2) == 1;
                        let kind = |by: u64| KINDS[(seed / by % 5) as usize];
                        let case = Case {
                            m,
                            n,
                            k,
                            a: (kind(1), pick(1)),
                            b: (kind(5), pick(2)),
                            alpha: if pick(4) { 1.0 } else { -0.75 },
                        };
                        check(isa, &team, &mut scratch, precision, &case, seed);
                    }
                }
            }
        }
    }
}

#[test]
fn several_slabs_blocks_and_chunks() {
    let (x, y) = (Kind::F32, Kind::Bf16);
    for isa in Isa::available() {
        for threads in [1, 3] {
            let team = Team::new(threads).unwrap();
            let mut scratch = Scratch::default();
            for precision in [Precision::F32, Precision::Bf16] {
                let alpha = 0.5;
                for case in [
                    Case { m: 602, n: 1090, k: 40, a: (x, true), b: (y, false), alpha },
                    Case { m: 45, n: 1090, k: 700, a: (y, false), b: (x, true), alpha },
                    // Computed as its transpose.
                    Case { m: 1090, n: 8, k: 700, a: (x, true), b: (x, false), alpha },
                ] {
                    check(isa, &team, &mut scratch, precision, &case, 3);
                }
            }
        }
    }
}

#[test]
fn every_pair_of_sources_in_every_orientation() {
    let team = Team::new(1).unwrap();
    for isa in Isa::available() {
        let mut scratch = Scratch::default();
        for precision in [Precision::F32, Precision::Bf16] {
            for (i, a) in KINDS.into_iter().enumerate() {
                for (j, b) in KINDS.into_iter().enumerate() {
                    for turn in 0..4 {
                        // 1,200 inputs make several chunks in any unit.
                        let (m, n, k) = [(29, 50, 77), (5, 3, 1201)][(i + j + turn) % 2];
                        let (a, b) = ((a, turn % 2 == 1), (b, turn / 2 == 1));
                        let case = Case { m, n, k, a, b, alpha: 1.5 };
                        check(isa, &team, &mut scratch, precision, &case, (i * 5 + j) as u64);
                    }
                }
            }
        }
    }
}

#[test]
fn quantised_factors_count_as_their_decoded_rows() {
    let team = Team::new(2).unwrap();
    for isa in Isa::available() {
        let mut scratch = Scratch::default();
        for block in BlockType::ALL {
            let long = 3 * block.block_len();
            for precision in [Precision::F32, Precision::Bf16] {
                for alpha in [1.0, 0.5] {
                    let (w, x) = (Kind::Blocks(block), Kind::F32);
                    // As second and first factor, in both orientations; rows of the weights are no
                    // multiple of anything.
                    for case in [
                        Case { m: 25, n: 53, k: long, a: (x, false), b: (w, true), alpha },
                        Case { m: 25, n: long, k: 53, a: (x, false), b: (w, false), alpha },
                        Case { m: 53, n: 25, k: long, a: (w, false), b: (x, false), alpha },
                        Case { m: long, n: 25, k: 53, a: (w, true), b: (x, true), alpha },
                    ] {
                        check(isa, &team, &mut scratch, precision, &case, 9);
                    }
                }
            }
        }
    }
}

#[test]
fn nf4_factors_count_as_their_decoded_rows() {
    let team = Team::new(2).unwrap();
    let x = (Kind::F32, false);
    for isa in Isa::available() {
        let mut scratch = Scratch::default();
        for precision in [Precision::F32, Precision::Bf16] {
            // Rows of whole blocks, rows that share blocks, odd rows; several chunks of inputs.
            for (i, (n, k)) in [(53, 192), (40, 200), (23, 77), (70, 1290)].into_iter().enumerate()
            {
                let w = Kind::Nf4(i % 2 == 0);
                for case in [
                    Case { m: 25, n, k, a: x, b: (w, true), alpha: 1.0 },
                    Case { m: 25, n: k, k: n, a: x, b: (w, false), alpha: 0.5 },
                    Case { m: n, n: 25, k, a: (w, false), b: x, alpha: 0.5 },
                    Case { m: k, n: 25, k: n, a: (w, true), b: (Kind::F32, true), alpha: 1.0 },
                ] {
                    check(isa, &team, &mut scratch, precision, &case, 11);
                }
            }
        }
    }
}

#[test]
fn the_same_bits_for_any_number_of_threads_and_rows() {
    // The last is as narrow as an adapter.
    for (m, n, k) in [(150, 130, 640), (64, 9, 600), (700, 40, 65)] {
        let mut rng = Gen::new(7);
        for isa in Isa::available() {
            for precision in [Precision::F32, Precision::Bf16] {
                for turn in 0..4 {
                    let a = draw(&mut rng, KINDS[turn], m, k, false);
                    let b = draw(&mut rng, KINDS[4 - turn], k, n, turn % 2 == 1);
                    let old = rng.normals(m * n);
                    let product = |rows: usize, threads: usize| {
                        let part = Numbers {
                            f32: a.f32[..rows * k].to_vec(),
                            bf16: a.bf16[..a.bf16.len().min(rows * k)].to_vec(),
                            bytes: a.bytes.clone(),
                            packed: None,
                            nf4: None,
                            kind: if matches!(a.kind, Kind::Bytes(_)) { Kind::F32 } else { a.kind },
                            rows,
                            cols: k,
                        };
                        let mut out = old[..rows * n].to_vec();
                        let team = Team::new(threads).unwrap();
                        let (a, b) = (part.factor(false), b.factor(turn % 2 == 1));
                        let mut scratch = Scratch::default();
                        let to = FloatsMut::F32(&mut out);
                        gemm(isa, &team, &mut scratch, precision, to, true, 0.3, a, b);
                        out
                    };
                    let whole = product(m, 1);
                    for threads in [2, 3] {
                        assert!(whole == product(m, threads), "{isa} {precision:?} {threads}");
                    }
                    for rows in [1, 3, 11, 12, 17, 49] {
                        let some = product(rows, 2);
                        assert!(whole[..rows * n] == some, "{isa} {precision:?} {rows} rows");
                    }
                }
            }
        }
    }
}

#[test]
fn empty_products_and_empty_sums() {
    let team = Team::new(2).unwrap();
    let mut scratch = Scratch::default();
    let isa = Isa::best();
    for (m, n, k) in [(0, 4, 3), (4, 0, 3), (2, 3, 0)] {
        let (a, b) = (vec![1.0; m * k], vec![1.0; k * n]);
        for acc in [false, true] {
            let mut out = vec![5.0; m * n];
            let a = Factor::plain(Floats::F32(&a), m, k);
            let b = Factor::plain(Floats::F32(&b), k, n);
            let to = FloatsMut::F32(&mut out);
            gemm(isa, &team, &mut scratch, Precision::F32, to, acc, 1.0, a, b);
            assert!(out.iter().all(|&x| x == if acc { 5.0 } else { 0.0 }), "{m} {n} {k} {acc}");
        }
    }
}

#[test]
#[should_panic(expected = "rows of the second")]
fn factors_that_do_not_meet_are_refused() {
    let team = Team::new(1).unwrap();
    let (x, mut out) = (vec![0.0; 12], vec![0.0; 9]);
    let a = Factor::plain(Floats::F32(&x), 3, 4);
    let to = FloatsMut::F32(&mut out);
    gemm(Isa::PORTABLE, &team, &mut Scratch::default(), Precision::F32, to, false, 1.0, a, a);
}

#[test]
fn scratch_grows_once() {
    let team = Team::new(2).unwrap();
    let mut scratch = Scratch::default();
    assert_eq!(scratch.bytes(), 0);
    let x = vec![1.0; 200 * 300];
    let mut out = vec![0.0; 200 * 200];
    let mut bytes = vec![];
    for _ in 0..2 {
        let a = Factor::plain(Floats::F32(&x), 300, 200);
        let to = FloatsMut::F32(&mut out);
        gemm(Isa::best(), &team, &mut scratch, Precision::F32, to, false, 1.0, a.t(), a);
        bytes.push(scratch.bytes());
        assert!(out.iter().all(|&x| x == 300.0));
    }
    assert!(bytes[0] > 0 && bytes[0] == bytes[1], "{bytes:?}");
}
