//! Attention against the f64 reference, and the promise that a row has the same bits for every
//! number of threads, tokens at a time and split of the prompt.

use half::{bf16, f16};
use puna_cpu::attention::{AttentionArgs, AttentionScratch, KvLayer, KvShape, KvType, attention};
use puna_cpu::isa::Isa;
use puna_cpu::reference;
use puna_cpu::reference::AttentionShape;
use puna_cpu::team::Team;
use puna_cpu::testing::{EPS, Gen, compare};

#[derive(Clone, Copy, Debug)]
struct Case {
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    len: usize,
    window: Option<usize>,
    kv_type: KvType,
}

impl Case {
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn shape(&self) -> KvShape {
        let &Case { n_kv_heads, head_dim, kv_type, .. } = self;
        KvShape { n_kv_heads, head_dim, kv_type }
    }
}

/// Queries, keys and values of a whole sequence.
struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Data {
    fn new(case: &Case) -> Self {
        let mut random = Gen::new((case.len * 31 + case.head_dim * 7 + case.n_heads) as u64);
        let kv = case.len * case.n_kv_heads * case.head_dim;
        Data {
            q: random.normals(case.len * case.n_heads * case.head_dim),
            k: random.normals(kv),
            v: random.normals(kv),
        }
    }
}

fn fill(isa: Isa, case: &Case, data: &Data, kv: &mut KvLayer, len: usize) {
    let dim = case.n_kv_heads * case.head_dim;
    for pos in 0..len {
        let at = pos * dim..(pos + 1) * dim;
        kv.append(isa, pos, &data.k[at.clone()], &data.v[at]);
    }
}

/// The rows `from..to` of the sequence.
fn rows(
    isa: Isa,
    team: &Team,
    case: &Case,
    data: &Data,
    kv: &KvLayer,
    (from, to): (usize, usize),
    scratch: &mut AttentionScratch,
) -> Vec<f32> {
    let dim = case.n_heads * case.head_dim;
    let q = &data.q[from * dim..to * dim];
    let mut out = vec![f32::NAN; q.len()];
    let args = AttentionArgs {
        kv,
        n_heads: case.n_heads,
        scale: case.scale(),
        window: case.window,
        first_pos: from,
    };
    attention(isa, team, &args, &mut out, q, scratch);
    out
}

/// What the cache makes of numbers: the format's own rounding.
fn stored(case: &Case, x: &[f32]) -> Vec<f32> {
    let q8 = |x: &[f32]| -> Vec<f32> {
        let scale = x.iter().fold(0f32, |m, x| m.max(x.abs())) / 127.0;
        x.iter().map(|x| (x * (1.0 / scale)).round_ties_even() * scale).collect()
    };
    match case.kv_type {
        KvType::F16 => x.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        KvType::Bf16 => x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        KvType::F32 => x.to_vec(),
        KvType::Q8_0 => x.chunks(case.head_dim).flat_map(|h| h.chunks(32).flat_map(q8)).collect(),
    }
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

/// The bound for f32 arithmetic on stored keys and values: a score of head_dim terms is off by
/// some `sqrt(head_dim)` epsilons of `|q| |k|`, which enters the weights as it is; exponentials,
/// sums and quotient add a few dozen.
fn tolerance(case: &Case, data: &Data) -> f64 {
    let longest = |x: &[f32]| x.chunks(case.head_dim).map(norm).fold(0.0, f64::max);
    let score = longest(&data.q) * longest(&data.k) * f64::from(case.scale());
    let largest = data.v.iter().fold(0f64, |m, &x| m.max(f64::from(x.abs())));
    (4.0 * (case.head_dim as f64).sqrt() * score + 64.0) * EPS * largest
}

fn want(case: &Case, q: &[f32], k: &[f32], v: &[f32], first_pos: usize) -> Vec<f64> {
    let &Case { n_heads, n_kv_heads, head_dim, window, .. } = case;
    let scale = case.scale();
    let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale, window, first_pos };
    reference::attention(&shape, q, k, v)
}

/// The whole sequence at once against the reference.
fn check(isa: Isa, team: &Team, case: &Case) -> Result<(), String> {
    let data = Data::new(case);
    let mut kv = KvLayer::new(case.shape(), case.len);
    fill(isa, case, &data, &mut kv, case.len);
    let mut scratch = AttentionScratch::new();
    let got = rows(isa, team, case, &data, &kv, (0, case.len), &mut scratch);
    let (k, v) = (stored(case, &data.k), stored(case, &data.v));
    let tol = tolerance(case, &data);
    let want = want(case, &data.q, &k, &v, 0);
    compare(&got, &want, |_| tol).map_err(|e| format!("{isa} {case:?}: {e}"))?;
    if compare(&vec![0.0; got.len()], &want, |_| tol).is_ok() {
        return Err(format!("{isa} {case:?}: zeros would pass"));
    }
    Ok(())
}

fn check_all(cases: impl Iterator<Item = Case> + Clone) {
    let team = Team::new(2).expect("two threads");
    let mut failures = vec![];
    for isa in Isa::available() {
        for case in cases.clone() {
            failures.extend(check(isa, &team, &case).err());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

const PLAIN: Case =
    Case { n_heads: 2, n_kv_heads: 1, head_dim: 16, len: 40, window: None, kv_type: KvType::F32 };

#[test]
fn all_head_dims_and_formats_match_the_reference() {
    let dims = [1, 2, 8, 12, 16, 24, 33, 48, 64, 80, 96, 128, 160, 256];
    check_all(dims.into_iter().flat_map(|head_dim| {
        KvType::ALL.into_iter().map(move |kv_type| Case { head_dim, kv_type, ..PLAIN })
    }));
}

#[test]
fn all_lengths_around_blocks_and_chunks_match_the_reference() {
    let lens = [1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 255, 256, 257, 300, 513, 1000];
    check_all(lens.into_iter().map(|len| Case { len, head_dim: 8, ..PLAIN }));
}

#[test]
fn all_head_ratios_match_the_reference() {
    let ratios = [(1, 1), (3, 3), (4, 2), (6, 2), (5, 1), (9, 3), (7, 1), (8, 1), (12, 1), (32, 4)];
    check_all(ratios.into_iter().flat_map(|(n_heads, n_kv_heads)| {
        [19, 270]
            .map(|len| Case { n_heads, n_kv_heads, len, kv_type: KvType::F16, ..PLAIN })
            .into_iter()
    }));
}

#[test]
fn all_windows_match_the_reference() {
    let windows = [1, 2, 15, 16, 17, 100, 255, 256, 257, 400, 1000, usize::MAX];
    check_all(windows.into_iter().flat_map(|window| {
        [(1, 1), (4, 1)].map(|(n_heads, n_kv_heads)| Case {
            n_heads,
            n_kv_heads,
            len: 600,
            window: Some(window),
            ..PLAIN
        })
    }));
}

#[test]
fn formats_are_as_close_as_their_bits_allow() {
    // Half a unit of the last place of keys and values: 2^-11, 2^-8, 0.5 / 127 of the largest;
    // a key's error enters the score with up to |q| sqrt(head_dim) scale.
    let named =
        [(KvType::F16, 2f64.powi(-11)), (KvType::Bf16, 2f64.powi(-8)), (KvType::Q8_0, 0.5 / 127.0)];
    for isa in Isa::available() {
        let team = Team::new(1).expect("no thread");
        for (kv_type, unit) in named {
            let case = Case { head_dim: 64, len: 100, kv_type, ..PLAIN };
            let data = Data::new(&case);
            let mut kv = KvLayer::new(case.shape(), case.len);
            fill(isa, &case, &data, &mut kv, case.len);
            let scratch = &mut AttentionScratch::new();
            let got = rows(isa, &team, &case, &data, &kv, (0, case.len), scratch);
            let want = want(&case, &data.q, &data.k, &data.v, 0);
            let error: Vec<f32> = got.iter().zip(&want).map(|(g, w)| g - *w as f32).collect();
            let off = norm(&error) / norm(&got);
            assert!(off < 3.0 * unit, "{isa} {kv_type}: relative error {off}");
            assert!(off > 0.01 * unit, "{isa} {kv_type}: suspiciously exact, {off}");
        }
    }
}

/// Position of the first element whose bits differ.
fn differs(a: &[f32], b: &[f32]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits())
}

#[test]
fn bits_do_not_depend_on_threads_or_chunking() {
    let mut cases = vec![];
    for (n_heads, n_kv_heads) in [(1, 1), (3, 3), (6, 2), (8, 1), (5, 1)] {
        for (head_dim, window) in [(64, None), (24, Some(100)), (80, Some(300))] {
            // Every format with several shapes, not with all.
            let kv_type = KvType::ALL[cases.len() % KvType::ALL.len()];
            cases.push(Case { n_heads, n_kv_heads, head_dim, len: 530, window, kv_type });
        }
    }
    let teams: Vec<Team> = [1, 2, 3].map(|n| Team::new(n).expect("threads")).into();
    for isa in Isa::available() {
        for case in &cases {
            let data = Data::new(case);
            let mut kv = KvLayer::new(case.shape(), case.len);
            fill(isa, case, &data, &mut kv, case.len);
            let mut scratch = AttentionScratch::new();
            let whole = rows(isa, &teams[0], case, &data, &kv, (0, case.len), &mut scratch);
            for team in &teams {
                // Sizes of consecutive calls, repeated: all at once, odd pieces, then pieces
                // around a chunk's end and single tokens.
                for sizes in [&[530][..], &[1, 13, 7, 64, 33, 2, 101], &[250, 1, 1, 1, 1, 1, 1, 1]]
                {
                    let mut from = 0;
                    let mut got = vec![];
                    for size in sizes.iter().cycle() {
                        let to = (from + size).min(case.len);
                        got.extend(rows(isa, team, case, &data, &kv, (from, to), &mut scratch));
                        from = to;
                        if from == case.len {
                            break;
                        }
                    }
                    let at = differs(&whole, &got);
                    assert_eq!(at, None, "{isa} {case:?}, {} threads, {sizes:?}", team.len());
                }
            }
        }
    }
}

#[test]
fn one_token_at_a_time_has_the_bits_of_the_prompt() {
    let teams: Vec<Team> = [1, 2, 3].map(|n| Team::new(n).expect("threads")).into();
    for isa in Isa::available() {
        for (n_heads, n_kv_heads, window) in [(1, 1, None), (8, 2, None), (3, 1, Some(40))] {
            for (kv_type, len) in [(KvType::F16, 300), (KvType::Q8_0, 270)] {
                let case = Case { n_heads, n_kv_heads, head_dim: 64, len, window, kv_type };
                let data = Data::new(&case);
                let mut kv = KvLayer::new(case.shape(), case.len);
                fill(isa, &case, &data, &mut kv, case.len);
                let mut scratch = AttentionScratch::new();
                let whole = rows(isa, &teams[1], &case, &data, &kv, (0, len), &mut scratch);
                // Now as a decoder does: a position is written just before it is read.
                let mut kv = KvLayer::new(case.shape(), case.len);
                let dim = case.n_kv_heads * case.head_dim;
                for pos in 0..len {
                    let at = pos * dim..(pos + 1) * dim;
                    kv.append(isa, pos, &data.k[at.clone()], &data.v[at]);
                    let team = &teams[pos % 3];
                    let got = rows(isa, team, &case, &data, &kv, (pos, pos + 1), &mut scratch);
                    let row = n_heads * case.head_dim;
                    let want = &whole[pos * row..(pos + 1) * row];
                    assert_eq!(differs(want, &got), None, "{isa} {case:?} position {pos}");
                }
            }
        }
    }
}

#[test]
fn what_lies_beyond_the_valid_length_is_never_seen() {
    let team = Team::new(2).expect("two threads");
    for isa in Isa::available() {
        for kv_type in KvType::ALL {
            for (n_heads, n_kv_heads, window) in [(1, 1, None), (4, 1, None), (3, 3, Some(50))] {
                let case = Case { n_heads, n_kv_heads, head_dim: 40, len: 300, window, kv_type };
                let data = Data::new(&case);
                let dim = case.n_kv_heads * case.head_dim;
                let mut kv = KvLayer::new(case.shape(), case.len);
                fill(isa, &case, &data, &mut kv, case.len);
                let mut scratch = AttentionScratch::new();
                let clean = rows(isa, &team, &case, &data, &kv, (0, 279), &mut scratch);
                // A cache shortened to 279 positions, with the worst in what was cut off, and the
                // scratch memory of a call that has seen it.
                for pos in 279..kv.capacity() {
                    let junk = vec![if pos % 2 == 0 { f32::NAN } else { f32::INFINITY }; dim];
                    kv.append(isa, pos, &junk, &junk);
                }
                let _ = rows(isa, &team, &case, &data, &kv, (279, 300), &mut scratch);
                let dirty = rows(isa, &team, &case, &data, &kv, (0, 279), &mut scratch);
                assert_eq!(differs(&clean, &dirty), None, "{isa} {case:?}");
                assert!(dirty.iter().all(|x| x.is_finite()), "{isa} {case:?}");
                let one = rows(isa, &team, &case, &data, &kv, (278, 279), &mut scratch);
                assert_eq!(
                    differs(&clean[278 * case.n_heads * 40..], &one),
                    None,
                    "{isa} {case:?}"
                );
            }
        }
    }
}

#[test]
fn a_copied_cache_gives_the_same_bits_and_lives_on_alone() {
    let team = Team::new(1).expect("no thread");
    let isa = Isa::best();
    for kv_type in KvType::ALL {
        let case = Case { n_heads: 4, n_kv_heads: 2, head_dim: 24, len: 90, kv_type, ..PLAIN };
        let data = Data::new(&case);
        let mut kv = KvLayer::new(case.shape(), 500);
        fill(isa, &case, &data, &mut kv, 90);
        let mut fork = KvLayer::new(case.shape(), 100);
        fork.copy_from(&kv, 71);
        let mut scratch = AttentionScratch::new();
        let a = rows(isa, &team, &case, &data, &kv, (0, 71), &mut scratch);
        let b = rows(isa, &team, &case, &data, &fork, (0, 71), &mut scratch);
        assert_eq!(differs(&a, &b), None, "{kv_type}");
        let zeros = vec![0.0; case.n_kv_heads * case.head_dim];
        fork.append(isa, 0, &zeros, &zeros);
        let c = rows(isa, &team, &case, &data, &kv, (0, 71), &mut scratch);
        assert_eq!(differs(&a, &c), None, "{kv_type}: writing the copy changed the source");
        let d = rows(isa, &team, &case, &data, &fork, (0, 71), &mut scratch);
        assert!(differs(&a, &d).is_some(), "{kv_type}: the copy did not take the write");
    }
}

#[test]
fn names_and_sizes() {
    for kv_type in KvType::ALL {
        assert_eq!(KvType::named(kv_type.name()), Some(kv_type));
        let kv = KvLayer::new(KvShape { n_kv_heads: 2, head_dim: 64, kv_type }, 100);
        assert_eq!(kv.capacity(), 128);
        let bits_per_number = kv.bytes() * 8 / (2 * 2 * 64 * 128);
        let want = match kv_type {
            KvType::F32 => 32,
            KvType::F16 | KvType::Bf16 => 16,
            KvType::Q8_0 => 9,
        };
        assert_eq!(bits_per_number, want, "{kv_type}");
    }
    assert_eq!(KvType::named("f64"), None);
}

#[test]
fn broken_contracts_are_named() {
    let team = Team::new(1).expect("no thread");
    let shape = KvShape { n_kv_heads: 2, head_dim: 8, kv_type: KvType::F32 };
    let kv = KvLayer::new(shape, 64);
    let message = |n_heads: usize, window, first_pos, len: usize| -> String {
        let args = AttentionArgs { kv: &kv, n_heads, scale: 1.0, window, first_pos };
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let (mut out, q) = (vec![0.0; len], vec![0.0; len]);
            attention(Isa::PORTABLE, &team, &args, &mut out, &q, &mut AttentionScratch::new());
        }));
        let payload = caught.expect_err("the contract is broken");
        payload.downcast_ref::<String>().cloned().unwrap_or_else(|| {
            payload.downcast_ref::<&str>().map(|s| s.to_string()).unwrap_or_default()
        })
    };
    assert!(message(3, None, 0, 24).contains("3 heads over 2 KV heads"));
    assert!(message(2, None, 0, 17).contains("17 elements are not rows of 16"));
    assert!(message(2, None, 64, 16).contains("from position 64 in a cache of 64"));
    assert!(message(2, Some(0), 0, 16).contains("window of 0"));
}
